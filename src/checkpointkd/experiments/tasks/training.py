"""Tasks that train networks on labels and score them, and the choice of their checkpoints as teachers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ...commands import score, select, train
from ...config import LabelLoss, OnProgress
from ..context import Context
from ..presets import Role, get_preset
from .base import (
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

if TYPE_CHECKING:
    from ...checkpoints import Trajectory
    from ...information import Plane
    from ...selection import Choice
    from .distilling import DistillTask

SCORE_STEPS = 33  # training steps that take as long as scoring one checkpoint, with the presets small and paper


@final
@dataclass(frozen=True)
class TrainTask:
    """Train a network on labels: a teacher, or a student without one.

    `smoothing` is label smoothing, the paper's uniform teacher. `recipe` replaces the preset's. The run trains for
    `share` times the preset's epochs. Its learning rate reaches the final value at the end of the run.
    """

    model: str
    role: Role
    seed: int = 0
    smoothing: float = 0.0
    recipe: str | None = None
    share: float = 1.0
    loss: LabelLoss = "cross-entropy"

    @property
    def kind(self) -> Kind:
        return self.role

    def requires(self) -> list[Task]:
        return []

    def recipe_name(self, context: Context) -> str:
        preset = context.preset
        return self.recipe or (preset.teacher_recipe if self.role == "teacher" else preset.student_recipe)

    def epochs(self, context: Context) -> int:
        epochs = context.preset.teacher_epochs if self.role == "teacher" else context.preset.student_epochs
        return max(1, round(self.share * epochs))

    def save_every(self, context: Context) -> int:
        preset = context.preset
        usual = preset.save_every if self.role == "teacher" else preset.student_save_every
        return save_every(context, self.seed, self.epochs(context), usual)

    def checkpoints(self, context: Context) -> int:
        return math.ceil(self.epochs(context) / self.save_every(context))

    def key(self, context: Context) -> dict[str, Any]:
        return {
            **training_key(context, self.model, self.recipe_name(context), self.epochs(context), self.role),
            **run_key(context, self.save_every(context), self.seed),
            "smoothing": self.smoothing,
            **({} if self.loss == "cross-entropy" else {"loss": self.loss}),
        }

    def folder(self, context: Context) -> Path:
        preset, recipe = context.preset, self.recipe_name(context)
        is_usual = self.role == "student" or recipe == get_preset(preset.name, preset.dataset).teacher_recipe
        suffix = ("" if is_usual else f"-{recipe}") + "-smoothed" * bool(self.smoothing)
        suffix += f"-{self.epochs(context)}-epochs" * (self.share != 1) + f"-{self.loss}" * (
            self.loss != "cross-entropy"
        )
        return context.folder("runs", f"{self.model}{suffix}-{self.role}-seed{self.seed}", self.key(context))

    def done(self, context: Context) -> bool:
        return run_is_done(self.folder(context), self.checkpoints(context))

    def run(self, context: Context, on_progress: OnProgress | None = None) -> None:
        train(
            self.model,
            loss=self.loss,
            # None: the recipe's, as for students of teachers; the squared error smooths no labels
            label_smoothing=0.0 if self.loss == "squared-error" else self.smoothing or None,
            checkpoint_dtype=context.preset.checkpoint_dtype,
            seed=self.seed,
            save_every=self.save_every(context),
            out=self.folder(context),
            on_progress=on_progress,
            **training_options(context, self.model, self.recipe_name(context), self.epochs(context), self.role),
        )

    def cost(self, context: Context) -> float:
        return context.training_seconds(self.model, self.epochs(context), self.role)

    def megabytes(self, context: Context) -> float:
        return checkpoint_megabytes(context, self.model, self.checkpoints(context))

    def trajectory(self, context: Context) -> Trajectory:
        return open_run(self.folder(context))

    def rows(self, context: Context) -> list[Row]:
        return [network_row(self.trajectory(context), self.model, self.seed)]


@final
@dataclass(frozen=True)
class ScoreTask:
    """Put the checkpoints of a run on the information plane; for a teacher by the decoder, select by Algorithm 1."""

    training: TrainTask | DistillTask
    estimator: str = "decoder"
    kind: Kind = field(default="measurement", init=False, repr=False)

    @property
    def selects(self) -> bool:
        return self.training.kind == "teacher" and self.estimator == "decoder"

    def requires(self) -> list[Task]:
        return [self.training]

    def key(self, context: Context) -> dict[str, Any]:
        return {"run": self.folder(context).name, "estimator": asdict(context.estimator_config(self.estimator))}

    def folder(self, context: Context) -> Path:
        return self.training.folder(context)

    def plane(self, context: Context) -> Plane | None:
        """Return the information plane of the run, if all checkpoints are scored with the preset's settings."""
        from ...information import load_planes, stale_epochs

        trajectory = self.training.trajectory(context)
        plane = load_planes(trajectory).get(self.estimator)
        if plane is None or plane.epochs != list(trajectory) or stale_epochs(plane, trajectory):
            return None
        config = context.estimator_config(self.estimator)
        fit_images, measure_images = config.images(trajectory.run.data.train_size, trajectory.run.data.val_size)
        config = replace(config, fit_images=fit_images, measure_images=measure_images)
        return plane if plane.settings.estimator_config == config else None

    def done(self, context: Context) -> bool:
        return self.plane(context) is not None

    def run(self, context: Context, on_progress: OnProgress | None = None) -> None:
        config, folder = context.estimator_config(self.estimator), self.folder(context)
        score(
            folder,
            estimator=config.estimator,
            decoder_steps=config.steps,
            decoder_seeds=config.seeds,
            data=context.data,
            device=context.device,
            on_progress=on_progress,
        )
        if self.selects:
            select(folder)

    def cost(self, context: Context) -> float:
        steps = SCORE_STEPS * self.training.checkpoints(context)
        return steps * context.speeds[self.training.model].seconds_per_step

    def megabytes(self, context: Context) -> float:
        return 0.0

    def rows(self, context: Context) -> list[Row]:
        plane, trajectory = self.plane(context), self.training.trajectory(context)
        if plane is None:
            return []
        chosen = choice_by("algorithm1", self.folder(context)).epoch if self.selects else None
        return [
            {
                "kind": "point",
                "model": self.training.model,
                "seed": self.training.seed,
                "epoch": point.epoch,
                "epochs": trajectory.planned_epochs,
                "accuracy": 100 * point.accuracy,
                "accuracy_se": 100 * point.accuracy_se,
                "label_information": point.label_information,
                "information": point.image_information,
                "information_se": point.image_information_se,
                "information_sd": point.image_information_sd,
                "fits": len(plane.information_ASN[0]),
                "images": plane.images["correct"].shape[-1],
                "chosen": point.epoch == chosen,
                "file": f"{trajectory.path.name}/{trajectory[point.epoch].path.name}",
            }
            for point in plane.points
        ]


