"""What is in a folder of checkpoints, as `checkpointkd inspect` tells it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .formats import scan_folder
from .trajectory import metadata_dir, open_trajectory


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
    rows = {row["epoch"]: row for row in trajectory.rows()}
    notes = run["checkpoints"] if trajectory.external else {}
    checkpoints = []
    for epoch, checkpoint in trajectory.items():
        note = notes.get(str(epoch), {})
        accuracy = note.get("accuracy") if trajectory.external else rows.get(epoch, {}).get("val_accuracy")
        checkpoints.append(
            {
                "epoch": epoch,
                "epoch_from": note.get("epoch_from", "the file's name"),
                "stated": note.get("stated", f"epoch {epoch}"),
                "file": checkpoint.path.name,
                "bytes": checkpoint.bytes,
                "sha256": checkpoint.sha256,
                "val_accuracy": accuracy,
            }
        )
    found = {
        "path": str(trajectory.source),
        "format": _formats(note["format"] for note in notes.values()) if trajectory.external else "checkpointkd",
        "kind": run["kind"],
        "model": run["model"],
        "data": run["data"]["data"],
        "select_on": run["data"]["select_on"],
        "classes": len(run["classes"]),
        "mean": run["mean"],
        "std": run["std"],
        "checkpoints": checkpoints,
        "scored": (trajectory.path / "plane.json").exists(),
        "selected": None if selection is None else selection["epochs"],
        "complete": trajectory.complete,
        "planned_epochs": trajectory.planned_epochs,
    }
    if trajectory.external:
        about = ("weights_at", "normalized_as", "unit", "left_out")
        return found | {name: run[name] for name in about}
    return found | {
        "seed": run["seed"],
        "epochs_done": max(rows, default=0),
        "teachers": run.get("teachers", []),
        "result": trajectory.result(),
    }


def _formats(formats: Iterable[str]) -> str:
    return ", ".join(sorted(set(formats)))
