"""Tasks that measure checkpoints on the test set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from ... import records, storage
from ...commands import correlate, evaluate
from ...config import CORRELATION_KINDS, OnProgress
from ...records.experiments import CorrelationRecord
from ...records.runs import TeachersMeasured
from ..context import Context
from .base import DAMAGED, Kind, Row, Task
from .training import CheckpointChoice, TrainTask, members, pinned, references, required_by, short_name

COST_STEPS = 10  # training steps that take as long as predictions on the test set


@final
@dataclass(frozen=True)
class EvaluateTask:
    """Measure the accuracy of checkpoints and of their ensemble."""

    members: tuple[CheckpointChoice, ...]
    kind: Kind = field(default="measurement", init=False, repr=False)

    def requires(self) -> list[Task]:
        return required_by(self.members)

    def key(self, context: Context) -> dict[str, Any]:
        return {"members": pinned(context, self.members)}

    def folder(self, context: Context) -> Path:
        return context.folder("measured", short_name(context, self.members), self.key(context))

    def result(self, context: Context) -> TeachersMeasured:
        return records.read(self.folder(context) / "measured.json", TeachersMeasured, remedy=DAMAGED)

    def done(self, context: Context) -> bool:
        return (self.folder(context) / "measured.json").exists()

    def run(self, context: Context, on_progress: OnProgress | None = None) -> None:
        measured = evaluate(
            *references(context, self.members),
            data=context.data,
            split="test",
            device=context.device,
            on_progress=on_progress,
        )
        storage.write_json(self.folder(context) / "measured.json", measured)

    def cost(self, context: Context) -> float:
        return COST_STEPS * context.speeds[self.members[0].training.model].seconds_per_step

    def megabytes(self, context: Context) -> float:
        return 0.0

    def rows(self, context: Context) -> list[Row]:
        result = self.result(context)
        ensemble = result.ensemble
        return [
            {
                "kind": "measured",
                "members": members(context, self.members),
                "accuracies": [100 * member.accuracy for member in result.members],
                "accuracy": 100 * ensemble.accuracy,
                "accuracy_se": 100 * ensemble.accuracy_se,
                "disagreement": None if ensemble.disagreement is None else 100 * ensemble.disagreement,
                "calibration_error": 100 * ensemble.calibration_error,
                "images": result.images,
            }
        ]


@final
@dataclass(frozen=True)
class CorrelateTask:
    """Measure the class correlation of a run's midpoint and last checkpoint."""

    training: TrainTask
    kind: Kind = field(default="measurement", init=False, repr=False)

    def requires(self) -> list[Task]:
        return [self.training]

    def key(self, context: Context) -> dict[str, Any]:
        return {"run": self.training.folder(context).name, "tau": context.preset.tau}

    def folder(self, context: Context) -> Path:
        return context.folder("correlated", f"{self.training.model}-seed{self.training.seed}", self.key(context))

    def done(self, context: Context) -> bool:
        return (self.folder(context) / "correlated.json").exists()

    def run(self, context: Context, on_progress: OnProgress | None = None) -> None:
        run = self.training.folder(context)
        correlation = correlate(
            f"{run}@midpoint",
            f"{run}@last",
            tau=context.preset.tau,
            data=context.data,
            split="test",
            device=context.device,
            on_progress=on_progress,
        )
        storage.write_json(self.folder(context) / "correlated.json", correlation)

    def cost(self, context: Context) -> float:
        return COST_STEPS * context.speeds[self.training.model].seconds_per_step

    def megabytes(self, context: Context) -> float:
        return 0.0

    def rows(self, context: Context) -> list[Row]:
        """Return the correlation with its matrices in four digits: 100 classes have 10,000 pairs."""
        path = self.folder(context) / "correlated.json"
        row = records.plain(records.read(path, CorrelationRecord, remedy=DAMAGED))
        for kind in CORRELATION_KINDS:
            row[kind]["similarity"] = [_rounded(matrix) for matrix in row[kind]["similarity"]]
            row[kind]["difference"] = _rounded(row[kind]["difference"])
        return [{"kind": "correlation", **row}]


def _rounded(matrix: list[list[float]]) -> list[list[float]]:
    return [[round(cell, 4) for cell in row] for row in matrix]
