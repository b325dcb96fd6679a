"""Distillation methods that need only the teachers' logits, so that the logit cache can serve them.

Calling a method with the student's logits, the teachers' logits and the labels returns one value per example (B,), the
method's term. The objective adds the labels' term. `alpha`, `tau` and `weight` are the method's defaults: the values
published for CIFAR-100. Over the first `warm_up` of training, the weight grows linearly from 0.
Methods without `uses_labels` work with mixed images, too.
Letters in names: B batch, K classes, T teachers, R rows, C columns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from ..distill_config import KDConfig
from .distillation_loss import Weights, cross_entropy, kl_divergence, soft_loss, soft_targets

EPS = 1e-8
MULTI_LEVEL_FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)  # of τ


@final
class KD(nn.Module):
    """Knowledge distillation (Hinton et al., arXiv 1503.02531; Wang et al., NeurIPS 2022, Eqs. 1 and 2).

    The term is τ²·KL(p_T^τ ‖ p_S^τ) with weight 1 − α.
    """

    alpha: ClassVar = KDConfig.alpha
    tau: ClassVar = KDConfig.tau
    weight: ClassVar = None  # 1 − α
    warm_up: ClassVar = 0.0
    uses_labels: ClassVar = False

    def forward(
        self, student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd_config: KDConfig, weights: Weights
    ) -> Tensor:
        return soft_loss(student_BK, teacher_TBK, kd_config, weights)


@final
class StandardizedKD(nn.Module):
    """Logit standardization (Sun et al., CVPR 2024, Algorithm 1): KD on standardized logits.

    Defaults: α 0.1, weight 9, τ 2, from the paper's published CIFAR-100 runs.
    """

    alpha: ClassVar = 0.1
    tau: ClassVar = 2.0
    weight: ClassVar = 9.0
    warm_up: ClassVar = 0.0
    uses_labels: ClassVar = False

    def forward(
        self, student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd_config: KDConfig, weights: Weights
    ) -> Tensor:
        return soft_loss(standardize(student_BK), standardize(teacher_TBK), kd_config, weights)


@final
class DKD(nn.Module):
    """Decoupled knowledge distillation (Zhao et al., CVPR 2022, Eq. 7): TCKD + 8·NCKD.

    TCKD is the target class's part of KD, NCKD that of the non-target classes. Defaults: label weight 1 and a warm-up
    of 20 out of 240 epochs, from the paper's published CIFAR-100 runs.
    """

    alpha: ClassVar = 1.0
    tau: ClassVar = 4.0
    weight: ClassVar = 1.0
    warm_up: ClassVar = 20 / 240
    target_weight: ClassVar = 1.0  # the paper's α
    nontarget_weight: ClassVar = 8.0  # the paper's β

    def forward(
        self, student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd_config: KDConfig, weights: Weights
    ) -> Tensor:
        target_BK = soft_targets(teacher_TBK, tau=kd_config.tau, average=kd_config.average, weights=weights)
        tckd_B, nckd_B = decoupled(student_BK / kd_config.tau, target_BK, labels_B)
        return kd_config.soft_loss_factor * (self.target_weight * tckd_B + self.nontarget_weight * nckd_B)


@final
class DIST(nn.Module):
    """DIST (Huang et al., NeurIPS 2022, Eqs. 6–10): 1 − Pearson correlation of the predictions.

    The inter-class relation correlates the classes of each example. The intra-class relation correlates the examples
    of the batch for each class. Defaults: label weight 1, weight 2 for both relations, τ 4, and the factor τ². They are
    those of the authors' CIFAR-100 runs (`configs/strategies/distill/dist_cifar.yaml` in
    github.com/hunto/image_classification_sota).
    """

    alpha: ClassVar = 1.0
    tau: ClassVar = 4.0
    weight: ClassVar = 2.0
    warm_up: ClassVar = 0.0
    uses_labels: ClassVar = False

    def forward(
        self, student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd_config: KDConfig, weights: Weights
    ) -> Tensor:
        target_BK = soft_targets(teacher_TBK, tau=kd_config.tau, average=kd_config.average, weights=weights)
        predicted_BK = (student_BK / kd_config.tau).softmax(-1)
        inter_B = 1 - pearson(predicted_BK, target_BK)
        intra_K = 1 - pearson(predicted_BK.T, target_BK.T)
        return kd_config.soft_loss_factor * (inter_B + intra_K.mean())


@final
class WTTM(nn.Module):
    """Weighted transformed teacher matching (Zheng and Yang, ICLR 2024): U_γ(p_T)·KL(p_T^γ / U_γ(p_T) ‖ p_S).

    The teachers' prediction is raised to the power γ = 1/τ and normalized. The student has no temperature. The weight
    of an example, U_γ(p) = Σ_k p_k^γ, is large for smooth predictions. Defaults: label weight 1, weight 4, τ 5, from
    the authors' published command for CRD with WTTM. They publish no command for WTTM alone.
    """

    alpha: ClassVar = 1.0
    tau: ClassVar = 5.0
    weight: ClassVar = 4.0
    warm_up: ClassVar = 0.0
    uses_labels: ClassVar = False

    def forward(
        self, student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd_config: KDConfig, weights: Weights
    ) -> Tensor:
        predicted_BK = soft_targets(teacher_TBK, tau=1.0, average=kd_config.average, weights=weights)
        power_BK = predicted_BK ** (1 / kd_config.tau)
        power_sum_B = power_BK.sum(-1)
        return power_sum_B * kl_divergence(power_BK / power_sum_B[:, None], student_BK)


@final
class WSL(nn.Module):
    """Weighted soft labels (Zhou et al., ICLR 2021, Eq. 10): each example has its own weight between label and teacher.

    The weight of the teachers' term is 1 − exp(−L_S / L_T). L_S and L_T are the cross-entropies of the student's and
    the teachers' predictions with the label. So the teachers count more where their loss is lower. Defaults: label
    weight 1, weight 2.5, τ 2, from the authors' published code.
    """

    alpha: ClassVar = 1.0
    tau: ClassVar = 2.0
    weight: ClassVar = 2.5
    warm_up: ClassVar = 0.0

    def forward(
        self, student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd_config: KDConfig, weights: Weights
    ) -> Tensor:
        predicted_BK = soft_targets(teacher_TBK, tau=1.0, average=kd_config.average, weights=weights)
        teacher_loss_B = -predicted_BK.gather(1, labels_B[:, None])[:, 0].clamp_min(EPS).log()
        student_loss_B = cross_entropy(student_BK.detach(), labels_B)
        weight_B = 1 - (-student_loss_B / teacher_loss_B.clamp_min(EPS)).exp()
        return weight_B * soft_loss(student_BK, teacher_TBK, kd_config, weights)


@final
class MLKD(nn.Module):
    """Multi-level logit distillation (Jin et al., CVPR 2023): instances, batch and classes at five temperatures.

    The instance term is KD. The batch term compares the Gram matrices P·Pᵀ of the predictions of a batch, the class
    term the matrices Pᵀ·P. The temperatures are 0.5, 0.75, 1, 1.25 and 1.5 times τ. Defaults: α 0.1, weight 0.9, τ 4,
    from the authors' code. Their code adds a second, strong augmentation of each image and leaves out confident
    examples and classes. This method does neither, so that the logit cache can serve it.
    """

    alpha: ClassVar = 0.1
    tau: ClassVar = 4.0
    weight: ClassVar = 0.9
    warm_up: ClassVar = 0.0
    uses_labels: ClassVar = False

    def forward(
        self, student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd_config: KDConfig, weights: Weights
    ) -> Tensor:
        return multi_level(student_BK, teacher_TBK, kd_config, weights, standardized=False)


@final
class StandardizedMLKD(nn.Module):
    """Multi-level logit distillation with standardized logits in the instance term (Sun et al., CVPR 2024).

    Defaults: α 0.1, weight 9, τ 4. The published CIFAR-100 runs have the temperatures 2, 2, 3, 5 and 6.
    """

    alpha: ClassVar = 0.1
    tau: ClassVar = 4.0
    weight: ClassVar = 9.0
    warm_up: ClassVar = 0.0
    uses_labels: ClassVar = False

    def forward(
        self, student_BK: Tensor, teacher_TBK: Tensor, labels_B: Tensor, kd_config: KDConfig, weights: Weights
    ) -> Tensor:
        return multi_level(student_BK, teacher_TBK, kd_config, weights, standardized=True)


def multi_level(
    student_BK: Tensor, teacher_TBK: Tensor, kd_config: KDConfig, weights: Weights, *, standardized: bool
) -> Tensor:
    """Return the three terms of MLKD, summed over five temperatures, one value per example (B,).

    Args:
        student_BK: The student's logits.
        teacher_TBK: The teachers' logits.
        kd_config: Its τ is the middle temperature.
        weights: As for `soft_targets`.
        standardized: Whether the instance term standardizes the logits.
    """
    instance = (standardize(student_BK), standardize(teacher_TBK)) if standardized else (student_BK, teacher_TBK)
    total_B = student_BK.new_zeros(len(student_BK))
    for factor in MULTI_LEVEL_FACTORS:
        scaled = replace(kd_config, tau=factor * kd_config.tau)
        target_BK = soft_targets(teacher_TBK, tau=scaled.tau, average=scaled.average, weights=weights)
        predicted_BK = (student_BK / scaled.tau).softmax(-1)
        batch_BB = predicted_BK @ predicted_BK.T - target_BK @ target_BK.T
        classes_KK = predicted_BK.T @ predicted_BK - target_BK.T @ target_BK
        class_term = classes_KK.square().sum() / len(classes_KK)
        total_B = total_B + soft_loss(*instance, scaled, weights) + batch_BB.square().sum(-1) + class_term
    return total_B


def standardize(logits: Tensor) -> Tensor:
    """Subtract the mean of each logit vector (..., K) and divide by its standard deviation (Sun et al. 2024, Eq. 13).

    >>> standardize(torch.tensor([1.0, 3.0])).tolist()
    [-1.0, 1.0]
    """
    centered = logits - logits.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + EPS**2).sqrt()


def decoupled(scaled_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return TCKD and NCKD, one value per example each (B,) (Zhao et al. 2022, Eq. 6).

    TCKD is the KL divergence of the binary split target class / all other classes. NCKD is the KL divergence among the
    other classes.

    Args:
        scaled_BK: The student's logits over τ.
        target_BK: The teachers' softened prediction.
        labels_B: The target classes.
    """
    is_target_BK = nn.functional.one_hot(labels_B, scaled_BK.shape[-1]).bool()
    nontarget_count = scaled_BK.shape[-1] - 1
    log_p_BK = scaled_BK.log_softmax(-1)
    nontarget_log_p = log_p_BK[~is_target_BK].view(-1, nontarget_count)
    binary_log_p_B2 = torch.stack([log_p_BK[is_target_BK], nontarget_log_p.logsumexp(-1)], -1)
    nontarget_q = target_BK[~is_target_BK].view(-1, nontarget_count)
    nontarget_mass = nontarget_q.sum(-1, keepdim=True)
    binary_q_B2 = torch.cat([target_BK[is_target_BK][:, None], nontarget_mass], -1)
    tckd_B = kl_divergence(binary_q_B2, binary_log_p_B2)
    return tckd_B, kl_divergence(nontarget_q / nontarget_mass.clamp_min(EPS), nontarget_log_p)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation of each row of `a` (R, C) with the same row of `b` (R,); 0 for a constant row.

    >>> pearson(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0]])).round(decimals=5).tolist()
    [1.0]
    """
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / ((a.square().sum(-1) + EPS**2) * (b.square().sum(-1) + EPS**2)).sqrt()
