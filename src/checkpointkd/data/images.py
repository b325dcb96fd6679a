"""Images as tensors, and the batches that travel from them to networks.

Letters in names: N images, B batch, C channels, H W height and width, K classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, final

import torch
from torch import Tensor

from ..errors import UserError
from ..seeding import generator
from .views import Views


@dataclass(frozen=True, eq=False)
class Batch:
    """What a network learns from in one step: images in [0, 1] and which images, in which views, they are."""

    images_BCHW: Tensor  # float32 in [0, 1]; normalization is the network's first step
    labels_B: Tensor
    index_B: Tensor
    view_B: Tensor | None  # None where the augmentation has no finite views
    teacher_TBK: Tensor | None = None  # what the teachers answer, where that is known already


class EpochLoader(Protocol):
    """Batches, epoch by epoch, in an order and in views that (seed, epoch) fix."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of the epoch that follows `epoch` completed ones."""
        ...


class Images(Protocol):
    """Labeled images, wherever they are: in memory (`InMemoryImages`) or in files (`StreamingImages`)."""

    @property
    def labels_N(self) -> Tensor:
        """The labels, int64."""
        ...

    @property
    def index_N(self) -> Tensor:
        """Each image's number in the official data set, so that answers about it can be looked up."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""
        ...

    @property
    def flip(self) -> bool:
        """Whether mirror images are learned from."""
        ...

    def __len__(self) -> int: ...

    def subset(self, rows_M: Tensor) -> Images:
        """Some of the images."""
        ...

    def to_float(self) -> Tensor:
        """All images as floats in [0, 1], (N, C, H, W), without augmentation."""
        ...

    def iter_batches(self, size: int) -> Iterator[Tensor]:
        """The clean images in order, at most `size` at a time."""
        ...

    def batches(self, *, batch_size: int, seed: int, device: torch.device | str, augment: bool = True) -> EpochLoader:
        """Batches to learn from."""
        ...

    def sha256(self) -> str:
        """The identity of these images."""
        ...

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in [0, 1]."""
        ...


@final
@dataclass(frozen=True, eq=False)
class InMemoryImages:
    """Labeled images in memory: whole-numbered pixels (`white` is white), and the views that there are of them."""

    pixels_NCHW: Tensor  # uint8
    labels_N: Tensor
    index_N: Tensor
    views: Views = Views(pad=0, flip=False)
    white: int = 255

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels_NCHW.shape[1:]
        return channels, height, width

    @property
    def flip(self) -> bool:
        return self.views.flip

    def subset(self, rows_M: Tensor) -> InMemoryImages:
        return replace(
            self,
            pixels_NCHW=self.pixels_NCHW[rows_M],
            labels_N=self.labels_N[rows_M],
            index_N=self.index_N[rows_M],
        )

    def to_float(self) -> Tensor:
        return self.pixels_NCHW.float() / self.white

    def iter_batches(self, size: int) -> Iterator[Tensor]:
        for rows_B in torch.arange(len(self)).split(size):  # floats take four times the room of the pixels
            yield self.subset(rows_B).to_float()

    def batches(
        self, *, batch_size: int, seed: int, device: torch.device | str, augment: bool = True
    ) -> InMemoryBatches:
        return InMemoryBatches(self, batch_size=batch_size, seed=seed, device=device, augment=augment)

    def sha256(self) -> str:
        """The identity of these images: their pixels, labels and order."""
        digest = hashlib.sha256(f"{tuple(self.pixels_NCHW.shape)} {self.white}".encode())
        for tensor in (self.pixels_NCHW, self.labels_N, self.index_N):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        level = torch.arange(256, dtype=torch.float64) / self.white
        means, deviations = [], []
        for channel_NHW in self.pixels_NCHW.unbind(1):  # from how often each level occurs: exact, and little memory
            frequency = channel_NHW.flatten().bincount(minlength=256).double() / channel_NHW.numel()
            mean = (frequency * level).sum()
            means.append(mean.item())
            deviations.append((frequency * (level - mean) ** 2).sum().sqrt().item())
        return means, deviations


def in_memory(
    pixels_NCHW: Tensor, labels_N: Tensor, *, what: str, classes: Sequence[str], views: Views, white: int = 255
) -> InMemoryImages:
    """A split as its files have it, in their order; raises UserError for labels that are no class."""
    bad = int(((labels_N < 0) | (labels_N >= len(classes))).sum())
    if bad != 0:
        raise UserError(f"{bad} labels in {what} are not among the {len(classes)} classes, numbered from 0")
    return InMemoryImages(pixels_NCHW, labels_N, torch.arange(len(labels_N)), views, white)


class InMemoryBatches:
    """Batches of images that stay on the device.

    >>> images = InMemoryImages(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.zeros(5).long(), torch.arange(5))
    >>> batches = images.batches(batch_size=2, seed=0, device="cpu")
    >>> len(batches), [len(batch.labels_B) for batch in batches.epoch(0)]
    (3, [2, 2, 1])
    """

    def __init__(
        self, images: InMemoryImages, *, batch_size: int, seed: int, device: torch.device | str, augment: bool
    ) -> None:
        self.views, self.batch_size, self.seed, self.augment = images.views, batch_size, seed, augment
        self.device = torch.device(device)
        self._white = images.white
        self._padded_NHWC = self.views.padded(images.pixels_NCHW).to(self.device)
        self._labels_N, self._index_N = images.labels_N.to(self.device), images.index_N.to(self.device)

    def __len__(self) -> int:
        return math.ceil(len(self._labels_N) / self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        view_N = self.view_N(epoch)
        for row_B in self.rows(epoch):
            yield self.batch(row_B, view_N[row_B])

    def rows(self, epoch: int) -> Sequence[Tensor]:
        """The rows of the images in each of an epoch's batches."""
        order_N = epoch_order(len(self._labels_N), seed=self.seed, epoch=epoch).to(self.device)
        return order_N.split(self.batch_size)

    def view_N(self, epoch: int) -> Tensor:
        """The view in which an epoch shows each image."""
        if self.augment:
            return self.views.draw(self._index_N, seed=self.seed, epoch=epoch)
        return torch.full_like(self._index_N, self.views.clean)

    def batch(self, row_B: Tensor, view_B: Tensor) -> Batch:
        """These rows in these views."""
        pixels_BCHW = self.views.cut(self._padded_NHWC, row_B, view_B)
        return Batch(
            images_BCHW=pixels_BCHW.float().div_(self._white),
            labels_B=self._labels_N[row_B],
            index_B=self._index_N[row_B],
            view_B=view_B,
        )


def eval_batch_size(images: Images, device: torch.device | str = "cpu") -> int:
    """How many images to take at once: 128 on a processor, where more miss its cache and took 1.3 times the time, else
    500; fewer of large ones, so that memory stays bounded."""
    most = 128 if torch.device(device).type == "cpu" else 500
    return max(1, min(most, 4_000_000 // (images.shape[1] * images.shape[2])))


def epoch_order(count: int, *, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch goes through its images."""
    return torch.randperm(count, generator=generator("order", seed, epoch))
