"""Write selection.json, the file that gives RUN@best its meaning."""

from __future__ import annotations

from .. import storage
from ..checkpoints import Trajectory
from ..records.selection import PilotResult, PlaneSettings, SelectionRecord
from .rules import Choice


def write_selection(
    trajectory: Trajectory, selected: Choice | PilotResult, *, made_with: PlaneSettings | None = None
) -> None:
    """Store a choice in the run directory. Hold `storage.locked(trajectory.path)`.

    Args:
        trajectory: The trajectory whose checkpoints were chosen from.
        selected: The result of a rule or of a pilot search.
        made_with: How the checkpoints were scored, for a rule that uses scores.
    """
    if isinstance(selected, Choice):
        record = SelectionRecord(
            rule=selected.rule,
            reason=selected.reason,
            epochs=selected.epochs,
            unit="step" if selected.unit == "step" else "epoch",
            runner_up=selected.runner_up,
            scores=selected.scores,
            probability=selected.probability,
            warnings=selected.warnings,
            made_with=made_with,
        )
    else:
        record = SelectionRecord(
            rule=selected.rule,
            reason=selected.reason,
            epochs=selected.epochs,
            unit=selected.unit,
            student=selected.student,
            teachers=selected.teachers,
            method=selected.method,
            alpha=selected.alpha,
            tau=selected.tau,
            warnings=selected.warnings,
        )
    storage.write_json(trajectory.path / "selection.json", record)
