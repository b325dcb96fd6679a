"""Distillation losses as their papers write them, and the objectives that the training loop calls."""

from __future__ import annotations

from .distillation_loss import cross_entropy, kd, kl_divergence, label_smoothing, soft_loss, soft_targets
from .objectives import (
    METHODS,
    FeatureDistillation,
    LogitDistillation,
    Supervised,
    Teaching,
    check_mixing,
    defaults,
    distillation,
    get_method,
    suits_mixing,
    takes_features,
)

__all__ = [
    "METHODS",
    "FeatureDistillation",
    "LogitDistillation",
    "Supervised",
    "Teaching",
    "check_mixing",
    "cross_entropy",
    "defaults",
    "distillation",
    "get_method",
    "kd",
    "kl_divergence",
    "label_smoothing",
    "soft_loss",
    "soft_targets",
    "suits_mixing",
    "takes_features",
]
