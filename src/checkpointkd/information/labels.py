"""I(Y;F), and what else a checkpoint's predictions tell of it as a teacher. No map, no decoder: logits and labels.

Letters in names: N images, K classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from ..metrics import measure


def label_measures(logits_NK: Tensor, labels_N: Tensor) -> dict[str, Any]:
    """Accuracy, NLL, and H(Y) − CE in nats (§3.2's bound) at the temperature that suits the network."""
    loss_N, temperature = fitted_losses(logits_NK, labels_N)
    return {
        **measure(logits_NK, labels_N),
        "label_information": label_entropy(labels_N) - loss_N.mean().item(),
        "temperature": temperature,
    }


def label_entropy(labels_N: Tensor) -> float:
    """H(Y) in nats.

    >>> round(label_entropy(torch.tensor([0, 0, 1, 1])), 4)
    0.6931
    """
    frequency_K = labels_N.bincount().double() / len(labels_N)
    return -torch.xlogy(frequency_K, frequency_K).sum().item()


def fitted_losses(logits_NK: Tensor, labels_N: Tensor) -> tuple[Tensor, float]:
    """Each image's cross-entropy, (N,) in nats, at the temperature that suits the network, and that temperature.

    It is fitted on one half of the images and used on the other, both ways round, so that fitting it earns nothing.
    """
    halves = [torch.arange(start, len(labels_N), 2) for start in (0, 1)]
    fitted = [_temperature(logits_NK[half], labels_N[half]) for half in halves]
    loss_N = torch.empty(len(labels_N), dtype=torch.float64)
    for half, temperature in zip(halves, reversed(fitted), strict=True):
        loss_N[half] = F.cross_entropy(logits_NK[half].double() / temperature, labels_N[half], reduction="none")
    return loss_N, math.sqrt(fitted[0] * fitted[1])


def per_image(logits_NK: Tensor, labels_N: Tensor) -> dict[str, Tensor]:
    """Each image's part, (N,), in what rules choose by.

    `right`: whether it is named rightly. `nll` and `brier`: proper scores of its prediction. `confidence`: the greatest
    probability. `context`: KL(p ‖ its class's mean p), whose mean is the conditional mutual information that MCMI
    maximises (Ye et al., ICLR 2024). `wrong_variance`: the variance of the wrong classes' probabilities (Li et al.,
    NeurIPS 2022).

    >>> parts = per_image(torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]), torch.tensor([0, 0]))
    >>> parts["right"].tolist(), [round(value, 2) for value in parts["brier"].tolist()]
    ([1, 0], [0.0, 2.0])
    """
    log_p_NK = logits_NK.double().log_softmax(-1)
    p_NK = log_p_NK.exp()
    truth_NK = F.one_hot(labels_N, p_NK.shape[1]).double()
    counts_K = truth_NK.sum(0).clamp_min(1)
    centroid_KK = (truth_NK.T @ p_NK) / counts_K[:, None]
    context_N = (p_NK * (log_p_NK - centroid_KK[labels_N].clamp_min(1e-300).log())).sum(-1)
    wrong_NK = p_NK * (1 - truth_NK)
    others = p_NK.shape[1] - 1
    wrong_mean_N = wrong_NK.sum(-1) / others
    parts = {
        "nll": -(log_p_NK * truth_NK).sum(-1),
        "brier": (p_NK - truth_NK).square().sum(-1),
        "confidence": p_NK.max(-1).values,
        "context": context_N,
        "wrong_variance": wrong_NK.square().sum(-1) / others - wrong_mean_N.square(),
    }
    right_N = (logits_NK.argmax(-1) == labels_N).to(torch.uint8)
    return {"right": right_N, **{name: part.float() for name, part in parts.items()}}


def _temperature(logits_NK: Tensor, labels_N: Tensor) -> float:
    """The temperature, from 0.05 to 20, that makes the logits' cross-entropy least."""
    logits_NK = logits_NK.double()

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits_NK / math.exp(log_temperature), labels_N).item()

    found: Any = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return math.exp(found.x)
