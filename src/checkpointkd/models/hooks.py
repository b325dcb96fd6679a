"""What any module computes inside, by path: `layer3.1` is a submodule's output, `pool:input` what goes into one.

Letters in names: B batch, C channels, D channels of a map, H W h w heights and widths.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UserError


@contextmanager
def capture_activations(module: nn.Module, paths: list[str]) -> Iterator[dict[str, Tensor]]:
    """While open, every forward pass leaves copies of the tensors at these paths in the dict; raises UserError for a
    path that the module doesn't have. Copies, because a layer after may work in place.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> with taps(net, ["0", "1:input"]) as taken:
    ...     _ = net(torch.zeros(1, 1, 8, 8))
    >>> taken["0"].shape, torch.equal(taken["0"], taken["1:input"])
    (torch.Size([1, 2, 6, 6]), True)
    """
    taken: dict[str, Tensor] = {}
    modules = dict(module.named_modules())
    handles = []
    for path in paths:
        name, _, side = path.partition(":")
        if name not in modules or side not in ("", "input"):
            raise UserError(_no_features(path, [name for name in modules if name]))

        def keep(value: object, path: str = path) -> None:
            if not isinstance(value, Tensor):
                raise UserError(f"the module at {path!r} has no tensor there but {type(value).__name__}; name another")
            taken[path] = value.clone()

        if side == "input":
            hook = lambda _, inputs, keep=keep: keep(inputs[0] if inputs else None)  # noqa: E731
            handles.append(modules[name].register_forward_pre_hook(hook))
        else:
            hook = lambda _, __, output, keep=keep: keep(output)  # noqa: E731
            handles.append(modules[name].register_forward_hook(hook))
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def _no_features(path: str, modules: list[str]) -> str:
    near = difflib.get_close_matches(path, modules, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    shallow = sorted(modules, key=lambda name: (name.count("."), modules.index(name)))[:_LISTED]
    more = f", and {len(modules) - len(shallow)} deeper ones" if len(modules) > len(shallow) else ""
    return f"the model has no features {path!r}{hint} (its modules: {', '.join(shallow)}{more})"


def last_map_path(module: nn.Module, images_BCHW: Tensor) -> str:
    """Where the last convolutional map of a classifier is: what enters its global pooling, after batch norm and ReLU.

    Found by running the images once: the input of the last module that turns a map into something without extent; where
    pooling is no module, the output of the last module that gives a map. Raises UserError if there is no map at all, or
    if the model goes on in tokens, as transformers do.
    """
    entering = leaving = tokens = None
    size = (images_BCHW.shape[2], images_BCHW.shape[3])
    leaves = {name for name, submodule in module.named_modules() if not list(submodule.children())}
    for name, entered, left in _calls(module, images_BCHW):
        if isinstance(left, Tensor) and left.dim() == 3 and as_map(left, size) is not None:
            tokens = name
        elif _is_map(left, size):
            tokens = None
            entering, leaving = None, name  # what entered a pooling before this, as in squeeze-excite, was not the last
        elif name in leaves and leaving is not None and _is_map(entered, size):
            entering = f"{name}:input"
    path = entering or leaving
    if path is None or tokens is not None:
        what = "works on tokens in the end" if tokens else "has no convolutional map"
        such = f", such as {tokens!r}" if tokens else "; without any there is no I(X;F) to estimate"
        raise UserError(f"the model {what}; name a module that gives a map or tokens with --feature-layer PATH{such}")
    return path


def stage_paths(module: nn.Module, images_BCHW: Tensor) -> list[str]:
    """Where a classifier's stages end, by path: of each size of maps the last, the greatest first, at most four.

    A module whose maps shrink by more than a factor of two, or that isn't called itself, is looked into; the inside of
    others isn't, so that a stage's end is found and not a layer within the next. Raises UserError where there is none.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 4, 3, 2, 1), nn.Flatten())
    >>> stage_paths(net, torch.zeros(1, 1, 8, 8))
    ['1', '2']
    """
    size = (images_BCHW.shape[2], images_BCHW.shape[3])
    calls: dict[str, tuple[object, object]] = {}
    for name, entered, left in _calls(module, images_BCHW):
        calls.pop(name, None)  # a module's last call counts, in its place
        calls[name] = (entered, left)
    inside: dict[str, list[str]] = {}  # the modules that were called, by the nearest around them that was called
    for name in calls:
        around = name.rpartition(".")[0]
        while around and around not in calls:
            around = around.rpartition(".")[0]
        inside.setdefault(around, []).append(name)
    ends: dict[int, str] = {}

    def walk(name: str) -> None:
        for child in inside.get(name, []):
            entered, left = (_extent(value, size) for value in calls[child])
            if child in inside and (left == 0 or entered > 2 * left + 2):
                walk(child)
            elif left > 0:
                ends[left] = child

    walk("")
    if not ends:
        raise UserError("the model has no convolutional maps; name modules that give maps or tokens, by path")
    return [ends[extent] for extent in sorted(ends, reverse=True)][-4:]


def vector_path(module: nn.Module, images_BCHW: Tensor) -> str:
    """The vector that a classifier classifies: what enters its last linear layer; where that is none, its last map."""
    modules = dict(module.named_modules())
    linear = [
        name
        for name, entered, _ in _calls(module, images_BCHW)
        if isinstance(modules[name], nn.Linear) and isinstance(entered, Tensor) and entered.dim() == 2
    ]
    return f"{linear[-1]}:input" if linear else last_map_path(module, images_BCHW)


def _calls(module: nn.Module, images_BCHW: Tensor) -> list[tuple[str, object, object]]:
    """Each call of a submodule, in the order in which they end: its path, what entered and what left."""
    images_BCHW = images_BCHW.to(next(module.parameters(), images_BCHW).device)
    calls: list[tuple[str, object, object]] = []

    def note(name: str, inputs: tuple, output: object) -> None:
        calls.append((name, inputs[0] if inputs else None, output))

    handles = [
        submodule.register_forward_hook(lambda _, inputs, output, name=name: note(name, inputs, output))
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
    """The longer side of a map, 0 for what is none."""
    found = as_map(value, image_size) if isinstance(value, Tensor) else None
    return max(found.shape[1:3]) if found is not None and min(found.shape[1:3]) > 1 else 0


def as_map(features: Tensor, image_size: tuple[int, int]) -> Tensor | None:
    """Features of a batch as maps (B, h, w, D), whichever way round; None if they are none.

    (B, D, h, w) and (B, h, w, D) are told apart by the image's shape, (H, W), which the map has too; tokens (B, T, D)
    lie in rows, after those that belong to no place, such as a class token.

    >>> as_map(torch.zeros(2, 64, 7, 7), (224, 224)).shape, as_map(torch.zeros(2, 7, 7, 64), (224, 224)).shape
    (torch.Size([2, 7, 7, 64]), torch.Size([2, 7, 7, 64]))
    >>> as_map(torch.zeros(2, 197, 192), (224, 224)).shape
    torch.Size([2, 14, 14, 192])
    """
    if not features.is_floating_point():
        return None
    if features.dim() == 4:
        first, last = _like(features.shape[2:], image_size), _like(features.shape[1:3], image_size)
        if not first and not last and image_size[0] == image_size[1]:
            return None  # attention, say
        return features if last and not first else features.permute(0, 2, 3, 1)
    if features.dim() == 3:
        for others in range(_OTHERS + 1):
            tokens = features.shape[1] - others
            height = round(math.sqrt(max(tokens, 0) * image_size[0] / image_size[1]))
            if height > 1 and tokens % height == 0 and _like((height, tokens // height), image_size):
                return features[:, others:].unflatten(1, (height, -1))
    return None


_LISTED = 30  # modules, in a message
_OTHERS = 8  # class, distillation and register tokens, at most


def _like(map_size: tuple[int, ...], image_size: tuple[int, int]) -> bool:
    """Whether a map of this size can be one of such images: in proportion, up to one row or column."""
    (h, w), (height, width) = map_size, image_size
    return abs(h * width - w * height) <= max(height, width)


def _is_map(value: object, image_size: tuple[int, int]) -> bool:
    """Whether this can be a batch of maps; attention has four dimensions, too, but no image's proportions."""
    if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[-1] <= 1:
        return False
    return image_size[0] != image_size[1] or any(_like(s, image_size) for s in (value.shape[2:], value.shape[1:3]))
