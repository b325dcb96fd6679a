"""The information plane: each checkpoint's I(X;F) and I(Y;F), with what they were measured on and how surely.

Letters in names: A checkpoints, N images, K classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import files
from ..data import Data, Images, portion, stratified
from ..errors import UserError, require
from ..loop import measure, predict
from ..models import Network, last_map_path
from ..settings import DecoderSettings
from ..trajectory import Checkpoint, Trajectory
from .decoder import last_maps, pixel_entropy, reconstruct

log = logging.getLogger("checkpointkd")

CHUNK = 10  # checkpoints whose features are held at once

OnCheckpoint = Callable[[str, int, int], None]  # what is done, how many steps of how many


@dataclass(frozen=True)
class Point:
    """One checkpoint on the plane.

    `excess` is the decoder's loss on unseen images above the pixels' own entropy, in nats a pixel: a proxy of which
    less means a larger I(X;F), not an estimate of it in nats. `excess_se` is its standard error over images,
    `excess_seed_sd` its deviation over decoder seeds
    (None for a single one). `label_information` is H(Y) − CE in nats, a lower bound on
    I(Y;F).
    """

    epoch: int
    sha256: str
    accuracy: float
    accuracy_se: float
    nll: float
    label_information: float
    reconstruction_loss: float
    excess: float
    excess_se: float
    excess_seed_sd: float | None


@dataclass(frozen=True, eq=False)
class Plane:
    """A trajectory's points, in order of epoch, and the settings that made them.

    `excess_AN` and `right_AN` hold each image's part, for the bootstrap of the selection.
    """

    points: tuple[Point, ...]
    settings: dict[str, Any]
    excess_AN: np.ndarray
    right_AN: np.ndarray

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
    settings: DecoderSettings,
    features: str | None = None,
    device: torch.device,
    on_progress: OnCheckpoint | None = None,
) -> Plane:
    """Put every checkpoint of a trajectory on the information plane and store it in the run's folder.

    Points that are already there, made from the same weights with the same settings, are kept. Decoders are fitted on
    training images and measured on the selection images; all of them clean.
    """
    require(len(trajectory) > 0, f"the run in {trajectory.path} has saved no checkpoint yet")
    first = next(iter(trajectory.values())).network(device)
    path = features or last_map_path(first.body, data.selection.take(torch.arange(2)).clean().to(device))
    made_with = {
        "estimator": "decoder",
        "features": path,
        "decoder": asdict(settings),
        "data": {name: value for name, value in data.identity.items() if name != "source"},
        "measured_on": "the test set" if data.identity["protocol"] == "paper" else "the selection split",
    }
    stored = load_plane(trajectory, missing_ok=True)
    kept = _still_valid(stored, trajectory, made_with)
    if stored is not None and stored.settings != made_with:
        log.warning(
            "the scores in %s were made with other settings; these replace them: select again", trajectory.source
        )
    todo = [checkpoint for epoch, checkpoint in trajectory.items() if epoch not in kept]
    count = min(settings.images, len(data.train))
    fitted_on = data.train.take(stratified(data.train.labels_N, count, seed=0, purpose="decoder"))
    for begin in range(0, len(todo), CHUNK):
        chunk = todo[begin : begin + CHUNK]
        on_step = None
        if on_progress is not None:
            epochs = f"epochs {chunk[0].epoch} to {chunk[-1].epoch}"
            on_step = lambda done, total, epochs=epochs: on_progress(epochs, done, total)  # noqa: E731
        for point, excess_N, right_N in _score(chunk, fitted_on, data, path, settings, device, on_step):
            kept[point.epoch] = (point, excess_N, right_N)
        _store(trajectory, kept, made_with)  # chunk by chunk: a killed scoring keeps what it has
    if not todo and (stored is None or len(kept) < len(stored.points)):
        _store(trajectory, kept, made_with)  # checkpoints have gone
    plane = load_plane(trajectory)
    assert plane is not None
    return plane


def load_plane(trajectory: Trajectory, *, missing_ok: bool = False) -> Plane | None:
    """The plane that `score` stored in a run's folder; raises UserError when there is none or it is damaged."""
    path = trajectory.path / "plane.json"
    if not path.exists():
        if missing_ok:
            return None
        raise UserError(
            f"the checkpoints in {trajectory.source} have not been scored; run "
            f"`checkpointkd score {trajectory.source}` first"
        )
    stored = files.read_json(path)
    try:
        points = tuple(Point(**point) for point in stored["points"])
        settings, arrays_name = stored["settings"], Path(stored["arrays"]).name
        numbers = [point.excess + point.accuracy + point.epoch for point in points]
        require(len(numbers) > 0 and isinstance(settings["measured_on"], str), "it is empty")
    except (UserError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or of another version ({error}); remove it and score again") from None
    arrays, _ = files.load_tensors(path.with_name(arrays_name))
    shapes = {name: tensor.shape for name, tensor in arrays.items()}
    if shapes.keys() != {"excess_AN", "right_AN"} or any(
        len(shape) != 2 or shape[0] != len(points) for shape in shapes.values()
    ):
        raise UserError(f"{path.with_name(arrays_name)} does not belong to {path}; remove both and score again")
    return Plane(points, settings, arrays["excess_AN"].numpy(), arrays["right_AN"].numpy())


_Kept = dict[int, tuple[Point, np.ndarray, np.ndarray]]


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
        point.epoch: (point, stored.excess_AN[row], stored.right_AN[row])
        for row, point in enumerate(stored.points)
        if point.epoch not in stale
    }


