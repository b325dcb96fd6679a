"""Cross-entropy, knowledge distillation (Eqs. 1 and 2 of the paper) and label smoothing (§4.3).

Every function returns one value per example; the training loop takes the mean.
Letters in names: B batch, K classes, T teachers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..distill_config import EnsembleAverage, KDConfig

Weights = Sequence[float] | Tensor | None  # one per teacher, or (T, B); None for equal weights


def cross_entropy(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Return H(Y, P) in nats, one value per example (B,)."""
    return F.cross_entropy(logits_BK, labels_B, reduction="none")


def loss_with_labels(logits_BK: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy with labels, which are smoothed, or mixed, or both; one value per example (B,).

    Args:
        logits_BK: The student's logits.
        targets: Classes (B,), or probabilities (B, K) of mixed images.
        smoothing: The weight of the uniform distribution.
    """
    if targets.ndim == 2:
        targets = targets.to(logits_BK.dtype)
        return F.cross_entropy(logits_BK, targets, reduction="none", label_smoothing=smoothing)
    if smoothing > 0:
        return label_smoothing(logits_BK, targets, alpha=1 - smoothing)
    return cross_entropy(logits_BK, targets)


def squared_error(logits_BK: Tensor, targets: Tensor) -> Tensor:
    """Return the squared distance between predicted and target probabilities (the Brier score), one per example (B,).

    Hamidi et al. (2024) report that a teacher trained with this loss teaches better, although it is less accurate.

    Args:
        logits_BK: The network's logits.
        targets: Classes (B,), or probabilities (B, K) of mixed images.

    >>> import torch
    >>> squared_error(torch.zeros(1, 2), torch.tensor([0])).tolist()
    [0.5]
    """
    target_BK = F.one_hot(targets, logits_BK.shape[-1]) if targets.ndim == 1 else targets
    return (logits_BK.softmax(-1) - target_BK.to(logits_BK.dtype)).square().sum(-1)


def soft_targets(
    teacher_TBK: Tensor,
    *,
    tau: float,
    average: EnsembleAverage = "probabilities",
    weights: Weights = None,
) -> Tensor:
    """Return the softened prediction of a teacher ensemble (B, K).

    Args:
        teacher_TBK: The teachers' logits.
        tau: The temperature.
        average: `probabilities` averages the softened probabilities (Eq. 2). `logits` softens the average logits,
            as the authors' code does.
        weights: One weight per teacher, summing to 1, or weights for each example (T, B). None: equal weights.

    >>> import torch
    >>> soft_targets(torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]]]), tau=4.0).tolist()
    [[0.5, 0.5]]
    """
    if average == "logits":
        return (mean_over_teachers(teacher_TBK, weights) / tau).softmax(-1)
    return mean_over_teachers((teacher_TBK / tau).softmax(-1), weights)


def mean_over_teachers(values_TBK: Tensor, weights: Weights) -> Tensor:
    """Return the weighted mean over teachers (B, K). Without weights, all teachers count equally."""
    if weights is None:
        return values_TBK.mean(0)
    if isinstance(weights, Tensor):
        return torch.einsum("tb,tbk->bk", weights.expand(values_TBK.shape[:2]), values_TBK)
    return torch.tensordot(values_TBK.new_tensor(weights), values_TBK, 1)


def kl_divergence(target_BK: Tensor, logits_BK: Tensor) -> Tensor:
    """Return KL(target ‖ softmax(logits)) in nats, one value per example (B,); 0 · log 0 counts as 0."""
    return F.kl_div(logits_BK.log_softmax(-1), target_BK, reduction="none").sum(-1)


def kd(student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd_config: KDConfig) -> Tensor:
    """Return α·H(y, p_S) + (1 − α)·τ²·KL(p_T^τ ‖ p_S^τ), one value per example (B,).

    This is Eq. 1 of the paper, and Eq. 2 for several teachers. Two details differ from the printed equations:

    - The paper prints the cross-entropy H(p_T^τ, p_S^τ). It exceeds the KL divergence by the teachers' entropy, which
      is constant for the student.
    - The paper does not print τ². Its code and the field have it (Hinton et al. 2015); `tau_squared` switches it off.

    >>> import torch
    >>> teacher = torch.tensor([[[2.0, 0.0, -1.0]]])
    >>> abs(kd(teacher[0], teacher, torch.tensor([0]), KDConfig(alpha=0.0)).item()) < 1e-5
    True
    """
    hard_B = cross_entropy(student_BK, labels_B)
    return kd_config.alpha * hard_B + (1 - kd_config.alpha) * soft_loss(student_BK, teacher_TBK, kd_config)


def soft_loss(student_BK: Tensor, teacher_TBK: Tensor, kd_config: KDConfig, weights: Weights = None) -> Tensor:
    """Return the teachers' term of Eqs. 1 and 2, τ²·KL(p_T^τ ‖ p_S^τ), one value per example (B,)."""
    target_BK = soft_targets(teacher_TBK, tau=kd_config.tau, average=kd_config.average, weights=weights)
    return kd_config.soft_loss_factor * kl_divergence(target_BK, student_BK / kd_config.tau)


def label_smoothing(logits_BK: Tensor, labels_B: Tensor, *, alpha: float) -> Tensor:
    """Return α·H(y, p_S) + (1 − α)·KL(u ‖ p_S) with u uniform, one value per example (B,).

    §4.3 of the paper: label smoothing is KD from the uniform teacher at τ = 1.
    """
    uniform = logits_BK.new_full(logits_BK.shape, 1 / logits_BK.shape[-1])
    return alpha * cross_entropy(logits_BK, labels_B) + (1 - alpha) * kl_divergence(uniform, logits_BK)
