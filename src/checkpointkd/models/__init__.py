"""Networks by name: built-in ones, `timm:NAME`, `hf:FOLDER` of transformers, `package.module:callable` of the user."""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..config import ChannelOrder
from ..errors import UserError, first_line, unknown_name
from ..seeding import derive_seed
from ..user_code import current_folder_last, import_object
from .hooks import as_map, capture_activations, last_map_path, main_output, stage_paths, vector_path
from .hugging_face import PREFIX as HUGGING_FACE
from .hugging_face import build_from_config, most_parameters, read_config
from .mobilenet_v2 import MobileNetV2
from .network import ONE_CHANNEL, Network
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
    "has_batch_norm",
    "last_map_path",
    "names_code",
    "read_config",
    "stage_paths",
    "vector_path",
]

log = logging.getLogger("checkpointkd")

# D and K stand for integers, W for a decimal number; the builder receives them in order.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "wrn_D_K": WideResNet,
    "resnet_D": ResNet,
    "mobilenetv2_W": MobileNetV2,
}
TIMM = "timm:"
TIMM_REFUSED = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes"}
TIMM_REFUSED |= {"in_chans", "features_only", "out_indices", "scriptable", "exportable", "no_jit", "fork_feature"}
_INTEGER = (r"[0-9]{1,4}", int)
_PLACEHOLDERS: dict[str, tuple[str, Callable[[str], float]]] = {
    "D": _INTEGER,
    "K": _INTEGER,
    "W": (r"[0-9]?\.?[0-9]{1,4}", float),
}


def build_network(
    model: str,
    *,
    num_classes: int,
    in_channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    channel_order: ChannelOrder = "rgb",
    pretrained: bool = False,
) -> Network:
    """Build a network by name; its initial weights are a function of the seed.

    Args:
        model: A name in `MODELS` with its numbers, `timm:NAME`, `timm:NAME?argument=value&…`, `hf:FOLDER`, or
            `package.module:callable`. FOLDER holds the config.json of an image classifier of transformers. The callable
            takes `num_classes` and `in_channels`, one of them or none, and returns an `nn.Module`.
        num_classes: Number of logits.
        in_channels: Number of image channels.
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel.
        seed: Seed of the initial weights.
        config: For `hf:FOLDER`, what `read_config` returned before. By default it is read now.
        channel_order: `bgr` if the network takes the blue channel first.
        pretrained: Start from timm's pretrained weights, which are downloaded; other networks have none.

    Raises:
        UserError: The name is unknown, or the user's module or callable fails.

    >>> network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.4])
    >>> sum(parameter.numel() for parameter in network.parameters())
    77562
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("weights", seed))
        if pretrained:
            body = _build_pretrained(model, num_classes=num_classes, in_channels=in_channels)
        else:
            body = _build_body(model, config, num_classes=num_classes, in_channels=in_channels)
    return Network(body, mean=mean, std=std, channel_order=channel_order)


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether a network has batch normalization."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def check_trainable(network: Network, images_BCHW: Tensor, *, classes: int, model: str) -> None:
    """Run one forward and backward pass; do not use the network afterwards, its batch norm statistics have changed.

    Args:
        network: The network.
        images_BCHW: A batch of training images.
        classes: The expected number of logits.
        model: The network's name in the error message.

    Raises:
        UserError: A pass fails, or the output is not logits (B, K).
    """
    try:
        output = network.train().body(network.normalized(images_BCHW))
        logits_BK, which = main_output(output)
        if which:
            log.info("%s returns several outputs. Its logits are %s.", model, which)
        output = (
            f"shape {tuple(logits_BK.shape)}" if isinstance(logits_BK, Tensor) else f"type {type(logits_BK).__name__}"
        )
        expected = f"shape {(len(images_BCHW), classes)}"
        if output != expected:
            raise UserError(f"the output has {output}, expected logits of {expected}")
        logits_BK.square().sum().backward()
    except Exception as error:  # the user's code may raise anything
        gray = ONE_CHANNEL if "to have 1 channels, but got 3" in str(error) else ""
        raise UserError(f"Model {model!r} cannot be trained on these images: {first_line(error)}{gray}") from None


def names_code(model: str) -> bool:
    """Return whether a name is `package.module:callable`, so that building the network imports a user's code."""
    return ":" in model and not model.startswith((TIMM, HUGGING_FACE))


