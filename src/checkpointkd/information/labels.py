"""I(Y;F) and other measures of a checkpoint's predictions. They need logits and labels only.

Letters in names: N images, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..metrics import fitted_losses, measure


def label_measures(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Return accuracy, NLL and the lower bound H(Y) − CE on I(Y;F) (§3.2), in nats, at the fitted temperature.

    Returns:
        The measures of `metrics.measure`, `label_information`, `temperature` and `nuclear_norm`.
    """
    loss_N, temperature = fitted_losses(logits_NK, labels_N)
    return {
        **measure(logits_NK, labels_N),
        "label_information": label_entropy(labels_N) - loss_N.mean().item(),
        "temperature": temperature,
        "nuclear_norm": nuclear_norm(logits_NK),
    }


def nuclear_norm(logits_NK: Tensor) -> float:
    """Return the nuclear norm of the predictions, divided by its largest possible value (Deng et al., ICML 2023).

    The norm is large for predictions that are confident and spread over the classes. It needs no labels.

    >>> one_hot, constant = 99 * torch.eye(3), torch.zeros(3, 3)
    >>> round(nuclear_norm(one_hot), 3), round(nuclear_norm(constant), 3)
    (1.0, 0.333)
    """
    p_NK = logits_NK.double().softmax(-1)
    singular_values = torch.linalg.eigvalsh(p_NK.T @ p_NK).clamp_min(0).sqrt()
    return singular_values.sum().item() / math.sqrt(min(p_NK.shape) * len(p_NK))


def label_entropy(labels_N: Tensor) -> float:
    """Return H(Y) of the empirical label distribution, in nats.

    >>> round(label_entropy(torch.tensor([0, 0, 1, 1])), 4)
    0.6931
    """
    frequency_K = labels_N.bincount().double() / len(labels_N)
    return -torch.xlogy(frequency_K, frequency_K).sum().item()


def per_image(logits_NK: Tensor, labels_N: Tensor) -> dict[str, Tensor]:
    """Return each image's contribution (N,) to the measures that rules use.

    Returns:
        `correct`: 1 if the top class is the label, else 0 (uint8). The others are float32:
        `nll`, `brier`: proper scores of the predicted probabilities.
        `confidence`: the highest probability.
        `conditional_mi`: KL(p ‖ mean p of the image's class). Its mean over images is the conditional mutual
        information that MCMI maximizes (Ye et al., ICLR 2024).
        `wrong_variance`: the variance of the wrong classes' probabilities (Li et al., NeurIPS 2022).

    >>> parts = per_image(torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]), torch.tensor([0, 0]))
    >>> parts["correct"].tolist(), [round(value, 2) for value in parts["brier"].tolist()]
    ([1, 0], [0.0, 2.0])
    """
    log_p_NK = logits_NK.double().log_softmax(-1)
    p_NK = log_p_NK.exp()
    truth_NK = F.one_hot(labels_N, p_NK.shape[1]).double()
    counts_K = truth_NK.sum(0).clamp_min(1)
    centroid_KK = (truth_NK.T @ p_NK) / counts_K[:, None]
    kl_N = (p_NK * (log_p_NK - centroid_KK[labels_N].clamp_min(1e-300).log())).sum(-1)
    wrong_NK = p_NK * (1 - truth_NK)
    wrong_classes = p_NK.shape[1] - 1
    wrong_mean_N = wrong_NK.sum(-1) / wrong_classes
    parts = {
        "nll": -(log_p_NK * truth_NK).sum(-1),
        "brier": (p_NK - truth_NK).square().sum(-1),
        "confidence": p_NK.max(-1).values,
        "conditional_mi": kl_N,
        "wrong_variance": wrong_NK.square().sum(-1) / wrong_classes - wrong_mean_N.square(),
    }
    correct_N = (logits_NK.argmax(-1) == labels_N).to(torch.uint8)
    return {"correct": correct_N, **{name: part.float() for name, part in parts.items()}}
