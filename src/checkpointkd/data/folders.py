"""Images in folders, one folder per class: `folder:PATH`, and ImageNet (Russakovsky et al. 2015). Both are streamed.

PATH/train/CLASS/anything.jpg       training images, and with `--select-on val` also the validation images
PATH/val/CLASS/anything.jpg         the test images (or: valid, validation, test)
"""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..config import DataConfig, OnProgress
from ..errors import UserError, check_exists
from ..records.base import open_regular
from .cache import cache_dir
from .datasets import DataSet
from .folder_index import image_names
from .image_io import require_pillow
from .streaming import StreamingImages, sample_digest

log = logging.getLogger("checkpointkd")

TEST_FOLDERS = ("val", "valid", "validation", "test")
IMAGENET_CLASSES = 1_000
SMALL_IMAGES = "cifar100"  # the recipe of images of up to 64 pixels


def folder(path: str | None, settings: DataConfig, on_progress: OnProgress) -> DataSet:
    """Return the user's own images, as `folder:PATH`."""
    if path is None:
        raise UserError("Give the folder: folder:PATH. It holds PATH/train/CLASS/… and PATH/val/CLASS/….")
    return _folder(check_exists(Path(path), "folder of images"), settings)


def imagenet(path: str | None, settings: DataConfig, on_progress: OnProgress) -> DataSet:
    """Return the data set `imagenet`: 1,281,167 training and 50,000 validation images of 1,000 classes."""
    root = Path(path) if path is not None else cache_dir() / "imagenet"
    if not root.exists():
        raise UserError(
            f"imagenet is not in {root}, and its download needs an account at image-net.org. Give the folder with "
            "train and val in it: imagenet:PATH."
        )
    dataset = _folder(root, settings)
    if len(dataset.classes) != IMAGENET_CLASSES:
        raise UserError(
            f"{root / 'train'} has {len(dataset.classes):,} classes, ImageNet {IMAGENET_CLASSES:,}. For your own "
            f"images give folder:{root}."
        )
    return dataset if dataset.recipe == SMALL_IMAGES else replace(dataset, recipe="imagenet")


def _folder(root: Path, settings: DataConfig) -> DataSet:
    require_pillow(str(root))
    train = root / "train"
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    val = None
    if test is not None and test.name != "test" and (root / "test").is_dir() and _class_folders(root / "test"):
        test, val = root / "test", test
    if settings.val is not None:
        val = root / settings.val if (root / settings.val).is_dir() else Path(settings.val).expanduser()
        if not val.is_dir() or val == train:
            raise UserError(f"--val {settings.val} names neither a folder in {root} beside train nor another folder")
        if val == test:
            raise UserError(f"--val {settings.val} names the test set. Give other images, or --select-on test.")
    if test is None or not train.is_dir():
        raise UserError(
            f"{root} must hold a folder train and a folder val (or {', '.join(TEST_FOLDERS[1:])}), each with a folder "
            "per class"
        )
    others = [test] if val is None else [test, val]
    class_folders = {split: _class_folders(split) for split in (train, *others)}
    classes = tuple(class_folders[train])
    for other in others:
        if class_folders[train].keys() != class_folders[other].keys():
            names = {split: set(class_folders[split]) for split in (train, other)}
            only_train, only_other = sorted(names[train] - names[other]), sorted(names[other] - names[train])
            only = [
                f"only in {split.name}: {_some(names)}"
                for split, names in ((train, only_train), (other, only_other))
                if names
            ]
            raise UserError(f"The classes in {train} and {other} differ ({'; '.join(only)})")

    # Listed now, so that an error in the test folder precedes the training.
    listed = {split: image_names(split, list(class_folders[split].values())) for split in reversed(class_folders)}

    def images(split: Path) -> StreamingImages:
        names, labels = [], []
        for label, (class_folder, names_of_class) in enumerate(listed[split].items()):
            names += [f"{class_folder}/{name}" for name in names_of_class]
            labels += [label] * len(names_of_class)
        encoded = FolderImages(split, np.array([os.fsencode(name) for name in names]))
        # The identity is the names and a sample of the content: reading all of ImageNet takes hours.
        normalized = b"\0".join(os.fsencode(unicodedata.normalize("NFC", name)) for name in names)
        digest = hashlib.sha256(normalized).hexdigest() + sample_digest(encoded, len(names))
        return StreamingImages(
            encoded,
            digest,
            torch.tensor(labels),
            torch.arange(len(labels)),
            settings.image_size or 224,
            flip=settings.flip is not False,
            transform=settings.eval_transform,
        )

    return DataSet(
        classes=classes,
        train=lambda: images(train),
        test=lambda: images(test),
        val=None if val is None else lambda: images(val),
        recipe="adamw" if (settings.image_size or 224) > 64 else SMALL_IMAGES,
    )


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Images below a folder, by name. The names are one array, so that workers share its memory."""

    root: Path
    names_N: np.ndarray  # bytes

    def read(self, number: int) -> bytes:
        """Return the bytes of an image."""
        try:
            with open_regular(Path(self.name(number))) as file:
                return file.read()
        except OSError as error:
            raise UserError(
                f"Could not read {self.name(number)}: {error.strerror}. Restore the image, and repeat the command."
            ) from None

    def name(self, number: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.root, os.fsdecode(self.names_N[number]))


def _class_folders(split: Path) -> dict[str, str]:
    """Return the folder of each class, in the order of the class names.

    Class names have the Unicode normalization NFC, because copies between systems change the normalization of names.
    """
    try:
        names = os.listdir(split)
    except OSError as error:
        raise UserError(f"Could not list the folder {split}: {error.strerror}") from None
    raw = sorted(name for name in names if name[0] != "." and os.path.isdir(split / name))
    folders: dict[str, str] = {}
    for name in sorted(raw, key=lambda name: unicodedata.normalize("NFC", name)):
        if folders.setdefault(unicodedata.normalize("NFC", name), name) != name:
            raise UserError(f"Two folders in {split} have names that look the same, {name!r}. Merge them.")
    if list(folders.values()) != raw:
        log.warning(
            "Other libraries order the classes in %s differently: accents in the folders' names are separate "
            "characters. Give a teacher from such a library its order with --class-order",
            split,
        )
    return folders


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
