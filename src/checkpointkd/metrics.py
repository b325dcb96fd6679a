"""Predictions of a network, and their accuracy, negative log-likelihood and calibration.

Letters in names: N images, K classes, R resamples.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Images, eval_batch_size
from .ranks import ALONE, Ranks

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20


@torch.no_grad()
def predict(network: nn.Module, images: Images, *, ranks: Ranks = ALONE) -> Tensor:
    """Return the network's logits on clean images, float32 (N, K) on the CPU. Its training mode is restored.

    With several `ranks`, each predicts a part of the images, and all get all logits.
    """
    if ranks.world_size > 1 and len(images) >= ranks.world_size:
        part_NK = predict(network, images.subset(ranks.part(torch.arange(len(images)))))
        return ranks.gather(part_NK.to(next(network.parameters()).device)).cpu()
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    logits = [
        network(chunk.to(device, memory_format=torch.channels_last)).float()
        for chunk in images.iter_batches(eval_batch_size(images, device))
    ]
    network.train(was_training)
    return torch.cat(logits).cpu()


def measure(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Return top-1 `accuracy` in [0, 1], its standard error over images `accuracy_se`, and `nll`, the mean in nats.

    >>> measure(torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1]))["accuracy"]
    0.5
    """
    correct_N = (logits_NK.argmax(-1) == labels_N).double()
    nll_N = nn.functional.cross_entropy(logits_NK.double(), labels_N, reduction="none")
    return {
        "accuracy": correct_N.mean().item(),
        "accuracy_se": correct_N.std(correction=0).item() / len(correct_N) ** 0.5,
        "nll": nll_N.mean().item(),
    }


def calibration_error(
    weight_RN: np.ndarray, confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15
) -> np.ndarray:
    """Return the calibration error of each resample (R,): the mean of |confidence − accuracy| over bins.

    Images are sorted by confidence into bins of equal size, as in adaptive calibration error (Nixon et al., 2019).

    Args:
        weight_RN: The weight of each image in each resample. The weights of a resample sum to 1.
        confidence_N: The probability of the predicted class, in [0, 1].
        correct_N: Whether the prediction is correct.
    """
    order_N = np.argsort(confidence_N, kind="stable")
    gap_N = confidence_N[order_N].astype(float) - correct_N[order_N]
    weight_RN = weight_RN[:, order_N]
    binned = [
        weight_RN[:, part] @ gap_N[part] for part in np.array_split(np.arange(len(order_N)), min(bins, len(order_N)))
    ]
    return np.abs(binned).sum(0)


def fitted_losses(logits_NK: Tensor, labels_N: Tensor) -> tuple[Tensor, float]:
    """Return each image's cross-entropy at the fitted temperature, and that temperature.

    The temperature is cross-fitted: it is fitted on each half of the images and used on the other half. So the fit
    cannot lower the loss by overfitting.

    Returns:
        The cross-entropies (N,) in nats, float64, and the geometric mean of the two temperatures.
    """
    halves = [torch.arange(start, len(labels_N), 2) for start in (0, 1)]
    temperatures = [_temperature(logits_NK[half], labels_N[half]) for half in halves]
    loss_N = torch.empty(len(labels_N), dtype=torch.float64)
    for half, temperature in zip(halves, reversed(temperatures), strict=True):
        loss_N[half] = F.cross_entropy(logits_NK[half].double() / temperature, labels_N[half], reduction="none")
    return loss_N, math.sqrt(temperatures[0] * temperatures[1])


def _temperature(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Return the temperature in [0.05, 20] that minimizes the cross-entropy of the logits."""
    logits_NK = logits_NK.double()

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits_NK / math.exp(log_temperature), labels_N).item()

    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    optimum: Any = minimize_scalar(loss, bounds=bounds, method="bounded")
    return math.exp(optimum.x)
