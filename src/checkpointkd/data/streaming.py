"""Images that are too many or too large for memory: worker processes read, decode and crop them as they are needed.

The result is a function of (seed, epoch, number of the image), whatever the worker or the batch.
Letters in names: N images, B batch, C channels, H W height and width, M some of the images.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from ..config import Augmentation, EvalTransform
from ..ranks import ALONE, Ranks
from ..seeding import generator
from .image_io import EncodedImages, decode_number
from .images import CROPS, estimated_statistics, eval_batch_size
from .loading import Draw, LoadedBatches, as_floats, load_rows

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("checkpointkd")

IMAGENET = EvalTransform()
SAMPLED = 100  # images whose bytes are part of a data set's identity
CROP_KEY = "part"  # a key of the random draw of crops: another word would change every result


@final
@dataclass(frozen=True, eq=False)
class StreamingImages:
    """Labeled images in files, resized to squares of `size` pixels.

    Training images are random resized crops, possibly flipped, as in torchvision's RandomResizedCrop. Images without
    augmentation are center crops.
    """

    encoded: EncodedImages
    digest: str  # identifies the images without reading all of them, see `sample_digest`
    labels_N: Tensor
    index_N: Tensor
    size: int
    flip: bool = True
    transform: EvalTransform = IMAGENET

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return 3, self.size, self.size

    def subset(self, rows_M: Tensor) -> StreamingImages:
        """Return the images of these rows."""
        return replace(self, labels_N=self.labels_N[rows_M], index_N=self.index_N[rows_M])

    def to_float(self) -> Tensor:
        """Return all images without augmentation, as floats in [0, 1]."""
        return torch.cat(list(self.iter_batches(eval_batch_size(self))))

    def iter_batches(self, size: int) -> Iterator[Tensor]:
        """Yield the images without augmentation, in order, at most `size` at a time."""
        for pixels_BCHW, _ in load_rows(self, torch.arange(len(self)).split(size)):
            yield as_floats(pixels_BCHW)

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        augmentation: Augmentation | None = CROPS,
        ranks: Ranks = ALONE,
    ) -> LoadedBatches:
        """Return batches to train on."""
        settings: Any = {"batch_size": batch_size, "seed": seed, "device": device, "ranks": ranks}
        return LoadedBatches(self, augmentation=augmentation, **settings)

    def read(self, row: int, draw: Draw | None) -> np.ndarray:
        """Return the pixels (size, size, 3) of an image, augmented as a function of `draw`, or unchanged."""
        from PIL.Image import Transpose

        number = int(self.index_N[row])
        image = decode_number(self.encoded, number)
        if draw is None:
            return np.array(resize_center_crop(image, self.size, self.transform))
        random = generator(CROP_KEY, *draw, number)
        image = resized_crop(image, self.size, *sample_crop_box(*image.size, random))
        if self.flip and torch.rand((), generator=random) < 0.5:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        return np.array(image)

    def warn_if_enlarged(self) -> None:
        """Warn if the first image is smaller than `size`."""
        number = int(self.index_N[0])
        width, height = decode_number(self.encoded, number).size
        if min(width, height) < self.size * 0.75:
            log.warning(
                "The first image has %d×%d pixels and is enlarged to %d×%d, which costs time. A network that was "
                "trained on small images is less accurate on enlarged ones. `train --image-size %d` keeps the size.",
                width,
                height,
                self.size,
                self.size,
                max(8, min(width, height)),
            )

    def sha256(self) -> str:
        """Return the identity of these images: the hash of their digest, labels and order."""
        digest = hashlib.sha256(self.digest.encode())
        for tensor in (self.labels_N, self.index_N):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel, over 1,000 evenly spaced images."""
        return estimated_statistics(self)


def sample_numbers(count: int) -> list[int]:
    """Return the numbers of 100 evenly spaced images."""
    return sorted({round(number) for number in np.linspace(0, count - 1, min(SAMPLED, count))})


def sample_digest(encoded: EncodedImages, count: int) -> str:
    """Return a hash of the bytes of 100 evenly spaced images: reading all of a large data set would take hours."""
    digest = hashlib.sha256(str(count).encode())
    for number in sample_numbers(count):
        digest.update(hashlib.sha256(encoded.read(number)).digest())
    return digest.hexdigest()


def sample_crop_box(width: int, height: int, random: torch.Generator) -> tuple[int, int, int, int]:
    """Draw a crop of 8% to 100% of an image's area with an aspect ratio from 3:4 to 4:3 (Szegedy et al. 2015).

    As in torchvision, ten attempts are made. Then the box is the largest centered one of an allowed aspect ratio.

    Returns:
        Left, top, width and height in pixels.
    """
    for _ in range(10):
        area, ratio, x, y = torch.rand(4, generator=random, dtype=torch.float64).tolist()
        area = width * height * (0.08 + 0.92 * area)
        ratio = math.exp(math.log(4 / 3) * (2 * ratio - 1))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


def resized_crop(image: Image, size: int, left: int, top: int, width: int, height: int) -> Image:
    """Return a crop of an image, resized to a square."""
    from PIL.Image import Resampling

    return image.crop((left, top, left + width, top + height)).resize((size, size), Resampling.BILINEAR)


def resize_center_crop(image: Image, size: int, transform: EvalTransform = IMAGENET) -> Image:
    """Return an image as a square of `size` pixels, without augmentation.

    With the default transform, an image that is already such a square stays as it is.
    """
    from PIL.Image import Resampling

    resampling = Resampling[transform.interpolation.upper()]
    if image.size == (size, size) and transform == IMAGENET:
        return image
    is_strip = max(image.size) > 16 * min(image.size)
    if is_strip and transform.resize == "crop":  # it would be resized to gigabytes
        most = 16 * min(image.size)
        left, top = max(0, image.width - most) // 2, max(0, image.height - most) // 2
        image = image.crop((left, top, left + min(most, image.width), top + min(most, image.height)))
    shorter = math.floor(size / transform.crop_share + 1e-6)  # as timm and transformers; the share may be a quotient
    longer = shorter if transform.resize == "squash" else int(shorter * max(image.size) / min(image.size))
    width, height = (shorter, longer) if image.width <= image.height else (longer, shorter)
    whole = round if transform.crop_offset == "round" else int
    left, top = whole((width - size) / 2), whole((height - size) / 2)
    return image.resize((width, height), resampling).crop((left, top, left + size, top + size))
