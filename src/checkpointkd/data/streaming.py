"""Images that are too many or too large for memory: read, decoded and cut by worker processes as they are needed.

What an image becomes depends on (seed, epoch, its number) alone, never on which worker cuts it, in which batch.
Letters in names: N images, B batch, C channels, H W height and width.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from ..seeding import generator
from .image_io import EncodedImages, decode_rgb
from .images import Batch, epoch_order, eval_batch_size

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("checkpointkd")

MEASURED = 1_000  # images from which a channel's mean and deviation are estimated
CLEAN_MARGIN = 256 / 224  # the shorter side of an unaugmented image before its center is cut out: ImageNet's practice


def workers() -> int:
    """How many processes decode: `CHECKPOINTKD_WORKERS`, else one for each processor this process may use, at most 8.

    They change how fast images come and nothing else.
    """
    asked = os.environ.get("CHECKPOINTKD_WORKERS")
    if asked is None:
        return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if re.fullmatch("[0-9]{1,3}", asked) is None:
        raise UserError(f"CHECKPOINTKD_WORKERS must be a number of processes from 0 to 999, not {asked[:20]!r}")
    return int(asked)


@final
@dataclass(frozen=True, eq=False)
class StreamingImages:
    """Labeled pictures in a store. To learn from, a random part of random proportions is cut out and perhaps flipped,
    as torchvision's RandomResizedCrop does; clean ones are the center. All end as squares of `size` pixels."""

    pictures: EncodedImages
    digest: str  # of what the pictures are, without having read them
    labels_N: Tensor
    index_N: Tensor
    size: int
    flip: bool = True

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size

    def subset(self, rows_M: Tensor) -> StreamingImages:
        return replace(self, labels_N=self.labels_N[rows_M], index_N=self.index_N[rows_M])

    def to_float(self) -> Tensor:
        return torch.cat(list(self.iter_batches(eval_batch_size(self))))

    def iter_batches(self, size: int) -> Iterator[Tensor]:
        for pixels_BCHW, _ in _load(_Cut(self, None), torch.arange(len(self)).split(size)):
            yield pixels_BCHW.float() / 255  # a new tensor: what came from a worker is not to be written to

    def batches(
        self, *, batch_size: int, seed: int, device: torch.device | str, augment: bool = True
    ) -> StreamingBatches:
        return StreamingBatches(self, batch_size=batch_size, seed=seed, device=device, augment=augment)

    def say_if_enlarged(self) -> None:
        """Warn when the first picture is smaller than what it will be brought to."""
        number = int(self.index_N[0])
        width, height = decode_rgb(self.pictures.read(number), where=self.pictures.name(number)).size
        if min(width, height) < self.size * 0.75:
            log.warning(
                "the first picture has %d×%d pixels and is enlarged to %d×%d, which costs time and tells nothing new; "
                "--image-size %d keeps its size",
                width,
                height,
                self.size,
                self.size,
                max(8, min(width, height)),
            )

    def sha256(self) -> str:
        """The identity of these images: which pictures, and their labels."""
        digest = hashlib.sha256(self.digest.encode())
        for tensor in (self.labels_N, self.index_N):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in [0, 1], over a thousand of the images, evenly spaced."""
        rows_M = torch.linspace(0, len(self) - 1, min(MEASURED, len(self))).long()
        total, squares, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
        for images_BCHW in self.subset(rows_M).iter_batches(max(1, eval_batch_size(self) // 4)):
            level = images_BCHW.double()
            total += level.sum((0, 2, 3))
            squares += level.square().sum((0, 2, 3))
            count += level[:, 0].numel()
        mean = total / count
        return mean.tolist(), (squares / count - mean**2).clamp_min(0).sqrt().tolist()


class StreamingBatches:
    """Batches of streamed images."""

    def __init__(
        self, images: StreamingImages, *, batch_size: int, seed: int, device: torch.device | str, augment: bool
    ) -> None:
        self.images, self.batch_size, self.seed, self.augment = images, batch_size, seed, augment
        self.device = torch.device(device)

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        cut = _Cut(self.images, (self.seed, epoch) if self.augment else None)
        rows = epoch_order(len(self.images), seed=self.seed, epoch=epoch).split(self.batch_size)
        for pixels_BCHW, row_B in _load(cut, rows, pin=self.device.type == "cuda"):
            pixels_BCHW = pixels_BCHW.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            yield Batch(
                images_BCHW=pixels_BCHW.float().div_(255),
                labels_B=self.images.labels_N[row_B].to(self.device),
                index_B=self.images.index_N[row_B].to(self.device),
                view_B=None,
            )


def sample_crop_box(width: int, height: int, random: torch.Generator) -> tuple[int, int, int, int]:
    """A random part (left, top, width, height) of 8% to all of a picture's area, of proportions 3:4 to 4:3.

    Ten attempts are made; then it is the largest centerd part whose proportions are allowed (Szegedy et al. 2015, as
    torchvision draws it).
    """
    for _ in range(10):
        area, proportion, x, y = torch.rand(4, generator=random, dtype=torch.float64).tolist()
        area = width * height * (0.08 + 0.92 * area)
        proportion = math.exp(math.log(4 / 3) * (2 * proportion - 1))
        w, h = round(math.sqrt(area * proportion)), round(math.sqrt(area / proportion))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


def random_resized_crop(picture: Image, size: int, left: int, top: int, width: int, height: int) -> Image:
    """A part of a picture as a square."""
    from PIL.Image import Resampling

    return picture.crop((left, top, left + width, top + height)).resize((size, size), Resampling.BILINEAR)


def resize_center_crop(picture: Image, size: int) -> Image:
    """The center of a picture whose shorter side is brought to a little more than `size`; one that is a square of that
    size already stays as it is."""
    from PIL.Image import Resampling

    if picture.size == (size, size):
        return picture
    if max(picture.size) > 16 * min(picture.size):  # a thread, which would be resized to gigabytes
        kept = 16 * min(picture.size)
        left, top = max(0, picture.width - kept) // 2, max(0, picture.height - kept) // 2
        picture = picture.crop((left, top, left + min(kept, picture.width), top + min(kept, picture.height)))
    shorter, longer = round(size * CLEAN_MARGIN), max(picture.size)
    longer = int(shorter * longer / min(picture.size))
    width, height = (shorter, longer) if picture.width <= picture.height else (longer, shorter)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return picture.resize((width, height), Resampling.BILINEAR).crop((left, top, left + size, top + size))


class _Cut(Dataset):
    """What the workers do: read, decode, cut. `draw` is (seed, epoch), or None for clean images."""

    def __init__(self, images: StreamingImages, draw: tuple[int, int] | None) -> None:
        self.images, self.draw = images, draw

    def __getitem__(self, row: int) -> tuple[np.ndarray, int] | UserError:
        number, size = int(self.images.index_N[row]), self.images.size
        try:
            picture = decode_rgb(self.images.pictures.read(number), where=self.images.pictures.name(number))
        except UserError as error:
            return error  # raised here, it would arrive wrapped in a worker's traceback
        if self.draw is None:
            return np.asarray(resize_center_crop(picture, size)), row
        random = generator("part", *self.draw, number)
        pixels_HWC = np.asarray(random_resized_crop(picture, size, *sample_crop_box(*picture.size, random)))
        if self.images.flip and torch.rand((), generator=random) < 0.5:
            pixels_HWC = pixels_HWC[:, ::-1]
        return pixels_HWC, row


def _load(cut: _Cut, batches: Sequence[Tensor], *, pin: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """The pixels (B, C, H, W), uint8, of each batch of rows, and the rows, in order."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than processors, as was asked
        loader = DataLoader(
            cut,
            batch_sampler=[rows_B.tolist() for rows_B in batches],
            num_workers=0 if len(batches) == 1 else min(workers(), len(batches)),
            collate_fn=_collate,
            generator=torch.Generator(),  # its own: the global one belongs to the network
        )
        iterator = iter(loader)
    for loaded in iterator:
        if isinstance(loaded, UserError):
            raise loaded
        pixels_BHWC, rows = loaded
        pixels_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2)
        yield (pixels_BCHW.pin_memory() if pin else pixels_BCHW), torch.tensor(rows)


def _collate(items: list[tuple[np.ndarray, int] | UserError]) -> tuple[np.ndarray, list[int]] | UserError:
    """Arrays, which travel through a pipe: tensors would through /dev/shm, of which containers have little."""
    pixels, rows = [], []
    for item in items:
        if isinstance(item, UserError):
            return item
        pixels.append(item[0])
        rows.append(item[1])
    return np.stack(pixels), rows
