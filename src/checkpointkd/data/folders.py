"""Pictures in folders, one folder for each class: the user's own as `folder:PATH`, and ImageNet (Russakovsky et al.
2015), both streamed.

    PATH/train/CLASS/anything.jpg       to learn from; under the holdout protocol also to select with
    PATH/val/CLASS/anything.jpg         the test images (also: valid, validation, test)
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..config import DataConfig, OnProgress
from ..errors import UserError, check_exists
from .cache import cache_dir
from .datasets import DataSet
from .image_io import needs_pillow
from .streaming import StreamingImages

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
TESTS = ("val", "valid", "validation", "test")
IMAGENET_CLASSES = 1_000


def folder(path: str | None, settings: DataConfig, tell: OnProgress) -> DataSet:
    """The user's own pictures, as `folder:PATH`."""
    if path is None:
        raise UserError("say which folder: folder:PATH, with PATH/train/CLASS/… and PATH/val/CLASS/… in it")
    assert path is not None
    return _folder(check_exists(Path(path), "folder of images"), settings)


def imagenet(path: str | None, settings: DataConfig, tell: OnProgress) -> DataSet:
    """The data set `imagenet`: 1,281,167 training and 50,000 validation images of 1,000 classes."""
    place = Path(path) if path is not None else cache_dir() / "imagenet"
    if not place.exists():
        raise UserError(
            f"imagenet is not in {place}; downloading it needs an account at image-net.org: say where its folders train "
            "and val are, imagenet:PATH"
        )
    dataset = _folder(place, settings)
    if len(dataset.classes) != IMAGENET_CLASSES:
        raise UserError(
            f"{place / 'train'} has {len(dataset.classes):,} classes, ImageNet {IMAGENET_CLASSES:,}; for your own pictures "
            f"say folder:{place}"
        )
    return dataset


def _folder(place: Path, settings: DataConfig) -> DataSet:
    needs_pillow(str(place))
    train = place / "train"
    test = next((place / name for name in TESTS if (place / name).is_dir()), None)
    if not (train.is_dir() and test is not None):
        raise UserError(
            f"{place} needs a folder train and a folder val (or {', '.join(TESTS[1:])}), each with a folder for each class"
        )
    assert test is not None
    classes, theirs = _classes(train), _classes(test)
    if classes != theirs:
        here, there = sorted(set(classes) - set(theirs)), sorted(set(theirs) - set(classes))
        only = [f"only in {split.name}: {_some(names)}" for split, names in ((train, here), (test, there)) if names]
        raise UserError(f"the classes in {train} and {test} differ ({'; '.join(only)})")

    for name in classes:  # the test images' names too: what is wrong with them is said now, not after the training
        _pictures(test / name)

    def images(split: Path) -> StreamingImages:
        names, labels = [], []
        for label, name in enumerate(classes):
            found = [f"{name}/{picture}" for picture in _pictures(split / name)]
            names += found
            labels += [label] * len(found)
        encoded = [os.fsencode(name) for name in names]
        # By name, not by content: reading ImageNet takes hours, and a picture replaced by an intact copy is the same.
        digest = hashlib.sha256(b"\0".join(encoded)).hexdigest()
        return StreamingImages(
            FolderImages(split, np.array(encoded)),
            digest,
            torch.tensor(labels),
            torch.arange(len(labels)),
            settings.image_size or 224,
            flip=settings.flip is not False,
        )

    return DataSet(
        classes=classes,
        train=lambda: images(train),
        test=lambda: images(test),
        recipe="imagenet" if (settings.image_size or 224) > 64 else "cifar100",
    )


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Pictures below a folder, by name. The names are one array, so that workers share its memory."""

    root: Path
    names_N: np.ndarray  # bytes

    def read(self, number: int) -> bytes:
        try:
            return Path(self.name(number)).read_bytes()
        except OSError as error:
            raise UserError(f"{self.name(number)} can't be read: {error.strerror}") from None

    def name(self, number: int) -> str:
        return str(self.root / os.fsdecode(self.names_N[number]))


def _classes(split: Path) -> tuple[str, ...]:
    try:
        names = os.listdir(split)
    except OSError as error:
        raise UserError(f"the folder {split} can't be read: {error.strerror}") from None
    return tuple(sorted(name for name in names if name[0] != "." and os.path.isdir(split / name)))


def _pictures(of_class: Path) -> list[str]:
    """The names of the pictures below a class's folder, in order; an empty one is named at once, not in hour three."""

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} can't be read: {error.strerror}")

    found, been = [], set()
    for place, folders, names in os.walk(of_class, onerror=refuse, followlinks=True):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in been:  # a link that leads in a circle
            folders.clear()
            continue
        been.add((here.st_dev, here.st_ino))
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(ENDINGS) and name[0] != ".":
                path = Path(place, name)
                try:
                    there = path.stat()
                except OSError as error:
                    raise UserError(f"the picture {path} can't be read: {error.strerror}") from None
                if not stat.S_ISREG(there.st_mode):
                    raise UserError(f"the picture {path} is no file")
                if not there.st_size > 0:
                    raise UserError(f"the picture {path} is empty; replace it by an intact copy")
                found.append(str(path.relative_to(of_class)))
    if not found:
        raise UserError(f"the class folder {of_class} has no picture in it ({', '.join(ENDINGS)})")
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
