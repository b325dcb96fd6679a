"""Methods that learn from the teachers' logits alone, so that the exact table serves them.

Each is called with the student's logits, all the teachers', and how much each of these counts, and gives its term, one
value per example; the objective adds the labels' term. `alpha`, `tau` and `weight` are what its paper uses on
CIFAR-100. Letters in names: B batch, K classes, T teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from ..config import KDConfig
from .kd import kl_divergence, soft_loss, soft_targets

EPS = 1e-8

Weights = Sequence[float] | None  # one a teacher


@final
class KD(nn.Module):
    """Hinton et al., arXiv 1503.02531; Eq. 1 and Eq. 2 of Wang et al., NeurIPS 2022: α·H + (1 − α)·τ²·KL(p_T ‖ p_S)."""

    alpha: ClassVar = KDConfig.alpha
    tau: ClassVar = KDConfig.tau
    weight: ClassVar = None  # 1 − α
    warm_up: ClassVar = 0.0

    def forward(
        self, student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd: KDConfig, weights: Weights
    ) -> Tensor:
        return soft_loss(student_BK, teacher_TBK, kd, weights)


@final
class StandardizedKD(nn.Module):
    """Sun et al., CVPR 2024, Algorithm 1: KD of logits standardized by their own mean and deviation.

    α 0.1, weight 9 and τ 2 are those of its published CIFAR-100 runs.
    """

    alpha: ClassVar = 0.1
    tau: ClassVar = 2.0
    weight: ClassVar = 9.0
    warm_up: ClassVar = 0.0

    def forward(
        self, student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd: KDConfig, weights: Weights
    ) -> Tensor:
        return soft_loss(standardize(student_BK), standardize(teacher_TBK), kd, weights)


@final
class DKD(nn.Module):
    """Zhao et al., CVPR 2022, Eq. 7: the target's and the other classes' part of KD apart, TCKD + 8·NCKD.

    The labels weigh 1, and the term grows from 0 over the first 20 of 240 epochs, as in its published CIFAR-100 runs.
    """

    alpha: ClassVar = 1.0
    tau: ClassVar = 4.0
    weight: ClassVar = 1.0
    warm_up: ClassVar = 20 / 240
    target_weight: ClassVar = 1.0  # the paper's α
    others_weight: ClassVar = 8.0  # the paper's β

    def forward(
        self, student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd: KDConfig, weights: Weights
    ) -> Tensor:
        target_BK = soft_targets(teacher_TBK, tau=kd.tau, average=kd.average, weights=weights)
        tckd_B, nckd_B = decoupled(student_BK / kd.tau, target_BK, labels_B)
        return kd.soft_loss_factor * (self.target_weight * tckd_B + self.others_weight * nckd_B)


@final
class DIST(nn.Module):
    """Huang et al., NeurIPS 2022, Eqs. 6–10: 1 − Pearson correlation of predictions, over the classes of each example
    (inter-class) and over the batch's examples for each class (intra-class).

    The labels weigh 1, both relations 2, τ is 4: the paper's for CIFAR-100, from memory; its code multiplies by τ².
    """

    alpha: ClassVar = 1.0
    tau: ClassVar = 4.0
    weight: ClassVar = 2.0
    warm_up: ClassVar = 0.0

    def forward(
        self, student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd: KDConfig, weights: Weights
    ) -> Tensor:
        target_BK = soft_targets(teacher_TBK, tau=kd.tau, average=kd.average, weights=weights)
        predicted_BK = (student_BK / kd.tau).softmax(-1)
        inter_B = 1 - pearson(predicted_BK, target_BK)
        intra_K = 1 - pearson(predicted_BK.T, target_BK.T)
        return kd.soft_loss_factor * (inter_B + intra_K.mean())


def standardize(logits: Tensor) -> Tensor:
    """Each vector of logits (..., K) less its mean and over its deviation (Sun et al. 2024, Eq. 13).

    >>> standardize(torch.tensor([1.0, 3.0])).tolist()
    [-1.0, 1.0]
    """
    centerd = logits - logits.mean(-1, keepdim=True)
    return centerd / (centerd.square().mean(-1, keepdim=True) + EPS**2).sqrt()


def decoupled(scaled_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD, each (B,): KL of the target's share against all others', and KL among these (Zhao et al., Eq. 6).

    `scaled_BK` are the student's logits over τ, `target_BK` the teachers' softened prediction.
    """
    is_target_BK = nn.functional.one_hot(labels_B, scaled_BK.shape[-1]).bool()
    others = scaled_BK.shape[-1] - 1
    log_p_BK = scaled_BK.log_softmax(-1)
    others_p = log_p_BK[~is_target_BK].view(-1, others)
    binary_B2 = torch.stack([log_p_BK[is_target_BK], others_p.logsumexp(-1)], -1)
    others_q = target_BK[~is_target_BK].view(-1, others)
    share = others_q.sum(-1, keepdim=True)
    binary_target_B2 = torch.cat([target_BK[is_target_BK][:, None], share], -1)
    return kl_divergence(binary_target_B2, binary_B2), kl_divergence(others_q / share.clamp_min(EPS), others_p)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of each row of a (R, C) with that of b, (R,); 0 for a row that doesn't vary.

    >>> pearson(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0]])).round(decimals=5).tolist()
    [1.0]
    """
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / ((a.square().sum(-1) + EPS**2) * (b.square().sum(-1) + EPS**2)).sqrt()
