"""Tasks of the pilot search: the search itself, one pilot run, and the student that the search advises."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

from ... import records, storage
from ...config import OnProgress
from ...distill_config import PilotConfig
from ...records.selection import PilotRecord
from ..context import Context
from .base import DAMAGED, Kind, Row, Task, checkpoint_megabytes, open_run, training_key
from .distilling import DistillTask
from .training import CheckpointChoice, TrainTask

PILOT_SEED = 2000  # of the first search; differs from the seeds of all students
RESULT = "pilot_run.json"


@final
@dataclass(frozen=True)
class PilotTask:
    """Search for a student's teacher among the checkpoints of a run, by short pilot runs.

    The search runs below `commands.select`, which would make its result the run's `@best`.
    """

    model: str
    training: TrainTask
    budget: str
    seed: int
    kind: Kind = field(default="search", init=False, repr=False)

    def requires(self) -> list[Task]:
        return [self.training]

    def config(self, context: Context) -> PilotConfig:
        preset = context.preset
        return PilotConfig(budget=self.budget, alphas=preset.alphas, tau=preset.tau, seed=PILOT_SEED + self.seed)

    def key(self, context: Context) -> dict[str, Any]:
        from ...selection.pilot_plan import PLAN_VERSION

        preset = context.preset
        epochs = list(self.training.trajectory(context))
        return {
            **training_key(context, self.model, preset.student_recipe, preset.student_epochs),
            "pilot": [self.training.folder(context).name, asdict(self.config(context)), epochs],
            "plan": PLAN_VERSION,
        }

    def folder(self, context: Context) -> Path:
        name = f"{self.model}-of-{self.training.model}.{self.training.seed}-seed{self.seed}"
        return context.folder("pilots", name, self.key(context))

    def result(self, context: Context) -> PilotRecord:
        return records.read(self.folder(context) / "pilot.json", PilotRecord, remedy=DAMAGED)

    def done(self, context: Context) -> bool:
        return (self.folder(context) / "pilot.json").exists()

    def run(self, context: Context, on_progress: OnProgress | None = None) -> None:
        from ...data import load_data
        from ...device import pick_device
        from ...recipes import recipe as get_recipe
        from ...selection.pilot import run_pilot_search
        from ...selection.pilot_store import PilotSearch

        preset = context.preset
        recipe = get_recipe(preset.student_recipe, epochs=preset.student_epochs)
        given = {"recipe": preset.student_recipe, "epochs": preset.student_epochs, "batch_size": preset.batch_size}
        run_pilot_search(
            PilotSearch(
                student=self.model,
                trajectory=self.training.trajectory(context),
                data=load_data(context.data_config("student"), on_progress=on_progress),
                recipe=recipe if preset.batch_size is None else replace(recipe, batch_size=preset.batch_size),
                settings=self.config(context),
                out=self.folder(context),
                precision=context.speeds[self.model].precision,
                logit_cache_gb=context.logit_cache_gb,
                device=pick_device(context.device),
                command_options=given,
                on_progress=on_progress,
            )
        )

    def cost(self, context: Context) -> float:
        return context.training_seconds(self.model, self.config(context).epochs(context.preset.student_epochs))

    def megabytes(self, context: Context) -> float:
        return 0.0

    def rows(self, context: Context) -> list[Row]:
        result = self.result(context).result
        return [
            {
                "kind": "pilot",
                "budget": self.budget,
                "seed": self.seed,
                "epochs": list(result.epochs),
                "alpha": result.alpha,
                "pilot_runs": records.plain(result.pilot_runs),
                "skipped": list(result.skipped),
                "spent_epochs": result.spent_epochs,
                "student_epochs": result.student_epochs,
            }
        ]


@final
@dataclass(frozen=True)
class PilotRunTask:
    """One pilot run, as the pilot search trains it: a student's whole training, with fewer epochs and a smaller batch.

    `student` is the training that the pilot run stands for. `lengths` counts in single lengths.
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
        information, accuracy, _ = measure_student(trajectory, val, pick_device(context.device))
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
                "run": task.folder(shorter).name,
            }
        ]


@final
@dataclass(frozen=True)
class AdvisedTask:
    """Train the student with the teachers that a pilot search advises, or without a teacher."""

    pilot: PilotTask
    seed: int
    kind: Kind = field(default="student", init=False, repr=False)

    def requires(self) -> list[Task]:
        return [self.pilot]

    def advised(self, context: Context) -> TrainTask | DistillTask:
        """Return the task that the search advises. The search must be done."""
        result, model = self.pilot.result(context).result, self.pilot.model
        if not result.epochs:
            return TrainTask(model, "student", self.seed)
        teachers = tuple(CheckpointChoice(self.pilot.training, str(epoch)) for epoch in result.epochs)
        return DistillTask(model, teachers, self.seed, alpha=result.alpha)

    def key(self, context: Context) -> dict[str, Any]:
        return self.advised(context).key(context)

    def folder(self, context: Context) -> Path:
        return self.advised(context).folder(context)

    def done(self, context: Context) -> bool:
        return self.advised(context).done(context)

    def run(self, context: Context, on_progress: OnProgress | None = None) -> None:
        self.advised(context).run(context, on_progress)

    def cost(self, context: Context) -> float:
        return context.training_seconds(self.pilot.model, context.preset.student_epochs)

    def megabytes(self, context: Context) -> float:
        return TrainTask(self.pilot.model, "student", self.seed).megabytes(context)

    def rows(self, context: Context) -> list[Row]:
        return self.advised(context).rows(context)
