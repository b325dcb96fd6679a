"""The information plane of a trajectory: the estimates of I(X;F) and I(Y;F) of each checkpoint, made and stored.

Letters in names: A checkpoints, S fits of an estimator, N images, K classes, D channels, h w map height and width.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import torch

from .. import records, storage
from ..checkpoints import Trajectory
from ..config import EstimatorConfig, OnProgress
from ..data import Data, Images, stratified
from ..device import autocast
from ..errors import UserError, duration, pluralize
from ..models import capture_activations, last_map_path, names_code
from ..ranks import ALONE, Ranks
from ..records.selection import PlanePoint, PlaneRecord, PlaneSettings
from ..training.loop import OnStep
from .estimators import ScoredCheckpoint, get_estimator
from .features import MAX_MAP_BYTES, is_large, maps_and_logits
from .labels import label_measures, per_image

log = logging.getLogger("checkpointkd")

FILE = "plane.json"
MAX_CHECKPOINTS = {"cpu": 1}  # scored together: one fits a processor's cache
MAX_CHECKPOINTS_ON_ACCELERATOR = 10
_EMPTY = (
    "The %s found no information about the images in the features of %s %d. Stop with Ctrl-C. Then raise --fit-images "
    "above %d, name an earlier layer with --feature-layer, or use the other --estimator."
)
_TIMED_STEPS = 5  # of a decoder, to estimate the time for all checkpoints
UNFINISHED = "-unfinished"  # ends the key, in plane.json, of scores that will replace others once all are made

ImageParts = dict[str, np.ndarray]  # each image's contribution: "information" (S, N), the rest of `per_image` (N,)
Scores = dict[int, tuple[PlanePoint, ImageParts]]  # by epoch


def _is_empty(point: PlanePoint) -> bool:
    """Return whether an estimate is 0, or its decoders are no better than the best constant image."""
    return point.details.get("gain", 1.0) <= 0 or ("strength" in point.details and point.image_information == 0)


@dataclass(frozen=True, eq=False)
class Plane:
    """The points of a trajectory, in order of epoch, and the settings that made them.

    `information_ASN` and `images` hold each image's contribution, for the rules and their bootstrap. `images` has an
    array (A, N) for each name of `labels.per_image`.
    """

    points: tuple[PlanePoint, ...]
    settings: PlaneSettings
    information_ASN: np.ndarray
    images: dict[str, np.ndarray]

    @property
    def epochs(self) -> list[int]:
        return [point.epoch for point in self.points]

    def to_plain(self) -> dict[str, Any]:
        """Return the plane as JSON values, without the contributions of the images."""
        return {"settings": records.plain(self.settings), "points": records.plain(self.points)}


def score_trajectory(
    trajectory: Trajectory,
    data: Data,
    *,
    settings: EstimatorConfig,
    feature_layer: str | None = None,
    device: torch.device,
    on_progress: OnProgress | None = None,
    ranks: Ranks = ALONE,
) -> Plane:
    """Place every checkpoint of a trajectory on the information plane, and store the plane in the run directory.

    Estimators are fitted on training images and measured on the validation set, without augmentation. Stored points
    that were made from the same weights with the same settings are kept. With several `ranks`, each scores a part of
    the checkpoints, and the main process writes.

    Raises:
        UserError: If there is no checkpoint, if there are too few images, or if the layer has no map.
    """
    if len(trajectory) == 0:
        raise UserError(f"The run in {trajectory.source} has saved no checkpoint yet")
    fit_count, measure_count = settings.images(len(data.train), len(data.val), large=is_large(data.val))
    if min(fit_count, measure_count) < 2:
        raise UserError(
            f"Scoring needs at least 2 images to fit on and 2 to measure on, not {fit_count} and {measure_count}. "
            "Raise --fit-images and --measure-images."
        )
    fitted_on = data.train.subset(stratified(data.train.labels_N, fit_count, seed=0, purpose="decoder"))
    measured_on = data.val
    if measure_count < len(measured_on):
        measured_on = measured_on.subset(stratified(measured_on.labels_N, measure_count, seed=0, purpose="measuring"))
    layer, map_size = _layer_and_map_size(trajectory, data, feature_layer, device)
    plane_settings = PlaneSettings(
        estimator_config=replace(settings, fit_images=fit_count, measure_images=measure_count),
        feature_layer=layer,
        precision=trajectory.run.precision,
        data=msgspec.structs.replace(data.record, source=None),
        unit="step" if trajectory.unit == "step" else "epoch",
        features="float16" if is_large(data.val) else "float32",
    )
    key, replaced, scores = ranks.from_main(lambda: _stored_scores(trajectory, plane_settings))
    todo = [checkpoint for epoch, checkpoint in trajectory.items() if epoch not in scores]
    map_bytes = (2 if is_large(data.val) else 4) * map_size * (fit_count + measure_count)
    most = MAX_CHECKPOINTS.get(device.type, 1 if is_large(data.val) else MAX_CHECKPOINTS_ON_ACCELERATOR)
    chunk_size = max(1, min(most, int(MAX_MAP_BYTES // map_bytes)))
    maps_on = device if map_bytes <= MAX_MAP_BYTES else torch.device("cpu")
    warned = False
    together = chunk_size * ranks.world_size
    for start in range(0, len(todo), together):
        shared = todo[start : start + together]
        chunk = [shared[row] for row in ranks.part(torch.arange(len(shared)))]
        on_step = _chunk_progress(start, len(shared), len(todo), on_progress)
        if start == 0:
            on_step = _with_estimate(on_step, len(todo) / len(shared), pluralize(len(todo), "checkpoint"))
        made = (fitted_on, measured_on, plane_settings, device, maps_on, on_step)
        for point, parts in ranks.collect(list(score_checkpoints(chunk, *made)) if chunk else []):
            scores[point.epoch] = (point, parts)
            if not warned and _is_empty(point):
                warned = True
                log.warning(_EMPTY, settings.estimator, plane_settings.unit, point.epoch, fit_count)
        # after each chunk: a killed process keeps its scores
        ranks.from_main(lambda: _store(trajectory, scores, plane_settings, key))
    finished = replaced is not None and key != settings.estimator
    removed = not todo and (replaced is None or len(scores) < len(replaced.points))
    if finished or removed:
        ranks.from_main(lambda: _store(trajectory, scores, plane_settings, settings.estimator))
    return ranks.from_main(lambda: load_plane(trajectory, estimator=settings.estimator))


def _layer_and_map_size(
    trajectory: Trajectory, data: Data, feature_layer: str | None, device: torch.device
) -> tuple[str, int]:
    """Return the path of the layer to decode, and the number of values of its map of one image (1 if it has none)."""
    network = next(iter(trajectory.values())).network(device)
    images_BCHW = data.val.subset(torch.arange(2)).to_float().to(device)
    layer = feature_layer or last_map_path(network.body, network.normalized(images_BCHW))
    with capture_activations(network.body, [layer]) as activations:
        network(images_BCHW)
    return layer, activations[layer][0].numel() if layer in activations else 1


def _stored_scores(trajectory: Trajectory, settings: PlaneSettings) -> tuple[str, Plane | None, Scores]:
    """Return the key in plane.json to store under, the estimator's stored plane, and the scores that are still valid.

    Scores with other settings stay under the estimator's key until the new ones are complete.
    """
    stored = load_planes(trajectory).get(settings.estimator)
    code = next(filter(names_code, (trajectory.run.model, settings.estimator)), None)
    if stored is not None and code is not None:
        log.info("The code of %s may have changed, so all checkpoints are scored again", code)
        return settings.estimator + UNFINISHED, stored, {}
    if stored is None or stored.settings == settings:
        return settings.estimator, stored, _valid_scores(stored, trajectory, settings)
    log.warning(
        "The scores in %s were made with other settings. They are replaced when all new scores are complete. "
        "Then run `checkpointkd select` again.",
        trajectory.source,
    )
    key = settings.estimator + UNFINISHED
    return key, stored, _valid_scores(load_planes(trajectory, unfinished=True).get(key), trajectory, settings)


def _valid_scores(stored: Plane | None, trajectory: Trajectory, settings: PlaneSettings) -> Scores:
    if stored is None or stored.settings != settings:
        return {}
    stale = stale_epochs(stored, trajectory)
    return {
        point.epoch: (
            point,
            {
                "information": stored.information_ASN[row],
                **{name: part_AN[row] for name, part_AN in stored.images.items()},
            },
        )
        for row, point in enumerate(stored.points)
        if point.epoch not in stale
    }


def stale_epochs(plane: Plane, trajectory: Trajectory) -> list[int]:
    """Return the epochs whose checkpoint is new, gone or changed since the plane was made."""
    scored = {point.epoch: point.sha256 for point in plane.points}
    saved = {epoch: checkpoint.sha256 for epoch, checkpoint in trajectory.items()}
    return sorted(epoch for epoch in scored.keys() | saved.keys() if scored.get(epoch) != saved.get(epoch))


def load_plane(trajectory: Trajectory, *, estimator: str = "decoder") -> Plane:
    """Return the plane of one estimator.

    Raises:
        UserError: If the checkpoints have not been scored with this estimator.
    """
    planes = load_planes(trajectory)
    if estimator in planes:
        return planes[estimator]
    option = "" if estimator == "decoder" else f" --estimator {estimator}"
    stored = f" There are scores of {', '.join(planes)}: see --estimator." if planes else ""
    raise UserError(
        f"The checkpoints in {trajectory.source} have not been scored with the {estimator} estimator. "
        f"Run `checkpointkd score {trajectory.source}{option}` first.{stored}"
    )


def load_planes(trajectory: Trajectory, *, unfinished: bool = False) -> dict[str, Plane]:
    """Return the planes that `score` stored in a run directory, by estimator; none if there is no plane.json.

    Args:
        trajectory: The trajectory that was scored.
        unfinished: Whether to include scores that will replace others but are not complete.

    Raises:
        UserError: If plane.json or one of its array files is damaged.
    """
    path = trajectory.path / FILE
    if not path.exists():
        return {}
    written = path.stat().st_mtime_ns
    try:
        stored = _read(trajectory)
        return {
            key: _with_arrays(trajectory, record)
            for key, record in stored.items()
            if unfinished or not key.endswith(UNFINISHED)
        }
    except UserError:
        if path.exists() and path.stat().st_mtime_ns != written:  # another process has replaced the arrays meanwhile
            return load_planes(trajectory, unfinished=unfinished)
        raise


def _read(trajectory: Trajectory) -> dict[str, PlaneRecord]:
    return records.read(trajectory.path / FILE, dict[str, PlaneRecord], remedy=_remedy(trajectory))


def _remedy(trajectory: Trajectory) -> str:
    return f"Remove {trajectory.path / FILE}, and run `checkpointkd score` again."


def _with_arrays(trajectory: Trajectory, record: PlaneRecord) -> Plane:
    """Return the plane of a record and of the arrays that it names."""
    path = trajectory.path / record.arrays
    tensors, _ = storage.load_tensors(path, remedy=_remedy(trajectory))
    information_ASN = tensors.pop("information_ASN", torch.zeros(0)).numpy()
    shape = (len(record.points), information_ASN.shape[-1])
    if information_ASN.ndim != 3 or any(tensor.shape != shape for tensor in tensors.values()) or not tensors:
        raise UserError(f"{path} does not belong to {trajectory.path / FILE}. {_remedy(trajectory)}")
    images = {name: tensor.numpy() for name, tensor in tensors.items()}
    return Plane(record.points, record.settings, information_ASN, images)


def _store(trajectory: Trajectory, scores: Scores, settings: PlaneSettings, key: str) -> None:
    """Store scores under a key of plane.json. The arrays go to a new file first: a kill leaves the old pair intact."""
    epochs = sorted(scores)
    parts = [scores[epoch][1] for epoch in epochs]
    arrays = {
        "information_ASN" if name == "information" else name: torch.from_numpy(np.stack([part[name] for part in parts]))
        for name in parts[0]
    }
    name = re.sub(r"[^\w.-]", "_", key)  # the name of a user's own estimator has a colon
    arrays_path = trajectory.path / f"plane-{name}-{storage.content_hash(arrays)[:12]}.safetensors"
    storage.save_tensors(arrays_path, arrays)
    stored = _read(trajectory) if (trajectory.path / FILE).exists() else {}
    stored.pop(key + UNFINISHED, None)
    points = tuple(scores[epoch][0] for epoch in epochs)
    stored[key] = PlaneRecord(settings=settings, arrays=arrays_path.name, points=points)
    storage.write_json(trajectory.path / FILE, stored)
    named = {record.arrays for record in stored.values()}
    for path in trajectory.path.glob("plane-*.safetensors"):
        if path.name not in named:
            path.unlink(missing_ok=True)


def _chunk_progress(start: int, size: int, count: int, on_progress: OnProgress | None) -> OnStep | None:
    """Return a callback that reports the steps of one chunk of checkpoints as steps of all checkpoints."""
    if on_progress is None:
        return None
    return lambda done, steps: on_progress(f"{count} checkpoints", start * steps + size * done, count * steps)


def _with_estimate(on_step: OnStep | None, chunks: float, what: str) -> OnStep:
    """Return a callback that also logs the estimated time for all chunks, after a few steps of the first chunk."""
    times = [time.perf_counter()]

    def record(done: int, steps: int) -> None:
        times.append(time.perf_counter())
        if done == min(_TIMED_STEPS, steps):
            step = (times[-1] - times[1]) / max(1, done - 1)
            seconds = chunks * (times[-1] - times[0] + step * (steps - done))
            if seconds > 30:
                log.info("Scoring %s takes about %s on this machine", what, duration(seconds))
        if on_step is not None:
            on_step(done, steps)

    return record


def score_checkpoints(
    checkpoints: Sequence[ScoredCheckpoint],
    fitted_on: Images,
    measured_on: Images,
    settings: PlaneSettings,
    device: torch.device,
    maps_on: torch.device,
    on_step: OnStep | None,
) -> Iterator[tuple[PlanePoint, ImageParts]]:
    """Yield the point of each checkpoint and the contribution of each image to it."""
    fitted_maps, measured_maps, logits = [], [], []
    for checkpoint in checkpoints:  # one network at a time
        network = checkpoint.network(device)
        with autocast(device, settings.precision):
            fitted_maps.append(maps_and_logits(network, fitted_on, settings.feature_layer, maps_on=maps_on)[0])
            maps_NhwD, logits_NK = maps_and_logits(network, measured_on, settings.feature_layer, maps_on=maps_on)
        del network
        if not logits_NK.isfinite().all():
            raise UserError(f"{checkpoint.path} has NaN or infinite logits")
        measured_maps.append(maps_NhwD)
        logits.append(logits_NK)
    information_ASN, details = get_estimator(settings.estimator)(
        fitted_on,
        fitted_maps,
        measured_on,
        measured_maps,
        settings=settings.estimator_config,
        on_step=on_step,
        device=device,
    )
    shape = tuple(information_ASN.shape)
    if len(shape) != 3 or (shape[0], shape[2]) != (len(checkpoints), len(measured_on)):
        raise UserError(
            f"The estimator {settings.estimator} returned values of shape {shape}. It must return one value for each "
            f"checkpoint, fit and image, ({len(checkpoints)}, fits, {len(measured_on)})."
        )
    for number, checkpoint in enumerate(checkpoints):
        information_SN = information_ASN[number].double().cpu()
        logits_NK, labels_N = logits[number], measured_on.labels_N
        information_N = information_SN.mean(0)
        point = PlanePoint(
            epoch=checkpoint.epoch,
            sha256=checkpoint.sha256,
            **label_measures(logits_NK, labels_N),
            image_information=information_N.mean().item(),
            image_information_se=information_N.std(correction=0).item() / math.sqrt(len(information_N)),
            image_information_sd=information_SN.mean(1).std(correction=1).item() if len(information_SN) > 1 else None,
            details={name: values[number] for name, values in details.items()},
        )
        parts = {name: part_N.numpy() for name, part_N in per_image(logits_NK, labels_N).items()}
        yield point, {"information": information_SN.float().numpy(), **parts}
