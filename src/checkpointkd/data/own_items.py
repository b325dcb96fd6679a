"""Items of a user's `Dataset`: their pixels and labels, checked one by one. Every error names the item.

Letters in names: N images, C channels, H W height and width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from ..errors import UserError, first_line, pluralize
from ..seeding import seeded
from .images import SLACK, check_channels, mean_and_std
from .loading import Draw

log = logging.getLogger("checkpointkd")

CLEAN = ("clean", 0)  # the draw of images that are not augmented, for a data set that draws all the same
Normalized = tuple[tuple[float, ...], tuple[float, ...]]


def read_item(
    dataset: Any, number: int, role: str, normalized: Normalized | None, draw: Draw | None
) -> tuple[np.ndarray, Any]:
    """Return an item's pixels (H, W, C), uint8 or float32 in [0, 1], and its label."""
    name = f"Image {number} of {role}="
    try:
        with seeded("augmentation", *(draw or CLEAN), number):
            item = dataset[number]
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"{name} cannot be read: {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise UserError(f"{name} must be (image, label), not {type(item).__name__}")
    image = item[0]
    if hasattr(image, "convert") and hasattr(image, "mode"):  # of PIL
        image = torch.from_numpy(np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"), copy=True))
        image = (image if image.ndim == 3 else image[..., None]).permute(2, 0, 1)
    if (
        not isinstance(image, Tensor)
        or image.ndim != 3
        or not (image.is_floating_point() or image.dtype == torch.uint8)
    ):
        kind = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UserError(f"{name} must be a PIL image or a tensor (C, H, W), uint8 or float, not {kind}")
    if image.numel() == 0:
        raise UserError(f"{name} has no pixels: its shape is {tuple(image.shape)}")
    image = image.detach()
    if image.is_floating_point():
        image = image.float()
        if normalized is not None:
            check_channels(normalized[0], len(image))
            mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in normalized)
            image = image * std + mean
        if normalized is None or draw is None:  # augmentation may leave [0, 1] by normalized noise
            low, high = image.min().item(), image.max().item()
            if not (low >= -SLACK and high <= 1 + SLACK):  # NaN too
                how = "with its normalization undone, " if normalized else ""
                wrong = "another mean and std" if normalized else "normalized=(mean, std) if the images are normalized"
                raise UserError(f"{name} is {how}in [{low:.3g}, {high:.3g}], not in [0, 1]. Give {wrong}.")
    return image.permute(1, 2, 0).contiguous().numpy(), item[1]


def check_shape(pixels_HWC: np.ndarray, shape: tuple[int, int, int], role: str, number: int) -> None:
    own = (pixels_HWC.shape[2], *pixels_HWC.shape[:2])
    if own != shape:
        raise UserError(
            f"Image {number} of {role}= has the shape {own}, another one {shape} (channels, height, width). Add a "
            "transform that makes them equal, such as torchvision's Resize((96, 96))."
        )


def labels_of(dataset: Any, count: int, role: str, sampled: dict[int, Any]) -> Tensor:
    """Return all labels: those that the data set states, if they fit the sampled items; else each item is read."""
    stated = _stated_labels(dataset)
    if stated is not None and len(stated) == count:
        whole = [_whole(label) for label in stated]
        if None not in whole and all(whole[number] == _whole(label) for number, label in sampled.items()):
            return torch.tensor(whole)
    else:
        log.info("Reading all %s of %s= for their labels: it has no attribute targets", pluralize(count, "image"), role)
    labels = []
    for number in range(count):
        label = sampled[number] if number in sampled else _item_label(dataset, number, role)
        if _whole(label) is None:
            raise UserError(f"The label of image {number} of {role}= must be a whole number, not {label!r}")
        labels.append(_whole(label))
    return torch.tensor(labels)


def _item_label(dataset: Any, number: int, role: str) -> Any:
    try:
        return dataset[number][1]
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"Image {number} of {role}= cannot be read: {type(error).__name__}: {first_line(error)}"
        ) from None


def _whole(label: Any) -> int | None:
    """Return a label as an integer, or None if it is no whole number."""
    if isinstance(label, Tensor | np.ndarray | np.generic):
        label = label.item() if math.prod(label.shape) == 1 else None
    return int(label) if isinstance(label, int) else None


def check_labels(labels_N: Tensor, classes: int, role: str) -> None:
    bad = ((labels_N < 0) | (labels_N >= classes)).nonzero().flatten()
    if len(bad):
        raise UserError(
            f"The label of image {int(bad[0])} of {role}= is {int(labels_N[bad[0]])}, but there are {classes} classes, "
            f"numbered from 0. {pluralize(len(bad), 'image')} of {role}= {'has' if len(bad) == 1 else 'have'} such "
            "labels. Correct them, or name all classes with classes=."
        )


def _stated_labels(dataset: Any) -> Sequence[Any] | None:
    """Return the labels that a data set lists without reading its images, as torchvision's do; None without a list."""
    if isinstance(dataset, Subset):
        labels = _stated_labels(dataset.dataset)
        return None if labels is None else [labels[number] for number in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_stated_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [label for part in parts for label in part or ()]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return dataset.tensors[1].tolist()
    for name in ("targets", "labels"):
        labels = getattr(dataset, name, None)
        if isinstance(labels, list | tuple | Tensor | np.ndarray):
            return labels if isinstance(labels, list | tuple) else labels.tolist()
    return None


def attribute_of(dataset: Any, name: str) -> Any:
    """Return an attribute of a data set, or of the one that a `Subset` is part of; None without it."""
    while not hasattr(dataset, name) and isinstance(dataset, Subset):
        dataset = dataset.dataset
    return getattr(dataset, name, None)


def normalization_of(dataset: Any) -> Normalized | None:
    """Return mean and std of the `Normalize` at the end of a torchvision transform; None without one."""
    transform = attribute_of(dataset, "transform")
    while isinstance(steps := getattr(transform, "transforms", None), Sequence) and len(steps):
        transform = steps[-1]
    if type(transform).__name__ != "Normalize" or not hasattr(transform, "mean") or not hasattr(transform, "std"):
        return None
    mean, std = mean_and_std((transform.mean, transform.std))  # type: ignore[union-attr]
    return tuple(mean), tuple(std)
