"""Files that are whole or absent: written aside, synced, then renamed. Tensors carry a checksum that is verified."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from .errors import InUse, UserError, first_line
from .records.base import open_regular, plain, read_bytes

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

METADATA = "checkpointkd"  # our entry in a safetensors header
NESTING = "nesting"  # the tensor of a state that says where its other tensors belong
TMP_SUFFIX = ".unfinished"  # of a file that is still being written
RESTORE = "Restore it from a copy, or create it again."


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to. It is at the path once the block has ended, and never if the block fails.

    This holds even if the process or the machine dies. Errors of the block itself pass through unchanged.

    Raises:
        UserError: If the file cannot be written. What was at the path before is intact.
    """
    aside = path_aside(path)
    try:
        with _write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = io.BufferedWriter(UnfinishedFile(aside, path))
        with file:
            yield file
            file.flush()
            with _write_errors(path):
                os.fsync(file.fileno())
                if fcntl is not None:  # while it is locked: other processes remove half-written files without a lock
                    os.replace(aside, path)
        with _write_errors(path):
            if fcntl is None:  # Windows cannot rename an open file
                os.replace(aside, path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the rename itself must reach the disk
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def path_aside(path: Path) -> Path:
    """Return the path at which this process writes a file before renaming the file to `path`.

    The name has the host's: processes on two machines that share a folder may have the same number.
    """
    host = re.sub(r"\W", "-", socket.gethostname())[:40]
    return path.with_name(f"{path.name}.{host}.{os.getpid()}{TMP_SUFFIX}") if path.name else path


class UnfinishedFile(io.FileIO):
    """A new unbuffered file, which is locked while it is open. Failed writes name the path that the content is for."""

    def __init__(self, aside: Path, path: Path) -> None:
        aside.unlink(missing_ok=True)  # a leftover, or a link, which must not be followed
        super().__init__(aside, "xb")
        self._final_path = path
        _try_lock(self.fileno())

    def write(self, content: Any, /) -> int:
        with _write_errors(self._final_path):
            return super().write(content)


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"Could not write {path}: {error.strerror or error}. Previous content is intact.") from None


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write these bytes to the path, as `atomic_write` does."""
    with atomic_write(path) as file:
        file.write(content)


def atomic_copy(source: Path, path: Path) -> None:
    """Copy a file, as `atomic_write` does. Raises UserError that says which of the two files failed."""
    try:
        content = open(source, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"Could not read {source}: {error.strerror}") from None
    with content, atomic_write(path) as file:
        shutil.copyfileobj(content, file)


def remove_leftovers(folder: Path, prefix: str = "") -> None:
    """Delete the half-written files that killed processes left in this folder. Files that are being written stay."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(prefix) and re.search(rf".\.\d+{re.escape(TMP_SUFFIX)}$", name):
                leftover = folder / name
                if leftover.is_symlink() or not leftover.is_file() or _is_abandoned(leftover):
                    leftover.unlink()  # Windows refuses to delete an open file


def _is_abandoned(path: Path) -> bool:
    """Return whether no process has the lock on a half-written file."""
    file = os.open(path, os.O_RDONLY)
    try:
        return _try_lock(file)
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    """Lock an open file until it is closed; return False if another process holds its lock."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: a leftover is better than a lost file
        return False
    return True


def own_subfolder(path: Path) -> Path:
    """Return the path of a folder that we write in. The folder need not exist.

    Raises:
        UserError: If the path is a link. A downloaded folder must not make us write outside of it.
    """
    if os.path.islink(path):
        raise UserError(f"{path} is a link. Replace it by a folder, or choose another place.")
    return path


def write_json(path: Path, value: Any) -> None:
    """Write a value, records included, as indented JSON. Raises ValueError for NaN, which JSON lacks."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=plain)
    atomic_write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError that names the file if it cannot be read or is not JSON."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {first_line(error)}") from None


