"""Learning from labels and from softened predictions: Eq. 1 and Eq. 2 of the paper, label smoothing (§4.3).

Every function gives one value per example; the loop takes the mean. Letters in names: B batch, K classes, T teachers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import EnsembleAverage, KDConfig


def cross_entropy(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """H(Y, P) in nats, one value per example (B,)."""
    return F.cross_entropy(logits_BK, labels_B, reduction="none")


def soft_targets(
    teacher_TBK: Tensor,
    *,
    tau: float,
    average: EnsembleAverage = "probabilities",
    weights: Sequence[float] | None = None,
) -> Tensor:
    """The teachers' common softened prediction (B, K): the mean of their softened probabilities (Eq. 2), or, as in the
    authors' code, the softened mean of their logits; weighted, if `weights` has one for each teacher.

    >>> import torch
    >>> soften(torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]]]), tau=4.0).tolist()
    [[0.5, 0.5]]
    """
    if average == "logits":
        return (_mean(teacher_TBK, weights) / tau).softmax(-1)
    return _mean((teacher_TBK / tau).softmax(-1), weights)


def _mean(values_TBK: Tensor, weights: Sequence[float] | None) -> Tensor:
    if weights is None:
        return values_TBK.mean(0)
    return torch.tensordot(values_TBK.new_tensor(weights), values_TBK, 1)


def kl_divergence(target_BK: Tensor, logits_BK: Tensor) -> Tensor:
    """KL(target ‖ softmax(logits)) in nats, one value per example (B,); 0 · log 0 counts as 0."""
    return F.kl_div(logits_BK.log_softmax(-1), target_BK, reduction="none").sum(-1)


def kd(student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, settings: KDConfig) -> Tensor:
    """α·H(y, p_S) + (1 − α)·τ²·KL(p_T^τ ‖ p_S^τ), one value per example (B,): Eq. 1, and Eq. 2 for several teachers.

    The paper prints the cross-entropy H(p_T^τ, p_S^τ), which differs from the divergence by the teachers' entropy, a
    constant; it doesn't print τ², which its code and the field (Hinton et al. 2015) have: `tau_squared` chooses.

    >>> import torch
    >>> teacher = torch.tensor([[[2.0, 0.0, -1.0]]])
    >>> abs(kd(teacher[0], teacher, torch.tensor([0]), KDSettings(alpha=0.0)).item()) < 1e-5
    True
    """
    hard_B = cross_entropy(student_BK, labels_B)
    return settings.alpha * hard_B + (1 - settings.alpha) * soft_loss(student_BK, teacher_TBK, settings)


def soft_loss(
    student_BK: Tensor, teacher_TBK: Tensor, settings: KDConfig, weights: Sequence[float] | None = None
) -> Tensor:
    """The teachers' term of Eq. 1 and Eq. 2, τ²·KL(p_T^τ ‖ p_S^τ), one value per example (B,)."""
    target_BK = soft_targets(teacher_TBK, tau=settings.tau, average=settings.average, weights=weights)
    return settings.soft_loss_factor * kl_divergence(target_BK, student_BK / settings.tau)


def label_smoothing(logits_BK: Tensor, labels_B: Tensor, *, alpha: float) -> Tensor:
    """α·H(y, p_S) + (1 − α)·KL(u ‖ p_S) with u uniform, one value per example (B,): §4.3, KD from the uniform teacher
    at τ = 1."""
    uniform = logits_BK.new_full(logits_BK.shape, 1 / logits_BK.shape[-1])
    return alpha * cross_entropy(logits_BK, labels_B) + (1 - alpha) * kl_divergence(uniform, logits_BK)
