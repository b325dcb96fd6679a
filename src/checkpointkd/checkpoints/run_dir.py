"""A run directory: what a run is, how far it got, and the checkpoints that it saved.

run.json                           what the run is: model, data, recipe, seed, teachers, versions
metrics.jsonl                      one row per epoch
checkpoints/epoch-0010.safetensors the network after 10 completed epochs
state.bin                          what resuming needs; removed when the run is complete
result.json                        the final measurement; the run is complete if it exists
plane.json, selection.json         written by `score` and `select`
student.safetensors, config.json   an exported student, see `export`
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import records, storage
from ..config import Precision
from ..errors import UserError
from ..records.runs import AnyRun, MetricsRow, RunResult
from .metadata import trust_code

CHECKPOINT = re.compile(r"epoch-(\d+)\.safetensors")
START_ANEW = "Remove the run directory to start anew."


class RunDir:
    """The directory that one run writes to. Hold `storage.locked(path)` while writing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def complete(self) -> bool:
        """Whether the final measurement exists."""
        return (self.path / "result.json").exists()

    def record(self) -> AnyRun | None:
        """Return the record of the run in this directory, or None."""
        path = self.path / "run.json"
        return records.read_run(path) if path.exists() else None

    def precision(self) -> Precision | None:
        """Return the precision of the run in this directory, or None."""
        stored = self.record()
        return None if stored is None else stored.precision

    def open(self, record: AnyRun) -> dict[str, Any] | None:
        """Start the run in this directory, or open it to continue.

        Returns:
            The stored state, or None for a new run and for one without a completed epoch.

        Raises:
            UserError: If the directory holds another run, or any other file.
        """
        path, stored = self.path / "run.json", self.record()
        if stored is not None and not self._has_progress() and record.differences(stored):
            path.unlink()  # nothing was trained in it yet, so nothing is lost
            stored = None
        if stored is not None:
            self.refuse_another(record.differences(stored))
        else:
            refuse_inside_run(self.path)
            entries = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".lock")]
            entries = [name for name in entries if not name.endswith(storage.TMP_SUFFIX) and name != "checkpoints"]
            if entries:
                raise UserError(
                    f"{self.path} already holds other files ({', '.join(sorted(entries)[:3])}). Choose another --out."
                )
            storage.write_json(path, record)
        with contextlib.suppress(UserError):  # the cache cannot be written to: a later command asks again
            trust_code(record)
        storage.remove_leftovers(storage.own_subfolder(self.path / "checkpoints"))
        state = self.path / "state.bin"
        return storage.load_state(state) if state.exists() else None

    def refuse_another(self, differences: list[str]) -> None:
        """Raise UserError if the run that is asked for differs from the one in this directory."""
        if differences:
            shown = "; ".join(_shorten(text) for text in differences[:3])
            raise UserError(
                f"{self.path} already holds another run ({shown}). Choose another --out, or remove that folder."
            )

    def _has_progress(self) -> bool:
        """Whether an epoch was completed."""
        names = ("state.bin", "metrics.jsonl", "result.json")
        return any((self.path / name).exists() for name in names) or any(self.path.glob("checkpoints/*"))

    def save_epoch(self, rows: list[dict], state: dict[str, Any]) -> None:
        """Record that an epoch is done. The state is written last, so everything that it mentions is on disk."""
        storage.atomic_write_bytes(self.path / "metrics.jsonl", storage.jsonl_text(rows).encode())
        self.save_state(state)

    def save_state(self, state: dict[str, Any]) -> None:
        """Save what resuming needs. Rows up to its epoch must be on disk."""
        storage.save_state(self.path / "state.bin", state)

    def save_checkpoint(self, epoch: int, tensors: Mapping[str, Tensor]) -> None:
        """Save the network of a completed epoch."""
        path = self.path / "checkpoints" / f"epoch-{epoch:04d}.safetensors"
        storage.save_tensors(path, tensors, {"format": "checkpointkd", "epoch": str(epoch)})

    def rows(self, *, up_to: int) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl up to the epoch from which a run resumes.

        Raises:
            UserError: If rows are missing or damaged.
        """
        path = self.path / "metrics.jsonl"
        rows = [row for row in read_metrics(path) if row.epoch <= up_to]
        if [row.epoch for row in rows] != list(range(1, up_to + 1)):
            raise UserError(f"{path} is damaged: epochs before {up_to} are missing. {START_ANEW}")
        return [records.plain(row) for row in rows]

    def finish(self, result: RunResult) -> None:
        """Write the final measurement, which makes the run complete."""
        storage.write_json(self.path / "result.json", result)
        (self.path / "state.bin").unlink(missing_ok=True)


def read_metrics(path: Path) -> list[MetricsRow]:
    """Return the rows of a metrics.jsonl; an empty list without a file."""
    return records.read_lines(path, MetricsRow, remedy=START_ANEW)


def refuse_inside_run(path: Path) -> None:
    """Raise UserError for a path that is a run directory or lies in one."""
    run = next((folder for folder in (path, *path.resolve().parents) if (folder / "run.json").exists()), None)
    if run is not None:
        raise UserError(f"{path} is, or lies in, the run directory {run}. Choose another --out.")


def _shorten(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
