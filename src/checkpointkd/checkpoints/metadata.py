"""Locate the record of another trainer's checkpoints, fingerprint their files, and decide whose code they may name."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from .. import records, storage
from ..data import cache_dir
from ..errors import UserError
from ..models import names_code
from ..records.runs import AnyRun, ExternalRecord
from ..storage import own_subfolder
from .weights import parts

STATED = ("config.json", "preprocessor_config.json", "trainer_state.json")  # read beside the weights of a folder
METADATA_DIR = "checkpointkd"  # in the folder of another trainer: holds run.json and what `score` and `select` write

_trusted_here: set[Path] = set()  # the markers that this process has written, or could not write


def metadata_dirs(path: Path | str) -> list[Path]:
    """Return the directories where the record of a folder, wildcard or file may lie: beside it, and in the cache.

    Raises:
        UserError: If the directory beside it is a link.
    """
    path = Path(path)
    is_folder = os.path.isdir(path)
    beside = own_subfolder((path if is_folder else path.parent) / METADATA_DIR)
    if not is_folder:
        beside = own_subfolder(beside / _named_after(path.name))  # it moves with its folder
    place = os.path.realpath(path) if is_folder else os.path.join(os.path.realpath(path.parent), path.name)
    return [beside, cache_dir() / "external" / _named_after(place)]


def _named_after(path: str) -> str:
    """Return a folder's name for a path: letters of its last part, and a hash of the path."""
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:12]
    name = re.sub(r"[^\w.-]", "_", os.path.basename(path))
    return f"{name[:100]}-{digest}"


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
    """Return sizes and modification times of a checkpoint's files; None if they do not exist."""
    try:
        stated = [path / name for name in STATED if (path / name).is_file()]
        return tuple(
            number for file in [*parts(path), *stated] for number in (file.stat().st_size, file.stat().st_mtime_ns)
        )
    except (OSError, UserError):
        return None


def trust_code(run: AnyRun) -> None:
    """Record that the user has named the network of this run. Later commands may then import its code."""
    if names_code(run.model):
        _trusted_here.add(_trust_marker(run))
        storage.atomic_write_bytes(_trust_marker(run), b"")


def check_trusted(run: AnyRun, *, remedy: str) -> None:
    """Check that the user has named the network of this run if it is code. A downloaded record may name any code.

    Raises:
        UserError: If the user has not named the code. The message gives `remedy`, the command that names the code.
    """
    if names_code(run.model) and _trust_marker(run) not in _trusted_here and not _trust_marker(run).exists():
        raise UserError(
            f"The record of this run names code, {run.model!r}, which you have not named on this machine. "
            f"If you trust this code, run `{remedy}`"
        )


def _trust_marker(run: AnyRun) -> Path:
    """Return the file whose presence says that this user named this network for these weights, or for this run."""
    identity: Any = records.plain(run)
    if isinstance(run, ExternalRecord):
        hashes = [checkpoint.sha256 for checkpoint in run.checkpoints.values()]
        identity = [run.model, run.state_dict_key, run.mean, run.std, hashes]
    return cache_dir() / "trusted" / storage.cache_key(identity)
