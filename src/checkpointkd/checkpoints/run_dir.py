"""A run's folder: what it is, how far it is, and the checkpoints that it leaves.

run.json                           what the run is: model, data, recipe, seed, teachers, versions
metrics.jsonl                      a row an epoch
checkpoints/epoch-0010.safetensors the network after 10 completed epochs
state.bin                          what resuming needs; gone when the run is complete
result.json                        the final measurement; its presence says that the run is complete
plane.json, selection.json         written by `score` and `select`
student.safetensors, config.json   a finished student as a network of its own, see `export`
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import storage
from ..config import DistillConfig, Precision, config_differences
from ..errors import UserError

CHECKPOINT = re.compile(r"epoch-(\d+)\.safetensors")


class RunDir:
    """Where one run writes; hold `files.locked(path)` while using it to write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def complete(self) -> bool:
        return (self.path / "result.json").exists()

    def precision(self) -> Precision | None:
        """The precision of the run that is here, if one is."""
        path = self.path / "run.json"
        there = storage.read_json(path) if path.exists() else None
        return there.get("precision") if isinstance(there, dict) else None

    def open(self, run: dict[str, Any], *, notes: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Begin the run here, or find it here: None when it is new or had no whole epoch, else its stored state.

        `run` is what the run is, `notes` what is worth keeping beside it and need not match (where its
        teachers lay, say); raises UserError when another run, or anything else, is in the folder.
        """
        run = json.loads(json.dumps(run, allow_nan=False))  # as it will be read back: tuples are lists
        path = self.path / "run.json"
        if path.exists():
            there = storage.read_json(path)
            if not isinstance(there, dict):
                raise UserError(f"{path} is damaged: it is no run's")
            add_later_options(there)
            if not self._begun() and config_differences(run, there):
                path.unlink()  # nothing was done in it yet, so nothing is lost
        if path.exists():
            unlike = config_differences(run, there)
            shown = "; ".join(_shorten(text) for text in unlike[:3])
            if unlike:
                raise UserError(
                    f"{self.path} already holds another run ({shown}); choose another --out, or remove that folder"
                )
        else:
            strangers = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".lock")]
            strangers = [name for name in strangers if not name.endswith(storage.TMP_SUFFIX) and name != "checkpoints"]
            refuse_inside_run(self.path)
            if strangers:
                raise UserError(
                    f"{self.path} already holds something that is no run ({', '.join(sorted(strangers)[:3])}); "
                    "choose another --out"
                )
            storage.write_json(path, {**run, **(notes or {}), "provenance": provenance()})
        for folder in (self.path, self.path / "checkpoints"):
            storage.remove_leftovers(folder)
        state = self.path / "state.bin"
        return storage.load_state(state) if state.exists() else None

    def _begun(self) -> bool:
        """Whether anything is there that an epoch left."""
        names = ("state.bin", "metrics.jsonl", "result.json")
        return any((self.path / name).exists() for name in names) or any(self.path.glob("checkpoints/*"))

    def save_epoch(self, rows: list[dict], state: dict[str, Any]) -> None:
        """Record that an epoch is done. The state is written last: what it says has been saved, has been."""
        storage.atomic_write_bytes(self.path / "metrics.jsonl", storage.jsonl_text(rows).encode())
        storage.save_state(self.path / "state.bin", state)

    def save_checkpoint(self, epoch: int, tensors: Mapping[str, Tensor]) -> None:
        path = self.path / "checkpoints" / f"epoch-{epoch:04d}.safetensors"
        storage.save_tensors(path, tensors, {"format": "checkpointkd", "epoch": str(epoch)})

    def rows(self, *, up_to: int) -> list[dict]:
        """The rows of metrics.jsonl, without those past the epoch that a resumed run continues from; raises UserError
        when rows are missing."""
        path = self.path / "metrics.jsonl"
        rows = [row for row in storage.read_jsonl(path) if row["epoch"] <= up_to]
        if [row["epoch"] for row in rows] != list(range(1, up_to + 1)):
            raise UserError(f"{path} is damaged: it lacks epochs before {up_to}; remove the run's folder to start anew")
        return rows

    def finish(self, result: dict[str, Any]) -> None:
        """Write the final measurement; the run is complete."""
        storage.write_json(self.path / "result.json", result)
        (self.path / "state.bin").unlink(missing_ok=True)


def refuse_inside_run(path: Path) -> None:
    """Raise UserError for a folder that is a run's or lies in one."""
    inside = next((one for one in (path, *path.resolve().parents) if (one / "run.json").exists()), None)
    if inside is not None:
        raise UserError(f"{path} is or lies in the folder of a run, {inside}; choose another --out")


def provenance() -> dict[str, str]:
    """Versions and machine, for whoever reads the run later."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpointkd": version("checkpointkd"),
        "torch": version("torch"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def add_later_options(run: dict[str, Any]) -> None:
    """Give a stored run the options that there are since it was made, as it was made."""
    later: dict[str, Any] = {"best_of_last_ten": False, "checkpoint_dtype": "float32"}
    if run.get("kind") == "train":
        later["label_smoothing"] = 0.0
    if run.get("kind") == "distill":
        later["distill_config"] = asdict(DistillConfig())
    for name, value in later.items():
        run.setdefault(name, value)


def _shorten(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
