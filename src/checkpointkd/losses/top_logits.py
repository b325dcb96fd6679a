"""The largest logits of each image, and the mean of the others: less to store, and an approximation.

Letters in names: M rows, K classes, k largest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError

MOST_CLASSES = 1 << 15  # the number of a class takes 16 bits


def check_top_k(top_k: int | None, classes: int) -> None:
    """Raise UserError unless `top_k` is None or a number of logits below the number of classes."""
    if top_k is not None and not (isinstance(top_k, int) and 1 <= top_k < min(classes, MOST_CLASSES)):
        raise UserError(
            f"--top-k {top_k} must be a whole number from 1 to below the number of classes, {classes}. Leave it out to "
            "use all logits."
        )


def top_logits(logits_MK: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k largest logits of each row, their classes, and the mean of the other logits: (M, k), (M, k), (M, 1).

    The mean keeps the softened prediction nearly as it is: at a high temperature it depends on the others' mean only.
    """
    largest_Mk, class_Mk = logits_MK.float().topk(k)
    rest_M1 = (logits_MK.float().sum(-1, keepdim=True) - largest_Mk.sum(-1, keepdim=True)) / (logits_MK.shape[-1] - k)
    return largest_Mk.half(), class_Mk.to(torch.int16), rest_M1.half()


def from_top_logits(largest_Mk: Tensor, class_Mk: Tensor, rest_M1: Tensor, classes: int) -> Tensor:
    """Return logits of all classes (M, K), float16. Classes that are not among the largest have the mean of the others.

    >>> logits = torch.tensor([[4.0, 1.0, 2.0, 3.0]])
    >>> from_top_logits(*top_logits(logits, 2), classes=4).tolist()
    [[4.0, 1.5, 1.5, 3.0]]
    """
    logits_MK = rest_M1.expand(-1, classes).clone()
    return logits_MK.scatter_(-1, class_Mk.long().clamp(0, classes - 1), largest_Mk)


def keep_top_logits(logits_TBK: Tensor, k: int) -> Tensor:
    """Return logits (T, B, K) as the cache returns them if it keeps the k largest, float32."""
    flat = logits_TBK.flatten(0, 1)
    return from_top_logits(*top_logits(flat, k), classes=flat.shape[-1]).float().view_as(logits_TBK)
