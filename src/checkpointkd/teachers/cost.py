"""The cost of training teachers, as Figure 3 of the paper counts it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints import Checkpoint, CheckpointRef
from ..checkpoints.run_dir import read_metrics
from ..records.runs import ExternalRecord, OwnRunRecord, TrainingCost


def training_cost(refs: Sequence[CheckpointRef]) -> TrainingCost:
    """Return the cost of training these checkpoints: each run counts once, up to the last of its checkpoints.

    `seconds` is None if the times of a run are not known, as for external checkpoints.
    """
    last: dict[Path, Checkpoint] = {}
    for ref in refs:
        checkpoint, run = ref.checkpoint, ref.checkpoint.run
        folder = Path(run.folder, run.files or "") if isinstance(run, ExternalRecord) else checkpoint.saved_path.parent
        if isinstance(run, OwnRunRecord) and run.averaged:  # trained along with the run that it lies in
            folder = folder.parents[1] / "checkpoints"
        folder = Path(os.path.realpath(folder))
        if folder not in last or checkpoint.epoch > last[folder].epoch:
            last[folder] = checkpoint
    seconds = [_seconds(checkpoint) for checkpoint in last.values()]
    known_seconds = [value for value in seconds if value is not None]
    return TrainingCost(
        runs=len(last),
        epochs=sum(checkpoint.epoch for checkpoint in last.values()),
        seconds=round(sum(known_seconds), 3) if len(known_seconds) == len(seconds) else None,
    )


def _seconds(checkpoint: Checkpoint) -> float | None:
    if isinstance(checkpoint.run, ExternalRecord):
        return None
    rows = read_metrics(checkpoint.saved_path.parents[1] / "metrics.jsonl")
    seconds = [row.seconds for row in rows if row.epoch <= checkpoint.epoch]
    return float(sum(seconds)) if len(seconds) == checkpoint.epoch else None
