"""Trajectories of other trainers: what a user says of them once is kept beside them, and from then on they are used
like our own.

PATH/checkpointkd/run.json                     what the network is, on which data; each checkpoint's file and content
PATH/checkpointkd/plane.json, selection.json   as in a run's folder

For a folder that can't be written to, these lie below `CHECKPOINTKD_HOME`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import storage
from ..config import OnProgress
from ..data import Data
from ..errors import UserError
from ..models import Network, check_trainable
from .formats import FoundFolder, candidate_files, scan_folder
from .run_dir import provenance
from .trajectory import (
    Trajectory,
    build_from_run,
    file_fingerprint,
    metadata_dir,
    metadata_dirs,
    names_code,
    open_trajectory,
    trust_marker,
)
from .weights import weights

log = logging.getLogger("checkpointkd")

GIVEN = "as given"


def register_external(
    path: Path | str,
    *,
    model: str,
    data: Data,
    where: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    accuracy: Callable[[Network], float] | None = None,
    on_progress: OnProgress | None = None,
) -> Trajectory:
    """The trajectory in another trainer's folder, as a network of this name that knows the data's classes.

    Every file is read and held against the network. `where` is the place of the weights in a file; `mean` and `std`
    normalize images in [0, 1], by default as Hugging Face's preprocessor or timm's model says, else as the training
    images' own channels have it. `accuracy` measures each network, to be noted. Raises UserError when a file is damaged
    or doesn't fit.
    """
    if os.path.exists(Path(path) / "run.json"):
        raise UserError(f"{path} is a run of this toolkit and says itself what it is")
    path = Path(path)
    folder = scan_folder(path)
    before = _before(path)
    run: dict[str, Any] = {
        "kind": "external",
        "pattern": None if path.is_dir() else path.name,
        "model": model,
        "state_dict_key": where,
        "classes": list(data.classes),
        "data": data.identity,
        "seed": 0,
        "precision": "fp32",
        "unit": folder.unit,
        "left_out": folder.left_out,
    }
    run["mean"], run["std"] = data.train.channel_statistics()
    run["normalized_as"] = "the training images' own"
    network = build_from_run(run)
    run |= _normalization(folder, getattr(network.body, "pretrained_cfg", {}), len(run["mean"]), mean, std)
    if accuracy is not None:
        check_trainable(
            build_from_run(run), data.train.subset(torch.arange(2)).to_float(), classes=len(data.classes), model=model
        )
    network = build_from_run(run).eval()
    wanted = network.body.state_dict()
    run["checkpoints"] = {}
    for number, (epoch, found) in enumerate(folder.checkpoints.items()):
        taken, at = weights(found.path, wanted, where=where, model=model)
        if run.setdefault("weights_at", at) != at:
            raise UserError(
                f"{found.path} has the weights of {model} at {at or 'its top'!r}, files before it at "
                f"{run['weights_at'] or 'their top'!r}; say which with --state-dict-key, or name files of one kind by "
                "a pattern"
            )
        network.body.load_state_dict(taken, strict=False)
        sha256 = storage.content_hash(network.state_dict())
        known = before.get((sha256, data.identity["sha256"], data.identity["select_on"]))
        run["checkpoints"][str(epoch)] = {
            "file": os.path.relpath(found.path, folder.path),
            "format": found.format,
            "epoch_from": found.number_from,
            "stated": found.stated,
            "stamp": file_fingerprint(found.path),
            "sha256": sha256,
            "accuracy": known if accuracy is None else accuracy(network),
        }
        if on_progress is not None:
            on_progress(f"read {path}", number + 1, len(folder.checkpoints))
    notes = _writable(metadata_dirs(path))
    run["folder"] = str(folder.path.resolve())  # counts for notes in our own folder; others lie where they lie
    noted_files = [note["file"] for note in run["checkpoints"].values()]
    run["passed_over"] = [name for name in candidate_files(path) if name not in noted_files]
    with storage.locked(notes):
        storage.write_json(notes / "run.json", {**run, "provenance": provenance()})
        if names_code(model):
            storage.atomic_write_bytes(trust_marker(run), b"")
        chosen = notes / "selection.json"
        here = {
            (note["sha256"], data.identity["sha256"], data.identity["select_on"])
            for note in run["checkpoints"].values()
        }
        if chosen.exists() and not here >= before.keys():
            chosen.unlink()  # it was made among other networks, or on other images
    log.info(
        "%s: %d checkpoints of %s (%s), the last of %s %d; images are normalized with mean %s and deviation %s (%s)",
        path,
        len(folder.checkpoints),
        model,
        ", ".join(sorted({one.format for one in folder.checkpoints.values()})),
        folder.unit,
        max(folder.checkpoints),
        _numbers(run["mean"]),
        _numbers(run["std"]),
        run["normalized_as"],
    )
    for left_out in folder.left_out:
        log.info("left out: %s", left_out)
    return open_trajectory(notes)


def refresh_external(
    trajectory: Trajectory,
    *,
    data: Data,
    accuracy: Callable[[Network], float] | None = None,
    on_progress: OnProgress | None = None,
) -> Trajectory:
    """The same trajectory with the checkpoints that its folder holds by now."""
    path = trajectory.source
    run = trajectory.run
    given = run["normalized_as"] == GIVEN
    mean, std = (run["mean"], run["std"]) if given else (None, None)
    where = run["state_dict_key"]
    return register_external(
        path, model=run["model"], data=data, where=where, mean=mean, std=std, accuracy=accuracy, on_progress=on_progress
    )


def _before(path: Path) -> dict[tuple[str, str, str], float | None]:
    """The accuracies that were measured here before, by network, data and protocol."""
    try:
        notes = metadata_dir(path)
        run = open_trajectory(notes).run if notes is not None else {"checkpoints": {}}
    except UserError:
        return {}
    data = run.get("data", {})
    return {
        (note["sha256"], data["sha256"], data["select_on"]): note["accuracy"] for note in run["checkpoints"].values()
    }


def _normalization(
    folder: FoundFolder, timms: dict, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Any]:
    """Mean and deviation of each channel, and who says so; nothing where nobody does."""
    if mean is not None or std is not None:
        mean, std = list(mean or ()), list(std or ())
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
                return {"mean": list(said_mean), "std": list(said_std), "normalized_as": who}
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


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
