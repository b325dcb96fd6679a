"""Activations of any module by path: `layer3.1` is a submodule's output, `pool:input` is a submodule's input.

Letters in names: B batch, C channels, D channels of a map, T tokens, H W image height and width, h w a map's.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..seeding import generator

_LISTED_MODULES = 30  # module names in an error message
_MAX_STAGES = 4
_MAX_PREFIX_TOKENS = 8  # class, distillation and register tokens


@contextmanager
def capture_activations(module: nn.Module, paths: list[str]) -> Iterator[dict[str, Tensor]]:
    """Record the tensors at these paths during every forward pass within the context.

    The dict holds clones of the latest pass, because a later layer may work in place. If the value is a tuple,
    the dict holds its first entry; if it is an output of Hugging Face's transformers, its `last_hidden_state`.

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
            value = _first(getattr(value, "last_hidden_state", value))
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
    """Return the path of the last map or token grid that a classifier reads.

    Runs the images forward and backward once. A value does not count if the gradient of the logits is zero at all
    its positions: after the last block of a vision transformer with a class token, the classifier reads no patch token.
    In a network with tokens, a value counts only if every path from the image to the logits passes through it. So the
    result is a block, not a module inside a block.

    For a convolutional network this is the map after batch norm and ReLU, before global pooling. The path is the input
    of the last module that turns a map into a value without extent. Where pooling is not a module, it is the output of
    the last module that outputs a map.

    Args:
        module: The classifier.
        images_BCHW: Any images of the size it takes.
        option: The command-line option that names a module instead; for the error message.

    Raises:
        UserError: The model has no map that the classifier reads.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))
    >>> last_map_path(net, torch.zeros(1, 1, 8, 8))
    '2:input'
    """
    size = (images_BCHW.shape[2], images_BCHW.shape[3])
    leaves = {name for name, submodule in module.named_modules() if not list(submodule.children())}
    forward_pass = _run(module, images_BCHW)
    pooled = None
    for name, value_in, value_out in reversed(forward_pass.calls):
        if forward_pass.extent(value_out) > 0:
            return pooled or name
        loses_extent = name in leaves and _is_map(value_in, size) and not _is_map(value_out, size)
        if pooled is None and loses_extent and forward_pass.extent(value_in) > 0:
            pooled = f"{name}:input"
    raise UserError(
        "The model has no map or grid of square patches that its logits depend on, so its features cannot be used. "
        f"Name a module that outputs a map or tokens with {option}."
    )


def stage_paths(module: nn.Module, images_BCHW: Tensor, *, option: str = "--feature-layer") -> list[str]:
    """Return the paths of a classifier's stage ends: the last map of each size, largest size first, at most four.

    Only maps and tokens that the classifier reads count, as in `last_map_path`. A module counts as within a stage, and
    only its output is considered, if it shrinks maps by at most a factor of two. Otherwise, and if it is never called
    itself, its submodules are considered. The arguments are those of `last_map_path`.

    Raises:
        UserError: The model has no convolutional maps or tokens.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 4, 3, 2, 1), nn.Flatten())
    >>> stage_paths(net, torch.zeros(1, 1, 8, 8))
    ['1', '2']
    """
    forward_pass = _run(module, images_BCHW)
    calls: dict[str, tuple[object, object]] = {}
    for name, value_in, value_out in forward_pass.calls:
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
            extent_in, extent_out = (forward_pass.extent(value) for value in calls[name])
            if name in children and (extent_out == 0 or extent_in > 2 * extent_out + 2):
                walk(name)
            elif extent_out > 0:
                path_of_extent[extent_out] = name

    walk("")
    if not path_of_extent:
        raise UserError(
            "The model has no maps or grids of square patches that its logits depend on, so its features cannot be "
            f"used. Name modules that output maps or tokens with {option}."
        )
    return [path_of_extent[extent] for extent in sorted(path_of_extent, reverse=True)][-_MAX_STAGES:]


