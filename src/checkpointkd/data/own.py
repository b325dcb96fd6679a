"""The user's own data sets, `checkpointkd.Data`: read and checked item by item, augmented by their own transforms.

The draws of a random transform are a function of (seed, epoch, number of the image), whatever the worker or the batch.
Letters in names: N images, B batch, C channels, H W height and width, M some of the images.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ..config import Augmentation, DataConfig
from ..errors import UserError, first_line
from ..ranks import ALONE, Ranks
from ..user_code import OBJECT, import_object, named
from ..user_data import Data as UserData
from .datasets import DataSet
from .images import CROPS, estimated_statistics, eval_batch_size, mean_and_std
from .in_memory import InMemoryImages
from .loading import Draw, LoadedBatches, as_floats, load_rows
from .own_items import Normalized, attribute_of, check_labels, check_shape, labels_of, normalization_of, read_item
from .streaming import sample_numbers
from .views import Views

PROBED = 8  # images that are read twice, to learn whether a data set augments


def data_name(data: str | UserData) -> str:
    """Return the name of a data set: a text as it is, and `object:NAME` for an object, which commands then find.

    Raises:
        UserError: If the value is neither, or if the object's images cannot be read.
    """
    if isinstance(data, str):
        return data
    if not isinstance(data, UserData):
        raise UserError(f"data= takes the name of a data set or a checkpointkd.Data, not {type(data).__name__}")
    return named(data, data.name or _split(data, "train").digest[:12])


def names_own_data(name: str, known: Sequence[str]) -> bool:
    """Return whether a name stands for the user's own data: `package.module:callable` or `object:NAME`.

    Args:
        name: The name, as `--data` takes it.
        known: The names of data sets, which win.

    >>> [names_own_data(name, ["folder"]) for name in ("folder:cars", "cars.data:build", "cars", "cars:./images")]
    [False, True, False, False]
    """
    module, _, attribute = name.partition(":")
    if name.startswith(OBJECT):
        return True
    return module not in known and attribute.isidentifier() and all(map(str.isidentifier, module.split(".")))


def own_data(name: str, settings: DataConfig) -> DataSet:
    """Return the user's data set of this name.

    Raises:
        UserError: If there is none, if its items are not images and labels, or if validation images would be augmented.
    """
    data = _named_data(name)
    train = _split(data, "train")
    if settings.select_on == "val" and data.val is None and data.clean is None and train.augments:
        raise UserError(
            "train= augments its images, and there is no val=. Give val=, or clean= with the same images without "
            "augmentation, of which a part validates."
        )
    if settings.flip and data.views is None:
        raise UserError(f"--flip does not apply to {name}: its own transforms augment. Add a flip there.")
    in_memory = data.views is not None
    if in_memory and not isinstance(data.views, Views):
        raise UserError(f"views= takes checkpointkd.data.Views(...), not {type(data.views).__name__}")
    images = _in_memory if in_memory else _split
    return DataSet(
        classes=_classes(data),
        train=lambda: images(data, "train"),
        val=None if data.val is None else lambda: images(data, "val"),
        test=lambda: images(data, "test"),
        recipe="adamw" if max(train.shape[1:]) > 64 else "cifar100",
    )


@final
@dataclass(frozen=True, eq=False)
class OwnImages:
    """Labeled images of a user's `Dataset`s, read when they are needed."""

    role: str  # "train", "val" or "test", for errors
    augmented: Dataset
    clean: Dataset
    normalized: Normalized | None  # what `augmented` subtracts and divides by
    clean_normalized: Normalized | None
    digest: str
    augments: bool
    labels_N: Tensor
    index_N: Tensor
    shape: tuple[int, int, int]
    length: int  # of the whole data set
    flip: bool = False  # a user's own augmentation is not ours to describe

    def __len__(self) -> int:
        return len(self.labels_N)

    def subset(self, rows_M: Tensor) -> OwnImages:
        """Return the images of these rows."""
        return replace(self, labels_N=self.labels_N[rows_M], index_N=self.index_N[rows_M])

    def to_float(self) -> Tensor:
        """Return all images without augmentation, as floats in [0, 1]."""
        return torch.cat(list(self.iter_batches(eval_batch_size(self))))

    def iter_batches(self, size: int) -> Iterator[Tensor]:
        """Yield the images without augmentation, in order, at most `size` at a time."""
        for pixels_BCHW, _ in load_rows(self, torch.arange(len(self)).split(size)):
            yield as_floats(pixels_BCHW).clamp(0, 1)

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        augmentation: Augmentation | None = CROPS,
        ranks: Ranks = ALONE,
    ) -> LoadedBatches:
        """Return batches to train on."""
        if augmentation is not None and augmentation.changes_pixels:
            raise UserError(
                "--auto-augment and --erasing do not apply to your data, which its own transforms augment. Add them "
                "there."
            )
        settings: Any = {"batch_size": batch_size, "seed": seed, "device": device, "ranks": ranks}
        return LoadedBatches(self, augmentation=augmentation, **settings)

    def sha256(self) -> str:
        """Return the identity of these images: the hash of their digest, labels and order."""
        digest = hashlib.sha256(self.digest.encode())
        for tensor in (self.labels_N, self.index_N):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel, over 1,000 evenly spaced images."""
        return estimated_statistics(self)

    def read(self, row: int, draw: Draw | None) -> np.ndarray:
        """Return the pixels (H, W, C) of an image, augmented by what follows from `draw`, or without augmentation."""
        number, dataset = int(self.index_N[row]), self.clean if draw is None else self.augmented
        length = len(dataset)  # type: ignore[arg-type]
        if length != self.length:
            raise UserError(
                f"The length of {self.role}= has changed from {self.length:,} to {length:,}. A data set must keep its "
                "images during a command."
            )
        normalized = self.clean_normalized if draw is None else self.normalized
        pixels_HWC, _ = read_item(dataset, number, self.role, normalized, draw)
        check_shape(pixels_HWC, self.shape, self.role, number)
        return pixels_HWC


def _named_data(name: str) -> UserData:
    value = import_object(name, kind="Data set")
    if not name.startswith(OBJECT) and not isinstance(value, UserData):
        value = _called(name, value)
    if not isinstance(value, UserData):
        raise UserError(f"{name!r} must be a function that returns a checkpointkd.Data, not {type(value).__name__}")
    return value


@functools.cache
def _called(name: str, function: Any) -> Any:
    """Call a user's function once in this process: reading a data set's labels can take long."""
    try:
        return function()
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"Data set {name!r} cannot be built: {first_line(error)}") from None


def _classes(data: UserData) -> tuple[str, ...]:
    classes = data.classes if data.classes is not None else attribute_of(data.train, "classes")
    if classes is None:
        raise UserError("Name the classes: Data(..., classes=[...]), or their number. train= has no attribute classes.")
    if isinstance(classes, int) and not isinstance(classes, bool) and classes > 0:
        return tuple(map(str, range(classes)))
    if not isinstance(classes, Iterable) or isinstance(classes, str | bytes | set | frozenset):  # a set has no order
        raise UserError(f"classes= takes the names of the classes in order, or their number, not {classes!r}")
    return tuple(classes)


@functools.lru_cache(maxsize=16)
def _split(data: UserData, role: str) -> OwnImages:
    """Return the images of `train`, `val` or `test`, after a look at their labels and at a sample of the images."""
    dataset, count = getattr(data, role), len(getattr(data, role))
    if isinstance(dataset, IterableDataset):
        raise UserError(f"{role}= is an IterableDataset. Give a map-style data set, which has items by number.")
    clean = data.clean if role == "train" and data.clean is not None else dataset
    given: Normalized | None = None
    if data.normalized is not None:
        mean, std = mean_and_std(data.normalized)
        given = tuple(mean), tuple(std)
    normalized, clean_normalized = given or normalization_of(dataset), given or normalization_of(clean)
    digest = hashlib.sha256(f"{count} {data.name}".encode())
    shape, labels = None, {}
    for number in sample_numbers(count):
        pixels_HWC, label = read_item(clean, number, role, clean_normalized, None)
        shape = shape or (pixels_HWC.shape[2], *pixels_HWC.shape[:2])
        check_shape(pixels_HWC, shape, role, number)
        labels[number] = label
        if data.name is None:
            digest.update(np.ascontiguousarray(pixels_HWC).data)
    assert shape is not None
    labels_N = labels_of(clean, count, role, labels)
    check_labels(labels_N, len(_classes(data)), role)
    digest.update(labels_N.numpy().data)
    probed = list(labels)[:PROBED]
    first, second = (
        [read_item(dataset, number, role, normalized, (0, epoch))[0] for number in probed] for epoch in (0, 1)
    )
    augments = not all(map(np.array_equal, first, second))
    return OwnImages(
        role=role,
        augmented=dataset,
        clean=clean,
        normalized=normalized,
        clean_normalized=clean_normalized,
        digest=digest.hexdigest(),
        augments=augments,
        labels_N=labels_N,
        index_N=torch.arange(count),
        shape=shape,
        length=count,
    )


@functools.lru_cache(maxsize=16)
def _in_memory(data: UserData, role: str) -> InMemoryImages:
    """Return the images as pixels of 8 bits, with the views that the user declares."""
    images = _split(data, role)
    if images.augments:
        raise UserError(f"views= augments the images, but {role}= augments them, too. Remove its random transforms.")
    pixels = []
    for images_BCHW in images.iter_batches(eval_batch_size(images)):
        level_BCHW = images_BCHW * 255
        if (level_BCHW - level_BCHW.round()).abs().max() > 0.01:
            raise UserError(
                f"views= keeps images with 8 bits per channel, but pixels of {role}= lie between two of the 256 "
                "levels. Leave out views=, or resize before the images become floats."
            )
        pixels.append(level_BCHW.round().to(torch.uint8))
    return InMemoryImages(torch.cat(pixels), images.labels_N, images.index_N, data.views)
