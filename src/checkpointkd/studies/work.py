"""What studies are made of. A piece of work says what it is and what must be done before it; `Lab` carries it out.

Checkpoints are named as in addresses (`half`, `0.3`, `full`, `best`), since what `best` is shows only when the teacher
has been trained and scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..settings import Estimator
from .scales import Pair, Scale

LACKS = "what it needs failed"


@dataclass(frozen=True)
class Training:
    """A network that learns from labels: a teacher, or a student without one; smoothed, a student of the uniform
    teacher. By the scale's recipe, or another."""

    model: str
    role: Literal["teacher", "student"]
    seed: int = 0
    smoothing: float = 0.0
    recipe: str | None = None

    def after(self) -> list[Work]:
        return []


@dataclass(frozen=True)
class Picked:
    """A checkpoint of a run: an epoch, a part of the training, `half`, `full`; `best`, or what another rule chooses."""

    run: Training
    which: str

    @property
    def by_rule(self) -> bool:
        return self.which not in ("half", "full") and not self.which[0].isdigit()

    def after(self) -> list[Work]:
        return [self.run, Scoring(self.run)] if self.by_rule else [self.run]


@dataclass(frozen=True)
class Search:
    """α and τ for a student and its teachers."""

    model: str
    teachers: tuple[Picked, ...]

    def after(self) -> list[Work]:
        return _of_all(self.teachers)


@dataclass(frozen=True)
class Distillation:
    """A student of one teacher or several; with the α and τ of the scale, or those that a search found, or this α."""

    model: str
    teachers: tuple[Picked, ...]
    seed: int
    searched: bool = False
    alpha: float | None = None

    def after(self) -> list[Work]:
        found: list[Work] = [self.search] if self.searched else []
        return [*_of_all(self.teachers), *found]

    @property
    def search(self) -> Search:
        return Search(self.model, self.teachers)


@dataclass(frozen=True)
class Probing:
    """What short lessons of a student say of the checkpoints of a run."""

    model: str
    run: Training
    budget: str
    seed: int

    def after(self) -> list[Work]:
        return [self.run]


@dataclass(frozen=True)
class Following:
    """The student that probing advises: of some checkpoints, or of none."""

    probing: Probing
    seed: int

    @property
    def model(self) -> str:
        return self.probing.model

    def after(self) -> list[Work]:
        return [self.probing]


@dataclass(frozen=True)
class Scoring:
    """A run's checkpoints on the information plane, and what Algorithm 1 chooses of them by the decoder."""

    run: Training | Distillation
    estimator: Estimator = "decoder"

    def after(self) -> list[Work]:
        return [self.run]


@dataclass(frozen=True)
class Measuring:
    """The accuracy of checkpoints and of their ensemble on the test images."""

    members: tuple[Picked, ...]

    def after(self) -> list[Work]:
        return _of_all(self.members)


@dataclass(frozen=True)
class Correlating:
    """The class correlation of a run's half-way and last checkpoint."""

    run: Training

    def after(self) -> list[Work]:
        return [self.run]


Work = Training | Distillation | Search | Probing | Following | Scoring | Measuring | Correlating


@dataclass(frozen=True)
class Part:
    """A piece of work as a study needs it: whose it is, and what it is called there."""

    pair: Pair
    arm: str
    work: Work


def ordered(works: Iterable[Work]) -> list[Work]:
    """Each piece once, after all that it needs.

    >>> run = Training("a", "teacher")
    >>> [type(work).__name__ for work in ordered([Distillation("b", (Picked(run, "best"),), seed=0), run])]
    ['Training', 'Scoring', 'Distillation']
    """
    found: dict[Work, None] = {}

    def add(work: Work) -> None:
        if work not in found:
            for before in work.after():
                add(before)
            found[work] = None

    for work in works:
        add(work)
    return list(found)


def teacher(pair: Pair, number: int = 0) -> Training:
    """The pair's teacher of this number: T₁ is 0."""
    return Training(pair.teacher, "teacher", seed=number)


def snapshot(run: Training, size: int) -> tuple[Picked, ...]:
    """A run's end and size − 1 equally spaced checkpoints before it.

    >>> [picked.which for picked in snapshot(Training("a", "teacher"), 4)]
    ['0.25', 'half', '0.75', 'full']
    """
    words = {1: "full", 0.5: "half"}
    parts = [number / size for number in range(1, size + 1)]
    return tuple(Picked(run, words.get(part, f"{part:.6f}".rstrip("0"))) for part in parts)


def single(pair: Pair, *which: str) -> dict[str, tuple[Picked, ...]]:
    """Arms whose teacher is one checkpoint of the pair's first run, by its name."""
    return {one: (Picked(teacher(pair), one),) for one in which}


def swept(pair: Pair) -> dict[str, tuple[Picked, ...]]:
    """The arms of Figure 2."""
    words = {1: "full", 0.5: "half"}
    return single(pair, *(words.get(part, f"{part:g}") for part in pair.sweep))


def students(
    scale: Scale, pair: Pair, arms: dict[str, tuple[Picked, ...]], *, alone: bool = True, smoothed: bool = False
) -> Iterator[Part]:
    """A student an arm and seed, all arms of one seed before the next seed: what is there early can be compared."""
    for seed in range(scale.seeds):
        if alone:
            yield Part(pair, "alone", Training(pair.student, "student", seed))
        if smoothed:
            yield Part(pair, "uniform", Training(pair.student, "student", seed, scale.smoothing))
        for arm, teachers in arms.items():
            yield Part(pair, arm, Distillation(pair.student, teachers, seed, scale.search))


def _of_all(picked: Iterable[Picked]) -> list[Work]:
    return list(dict.fromkeys(work for one in picked for work in one.after()))
