"""Scores without run directories: of networks in memory, and of logits that any program has computed.

Letters in names: A checkpoints, N images, K classes, C channels, H W height and width, M some of the images.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from ..config import EstimatorConfig
from ..data import Batch, Images
from ..data.images import SLACK, check_channels, epoch_order, mean_and_std
from ..device import usable_device
from ..errors import UserError, first_line
from ..models import Network, last_map_path
from ..records.base import DataRecord
from ..records.selection import PlanePoint, PlaneSettings
from ..storage import content_hash
from .labels import label_measures, per_image
from .plane import Plane, score_checkpoints

log = logging.getLogger("checkpointkd")


@dataclass(frozen=True, eq=False)
class LogitScores:
    """The scores of checkpoints of which only logits are known: all but I(X;F), which is NaN.

    `images` holds each image's contribution (A, N), for the rules and their bootstrap, by the names of
    `labels.per_image`.
    """

    points: tuple[PlanePoint, ...]
    images: dict[str, np.ndarray]

    @property
    def epochs(self) -> list[int]:
        return [point.epoch for point in self.points]


def scores_of_logits(logits: Mapping[int, Tensor], labels_N: Tensor) -> LogitScores:
    """Return the scores of checkpoints by their logits (N, K) on the same images, by epoch.

    >>> scores = scores_of_logits({1: torch.zeros(2, 2), 2: torch.eye(2)}, torch.tensor([0, 1]))
    >>> [(point.epoch, point.accuracy) for point in scores.points]
    [(1, 0.5), (2, 1.0)]
    """
    points, parts = [], []
    for epoch in sorted(logits):
        logits_NK = logits[epoch].float()
        parts.append({name: part_N.numpy() for name, part_N in per_image(logits_NK, labels_N).items()})
        points.append(
            PlanePoint(
                epoch=epoch,
                sha256=content_hash({"logits": logits_NK}),
                **label_measures(logits_NK, labels_N),
                image_information=math.nan,
                image_information_se=math.nan,
                image_information_sd=None,
                details={},
            )
        )
    return LogitScores(tuple(points), {name: np.stack([part[name] for part in parts]) for name in parts[0]})


def plane(
    models: Mapping[int, nn.Module] | Sequence[nn.Module],
    loader: Iterable[Any],
    *,
    fit_loader: Iterable[Any] | None = None,
    normalized: tuple[Sequence[float], Sequence[float]] | None = None,
    estimator: str = EstimatorConfig.estimator,
    feature_layer: str | None = None,
    steps: int = EstimatorConfig.steps,
    seeds: int = EstimatorConfig.seeds,
    device: torch.device | str = "cpu",
) -> Plane:
    """Place networks in memory on the information plane, as `score` places the checkpoints of a run.

    `checkpointkd.select(plane)` then applies a rule. Nothing is stored.

    Example:

        plane = ckd.plane({10: early, 20: late}, val_loader, estimator="ridge")
        print(ckd.select(plane).epoch)

    Args:
        models: The networks, from images as `loader` gives them to logits, by epoch; or in order, as epochs 1, 2, ….
        loader: Yields (images, labels) of the images to measure on, such as a `torch.utils.data.DataLoader`. It is read
            once, so it may shuffle.
        fit_loader: The same for the images to fit the estimator on. None: every second image of `loader`.
        normalized: Mean and standard deviation of each channel, if the images are normalized. None: they are in [0, 1].
        estimator: `decoder`, `ridge`, or your own as `package.module:function`.
        feature_layer: The module whose feature map is decoded, by path. None: the map before global pooling.
        steps: Training steps of each decoder.
        seeds: Decoders per network.
        device: Where to compute.

    Raises:
        UserError: If an item is not (images, labels), if images are not in [0, 1], if a network has no feature map, or
            if the networks differ in their number of classes.
    """
    by_epoch = dict(models) if isinstance(models, Mapping) else dict(enumerate(models, 1))
    if not by_epoch:
        raise UserError("plane() needs at least one network")
    for epoch, model in by_epoch.items():
        if not isinstance(model, nn.Module):
            raise UserError(f"The network of epoch {epoch} must be a torch.nn.Module, not {type(model).__name__}")
    mean, std = mean_and_std(normalized)
    measured_on = _read(loader, mean, std, "loader")
    if fit_loader is None:
        rows_N = torch.arange(len(measured_on))
        if len(measured_on) < 2:
            raise UserError("loader yields 1 image. Give at least 2, or a fit_loader.")
        fitted_on, measured_on = measured_on.subset(rows_N[::2]), measured_on.subset(rows_N[1::2])
    else:
        fitted_on = _read(fit_loader, mean, std, "fit_loader")
        if fitted_on.shape != measured_on.shape:
            raise UserError(
                f"Images of fit_loader have the shape {fitted_on.shape}, of loader {measured_on.shape} (channels, "
                "height, width). Add a transform that makes them equal."
            )
    device, channels = usable_device(device), measured_on.shape[0]
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    with _left_as_they_were(by_epoch.values()):
        checkpoints = [
            _InMemoryCheckpoint(epoch, Network(model.eval(), mean=mean, std=std)) for epoch, model in by_epoch.items()
        ]
        _check_logits(checkpoints, measured_on, device)
        first = checkpoints[0].network(device)
        images_BCHW = measured_on.images_NCHW[:2].to(device)
        settings = PlaneSettings(
            estimator_config=EstimatorConfig(
                estimator=estimator,
                fit_images=len(fitted_on),
                measure_images=len(measured_on),
                steps=steps,
                seeds=seeds,
            ),
            feature_layer=feature_layer or last_map_path(first.body, first.normalized(images_BCHW)),
            precision="fp32",
            data=_record(fitted_on, measured_on),
        )
        fitted_on, measured_on = cast(Images, fitted_on), cast(Images, measured_on)  # what estimators use of them
        scored = [
            next(iter(score_checkpoints([checkpoint], fitted_on, measured_on, settings, device, device, None)))
            for checkpoint in sorted(checkpoints, key=lambda checkpoint: checkpoint.epoch)
        ]
    parts = [part for _, part in scored]
    arrays = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    return Plane(tuple(point for point, _ in scored), settings, arrays.pop("information"), arrays)


@dataclass(frozen=True, eq=False)
class _TensorImages:
    """Images in [0, 1] as floats in memory, for estimators."""

    images_NCHW: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images_NCHW.shape[1:]
        return channels, height, width

    @property
    def index_N(self) -> Tensor:
        return torch.arange(len(self))

    def subset(self, rows_M: Tensor) -> _TensorImages:
        return replace(self, images_NCHW=self.images_NCHW[rows_M], labels_N=self.labels_N[rows_M])

    def to_float(self) -> Tensor:
        return self.images_NCHW

    def iter_batches(self, size: int) -> Iterator[Tensor]:
        yield from self.images_NCHW.split(size)

    def batches(self, *, batch_size: int, seed: int, device: torch.device | str, augmentation: None = None) -> _Batches:
        return _Batches(self, batch_size, seed, torch.device(device))


@dataclass(frozen=True, eq=False)
class _Batches:
    """Batches without augmentation, for the decoder."""

    images: _TensorImages
    batch_size: int
    seed: int
    device: torch.device

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        for row_B in epoch_order(len(self.images), seed=self.seed, epoch=epoch).split(self.batch_size)[start:]:
            images_BCHW, labels_B = self.images.images_NCHW[row_B], self.images.labels_N[row_B]
            yield Batch(images_BCHW.to(self.device), labels_B.to(self.device), row_B.to(self.device), None)


@dataclass(frozen=True, eq=False)
class _InMemoryCheckpoint:
    epoch: int
    body: Network

    @property
    def path(self) -> Path:
        return Path(f"the network of epoch {self.epoch}")

    @property
    def sha256(self) -> str:
        return content_hash(self.body.state_dict())

    def network(self, device: torch.device | str = "cpu") -> Network:
        return self.body.to(device)


@contextlib.contextmanager
def _left_as_they_were(models: Collection[nn.Module]) -> Iterator[None]:
    """Restore the mode and the device of networks, which the user may go on training."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    devices = [next((parameter.device for parameter in model.parameters()), None) for model in models]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for model, device in zip(models, devices, strict=True):
            model.to(device)


