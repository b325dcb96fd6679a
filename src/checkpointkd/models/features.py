"""What any module computes inside, by path: `layer3.1` is a submodule's output, `pool:input` what goes into one.

Letters in names: B batch, C channels, D channels of a map, H W h w heights and widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UserError, require


@contextmanager
def taps(module: nn.Module, paths: list[str]) -> Iterator[dict[str, Tensor]]:
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
        require(
            name in modules and side in ("", "input"),
            f"the model has no features {path!r} (its modules: {', '.join(filter(None, modules))})",
        )
        if side == "input":
            hook = lambda _, inputs, path=path: taken.__setitem__(path, inputs[0].clone())  # noqa: E731
            handles.append(modules[name].register_forward_pre_hook(hook))
        else:
            hook = lambda _, __, output, path=path: taken.__setitem__(path, output.clone())  # noqa: E731
            handles.append(modules[name].register_forward_hook(hook))
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def last_map_path(module: nn.Module, images_BCHW: Tensor) -> str:
    """Where the last convolutional map of a classifier is: what enters its global pooling, after batch norm and ReLU.

    Found by running the images once: the input of the last module that turns a map into something without extent; where
    pooling is no module, the output of the last module that gives a map. Raises UserError if there is no map at all.
    """
    entering = leaving = None

    def look(name: str, inputs: tuple, output: object) -> None:
        nonlocal entering, leaving
        if _is_map(output):
            entering, leaving = None, name  # what entered a pooling before this, as in squeeze-excite, was not the last
        elif leaving is not None and inputs and _is_map(inputs[0]):
            entering = f"{name}:input"

    handles = [
        submodule.register_forward_hook(lambda _, inputs, output, name=name: look(name, inputs, output))
        for name, submodule in module.named_modules()
        if name and not list(submodule.children())
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
    path = entering or leaving
    if path is None:
        raise UserError("the model has no convolutional map; name the features to use with --features PATH")
    return path


def _is_map(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and value.shape[-1] > 1
