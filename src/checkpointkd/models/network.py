"""A network here takes images in [0, 1]: its first step normalizes, so that networks of any origin meet on the same
images, and what is saved or exported needs no further instructions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Normalization, then a body: any module from images (B, C, H, W) to logits (B, K), or to something that has them
    as `.logits`, as Hugging Face's models give; unmodified."""

    mean: Tensor
    std: Tensor
    classes: list[str] | None = None  # their names, where `load` knows them

    def __init__(self, body: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.body = body

    def forward(self, images_BCHW: Tensor) -> Tensor:
        answer = self.body((images_BCHW - self.mean) / self.std)
        return getattr(answer, "logits", answer)