def _read(loader: Iterable[Any], mean: list[float], std: list[float], name: str) -> _TensorImages:
    """Return all images of a loader in [0, 1], and their labels."""
    if isinstance(getattr(loader, "sampler", None), RandomSampler):
        log.warning("%s shuffles: a repeated call measures other halves. Use a DataLoader with shuffle=False.", name)
    images, labels = [], []
    for item in loader:
        if not (isinstance(item, tuple | list) and len(item) >= 2 and all(isinstance(x, Tensor) for x in item[:2])):
            raise UserError(f"{name} must yield (images, labels), two tensors, not {type(item).__name__}")
        if item[1].is_floating_point() or item[1].ndim != 1 or len(item[1]) != len(item[0]):
            raise UserError(
                f"{name} must yield one whole number per image as labels, not {tuple(item[1].shape)} of "
                f"{str(item[1].dtype).removeprefix('torch.')}"
            )
        if images and item[0].shape[1:] != images[0].shape[1:]:
            raise UserError(
                f"{name} yields images of unequal size: {tuple(images[0].shape[1:])} and {tuple(item[0].shape[1:])} "
                "(channels, height, width). Add a transform that makes them equal."
            )
        images.append(item[0].float().cpu())
        labels.append(item[1].long().cpu())
    if not images:
        raise UserError(f"{name} yields no images")
    images_NCHW = torch.cat(images)
    if images_NCHW.ndim != 4:
        raise UserError(f"{name} must yield images (B, C, H, W), not {tuple(images[0].shape)}")
    check_channels(mean, images_NCHW.shape[1])
    images_NCHW = images_NCHW * torch.tensor(std).reshape(1, -1, 1, 1) + torch.tensor(mean).reshape(1, -1, 1, 1)
    low, high = images_NCHW.min().item(), images_NCHW.max().item()
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise UserError(
            f"Images of {name} are in [{low:.3g}, {high:.3g}], not in [0, 1]. Give normalized=(mean, std) if they are "
            "normalized."
        )
    return _TensorImages(images_NCHW.clamp(0, 1), torch.cat(labels))


