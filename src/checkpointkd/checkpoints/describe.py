"""Describe a folder of checkpoints, as `checkpointkd inspect` prints it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import records
from ..records.runs import ExternalRecord
from .metadata import metadata_dir
from .scan import scan_folder
from .trajectory import open_trajectory


def is_registered(path: Path | str) -> bool:
    """Return whether this is a run directory, or a folder of another trainer that was registered."""
    return os.path.exists(Path(path) / "run.json") or metadata_dir(path) is not None


def describe(path: Path | str, pattern: str | None = None) -> dict[str, Any]:
    """Return what a folder of checkpoints holds: the network, and each checkpoint's file, epoch and accuracy.

    Args:
        path: A run directory, or a folder, file or wildcard of another trainer.
        pattern: The form of file names in a folder that is not registered. See `scan_folder`.

    Raises:
        UserError: If there is no checkpoint, or if a file is damaged or refused.
    """
    if not is_registered(path):
        return _describe_unregistered(path, pattern)
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
                "stated_accuracy": external.stated_accuracy if external else None,
                "stood_in": external.stood_in if external else (),
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
        "selected": None if selection is None else selection.epochs or selection.teachers,
        "complete": trajectory.complete,
        "planned_epochs": trajectory.planned_epochs,
    }
    if isinstance(run, ExternalRecord):
        stated = ("weights_at", "channel_order", "other_sets", "normalized_as", "unit", "left_out")
        return description | {name: getattr(run, name) for name in stated}
    return description | {
        "seed": run.seed,
        "epochs_done": max(val_accuracy, default=0),
        "teachers": records.plain(run.teachers),
        "result": records.plain(trajectory.result()),
    }


def _describe_unregistered(path: Path | str, pattern: str | None) -> dict[str, Any]:
    folder = scan_folder(path, pattern)
    return {
        "path": str(path),
        "format": _formats(file.format for file in folder.checkpoints.values()),
        "kind": "external",
        "model": None,
        "network": folder.network,
        "unit": folder.unit,
        "checkpoints": [
            {
                "epoch": epoch,
                "epoch_from": file.number_from,
                "stated": file.stated,
                "file": file.name,
                "bytes": file.bytes,
                "sha256": None,
                "val_accuracy": None,
                "stated_accuracy": file.accuracy,
                "stood_in": file.stood_in,
            }
            for epoch, file in folder.checkpoints.items()
        ],
        "left_out": folder.left_out,
    }


def _formats(formats: Iterable[str]) -> str:
    return ", ".join(sorted(set(formats)))
