"""Images that worker processes load as they are needed, and batches of them on the training device.

Letters in names: N images, B batch, G global batch, C channels, H W height and width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import READER_KILLED, UserError
from ..ranks import ALONE, Ranks
from .images import Batch, epoch_order
from .workers import workers

Draw = tuple[int, int]  # (seed, epoch), of which the augmentation is a function


class LoadedImages(Protocol):
    """Images that workers load by row."""

    @property
    def labels_N(self) -> Tensor: ...
    @property
    def index_N(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def rows(self, draw: Draw | None) -> Dataset:
        """Return the data set that workers read: an image (H, W, C) and its row, or a UserError."""
        ...


class LoadedBatches:
    """Batches of images that workers load."""

    def __init__(
        self,
        images: LoadedImages,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        augment: bool,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.images, self.batch_size, self.seed, self.augment = images, batch_size, seed, augment
        self.device = torch.device(device)

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of the epoch that follows `epoch` completed ones, without the first `start`."""
        dataset = self.images.rows((self.seed, epoch) if self.augment else None)
        whole = epoch_order(len(self.images), seed=self.seed, epoch=epoch).split(self.batch_size)[start:]
        loaded = load_rows(dataset, [self.ranks.part(row_G) for row_G in whole], pin=self.device.type == "cuda")
        for row_G, (pixels_BCHW, row_B) in zip(whole, loaded, strict=True):
            pixels_BCHW = pixels_BCHW.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            yield Batch(
                images_BCHW=as_floats(pixels_BCHW),
                labels_B=self.images.labels_N[row_B].to(self.device),
                index_B=self.images.index_N[row_B].to(self.device),
                view_B=None,
                ranks=self.ranks,
                total=len(row_G),
            )


def as_floats(pixels_BCHW: Tensor) -> Tensor:
    """Return pixels as floats in [0, 1]. Loaded pixels are not changed: a worker's must not be written to."""
    return pixels_BCHW.float().div_(255) if pixels_BCHW.dtype == torch.uint8 else pixels_BCHW.float()


def load_rows(images: Dataset, batches: Sequence[Tensor], *, pin: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pixels (B, C, H, W) and the rows of each batch, in order. Only batches at the end may be empty.

    Raises:
        UserError: If an item is one, or if a worker was killed.
    """
    some = [rows_B for rows_B in batches if len(rows_B)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # the user asked for more workers than CPUs
        loader = DataLoader(
            images,
            batch_sampler=[rows_B.tolist() for rows_B in some],
            num_workers=0 if len(some) == 1 else min(workers(), len(some)),
            collate_fn=_collate,
            generator=torch.Generator(),  # its own, so that the global one does not change
        )
        iterator = iter(loader)
    for loaded in _until_killed(iterator):
        if isinstance(loaded, UserError):
            raise loaded
        pixels_BHWC, rows = loaded
        pixels_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2)
        yield (pixels_BCHW.pin_memory() if pin else pixels_BCHW), torch.tensor(rows)
    for rows_B in batches[len(some) :]:
        yield pixels_BCHW[:0], rows_B


def _until_killed(iterator: Iterator[Any]) -> Iterator[Any]:
    """Yield the batches that workers load; raise UserError if a worker was killed."""
    try:
        yield from iterator
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(READER_KILLED) from None


def _collate(items: list[tuple[np.ndarray, int] | UserError]) -> tuple[np.ndarray, list[int]] | UserError:
    """Stack arrays, which travel through a pipe. Tensors would need /dev/shm, which is small in containers."""
    pixels, rows = [], []
    for item in items:
        if isinstance(item, UserError):
            return item
        pixels.append(item[0])
        rows.append(item[1])
    return np.stack(pixels), rows
