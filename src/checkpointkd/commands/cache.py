"""`checkpointkd cache`: show and free the images, logits and averages that commands keep between runs."""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .. import records
from ..config import cache_dir
from ..errors import UserError, first_line, format_bytes, unknown_name
from ..records.logit_cache import LogitManifest
from ..records.runs import ExternalRecord
from .options import CommonOptions
from .signature import command

# The folders in the cache directory. Commands make the clearable ones again when they need them.
CLEARABLE = {
    "logits": "teacher logits",
    "decoded": "decoded images",
    "averages": "weight averages",
    "indexes": "names of images in large folders",
}
KEPT = {"external": "records of external checkpoints", "trusted": "networks and data sets whose code may run"}
ALL = "all"


@dataclass(frozen=True)
class CacheEntry:
    """One folder or file of the cache: its kind, what it belongs to, its size, and when it was last used."""

    kind: str
    path: str
    content: str
    bytes: int
    last_used: str


@command(CommonOptions)
def cache(action: Literal["list", "clear"], /, *kinds: str, options: CommonOptions) -> dict[str, Any]:
    """List or delete the files that commands keep between runs.

    list shows everything below CHECKPOINTKD_HOME. clear deletes teacher logits, decoded images, weight averages and
    lists of images. Commands make them again when they need them. clear never deletes data sets or the records of
    external checkpoints.

    Example:

        checkpointkd cache list

        checkpointkd cache clear logits

    Args:
        action: list or clear.
        kinds: What to list or clear: logits, decoded, averages, indexes, or all. clear needs at least one.

    Raises:
        UserError: If a kind is unknown, or if an entry could not be deleted.
    """
    if action not in ("list", "clear"):
        raise unknown_name("action", action, ("list", "clear"))
    home, chosen = cache_dir(), _chosen(action, kinds)
    entries = [entry for entry in _entries(home) if chosen is None or entry.kind in chosen]
    if action == "clear":
        _delete(entries)
    return {
        "action": action,
        "home": str(home),
        "kinds": {**CLEARABLE, **KEPT, "data": "data sets and other files"},
        "entries": [asdict(entry) for entry in entries],
        "bytes": sum(entry.bytes for entry in entries),
    }


def _chosen(action: str, kinds: Sequence[str]) -> set[str] | None:
    """Return the kinds of entries that are meant; None for every kind.

    Raises:
        UserError: For a kind that is unknown or that `clear` must keep.
    """
    if action == "list" and (not kinds or ALL in kinds):
        return None
    if not kinds:
        raise UserError(f"cache clear needs the kinds to delete: {', '.join(CLEARABLE)} or {ALL}")
    for kind in kinds:
        if kind in KEPT and action == "clear":
            raise UserError(f"cache clear does not delete {kind!r}: these are {KEPT[kind]}, not copies")
        if kind not in (*CLEARABLE, *KEPT, ALL):
            raise unknown_name("kind of cache", kind, (*CLEARABLE, ALL))
    return set(CLEARABLE) if ALL in kinds else set(kinds)


def _entries(home: Path) -> Iterator[CacheEntry]:
    """Describe each entry of the known folders, and each other folder as a whole."""
    for folder in _children(home):
        known = folder.name in CLEARABLE or folder.name in KEPT
        for path in _children(folder) if known else [folder]:
            stats = [_stat(file) for file in (path, *path.rglob("*"))]
            yield CacheEntry(
                kind=folder.name if known else "data",
                path=str(path),
                content=_content(path),
                bytes=sum(size for size, _ in stats),
                last_used=datetime.fromtimestamp(max(time for _, time in stats), UTC).isoformat(timespec="seconds"),
            )


def _children(folder: Path) -> list[Path]:
    """Return what a folder holds, without lock files; nothing if it does not exist.

    Raises:
        UserError: If the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None


def _stat(file: Path) -> tuple[int, float]:
    """Return a file's size and when it was last read or written; zeros if another process has deleted it."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0.0
    if stat.S_ISDIR(status.st_mode):
        return 0, status.st_mtime  # listing a folder is a read of it
    return status.st_size, max(status.st_atime, status.st_mtime)


def _content(path: Path) -> str:
    """Say what an entry belongs to, from the record or the array header in it; nothing if there is none."""
    try:
        if (path / "manifest.json").exists():
            manifest = records.read(path / "manifest.json", LogitManifest, remedy="")
            images = "clean images" if manifest.views is None else "views"
            size = f"{manifest.rows:,} {images}, {manifest.classes} classes"
            return f"{manifest.model}, weights {manifest.teacher[:12]}: {size}, {manifest.precision}"
        if (path / "run.json").exists():
            run = records.read_run(path / "run.json")
            return f"{run.model} in {run.folder}" if isinstance(run, ExternalRecord) else ""
    except UserError:
        return "damaged"
    try:
        with open(path / "pixels.npy", "rb") as file:
            shape = re.search(rb"'shape': \(([\d, ]+)\)", file.read(256))
    except OSError:
        return ""
    return f"images {shape[1].decode().replace(', ', '×')}" if shape else ""


def _delete(entries: Sequence[CacheEntry]) -> None:
    """Delete the entries. Processes that have their files open keep working.

    Raises:
        UserError: If some could not be deleted; the others are gone.
    """
    failed: dict[str, OSError] = {}
    for entry in entries:
        path = Path(entry.path)
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue  # another process has just deleted it
        except OSError as error:
            failed[entry.path] = error
    if failed:
        path, error = next(iter(failed.items()))
        freed = sum(entry.bytes for entry in entries if entry.path not in failed)
        raise UserError(
            f"{len(failed)} of {len(entries)} entries could not be deleted ({path}: {first_line(error)}). "
            f"{format_bytes(freed)} were freed"
        )