@torch.no_grad()
def _check_logits(checkpoints: Sequence[_InMemoryCheckpoint], images: _TensorImages, device: torch.device) -> None:
    """Raise UserError unless each network returns logits for all labels, of the same number of classes."""
    shapes = []
    for checkpoint in checkpoints:
        try:
            logits_BK = checkpoint.network(device)(images.images_NCHW[:2].to(device))
        except Exception as error:  # the user's code may raise anything
            raise UserError(
                f"The network of epoch {checkpoint.epoch} fails on images of shape {images.shape}: {first_line(error)}"
            ) from None
        shape = tuple(logits_BK.shape) if isinstance(logits_BK, Tensor) else type(logits_BK).__name__
        if not isinstance(logits_BK, Tensor) or logits_BK.ndim != 2:
            raise UserError(f"The network of epoch {checkpoint.epoch} returns {shape}, not logits (B, K)")
        shapes.append(logits_BK.shape[1])
    if len(set(shapes)) > 1:
        raise UserError(f"The networks differ in their number of classes: {', '.join(map(str, shapes))}")
    wrong_M = images.labels_N[(images.labels_N < 0) | (images.labels_N >= shapes[0])]
    if len(wrong_M):
        raise UserError(f"The label {int(wrong_M.max())} is not among the {shapes[0]} classes of the networks")


def _record(fitted_on: _TensorImages, measured_on: _TensorImages) -> DataRecord:
    """Return what identifies the images of loaders."""
    digest = hashlib.sha256()
    for images in (fitted_on, measured_on):
        digest.update(content_hash({"images": images.images_NCHW, "labels": images.labels_N}).encode())
    return DataRecord(
        name="loader",
        source=None,
        sha256=digest.hexdigest(),
        select_on="val",
        val_fraction=None,
        split_seed=0,
        train_images=None,
        image_size=None,
        flip=False,
        shape=measured_on.shape,
        train_size=len(fitted_on),
        val_size=len(measured_on),
    )
