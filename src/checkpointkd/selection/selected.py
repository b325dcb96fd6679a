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
        record = selection_record(selected, made_with=made_with)
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


def selection_record(choice: Choice, *, made_with: PlaneSettings | None = None) -> SelectionRecord:
    """Return the record of a rule's choice."""
    return SelectionRecord(
        rule=choice.rule,
        reason=choice.reason,
        epochs=choice.epochs,
        unit="step" if choice.unit == "step" else "epoch",
        runner_up=choice.runner_up,
        scores=choice.scores,
        probability=choice.probability,
        warnings=choice.warnings,
        made_with=made_with,
    )
