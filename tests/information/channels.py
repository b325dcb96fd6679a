"""Synthetic images and maps with known mutual information, for the tests and benchmarks/estimators.py."""

from __future__ import annotations

import torch
from torch import Tensor

from checkpointkd.data.in_memory import InMemoryImages, in_memory
from checkpointkd.data.views import Views


def gray_images(pixels_NCHW: Tensor) -> InMemoryImages:
    """Return images in 256 gray levels, from values in [0, 1]."""
    labels_N = torch.arange(len(pixels_NCHW)) % 2
    return in_memory(
        (pixels_NCHW * 255).round().clamp(0, 255).to(torch.uint8),
        labels_N,
        source="synthetic",
        classes=("a", "b"),
        views=Views(pad=1, flip=False),
    )


def channel(*, fit: int, measured: int, noise: float, seed: int = 0) -> tuple[list, float]:
    """Return the images and maps of a linear-Gaussian channel, and its mutual information in nats.

    The images have 4×4 correlated gray pixels. The map has one position with eight features F = A·x + ε, so
    I(X;F) = ½ log det(I + A Σ Aᵀ / σ²).
    """
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(16, 16, generator=torch.Generator().manual_seed(99)).double() / 4
    weights = torch.randn(8, 16, generator=torch.Generator().manual_seed(98)).double()
    values = torch.randn(fit + measured, 16, generator=draw).double() @ mix.T
    pixels = (0.5 + 0.1 * values).float()  # five standard deviations fit into [0, 1]
    images = gray_images(pixels.view(-1, 1, 4, 4))
    exact = images.to_float().double().flatten(1)  # rounded to gray levels, which hardly matters
    maps = (exact - 0.5) / 0.1 @ weights.T + noise * torch.randn(len(exact), 8, generator=draw).double()
    covariance = weights @ mix @ mix.T @ weights.T
    truth = 0.5 * torch.logdet(torch.eye(8).double() + covariance / noise**2).item()
    maps = maps.float().view(1, -1, 1, 1, 8)
    return [
        images.subset(torch.arange(fit)),
        maps[:, :fit],
        images.subset(torch.arange(fit, fit + measured)),
        maps[:, fit:],
    ], truth
