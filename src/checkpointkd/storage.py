"""Files that are whole or absent: written aside, synced, renamed; tensors carry a checksum that is read back."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from .errors import UserError, first_line
from .records import plain

METADATA = "checkpointkd"  # the entry of a safetensors header that is ours
TMP_SUFFIX = ".unfinished"  # the ending of a file that is still being written


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Put these bytes at the path, whole or not at all, even if the process or the machine dies here."""
    with atomic_write(path) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which is at the path once the block has ended, and not at all if it fails."""
    aside = path.with_name(f"{path.name}.{os.getpid()}{TMP_SUFFIX}") if path.name else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror or error}; what was there before is intact") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the rename itself must reach the disk
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written in this folder; call it only when holding the lock."""
    for leftover in folder.glob(f"*{TMP_SUFFIX}"):
        if re.fullmatch(rf".+\.\d+{re.escape(TMP_SUFFIX)}", leftover.name):
            leftover.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value, records included, as indented JSON, whole or not at all. NaN raises ValueError: it is not JSON."""
    atomic_write_bytes(
        path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=plain) + "\n").encode()
    )


def read_json(path: Path) -> Any:
    """Read a JSON file of ours; raises UserError that names the file when it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"could not read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {first_line(error)}") from None


def jsonl_text(rows: list[dict]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values: the identity of weights, whatever file they came in.

    >>> content_hash({"a": torch.ones(2)}) == content_hash({"a": torch.ones(2)}) != content_hash({"b": torch.ones(2)})
    True
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_key(pinned: dict[str, Any]) -> str:
    """A name for what is kept of an answer that follows from all this."""
    return hashlib.sha256(json.dumps(pinned, sort_keys=True).encode()).hexdigest()[:32]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> str:
    """Write a safetensors file, whole or not at all, with its content hash inside; returns the hash."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    sha256 = content_hash(plain)
    # One entry: safetensors writes several in an order that differs from run to run, and equal runs leave equal files.
    entry = json.dumps({**(metadata or {}), "sha256": sha256}, sort_keys=True)
    atomic_write_bytes(path, safetensors.torch.save(plain, {METADATA: entry}))
    return sha256


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a file that save_tensors wrote; raises UserError if one bit of it has changed."""
    try:
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)
        metadata = _ours(_header(content).get("__metadata__", {}))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"could not read {path}: {error.strerror}") from None
    except (safetensors.SafetensorError, ValueError, RecursionError, struct.error) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); restore it from a copy or make it anew") from None
    if metadata.get("sha256") != content_hash(tensors):
        raise UserError(
            f"{path} is damaged (its checksum does not match its content); restore it from a copy or make it anew"
        )
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return _ours(file.metadata() or {})
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); restore it from a copy or make it anew") from None


def save_state(path: Path, state: Any) -> None:
    """Write what resuming needs (nested dicts and lists of tensors and plain values) behind its own checksum."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    atomic_write_bytes(path, hashlib.sha256(content).digest() + content)


def load_state(path: Path) -> Any:
    """Read what save_state wrote, with weights_only=True; raises UserError when it is damaged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"could not read {path}: {error.strerror}") from None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise UserError(f"{path} is damaged (checksum); remove the run folder {path.parent} to start it anew")
    return torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; raises UserError, with the holder's process id, if another one has it.

    The operating system lets go of the lock when its process dies, however it dies.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"could not make the folder {folder}: {error.strerror}") from None
    holder = folder / ".lock.holder"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = _first_words(holder) or "another process"
        raise UserError(f"{folder} is in use by {who}; try again when it is done") from None
    except OSError as error:
        raise UserError(f"could not write in {folder}: {error.strerror}") from None
    try:
        with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
            holder.write_text(f"process {os.getpid()}")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _first_words(path: Path) -> str:
    try:
        return path.read_text()[:40]
    except OSError:
        return ""


def _ours(metadata: dict[str, str]) -> dict[str, str]:
    ours = json.loads(metadata.get(METADATA, "{}"))
    if not isinstance(ours, dict):
        raise ValueError("its header is none of ours")
    return ours


def _header(content: bytes) -> dict:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])
