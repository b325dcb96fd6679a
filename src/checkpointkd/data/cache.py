"""Where data sets lie, how they get there, and decoded images: made once, then mapped into memory."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from .. import files
from ..errors import UserError, require
from ..settings import Progress

log = logging.getLogger("checkpointkd")

Decoded = tuple[Tensor, Tensor]  # pixels (N, C, H, W), uint8, and labels (N,), int64


def home() -> Path:
    """The folder for data and what is made of it: `CHECKPOINTKD_HOME`, else the user's cache folder."""
    return Path(os.environ.get("CHECKPOINTKD_HOME") or user_cache_path("checkpointkd"))


def decoded_once(key: str, decode: Callable[[], Decoded]) -> Decoded:
    """What `decode` gives, kept under a key that names the sources' content; the arrays are mapped from disk.

    A folder that can't be written to costs time on the next call, nothing else.
    """
    folder = home() / "decoded" / key
    kept = [folder / "pixels.npy", folder / "labels.npy"]
    if not all(path.exists() for path in kept):
        made = decode()
        try:
            for path, tensor in zip(kept, made, strict=True):
                with files.whole(path) as file:
                    np.save(file, tensor.contiguous().numpy())
        except UserError as error:
            log.warning("decoded images are not kept for the next time: %s", error)
            return made
    # Copy on write: torch wants writable memory, and what is on disk must stay as it is.
    pixels, labels = (torch.from_numpy(np.load(path, mmap_mode="c")) for path in kept)
    return pixels, labels


def content_key(sources: Sequence[Path], *, version: str) -> str:
    """A key of what is in these files; `version` names the way of decoding them."""
    digest = hashlib.sha256(version.encode())
    for source in sources:
        with open(source, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def official(path: Path, md5: str, *, what: str) -> Path:
    """The path itself, or UserError when the file is not the one that was published."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    require(found == md5, f"{path} is not the official {what}: md5 expected {md5}, found {found}")
    return path


def download(name: str, url: str, md5: str, *, tell: Progress) -> Path:
    """Fetch a data set's archive into its folder in `home()`; what arrives is the official file or nothing.

    Raises UserError when there is no network, and when the file that came is another one.
    """
    place = home() / name / url.rpartition("/")[2]
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

    def __init__(self, task: str, tell: Progress) -> None:
        self.task, self.tell, self.total, self.done = task, tell, 0, 0

    def update(self, count: int) -> None:
        self.done += count
        self.tell(self.task, min(self.done, self.total), max(self.total, 1))

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass
