"""Images that worker processes load as they are needed, and batches of them on the training device.

Letters in names: N images, B batch, G global batch, C channels, H W height and width.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ..config import Augmentation
from ..errors import READER_KILLED, UserError
from ..ranks import ALONE, Ranks
from .augmenting import augmented
from .images import Batch, epoch_order
from .views import turn
from .workers import workers

log = logging.getLogger("checkpointkd")

# Of which the augmentation is a function: (seed, epoch), or ("view", number) for a fixed view.
Draw = tuple[int | str, int]
SHARED_MEMORY = "/dev/shm"
PREFETCH = 2  # batches that each worker holds ready


class LoadedImages(Protocol):
    """Images that workers read by row."""

    @property
    def labels_N(self) -> Tensor: ...
    @property
    def index_N(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def read(self, row: int, draw: Draw | None) -> np.ndarray:
        """Return the pixels (H, W, C) of an image, augmented as a function of `draw`, or without augmentation.

        Raises:
            UserError: If the image cannot be read.
        """
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
        augmentation: Augmentation | None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.images, self.batch_size, self.seed, self.augmentation = images, batch_size, seed, augmentation
        self.device = torch.device(device)
        self._loader = RowLoader(
            images, batches=len(self), augmentation=augmentation, pin=self.device.type == "cuda", persistent=True
        )

    @property
    def views(self) -> int | None:
        """The number of fixed views of each image, or None."""
        return None if self.augmentation is None else self.augmentation.views

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of the epoch that follows `epoch` completed ones, without the first `start`."""
        for _, batch in self.rows_and_batches(epoch, start=start):
            yield batch

    def view_N(self, epoch: int) -> Tensor:
        """Return which of its fixed views each image has in an epoch."""
        assert self.views is not None
        return turn(self.images.index_N, self.views, seed=self.seed, epoch=epoch)

    def rows_and_batches(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Batch]]:
        """Yield the batches of an epoch, each with the rows of its images, on the CPU."""
        draws: list[Draw] | None = None
        view_N = None if self.views is None else self.view_N(epoch)
        if view_N is not None:
            draws = [("view", view) for view in view_N.tolist()]
        elif self.augmentation is not None:
            draws = [(self.seed, epoch) for _ in range(len(self.images))]
        whole = epoch_order(len(self.images), seed=self.seed, epoch=epoch).split(self.batch_size)[start:]
        loaded = self._loader.load([self.ranks.part(row_G) for row_G in whole], draws)
        for row_G, (pixels_BCHW, row_B) in zip(whole, loaded, strict=True):
            pixels_BCHW = pixels_BCHW.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            yield (
                row_B,
                Batch(
                    images_BCHW=as_floats(pixels_BCHW),
                    labels_B=self.images.labels_N[row_B].to(self.device),
                    index_B=self.images.index_N[row_B].to(self.device),
                    view_B=None if view_N is None else view_N[row_B].to(self.device),
                    ranks=self.ranks,
                    total=len(row_G),
                ),
            )


def as_floats(pixels_BCHW: Tensor) -> Tensor:
    """Return pixels as floats in [0, 1]. Loaded pixels are not changed: a worker's must not be written to."""
    return pixels_BCHW.float().div_(255) if pixels_BCHW.dtype == torch.uint8 else pixels_BCHW.float()


def load_rows(images: LoadedImages, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pixels (B, C, H, W) and the rows of each batch, in order and without augmentation.

    Raises:
        UserError: If an image cannot be read, or if a worker was killed.
    """
    return RowLoader(images, batches=len(batches)).load(batches, None)


class RowLoader:
    """Worker processes that read images by row. Persistent workers stay alive from one epoch to the next."""

    def __init__(
        self,
        images: LoadedImages,
        *,
        batches: int,
        augmentation: Augmentation | None = None,
        pin: bool = False,
        persistent: bool = False,
    ) -> None:
        self._items = _Items(images, augmentation)
        self._images, self._pin, self._persistent = images, pin, persistent
        self._workers = 0 if batches == 1 else min(workers(), batches)
        self._kept: DataLoader | None = None
        self._busy = False

    def load(self, batches: Sequence[Tensor], draws: Sequence[Draw] | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the pixels (B, C, H, W) and the rows of each batch, in order. Batches may be empty.

        Args:
            batches: The rows of each batch.
            draws: For each row of the images, of what its augmentation is a function. None: no augmentation.

        Raises:
            UserError: If an image cannot be read, or if a worker was killed.
        """
        keep = self._persistent and self._workers > 0 and not self._busy
        loader = self._kept if keep else None
        if loader is None:
            loader = self._new_loader(max(map(len, batches), default=0), persistent=keep)
        if keep:
            self._kept, self._busy = loader, True
        plan = loader.batch_sampler
        assert isinstance(plan, _Plan)
        plan.batches, plan.draws = [rows_B for rows_B in batches if len(rows_B)], draws
        try:
            loaded = _until_killed(loader)
            for rows_B in batches:
                yield self._as_tensors(next(loaded)) if len(rows_B) else self._no_images()
        finally:
            self._busy = self._busy and not keep

    def _new_loader(self, batch_size: int, *, persistent: bool) -> DataLoader:
        shared = self._workers == 0 or _fits_shared_memory(batch_size * self._item_bytes, self._workers)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # the user asked for more workers
            return DataLoader(
                self._items,
                batch_sampler=_Plan(),
                num_workers=self._workers,
                collate_fn=functools.partial(_collate, shared=shared),
                worker_init_fn=_end_quietly,
                generator=torch.Generator(),  # its own, so that the global one does not change
                pin_memory=self._pin,
                persistent_workers=persistent,
                prefetch_factor=PREFETCH if self._workers else None,
            )

    @functools.cached_property
    def _item_bytes(self) -> int:
        return self._images.read(0, None).nbytes

    def _as_tensors(self, loaded: tuple[Any, Tensor] | UserError) -> tuple[Tensor, Tensor]:
        if isinstance(loaded, UserError):
            try:
                raise loaded
            finally:
                del loaded  # a cycle of the error and this frame would keep the workers alive
        pixels_BHWC, row_B = loaded
        return torch.as_tensor(pixels_BHWC).permute(0, 3, 1, 2), row_B

    def _no_images(self) -> tuple[Tensor, Tensor]:
        pixels_BHWC = np.stack([self._images.read(0, None)])[:0]
        return self._as_tensors((pixels_BHWC, torch.empty(0, dtype=torch.int64)))


class _Plan:
    """The batches of the next epoch, for the sampler's place in a DataLoader whose workers stay alive."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []
        self.draws: Sequence[Draw] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, Draw | None]]]:
        for rows_B in self.batches:
            yield [(row, None if self.draws is None else self.draws[row]) for row in rows_B.tolist()]


class _Items(Dataset):
    """What workers read: an image's pixels and its row, or a UserError."""

    def __init__(self, images: LoadedImages, augmentation: Augmentation | None) -> None:
        self.images, self.augmentation = images, augmentation

    def __getitem__(self, key: tuple[int, Draw | None]) -> tuple[np.ndarray, int] | UserError:
        row, draw = key
        try:
            pixels_HWC = self.images.read(row, draw)
            if draw is not None and self.augmentation is not None and self.augmentation.changes_pixels:
                pixels_HWC = augmented(pixels_HWC, self.augmentation, *draw, int(self.images.index_N[row]))
            return pixels_HWC, row
        except UserError as error:
            return error  # raised here, it would arrive wrapped in a worker's traceback


def _end_quietly(worker: int) -> None:
    """Let a worker end without a traceback when the command is stopped."""

    def without_lost_connections(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not issubclass(kind, EOFError | ConnectionError):  # the command ended while it took a batch
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = without_lost_connections
    # A batch system stops all processes. PyTorch would report a worker that ends by a signal, and hide the reason.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _until_killed(loader: DataLoader) -> Iterator[Any]:
    """Yield the batches that workers load; raise UserError if a worker was killed."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # the user asked for more workers
            loaded = iter(loader)
        yield from loaded
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(READER_KILLED) from None


def _collate(
    items: list[tuple[np.ndarray, int] | UserError], *, shared: bool
) -> tuple[Tensor | np.ndarray, Tensor] | UserError:
    """Stack a batch. Tensors travel through shared memory, and arrays through a pipe."""
    pixels, rows = [], []
    for item in items:
        if isinstance(item, UserError):
            return item
        pixels.append(item[0])
        rows.append(item[1])
    if len({item.dtype for item in pixels}) > 1:  # stacking would take levels up to 255 for values in [0, 1]
        return UserError("Some images are uint8 and others float. Give all images the same type.")
    # In a worker, default_collate stacks tensors in shared memory.
    pixels_BHWC = default_collate(list(map(torch.from_numpy, pixels))) if shared else np.stack(pixels)
    return pixels_BHWC, torch.tensor(rows)


@functools.cache
def _warn_of_small_memory(free: int, needed: int) -> None:
    log.warning(
        "%s has %.0f MB free, and the workers' batches need %.0f MB. They travel through pipes, which is slower. In a "
        "container, a larger --shm-size avoids this.",
        SHARED_MEMORY,
        free / 1e6,
        needed / 1e6,
    )


def _fits_shared_memory(batch_bytes: int, workers: int) -> bool:
    """Return whether the batches of all workers fit into shared memory, twice. Warn if they do not."""
    if not os.path.isdir(SHARED_MEMORY):  # another system, where shared memory is not a file system
        return True
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, 2 * batch_bytes * (workers * PREFETCH + 2)
    if needed > free:
        _warn_of_small_memory(free, needed)
    return needed <= free
