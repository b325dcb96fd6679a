"""Decode images with Pillow. Every error names the image."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from ..config import OnProgress
from ..errors import UserError, first_line
from .workers import usable_cpus

if TYPE_CHECKING:
    from PIL.Image import Image


class EncodedImages(Protocol):
    """Encoded images, by number. Workers get a copy, so it can be pickled.

    If its class has a true attribute `turns`, images are turned as their cameras say, see `decode_rgb`.
    """

    def read(self, number: int) -> bytes:
        """Return the bytes of an image; raise UserError if they cannot be read."""
        ...

    def name(self, number: int) -> str:
        """Return the image's name for errors."""
        ...


def decode_number(images: EncodedImages, number: int) -> Image:
    """Return one of the images, decoded. Raises UserError as `decode_rgb` does."""
    return decode_rgb(images.read(number), name=images.name(number), turn=getattr(images, "turns", False))


def decode_rgb(content: bytes, *, name: str, turn: bool = False) -> Image:
    """Return the decoded image in three channels of 8 bits.

    Args:
        content: The encoded image.
        name: Its name for errors.
        turn: Turn the image as its camera says, as the library `datasets` does. torchvision and timm ignore the stored
            orientation.

    Raises:
        UserError: If the image cannot be decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not content:
        raise UserError(f"{name} is empty. Replace it by an intact copy.")
    try:
        image = Image.open(io.BytesIO(content))
        if image.mode[0] in "IF":  # Pillow, and each loader that uses Pillow, clips such pixels at 255
            raise UserError(f"{name} has more than 8 bits per channel (mode {image.mode}). Save it with 8 bits.")
        if turn:
            image = ImageOps.exif_transpose(image)
        if "transparency" in image.info:
            image = image.convert("RGBA")
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(
            f"{name} is not an image in a format that Pillow reads. Replace it by an intact copy."
        ) from None
    except Exception as error:  # Pillow's decoders raise anything for broken files
        raise UserError(f"{name} cannot be decoded ({first_line(error)}). Replace it by an intact copy.") from None


def decode_all(
    images: EncodedImages,
    count: int,
    *,
    size: tuple[int, int],
    task: str,
    on_progress: OnProgress,
    remedy: str = "",
) -> Tensor:
    """Decode the first `count` images.

    Args:
        images: The encoded images.
        count: How many to decode.
        size: Height and width that every image must have.
        task: The name of the task for `on_progress`.
        on_progress: Called after each portion.
        remedy: What to do about an image of another size; a sentence for the error.

    Returns:
        Pixels (N, 3, H, W), uint8.

    Raises:
        UserError: If an image cannot be decoded or has another size.
    """
    height, width = size
    pixels_NCHW = np.empty((count, 3, height, width), np.uint8)

    def decode(numbers: range) -> int:
        for number in numbers:
            image = decode_number(images, number)
            if image.size != (width, height):
                raise UserError(f"{images.name(number)} is {image.width}×{image.height}, not {width}×{height}{remedy}")
            pixels_NCHW[number] = np.asarray(image).transpose(2, 0, 1)
        return numbers.stop

    portions = [range(first, min(first + 250, count)) for first in range(0, count, 250)]
    with ThreadPoolExecutor(usable_cpus()) as pool:  # Pillow releases the GIL while it decodes
        for done in pool.map(decode, portions):
            on_progress(task, done, count)
    return torch.from_numpy(pixels_NCHW)


def require_pillow(source: str) -> None:
    """Raise UserError, with the command that installs it, if Pillow is not installed."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise UserError(f"Reading {source} needs Pillow. Run: pip install 'checkpointkd[data]'.") from None
