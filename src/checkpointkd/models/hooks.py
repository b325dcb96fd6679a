"""Activations of any module by path: `layer3.1` is a submodule's output, `pool:input` is a submodule's input.

Letters in names: B batch, C channels, D channels of a map, T tokens, H W image height and width, h w a map's.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UserError

_LISTED_MODULES = 30  # module names in an error message
_MAX_STAGES = 4
_MAX_PREFIX_TOKENS = 8  # class, distillation and register tokens


@contextmanager
def capture_activations(module: nn.Module, paths: list[str]) -> Iterator[dict[str, Tensor]]:
    """Record the tensors at these paths during every forward pass within the context.

    The dict holds clones of the latest pass, because a later layer may work in place.

    Raises:
        UserError: The module has no submodule at a path, or the value there is not a tensor.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> with capture_activations(net, ["0", "1:input"]) as activations:
    ...     _ = net(torch.zeros(1, 1, 8, 8))
    >>> activations["0"].shape, torch.equal(activations["0"], activations["1:input"])
    (torch.Size([1, 2, 6, 6]), True)
    """
    activations: dict[str, Tensor] = {}
    modules = dict(module.named_modules())
    handles = []
    for path in paths:
        name, _, side = path.partition(":")
        if name not in modules or side not in ("", "input"):
            raise UserError(_no_module(path, [name for name in modules if name]))

        def record(value: object, path: str = path) -> None:
            if not isinstance(value, Tensor):
                raise UserError(
                    f"The value at {path!r} has type {type(value).__name__}, not Tensor. Name another module."
                )
            activations[path] = value.clone()

        if side == "input":
            hook = lambda _, inputs, record=record: record(inputs[0] if inputs else None)  # noqa: E731
            handles.append(modules[name].register_forward_pre_hook(hook))
        else:
            hook = lambda _, __, output, record=record: record(output)  # noqa: E731
            handles.append(modules[name].register_forward_hook(hook))
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()


def _no_module(path: str, modules: list[str]) -> str:
    close = difflib.get_close_matches(path, modules, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    shallow = sorted(modules, key=lambda name: (name.count("."), modules.index(name)))[:_LISTED_MODULES]
    deeper = f", and {len(modules) - len(shallow)} deeper ones" if len(modules) > len(shallow) else ""
    return f"The model has no module {path!r}.{hint} Its modules: {', '.join(shallow)}{deeper}."


def last_map_path(module: nn.Module, images_BCHW: Tensor, *, option: str = "--feature-layer") -> str:
    """Return the path of a classifier's last convolutional map, after batch norm and ReLU, before global pooling.

    Runs the images once. The path is the input of the last module that turns a map into a value without extent. Where
    pooling is not a module, it is the output of the last module that outputs a map.

    Args:
        module: The classifier.
        images_BCHW: Any images of the size it takes.
        option: The command-line option that names a module instead; for the error message.

    Raises:
        UserError: The model has no map, or it ends in tokens, as transformers do.
    """
    pooled = last = tokens = None
    size = (images_BCHW.shape[2], images_BCHW.shape[3])
    leaves = {name for name, submodule in module.named_modules() if not list(submodule.children())}
    for name, value_in, value_out in _record_calls(module, images_BCHW):
        if isinstance(value_out, Tensor) and value_out.dim() == 3 and as_map(value_out, size) is not None:
            tokens = name
        elif _is_map(value_out, size):
            tokens = None
            pooled, last = None, name  # an earlier pooling, as in squeeze-excite, was not the global one
        elif name in leaves and last is not None and _is_map(value_in, size):
            pooled = f"{name}:input"
    if tokens is not None:
        raise UserError(
            "The model ends in tokens, not in a convolutional map. Name a module that outputs a map or tokens with "
            f"{option}, for example {tokens!r}."
        )
    path = pooled or last
    if path is None:
        raise UserError(
            f"The model has no convolutional map. Name a module that outputs a map or tokens with {option}; without "
            "one, its features cannot be used."
        )
    return path


def stage_paths(module: nn.Module, images_BCHW: Tensor, *, option: str = "--feature-layer") -> list[str]:
    """Return the paths of a classifier's stage ends: the last map of each size, largest size first, at most four.

    A module counts as within a stage, and only its output is considered, if it shrinks maps by at most a factor of
    two. Otherwise, and if it is never called itself, its submodules are considered. The arguments are those of
    `last_map_path`.

    Raises:
        UserError: The model has no convolutional maps.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 4, 3, 2, 1), nn.Flatten())
    >>> stage_paths(net, torch.zeros(1, 1, 8, 8))
    ['1', '2']
    """
    size = (images_BCHW.shape[2], images_BCHW.shape[3])
    calls: dict[str, tuple[object, object]] = {}
    for name, value_in, value_out in _record_calls(module, images_BCHW):
        calls.pop(name, None)  # the last call of a module counts, also for the order
        calls[name] = (value_in, value_out)
    children: dict[str, list[str]] = {}  # called modules by the nearest called module around them
    for name in calls:
        parent = name.rpartition(".")[0]
        while parent and parent not in calls:
            parent = parent.rpartition(".")[0]
        children.setdefault(parent, []).append(name)
    path_of_extent: dict[int, str] = {}

    def walk(parent: str) -> None:
        for name in children.get(parent, []):
            extent_in, extent_out = (_extent(value, size) for value in calls[name])
            if name in children and (extent_out == 0 or extent_in > 2 * extent_out + 2):
                walk(name)
            elif extent_out > 0:
                path_of_extent[extent_out] = name

    walk("")
    if not path_of_extent:
        raise UserError(
            f"The model has no convolutional maps. Name modules that output maps or tokens with {option}; without "
            "them, its features cannot be used."
        )
    return [path_of_extent[extent] for extent in sorted(path_of_extent, reverse=True)][-_MAX_STAGES:]


def vector_path(module: nn.Module, images_BCHW: Tensor, *, option: str = "--feature-layer") -> str:
    """Return the path of the vector that enters a classifier's last linear layer; without one, of its last map.

    The arguments and errors are those of `last_map_path`.
    """
    modules = dict(module.named_modules())
    linear_layers = [
        name
        for name, value_in, _ in _record_calls(module, images_BCHW)
        if isinstance(modules[name], nn.Linear) and isinstance(value_in, Tensor) and value_in.dim() == 2
    ]
    return f"{linear_layers[-1]}:input" if linear_layers else last_map_path(module, images_BCHW, option=option)


def _record_calls(module: nn.Module, images_BCHW: Tensor) -> list[tuple[str, object, object]]:
    """Return path, first input and output of each submodule call, in the order in which the calls end."""
    images_BCHW = images_BCHW.to(next(module.parameters(), images_BCHW).device)
    calls: list[tuple[str, object, object]] = []

    def record(name: str, inputs: tuple, output: object) -> None:
        calls.append((name, inputs[0] if inputs else None, output))

    handles = [
        submodule.register_forward_hook(lambda _, inputs, output, name=name: record(name, inputs, output))
        for name, submodule in module.named_modules()
        if name
    ]
    was_training = module.training
    try:
        module.eval()
        with torch.no_grad():
            module(images_BCHW)
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    return calls


def _extent(value: object, image_size: tuple[int, int]) -> int:
    """Return the longer side of a map in positions; 0 for a value that is not a map."""
    map_BhwD = as_map(value, image_size) if isinstance(value, Tensor) else None
    return max(map_BhwD.shape[1:3]) if map_BhwD is not None and min(map_BhwD.shape[1:3]) > 1 else 0


def as_map(features: Tensor, image_size: tuple[int, int]) -> Tensor | None:
    """Return a batch's features as maps (B, h, w, D), or None if they are not maps.

    Maps (B, D, h, w) and (B, h, w, D) are told apart by the image's proportions, which a map shares. Tokens (B, T, D)
    lie row by row; tokens without a position, such as a class token, come first and are dropped.

    Args:
        features: Maps or tokens of a batch.
        image_size: Height and width of the images, (H, W).

    >>> as_map(torch.zeros(2, 64, 7, 7), (224, 224)).shape, as_map(torch.zeros(2, 7, 7, 64), (224, 224)).shape
    (torch.Size([2, 7, 7, 64]), torch.Size([2, 7, 7, 64]))
    >>> as_map(torch.zeros(2, 197, 192), (224, 224)).shape
    torch.Size([2, 14, 14, 192])
    """
    if not features.is_floating_point():
        return None
    if features.dim() == 4:
        channels_first = _same_proportions(features.shape[2:], image_size)
        channels_last = _same_proportions(features.shape[1:3], image_size)
        if not channels_first and not channels_last and image_size[0] == image_size[1]:
            return None  # for example attention weights
        return features if channels_last and not channels_first else features.permute(0, 2, 3, 1)
    if features.dim() == 3:
        for prefix in range(_MAX_PREFIX_TOKENS + 1):
            tokens = features.shape[1] - prefix
            height = round(math.sqrt(max(tokens, 0) * image_size[0] / image_size[1]))
            if height > 1 and tokens % height == 0 and _same_proportions((height, tokens // height), image_size):
                return features[:, prefix:].unflatten(1, (height, -1))
    return None


def _same_proportions(map_size: tuple[int, ...], image_size: tuple[int, int]) -> bool:
    """Return whether a map has the proportions of the images, up to one row or column."""
    (h, w), (H, W) = map_size, image_size
    return abs(h * W - w * H) <= max(H, W)


def _is_map(value: object, image_size: tuple[int, int]) -> bool:
    """Return whether a value can be a batch of maps. Attention weights have four dimensions too, but not the images'
    proportions."""
    if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[-1] <= 1:
        return False
    return image_size[0] != image_size[1] or any(
        _same_proportions(size, image_size) for size in (value.shape[2:], value.shape[1:3])
    )
