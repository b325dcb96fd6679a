"""What is in a folder of checkpoints, as `checkpointkd inspect` tells it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import records
from ..records import ExternalRecord
from .formats import scan_folder
from .metadata import metadata_dir
from .trajectory import open_trajectory


def is_registered(path: Path | str) -> bool:
    """Whether this is a run of ours, or another trainer's folder of which we were told what it is."""
    return os.path.exists(Path(path) / "run.json") or metadata_dir(path) is not None


def describe(path: Path | str) -> dict[str, Any]:
    """What is in a folder of checkpoints: whose they are, of which network, each one's file, epoch and accuracy.

    Raises UserError when there is no run and no checkpoint, and for files that are damaged or refused.
    """
    if not is_registered(path):
        folder = scan_folder(path)
        return {
            "path": str(path),
            "format": _formats(one.format for one in folder.checkpoints.values()),
            "kind": "external",
            "model": None,
            "unit": folder.unit,
            "checkpoints": [
                {
                    "epoch": epoch,
                    "epoch_from": one.number_from,
                    "stated": one.stated,
                    "file": one.path.name,
                    "bytes": one.bytes,
                    "sha256": None,
                    "val_accuracy": None,
                }
                for epoch, one in folder.checkpoints.items()
            ],
            "left_out": folder.left_out,
        }
    trajectory = open_trajectory(path)
    run, selection = trajectory.run, trajectory.selection()
    val_accuracy = {row.epoch: row.val_accuracy for row in trajectory.rows()}
    registered = run.checkpoints if isinstance(run, ExternalRecord) else {}
    checkpoints = []
    for epoch, checkpoint in trajectory.items():
        external = registered.get(epoch)
        checkpoints.append(
            {
                "epoch": epoch,
                "epoch_from": external.epoch_from if external else "the file's name",
                "stated": external.stated if external else f"epoch {epoch}",
                "file": checkpoint.path.name,
                "bytes": checkpoint.bytes,
                "sha256": checkpoint.sha256,
                "val_accuracy": external.accuracy if external else val_accuracy.get(epoch),
            }
        )
    description = {
        "path": str(trajectory.source),
        "format": _formats(external.format for external in registered.values()) if registered else "checkpointkd",
        "kind": type(run).__struct_config__.tag,
        "model": run.model,
        "data": run.data.name,
        "select_on": run.data.select_on,
        "classes": len(run.classes),
        "mean": run.mean,
        "std": run.std,
        "checkpoints": checkpoints,
        "scored": (trajectory.path / "plane.json").exists(),
        "selected": None if selection is None else selection.epochs,
        "complete": trajectory.complete,
        "planned_epochs": trajectory.planned_epochs,
    }
    if isinstance(run, ExternalRecord):
        return description | {name: getattr(run, name) for name in ("weights_at", "normalized_as", "unit", "left_out")}
    return description | {
        "seed": run.seed,
        "epochs_done": max(val_accuracy, default=0),
        "teachers": records.plain(run.teachers),
        "result": records.plain(trajectory.result()),
    }


def _formats(formats: Iterable[str]) -> str:
    return ", ".join(sorted(set(formats)))
