"""Where data sets lie, how they get there, and decoded images: made once, then mapped into memory."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from .. import storage
from ..config import OnProgress, cache_dir
from ..errors import UserError

log = logging.getLogger("checkpointkd")

Decoded = tuple[Tensor, Tensor]  # pixels (N, C, H, W), uint8, and labels (N,), int64


def cached_decode(key: str, decode: Callable[[], Decoded]) -> Decoded:
    """What `decode` gives, kept under a key that names the sources' content; the arrays are mapped from disk.

    What is damaged is decoded anew. A folder that can't be written to costs time on the next call, nothing else.
    """
    folder = cache_dir() / "decoded" / key
    try:
        kept = _kept(folder) if folder.exists() else None
    except OSError as error:
        log.warning("the decoded images in %s can't be read (%s)", folder, error.strerror)
        kept = None
    if kept is not None:
        return kept
    made = decode()
    try:
        with storage.locked(folder):  # whoever else decodes the same goes on with what it has
            storage.remove_leftovers(folder)
            (folder / DIGEST).unlink(missing_ok=True)
            for name, tensor in zip(ARRAYS, made, strict=True):
                with storage.atomic_write(folder / name) as file:
                    _write_npy(file, tensor.contiguous().numpy())
            storage.atomic_write_bytes(folder / DIGEST, _digest(made).encode())
        return _kept(folder) or made
    except (UserError, OSError) as error:
        log.warning("the decoded images are not kept for the next time: %s", error)
        return made


ARRAYS, DIGEST = ("pixels.npy", "labels.npy"), "sha256"


def _kept(folder: Path) -> Decoded | None:
    """The arrays, or None where they are not whole, not there, or not what was written."""
    try:
        expected = (folder / DIGEST).read_text()
        # Copy on write: torch wants writable memory, and what is on disk must stay as it is.
        pixels, labels = (torch.from_numpy(np.load(folder / name, mmap_mode="c")) for name in ARRAYS)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, TypeError, OSError):
        expected, pixels, labels = "", torch.empty(0), torch.empty(0)
    if _digest((pixels, labels)) != expected:
        log.warning("the decoded images in %s are damaged; decoding anew", folder)
        return None
    return pixels, labels


def _digest(decoded: Decoded) -> str:
    digest = hashlib.sha256()
    for tensor in decoded:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _write_npy(file: IO[bytes], array: np.ndarray) -> None:
    """As np.save, but through `write`, which says so when the disk is full."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(array.data)


def content_key(sources: Sequence[Path], *, version: str) -> str:
    """A key of what is in these files; `version` names the way of decoding them."""
    return hashlib.sha256(" ".join([version, *(_hash(path, "sha256") for path in sources)]).encode()).hexdigest()[:32]


def verify_md5(path: Path, md5: str, *, what: str) -> Path:
    """The path itself, or UserError when the file is not the one that was published."""
    found = _hash(path, "md5")
    if found != md5:
        raise UserError(f"{path} is not the official {what}: md5 expected {md5}, found {found}")
    return path


def _hash(path: Path, kind: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None


def download(name: str, url: str, md5: str, *, tell: OnProgress) -> Path:
    """Fetch a data set's archive into its folder in `home()`; what arrives is the official file or nothing.

    Raises UserError when there is no network, and when the file that came is another one.
    """
    place = cache_dir() / name / url.rpartition("/")[2]
    elsewhere = f"put it there yourself, or say where it is: {name}:PATH"
    try:
        import pooch
    except ImportError:
        raise UserError(
            f"{name} is not in {place.parent}, and downloading it needs pooch: pip install 'checkpointkd[data]', or "
            f"{elsewhere}"
        ) from None
    log.info("downloading %s to %s", url, place.parent)
    pooch.get_logger().setLevel("ERROR")  # it would say the same in its own words
    bar: Any = _Told(f"download {name}", tell)
    fetch: Any = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=30)
    try:
        pooch.retrieve(url, known_hash=f"md5:{md5}", fname=place.name, path=place.parent, downloader=fetch)
    except ValueError as error:
        found = re.search(r"got \W*(?:md5:)?([0-9a-f]{32})", str(error))
        raise UserError(
            f"{url} did not give the official file (md5 expected {md5}, found {found[1] if found else 'another'}); "
            f"what came was not kept: try again later, or {elsewhere}"
        ) from None
    except OSError as error:  # requests' errors are such too
        raise UserError(
            f"{name} is not in {place.parent}, and {url} could not be downloaded ({_reason(error)}); {elsewhere}"
        ) from None
    return place


def _reason(error: OSError) -> str:
    inner: BaseException = error
    while inner.__cause__ or inner.__context__:
        inner = inner.__cause__ or inner.__context__ or inner
    return (str(inner) or type(inner).__name__).splitlines()[0]


class _Told:
    """What pooch takes for a progress bar."""

    def __init__(self, task: str, tell: OnProgress) -> None:
        self.task, self.tell, self.total, self.done = task, tell, 0, 0

    def update(self, count: int) -> None:
        self.done += count
        self.tell(self.task, min(self.done, self.total), max(self.total, 1))

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass
