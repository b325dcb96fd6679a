"""Tasks that distill students from teachers, and that tune how."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ... import records
from ...commands import distill, tune
from ...config import OnProgress
from ...distill_config import TeacherTau
from ...errors import UserError
from ...records.runs import DistillRecord
from ...records.tuning import TuneRecord
from ..context import Context
from .base import (
    DAMAGED,
    Kind,
    Row,
    Task,
    checkpoint_megabytes,
    network_row,
    open_run,
    run_is_done,
    run_key,
    save_every,
    training_key,
    training_options,
)
from .training import CheckpointChoice, members, pinned, references, required_by, short_name

if TYPE_CHECKING:
    from ...checkpoints import Trajectory

TUNE_SEED = 1000  # differs from the seeds of all students
TUNE_TRAININGS = 12.5  # whole trainings that 25 trials take, half of which are stopped early


@final
@dataclass(frozen=True)
class TuneTask:
    """Tune α and τ for a student and its teachers."""

    model: str
    teachers: tuple[CheckpointChoice, ...]
    kind: Kind = field(default="search", init=False, repr=False)

    def requires(self) -> list[Task]:
        return required_by(self.teachers)

    def key(self, context: Context) -> dict[str, Any]:
        preset = context.preset
        key = training_key(context, self.model, preset.student_recipe, preset.student_epochs)
        return {**key, "teachers": pinned(context, self.teachers)}

    def folder(self, context: Context) -> Path:
        return context.folder("tuned", f"{self.model}-from-{short_name(context, self.teachers)}", self.key(context))

    def result(self, context: Context) -> TuneRecord:
        return records.read(self.folder(context) / "tune.json", TuneRecord, remedy=DAMAGED)

    def done(self, context: Context) -> bool:
        if not (self.folder(context) / "tune.json").exists():
            return False
        result = self.result(context)
        return len(result.trials) >= result.planned

    def run(self, context: Context, on_progress: OnProgress | None = None) -> None:
        preset = context.preset
        tune(
            self.model,
            teachers=references(context, self.teachers),
            seed=TUNE_SEED,
            trials=preset.tune_trials,
            allow_weak_teacher=True,
            logit_cache_gb=context.logit_cache_gb,
            out=self.folder(context),
            on_progress=on_progress,
            **training_options(context, self.model, preset.student_recipe, preset.student_epochs),
        )

    def cost(self, context: Context) -> float:
        return TUNE_TRAININGS * context.training_seconds(self.model, context.preset.student_epochs)

    def megabytes(self, context: Context) -> float:
        return 0.0

    def rows(self, context: Context) -> list[Row]:
        return []


@final
@dataclass(frozen=True)
class DistillTask:
    """Distill a student from teachers, with the preset's α and τ, with tuned values, or with an α of its own.

    Methods other than `kd` have their own default α and τ.
    """

    model: str
    teachers: tuple[CheckpointChoice, ...]
    seed: int
    tuned: bool = False
    alpha: float | None = None
    method: str = "kd"
    teacher_tau: TeacherTau = "fixed"
    kind: Kind = field(default="student", init=False, repr=False)

    def requires(self) -> list[Task]:
        return [*required_by(self.teachers), *([self.tuning] if self.tuned else [])]

    @property
    def tuning(self) -> TuneTask:
        return TuneTask(self.model, self.teachers)

    def alpha_tau(self, context: Context) -> tuple[float, float]:
        """Return the weight of the labels and the temperature."""
        preset = context.preset
        if self.method != "kd":
            from ...losses import defaults

            alpha, tau = defaults(self.method)
            return alpha if self.alpha is None else self.alpha, tau
        if not self.tuned:
            return preset.alpha if self.alpha is None else self.alpha, preset.tau
        best = self.tuning.result(context).best
        if best is None:
            raise UserError(f"No trial in {self.tuning.folder(context)} reached a finite loss")
        return best.values["alpha"], best.values["tau"]

    def save_every(self, context: Context) -> int:
        preset = context.preset
        return save_every(context, self.seed, preset.student_epochs, preset.student_save_every)

    def checkpoints(self, context: Context) -> int:
        return math.ceil(context.preset.student_epochs / self.save_every(context))

    def key(self, context: Context) -> dict[str, Any]:
        preset = context.preset
        return {
            **training_key(context, self.model, preset.student_recipe, preset.student_epochs),
            **run_key(context, self.save_every(context), self.seed),
            "teachers": pinned(context, self.teachers),
            "alpha, tau": self.alpha_tau(context),
            **({} if self.method == "kd" else {"method": self.method}),
            **({} if self.teacher_tau == "fixed" else {"teacher_tau": self.teacher_tau}),
        }

    def folder(self, context: Context) -> Path:
        by = ("" if self.method == "kd" else f"-{self.method}") + f"-tau-{self.teacher_tau}" * (
            self.teacher_tau != "fixed"
        )
        name = f"{self.model}-from-{short_name(context, self.teachers)}{by}-seed{self.seed}"
        return context.folder("runs", name, self.key(context))

    def done(self, context: Context) -> bool:
        return run_is_done(self.folder(context), self.checkpoints(context))

    def run(self, context: Context, on_progress: OnProgress | None = None) -> None:
        preset, (alpha, tau) = context.preset, self.alpha_tau(context)
        distill(
            self.model,
            teachers=references(context, self.teachers),
            method=self.method,
            alpha=alpha,
            tau=tau,
            teacher_tau=self.teacher_tau,
            allow_weak_teacher=True,
            logit_cache_gb=context.logit_cache_gb,
            checkpoint_dtype=preset.checkpoint_dtype,
            seed=self.seed,
            save_every=self.save_every(context),
            out=self.folder(context),
            on_progress=on_progress,
            **training_options(context, self.model, preset.student_recipe, preset.student_epochs),
        )

    def cost(self, context: Context) -> float:
        live = [choice.training.model for choice in dict.fromkeys(self.teachers)] if context.streams else []
        return context.training_seconds(self.model, context.preset.student_epochs, live_teachers=live)

    def megabytes(self, context: Context) -> float:
        return checkpoint_megabytes(context, self.model, self.checkpoints(context))

    def trajectory(self, context: Context) -> Trajectory:
        return open_run(self.folder(context))

    def rows(self, context: Context) -> list[Row]:
        trajectory, (alpha, tau) = self.trajectory(context), self.alpha_tau(context)
        assert isinstance(trajectory.run, DistillRecord)
        cost = trajectory.run.teachers_cost
        return [
            {
                **network_row(trajectory, self.model, self.seed),
                "teachers": members(context, self.teachers),
                "method": self.method,
                "alpha": alpha,
                "tau": tau,
                "teachers_epochs": cost.epochs,
                "teachers_seconds": cost.seconds,
            }
        ]
