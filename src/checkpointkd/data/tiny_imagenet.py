"""Tiny-ImageNet (Stanford's CS231n): 100,000 training and 10,000 validation images of 64×64 pixels, 200 classes.

It is read from the official zip, verified by md5, or from its folder. The official validation images are the test set
here, as is usual, because the official test images have no labels. Some JPEGs are gray (2,178 in all).
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
from .image_io import decode_all, require_pillow
from .in_memory import InMemoryImages, in_memory
from .views import Views

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"
SIDE = 64


@dataclass(frozen=True)
class Store:
    """The files of the official folder: their names, and how to read one by name."""

    path: str
    key: str  # changes with the content
    names: tuple[str, ...]
    read: Callable[[str], bytes]


def tiny_imagenet(path: str | None, settings: DataConfig, on_progress: OnProgress) -> DataSet:
    """Return the data set `tiny-imagenet`."""
    root = Path(path) if path is not None else cache_dir() / "tiny-imagenet"
    if path is None and not any((root / name).exists() for name in (f"{FOLDER}.zip", FOLDER, "wnids.txt")):
        root = download("tiny-imagenet", URL, MD5, on_progress=on_progress)
    check_exists(root, "Tiny-ImageNet zip or folder")
    require_pillow(str(root))
    store = _store(root)
    classes = tuple(_text(store, "wnids.txt").split())
    if not len(set(classes)) == len(classes) > 1:
        raise UserError(f"wnids.txt in {store.path} must name at least two classes, each once")
    label_of = {name: label for label, name in enumerate(classes)}

    def images(split: str, list_split: Callable[[Store, dict[str, int]], list[tuple[str, int]]]) -> InMemoryImages:
        def decode() -> Decoded:
            labeled = list_split(store, label_of)
            encoded = TinyImageNetImages(store, [name for name, _ in labeled])
            pixels_NCHW = decode_all(
                encoded, len(labeled), size=(SIDE, SIDE), task=f"decode {split} images", on_progress=on_progress
            )
            return pixels_NCHW, torch.tensor([label for _, label in labeled])

        key = hashlib.sha256(f"tiny-imagenet 1 {split} {store.key}".encode()).hexdigest()[:32]
        views = Views(pad=4, flip=settings.flip is not False)
        return in_memory(*cached_decode(key, decode), source=store.path, classes=classes, views=views)

    return DataSet(
        classes=classes,
        train=lambda: images("training", _list_training),
        test=lambda: images("validation", _list_validation),
        recipe="tiny-imagenet",
    )


def _list_training(store: Store, label_of: dict[str, int]) -> list[tuple[str, int]]:
    """Return the name and the label of each image, class by class."""
    names_of: dict[str, list[str]] = {name: [] for name in label_of}
    for name in store.names:
        match name.split("/"):
            case ["train", class_name, "images", image] if image.endswith(".JPEG"):
                if class_name not in names_of:
                    raise UserError(f"{store.path} has the class {class_name} in train, but not in wnids.txt")
                names_of[class_name].append(name)
    for class_name, names in names_of.items():
        if not names:
            raise UserError(f"{store.path} has no training image of the class {class_name}")
    return [(name, label_of[class_name]) for class_name, names in names_of.items() for name in sorted(names)]


def _list_validation(store: Store, label_of: dict[str, int]) -> list[tuple[str, int]]:
    """Return the name and the label of each image, in the order of the annotations."""
    annotations = "val/val_annotations.txt"
    labeled = []
    for count, line in enumerate(_text(store, annotations).splitlines(), 1):
        location = f"Line {count} of {annotations} in {store.path}"
        image, class_name = [*line.split("\t"), "", ""][:2]
        if class_name not in label_of:
            raise UserError(f"{location} gives the class {class_name!r}, which is not in wnids.txt")
        if "/" in image or "\\" in image:
            raise UserError(f"{location} names a file in another folder: {image!r}")
        labeled.append((f"val/images/{image}", label_of[class_name]))
    missing = sorted({name for name, _ in labeled} - set(store.names))
    if missing:
        raise UserError(
            f"{annotations} in {store.path} lists {len(missing)} images that are missing, first {missing[0]}"
        )
    if not labeled:
        raise UserError(f"{annotations} in {store.path} lists no image")
    return labeled


@dataclass(frozen=True)
class TinyImageNetImages:
    """The encoded images of a split."""

    store: Store
    names: list[str]

    def read(self, number: int) -> bytes:
        """Return the bytes of an image."""
        return self.store.read(self.names[number])

    def name(self, number: int) -> str:
        """Return the image's name for errors."""
        return f"{self.names[number]} in {self.store.path}"


def _text(store: Store, name: str) -> str:
    if name not in store.names:
        raise UserError(f"{store.path} has no {name}. Is it the official {FOLDER}?")
    try:
        return store.read(name).decode()
    except UnicodeDecodeError:
        raise UserError(f"{name} in {store.path} is not text") from None


def _store(path: Path) -> Store:
    if path.is_dir():
        inner, archive = path / FOLDER, path / f"{FOLDER}.zip"
        if inner.is_dir():
            return _folder(inner)
        if not archive.exists() or (path / "wnids.txt").exists():
            return _folder(path)
        path = archive
    return _zip(verify_md5(path, MD5, kind="zip"))


def _zip(path: Path) -> Store:
    archive = zipfile.ZipFile(path)  # stays open; its reads are locked, so threads may share it
    names = tuple(name.removeprefix(f"{FOLDER}/") for name in archive.namelist())
    return Store(str(path), MD5, names, lambda name: archive.read(f"{FOLDER}/{name}"))


def _folder(root: Path) -> Store:
    names, digest = [], hashlib.sha256()

    def refuse(error: OSError) -> None:
        raise UserError(f"Could not list the folder {error.filename}: {error.strerror}")

    for parent, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not (name == "test" and Path(parent) == root))
        for name in sorted(files):
            path = Path(parent, name)
            names.append(path.relative_to(root).as_posix())
            try:
                state = path.stat()
            except OSError as error:
                raise UserError(f"Could not read {path}: {error.strerror}") from None
            digest.update(os.fsencode(f"{names[-1]} {state.st_size} {state.st_mtime_ns}\n"))

    def read(name: str) -> bytes:
        try:
            return (root / name).read_bytes()
        except OSError as error:
            raise UserError(f"Could not read {root / name}: {error.strerror}") from None

    # The identity is sizes and times, as in git: reading 110,000 files would take a minute.
    return Store(str(root), digest.hexdigest(), tuple(names), read)