def jsonl_text(rows: list[dict]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values: the identity of weights in whatever file.

    >>> content_hash({"a": torch.ones(2)}) == content_hash({"a": torch.ones(2)}) != content_hash({"b": torch.ones(2)})
    True
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_key(identity: Mapping[str, Any] | list[Any]) -> str:
    """Return a key for a result that follows from these values alone."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> str:
    """Write a safetensors file with its content hash inside. Return the hash."""
    on_cpu, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes:  # safetensors refuses shared memory
            tensor = tensor.clone()
        storages.add(storage.data_ptr())
        on_cpu[name] = tensor
    sha256 = content_hash(on_cpu)
    # One entry, so that equal runs leave equal files: safetensors writes several entries in a varying order.
    entry = json.dumps({**(metadata or {}), "sha256": sha256}, sort_keys=True)
    atomic_write_bytes(path, safetensors.torch.save(on_cpu, {METADATA: entry}))
    return sha256


def load_tensors(path: Path, *, remedy: str = RESTORE) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file that `save_tensors` wrote.

    Raises:
        UserError: If the file cannot be read, or if one bit of it has changed.
    """
    read_metadata(path, remedy=remedy)  # a header that does not fit the file's size costs no memory
    content = read_bytes(path, largest=None)
    try:
        tensors = safetensors.torch.load(content)
        metadata = _own_metadata(_header(content).get("__metadata__") or {})
    except (safetensors.SafetensorError, ValueError, KeyError, RecursionError, struct.error) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}). {remedy}") from None
    if metadata.get("sha256") != content_hash(tensors):
        raise UserError(f"{path} is damaged (its checksum does not match its content). {remedy}")
    return tensors, metadata


def read_metadata(path: Path, *, remedy: str = RESTORE) -> dict[str, str]:
    """Return the metadata of a safetensors file without reading its tensors."""
    try:
        open_regular(path).close()  # safetensors would wait forever at a pipe
    except FileNotFoundError:
        raise UserError(f"There is no file {path}") from None
    except OSError as error:
        raise UserError(f"Could not read {path}: {error.strerror}") from None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return _own_metadata(file.metadata() or {})
    except (OSError, ValueError, RecursionError, MemoryError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}). {remedy}") from None


def save_state(path: Path, state: Any) -> None:
    """Write what resuming needs, nested dicts and lists of tensors and plain values, as a safetensors file.

    The tensors are numbered. One more tensor holds the nesting and the plain values as JSON.
    """
    tensors: dict[str, Tensor] = {}

    def encoded(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, Mapping):  # as pairs: in JSON, all keys would become text
            return {"pairs": [[key, encoded(entry)] for key, entry in value.items()]}
        return [encoded(entry) for entry in value] if isinstance(value, list | tuple) else value

    nesting = json.dumps(encoded(state)).encode()
    save_tensors(path, {**tensors, NESTING: torch.frombuffer(bytearray(nesting), dtype=torch.uint8)})


def load_state(path: Path) -> Any:
    """Return what `save_state` wrote; tuples are lists. Raises UserError if it is damaged."""

    def decoded(value: Any) -> Any:
        if isinstance(value, dict):
            return tensors[value["tensor"]] if "tensor" in value else {key: decoded(v) for key, v in value["pairs"]}
        return [decoded(entry) for entry in value] if isinstance(value, list) else value

    remedy = f"Remove the run directory {path.parent} to start again."
    tensors, _ = load_tensors(path, remedy=remedy)
    try:
        return decoded(json.loads(bytes(tensors[NESTING].tolist())))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}). {remedy}") from None


@contextlib.contextmanager
def locked(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder, which is created if need be.

    The operating system releases the lock when the process dies. The lock file stays: removing it would split those
    that wait for it from those that come later.

    Args:
        folder: The folder.
        wait: Seconds to wait for another process.

    Raises:
        InUse: If another process holds the lock, with its process id and host.
        UserError: If the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder} is a file, not a folder. Choose another --out.") from None
    except OSError as error:
        raise UserError(f"Could not create the folder {folder}: {error.strerror}") from None
    holder = folder / ".lock.holder"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        holder_name = _start_of(holder) or "another process"
        raise InUse(f"{folder} is in use by {holder_name}. Try again when that process has ended.") from None
    except OSError as error:
        raise UserError(f"Could not write in {folder}: {error.strerror}") from None
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            holder.unlink(missing_ok=True)  # it may be a link, which must not be followed
            with open(holder, "x") as file:
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
        remove_leftovers(folder)
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder."""
    if not (folder / ".lock").exists():
        return False
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _start_of(path: Path) -> str:
    """The first characters of a text file; none if it cannot be read."""
    try:
        return read_bytes(path)[:100].decode(errors="replace")
    except UserError:
        return ""


def _own_metadata(metadata: dict[str, str]) -> dict[str, str]:
    own = json.loads(metadata.get(METADATA, "{}"))
    if not isinstance(own, dict):
        raise ValueError("the entry of checkpointkd in its header is not a JSON object")
    return own


def _header(content: bytes) -> dict:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])
