"""Load a data set by name, split into training and validation images."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..config import DataConfig, NamedOrder, OnProgress, Resize, SelectOn
from ..errors import UserError, unknown_name
from ..records.base import DataRecord
from .cifar import cifar10, cifar100
from .datasets import Data, DataSet
from .digits import digits
from .folders import folder, imagenet
from .hub import hub
from .images import Images
from .splits import VALIDATION, complement, stratified
from .streaming import StreamingImages
from .tiny_imagenet import tiny_imagenet

# By name: (path or None, settings, progress callback) -> the data set. `NAME:PATH` gives the path.
DATASETS: dict[str, Callable[[str | None, DataConfig, OnProgress], DataSet]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "tiny-imagenet": tiny_imagenet,
    "imagenet": imagenet,
    "folder": folder,
    "hf": hub,
}


def load_data(settings: DataConfig, *, on_progress: OnProgress | None = None) -> Data:
    """Return the training and the validation images.

    With `select_on="val"` a stratified share of the official training images validates. With `"test"`, as in the paper,
    the official test images do.

    Raises:
        UserError: If the data set is unknown or cannot be read, or if a class would have no image in a split.

    >>> data = load_data(DataConfig(data="digits", train_images=300))
    >>> len(data.train), len(data.val), data.train.shape
    (300, 300, (1, 8, 8))
    """
    dataset = _open(settings, on_progress)
    official = dataset.train()
    if settings.select_on == "test":
        train, val, fraction = official, dataset.test(), None
    else:
        fraction = settings.val_fraction or dataset.val_fraction
        count = round(fraction * len(official))
        rows_M = stratified(official.labels_N, count, seed=settings.split_seed, purpose=VALIDATION)
        train, val = official.subset(complement(len(official), rows_M)), official.subset(rows_M)
    if settings.train_images is not None:
        rows_M = stratified(train.labels_N, settings.train_images, seed=settings.split_seed, purpose="training")
        train = train.subset(rows_M)
    if settings.image_size is not None and official.shape[1:] != (settings.image_size, settings.image_size):
        raise UserError(
            f"--image-size {settings.image_size} does not apply to {settings.data}: its images have "
            f"{official.shape[1]}×{official.shape[2]} pixels. It applies to imagenet, folder:PATH and hf:NAME."
        )
    if isinstance(official, StreamingImages):
        official.warn_if_enlarged()
    name, path = _parts(settings.data)
    record = DataRecord(
        name=name,
        source=(str(Path(path).resolve()) if Path(path).exists() else path) if path else None,
        sha256=official.sha256(),
        select_on=settings.select_on,
        val_fraction=fraction,
        split_seed=settings.split_seed,
        train_images=settings.train_images,
        image_size=official.shape[1] if isinstance(official, StreamingImages) else None,
        flip=official.flip,
        shape=official.shape,
        train_size=len(train),
        val_size=len(val),
        eval_transform=settings.eval_transform,
        class_order=dataset.classes if dataset.reordered else None,
    )
    return Data(dataset.classes, train, val, dataset.recipe, record)


def load_test(settings: DataConfig, *, on_progress: OnProgress | None = None) -> Images:
    """Return the test images, for the final evaluation of a run and for nothing else."""
    return _open(settings, on_progress).test()


def config_of(record: DataRecord) -> DataConfig:
    """Return the settings that recorded data were loaded with."""
    names = [name for name in DataConfig.__dataclass_fields__ if name != "data"]
    return DataConfig(data=record.spec, **{name: getattr(record, name) for name in names})


def config_like(
    record: DataRecord,
    data: str | None,
    select_on: SelectOn | None = None,
    train_images: int | None = None,
    image_size: int | None = None,
    flip: bool | None = None,
    resize: Resize | None = None,
    class_order: tuple[str, ...] | NamedOrder | None = None,
) -> DataConfig:
    """Return the settings that recorded data were loaded with, changed where an argument is given."""
    settings = config_of(record)
    if select_on is not None and select_on != settings.select_on:
        settings = replace(settings, select_on=select_on, val_fraction=None)
    if data is not None:
        settings = replace(settings, data=data)
        name = data.partition(":")[0]
        if name != record.name:  # another data set has its own defaults; images are resized to the network's size
            side = record.shape[1] if name in ("folder", "imagenet") else None
            settings = replace(settings, val_fraction=None, flip=None, image_size=side, class_order=None)
    if resize is not None:
        settings = replace(settings, eval_transform=settings.eval_transform.resized_by(resize))
    changes = {"train_images": train_images, "image_size": image_size, "flip": flip, "class_order": class_order}
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})


def _open(settings: DataConfig, on_progress: OnProgress | None) -> DataSet:
    name, path = _parts(settings.data)
    if name not in DATASETS:
        if Path(settings.data).exists():
            raise UserError(f"{settings.data!r} is a path. For images in folders give folder:{settings.data}.")
        raise unknown_name("data set", name, DATASETS)
    if not path.isprintable():
        raise UserError(f"The path {path!r} must be printable UTF-8 on one line")
    dataset = DATASETS[name](path or None, settings, on_progress or (lambda task, done, total: None))
    order = settings.class_order
    if isinstance(order, str):
        order = tuple(sorted(dataset.classes, key=natural_key if order == "timm" else None))
    if order is not None:
        order = tuple(unicodedata.normalize("NFC", name) for name in order)
    return dataset if order in (None, dataset.classes) else _ordered(dataset, order)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return the key by which timm sorts folders of classes: case is ignored, and numbers are sorted by value.

    >>> sorted(["b", "10", "9", "A"], key=natural_key)
    ['9', '10', 'A', 'b']
    """
    parts = re.split(r"([0-9]+)", name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _ordered(dataset: DataSet, order: tuple[str, ...]) -> DataSet:
    """Return a data set whose classes are numbered in another order."""
    if sorted(order) != sorted(dataset.classes):
        other = next(iter(sorted(set(order) ^ set(dataset.classes))), "a name twice")
        raise UserError(
            f"The class order must name each of the {len(dataset.classes)} classes once. First difference: {other!r}"
        )
    number_K = torch.tensor([order.index(name) for name in dataset.classes])

    def numbered(images: Images) -> Images:
        return replace(images, labels_N=number_K[images.labels_N])  # type: ignore[type-var]

    train, test = dataset.train, dataset.test
    return replace(
        dataset, classes=order, reordered=True, train=lambda: numbered(train()), test=lambda: numbered(test())
    )


def _parts(spec: str) -> tuple[str, str]:
    """Split `NAME:PATH`; the path is "" where there is none."""
    name, _, path = spec.partition(":")
    return name, os.path.expanduser(path)
