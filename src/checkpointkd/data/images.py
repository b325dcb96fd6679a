"""Images as tensors, and the batches that travel from them to networks.

Letters in names: N images, B batch, C channels, H W height and width, K classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..randomness import generator
from .views import Views


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images in memory: whole-numbered pixels (`white` is white), labels, and the data set's own index."""

    pixels_NCHW: Tensor  # uint8
    labels_N: Tensor  # int64
    index_N: Tensor  # int64: the image's number in the official file, so that answers about it can be looked up
    white: int = 255

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows_M: Tensor) -> Images:
        """Some of the images."""
        return Images(self.pixels_NCHW[rows_M], self.labels_N[rows_M], self.index_N[rows_M], self.white)

    def clean(self) -> Tensor:
        """All images as floats in [0, 1], (N, C, H, W), without augmentation."""
        return self.pixels_NCHW.float() / self.white

    def chunks(self, size: int) -> Iterator[Tensor]:
        """The clean images in order, at most `size` at a time: floats take four times the room of the pixels."""
        for rows_B in torch.arange(len(self)).split(size):
            yield self.take(rows_B).clean()

    def sha256(self) -> str:
        """The identity of these images: their pixels, labels and order."""
        digest = hashlib.sha256(f"{tuple(self.pixels_NCHW.shape)} {self.white}".encode())
        for tensor in (self.pixels_NCHW, self.labels_N, self.index_N):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in [0, 1]."""
        level = torch.arange(256, dtype=torch.float64) / self.white
        means, deviations = [], []
        for channel_NHW in self.pixels_NCHW.unbind(1):  # from how often each level occurs: exact, and little memory
            frequency = channel_NHW.flatten().bincount(minlength=256).double() / channel_NHW.numel()
            mean = (frequency * level).sum()
            means.append(mean.item())
            deviations.append((frequency * (level - mean) ** 2).sum().sqrt().item())
        return means, deviations


@dataclass(frozen=True, eq=False)
class Batch:
    """What a network learns from in one step: images in [0, 1] and which images, in which views, they are."""

    images_BCHW: Tensor  # float32 in [0, 1]; normalisation is the network's first step
    labels_B: Tensor
    index_B: Tensor
    view_B: Tensor | None  # None where the augmentation has no finite views


class ResidentBatches:
    """Batches of images that stay on the device: epoch by epoch, in an order and in views that (seed, epoch) fix.

    >>> images = Images(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.zeros(5).long(), torch.arange(5))
    >>> batches = ResidentBatches(images, views=Views(pad=1, flip=False), batch_size=2, seed=0, device="cpu")
    >>> len(batches), [len(batch.labels_B) for batch in batches.epoch(0)]
    (3, [2, 2, 1])
    """

    def __init__(
        self,
        images: Images,
        *,
        views: Views,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        augment: bool = True,
    ) -> None:
        self.views, self.batch_size, self.seed, self.augment = views, batch_size, seed, augment
        self.device = torch.device(device)
        self._white = images.white
        self._padded_NHWC = views.padded(images.pixels_NCHW).to(self.device)
        self._labels_N, self._index_N = images.labels_N.to(self.device), images.index_N.to(self.device)

    def __len__(self) -> int:
        return math.ceil(len(self._labels_N) / self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of the epoch that follows `epoch` completed ones."""
        order_N = torch.randperm(len(self._labels_N), generator=generator("order", self.seed, epoch)).to(self.device)
        if self.augment:
            view_N = self.views.draw(self._index_N, seed=self.seed, epoch=epoch)
        else:
            view_N = torch.full_like(self._index_N, self.views.clean)
        for row_B in order_N.split(self.batch_size):
            view_B = view_N[row_B]
            pixels_BCHW = self.views.cut(self._padded_NHWC, row_B, view_B)
            yield Batch(
                images_BCHW=pixels_BCHW.float().div_(self._white),
                labels_B=self._labels_N[row_B],
                index_B=self._index_N[row_B],
                view_B=view_B,
            )
