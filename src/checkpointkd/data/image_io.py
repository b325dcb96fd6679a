"""Pictures in files, read by Pillow; whatever is wrong with one is said in one sentence that names it."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from ..config import OnProgress
from ..errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


class EncodedImages(Protocol):
    """Encoded pictures in some store, by number; it may travel to other processes."""

    def read(self, number: int) -> bytes:
        """The encoded picture; raises UserError when it can't be had."""
        ...

    def name(self, number: int) -> str:
        """What to call it when it can't be read."""
        ...


def decode_rgb(content: bytes, *, where: str) -> Image:
    """The picture in these bytes, decoded, in three channels of 8 bits whatever it came in; raises UserError that says
    where. As with torchvision and timm, a camera's note that it was held on its side is not heeded."""
    from PIL import Image, UnidentifiedImageError

    if not len(content) > 0:
        raise UserError(f"{where} is empty; replace it by an intact copy")
    try:
        picture = Image.open(io.BytesIO(content))
        if picture.mode == "F":
            raise ValueError("its pixels are fractions; save it with 8 bits")
        if picture.mode.startswith("I"):  # 16 bits, or 32 of which 16 are used
            levels = np.asarray(picture).astype(np.int64)
            picture = Image.fromarray((levels >> (8 if levels.max() > 255 else 0)).clip(0, 255).astype(np.uint8))
        if "transparency" in picture.info:
            picture = picture.convert("RGBA")
        return picture.convert("RGB")
    except UnidentifiedImageError:
        raise UserError(f"{where} is no picture in a format that Pillow knows; replace it by an intact copy") from None
    except Exception as error:  # Pillow's formats raise anything at broken files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where} can't be read ({reason}); replace it by an intact copy") from None


def decode_all(
    pictures: EncodedImages, count: int, *, size: tuple[int, int], task: str, tell: OnProgress, way_out: str = ""
) -> Tensor:
    """The first `count` pictures as pixels (N, 3, H, W), uint8; raises UserError for one of another size (H, W), with
    what to do about it."""
    height, width = size
    pixels_NCHW = np.empty((count, 3, height, width), np.uint8)

    def decode(numbers: range) -> int:
        for number in numbers:
            name = pictures.name(number)
            picture = decode_rgb(pictures.read(number), where=name)
            if picture.size != (width, height):
                raise UserError(f"{name} is {picture.width}×{picture.height}, not {width}×{height}{way_out}")
            pixels_NCHW[number] = np.asarray(picture).transpose(2, 0, 1)
        return numbers.stop

    portions = [range(first, min(first + 250, count)) for first in range(0, count, 250)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets other threads run while it decodes
        for done in pool.map(decode, portions):
            tell(task, done, count)
    return torch.from_numpy(pixels_NCHW)


def needs_pillow(what: str) -> None:
    """Raise UserError, with the way to get it, where Pillow isn't installed."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise UserError(f"reading {what} needs Pillow; pip install 'checkpointkd[data]'") from None
