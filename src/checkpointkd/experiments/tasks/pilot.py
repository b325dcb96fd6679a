"""The task of one pilot run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from ... import records, storage
from ...config import OnProgress
from ..context import Context
from .base import DAMAGED, Kind, Row, Task, checkpoint_megabytes, open_run
from .distilling import DistillTask
from .training import TrainTask

PILOT_SEED = 2000  # of the first pilot run; differs from the seeds of all students
RESULT = "pilot_run.json"


@final
@dataclass(frozen=True)
class PilotRunTask:
    """Train one pilot run as the pilot search does: the training of a student with fewer epochs and a smaller batch.

    `student` is the full training that the pilot run stands for. `lengths` multiplies the usual length of a pilot run.
    """

    student: TrainTask | DistillTask
    lengths: int = 1
    kind: Kind = field(default="search", init=False, repr=False)

    def requires(self) -> list[Task]:
        return self.student.requires()

    def shortened(self, context: Context) -> tuple[TrainTask | DistillTask, Context]:
        """Return the short training, and the context that it runs in."""
        from ...recipes import recipe as get_recipe
        from ...selection.pilot_plan import pilot_batch_size, pilot_length

        preset = context.preset
        whole_batch = preset.batch_size_of("student") or get_recipe(preset.student_recipe).batch_size
        batch_size = pilot_batch_size(whole_batch)
        steps = context.student_steps * math.ceil(whole_batch / batch_size)
        epochs = self.lengths * pilot_length(preset.student_epochs, steps)
        preset = replace(preset, student_epochs=epochs, student_save_every=epochs, student_batch_size=batch_size)
        return replace(self.student, seed=PILOT_SEED + self.student.seed), replace(context, preset=preset)

    def key(self, context: Context) -> dict[str, Any]:
        task, shorter = self.shortened(context)
        return task.key(shorter)

    def folder(self, context: Context) -> Path:
        task, shorter = self.shortened(context)
        return task.folder(shorter)

    def done(self, context: Context) -> bool:
        return (self.folder(context) / RESULT).exists()

    def run(self, context: Context, on_progress: OnProgress | None = None) -> None:
        from ...data import load_data
        from ...device import pick_device
        from ...selection.pilot import measure_student

        task, shorter = self.shortened(context)
        task.run(shorter, on_progress)
        trajectory = open_run(task.folder(shorter))
        val = load_data(shorter.data_config("student"), on_progress=on_progress).val
        information, accuracy = measure_student(trajectory, val, pick_device(context.device))
        storage.write_json(trajectory.path / RESULT, {"information": information, "accuracy": accuracy})

    def cost(self, context: Context) -> float:
        task, shorter = self.shortened(context)
        return context.training_seconds(task.model, shorter.preset.student_epochs)

    def megabytes(self, context: Context) -> float:
        return checkpoint_megabytes(context, self.student.model, 1)

    def rows(self, context: Context) -> list[Row]:
        task, shorter = self.shortened(context)
        result = records.read(task.folder(shorter) / RESULT, dict[str, float], remedy=DAMAGED)
        return [
            {
                "kind": "pilot run",
                "seed": self.student.seed,
                "lengths": self.lengths,
                "epochs": shorter.preset.student_epochs,
                "student_epochs": context.preset.student_epochs,
                "information": result["information"],
                "val_accuracy": 100 * result["accuracy"],
                "images": open_run(task.folder(shorter)).run.data.val_size,
                "run": task.folder(shorter).name,
            }
        ]
