"""The information plane: each checkpoint's I(X;F) and I(Y;F), with what they were measured on and how surely.

Letters in names: A checkpoints, S fits of an estimator, N images, K classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .. import storage
from ..checkpoints import Checkpoint, Trajectory
from ..config import EstimatorConfig
from ..data import Data, Images, eval_batch_size, stratified
from ..errors import UserError
from ..models import Network, as_map, capture_activations, last_map_path
from .decoder import decode
from .labels import label_measures, per_image
from .ridge import ridge

log = logging.getLogger("checkpointkd")

MAPS_AT_ONCE = 2e9  # bytes of features that are held at once; checkpoints beyond that wait
AT_ONCE = {"cpu": 1}  # checkpoints that are decoded together: one fits a processor's cache, an accelerator wants more
TOGETHER = 10
UNFINISHED = "-unfinished"  # the name, in plane.json, of scores that will replace others once all are made

OnCheckpoint = Callable[[str, int, int], None]  # what is done, how many steps of how many


class ImageInformationEstimator(Protocol):
    """What estimates I(X;F): from clean images and A checkpoints' maps of them (A, N, h, w, D), some to fit on and some
    to measure on, to each measured image's part (A, S, N), whose mean is the estimate, larger for more information; and
    what else is worth knowing of each checkpoint."""

    def __call__(
        self,
        fitted_on: Images,
        fitted_maps_ANhwD: Tensor,
        measured_on: Images,
        measured_maps_ANhwD: Tensor,
        *,
        settings: EstimatorConfig,
        on_step: Callable[[int, int], None] | None,
    ) -> tuple[Tensor, dict[str, list[float]]]: ...


ESTIMATORS: dict[str, ImageInformationEstimator] = {"decoder": decode, "ridge": ridge}


@dataclass(frozen=True)
class Point:
    """One checkpoint on the plane.

    `image_information` is the estimate of I(X;F), larger for more, in the estimator's unit (`settings.UNITS`), with its
    standard error over images and its deviation over the estimator's fits (None for a single one); `details` is what
    else the estimator said. `accuracy` is the paper's I(Y;F); `label_information` is H(Y) − CE in nats, a lower bound
    on it, at the temperature that suits the checkpoint.
    """

    epoch: int
    sha256: str
    accuracy: float
    accuracy_se: float
    nll: float
    label_information: float
    temperature: float
    image_information: float
    image_information_se: float
    image_information_sd: float | None
    details: dict[str, float]


@dataclass(frozen=True, eq=False)
class Plane:
    """A trajectory's points, in order of epoch, and the settings that made them.

    `information_ASN` and `images` (a name to (A, N): `right`, `nll` and the rest of `labels.per_image`) hold each
    image's part, for the rules and the bootstrap of the selection.
    """

    points: tuple[Point, ...]
    settings: dict[str, Any]
    information_ASN: np.ndarray
    images: dict[str, np.ndarray]

    @property
    def epochs(self) -> list[int]:
        return [point.epoch for point in self.points]

    def to_plain(self) -> dict[str, Any]:
        """The plane as JSON's values, without each image's part."""
        return {"settings": self.settings, "points": [asdict(point) for point in self.points]}


def score_trajectory(
    trajectory: Trajectory,
    data: Data,
    *,
    settings: EstimatorConfig,
    feature_layer: str | None = None,
    device: torch.device,
    on_progress: OnCheckpoint | None = None,
) -> Plane:
    """Put every checkpoint of a trajectory on the information plane and store it in the run's folder.

    Points that are already there, made from the same weights with the same settings, are kept. Estimators are fitted on
    training images and measured on the selection images; all of them clean.
    """
    if not len(trajectory) > 0:
        raise UserError(f"the run in {trajectory.source} has saved no checkpoint yet")
    first = next(iter(trajectory.values())).network(device)
    trial = data.val.subset(torch.arange(2)).to_float().to(device)
    path = feature_layer or last_map_path(first.body, trial)
    fit_count, measure_count = settings.images(len(data.train), len(data.val))
    if not min(fit_count, measure_count) > 1:
        raise UserError(
            f"{fit_count} images to fit on and {measure_count} to measure on are too few: there must be two of both"
        )
    fitted_on = data.train.subset(stratified(data.train.labels_N, fit_count, seed=0, purpose="decoder"))
    measured_on = data.val
    if measure_count < len(measured_on):
        measured_on = measured_on.subset(stratified(measured_on.labels_N, measure_count, seed=0, purpose="measuring"))
    made_with = {
        "estimator": settings.estimator,
        "feature_layer": path,
        "settings": {**asdict(settings), "fit_images": fit_count, "measure_images": measure_count},
        "precision": trajectory.run.precision,
        "data": data.record.identity,
        "measured_on": "the test set" if data.record.select_on == "test" else "the selection split",
    }
    if trajectory.unit != "epoch":
        made_with["unit"] = trajectory.unit
    stored = load_plane(trajectory, estimator=settings.estimator, missing_ok=True)
    replacing = stored is not None and stored.settings != made_with
    key = settings.estimator + UNFINISHED if replacing else settings.estimator
    begun = load_planes(trajectory, unfinished=True).get(key) if replacing else stored
    kept = _still_valid(begun, trajectory, made_with)
    todo = [checkpoint for epoch, checkpoint in trajectory.items() if epoch not in kept]
    with capture_activations(first.body, [path]) as taken:
        first(trial)
    size = taken[path][0].numel() * 4 * (fit_count + measure_count) if path in taken else 1
    if replacing:
        log.warning(
            "the scores in %s were made with other settings; when all are done, these replace them: select again then",
            trajectory.source,
        )
    chunk_size = max(1, min(AT_ONCE.get(device.type, TOGETHER), int(MAPS_AT_ONCE // size)))
    for begin in range(0, len(todo), chunk_size):
        chunk = todo[begin : begin + chunk_size]
        tell = _progress_of(begin, len(chunk), len(todo), on_progress)
        for point, part in _score(chunk, fitted_on, measured_on, path, settings, made_with["precision"], device, tell):
            kept[point.epoch] = (point, part)
        _store(trajectory, kept, made_with, key)  # chunk by chunk: a killed scoring keeps what it has
    if replacing or (not todo and (stored is None or len(kept) < len(stored.points))):
        _store(trajectory, kept, made_with, settings.estimator)  # or checkpoints have gone
    plane = load_plane(trajectory, estimator=settings.estimator)
    assert plane is not None
    return plane


def load_planes(trajectory: Trajectory, *, unfinished: bool = False) -> dict[str, Plane]:
    """The planes that `score` stored in a run's folder, by estimator; raises UserError when they are damaged.

    Those that are to replace others but lack checkpoints still are there on demand.
    """
    path = trajectory.path / "plane.json"
    if not path.exists():
        return {}
    planes, written = {}, path.stat().st_mtime_ns
    try:
        for estimator, stored in storage.read_json(path).items():
            if estimator.endswith(UNFINISHED) and not unfinished:
                continue
            points = tuple(Point(**point) for point in stored["points"])
            settings, arrays_name = stored["settings"], Path(stored["arrays"]).name
            if not (len(points) > 0 and isinstance(settings["measured_on"], str)):
                raise UserError("it is empty")
            if not (isinstance(settings["data"], dict) and arrays_name != ""):
                raise UserError("it lacks what it was measured on")
            for point in points:
                _check(point)
            if settings["estimator"] != estimator.removesuffix(UNFINISHED):
                raise UserError("it says two things")
            arrays, _ = storage.load_tensors(path.with_name(arrays_name))
            information_ASN = arrays.pop("information_ASN", torch.zeros(0)).numpy()
            shape = (len(points), information_ASN.shape[-1])
            if information_ASN.ndim != 3 or any(tensor.shape != shape for tensor in arrays.values()) or not arrays:
                raise UserError(f"{path.with_name(arrays_name)} does not belong to {path}; remove both and score again")
            planes[estimator] = Plane(points, settings, information_ASN, {n: t.numpy() for n, t in arrays.items()})
        if not planes:
            raise UserError("it is empty")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or of another version ({error}); remove it and score again") from None
    except UserError as error:
        if path.exists() and path.stat().st_mtime_ns != written:  # a scoring has replaced it, and its arrays, meanwhile
            return load_planes(trajectory, unfinished=unfinished)
        if str(path.parent) in str(error):
            raise UserError(f"{error}; or remove {path} and score again") from None
        raise UserError(f"{path} is damaged or of another version ({error}); remove it and score again") from None
    return planes


def _check(point: Point) -> None:
    """Raise UserError unless this can be a point that we stored."""
    numbers = {name: value for name, value in asdict(point).items() if name not in ("sha256", "details")}
    if point.image_information_sd is None:
        del numbers["image_information_sd"]
    sound = all(type(value) in (int, float) for value in numbers.values())
    if not (sound and isinstance(point.sha256, str) and isinstance(point.details, dict)):
        raise UserError("a point is none")


def load_plane(trajectory: Trajectory, *, estimator: str = "decoder", missing_ok: bool = False) -> Plane | None:
    """The plane by one estimator; raises UserError when there is none."""
    planes = load_planes(trajectory)
    if estimator in planes or missing_ok:
        return planes.get(estimator)
    others = f" (but by {', '.join(planes)}, which --estimator takes)" if planes else ""
    option = "" if estimator == "decoder" else f" --estimator {estimator}"
    raise UserError(
        f"the checkpoints in {trajectory.source} have not been scored by the {estimator}{others}; run "
        f"`checkpointkd score {trajectory.source}{option}` first"
    )


_Part = dict[str, np.ndarray]  # each image's part in a point: information_SN and the rest
_Kept = dict[int, tuple[Point, _Part]]


def stale_epochs(plane: Plane, trajectory: Trajectory) -> list[int]:
    """The epochs whose checkpoint is new, gone, or another than the one that was scored."""
    scored = {point.epoch: point.sha256 for point in plane.points}
    there = {epoch: checkpoint.sha256 for epoch, checkpoint in trajectory.items()}
    return sorted(epoch for epoch in scored.keys() | there.keys() if scored.get(epoch) != there.get(epoch))


def _still_valid(stored: Plane | None, trajectory: Trajectory, made_with: dict[str, Any]) -> _Kept:
    if stored is None or stored.settings != made_with:
        return {}
    stale = stale_epochs(stored, trajectory)
    return {
        point.epoch: (
            point,
            {"information": stored.information_ASN[row], **{name: each[row] for name, each in stored.images.items()}},
        )
        for row, point in enumerate(stored.points)
        if point.epoch not in stale
    }


def _store(trajectory: Trajectory, kept: _Kept, made_with: dict[str, Any], key: str) -> None:
    parts = [kept[epoch][1] for epoch in sorted(kept)]
    arrays = {
        "information_ASN" if name == "information" else name: torch.from_numpy(np.stack([part[name] for part in parts]))
        for name in parts[0]
    }
    path = trajectory.path / "plane.json"
    # The arrays go under a name of their own, plane.json then points at them: a kill in between leaves the old pair.
    arrays_path = trajectory.path / f"plane-{key}-{storage.content_hash(arrays)[:12]}.safetensors"
    storage.save_tensors(arrays_path, arrays)
    points = [asdict(kept[epoch][0]) for epoch in sorted(kept)]
    others = storage.read_json(path) if path.exists() else {}
    others.pop(key + UNFINISHED, None)
    stored = {**others, key: {"settings": made_with, "arrays": arrays_path.name, "points": points}}
    storage.write_json(path, stored)
    needed = {plane["arrays"] for plane in stored.values()}
    for older in trajectory.path.glob("plane-*.safetensors"):
        if older.name not in needed:
            older.unlink(missing_ok=True)


def _progress_of(begin: int, size: int, count: int, tell: OnCheckpoint | None) -> Callable[[int, int], None] | None:
    """A chunk's own progress as that of all checkpoints."""
    if tell is None:
        return None
    return lambda done, total: tell(f"{count} checkpoints", begin * total + size * done, count * total)


