"""The images below a folder per class. Large folders are walked once: an index keeps the names.

The index is valid while no directory has changed. Adding, removing or renaming an image changes its directory. An image
whose content changes keeps its name; how a data set is known by its content is in `folders`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from .. import storage
from ..config import cache_dir
from ..errors import UserError, first_line, pluralize
from ..records.base import open_regular

log = logging.getLogger("checkpointkd")

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
INDEXED = 20_000  # images from which on an index saves time
SETTLED = 2.0  # seconds: a directory that changed later than this before the walk may change again unnoticed


class Directory(msgspec.Struct, frozen=True):
    """A directory as it was when its images were listed."""

    path: str
    inode: int
    changed: int  # nanoseconds


class Index(msgspec.Struct, frozen=True):
    """The names of the images of each class, in order, below the class's folder."""

    directories: list[Directory]
    names: dict[str, list[str]]
    hidden: list[str] = []  # folders that are ignored


def image_names(split: Path, class_folders: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of the images of each class.

    Raises:
        UserError: If a class has no image, or if an image is empty or cannot be read: now, and not in hour three of a
            training. Images that the index lists are not read again.
    """
    path = cache_dir() / "indexes" / f"{hashlib.sha256(os.path.realpath(split).encode()).hexdigest()[:32]}.json"
    index = _stored(path)
    if index is None or list(index.names) != list(class_folders):
        index = _walk(split, class_folders)
        _store(index, path)
    for folder in index.hidden[:1]:
        more = f" and {pluralize(len(index.hidden) - 1, 'more hidden folder')}" if len(index.hidden) > 1 else ""
        log.warning("Ignoring the hidden folder %s%s", folder, more)
    return index.names


def _walk(split: Path, class_folders: Sequence[str]) -> Index:
    index = Index([], {})
    for class_folder in class_folders:
        index.names[class_folder] = _walk_class(split / class_folder, index)
    return index


def _walk_class(class_folder: Path, index: Index) -> list[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"Could not list the folder {error.filename}: {error.strerror}")

    images, visited = [], set()
    for parent, folders, names in os.walk(class_folder, onerror=refuse, followlinks=True):
        state = os.stat(parent)
        if (state.st_dev, state.st_ino) in visited:  # links in a circle
            folders.clear()
            continue
        visited.add((state.st_dev, state.st_ino))
        index.directories.append(Directory(os.path.abspath(parent), state.st_ino, state.st_mtime_ns))
        hidden = sorted(name for name in folders if name[0] == ".")
        index.hidden.extend(os.path.join(parent, name) for name in hidden)
        folders[:] = sorted(set(folders) - set(hidden))
        for name in sorted(names):
            if name.lower().endswith(ENDINGS) and name[0] != ".":
                path = Path(parent, name)
                _check_image(path)
                images.append(str(path.relative_to(class_folder)))
    if not images:
        raise UserError(f"The class folder {class_folder} holds no image ({', '.join(ENDINGS)})")
    return images


def _check_image(path: Path) -> None:
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"Could not read the image {path}: {error.strerror}") from None
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"The image {path} is not a regular file")
    if state.st_size == 0:
        raise UserError(f"The image {path} is empty. Replace it by an intact copy.")


def _stored(path: Path) -> Index | None:
    """Return the index if it exists and is valid."""
    try:
        with open_regular(path) as file:
            index = msgspec.json.decode(file.read(), type=Index)
        if not all(index.names.values()):
            return None
        for directory in index.directories:
            state = os.stat(directory.path)
            if (state.st_ino, state.st_mtime_ns) != (directory.inode, directory.changed):
                return None
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    return index


def _store(index: Index, path: Path) -> None:
    """Store the index of a large folder, unless one of its directories has just changed."""
    if sum(map(len, index.names.values())) < INDEXED:
        return
    if max(directory.changed for directory in index.directories) > time.time_ns() - SETTLED * 1e9:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.atomic_write_bytes(path, msgspec.json.encode(index))
    except (UserError, OSError, ValueError) as error:  # names that are not UTF-8 among them
        log.info("The index of the images was not stored, so the next command lists them again: %s", first_line(error))