def _store(trajectory: Trajectory, kept: _Kept, made_with: dict[str, Any]) -> None:
    in_order = [kept[epoch] for epoch in sorted(kept)]
    arrays = {
        "excess_AN": torch.from_numpy(np.stack([excess_N for _, excess_N, _ in in_order])),
        "right_AN": torch.from_numpy(np.stack([right_N for _, _, right_N in in_order])),
    }
    # The arrays go under a name of their own, plane.json then points at them: a kill in between leaves the old pair.
    arrays_path = trajectory.path / f"plane-{files.content_hash(arrays)[:12]}.safetensors"
    files.save_tensors(arrays_path, arrays)
    points = [asdict(point) for point, _, _ in in_order]
    stored = {"settings": made_with, "arrays": arrays_path.name, "points": points}
    files.write_json(trajectory.path / "plane.json", stored)
    for older in trajectory.path.glob("plane-*.safetensors"):
        if older != arrays_path:
            older.unlink(missing_ok=True)


def _score(
    checkpoints: list[Checkpoint],
    fitted_on: Images,
    data: Data,
    path: str,
    settings: DecoderSettings,
    device: torch.device,
    on_step: Callable[[int, int], None] | None,
) -> list[tuple[Point, np.ndarray, np.ndarray]]:
    networks: list[Network] = [checkpoint.network(device) for checkpoint in checkpoints]
    logits_ANK = torch.stack([predict(network, data.selection) for network in networks])
    for checkpoint, logits_NK in zip(checkpoints, logits_ANK, strict=True):
        require(bool(logits_NK.isfinite().all()), f"the network in {checkpoint.path} answers with no finite numbers")
    fitted_maps = torch.stack([last_maps(network, fitted_on, path) for network in networks])
    measured_maps = torch.stack([last_maps(network, data.selection, path) for network in networks])
    loss_ASN = reconstruct(
        fitted_on, fitted_maps, data.selection, measured_maps, settings=settings, on_step=on_step
    ).double()
    floor_N = torch.cat([pixel_entropy(chunk.double()) for chunk in data.selection.chunks(portion(data.selection))])
    return [
        _point(checkpoint, logits_NK, loss_SN, floor_N, data.selection.labels_N)
        for checkpoint, logits_NK, loss_SN in zip(checkpoints, logits_ANK, loss_ASN, strict=True)
    ]


def _point(
    checkpoint: Checkpoint, logits_NK: Tensor, loss_SN: Tensor, floor_N: Tensor, labels_N: Tensor
) -> tuple[Point, np.ndarray, np.ndarray]:
    measured = measure(logits_NK, labels_N)
    frequency_K = labels_N.bincount().double() / len(labels_N)
    entropy = -torch.xlogy(frequency_K, frequency_K).sum().item()
    excess_SN = loss_SN - floor_N
    excess_N = excess_SN.mean(0)
    point = Point(
        epoch=checkpoint.epoch,
        sha256=checkpoint.sha256,
        **measured,
        label_information=entropy - measured["nll"],
        reconstruction_loss=loss_SN.mean().item(),
        excess=excess_N.mean().item(),
        excess_se=excess_N.std(correction=0).item() / math.sqrt(len(excess_N)),
        excess_seed_sd=excess_SN.mean(1).std(correction=1).item() if len(excess_SN) > 1 else None,
    )
    right_N = (logits_NK.argmax(-1) == labels_N).to(torch.uint8)
    return point, excess_N.float().numpy(), right_N.numpy()
