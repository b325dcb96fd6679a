"""Items: the tasks of an experiment under the names that its results have for them, and the usual sets of teachers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .context import Context
from .presets import Pair, Preset
from .tasks import CheckpointChoice, DistillTask, EvaluateTask, PilotRunTask, Row, Task, TrainTask

Teachers = tuple[CheckpointChoice, ...]


@dataclass(frozen=True)
class Item:
    """A task of an experiment: the pair of networks that it belongs to, and the name of the variant."""

    pair: Pair
    variant: str
    task: Task

    @property
    def seed(self) -> int | None:
        """The seed of a student or of its pilot run; None for what all seeds share."""
        training = self.task.student if isinstance(self.task, PilotRunTask) else self.task
        if isinstance(training, DistillTask) or (isinstance(training, TrainTask) and training.role == "student"):
            return training.seed
        return None

    def rows(self, context: Context) -> list[Row]:
        """Return the rows of the task, with pair and variant. The task must be done."""
        return [{"pair": self.pair.name, "variant": self.variant, **row} for row in self.task.rows(context)]


def teacher(pair: Pair, number: int = 0) -> TrainTask:
    """Return the training of one of the pair's teachers: T₁ is number 0."""
    return TrainTask(pair.teacher, "teacher", seed=number)


def of_teacher(number: int, name: str) -> str:
    """Return the name of a variant of one of the compared teacher runs."""
    return f"teacher {number + 1}: {name}"


def snapshot_ensemble(training: TrainTask, size: int) -> Teachers:
    """Return a run's last checkpoint and size − 1 equally spaced checkpoints before it.

    >>> [choice.which for choice in snapshot_ensemble(TrainTask("a", "teacher"), 4)]
    ['0.25', 'midpoint', '0.75', 'last']
    """
    fractions = [number / size for number in range(1, size + 1)]
    return tuple(CheckpointChoice(training, _which(fraction)) for fraction in fractions)


def single_teachers(pair: Pair, *which: str) -> dict[str, Teachers]:
    """Return variants whose teacher is one checkpoint of the pair's first run, by its name."""
    return {name: (CheckpointChoice(teacher(pair), name),) for name in which}


def swept_teachers(pair: Pair) -> dict[str, Teachers]:
    """Return the variants of Figure 2."""
    return single_teachers(pair, *map(_which, pair.sweep))


def student_items(
    preset: Preset,
    pair: Pair,
    variants: dict[str, Teachers],
    *,
    scratch: bool = True,
    smoothed: bool = False,
) -> Iterator[Item]:
    """Yield a student per variant and seed. All variants of a seed come before the next seed, to be compared early."""
    for seed in range(preset.seeds):
        if scratch:
            yield Item(pair, "scratch", TrainTask(pair.student, "student", seed))
        if smoothed:
            yield Item(pair, "uniform", TrainTask(pair.student, "student", seed, preset.smoothing))
        for variant, teachers in variants.items():
            yield Item(pair, variant, DistillTask(pair.student, teachers, seed, preset.tune, method=preset.method))


def evaluation(pair: Pair, variant: str, *members: CheckpointChoice) -> Item:
    """Return the measurement of checkpoints and of their ensemble."""
    return Item(pair, variant, EvaluateTask(members))


def _which(fraction: float) -> str:
    """Return the name of the checkpoint at a fraction of the training."""
    return {1: "last", 0.5: "midpoint"}.get(fraction) or f"{fraction:.6f}".rstrip("0")
