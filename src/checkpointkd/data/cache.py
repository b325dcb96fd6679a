"""Where data sets lie, how they are downloaded, and decoded images, which are decoded once."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from .. import storage
from ..config import OnProgress, cache_dir
from ..errors import UserError, first_line

log = logging.getLogger("checkpointkd")

Decoded = tuple[Tensor, Tensor]  # pixels (N, C, H, W), uint8, and labels (N,), int64
ARRAYS, DIGEST = ("pixels.npy", "labels.npy"), "sha256"

_hashes: dict[tuple, str] = {}  # hashes of files that this process has computed, see `_once`


def cached_decode(key: str, decode: Callable[[], Decoded]) -> Decoded:
    """Return the result of `decode`, stored under a key that identifies the content of its sources.

    Damaged arrays are decoded again. A folder that cannot be written to costs time on the next call, nothing else.
    """
    folder = cache_dir() / "decoded" / key
    try:
        stored = _stored(folder) if folder.exists() else None
    except OSError as error:
        log.warning("Could not read the decoded images in %s (%s), so they are decoded again", folder, error.strerror)
        stored = None
    if stored is not None:
        return stored
    decoded = decode()
    try:
        with storage.locked(folder):  # another process that decodes the same continues with its own copy
            (folder / DIGEST).unlink(missing_ok=True)
            for name, tensor in zip(ARRAYS, decoded, strict=True):
                with storage.atomic_write(folder / name) as file:
                    _write_npy(file, tensor.contiguous().numpy())
            storage.atomic_write_bytes(folder / DIGEST, _digest(decoded).encode())
        return _stored(folder) or decoded
    except (UserError, OSError) as error:
        log.warning("The decoded images could not be stored, so the next run decodes them again: %s", error)
        return decoded


def _stored(folder: Path) -> Decoded | None:
    """Return the arrays; None if one is missing or damaged."""
    try:
        expected = (folder / DIGEST).read_text()
        # Not mapped: a file that another program shortens would end the process.
        pixels, labels = (torch.from_numpy(np.load(folder / name)) for name in ARRAYS)
        files = [folder / name for name in ARRAYS]
        if _once("decoded", files, lambda: _digest((pixels, labels))) == expected:
            return pixels, labels
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, TypeError, OSError, MemoryError):
        pass
    log.warning("The decoded images in %s are damaged, so they are decoded again", folder)
    return None


def _digest(decoded: Decoded) -> str:
    digest = hashlib.sha256()
    for tensor in decoded:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _write_npy(file: IO[bytes], array: np.ndarray) -> None:
    """Write an array as np.save does, but through `write`, which raises when the disk is full."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(array.data)


def content_key(sources: Sequence[Path], *, version: str) -> str:
    """Return a key of the content of these files; `version` names the way of decoding them."""
    return hashlib.sha256(" ".join([version, *(_hash(path, "sha256") for path in sources)]).encode()).hexdigest()[:32]


def verify_md5(path: Path, md5: str, *, kind: str) -> Path:
    """Return the path itself.

    Raises:
        UserError: If the file is not the one that was published.
    """
    actual = _hash(path, "md5")
    if actual != md5:
        raise UserError(f"{path} is not the official {kind}: its md5 is {actual}, not {md5}")
    return path


def _hash(path: Path, algorithm: str) -> str:
    def compute() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()

    try:
        return _once(algorithm, [path], compute)
    except OSError as error:
        raise UserError(f"Could not read {path}: {error.strerror}") from None


def _once(kind: str, files: Sequence[Path], compute: Callable[[], str]) -> str:
    """Return a hash of files, computed once in this process while their sizes and modification times stay the same.

    Files that were modified in the last two seconds are hashed each time, because another change could keep the time.
    """
    states = [file.stat() for file in files]
    paths = [os.path.abspath(file) for file in files]
    key = (kind, *paths, *((state.st_ino, state.st_size, state.st_mtime_ns) for state in states))
    if key in _hashes:
        return _hashes[key]
    value = compute()
    if all(time.time_ns() - state.st_mtime_ns > 2e9 for state in states):
        _hashes[key] = value
    return value


def download(name: str, url: str, md5: str, *, on_progress: OnProgress) -> Path:
    """Download a data set's archive into its folder in `cache_dir()`. The official file arrives, or none.

    Raises:
        UserError: If there is no network, or if the server sends another file.
    """
    path = cache_dir() / name / url.rpartition("/")[2]
    alternative = f"put the file there yourself, or give its path: {name}:PATH"
    try:
        import pooch
    except ImportError:
        raise UserError(
            f"{name} is not in {path.parent}, and its download needs pooch. Run: pip install 'checkpointkd[data]', or "
            f"{alternative}."
        ) from None
    log.info("Downloading %s to %s", url, path.parent)
    pooch.get_logger().setLevel("ERROR")  # it would repeat the line above
    bar: Any = _DownloadProgress(f"download {name}", on_progress)
    downloader: Any = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=30)
    try:
        pooch.retrieve(url, known_hash=f"md5:{md5}", fname=path.name, path=path.parent, downloader=downloader)
    except ValueError as error:
        match = re.search(r"got \W*(?:md5:)?([0-9a-f]{32})", str(error))
        raise UserError(
            f"{url} did not send the official file: its md5 is {match[1] if match else 'another'}, not {md5}. Nothing "
            f"was stored. Try again later, or {alternative}."
        ) from None
    except OSError as error:  # the base of requests' errors
        raise UserError(
            f"{name} is not in {path.parent}, and {url} could not be downloaded ({_cause(error)}). Try again later, or "
            f"{alternative}."
        ) from None
    return path


def _cause(error: OSError) -> str:
    inner: BaseException = error
    while inner.__cause__ or inner.__context__:
        inner = inner.__cause__ or inner.__context__ or inner
    return first_line(inner)


class _DownloadProgress:
    """A progress bar as pooch takes it, which calls `on_progress`."""

    def __init__(self, task: str, on_progress: OnProgress) -> None:
        self.task, self.on_progress, self.total, self.done = task, on_progress, 0, 0

    def update(self, count: int) -> None:
        self.done += count
        self.on_progress(self.task, min(self.done, self.total), max(self.total, 1))

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass
