"""Stratified splits, fixed by a seed that belongs to the data and not to a run."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from ..seeding import generator


def stratified(labels_N: Tensor, count: int, *, seed: int, purpose: str) -> Tensor:
    """The rows, in order, of `count` images whose classes are in the proportion of all; raises UserError if a class
    would have none.

    >>> labels = torch.arange(4).repeat(10)
    >>> rows = stratified(labels, 8, seed=0, purpose="selection")
    >>> labels[rows].bincount().tolist()
    [2, 2, 2, 2]
    """
    classes = int(labels_N.max()) + 1
    if not count <= len(labels_N):
        raise UserError(f"{count} {purpose} images were asked for, of {len(labels_N)} that there are")
    if not count >= classes:
        raise UserError(f"{count} {purpose} images can't represent {classes} classes; take at least {classes}")
    share_K = labels_N.bincount().double() * count / len(labels_N)
    quota_K = share_K.floor().long()
    most_short = (share_K - quota_K).argsort(descending=True, stable=True)
    quota_K[most_short[: count - int(quota_K.sum())]] += 1
    empty = (quota_K == 0).nonzero().flatten().tolist()
    if empty:
        raise UserError(
            f"a split of {count} {purpose} images leaves none to class number {empty[:1]}; take more, or, where a "
            "class has few, choose on the test images: --select-on test"
        )
    rows = []
    for label, quota in enumerate(quota_K.tolist()):
        of_class = (labels_N == label).nonzero().flatten()
        rows.append(of_class[torch.randperm(len(of_class), generator=generator(purpose, seed, label))[:quota]])
    return torch.cat(rows).sort().values


def complement(total: int, taken_M: Tensor) -> Tensor:
    """The rows of `total` that are not among those taken, in order."""
    left = torch.ones(total, dtype=torch.bool)
    left[taken_M] = False
    return left.nonzero().flatten()
