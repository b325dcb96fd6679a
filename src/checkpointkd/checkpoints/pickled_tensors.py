"""Turn what a pickle of `torch.save` would call into plain data and plans of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from .inert_pickle import Blob, Global, PickleError, StandIn, budget, read_pickle, safe_key
from .tensor_plans import DTYPES, TensorPlan, filled

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
MOST_EXPANDED = 1 << 26
NUMPY_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


@dataclass(frozen=True)
class Storage:
    """A storage of a file; its bytes are read once."""

    dtype: torch.dtype
    numel: int
    content: Callable[[], Tensor]


class Storages(Protocol):
    """Where the storages of a file are."""

    def size(self, key: str) -> int | None:
        """Return the bytes of a storage: -1 where it is missing, None where that is not known yet."""
        ...

    def read(self, key: str, size: int) -> Tensor:
        """Return the bytes of a storage."""
        ...


@dataclass
class PickledTensors:
    """Turns what a pickle of torch.save would call into plain data and plans."""

    blobs: BinaryIO  # the file that holds long byte strings of the pickle
    files: Storages
    charge: Callable[[int], None] = field(default_factory=budget)
    names: dict[str, None] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    read: dict[str, Tensor] = field(default_factory=dict)
    expanded: int = 0  # bytes of tensors that are larger than their storage

    @property
    def stood_in(self) -> tuple[str, ...]:
        return tuple(self.names)

    def unpickle(self, file: BinaryIO, size: int) -> Any:
        return read_pickle(file, size=size, make=self.make, persistent=self.persistent, charge=self.charge)

    # Storages

    def persistent(self, identity: Any) -> Any:
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            return identity[1]  # a class with its source, in files of PyTorch before 1.6
        if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
            raise PickleError("its pickle refers to something that is not a storage")
        _, kind, key, _, numel, *view = identity
        if view and view[0] is not None:
            raise PickleError("its pickle has a view of a storage, as only PyTorch before 0.4 wrote")
        name = kind.name.rpartition(".")[2].removesuffix("Storage") if isinstance(kind, Global) else ""
        if not (isinstance(key, str) and type(numel) is int and numel >= 0):
            raise PickleError("its pickle has a storage without a name or size")
        if key not in self.storages:
            self.storages[key] = self._storage(key, STORAGES.get(name), numel)
        return self.storages[key]

    def _storage(self, key: str, dtype: torch.dtype | None, numel: int) -> Storage:
        if dtype is None:  # quantized types
            return Storage(torch.uint8, 0, lambda: torch.empty(0, dtype=torch.uint8))
        size, available = numel * dtype.itemsize, self.files.size(key)
        if available is not None and available < size:
            raise PickleError(f"its storage {key} is missing or too short")

        def content() -> Tensor:
            if key not in self.read:
                self.read[key] = self.files.read(key, size)
            return self.read[key]

        return Storage(dtype, numel, content)

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
        if isinstance(text, Blob) and encoding == "latin1":
            return Blob(text.start, text.size, latin1=True)
        if not isinstance(text, str) or encoding != "latin1":
            return NotImplemented
        self.charge(len(text))
        return text.encode("latin1")

    def named_class(self, arguments: tuple) -> Any:
        """`copyreg._reconstructor(class, base, state)`."""
        kind = arguments[0]
        return self._object(kind.name) if isinstance(kind, Global) else NotImplemented

    def _object(self, name: str) -> StandIn:
        self.names[name] = None
        return StandIn(name)

    # Tensors

    def tensor(self, arguments: tuple) -> Any:
        storage, offset, shape, stride, *rest = arguments
        return self._plan(storage, offset, shape, stride, storage.dtype, rest[2:])

    def tensor_v3(self, arguments: tuple) -> Any:
        storage, offset, shape, stride, _, _, dtype, *metadata = arguments
        return self._plan(storage, offset, shape, stride, DTYPES[dtype.name], metadata)

    def first(self, arguments: tuple) -> Any:
        """`_rebuild_parameter(tensor, …)`."""
        return arguments[0]

    def typed(self, arguments: tuple) -> Any:
        """`_rebuild_from_type_v2(function, type, arguments, state)`."""
        function, _, inner, _ = arguments
        if _CALLS.get(function.name) is PickledTensors.typed:
            return NotImplemented
        made = self.make(function.name, inner)
        return made if isinstance(made, TensorPlan) else NotImplemented

    def unreadable(self, kind: str) -> TensorPlan:
        return TensorPlan((), torch.float32, lambda: torch.empty(()), kind)

    def _plan(
        self, storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype, metadata: Sequence[Any]
    ) -> TensorPlan:
        """Return the plan of a view of a storage. Metadata may say that it is the negative or the conjugate of it."""
        if not isinstance(storage, Storage):
            raise PickleError("its pickle has a tensor without a storage")
        numbers = (offset, *shape, *stride)
        self.charge(1500)
        possible = all(type(n) is int and 0 <= n < 1 << 40 for n in numbers)
        if len(shape) != len(stride) or len(shape) > 64 or not possible:
            raise PickleError("its pickle has a tensor of an impossible shape")
        numel = math.prod(shape)
        if not numel and math.prod(filter(None, shape)) >= 1 << 60:
            raise PickleError("its pickle has a tensor of an impossible shape")
        available = storage.numel * storage.dtype.itemsize // dtype.itemsize
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        if numel and last >= available:
            raise PickleError("its pickle has a tensor outside its storage")
        if numel > available:  # an expanded tensor, such as torch.zeros(1).expand(10)
            self.expanded += numel * dtype.itemsize
            if self.expanded > MOST_EXPANDED:
                return TensorPlan(tuple(shape), dtype, lambda: torch.empty(()), "expanded beyond its storage")
        bits = metadata[0] if metadata and isinstance(metadata[0], dict) else {}

        def read() -> Tensor:
            content = storage.content()[: available * dtype.itemsize].view(dtype)
            tensor = content.as_strided(shape, stride, offset) if numel else torch.empty(tuple(shape), dtype=dtype)
            tensor = tensor.conj_physical() if bits.get("conj") else tensor
            return -tensor if bits.get("neg") else tensor

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
        content, dtype, shape, order, *axes = arguments
        plan = self._array(content, dtype, shape, order == "F")
        if order != "K" or not isinstance(plan, TensorPlan) or not axes or axes[0] is None:
            return plan
        axis_order = tuple(axes[0])
        if sorted(axis_order) != list(range(len(plan.shape))):
            raise PickleError("its pickle has an array of an impossible shape")
        shape = tuple(plan.shape[axis] for axis in axis_order)
        return TensorPlan(shape, plan.dtype, lambda: plan.read().permute(axis_order).contiguous())

    def _array(self, content: Any, named: Any, shape: Any, fortran: bool) -> Any:
        dtype = _dtype(named)
        if dtype is None or not isinstance(content, bytes | Blob) or not isinstance(shape, tuple):
            return NotImplemented
        self.charge(1500)
        expected = math.prod(shape) * dtype.itemsize if all(type(n) is int and n >= 0 for n in shape) else -1
        size = len(content) if isinstance(content, bytes) else content.size
        fits = expected <= size <= 2 * expected if isinstance(content, Blob) and content.latin1 else size == expected
        if not fits:
            raise PickleError("its pickle has an array of an impossible shape")

        def read() -> Tensor:
            if isinstance(content, bytes):
                flat = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0)
            else:
                self.blobs.seek(content.start)
                flat, _ = filled(self.blobs, content.size)
                if content.latin1:
                    flat = torch.frombuffer(bytearray(_from_latin1(flat, expected)), dtype=torch.uint8)
            array = flat.numpy().view(dtype).reshape(shape, order="F" if fortran else "C")
            return torch.from_numpy(np.array(array, dtype.newbyteorder("="), order="C"))

        return TensorPlan(shape, torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype, read)


def _from_latin1(content: Tensor, size: int) -> bytes:
    """Return the bytes that a text of Latin-1 stands for."""
    try:
        decoded = bytes(content.numpy()).decode("utf-8").encode("latin1")
    except UnicodeError:
        decoded = b""
    if len(decoded) != size:
        raise PickleError("its pickle has an array of an impossible shape")
    return decoded


def _dtype(named: Any) -> np.dtype | None:
    """Return a NumPy type by its name and byte order; None for types that are not numbers."""
    if not (isinstance(named, StandIn) and named.name.endswith("numpy.dtype") and named.arguments):
        return None
    code, state = named.arguments[0], named.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "=") else "<"
    return np.dtype(f"{order}{code}") if isinstance(code, str) and code in NUMPY_NUMBERS else None


# What a pickle may call, by its name; NumPy's `_core` and Python 2's `__builtin__` have their other names.
_CALLS: dict[str, Callable[[PickledTensors, tuple], Any]] = {
    "collections.OrderedDict": PickledTensors.pairs,
    "collections.defaultdict": lambda objects, _: {},
    "collections.Counter": PickledTensors.pairs,
    "collections.deque": PickledTensors.list_of,
    "builtins.set": PickledTensors.list_of,
    "builtins.frozenset": PickledTensors.list_of,
    "builtins.list": PickledTensors.list_of,
    "builtins.tuple": PickledTensors.tuple_of,
    "torch.Size": PickledTensors.tuple_of,
    "_codecs.encode": PickledTensors.latin1,
    "copy_reg._reconstructor": PickledTensors.named_class,
    "copyreg._reconstructor": PickledTensors.named_class,
    "torch._utils._rebuild_tensor": PickledTensors.tensor,
    "torch._utils._rebuild_tensor_v2": PickledTensors.tensor,
    "torch._utils._rebuild_tensor_v3": PickledTensors.tensor_v3,
    "torch._utils._rebuild_parameter": PickledTensors.first,
    "torch._utils._rebuild_parameter_with_state": PickledTensors.first,
    "torch._tensor._rebuild_from_type_v2": PickledTensors.typed,
    "torch._utils._rebuild_qtensor": lambda objects, _: objects.unreadable("quantized"),
    "torch._utils._rebuild_sparse_tensor": lambda objects, _: objects.unreadable("sparse"),
    "torch._utils._rebuild_nested_tensor": lambda objects, _: objects.unreadable("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda objects, _: objects.unreadable("without content"),
    "torch._utils._rebuild_wrapper_subclass": lambda objects, _: objects.unreadable("of a special class"),
    "numpy.core.multiarray.scalar": PickledTensors.number,
    "numpy.core.multiarray._reconstruct": lambda objects, _: NotImplemented,
    "numpy.core.multiarray._reconstruct.__setstate__": PickledTensors.array_state,
    "numpy.core.numeric._frombuffer": PickledTensors.array_of_buffer,
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
