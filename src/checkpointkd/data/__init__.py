"""Images as tensors: data sets by name, protocols, views, batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ..errors import unknown
from ..settings import DataSettings
from .cifar import cifar10, cifar100
from .digits import digits
from .images import Batch, Images, ResidentBatches
from .sets import Data, DataSet
from .splits import stratified, without
from .views import Views

DATASETS: dict[str, Callable[[str | None], DataSet]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
}

__all__ = [
    "DATASETS",
    "Batch",
    "Data",
    "DataSet",
    "DataSettings",
    "Images",
    "ResidentBatches",
    "Views",
    "load_data",
    "load_test",
    "settings_of",
    "stratified",
]


def load_data(settings: DataSettings) -> Data:
    """The training and the selection images under a protocol; raises UserError for unknown names and bad splits.

    >>> data = load_data(DataSettings(data="digits", train_images=300))
    >>> len(data.train), len(data.selection), len(data.views)
    (300, 300, 9)
    """
    dataset = _open(settings.data)
    official = dataset.train()
    if settings.protocol == "paper":
        train, selection, fraction = official, dataset.test(), None
    else:
        fraction = settings.selection_fraction or dataset.selection_fraction
        rows_M = stratified(
            official.labels_N, round(fraction * len(official)), seed=settings.split_seed, purpose="selection"
        )
        train, selection = official.take(without(len(official), rows_M)), official.take(rows_M)
    if settings.train_images is not None:
        rows_M = stratified(train.labels_N, settings.train_images, seed=settings.split_seed, purpose="training")
        train = train.take(rows_M)
    name, _, path = settings.data.partition(":")
    identity = {
        **asdict(settings),
        "data": name,
        "source": str(Path(path).resolve()) if path else None,
        "selection_fraction": fraction,
        "sha256": official.sha256(),
        "train_size": len(train),
        "selection_size": len(selection),
    }
    return Data(dataset.classes, dataset.views, train, selection, identity)


def load_test(settings: DataSettings) -> Images:
    """The test images, for the final evaluation of a run and for nothing else."""
    return _open(settings.data).test()


def settings_of(identity: dict) -> DataSettings:
    """The settings that a stored identity was loaded with."""
    stored = {name: identity[name] for name in DataSettings.__dataclass_fields__}
    spec = f"{identity['data']}:{identity['source']}" if identity["source"] else identity["data"]
    return DataSettings(**{**stored, "data": spec})


def _open(spec: str) -> DataSet:
    name, _, path = spec.partition(":")
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return DATASETS[name](path or None)
