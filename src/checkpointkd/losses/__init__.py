"""What a network can learn: losses as the papers write them, and the objectives that bring them to the loop."""

from __future__ import annotations

from .kd import cross_entropy, kd, kl_divergence, label_smoothing, soft_loss, soften
from .objectives import METHODS, FromFeatures, FromLogits, Supervised, defaults, distillation, takes_features

__all__ = [
    "METHODS",
    "FromFeatures",
    "FromLogits",
    "Supervised",
    "cross_entropy",
    "defaults",
    "distillation",
    "kd",
    "kl_divergence",
    "label_smoothing",
    "soft_loss",
    "soften",
    "takes_features",
]
