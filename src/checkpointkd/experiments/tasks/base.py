"""The interface of tasks, the units of work of an experiment, and what their keys have in common."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ...config import OnProgress
from ...errors import UserError
from ..context import Context
from ..presets import Role

if TYPE_CHECKING:
    from ...checkpoints import Trajectory

Row = dict[str, Any]
Kind = Literal["teacher", "student", "search", "measurement"]

DAMAGED = "Remove the file; the task runs again."  # the remedy for a damaged result


class Task(Protocol):
    """A unit of work. Every task is a frozen dataclass, and equal tasks are one task."""

    @property
    def kind(self) -> Kind:
        """What the task is in an estimate."""
        ...

    def requires(self) -> list[Task]:
        """Return the tasks that must be done before this one."""
        ...

    def key(self, context: Context) -> dict[str, Any]:
        """Return all that determines the result. What the task requires must be done."""
        ...

    def folder(self, context: Context) -> Path:
        """Return the folder of the result. What the task requires must be done."""
        ...

    def done(self, context: Context) -> bool:
        """Return whether the result is there; what the task requires must be done.

        Raises:
            UserError: If the result is damaged.
        """
        ...

    def run(self, context: Context, on_progress: OnProgress | None = None) -> None:
        """Make the result, or continue it. What the task requires must be done."""
        ...

    def cost(self, context: Context) -> float:
        """Return about how many seconds the task takes on this machine, from its start."""
        ...

    def megabytes(self, context: Context) -> float:
        """Return the size of the checkpoints that the task leaves."""
        ...

    def rows(self, context: Context) -> list[Row]:
        """Return the rows of the result. The task must be done."""
        ...


def ordered(tasks: Iterable[Task]) -> list[Task]:
    """Return each task once, after the tasks that it requires, and otherwise in the order given.

    >>> from checkpointkd.experiments.tasks import CheckpointChoice, DistillTask, TrainTask
    >>> run = TrainTask("a", "teacher")
    >>> [type(task).__name__ for task in ordered([DistillTask("b", (CheckpointChoice(run, "best"),), seed=0), run])]
    ['TrainTask', 'ScoreTask', 'DistillTask']
    """
    order: dict[Task, None] = {}

    def add(task: Task) -> None:
        if task not in order:
            for required in task.requires():
                add(required)
            order[task] = None

    for task in tasks:
        add(task)
    return list(order)


def training_key(context: Context, model: str, recipe: str, epochs: int, role: Role = "student") -> dict[str, Any]:
    """Return what determines any training of a network.

    The names in keys are hashed into the names of folders. To change one orphans all results: see
    tests/golden/content_keys.json.
    """
    preset = context.preset
    return {
        "data": [preset.dataset, preset.select_on, preset.images_of(role)],
        "model": model,
        "recipe": recipe,
        "epochs": epochs,
        "batch_size": preset.batch_size_of(role),
        "precision": context.speeds[model].precision,
    }


def run_key(context: Context, save_every: int, seed: int) -> dict[str, Any]:
    """Return what else determines a run directory."""
    dtype = context.preset.checkpoint_dtype
    return {"every": save_every, "seed": seed} | ({} if dtype == "float32" else {"checkpoint_dtype": dtype})


def training_options(context: Context, model: str, recipe: str, epochs: int, role: Role = "student") -> dict[str, Any]:
    """Return the options that `train`, `distill` and `tune` share."""
    preset = context.preset
    return {
        "data": context.data,
        "recipe": recipe,
        "epochs": epochs,
        "batch_size": preset.batch_size_of(role),
        "select_on": preset.select_on,
        "train_labels": context.train_labels,
        "train_images": preset.images_of(role),
        "precision": context.speeds[model].precision,
        "device": context.device,
        "log": context.tracking,
    }


def save_every(context: Context, seed: int, epochs: int, usual: int) -> int:
    """Return the epochs between two checkpoints of a run.

    With 16-bit checkpoints only runs of seed 0 save more than the last: no experiment looks at the others' curves.
    """
    return epochs if context.preset.checkpoint_dtype == "float16" and seed > 0 else usual


def checkpoint_megabytes(context: Context, model: str, checkpoints: int) -> float:
    """Return the size of so many checkpoints of a network."""
    share = 0.5 if context.preset.checkpoint_dtype == "float16" else 1.0
    return share * checkpoints * context.speeds[model].megabytes


def run_is_done(folder: Path, checkpoints: int) -> bool:
    """Return whether a run is complete; raises UserError if it has lost checkpoints."""
    if not (folder / "result.json").exists():
        return False
    saved = len(open_run(folder))
    if saved != checkpoints:
        raise UserError(
            f"{folder} is complete but has {saved} of its {checkpoints} checkpoints. Remove the folder to train again."
        )
    return True


def open_run(folder: Path) -> Trajectory:
    """Open the trajectory in a run directory."""
    from ...checkpoints import open_trajectory

    return open_trajectory(folder)


def network_row(trajectory: Trajectory, model: str, seed: int) -> Row:
    """Return the row of a trained network."""
    result = trajectory.result()
    if result is None or result.test is None:
        raise UserError(f"{trajectory.path / 'result.json'} has no test accuracy. Remove the folder to train again.")
    return {
        "kind": "network",
        "model": model,
        "seed": seed,
        "accuracy": 100 * result.test.accuracy,
        "val_accuracy": 100 * result.val.accuracy,
        "epochs": trajectory.planned_epochs,
        "seconds": result.seconds,
        "run": trajectory.path.name,
    }
