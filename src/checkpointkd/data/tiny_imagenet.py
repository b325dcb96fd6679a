"""Tiny-ImageNet (Stanford's CS231n): 100,000 training and 10,000 validation images of 64×64 pixels, 200 classes.

Read from the official zip (checked by its md5) or its folder. The validation images, which have labels, are the test
set here, as for everybody; the official test images have none. Some of its JPEGs are gray (2,178 in all).
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import DataConfig, OnProgress
from ..errors import UserError, check_exists
from .cache import Decoded, cache_dir, cached_decode, download, verify_md5
from .datasets import DataSet
from .image_io import decode_all, needs_pillow
from .images import InMemoryImages, in_memory
from .views import Views

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"
SIDE = 64


@dataclass(frozen=True)
class Store:
    """Where the files are: how to read one by its name below the official folder, and all the names there."""

    what: str
    key: str  # changes with the content
    names: tuple[str, ...]
    read: Callable[[str], bytes]


def tiny_imagenet(path: str | None, settings: DataConfig, tell: OnProgress) -> DataSet:
    """The data set `tiny-imagenet`."""
    place = Path(path) if path is not None else cache_dir() / "tiny-imagenet"
    if path is None and not any((place / sign).exists() for sign in (f"{FOLDER}.zip", FOLDER, "wnids.txt")):
        place = download("tiny-imagenet", URL, MD5, tell=tell)
    check_exists(place, "Tiny-ImageNet zip or folder")
    needs_pillow(str(place))
    store = _store(place)
    classes = tuple(_text(store, "wnids.txt").split())
    if not len(set(classes)) == len(classes) > 1:
        raise UserError(f"wnids.txt in {store.what} names no classes, or one twice")
    number = {name: label for label, name in enumerate(classes)}

    def images(split: str, listed: Callable[[Store, dict[str, int]], list[tuple[str, int]]]) -> InMemoryImages:
        def decode() -> Decoded:
            labeled = listed(store, number)
            pictures = TinyImageNetImages(store, [name for name, _ in labeled])
            pixels_NCHW = decode_all(
                pictures, len(labeled), size=(SIDE, SIDE), task=f"decode {split} images", tell=tell
            )
            return pixels_NCHW, torch.tensor([label for _, label in labeled])

        key = hashlib.sha256(f"tiny-imagenet 1 {split} {store.key}".encode()).hexdigest()[:32]
        views = Views(pad=4, flip=settings.flip is not False)
        return in_memory(*cached_decode(key, decode), what=store.what, classes=classes, views=views)

    return DataSet(
        classes=classes,
        train=lambda: images("training", _listed_for_training),
        test=lambda: images("validation", _listed_for_validation),
        recipe="tiny-imagenet",
    )


def _listed_for_training(store: Store, number: dict[str, int]) -> list[tuple[str, int]]:
    """Each picture's name and label, class by class."""
    found: dict[str, list[str]] = {name: [] for name in number}
    for name in store.names:
        match name.split("/"):
            case ["train", of_class, "images", picture] if picture.endswith(".JPEG"):
                if of_class not in found:
                    raise UserError(f"{store.what} has the class {of_class} in train, but not in wnids.txt")
                found[of_class].append(name)
    for of_class, names in found.items():
        if not names:
            raise UserError(f"{store.what} has no training image of the class {of_class}")
    return [(name, number[of_class]) for of_class, names in found.items() for name in sorted(names)]


def _listed_for_validation(store: Store, number: dict[str, int]) -> list[tuple[str, int]]:
    annotations = "val/val_annotations.txt"
    labeled = []
    for count, line in enumerate(_text(store, annotations).splitlines(), 1):
        where = f"line {count} of {annotations} in {store.what}"
        picture, of_class = [*line.split("\t"), "", ""][:2]
        if of_class not in number:
            raise UserError(f"{where} gives the class {of_class!r}, which is not in wnids.txt")
        if not ("/" not in picture and "\\" not in picture):
            raise UserError(f"{where} names a file elsewhere: {picture!r}")
        labeled.append((f"val/images/{picture}", number[of_class]))
    missing = sorted({name for name, _ in labeled} - set(store.names))
    if missing:
        raise UserError(f"{annotations} in {store.what} lists {len(missing)} images that are not there: {missing[:1]}")
    if not labeled:
        raise UserError(f"{annotations} in {store.what} lists no image")
    return labeled


@dataclass(frozen=True)
class TinyImageNetImages:
    """The pictures of a split."""

    store: Store
    names: list[str]

    def read(self, number: int) -> bytes:
        return self.store.read(self.names[number])

    def name(self, number: int) -> str:
        return f"{self.names[number]} in {self.store.what}"


def _text(store: Store, name: str) -> str:
    if name not in store.names:
        raise UserError(f"{store.what} has no {name}; is it the official {FOLDER}?")
    try:
        return store.read(name).decode()
    except UnicodeDecodeError:
        raise UserError(f"{name} in {store.what} is no text") from None


def _store(place: Path) -> Store:
    if place.is_dir():
        inner, archive = place / FOLDER, place / f"{FOLDER}.zip"
        if inner.is_dir():
            return _folder(inner)
        if not archive.exists() or (place / "wnids.txt").exists():
            return _folder(place)
        place = archive
    return _zip(verify_md5(place, MD5, what="zip"))


def _zip(place: Path) -> Store:
    archive = zipfile.ZipFile(place)  # opened for as long as the process lives; its reads take turns
    names = tuple(name.removeprefix(f"{FOLDER}/") for name in archive.namelist())
    return Store(str(place), MD5, names, lambda name: archive.read(f"{FOLDER}/{name}"))


def _folder(place: Path) -> Store:
    names, digest = [], hashlib.sha256()

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} can't be read: {error.strerror}")

    for root, folders, files in os.walk(place, onerror=refuse):
        folders[:] = sorted(name for name in folders if not (name == "test" and Path(root) == place))
        for name in sorted(files):
            path = Path(root, name)
            names.append(path.relative_to(place).as_posix())
            try:
                there = path.stat()
            except OSError as error:
                raise UserError(f"{path} can't be read: {error.strerror}") from None
            digest.update(os.fsencode(f"{names[-1]} {there.st_size} {there.st_mtime_ns}\n"))

    def read(name: str) -> bytes:
        try:
            return (place / name).read_bytes()
        except OSError as error:
            raise UserError(f"{place / name} can't be read: {error.strerror}") from None

    # By size and time, as git does: reading 110,000 files to know that they are the same would take a minute.
    return Store(str(place), digest.hexdigest(), tuple(names), read)
