"""Networks by name: ours, and the user's own as `package.module:callable`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..errors import UserError, require, unknown
from ..randomness import derive_seed
from .features import last_map_path, taps
from .network import Network
from .wide_resnet import WideResNet

__all__ = ["MODELS", "Network", "WideResNet", "build_network", "last_map_path", "taps"]

# A name with `*` stands for a family; each `*` is a whole number that the builder is given.
MODELS: dict[str, Callable[..., nn.Module]] = {"wrn_*_*": WideResNet}


def build_network(
    model: str, *, num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float], seed: int = 0
) -> Network:
    """A freshly initialised network of this name; its weights are a function of the seed.

    Raises UserError for a name that nothing answers to.

    >>> network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.4])
    >>> sum(parameter.numel() for parameter in network.parameters())
    77562
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("weights", seed))
        body = _body(model, num_classes=num_classes, in_channels=in_channels)
    return Network(body, mean=mean, std=std)


def _body(model: str, **sizes: int) -> nn.Module:
    for pattern, builder in MODELS.items():
        match = re.fullmatch(pattern.replace("*", r"(\d+)"), model)
        if match:
            return builder(*map(int, match.groups()), **sizes)
    if ":" in model:
        return _users_own(model, **sizes)
    raise unknown("model", model, [*(pattern.replace("*", "N") for pattern in MODELS), "package.module:callable"])


def _users_own(model: str, **sizes: int) -> nn.Module:
    module_name, _, attribute = model.partition(":")
    try:
        callable_ = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the model {model!r} can't be imported: {error}") from None
    try:
        body = callable_(**sizes)
    except TypeError as error:
        raise UserError(f"{model!r} must take num_classes= and in_channels=: {error}") from None
    require(isinstance(body, nn.Module), f"{model!r} gave a {type(body).__name__}, not a torch.nn.Module")
    return body
