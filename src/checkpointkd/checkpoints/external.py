"""Checkpoints of other trainers: what a user says of them once is recorded, and from then on they are used like ours.

PATH/checkpointkd/run.json                     the network, the data, and each checkpoint's file and content
PATH/checkpointkd/plane.json, selection.json   as in a run directory

For a folder that cannot be written to, these files lie below `CHECKPOINTKD_HOME`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import records, storage
from ..config import OnProgress
from ..data import Data
from ..errors import UserError
from ..models import Network, build_network, check_trainable
from ..records import ExternalCheckpoint, ExternalRecord
from .formats import FoundFolder, candidate_files, scan_folder
from .metadata import file_fingerprint, metadata_dir, metadata_dirs, names_code, trust_marker
from .trajectory import Trajectory, open_trajectory
from .weights import weights

log = logging.getLogger("checkpointkd")

GIVEN = "as given"

Accuracy = Callable[[Network], float]
Measurement = tuple[str, str, str]  # the hashes of network and data, and which images were measured


def register_external(
    path: Path | str,
    *,
    model: str,
    data: Data,
    where: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    accuracy: Accuracy | None = None,
    on_progress: OnProgress | None = None,
) -> Trajectory:
    """Record what another trainer's folder holds, and return it as a trajectory.

    Every file is read and compared with the network.

    Args:
        where: The state-dict key of the weights in a file that holds several.
        mean: The mean of each channel of images in [0, 1], and `std` the deviation. By default those of Hugging Face's
            preprocessor or of timm's model, else the training images' own.
        accuracy: Measures each network; the result is recorded.

    Raises:
        UserError: If a file is damaged or does not fit the network.
    """
    path = Path(path)
    if os.path.exists(path / "run.json"):
        raise UserError(f"{path} is a run directory of this toolkit: it needs no --model")
    folder = scan_folder(path)
    measured_before = _measured_before(path)
    own_mean, own_std = data.train.channel_statistics()
    body = _build(model, data, own_mean, own_std).body
    normalization: dict[str, Any] = {
        "mean": tuple(own_mean),
        "std": tuple(own_std),
        "normalized_as": "the training images' own",
    }
    normalization |= _normalization(folder, getattr(body, "pretrained_cfg", {}), len(own_mean), mean, std)
    if accuracy is not None:
        images_BCHW = data.train.subset(torch.arange(2)).to_float()
        trial = _build(model, data, normalization["mean"], normalization["std"])
        check_trainable(trial, images_BCHW, classes=len(data.classes), model=model)
    network = _build(model, data, normalization["mean"], normalization["std"]).eval()
    expected = network.body.state_dict()
    checkpoints: dict[int, ExternalCheckpoint] = {}
    weights_at: str | None = None
    for epoch, file in folder.checkpoints.items():
        tensors, key = weights(file.path, expected, where=where, model=model)
        if weights_at not in (None, key):
            raise UserError(
                f"{file.path} has the weights of {model} at {key or 'its top'!r}, files before it at "
                f"{weights_at or 'their top'!r}. Add --state-dict-key KEY, or name files of one kind by a pattern."
            )
        weights_at = key
        network.body.load_state_dict(tensors)
        sha256 = storage.content_hash(network.state_dict())
        known_accuracy = measured_before.get((sha256, data.record.sha256, data.record.select_on))
        checkpoints[epoch] = ExternalCheckpoint(
            file=os.path.relpath(file.path, folder.path),
            format=file.format,
            epoch_from=file.number_from,
            stated=file.stated,
            fingerprint=file_fingerprint(file.path) or (),
            sha256=sha256,
            accuracy=known_accuracy if accuracy is None else accuracy(network),
        )
        if on_progress is not None:
            on_progress(f"read {path}", len(checkpoints), len(folder.checkpoints))
    files = [checkpoint.file for checkpoint in checkpoints.values()]
    record = ExternalRecord(
        model=model,
        classes=tuple(data.classes),
        data=data.record,
        seed=0,
        precision="fp32",
        provenance=records.provenance(),
        folder=str(folder.path.resolve()),  # read only from a record in the cache; others lie beside their folder
        pattern=None if path.is_dir() else path.name,
        state_dict_key=where,
        weights_at=weights_at or "",
        unit=folder.unit,
        left_out=tuple(folder.left_out),
        passed_over=tuple(name for name in candidate_files(path) if name not in files),
        checkpoints=checkpoints,
        **normalization,
    )
    metadata = _write(record, path, measured_before)
    _log(record, path, folder)
    return open_trajectory(metadata)


def refresh_external(
    trajectory: Trajectory, *, data: Data, accuracy: Accuracy | None = None, on_progress: OnProgress | None = None
) -> Trajectory:
    """Return the trajectory with the checkpoints that its folder holds now."""
    run = trajectory.run
    assert isinstance(run, ExternalRecord)
    mean, std = (run.mean, run.std) if run.normalized_as == GIVEN else (None, None)
    return register_external(
        trajectory.source,
        model=run.model,
        data=data,
        where=run.state_dict_key,
        mean=mean,
        std=std,
        accuracy=accuracy,
        on_progress=on_progress,
    )


def _build(model: str, data: Data, mean: Sequence[float], std: Sequence[float]) -> Network:
    return build_network(model, num_classes=len(data.classes), in_channels=len(mean), mean=mean, std=std)


def _write(record: ExternalRecord, path: Path, measured_before: dict[Measurement, float | None]) -> Path:
    """Write the record; remove a selection that was made among other networks or on other images."""
    metadata = _writable(metadata_dirs(path))
    with storage.locked(metadata):
        storage.write_json(metadata / "run.json", record)
        if names_code(record.model):
            storage.atomic_write_bytes(trust_marker(record), b"")
        selection = metadata / "selection.json"
        if selection.exists() and not _measurements(record).keys() >= measured_before.keys():
            selection.unlink()
    return metadata


def _log(record: ExternalRecord, path: Path, folder: FoundFolder) -> None:
    log.info(
        "%s: %d checkpoints of %s (%s), last %s %d; images are normalized with mean %s and std %s (%s)",
        path,
        len(record.checkpoints),
        record.model,
        ", ".join(sorted({checkpoint.format for checkpoint in record.checkpoints.values()})),
        record.unit,
        max(record.checkpoints),
        _decimals(record.mean),
        _decimals(record.std),
        record.normalized_as,
    )
    for reason in folder.left_out:
        log.info("left out: %s", reason)


def _measurements(record: ExternalRecord) -> dict[Measurement, float | None]:
    """The recorded accuracies, by network, data and validation images."""
    return {
        (checkpoint.sha256, record.data.sha256, record.data.select_on): checkpoint.accuracy
        for checkpoint in record.checkpoints.values()
    }


def _measured_before(path: Path) -> dict[Measurement, float | None]:
    """The accuracies that were recorded here before; none where the record is missing or damaged."""
    try:
        metadata = metadata_dir(path)
        run = None if metadata is None else open_trajectory(metadata).run
    except UserError:
        return {}
    return _measurements(run) if isinstance(run, ExternalRecord) else {}


def _normalization(
    folder: FoundFolder, timms: dict, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Any]:
    """Mean and deviation of each channel, and who says so; nothing where nobody does."""
    if mean is not None or std is not None:
        mean, std = tuple(mean or ()), tuple(std or ())
        if not len(mean) == len(std) == channels:
            raise UserError(
                f"--mean and --std go together, with one number for each of the images' {channels} channels"
            )
        sound = _are_numbers(mean, channels) and _are_numbers(std, channels) and min(std) > 0
        if not sound:
            raise UserError("--mean and --std are those of images in [0, 1]; a deviation is above 0")
        return {"mean": mean, "std": std, "normalized_as": GIVEN}
    first = next(iter(folder.checkpoints.values())).path
    preprocessor = first / "preprocessor_config.json"
    theirs = storage.read_json(preprocessor) if preprocessor.exists() else {}
    if not isinstance(theirs, dict):
        raise UserError(f"{preprocessor} is damaged: it is no preprocessor's")
    ours: dict[str, Any] = storage.read_metadata(first) if first.suffix == ".safetensors" else {}
    for who, said_mean, said_std in (
        (f"{first.name} says so", ours.get("mean"), ours.get("std")),
        (f"{preprocessor.name} says so", theirs.get("image_mean"), theirs.get("image_std")),
        ("timm's for this model", timms.get("mean"), timms.get("std")),
    ):
        if said_mean is not None and said_std is not None:
            if _are_numbers(said_mean, channels) and _are_numbers(said_std, channels) and min(said_std) > 0:
                return {"mean": tuple(said_mean), "std": tuple(said_std), "normalized_as": who}
            log.warning("what is said of mean and deviation (%s) does not fit %d channels", who, channels)
    return {}


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(type(value) in (int, float) and math.isfinite(value) and abs(value) < 10 for value in values)
    )


def _writable(folders: Sequence[Path]) -> Path:
    """The first of these folders that is there or can be made and written to; the last as it is."""
    for folder in folders[:-1]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return folders[-1]


def _decimals(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
