"""Networks by name: ours, timm's as `timm:NAME`, and the user's own as `package.module:callable`."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError, first_line, unknown_name
from ..seeding import derive_seed
from .hooks import as_map, capture_activations, last_map_path, stage_paths, vector_path
from .mobilenet_v2 import MobileNetV2
from .network import Network
from .resnet import ResNet
from .wide_resnet import WideResNet

__all__ = [
    "MODELS",
    "MobileNetV2",
    "Network",
    "ResNet",
    "WideResNet",
    "as_map",
    "build_network",
    "capture_activations",
    "check_trainable",
    "last_map_path",
    "stage_paths",
    "vector_path",
]

# D and K stand for whole numbers, W for a decimal one; the builder is given them in their order.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "wrn_D_K": WideResNet,
    "resnet_D": ResNet,
    "mobilenetv2_W": MobileNetV2,
}
_WHOLE = (r"[0-9]{1,4}", int)
_NUMBERS: dict[str, tuple[str, Callable[[str], float]]] = {
    "D": _WHOLE,
    "K": _WHOLE,
    "W": (r"[0-9]?\.?[0-9]{1,4}", float),
}


def build_network(
    model: str, *, num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float], seed: int = 0
) -> Network:
    """A freshly initialized network of this name; its weights are a function of the seed.

    Raises UserError for a name that nothing answers to.

    >>> network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.4])
    >>> sum(parameter.numel() for parameter in network.parameters())
    77562
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("weights", seed))
        body = _body(model, num_classes=num_classes, in_channels=in_channels)
    return Network(body, mean=mean, std=std)


def check_trainable(network: Network, images_BCHW: Tensor, *, classes: int, model: str) -> None:
    """Take one step's forward and backward pass; raises UserError, in one sentence, when the model can't be trained so.

    The network is spent: its statistics have changed.
    """
    try:
        logits_BK = network.train()(images_BCHW)
        shape = tuple(logits_BK.shape) if isinstance(logits_BK, Tensor) else type(logits_BK).__name__
        if shape != (len(images_BCHW), classes):
            raise UserError(f"it gives {shape}, not logits of shape {(len(images_BCHW), classes)}")
        logits_BK.square().sum().backward()
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"the model {model!r} can't learn from these images: {first_line(error)}") from None


def _body(model: str, *, num_classes: int, in_channels: int) -> nn.Module:
    for pattern, builder in MODELS.items():
        name, *letters = pattern.split("_")
        match = re.fullmatch("_".join([name, *(f"({_NUMBERS[letter][0]})" for letter in letters)]), model)
        if match:
            numbers = [_NUMBERS[letter][1](text) for letter, text in zip(letters, match.groups(), strict=True)]
            return builder(*numbers, num_classes=num_classes, in_channels=in_channels)
    if model.startswith("timm:"):
        return _timms(model.removeprefix("timm:"), num_classes=num_classes, in_channels=in_channels)
    if ":" in model:
        return _users_own(model, num_classes=num_classes, in_channels=in_channels)
    raise unknown_name("model", model, [*MODELS, "timm:NAME", "package.module:callable"])


def _timms(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that doesn't fit this PyTorch
        reason = first_line(error)
        raise UserError(
            f"the model 'timm:{name}' needs timm, and a torchvision of the same build (CPU or CUDA) as this PyTorch "
            f"{torch.__version__} ({reason}); get timm with pip install 'checkpointkd[timm]', and torchvision "
            "from where PyTorch came"
        ) from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=6, cutoff=0.5)
        raise unknown_name("timm model", name, near or ["resnet18", "resnet34", "resnet50", "mobilenetv2_100"])
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)


def _users_own(model: str, **sizes: int) -> nn.Module:
    module_name, _, attribute = model.partition(":")
    try:
        callable_ = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # the user's module may raise anything
        raise UserError(
            f"the model {model!r} can't be imported: {first_line(error)} (looked for in the folder that you are in and "
            "where Python looks)"
        ) from None
    try:
        body = callable_(**sizes)
    except TypeError as error:
        raise UserError(f"{model!r} must take num_classes= and in_channels=: {first_line(error)}") from None
    except Exception as error:
        raise UserError(f"the model {model!r} can't be made: {first_line(error)}") from None
    if not isinstance(body, nn.Module):
        raise UserError(f"{model!r} gave a {type(body).__name__}, not a torch.nn.Module")
    return body
