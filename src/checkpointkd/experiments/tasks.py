"""What studies are made of. A piece of work says what it is and what must be done before it; `Lab` carries it out.

Checkpoints are named as in addresses (`half`, `0.3`, `full`, `best`), since what `best` is shows only when the teacher
has been trained and scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..config import EstimatorName
from .presets import Pair, Preset

DEPENDENCY_FAILED = "what it needs failed"


@dataclass(frozen=True)
class TrainTask:
    """A network that learns from labels: a teacher, or a student without one; smoothed, a student of the uniform
    teacher. By the scale's recipe, or another."""

    model: str
    role: Literal["teacher", "student"]
    seed: int = 0
    smoothing: float = 0.0
    recipe: str | None = None

    def after(self) -> list[Task]:
        return []


@dataclass(frozen=True)
class CheckpointChoice:
    """A checkpoint of a run: an epoch, a part of the training, `half`, `full`; `best`, or what another rule chooses."""

    run: TrainTask
    which: str

    @property
    def by_rule(self) -> bool:
        return self.which not in ("midpoint", "last") and not self.which[0].isdigit()

    def after(self) -> list[Task]:
        return [self.run, ScoreTask(self.run)] if self.by_rule else [self.run]


@dataclass(frozen=True)
class TuneTask:
    """α and τ for a student and its teachers."""

    model: str
    teachers: tuple[CheckpointChoice, ...]

    def after(self) -> list[Task]:
        return _of_all(self.teachers)


@dataclass(frozen=True)
class DistillTask:
    """A student of one teacher or several; with the α and τ of the scale, or those that a search found, or this α."""

    model: str
    teachers: tuple[CheckpointChoice, ...]
    seed: int
    searched: bool = False
    alpha: float | None = None

    def after(self) -> list[Task]:
        found: list[Task] = [self.search] if self.searched else []
        return [*_of_all(self.teachers), *found]

    @property
    def search(self) -> TuneTask:
        return TuneTask(self.model, self.teachers)


@dataclass(frozen=True)
class PilotTask:
    """What short lessons of a student say of the checkpoints of a run."""

    model: str
    run: TrainTask
    budget: str
    seed: int

    def after(self) -> list[Task]:
        return [self.run]


@dataclass(frozen=True)
class AdvisedStudent:
    """The student that probing advises: of some checkpoints, or of none."""

    probing: PilotTask
    seed: int

    @property
    def model(self) -> str:
        return self.probing.model

    def after(self) -> list[Task]:
        return [self.probing]


@dataclass(frozen=True)
class ScoreTask:
    """A run's checkpoints on the information plane, and what Algorithm 1 chooses of them by the decoder."""

    run: TrainTask | DistillTask
    estimator: EstimatorName = "decoder"

    def after(self) -> list[Task]:
        return [self.run]


@dataclass(frozen=True)
class EvaluateTask:
    """The accuracy of checkpoints and of their ensemble on the test images."""

    members: tuple[CheckpointChoice, ...]

    def after(self) -> list[Task]:
        return _of_all(self.members)


@dataclass(frozen=True)
class CorrelateTask:
    """The class correlation of a run's half-way and last checkpoint."""

    run: TrainTask

    def after(self) -> list[Task]:
        return [self.run]


Task = TrainTask | DistillTask | TuneTask | PilotTask | AdvisedStudent | ScoreTask | EvaluateTask | CorrelateTask


@dataclass(frozen=True)
class Item:
    """A piece of work as a study needs it: whose it is, and what it is called there."""

    pair: Pair
    arm: str
    work: Task


def ordered(works: Iterable[Task]) -> list[Task]:
    """Each piece once, after all that it needs.

    >>> run = Training("a", "teacher")
    >>> [type(work).__name__ for work in ordered([Distillation("b", (Picked(run, "best"),), seed=0), run])]
    ['Training', 'Scoring', 'Distillation']
    """
    found: dict[Task, None] = {}

    def add(work: Task) -> None:
        if work not in found:
            for before in work.after():
                add(before)
            found[work] = None

    for work in works:
        add(work)
    return list(found)


def teacher(pair: Pair, number: int = 0) -> TrainTask:
    """The pair's teacher of this number: T₁ is 0."""
    return TrainTask(pair.teacher, "teacher", seed=number)


def snapshot(run: TrainTask, size: int) -> tuple[CheckpointChoice, ...]:
    """A run's end and size − 1 equally spaced checkpoints before it.

    >>> [picked.which for picked in snapshot(Training("a", "teacher"), 4)]
    ['0.25', 'half', '0.75', 'full']
    """
    words = {1: "last", 0.5: "midpoint"}
    parts = [number / size for number in range(1, size + 1)]
    return tuple(CheckpointChoice(run, words.get(part, f"{part:.6f}".rstrip("0"))) for part in parts)


def single(pair: Pair, *which: str) -> dict[str, tuple[CheckpointChoice, ...]]:
    """Arms whose teacher is one checkpoint of the pair's first run, by its name."""
    return {one: (CheckpointChoice(teacher(pair), one),) for one in which}


def swept(pair: Pair) -> dict[str, tuple[CheckpointChoice, ...]]:
    """The arms of Figure 2."""
    words = {1: "last", 0.5: "midpoint"}
    return single(pair, *(words.get(part, f"{part:g}") for part in pair.sweep))


def students(
    preset: Preset,
    pair: Pair,
    arms: dict[str, tuple[CheckpointChoice, ...]],
    *,
    alone: bool = True,
    smoothed: bool = False,
) -> Iterator[Item]:
    """A student an arm and seed, all arms of one seed before the next seed: what is there early can be compared."""
    for seed in range(preset.seeds):
        if alone:
            yield Item(pair, "scratch", TrainTask(pair.student, "student", seed))
        if smoothed:
            yield Item(pair, "uniform", TrainTask(pair.student, "student", seed, preset.smoothing))
        for arm, teachers in arms.items():
            yield Item(pair, arm, DistillTask(pair.student, teachers, seed, preset.search))


def _of_all(picked: Iterable[CheckpointChoice]) -> list[Task]:
    return list(dict.fromkeys(work for one in picked for work in one.after()))