def _build_body(model: str, config: Mapping[str, Any] | None, *, num_classes: int, in_channels: int) -> nn.Module:
    for pattern, builder in MODELS.items():
        name, *letters = pattern.split("_")
        match = re.fullmatch("_".join([name, *(f"({_PLACEHOLDERS[letter][0]})" for letter in letters)]), model)
        if match:
            numbers = [_PLACEHOLDERS[letter][1](text) for letter, text in zip(letters, match.groups(), strict=True)]
            return builder(*numbers, num_classes=num_classes, in_channels=in_channels)
    if model.startswith(TIMM):
        name, _, arguments = model.removeprefix(TIMM).partition("?")
        return _build_timm(name, _timm_arguments(model, arguments), num_classes=num_classes, in_channels=in_channels)
    if model.startswith(HUGGING_FACE):
        sizes = {"num_classes": num_classes, "in_channels": in_channels}
        if config is not None:
            return build_from_config(config, **sizes)
        most = most_parameters(Path(model.removeprefix(HUGGING_FACE)))
        return build_from_config(read_config(model) or {}, **sizes, most=most)
    if names_code(model):
        return _build_custom(model, num_classes=num_classes, in_channels=in_channels)
    raise unknown_name("model", model, [*MODELS, "timm:NAME", "hf:FOLDER", "package.module:callable"])


def _timm_arguments(model: str, text: str) -> dict[str, Any]:
    """Return the arguments in `timm:NAME?global_pool=max&bn_eps=0.001`. Arguments that fetch files are refused."""
    arguments: dict[str, Any] = {}
    for part in text.split("&") if text else ():
        key, _, value = part.partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", key) or not value or key in TIMM_REFUSED:
            raise UserError(f"Model {model!r}: {part!r} is not allowed. Give arguments such as global_pool=max.")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return arguments


def _build_timm(name: str, arguments: Mapping[str, Any], *, num_classes: int, in_channels: int) -> nn.Module:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision does not fit this PyTorch
        raise UserError(
            f"Model 'timm:{name}' needs timm and a torchvision of the same build (CPU or CUDA) as PyTorch "
            f"{torch.__version__} ({first_line(error)}). Install timm with pip install 'checkpointkd[timm]', and "
            "torchvision with the same --index-url as PyTorch."
        ) from None
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=6, cutoff=0.5)
        raise unknown_name("timm model", name, close or ["resnet18", "resnet34", "resnet50", "mobilenetv2_100"])
    try:
        return timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **arguments)
    except Exception as error:  # an argument may have any value
        if not arguments:
            raise
        raise UserError(f"timm cannot build {name!r} with {dict(arguments)}: {first_line(error)}") from None


def _build_pretrained(model: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """Return a network of timm with pretrained weights. timm replaces a classifier of other classes by a fresh one."""
    if not model.startswith(TIMM):
        raise UserError(f"--init pretrained applies to timm:NAME. For {model} give --init PATH with its weights.")
    name, _, arguments = model.removeprefix(TIMM).partition("?")
    given = {**_timm_arguments(model, arguments), "pretrained": True}
    body = _build_timm(name, given, num_classes=num_classes, in_channels=in_channels)
    classes = getattr(body, "pretrained_cfg", {}).get("num_classes")
    if classes != num_classes:
        log.info(
            "%s starts from pretrained weights with a fresh classifier (%s, not %s classes)",
            model,
            num_classes,
            classes,
        )
    return body


def _build_custom(model: str, **sizes: int) -> nn.Module:
    with current_folder_last():
        return _call_factory(model, import_object(model, kind="Model"), sizes)


def _call_factory(model: str, factory: Any, sizes: Mapping[str, int]) -> nn.Module:
    try:
        body = factory(**_accepted(factory, sizes))
    except TypeError as error:
        raise UserError(f"{model!r} cannot be called with num_classes= and in_channels=: {first_line(error)}") from None
    except Exception as error:
        raise UserError(f"Model {model!r} cannot be built: {first_line(error)}") from None
    if not isinstance(body, nn.Module):
        raise UserError(f"{model!r} returned a {type(body).__name__}, not a torch.nn.Module")
    return body


def _accepted(factory: Callable[..., Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return those of num_classes and in_channels that a factory has parameters for."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable written in C has none to show
        return dict(sizes)
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: size for name, size in sizes.items() if takes_any or name in parameters}
