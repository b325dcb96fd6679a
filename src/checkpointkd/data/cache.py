"""Where data sets lie, and decoded images: made once from files of a certain content, then mapped into memory."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from .. import files

Decoded = tuple[Tensor, Tensor]  # pixels (N, C, H, W), uint8, and labels (N,), int64


def home() -> Path:
    """The folder for data and what is made of it: `CHECKPOINTKD_HOME`, else the user's cache folder."""
    return Path(os.environ.get("CHECKPOINTKD_HOME") or user_cache_path("checkpointkd"))


def decoded_once(sources: Sequence[Path], decode: Callable[[], Decoded], *, version: str) -> Decoded:
    """What `decode` gives for these files, kept by their content; the arrays are mapped from disk.

    `version` names the way of decoding. A folder that can't be written to costs time on the next call, nothing else.
    """
    digest = hashlib.sha256(version.encode())
    for source in sources:
        with open(source, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    folder = home() / "decoded" / digest.hexdigest()[:32]
    kept = [folder / "pixels.npy", folder / "labels.npy"]
    if not all(path.exists() for path in kept):
        made = decode()
        if not _writable(folder):
            return made
        for path, tensor in zip(kept, made, strict=True):
            files.write_whole(path, _npy(tensor))
    # Copy on write: torch wants writable memory, and what is on disk must stay as it is.
    pixels, labels = (torch.from_numpy(np.load(path, mmap_mode="c")) for path in kept)
    return pixels, labels


def _npy(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, tensor.contiguous().numpy())
    return buffer.getvalue()


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
