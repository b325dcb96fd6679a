"""Images as tensors: data sets by name, protocols, views, batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..config import DataConfig, OnProgress, SelectOn
from ..errors import UserError, unknown_name
from ..records import DataRecord
from .cache import cache_dir
from .cifar import cifar10, cifar100, superclasses
from .datasets import Data, DataSet
from .digits import digits
from .folders import folder, imagenet
from .hub import hub
from .images import Batch, EpochLoader, Images, InMemoryBatches, InMemoryImages, eval_batch_size
from .splits import complement, stratified
from .streaming import StreamingImages
from .tiny_imagenet import tiny_imagenet
from .views import Views

# What a name means: (path or None, settings, whom to tell of progress) -> the data set. NAME:PATH gives the path.
DATASETS: dict[str, Callable[[str | None, DataConfig, OnProgress], DataSet]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "tiny-imagenet": tiny_imagenet,
    "imagenet": imagenet,
    "folder": folder,
    "hf": hub,
}

__all__ = [
    "DATASETS",
    "Batch",
    "Data",
    "DataConfig",
    "DataSet",
    "EpochLoader",
    "Images",
    "InMemoryBatches",
    "InMemoryImages",
    "StreamingImages",
    "Views",
    "cache_dir",
    "config_like",
    "config_of",
    "eval_batch_size",
    "load_data",
    "load_test",
    "stratified",
    "superclasses",
]


def load_data(settings: DataConfig, *, on_progress: OnProgress | None = None) -> Data:
    """The training and the selection images under a protocol; raises UserError for unknown names and bad splits.

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
        rows_M = stratified(
            official.labels_N, round(fraction * len(official)), seed=settings.split_seed, purpose="selection"
        )
        train, val = official.subset(complement(len(official), rows_M)), official.subset(rows_M)
    if settings.train_images is not None:
        rows_M = stratified(train.labels_N, settings.train_images, seed=settings.split_seed, purpose="training")
        train = train.subset(rows_M)
    if not (settings.image_size is None or official.shape[1:] == (settings.image_size,) * 2):
        raise UserError(
            f"the images of {settings.data} have {official.shape[1]}×{official.shape[2]} pixels and stay so; only pictures "
            "that are streamed (imagenet, folder:PATH, larger ones of hf:NAME) are cut to --image-size"
        )
    if isinstance(official, StreamingImages):
        official.say_if_enlarged()
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
    )
    return Data(dataset.classes, train, val, dataset.recipe, record)


def load_test(settings: DataConfig, *, on_progress: OnProgress | None = None) -> Images:
    """The test images, for the final evaluation of a run and for nothing else."""
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
) -> DataConfig:
    """The settings that a stored identity was loaded with, with what the user says in their place."""
    settings = config_of(record)
    if select_on is not None and select_on != settings.select_on:
        settings = replace(settings, select_on=select_on, val_fraction=None)
    if data is not None:
        settings = replace(settings, data=data)
        kind = data.partition(":")[0]
        if kind != record.name:  # another data set has its own ways; pictures are cut to what the network knows
            side = record.shape[1] if kind in ("folder", "imagenet") else None
            settings = replace(settings, val_fraction=None, flip=None, image_size=side)
    changes = {"train_images": train_images, "image_size": image_size, "flip": flip}
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})


def _open(settings: DataConfig, on_progress: OnProgress | None) -> DataSet:
    name, path = _parts(settings.data)
    if name not in DATASETS:
        if Path(settings.data).exists():
            raise UserError(f"{settings.data!r} is a path; for pictures in folders say folder:{settings.data}")
        raise unknown_name("data set", name, DATASETS)
    if not path.isprintable():
        raise UserError(f"the path {path!r} can't be written in UTF-8 on one line")
    return DATASETS[name](path or None, settings, on_progress or (lambda task, done, total: None))


def _parts(spec: str) -> tuple[str, str]:
    name, _, path = spec.partition(":")
    return name, os.path.expanduser(path)
