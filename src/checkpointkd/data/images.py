"""The interface of labeled images, and the batches that networks learn from.

Letters in names: N images, B batch, C channels, H W height and width, K classes, T teachers, M some of the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import Augmentation
from ..errors import UserError
from ..ranks import ALONE, Ranks
from ..seeding import generator

SLACK = 1e-3  # by which images may leave [0, 1], for rounding and interpolation
CROPS = Augmentation()  # crops and flips only
MEASURED = 1_000  # images on which mean and deviation of the channels are estimated, where not all are in memory


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of one training step: images, labels, and which image in which view each one is."""

    images_BCHW: Tensor  # float32 in [0, 1]; normalization is the network's first step
    labels_B: Tensor
    index_B: Tensor  # the image's number in the official data set
    view_B: Tensor | None  # None where the augmentation has no finite set of views
    teacher_TBK: Tensor | None = None  # the teachers' logits, where they are cached
    soft_labels_BK: Tensor | None = None  # of mixed images; `labels_B` are then their most probable classes
    ranks: Ranks = ALONE  # the processes that share the global batch
    total: int | None = None  # the examples of the global batch; None where one process has them all

    @property
    def targets(self) -> Tensor:
        """The labels as cross-entropy takes them: classes (B,), or probabilities (B, K) of mixed images."""
        return self.labels_B if self.soft_labels_BK is None else self.soft_labels_BK

    def split(self, parts: int) -> list[Batch]:
        """Return the batch in so many parts, or fewer if it is small. With several processes, a part may be empty."""
        if parts == 1:
            return [self]
        total = len(self.labels_B) if self.total is None else self.total
        largest = max(1, math.ceil(total / self.ranks.world_size))  # share; more parts would be empty in all processes
        rows = torch.arange(len(self.labels_B), device=self.labels_B.device).tensor_split(min(parts, largest))
        return [self._part(rows_M, total) for rows_M in rows]

    def _part(self, rows_M: Tensor, total: int) -> Batch:
        return replace(
            self,
            images_BCHW=self.images_BCHW[rows_M],
            labels_B=self.labels_B[rows_M],
            index_B=self.index_B[rows_M],
            view_B=None if self.view_B is None else self.view_B[rows_M],
            teacher_TBK=None if self.teacher_TBK is None else self.teacher_TBK[:, rows_M],
            soft_labels_BK=None if self.soft_labels_BK is None else self.soft_labels_BK[rows_M],
            total=total,
        )


class EpochLoader(Protocol):
    """Batches of each epoch, in an order and in views that are functions of (seed, epoch)."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of the epoch that follows `epoch` completed ones, without the first `start`."""
        ...


class Images(Protocol):
    """Labeled images in memory (`InMemoryImages`) or in files (`StreamingImages`)."""

    @property
    def labels_N(self) -> Tensor:
        """The labels, int64."""
        ...

    @property
    def index_N(self) -> Tensor:
        """Each image's number in the official data set, by which its logits are cached."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""
        ...

    @property
    def flip(self) -> bool:
        """Whether the augmentation flips images horizontally."""
        ...

    def __len__(self) -> int: ...

    def subset(self, rows_M: Tensor) -> Images:
        """Return the images of these rows."""
        ...

    def to_float(self) -> Tensor:
        """Return all images without augmentation, as floats in [0, 1] of shape (N, C, H, W)."""
        ...

    def iter_batches(self, size: int) -> Iterator[Tensor]:
        """Yield the images without augmentation, in order, at most `size` at a time."""
        ...

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        augmentation: Augmentation | None = CROPS,
        ranks: Ranks = ALONE,
    ) -> EpochLoader:
        """Return batches to train on: of each global batch of `batch_size` images, the share of this process.

        Without `augmentation` the images stay as they are.

        Raises:
            UserError: If the augmentation does not apply to these images.
        """
        ...

    def sha256(self) -> str:
        """Return the identity of these images."""
        ...

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Return each channel's mean and standard deviation, of pixels in [0, 1].

        The standard deviation of a constant channel is 1.
        """
        ...


def deviation_or_one(deviation: float) -> float:
    """Return a channel's standard deviation, or 1 if the channel is constant: dividing by 0 would give NaN."""
    return deviation if deviation > 1e-6 else 1.0


def estimated_statistics(images: Images) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, over 1,000 evenly spaced images."""
    rows_M = torch.linspace(0, len(images) - 1, min(MEASURED, len(images))).long()
    channels, count = images.shape[0], 0
    total, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for images_BCHW in images.subset(rows_M).iter_batches(max(1, eval_batch_size(images) // 4)):
        level = images_BCHW.double()
        total += level.sum((0, 2, 3))
        squares += level.square().sum((0, 2, 3))
        count += level[:, 0].numel()
    mean = total / count
    deviations = (squares / count - mean**2).clamp_min(0).sqrt().tolist()
    return mean.tolist(), list(map(deviation_or_one, deviations))


def mean_and_std(normalized: Any) -> tuple[list[float], list[float]]:
    """Return the mean and std of each channel that a user gives as `normalized`; 0 and 1 for None.

    Raises:
        UserError: If the value is not a mean and a positive std of each channel.
    """
    if normalized is None:
        return [0.0], [1.0]
    try:
        mean, std = ([float(value) for value in values] for values in normalized)
    except (TypeError, ValueError):
        mean, std = [], []
    if not 0 < len(mean) == len(std) or not all(map(math.isfinite, mean)) or not all(0 < v < math.inf for v in std):
        raise UserError(
            "normalized takes a mean and a positive std of each channel, as in ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), "
            f"not {normalized!r}"
        )
    return mean, std


def check_channels(mean: Sequence[float] | Tensor, channels: int) -> None:
    """Raise UserError if `normalized` has another number of channels than the images. One value is for all channels."""
    if len(mean) not in (1, channels):
        raise UserError(f"normalized has {len(mean)} values of mean and std, but the images have {channels} channels")


def eval_batch_size(images: Images, device: torch.device | str = "cpu") -> int:
    """Return how many images to evaluate at once.

    It is 128 on a CPU, where larger batches miss the cache and took 1.3 times as long, and 500 on other devices. Large
    images come in smaller batches, so that memory stays bounded.
    """
    most = 128 if torch.device(device).type == "cpu" else 500
    return max(1, min(most, 4_000_000 // (images.shape[1] * images.shape[2])))


def epoch_order(count: int, *, seed: int, epoch: int) -> Tensor:
    """Return the order of the images in an epoch, a permutation of `count` rows."""
    return torch.randperm(count, generator=generator("order", seed, epoch))  # the key decides all results: keep it
