"""Stratified splits, fixed by a seed that belongs to the data and not to a run."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from ..seeding import generator

VALIDATION = "selection"  # a key of the random draw: another word would be another split, and change every result


def stratified(labels_N: Tensor, count: int, *, seed: int, purpose: str) -> Tensor:
    """Return the rows, in order, of `count` images whose classes are in the proportion of all.

    Args:
        labels_N: The labels of all images.
        count: How many images to draw.
        seed: The seed of the draw.
        purpose: A second key of the draw; it also names the images in errors.

    Raises:
        UserError: If a class would have no image.

    >>> labels = torch.arange(4).repeat(10)
    >>> rows = stratified(labels, 8, seed=0, purpose="selection")
    >>> labels[rows].bincount().tolist()
    [2, 2, 2, 2]
    """
    name = "validation" if purpose == VALIDATION else purpose
    classes = int(labels_N.max()) + 1
    if count > len(labels_N):
        raise UserError(f"Cannot take {count} {name} images: there are only {len(labels_N)}")
    if count < classes:
        more = (
            "Add training images, or choose with --select-on test"
            if name == "validation"
            else f"Take at least {classes}"
        )
        raise UserError(f"{count} {name} images are too few for {classes} classes. {more}.")
    share_K = labels_N.bincount().double() * count / len(labels_N)
    quota_K = share_K.floor().long()
    most_short = (share_K - quota_K).argsort(descending=True, stable=True)
    quota_K[most_short[: count - int(quota_K.sum())]] += 1
    empty = (quota_K == 0).nonzero().flatten().tolist()
    if empty:
        raise UserError(
            f"A split of {count} {name} images has none of class {empty[0]}. Take more, or choose on the test images "
            "with --select-on test."
        )
    rows = []
    for label, quota in enumerate(quota_K.tolist()):
        of_class = (labels_N == label).nonzero().flatten()
        rows.append(of_class[torch.randperm(len(of_class), generator=generator(purpose, seed, label))[:quota]])
    return torch.cat(rows).sort().values


def complement(total: int, taken_M: Tensor) -> Tensor:
    """Return the rows of `total` that are not among those taken, in order."""
    remaining = torch.ones(total, dtype=torch.bool)
    remaining[taken_M] = False
    return remaining.nonzero().flatten()