def _score(
    checkpoints: list[Checkpoint],
    fitted_on: Images,
    measured_on: Images,
    path: str,
    settings: EstimatorConfig,
    precision: str,
    device: torch.device,
    on_step: Callable[[int, int], None] | None,
) -> Iterator[tuple[Point, _Part]]:
    fitted, measured, logits = [], [], []
    for checkpoint in checkpoints:  # one network at a time
        network = checkpoint.network(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            fitted.append(_maps_and_logits(network, fitted_on, path)[0])
            maps, logits_NK = _maps_and_logits(network, measured_on, path)
        if not logits_NK.isfinite().all():
            raise UserError(f"the network in {checkpoint.path} answers with no finite numbers")
        measured.append(maps)
        logits.append(logits_NK)
    information_ASN, details = ESTIMATORS[settings.estimator](
        fitted_on, torch.stack(fitted), measured_on, torch.stack(measured), settings=settings, on_step=on_step
    )
    for number, checkpoint in enumerate(checkpoints):
        information_SN = information_ASN[number].double().cpu()
        labels_N, logits_NK = measured_on.labels_N, logits[number]
        part = {name: each.numpy() for name, each in per_image(logits_NK, labels_N).items()}
        information_N = information_SN.mean(0)
        point = Point(
            epoch=checkpoint.epoch,
            sha256=checkpoint.sha256,
            **label_measures(logits_NK, labels_N),
            image_information=information_N.mean().item(),
            image_information_se=information_N.std(correction=0).item() / math.sqrt(len(information_N)),
            image_information_sd=information_SN.mean(1).std(correction=1).item() if len(information_SN) > 1 else None,
            details={name: values[number] for name, values in details.items()},
        )
        yield point, {"information": information_SN.float().numpy(), **part}


@torch.no_grad()
def _maps_and_logits(network: Network, images: Images, path: str) -> tuple[Tensor, Tensor]:
    """The map at a path of the network's body for every clean image, (N, h, w, D) on the network's device, and the
    logits, (N, K) on the CPU. Raises UserError when what is at the path is no map."""
    device = next(network.parameters()).device
    maps, logits = [], []
    with capture_activations(network.body, [path]) as taken:
        for chunk in images.iter_batches(eval_batch_size(images, device)):
            sound = bool((chunk >= 0).all()) and bool((chunk <= 1).all())
            if not sound:
                raise UserError(f"images must lie in [0, 1], these from {chunk.min():g} to {chunk.max():g}")
            answer = network(chunk.to(device, memory_format=torch.channels_last))
            if path not in taken:
                raise UserError(f"the features at {path!r} are never computed; name another module's")
            found = as_map(taken[path], images.shape[1:])
            if found is None or len(found) != len(chunk) or (maps and found.shape[1:] != maps[0].shape[1:]):
                raise UserError(
                    f"the features at {path!r} are neither a map nor tokens in rows: of one image they have the shape "
                    f"{list(taken[path].shape[1:])}; name another module's with --feature-layer PATH"
                )
            if not found.isfinite().all():
                raise UserError(f"the features at {path!r} are not all finite; is the checkpoint sound?")
            maps.append(found.float())
            logits.append(answer.float().cpu())
    return torch.cat(maps).contiguous(), torch.cat(logits)
