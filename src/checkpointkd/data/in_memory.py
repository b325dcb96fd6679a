"""Images that fit into memory: whole-numbered pixels, and batches of their views on the training device.

Letters in names: N images, B batch, C channels, H W height and width, M some of the images.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ..config import Augmentation
from ..errors import UserError
from ..ranks import ALONE, Ranks
from ..seeding import hashed_uniform
from .images import CROPS, Batch, deviation_or_one, epoch_order
from .loading import Draw, LoadedBatches
from .views import Views, turn


@final
@dataclass(frozen=True, eq=False)
class InMemoryImages:
    """Labeled images in memory, and the views of them. Pixels are from 0 to `max_value`."""

    pixels_NCHW: Tensor  # uint8
    labels_N: Tensor
    index_N: Tensor
    views: Views = Views(pad=0, flip=False)
    max_value: int = 255

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.pixels_NCHW.shape[1:]
        return channels, height, width

    @property
    def flip(self) -> bool:
        """Whether half of the views are flipped horizontally."""
        return self.views.flip

    def subset(self, rows_M: Tensor) -> InMemoryImages:
        """Return the images of these rows."""
        return replace(
            self,
            pixels_NCHW=self.pixels_NCHW[rows_M],
            labels_N=self.labels_N[rows_M],
            index_N=self.index_N[rows_M],
        )

    def to_float(self) -> Tensor:
        """Return all images as floats in [0, 1]."""
        return self.pixels_NCHW.float() / self.max_value

    def iter_batches(self, size: int) -> Iterator[Tensor]:
        """Yield the images as floats in [0, 1], which take four times the memory of the pixels, `size` at a time."""
        for rows_B in torch.arange(len(self)).split(size):
            yield self.subset(rows_B).to_float()

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        augmentation: Augmentation | None = CROPS,
        ranks: Ranks = ALONE,
    ) -> InMemoryBatches | LoadedBatches:
        """Return batches to train on. Worker processes augment if pixels change after the crop and the flip."""
        settings: Any = {"batch_size": batch_size, "seed": seed, "device": device, "ranks": ranks}
        if augmentation is not None and augmentation.changes_pixels:
            return LoadedBatches(self, augmentation=augmentation, **settings)
        return InMemoryBatches(self, augmentation=augmentation, **settings)

    def read(self, row: int, draw: Draw | None) -> np.ndarray:
        """Return the pixels (H, W, C) of an image, cropped and flipped by what follows from `draw`, from 0 to 255."""
        image = self.subset(torch.tensor([row]))
        if draw is None:
            pixels_CHW = image.pixels_NCHW[0]
        else:
            view_B = hashed_uniform(image.index_N, len(self.views), "view", *draw)
            pixels_CHW = self.views.cut(self.views.padded(image.pixels_NCHW), torch.tensor([0]), view_B)[0]
        if self.max_value != 255:
            pixels_CHW = (pixels_CHW * (255 / self.max_value)).round().to(torch.uint8)
        return pixels_CHW.permute(1, 2, 0).contiguous().numpy()

    def sha256(self) -> str:
        """Return the identity of these images: the hash of their pixels, labels and order."""
        digest = hashlib.sha256(f"{tuple(self.pixels_NCHW.shape)} {self.max_value}".encode())
        for tensor in (self.pixels_NCHW, self.labels_N, self.index_N):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel, exact, from how often each level occurs."""
        level = torch.arange(256, dtype=torch.float64) / self.max_value
        means, deviations = [], []
        for channel_NHW in self.pixels_NCHW.unbind(1):
            frequency = channel_NHW.flatten().bincount(minlength=256).double() / channel_NHW.numel()
            mean = (frequency * level).sum()
            means.append(mean.item())
            deviations.append(deviation_or_one((frequency * (level - mean) ** 2).sum().sqrt().item()))
        return means, deviations


def in_memory(
    pixels_NCHW: Tensor, labels_N: Tensor, *, source: str, classes: Sequence[str], views: Views, max_value: int = 255
) -> InMemoryImages:
    """Return an official split, in the order of its files.

    Raises:
        UserError: If a label is not among the classes.
    """
    bad = int(((labels_N < 0) | (labels_N >= len(classes))).sum())
    if bad:
        raise UserError(f"{bad} labels in {source} are not among the {len(classes)} classes, numbered from 0")
    return InMemoryImages(pixels_NCHW, labels_N, torch.arange(len(labels_N)), views, max_value)


def _fixed_views(images: InMemoryImages, augmentation: Augmentation | None) -> Tensor | None:
    """Return the fixed views of each image, one row per image; None if every view may be used."""
    if augmentation is None or augmentation.views is None:
        return None
    if augmentation.views > len(images.views):
        raise UserError(
            f"--views {augmentation.views} is more than the {len(images.views)} views that these images have. Leave "
            "--views out to use all of them."
        )
    return images.views.fixed(images.index_N, augmentation.views)


class InMemoryBatches:
    """Batches of images that stay on the device.

    >>> images = InMemoryImages(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.zeros(5).long(), torch.arange(5))
    >>> batches = images.batches(batch_size=2, seed=0, device="cpu")
    >>> len(batches), [len(batch.labels_B) for batch in batches.epoch(0)]
    (3, [2, 2, 1])
    """

    def __init__(
        self,
        images: InMemoryImages,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        augmentation: Augmentation | None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.views, self.batch_size, self.seed, self.augmentation = images.views, batch_size, seed, augmentation
        self.device = torch.device(device)
        fixed_NV = _fixed_views(images, augmentation)
        self._fixed_NV = None if fixed_NV is None else fixed_NV.to(self.device)
        self._max_value = images.max_value
        self._padded_NHWC = self.views.padded(images.pixels_NCHW).to(self.device)
        self._labels_N, self._index_N = images.labels_N.to(self.device), images.index_N.to(self.device)

    def __len__(self) -> int:
        return math.ceil(len(self._labels_N) / self.batch_size)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of the epoch that follows `epoch` completed ones, without the first `start`."""
        view_N = self.view_N(epoch)
        for row_G in self.rows(epoch)[start:]:
            row_B = self.ranks.part(row_G)
            yield replace(self.batch(row_B, view_N[row_B]), total=len(row_G))

    def rows(self, epoch: int) -> Sequence[Tensor]:
        """Return the rows of the images in each global batch of an epoch."""
        order_N = epoch_order(len(self._labels_N), seed=self.seed, epoch=epoch).to(self.device)
        return order_N.split(self.batch_size)

    def view_N(self, epoch: int) -> Tensor:
        """Return the view of each image in an epoch."""
        if self.augmentation is None:
            return torch.full_like(self._index_N, self.views.clean_view)
        if self._fixed_NV is None:
            return self.views.draw(self._index_N, seed=self.seed, epoch=epoch)
        turn_N = turn(self._index_N, self._fixed_NV.shape[1], seed=self.seed, epoch=epoch)
        return self._fixed_NV.gather(1, turn_N[:, None])[:, 0]

    def batch(self, row_B: Tensor, view_B: Tensor) -> Batch:
        """Return these rows in these views."""
        pixels_BCHW = self.views.cut(self._padded_NHWC, row_B, view_B)
        return Batch(
            images_BCHW=pixels_BCHW.float().div_(self._max_value),
            labels_B=self._labels_N[row_B],
            index_B=self._index_N[row_B],
            view_B=view_B,
            ranks=self.ranks,
        )
