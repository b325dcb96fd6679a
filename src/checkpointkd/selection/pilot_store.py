"""The directory of a pilot search: its record, and the pilot runs that are stored in it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from .. import records, storage
from ..checkpoints import Trajectory
from ..config import OnProgress, PrecisionChoice, Recipe
from ..data import Data
from ..distill_config import PilotConfig
from ..errors import UserError, pluralize
from ..records.selection import PilotSearchRecord
from ..trackers import Tracking
from .candidates import Candidate

log = logging.getLogger("checkpointkd")

SEARCH = "pilot_search.json"
PILOT_RUNS = "pilot_runs"
DIVERGED = "diverged.json"  # in the directory of a pilot run that diverged


@dataclass(frozen=True, kw_only=True, eq=False)
class PilotSearch:
    """The settings that all pilot runs of a search have in common, and the directory of the search.

    `recipe` is that of the full distillation. `command_options` are the user's options, for the command that trains
    the student.
    """

    student: str
    trajectory: Trajectory
    data: Data
    recipe: Recipe
    settings: PilotConfig
    out: Path
    precision: PrecisionChoice
    logit_cache_gb: float
    device: torch.device
    command_options: dict[str, Any] = field(default_factory=dict)
    on_progress: OnProgress | None = None
    tracking: Tracking | None = None

    @property
    def record(self) -> PilotSearchRecord:
        """The search as pilot_search.json has it."""
        return PilotSearchRecord(
            student=self.student,
            teachers=tuple(checkpoint.record for checkpoint in self.trajectory.values()),
            data=self.data.record,
            recipe=self.recipe,
            tau=self.settings.tau,
            alphas=self.settings.alphas,
            methods=self.settings.methods,
            compared_teachers=self.settings.teachers,
            seed=self.settings.seed,
            precision=self.precision,
        )


def open_search(search: PilotSearch) -> PilotSearchRecord:
    """Start the search in its directory, or continue it, and return its record.

    Raises:
        UserError: If the directory holds another search or other files, or if pilot_search.json is damaged.
    """
    path, record = search.out / SEARCH, search.record
    if path.exists():
        runs = search.out / PILOT_RUNS
        started = any(runs.glob("*/metrics.jsonl")) or any(runs.glob(f"*/{DIVERGED}"))
        if started:  # a search without any trained epoch may be replaced
            record = _continued(search, record, path)
    else:
        names = sorted(entry.name for entry in search.out.iterdir() if not entry.name.startswith("."))
        if names:
            raise UserError(f"{search.out} already holds other files ({', '.join(names[:3])}). Choose another --out.")
    storage.write_json(path, record)
    return record


def _continued(search: PilotSearch, record: PilotSearchRecord, path: Path) -> PilotSearchRecord:
    """Return the record of the stored search with its own checkpoints, if the settings are the same."""
    stored = records.read(path, PilotSearchRecord, remedy=f"Remove {search.out} to start the search again.")
    if set(stored.teachers) <= set(record.teachers):
        if added := len(record.teachers) - len(stored.teachers):
            log.warning(
                "%s saved since the pilot search in %s started: not included. Choose another --out to include "
                "new checkpoints.",
                pluralize(added, "checkpoint"),
                search.out,
            )
        record = msgspec.structs.replace(record, teachers=stored.teachers)
    if differences := record.differences(stored):
        raise UserError(
            f"{search.out} already holds another pilot search ({'; '.join(differences)[:300]}). Choose another --out."
        )
    return record


def pilot_run_path(search: PilotSearch, candidate: Candidate, pilot_epochs: int) -> Path:
    """Return the run directory of a pilot run."""
    return search.out / PILOT_RUNS / f"{candidate.folder_name}-{pilot_epochs}-epochs"
