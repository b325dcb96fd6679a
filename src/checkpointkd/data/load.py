"""Load a data set by name, split into training and validation images."""

from __future__ import annotations

import contextlib
import hashlib
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
from ..user_code import OBJECT
from ..user_data import Data as UserData
from .cache import cache_dir
from .cifar import cifar10, cifar100
from .datasets import Data, DataSet
from .digits import digits
from .folders import folder, imagenet
from .hub import hub
from .images import Images
from .labels import relabeled
from .own import data_name, names_own_data, own_data
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
WITH_SPLITS = ("folder:PATH", "imagenet", "hf:NAME")  # to which --val applies
_named_here: set[str] = set()  # data sets that are code, named by the user of this process


def load_data(settings: DataConfig, *, on_progress: OnProgress | None = None) -> Data:
    """Return the training and the validation images.

    With `select_on="val"` the official validation images validate. Without such images, and with a `val_fraction`, a
    stratified share of the official training images does. With `"test"`, as in the paper, the test images do.

    Raises:
        UserError: If the data set is unknown or cannot be read, or if a class would have no image in a split.

    >>> data = load_data(DataConfig(data="digits", train_images=300))
    >>> len(data.train), len(data.val), data.train.shape
    (300, 300, (1, 8, 8))
    """
    dataset = _open(settings, on_progress)
    official = dataset.train()
    val_sha256 = None
    if settings.select_on == "test":
        train, val, fraction = official, dataset.test(), None
    elif dataset.val is not None and settings.val_fraction is None:
        train, val, fraction = official, dataset.val(), None
        val_sha256 = val.sha256()
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
        val=settings.val,
        train_labels=settings.train_labels and str(Path(settings.train_labels).resolve()),
        val_sha256=val_sha256,
    )
    return Data(dataset.classes, train, val, dataset.recipe, record)


def load_test(settings: DataConfig, *, on_progress: OnProgress | None = None) -> Images:
    """Return the test images, for the final evaluation of a run and for nothing else."""
    return _open(settings, on_progress).test()


def config_of(record: DataRecord) -> DataConfig:
    """Return the settings that recorded data were loaded with.

    Raises:
        UserError: If the data set is code that the user has not named in this folder. A downloaded record may name any
            code.
    """
    if _is_code(record.name) and record.name not in _named_here and not _code_marker(record.name).exists():
        raise UserError(
            f"The record of this run names code, {record.name!r}, as its data set. If you trust this code, give "
            f"--data {record.name} once in this folder."
        )
    names = [name for name in DataConfig.__dataclass_fields__ if name != "data"]
    return DataConfig(data=record.spec, **{name: getattr(record, name) for name in names})


def config_like(
    record: DataRecord,
    data: str | UserData | None,
    select_on: SelectOn | None = None,
    train_images: int | None = None,
    image_size: int | None = None,
    flip: bool | None = None,
    resize: Resize | None = None,
    class_order: tuple[str, ...] | NamedOrder | None = None,
    val: str | None = None,
    train_labels: str | None = None,
) -> DataConfig:
    """Return the settings that recorded data were loaded with, changed where an argument is given."""
    if data is not None:
        data = data_name(data)
        _trust(data)
    settings = config_of(record)
    if select_on is not None and select_on != settings.select_on:
        settings = replace(settings, select_on=select_on, val_fraction=None)
    if data is not None:
        settings = replace(settings, data=data)
        name = _parts(data)[0]
        if name != record.name:  # another data set has its own defaults; images are resized to the network's size
            side = record.shape[1] if name in ("folder", "imagenet") else None
            settings = replace(settings, val_fraction=None, flip=None, image_size=side, class_order=None, val=None)
            settings = replace(settings, train_labels=None)
    if resize is not None:
        settings = replace(settings, eval_transform=settings.eval_transform.resized_by(resize))
    if val is not None:
        settings = replace(settings, val=val, val_fraction=None)
    changes = {"train_images": train_images, "image_size": image_size, "flip": flip, "class_order": class_order}
    changes["train_labels"] = train_labels
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})


def _open(settings: DataConfig, on_progress: OnProgress | None) -> DataSet:
    name, path = _parts(settings.data)
    if settings.val is not None and name not in ("folder", "imagenet", "hf"):
        raise UserError(f"--val {settings.val} applies to {', '.join(WITH_SPLITS)}, not to {settings.data}")
    own = names_own_data(settings.data, list(DATASETS))
    if not own and name not in DATASETS:
        if Path(settings.data).exists():
            raise UserError(f"{settings.data!r} is a path. For images in folders give folder:{settings.data}.")
        raise unknown_name("data set", name, DATASETS)
    if not path.isprintable():
        raise UserError(f"The path {path!r} must be printable UTF-8 on one line")
    if own:
        _trust(name)
        dataset = own_data(name, settings)
    else:
        dataset = DATASETS[name](path or None, settings, on_progress or (lambda task, done, total: None))
    if settings.train_labels is not None:  # its numbers are of the data set's own order
        dataset = _relabeled(dataset, Path(settings.train_labels))
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


def _relabeled(dataset: DataSet, file: Path) -> DataSet:
    """Return a data set whose training images have the labels of a file."""
    train, classes = dataset.train, len(dataset.classes)
    return replace(dataset, train=lambda: relabeled(train(), file, classes=classes))


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

    train, val, test = dataset.train, dataset.val, dataset.test
    return replace(
        dataset,
        classes=order,
        reordered=True,
        train=lambda: numbered(train()),
        val=None if val is None else lambda: numbered(val()),
        test=lambda: numbered(test()),
    )


def _is_code(name: str) -> bool:
    """Return whether a data set's name is `package.module:callable`, so that loading it imports a user's code."""
    return names_own_data(name, list(DATASETS)) and not name.startswith(OBJECT)


def _code_marker(name: str) -> Path:
    """Return the file whose presence says that this user named this code as a data set in this folder."""
    return cache_dir() / "trusted" / hashlib.sha256(f"data {name} {os.getcwd()}".encode()).hexdigest()[:32]


def _trust(name: str) -> None:
    """Record that the user has named a data set that is code. Later commands may then import it."""
    if _is_code(name) and name not in _named_here:
        _named_here.add(name)
        with contextlib.suppress(OSError):  # the cache cannot be written to: a later command asks again
            _code_marker(name).parent.mkdir(parents=True, exist_ok=True)
            _code_marker(name).touch()


def _parts(spec: str) -> tuple[str, str]:
    """Split `NAME:PATH`; the path is "" where there is none. Own data, such as `package.module:callable`, have none."""
    if names_own_data(spec, list(DATASETS)):
        return spec, ""
    name, _, path = spec.partition(":")
    return name, os.path.expanduser(path)
