"""Read files of `torch.save` as data, without running any code in them.

The pickle in a file becomes plain data (`inert_pickle`), and each tensor a `TensorPlan`: its shape and type, and how to
read it. Only tensors that are asked for are read, straight from the open file.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, final

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, first_line
from .inert_pickle import Blob, Global, PickleError, StandIn, budget, read_pickle, safe_key

DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
}
NUMPY_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of PyTorch before 1.6
CHUNK = 1 << 19
LARGEST_PICKLE = 200_000_000  # bytes of the pickle in an archive
LARGEST_DIRECTORY = 1 << 26  # bytes of an archive's directory


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


class DamagedFile(UserError):  # noqa: N818 - reads well where it is raised and caught
    """A file that is damaged or not a checkpoint; other files of its folder can still be used."""


def ready(tensor: Tensor) -> TensorPlan:
    """Return the plan of a tensor that is in memory."""
    problem = "" if tensor.layout == torch.strided and not tensor.is_meta else "not a dense tensor"
    return TensorPlan(tuple(tensor.shape), tensor.dtype, lambda: tensor, problem)


@final
@dataclass(frozen=True)
class Content:
    """What a file holds, as plain data, and the names of the classes that are not weights and were not imported."""

    value: Any
    stood_in: tuple[str, ...]
    storages: dict[str, Tensor]  # that were read; emptied when the file closes


@dataclass(frozen=True)
class _Storage:
    """A storage of a file; its bytes are read once."""

    dtype: torch.dtype
    numel: int
    content: Callable[[], Tensor]


@contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Open a file of `torch.save`; its tensors can be read while it is open.

    Raises:
        UserError: If the file is damaged, is of another kind, or exceeds a limit.
    """
    try:
        with open(path, "rb") as file:
            content = _content(path, file)
            try:
                yield content
            finally:
                content.storages.clear()
    except (PickleError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        raise UserError(f"Could not read {path}: {error.strerror or error}") from None


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
        raise DamagedFile(f"{path} is empty")
    if first[:1] not in (b"\x80", b"(", b"}", b"c", b"]"):
        raise DamagedFile(f"{path} is no file of torch.save: it begins with {_printable(first)}{_guess(first)}")
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    storages = _Places(file)
    objects = _Objects(file, storages)
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
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise DamagedFile(
            f"{path} is a TorchScript program. Save the state dict of its network: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)."
        )
    if len(pickles) != 1:
        raise DamagedFile(f"{path} is a zip archive, but not one of torch.save: it has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    byteorder = names.get(f"{root}byteorder")
    if byteorder is not None and archive.read(byteorder) != b"little":
        raise UserError(f"{path} was written on a big-endian machine. Save it again on a usual one.")

    pickled = names[pickles[0]]
    if pickled.file_size > LARGEST_PICKLE:
        raise PickleError(f"its pickle has {pickled.file_size:,} bytes")
    stream = io.BytesIO(archive.read(pickled))
    objects = _Objects(stream, _Entries(file, names, root))
    return Content(objects.unpickle(stream, pickled.file_size), objects.stood_in, objects.read)


def _checked(path: Path, file: BinaryIO) -> zipfile.ZipFile:
    """Open an archive after checking that it is as torch.save writes it."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - (1 << 17)))
    tail = file.read(1 << 17)
    end = tail.rfind(b"PK\x05\x06")
    directory = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
    if directory == 0xFFFFFFFF:
        end64 = tail.rfind(b"PK\x06\x06")
        directory = int.from_bytes(tail[end64 + 40 : end64 + 48], "little") if end64 >= 0 else 0
    if directory > LARGEST_DIRECTORY:
        raise UserError(f"{path} is refused: the directory of its archive has {directory:,} bytes")
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    if not all(entry.compress_type == zipfile.ZIP_STORED for entry in entries) or (
        sum(entry.file_size for entry in entries) > size
    ):
        raise UserError(f"{path} is refused: it unpacks to more than its size, unlike files of torch.save")
    if len({entry.filename for entry in entries}) < len(entries):
        raise UserError(f"{path} is refused: two entries have the same name")
    if min((entry.header_offset for entry in entries), default=1) != 0:
        raise UserError(f"{path} is refused: it has other bytes before the archive")
    return archive


class _Storages(Protocol):
    """Where the storages of a file are."""

    def size(self, key: str) -> int | None:
        """Return the bytes of a storage: -1 where it is missing, None where that is not known yet."""
        ...

    def read(self, key: str, size: int) -> Tensor:
        """Return the bytes of a storage."""
        ...


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
        content, checksum = _filled(self.file, entry.file_size)
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

    def find(self, keys: list[str], storages: dict[str, _Storage], size: int) -> None:
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
        return _filled(self.file, size)[0]


def _filled(file: BinaryIO, size: int) -> tuple[Tensor, int]:
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


@dataclass
class _Objects:
    """Turns what a pickle of torch.save would call into plain data and plans."""

    blobs: BinaryIO  # the file that holds long byte strings of the pickle
    files: _Storages
    charge: Callable[[int], None] = field(default_factory=budget)
    names: dict[str, None] = field(default_factory=dict)
    storages: dict[str, _Storage] = field(default_factory=dict)
    read: dict[str, Tensor] = field(default_factory=dict)

    @property
    def stood_in(self) -> tuple[str, ...]:
        return tuple(self.names)

    def unpickle(self, file: BinaryIO, size: int) -> Any:
        return read_pickle(file, size=size, make=self.make, persistent=self.persistent, charge=self.charge)

    # Storages

    def persistent(self, identity: Any) -> Any:
        if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
            raise PickleError("its pickle refers to something that is not a storage")
        _, kind, key, _, numel = identity[:5]
        name = kind.name.rpartition(".")[2].removesuffix("Storage") if isinstance(kind, Global) else ""
        if not (isinstance(key, str) and type(numel) is int and numel >= 0):
            raise PickleError("its pickle has a storage without a name or size")
        if key not in self.storages:
            self.storages[key] = self._storage(key, STORAGES.get(name), numel)
        return self.storages[key]

    def _storage(self, key: str, dtype: torch.dtype | None, numel: int) -> _Storage:
        if dtype is None:  # quantized types
            return _Storage(torch.uint8, 0, lambda: torch.empty(0, dtype=torch.uint8))
        size, available = numel * dtype.itemsize, self.files.size(key)
        if available is not None and available < size:
            raise PickleError(f"its storage {key} is missing or too short")

        def content() -> Tensor:
            if key not in self.read:
                self.read[key] = self.files.read(key, size)
            return self.read[key]

        return _Storage(dtype, numel, content)

    # Calls

    def make(self, name: str, arguments: tuple) -> Any:
        name = name.replace("._core.", ".core.").replace("__builtin__.", "builtins.")
        function = _CALLS.get(name)
        if function is not None:
            return function(self, arguments)
        if name.endswith(".__setstate__"):
            return NotImplemented
        if not name.startswith(_SETTINGS):
            self.names[name] = None
        return NotImplemented

    def pairs(self, arguments: tuple) -> Any:
        """`OrderedDict([(key, value), …])`, or a dict as the argument."""
        content = arguments[0] if arguments else {}
        if isinstance(content, dict):
            return content if arguments else {}
        self.charge(100 * len(content))
        return {safe_key(key): value for key, value in content}

    def list_of(self, arguments: tuple) -> Any:
        elements = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else []
        self.charge(8 * len(elements))
        return list(elements)

    def tuple_of(self, arguments: tuple) -> Any:
        return tuple(self.list_of(arguments))

    def latin1(self, arguments: tuple) -> Any:
        text, encoding = arguments
        self.charge(len(text))
        return text.encode("latin1") if encoding == "latin1" else NotImplemented

    def named_class(self, arguments: tuple) -> Any:
        """`copyreg._reconstructor(class, base, state)`."""
        kind = arguments[0]
        return self._object(kind.name) if isinstance(kind, Global) else NotImplemented

    def _object(self, name: str) -> StandIn:
        self.names[name] = None
        return StandIn(name)

    # Tensors

    def tensor(self, arguments: tuple) -> Any:
        storage, offset, shape, stride, *_ = arguments
        return self._plan(storage, offset, shape, stride, storage.dtype)

    def tensor_v3(self, arguments: tuple) -> Any:
        storage, offset, shape, stride, _, _, dtype, *_ = arguments
        return self._plan(storage, offset, shape, stride, DTYPES[dtype.name])

    def first(self, arguments: tuple) -> Any:
        """`_rebuild_parameter(tensor, …)`."""
        return arguments[0]

    def typed(self, arguments: tuple) -> Any:
        """`_rebuild_from_type_v2(function, type, arguments, state)`."""
        function, _, inner, _ = arguments
        made = self.make(function.name, inner)
        return made if isinstance(made, TensorPlan) else NotImplemented

    def unreadable(self, kind: str) -> TensorPlan:
        return TensorPlan((), torch.float32, lambda: torch.empty(()), kind)

    def _plan(self, storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype) -> TensorPlan:
        if not isinstance(storage, _Storage):
            raise PickleError("its pickle has a tensor without a storage")
        numbers = (offset, *shape, *stride)
        if len(shape) != len(stride) or len(shape) > 64 or not all(type(n) is int and n >= 0 for n in numbers):
            raise PickleError("its pickle has a tensor of an impossible shape")
        numel = math.prod(shape)
        available = storage.numel * storage.dtype.itemsize // dtype.itemsize
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        if numel and last >= available:
            raise PickleError("its pickle has a tensor outside its storage")
        if numel > available:
            return TensorPlan(tuple(shape), dtype, lambda: torch.empty(()), "expanded beyond its storage")
        read = lambda: storage.content().view(dtype).as_strided(shape, stride, offset)  # noqa: E731
        return TensorPlan(tuple(shape), dtype, read)

    # NumPy

    def number(self, arguments: tuple) -> Any:
        dtype, content = _dtype(arguments[0]), arguments[1]
        if dtype is None or not isinstance(content, bytes) or len(content) != dtype.itemsize:
            return NotImplemented
        return np.frombuffer(content, dtype).item()

    def array_state(self, arguments: tuple) -> Any:
        state = arguments[0].state
        if not (isinstance(state, tuple) and len(state) == 5):
            return NotImplemented
        _, shape, dtype, fortran, content = state
        return self._array(content, dtype, shape, bool(fortran))

    def array_of_buffer(self, arguments: tuple) -> Any:
        content, dtype, shape, order = arguments
        return self._array(content, dtype, shape, order == "F")

    def _array(self, content: Any, named: Any, shape: Any, fortran: bool) -> Any:
        dtype = _dtype(named)
        if dtype is None or not isinstance(content, bytes | Blob) or not isinstance(shape, tuple):
            return NotImplemented
        size = len(content) if isinstance(content, bytes) else content.size
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * dtype.itemsize != size:
            raise PickleError("its pickle has an array of an impossible shape")

        def read() -> Tensor:
            if isinstance(content, bytes):
                flat = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0)
            else:
                self.blobs.seek(content.start)
                flat, _ = _filled(self.blobs, content.size)
            array = flat.numpy().view(dtype).reshape(shape, order="F" if fortran else "C")
            return torch.from_numpy(np.array(array, dtype.newbyteorder("="), order="C"))

        return TensorPlan(shape, torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype, read)


def _dtype(named: Any) -> np.dtype | None:
    """Return a NumPy type by its name and byte order; None for types that are not numbers."""
    if not (isinstance(named, StandIn) and named.name.endswith("numpy.dtype") and named.arguments):
        return None
    code, state = named.arguments[0], named.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "=") else "<"
    return np.dtype(f"{order}{code}") if isinstance(code, str) and code in NUMPY_NUMBERS else None


# What a pickle may call, by its name; NumPy's `_core` and Python 2's `__builtin__` have their other names.
_CALLS: dict[str, Callable[[_Objects, tuple], Any]] = {
    "collections.OrderedDict": _Objects.pairs,
    "collections.defaultdict": lambda objects, _: {},
    "collections.Counter": _Objects.pairs,
    "collections.deque": _Objects.list_of,
    "builtins.set": _Objects.list_of,
    "builtins.frozenset": _Objects.list_of,
    "builtins.list": _Objects.list_of,
    "builtins.tuple": _Objects.tuple_of,
    "torch.Size": _Objects.tuple_of,
    "_codecs.encode": _Objects.latin1,
    "copy_reg._reconstructor": _Objects.named_class,
    "copyreg._reconstructor": _Objects.named_class,
    "torch._utils._rebuild_tensor": _Objects.tensor,
    "torch._utils._rebuild_tensor_v2": _Objects.tensor,
    "torch._utils._rebuild_tensor_v3": _Objects.tensor_v3,
    "torch._utils._rebuild_parameter": _Objects.first,
    "torch._utils._rebuild_parameter_with_state": _Objects.first,
    "torch._tensor._rebuild_from_type_v2": _Objects.typed,
    "torch._utils._rebuild_qtensor": lambda objects, _: objects.unreadable("quantized"),
    "torch._utils._rebuild_sparse_tensor": lambda objects, _: objects.unreadable("sparse"),
    "torch._utils._rebuild_nested_tensor": lambda objects, _: objects.unreadable("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda objects, _: objects.unreadable("without content"),
    "torch._utils._rebuild_wrapper_subclass": lambda objects, _: objects.unreadable("of a special class"),
    "numpy.core.multiarray.scalar": _Objects.number,
    "numpy.core.multiarray._reconstruct": lambda objects, _: NotImplemented,
    "numpy.core.multiarray._reconstruct.__setstate__": _Objects.array_state,
    "numpy.core.numeric._frombuffer": _Objects.array_of_buffer,
}
# Settings that trainers store: not worth a word.
_SETTINGS = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.core.",
    "numpy.random.",
    "datetime.",
    "pathlib.",
    "torch.device",
    "torch.torch_version",
)


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


def _damaged(path: Path, error: Exception) -> DamagedFile:
    return DamagedFile(f"{path} is damaged, or is not a checkpoint: {first_line(error)[:160]}")
