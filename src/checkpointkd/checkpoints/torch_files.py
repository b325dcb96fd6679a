"""Read files of `torch.save` as data, without running any code in them.

The pickle in a file becomes plain data (`inert_pickle`), and each tensor a `TensorPlan`: its shape and type, and how to
read it. Only tensors that are asked for are read, straight from the open file.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, final

from torch import Tensor

from ..errors import UserError, first_line
from ..records.base import open_regular
from .inert_pickle import PickleError
from .pickled_tensors import PickledTensors, Storage
from .tensor_plans import TensorPlan, UnusableFile, filled

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of PyTorch before 1.6
LARGEST_PICKLE = 200_000_000  # bytes of the pickle in an archive
LARGEST_DIRECTORY = 1 << 24  # bytes of an archive's directory


@final
@dataclass(frozen=True)
class Content:
    """What a file holds, as plain data, and the names of the classes that are not weights and were not imported."""

    value: Any
    stood_in: tuple[str, ...]
    storages: dict[str, Tensor]  # that were read; emptied when the file closes


@contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Open a file of `torch.save`; its tensors can be read while it is open.

    Raises:
        UserError: If the file is damaged, is of another kind, or exceeds a limit.
    """
    try:
        with open_regular(path) as file:
            try:
                content = _content(path, file)
            except UserError:
                raise
            except (ValueError, RuntimeError, TypeError, LookupError, OverflowError, struct.error) as error:
                raise _damaged(path, error) from None  # a damaged archive
            try:
                yield content
            finally:
                content.storages.clear()
    except (PickleError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        raise UnusableFile(f"Could not read {path}: {error.strerror or error}") from None


def tensor_in(path: Path, file: BinaryIO) -> Tensor:
    """Return the one tensor that torch.save wrote into a file which is open."""
    try:
        plan = _content(path, file).value
        if not isinstance(plan, TensorPlan) or plan.problem:
            raise PickleError("it holds something else than a tensor")
        return plan.read()
    except (PickleError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise _damaged(path, error) from None


def _content(path: Path, file: BinaryIO) -> Content:
    first = file.read(4)
    file.seek(0)
    if first == b"PK\x03\x04":
        return _read_archive(path, file)
    if not first:
        raise UnusableFile(f"{path} is empty")
    if first[:1] not in (b"\x80", b"(", b"}", b"c", b"]"):
        raise UnusableFile(f"{path} is no file of torch.save: it begins with {_printable(first)}{_guess(first)}")
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    storages = _Places(file)
    objects = PickledTensors(file, storages)
    value = objects.unpickle(file, size)
    if value not in (MAGIC, hex(MAGIC)):
        return Content(value, objects.stood_in, objects.read)  # a bare pickle
    for _ in range(2):  # the protocol and the machine
        objects.unpickle(file, size)
    value = objects.unpickle(file, size)
    keys = objects.unpickle(file, size)
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise PickleError("its list of storages is damaged")
    storages.find(keys, objects.storages, size)
    return Content(value, objects.stood_in, objects.read)


def _read_archive(path: Path, file: BinaryIO) -> Content:
    archive = _checked(path, file)
    names = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise UnusableFile(f"{path} is a zip archive, but not one of torch.save: it has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    byteorder = names.get(f"{root}byteorder")
    if byteorder is not None and (byteorder.file_size > 10 or archive.read(byteorder) != b"little"):
        raise UnusableFile(f"{path} was written on a big-endian machine. Save it again on a little-endian machine.")

    pickled = names[pickles[0]]
    if pickled.file_size > LARGEST_PICKLE:
        raise PickleError(f"its pickle has {pickled.file_size:,} bytes")
    stream = io.BytesIO(archive.read(pickled))
    objects = PickledTensors(stream, _Entries(file, names, root))
    return Content(objects.unpickle(stream, pickled.file_size), objects.stood_in, objects.read)


def _checked(path: Path, file: BinaryIO) -> zipfile.ZipFile:
    """Open an archive after checking that it is as torch.save writes it."""
    size = file.seek(0, io.SEEK_END)
    record = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # the one that ZipFile uses
    directory = record[5] if record else 0
    if directory > LARGEST_DIRECTORY:
        raise UnusableFile(f"{path} is refused: the directory of its archive has {directory:,} bytes")
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    if any("/code/" in entry.filename or entry.filename.endswith("/constants.pkl") for entry in entries):
        raise UnusableFile(
            f"{path} is a TorchScript program. Save the state dict of its network: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)."
        )
    if not all(entry.compress_type == zipfile.ZIP_STORED for entry in entries) or (
        sum(entry.file_size for entry in entries) > size
    ):
        raise UnusableFile(f"{path} is refused: it unpacks to more than its size, unlike files of torch.save")
    if any(entry.header_offset >= size for entry in entries):
        raise UnusableFile(f"{path} is damaged: an entry of its archive begins after the end of the file")
    if len({entry.filename for entry in entries}) < len(entries):
        raise UnusableFile(f"{path} is refused: two entries have the same name")
    if min((entry.header_offset for entry in entries), default=1) != 0:
        raise UnusableFile(f"{path} is refused: it has other bytes before the archive")
    return archive


@dataclass
class _Entries:
    """The storages of an archive, each an entry `data/KEY`."""

    file: BinaryIO
    entries: dict[str, zipfile.ZipInfo]
    root: str

    def size(self, key: str) -> int | None:
        entry = self.entries.get(f"{self.root}data/{key}")
        return -1 if entry is None else entry.file_size

    def read(self, key: str, size: int) -> Tensor:
        entry = self.entries[f"{self.root}data/{key}"]
        self.file.seek(entry.header_offset)
        header = self.file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise PickleError(f"its storage {key} has no header")
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        self.file.seek(entry.header_offset + 30 + name + extra)
        content, checksum = filled(self.file, entry.file_size)
        if checksum != entry.CRC:
            raise PickleError(f"the checksum of its storage {key} does not match")
        return content[:size]


@dataclass
class _Places:
    """The storages of a file of PyTorch before 1.6: behind the pickles, each after its number of elements."""

    file: BinaryIO
    starts: dict[str, int] = field(default_factory=dict)

    def size(self, key: str) -> int | None:
        return None

    def find(self, keys: list[str], storages: dict[str, Storage], size: int) -> None:
        at = self.file.tell()
        for key in keys:
            storage = storages.get(key)
            if storage is None:
                raise PickleError("its list of storages is damaged")
            self.file.seek(at)
            numel = int.from_bytes(self.file.read(8), "little")
            self.starts[key] = at + 8
            at += 8 + storage.numel * storage.dtype.itemsize
            if numel != storage.numel or at > size:
                raise PickleError(f"its storage {key} is missing or too short")

    def read(self, key: str, size: int) -> Tensor:
        if key not in self.starts:
            raise PickleError(f"its storage {key} is missing or too short")
        self.file.seek(self.starts[key])
        return filled(self.file, size)[0]


def _printable(content: bytes) -> str:
    return ascii(content.decode("latin1"))


def _guess(first: bytes) -> str:
    """Return what a file may be by its first bytes."""
    kinds = {
        b"vers": " (a Git LFS pointer: run git lfs pull)",
        b"<!DO": " (an HTML page: download the file itself)",
        b"<htm": " (an HTML page: download the file itself)",
        b"\x89HDF": " (an HDF5 file of Keras)",
        b"GGUF": " (a GGUF file)",
        b"\x93NUM": " (a NumPy array)",
    }
    return kinds.get(first, "")


def _damaged(path: Path, error: Exception) -> UnusableFile:
    return UnusableFile(f"{path} is damaged, or is not a checkpoint: {first_line(error)[:160]}")
