"""Trajectories of other trainers: what a user says of them once is kept beside them, and from then on they are used
like our own.

PATH/checkpointkd/run.json                     what the network is, on which data; each checkpoint's file and content
PATH/checkpointkd/plane.json, selection.json   as in a run's folder

For a folder that can't be written to, these lie below `CHECKPOINTKD_HOME`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..data import Data
from ..errors import require
from ..models import Network
from ..settings import Progress
from .formats import Folder, look, weights
from .run_folder import provenance
from .trajectory import Trajectory, fresh_network, notes_folders, open_trajectory

log = logging.getLogger("checkpointkd")

GIVEN = "as given"


def adopt(
    path: Path | str,
    *,
    model: str,
    data: Data,
    where: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    accuracy: Callable[[Network], float] | None = None,
    progress: Progress | None = None,
) -> Trajectory:
    """The trajectory in another trainer's folder, as a network of this name that knows the data's classes.

    Every file is read and held against the network. `where` is the place of the weights in a file; `mean` and `std`
    normalise images in [0, 1], by default as Hugging Face's preprocessor or timm's model says, else as the training
    images' own channels have it. `accuracy` measures each network, to be noted. Raises UserError when a file is damaged
    or doesn't fit.
    """
    require(not os.path.exists(Path(path) / "run.json"), f"{path} is a run of this toolkit and says itself what it is")
    folder = look(path)
    run: dict[str, Any] = {
        "kind": "foreign",
        "path": str(Path(path).absolute()),
        "model": model,
        "weights": where,
        "classes": list(data.classes),
        "data": data.identity,
        "seed": 0,
        "precision": "fp32",
        "unit": folder.unit,
        "left_out": folder.left_out,
    }
    run["mean"], run["std"] = data.train.channel_statistics()
    run["normalised_as"] = "the training images' own"
    network = fresh_network(run)
    run |= _normalisation(folder, getattr(network.body, "pretrained_cfg", {}), len(run["mean"]), mean, std)
    network = fresh_network(run).eval()
    wanted = network.body.state_dict()
    run["checkpoints"] = {}
    for number, (epoch, found) in enumerate(folder.checkpoints.items()):
        network.body.load_state_dict(weights(found.path, wanted, where=where, model=model), strict=False)
        run["checkpoints"][str(epoch)] = {
            "file": os.path.relpath(found.path, folder.path),
            "format": found.format,
            "epoch_from": found.number_from,
            "stated": found.stated,
            "sha256": files.content_hash(network.state_dict()),
            "accuracy": accuracy(network) if accuracy is not None else None,
        }
        if progress is not None:
            progress(f"read {path}", number + 1, len(folder.checkpoints))
    notes = _writable(notes_folders(path))
    inside = notes.resolve().is_relative_to(folder.path.resolve())  # then both can be moved together
    run["folder"] = os.path.relpath(folder.path.resolve(), notes.resolve()) if inside else str(folder.path.resolve())
    with files.locked(notes):
        files.write_json(notes / "run.json", {**run, "provenance": provenance()})
    log.info(
        "%s: %d checkpoints of %s (%s), the last of %s %d; images are normalised with mean %s and deviation %s (%s)",
        path, len(folder.checkpoints), model, ", ".join(sorted({one.format for one in folder.checkpoints.values()})),
        folder.unit, max(folder.checkpoints), _numbers(run["mean"]), _numbers(run["std"]), run["normalised_as"],
    )  # fmt: skip
    for left_out in folder.left_out:
        log.info("left out: %s", left_out)
    return open_trajectory(notes)


def adopt_again(trajectory: Trajectory, *, data: Data, progress: Progress | None = None) -> Trajectory:
    """The same trajectory with the checkpoints that its folder holds by now."""
    run = trajectory.run
    given = run["normalised_as"] == GIVEN
    mean, std = (run["mean"], run["std"]) if given else (None, None)
    where = run["weights"]
    return adopt(run["path"], model=run["model"], data=data, where=where, mean=mean, std=std, progress=progress)


def _normalisation(
    folder: Folder, timms: dict, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Any]:
    """Mean and deviation of each channel, and who says so; nothing where nobody does."""
    if mean is not None or std is not None:
        mean, std = mean or (), std or ()
        require(
            len(mean) == len(std) == channels,
            f"--mean and --std go together, with one number for each of the images' {channels} channels",
        )
        require(min(std) > 0 and max(*std, *map(abs, mean)) < 10, "--mean and --std are those of images in [0, 1]")
        return {"mean": list(mean), "std": list(std), "normalised_as": GIVEN}
    first = next(iter(folder.checkpoints.values())).path
    preprocessor = first / "preprocessor_config.json"
    config = files.read_json(preprocessor) if preprocessor.exists() else {}
    for mean, std, who in (
        (config.get("image_mean"), config.get("image_std"), f"{preprocessor.name} says so"),
        (timms.get("mean"), timms.get("std"), "timm's for this model"),
    ):
        if mean and std and len(mean) == len(std) == channels:
            return {"mean": list(mean), "std": list(std), "normalised_as": who}
    return {}


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