def vector_path(module: nn.Module, images_BCHW: Tensor, *, option: str = "--feature-layer") -> str:
    """Return the path of the vector that enters a classifier's last linear layer; without one, of its last map.

    The arguments and errors are those of `last_map_path`.
    """
    modules = dict(module.named_modules())
    linear_layers = [
        name
        for name, value_in, _ in _run(module, images_BCHW).calls
        if isinstance(modules[name], nn.Linear) and isinstance(value_in, Tensor) and value_in.dim() == 2
    ]
    return f"{linear_layers[-1]}:input" if linear_layers else last_map_path(module, images_BCHW, option=option)


def main_output(output: Any) -> tuple[Any, str]:
    """Return the logits among a module's outputs, and which output they are: "" if it is the only one.

    They are `logits` of a dict or an object, otherwise the first output. Others are auxiliary heads.

    >>> main_output((1, 2)), main_output({"aux": 2, "logits": 1}), main_output(1)
    ((1, 'the first of 2 outputs'), (1, "'logits' of 2 outputs"), (1, ''))
    """
    if isinstance(output, Mapping):
        name = "logits" if "logits" in output else next(iter(output))
        return output[name], f"{name!r} of {len(output)} outputs" if len(output) > 1 else ""
    if not isinstance(output, Tensor) and getattr(output, "logits", None) is not None:
        return output.logits, "'logits'"
    if isinstance(output, tuple | list):
        return output[0], f"the first of {len(output)} outputs" if len(output) > 1 else ""
    return output, ""


def _first(value: Any) -> Any:
    """Return the first entry of a tuple or list, such as the output of a transformer block, or the value itself."""
    return value[0] if type(value) in (tuple, list) and len(value) > 0 else value


@dataclass(frozen=True, eq=False)
class _ForwardPass:
    """The submodule calls of a forward pass, and the gradient of the logits at their values.

    `calls` has path, first input and output of each submodule call, in the order in which the calls end. `gradients`
    maps the id of each value to the gradient at it. It is None if the network cannot be differentiated.
    """

    calls: list[tuple[str, object, object]]
    images_BCHW: Tensor
    logits: Any
    gradients: dict[int, Tensor | None] | None

    def extent(self, value: object) -> int:
        """Return the longer side of a map or token grid that the classifier reads; 0 for other values."""
        size = (self.images_BCHW.shape[2], self.images_BCHW.shape[3])
        map_BhwD = as_map(value, size) if isinstance(value, Tensor) else None
        if not isinstance(value, Tensor) or map_BhwD is None or min(map_BhwD.shape[1:3]) == 1:
            return 0
        if value.dim() == 3 and not self._may_have_patches(value.shape[1], map_BhwD.shape[1] * map_BhwD.shape[2]):
            return 0
        if self.gradients is not None:
            gradient = self.gradients.get(id(value))
            gradient_BhwD = None if gradient is None else as_map(gradient, size)
            if gradient_BhwD is None or not gradient_BhwD.any() or (self._has_tokens and self._is_bypassed(value)):
                return 0
        return max(map_BhwD.shape[1:3])

    def _may_have_patches(self, tokens: int, patches: int) -> bool:
        """Return whether `tokens` tokens can hold `patches` patches, given the maps that the network flattens."""
        cut = {
            value.shape[2] * value.shape[3]
            for *_, value in self.calls
            if isinstance(value, Tensor) and value.dim() == 4
        }
        counts = cut.intersection(range(tokens - _MAX_PREFIX_TOKENS, tokens + 1))
        return not counts or patches in counts

    @functools.cached_property
    def _has_tokens(self) -> bool:
        """Whether the network computes token grids, and so also queries, keys, values and attention weights."""
        return any(gradient is not None and gradient.dim() == 3 for gradient in (self.gradients or {}).values())

    def _is_bypassed(self, value: Tensor) -> bool:
        """Return whether a path from the images to the logits goes around this value."""
        stack, visited = [(self.logits.grad_fn, self.logits.output_nr)], {None}
        while stack:
            node, output = stack.pop()
            if node in visited or (node is value.grad_fn and output == value.output_nr):
                continue
            if node is self.images_BCHW.grad_fn:
                return True
            visited.add(node)
            stack += node.next_functions
        return False