@final
@dataclass(frozen=True)
class CheckpointChoice:
    """A checkpoint of a run, by name or by rule.

    `which` is `midpoint`, `last`, an epoch, a fraction, a weight average (`mean:0.7-1.0`), `best` (Algorithm 1) or
    another rule.
    """

    training: TrainTask
    which: str
    estimator: str = "decoder"  # whose scores a rule uses

    @property
    def by_rule(self) -> bool:
        return self.which not in ("midpoint", "last") and not self.which[0].isdecimal() and not self.is_average

    @property
    def is_average(self) -> bool:
        return self.which.startswith(("mean:", "decay-mean:"))

    def requires(self) -> list[Task]:
        return [self.training, ScoreTask(self.training, self.estimator)] if self.by_rule else [self.training]

    def choice(self, context: Context) -> Choice:
        """Return what the rule chooses. The run must be scored."""
        rule = "algorithm1" if self.which == "best" else self.which
        return choice_by(rule, self.training.folder(context), self.estimator)

    def name(self, context: Context) -> int | str:
        """Return the epoch of the checkpoint, or the name of the weight average. The required tasks must be done."""
        return self.which if self.is_average else self.epoch(context)

    def epoch(self, context: Context) -> int:
        """Return the epoch of the checkpoint. What the choice requires must be done."""
        from ...checkpoints import find_checkpoint

        if self.by_rule:
            return self.choice(context).epoch
        return find_checkpoint(self.training.trajectory(context), self.which).epoch


def choice_by(rule: str, run: Path, estimator: str = "decoder") -> Choice:
    """Return what a rule chooses of a run that is scored."""
    return _choice(rule, run, estimator, (run / "plane.json").stat().st_mtime_ns)


@cache  # names of folders need the same choice again and again
def _choice(rule: str, run: Path, estimator: str, _scored_at: int) -> Choice:
    from ...information import load_plane
    from ...selection import Candidates, choose

    trajectory = open_run(run)
    plane = load_plane(trajectory, estimator=estimator)
    return choose(Candidates(list(trajectory), trajectory.planned_epochs, plane), rule=rule)


def required_by(choices: Sequence[CheckpointChoice]) -> list[Task]:
    """Return the tasks that checkpoints require, each once."""
    return list(dict.fromkeys(task for choice in choices for task in choice.requires()))


def references(context: Context, choices: Sequence[CheckpointChoice]) -> list[str]:
    """Return checkpoints as commands take them."""
    return [f"{choice.training.folder(context)}@{choice.name(context)}" for choice in choices]


def pinned(context: Context, choices: Sequence[CheckpointChoice]) -> list[list[Any]]:
    """Return checkpoints as parts of a key."""
    return [[choice.training.folder(context).name, choice.name(context)] for choice in choices]


def members(context: Context, choices: Sequence[CheckpointChoice]) -> list[list[Any]]:
    """Return checkpoints for rows: network, seed, and epoch or weight average of each."""
    return [[choice.training.model, choice.training.seed, choice.name(context)] for choice in choices]


def short_name(context: Context, choices: Sequence[CheckpointChoice]) -> str:
    """Return checkpoints as parts of a folder's name: `wrn_16_2.0e15+30` are two of the first run."""
    by_run: dict[TrainTask, list[int | str]] = {}
    for choice in choices:
        by_run.setdefault(choice.training, []).append(choice.name(context))
    return "-".join(f"{run.model}.{run.seed}e{'+'.join(map(str, epochs))}" for run, epochs in by_run.items())
