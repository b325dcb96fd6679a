"""Tensors of files that are not read yet."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, final

import torch
from torch import Tensor

from ..errors import UserError
from .inert_pickle import PickleError

DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
CHUNK = 1 << 19


@final
@dataclass(frozen=True, eq=False)
class TensorPlan:
    """A tensor in a file that is not read yet. `problem` says why it cannot be read: sparse, quantized, …"""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    problem: str = ""

    @property
    def bytes(self) -> int:
        """The size of the tensor in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


class UnusableFile(UserError):  # noqa: N818 - reads well where it is raised and caught
    """A file that is damaged, refused or not a checkpoint; other files of its folder can still be used."""


def ready(tensor: Tensor) -> TensorPlan:
    """Return the plan of a tensor that is in memory."""
    problem = "" if tensor.layout == torch.strided and not tensor.is_meta else "not a dense tensor"
    return TensorPlan(tuple(tensor.shape), tensor.dtype, lambda: tensor, problem)


def filled(file: BinaryIO, size: int) -> tuple[Tensor, int]:
    """Return the next bytes of a file and their checksum, computed while they are in the processor's cache."""
    content, checksum, at = torch.empty(size, dtype=torch.uint8), 0, 0
    view = memoryview(content.numpy())  # pyright: ignore[reportArgumentType]
    while at < size:
        part = view[at : at + CHUNK]
        count = file.readinto(part)  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise PickleError("it ends too early")
        checksum = zlib.crc32(part[:count], checksum)
        at += count
    return content, checksum