def _run(module: nn.Module, images_BCHW: Tensor) -> _ForwardPass:
    """Run one forward and one backward pass. Parameters and their gradients do not change."""
    device = next(module.parameters(), images_BCHW).device
    try:
        return _differentiated(module, images_BCHW.detach().to(device))
    except RuntimeError:  # for example in-place operations, which may have no gradient
        with torch.no_grad():
            calls, logits = _record_calls(module, images_BCHW.to(device))
        return _ForwardPass(calls, images_BCHW, logits, None)


@torch.enable_grad()
def _differentiated(module: nn.Module, images_BCHW: Tensor) -> _ForwardPass:
    images_BCHW = images_BCHW.requires_grad_().clone()  # a copy may be changed in place, a leaf may not
    calls, logits = _record_calls(module, images_BCHW)
    if not (isinstance(logits, Tensor) and logits.requires_grad) or logits.is_meta:
        return _ForwardPass(calls, images_BCHW, logits, None)
    size = (images_BCHW.shape[2], images_BCHW.shape[3])
    values = {
        id(value): value
        for _, *values in calls
        for value in values
        if isinstance(value, Tensor) and value.requires_grad and as_map(value, size) is not None
    }
    if not any(
        id(value_out) in values for *_, value_out in calls
    ):  # for example features that are computed without gradients
        return _ForwardPass(calls, images_BCHW, logits, None)
    # Random weights, because a sum of probabilities is constant and has no gradient.
    weights = torch.randn(logits.shape, generator=generator("gradient")).to(logits)
    gradients = torch.autograd.grad((logits * weights).sum(), list(values.values()), allow_unused=True)
    return _ForwardPass(calls, images_BCHW, logits, dict(zip(values, gradients, strict=True)))


def _record_calls(module: nn.Module, images_BCHW: Tensor) -> tuple[list[tuple[str, object, object]], Any]:
    """Run the module in evaluation mode. Return path, first input and output of each submodule call, and the logits."""
    calls: list[tuple[str, object, object]] = []

    def record(name: str, inputs: tuple, output: object) -> object:
        calls.append((name, inputs[0] if inputs else None, _first(output)))
        return output.clone() if isinstance(output, Tensor) else None  # a later layer may work in place

    handles = [
        submodule.register_forward_hook(lambda _, inputs, output, name=name: record(name, inputs, output))
        for name, submodule in module.named_modules()
        if name
    ]
    # A layer with zero weights blocks the gradient. The choice must depend on the architecture alone.
    draw = generator("zeros")
    zeros = {
        name: 0.02 * torch.randn(parameter.shape, generator=draw).to(parameter)
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point() and not parameter.is_meta and not parameter.any()
    }
    was_training = module.training
    try:
        module.eval()
        output = torch.func.functional_call(module, zeros, (images_BCHW,)) if zeros else module(images_BCHW)
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    return calls, main_output(output)[0]


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
            if height > 1 and tokens % height == 0 and _is_patch_grid((height, tokens // height), image_size):
                return features[:, prefix:].unflatten(1, (height, -1))
    return None


def _is_patch_grid(grid: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Return whether square patches of some size cut the image into this grid. The last patches may be incomplete.

    >>> _is_patch_grid((6, 4), (100, 64)), _is_patch_grid((7, 4), (100, 64)), _is_patch_grid((9, 10), (64, 64))
    (True, True, False)
    """
    (h, w), (H, W) = grid, image_size
    if H == W or w <= 1:
        return h == w > 1
    return any(h - H // side in (0, 1) and w - W // side in (0, 1) for side in range(1, max(H, W)))


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
