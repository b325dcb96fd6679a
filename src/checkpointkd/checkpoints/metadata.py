"""Locate the record of another trainer's checkpoints, fingerprint their files, and decide whose code they may name."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from ..data import cache_dir
from ..records.runs import ExternalRecord

METADATA_DIR = "checkpointkd"  # in the folder of another trainer: holds run.json and what `score` and `select` write


def metadata_dirs(path: Path | str) -> list[Path]:
    """Return the directories where the record of a folder, wildcard or file may lie: beside it, and in the cache."""
    path = Path(path)
    name = re.sub(r"[^\w.-]", "_", path.name)
    digest = hashlib.sha256(str(path.absolute()).encode(errors="surrogateescape")).hexdigest()[:12]
    beside = path / METADATA_DIR if os.path.isdir(path) else path.parent / METADATA_DIR / f"{name}-{digest}"
    return [beside, cache_dir() / "external" / f"{name}-{digest}"]


def metadata_dir(path: Path | str) -> Path | None:
    """Return the directory of the record of another trainer's checkpoints, the newer of two; None if there is none."""
    files = [folder / "run.json" for folder in metadata_dirs(path) if os.path.exists(folder / "run.json")]
    return max(files, key=os.path.getmtime).parent if files else None


def checkpoints_folder(metadata: Path, run: ExternalRecord) -> Path:
    """Return the folder of another trainer's checkpoints: around the record, or named by a record in the cache."""
    if os.path.realpath(metadata).startswith(os.path.join(os.path.realpath(cache_dir()), "")):
        return Path(run.folder)
    return metadata.parent if metadata.name == METADATA_DIR else metadata.parent.parent


def file_fingerprint(path: Path) -> tuple[int, ...] | None:
    """Return sizes and modification times of a checkpoint's files; None if it does not exist."""
    try:
        files = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
        return tuple(number for file in files for number in (file.stat().st_size, file.stat().st_mtime_ns))
    except OSError:
        return None


def trust_marker(run: ExternalRecord) -> Path:
    """Return the file whose presence says that this user named this network for these weights.

    A record that came with downloaded checkpoints may name any code. Only code that this user named is imported.
    """
    hashes = [checkpoint.sha256 for checkpoint in run.checkpoints.values()]
    identity = [run.model, run.state_dict_key, run.mean, run.std, hashes]
    return cache_dir() / "trusted" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
