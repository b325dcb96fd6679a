"""Which teacher suits this student (SPEC §6): short lessons, compared by what their students then know of the labels.

A lesson is a distillation with a fifth of the epochs, to its end: its learning rate falls as the whole one's does. What
counts of its student is I(Y;F) by the bound H(Y) − CE, in nats, at the temperature that suits it. That puts teachers in
the order in which whole distillations do (docs/selection.md), where the lessons' accuracies hardly tell them apart, and
where the first epochs of whole distillations mislead: at high learning rates students like unripe teachers best, and
labels alone better than ripe ones.

First comes the student without a teacher, then checkpoints from all over the trajectory, then what lies near the best:
other weights of the labels, the best two together, its neighbours. With budget left, the best two have lessons of twice
the length. A lesson is a run's folder, so a race that was stopped continues.

Letters in names: N images, R bootstrap resamples, L lessons.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import files
from .data import Data
from .distillation import distil, prepare
from .errors import UserError, counted, require
from .information import fitted_losses, label_measures
from .loop import measure, predict
from .losses import Supervised
from .runs import carry_out
from .selection import resamples
from .settings import KDSettings, PrecisionChoice, ProbeSettings, Progress, Recipe, TeachingSettings
from .trajectory import Address, RunFolder, Trajectory, describe, provenance

log = logging.getLogger("checkpointkd")

RESULT = "probed.json"
LESSONS = "lessons"
LESSON = 0.15  # of the student's epochs: from a tenth the order of teachers is another (docs/selection.md)
BATCH = 0.5  # of the recipe's batch: twice the steps in the same epochs
STEPS = 100  # in less than that a student learns too little to tell teachers apart
LEAST = 3  # lessons: without a teacher, of the last checkpoint, of another
WHOLE = 8  # lessons that a race has before it spends on longer ones
CHECKPOINTS = 0.7  # of the lessons that are left after the one without a teacher go to checkpoints alone


@dataclass(frozen=True, order=True)
class Candidate:
    """Checkpoints that may teach together, by epoch; none: no teacher. And the weight of the labels."""

    epochs: tuple[int, ...]
    alpha: float

    def words(self, unit: str = "epoch") -> str:
        """As people are told of it.

        >>> Candidate((15, 30), 0.5).words(), Candidate((), 1.0).words()
        ('epochs 15 + 30, alpha 0.5', 'no teacher')
        """
        if not self.epochs:
            return "no teacher"
        several = "s" if len(self.epochs) > 1 else ""
        return f"{unit}{several} {' + '.join(map(str, self.epochs))}, alpha {self.alpha:g}"


ALONE = Candidate((), 1.0)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a candidate's student knows after so many epochs; `loss_N` is each selection image's cross-entropy."""

    candidate: Candidate
    epochs: int
    information: float  # nats
    accuracy: float
    loss_N: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Race:
    """What all lessons have in common, and where they are kept."""

    student: str
    trajectory: Trajectory
    data: Data
    recipe: Recipe
    settings: ProbeSettings
    out: Path
    precision: PrecisionChoice
    table_limit: float
    device: torch.device
    progress: Progress | None = None


@dataclass(frozen=True)
class Probed:
    """Which teacher was found to be best for a student: `epochs` of the checkpoints that teach together, () for none.

    `lessons` is what was tried, in that order, each with its student's `information` in nats and, of those of the
    greatest length, the share of resamples of the images in which it is best. `behind` says by how many nats the
    student without a teacher, that of the last checkpoint and the runner-up were behind: `mean`, `low` and `high`, a
    95 % interval over images; there is one lesson of each, so that another seed's may differ by more. `skipped` are
    checkpoints that know less than the student after its lesson alone. `command` uses what was found.
    """

    student: str
    epochs: tuple[int, ...]
    alpha: float
    tau: float
    reason: str
    lessons: list[dict[str, Any]]
    behind: dict[str, dict[str, Any]]
    skipped: list[int]
    spent_epochs: int
    student_epochs: int
    unit: str = "epoch"
    rule: str = "auto"
    command: str = ""
    warnings: tuple[str, ...] = ()


def lessons_within(settings: ProbeSettings, student_epochs: int, steps_an_epoch: int) -> tuple[int, int]:
    """How long a lesson is, in epochs, and how many of them the budget buys; raises UserError for too few.

    >>> lessons_within(ProbeSettings(), 200, 704)
    (30, 6)
    """
    length = min(student_epochs, max(1, round(LESSON * student_epochs), math.ceil(STEPS / steps_an_epoch)))
    budget = settings.epochs(student_epochs)
    count = budget // length
    require(
        count >= LEAST,
        f"a budget of {counted(budget, 'epoch')} buys {counted(count, 'lesson')} of {counted(length, 'epoch')}, and "
        f"at least {LEAST} are needed: without a teacher, of the last checkpoint, and of another; give --budget "
        f"{LEAST * length} or more",
    )
    return length, count


def race(race: Race) -> Probed:
    """Hold the lessons that are still to be held, and say who teaches best; `probed.json` has it.

    Raises UserError when the folder is another race's, and when the budget is too small.
    """
    trajectory, settings = race.trajectory, race.settings
    require(len(trajectory) > 0, f"the run in {trajectory.source} has saved no checkpoint yet")
    batch_size = max(1, round(BATCH * race.recipe.batch_size))
    recipe = replace(race.recipe, batch_size=batch_size)
    length, count = lessons_within(settings, recipe.epochs, math.ceil(len(race.data.train) / batch_size))
    described = {
        "student": race.student,
        "teachers": [{"epoch": epoch, "sha256": one.sha256} for epoch, one in trajectory.items()],
        "data": {name: value for name, value in race.data.identity.items() if name != "source"},
        "recipe": asdict(recipe),
        "settings": asdict(settings),
    }
    race = replace(race, recipe=recipe)
    with files.locked(race.out):
        _refuse_another(race.out / "race.json", described)
        lessons: list[Lesson] = []
        log.info("%s for %s in all; %s each", counted(count, "lesson"), race.student, counted(length, "epoch"))
        alone = _hold(race, ALONE, length, lessons, count)
        accuracies = _accuracies(trajectory, race)
        skipped = [epoch for epoch, accuracy in accuracies.items() if accuracy < alone.accuracy]
        if len(skipped) == len(accuracies):
            skipped.remove(max(skipped))  # no teacher worth the name, but one to compare with
        if skipped:
            log.info(
                "left out: %s %s, less accurate than the student after its lesson without a teacher (%.1f %%)",
                trajectory.unit, ", ".join(map(str, skipped)), 100 * alone.accuracy,
            )  # fmt: skip
        able = [epoch for epoch in trajectory if epoch not in skipped]
        longer = 2 if count > WHOLE else 0  # who has a lesson of twice the length, in the end
        left = count - 1 - 2 * longer
        first = max(min(2, left), round(CHECKPOINTS * left))
        for epoch in spread(able, first):
            _hold(race, Candidate((epoch,), settings.alphas[0]), length, lessons, count)
        for candidate in near(lessons, able, settings.alphas):
            if len(lessons) > left:
                break
            _hold(race, candidate, length, lessons, count)
        if longer:
            for lesson in _best(lessons)[:longer]:
                _hold(race, lesson.candidate, 2 * length, lessons, count)
        found = _found(race, lessons, skipped)
        files.write_json(race.out / RESULT, {**described, "found": asdict(found), "provenance": provenance()})
        if race.progress is not None:
            race.progress(str(race.out), count, count)
    return found


def spread(epochs: Sequence[int], count: int) -> list[int]:
    """So many of the epochs, evenly spaced, with the last; the last first, and so on backwards.

    >>> spread([3, 6, 9, 12, 15, 18], 3), spread([3, 6], 5), spread([3, 6], 1)
    ([18, 12, 6], [6, 3], [6])
    """
    count = min(count, len(epochs))
    return [epochs[round((number + 1) * len(epochs) / count) - 1] for number in reversed(range(count))]


def near(lessons: Sequence[Lesson], able: Sequence[int], alphas: Sequence[float]) -> Iterator[Candidate]:
    """What to try when the checkpoints are known: with the best of them the other weights of the labels; with the
    weight that is best then, the two best together, and its neighbours, as long as there are any."""
    single = [one for one in _best(lessons) if one.candidate.epochs]
    best = single[0].candidate
    for alpha in alphas[1:]:
        yield replace(best, alpha=alpha)
    alpha = next(one.candidate for one in _best(lessons) if one.candidate.epochs == best.epochs).alpha
    if len(single) > 1:
        yield Candidate(tuple(sorted(best.epochs + single[1].candidate.epochs)), alpha)
    tried = {one.candidate.epochs for one in lessons}
    where = able.index(best.epochs[0])
    for neighbour in sorted(able, key=lambda epoch: abs(able.index(epoch) - where)):
        if (neighbour,) not in tried:
            yield Candidate((neighbour,), alpha)


def _hold(race: Race, candidate: Candidate, epochs: int, lessons: list[Lesson], count: int) -> Lesson:
    """Hold a lesson, or find it held; it is added to the others."""
    unit = race.trajectory.unit
    words = "+".join(map(str, candidate.epochs)) + f"-alpha-{candidate.alpha:g}" if candidate.epochs else "none"
    folder = race.out / LESSONS / f"{words}-{epochs}-epochs"
    recipe = replace(race.recipe, epochs=epochs)
    precision = race.precision
    if lessons:  # what the first took, or they could not be compared
        precision = RunFolder(race.out / LESSONS / f"none-{lessons[0].epochs}-epochs").precision() or precision
    common: dict[str, Any] = {
        "out": folder,
        "recipe": recipe,
        "save_every": epochs,
        "seed": race.settings.seed,
        "precision": precision,
        "compile": False,
        "touch_test": False,
        "announce": False,
        "progress": race.progress,
    }
    if not candidate.epochs:
        run = carry_out(
            race.student, kind="train", data=race.data, device=race.device, objective=Supervised(), **common
        )
    else:
        addresses = [Address(f"{race.trajectory.source}@{e}", race.trajectory[e]) for e in candidate.epochs]
        taught = prepare(
            addresses, race.data, teaching=TeachingSettings(), average=KDSettings.average, weak_teacher=True,
            device=race.device, announce=False,
        )  # fmt: skip
        settings = KDSettings(alpha=candidate.alpha, tau=race.settings.tau)
        run = distil(race.student, taught, method="kd", settings=settings, table_limit=race.table_limit, **common)
    labels_N = race.data.selection.labels_N
    logits_NK = predict(run.full.network(race.device), race.data.selection)
    measured, (loss_N, _) = label_measures(logits_NK, labels_N), fitted_losses(logits_NK, labels_N)
    lesson = Lesson(candidate, epochs, measured["label_information"], measured["accuracy"], loss_N.numpy())
    lessons.append(lesson)
    if race.progress is not None:
        race.progress(str(race.out), min(len(lessons), count - 1), count)  # whole when it is written down
    ahead = _best(lessons)[0]
    log.info(
        "lesson %d, %s, %s: %.3f nats (%.1f %%); ahead: %s",
        len(lessons), candidate.words(unit), counted(epochs, "epoch"), lesson.information, 100 * lesson.accuracy,
        ahead.candidate.words(unit),
    )  # fmt: skip
    return lesson


def _best(lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons of the greatest length, the best first, then shorter ones."""
    return sorted(lessons, key=lambda one: (-one.epochs, -one.information))


def _found(race: Race, lessons: list[Lesson], skipped: list[int]) -> Probed:
    """What the lessons amount to."""
    unit, last = race.trajectory.unit, max(race.trajectory)
    ranked = _best(lessons)
    best = ranked[0]
    taught = [one for one in ranked if one.candidate.epochs and one.epochs == best.epochs]
    if best.candidate == ALONE and taught and _behind(best, taught[0], unit)["low"] <= 0:
        best = taught[0]  # short lessons favour labels alone (docs/selection.md), so a tie is the teacher's
    longest = [one for one in lessons if one.epochs == best.epochs]
    weight_RN = resamples(len(best.loss_N))
    wins_R = (weight_RN @ np.stack([one.loss_N for one in longest]).T).argmin(1)
    share = {one.candidate: float((wins_R == number).mean()) for number, one in enumerate(longest)}
    rivals = {
        "no teacher": [one for one in lessons if one.candidate == ALONE],
        "the last checkpoint": [one for one in lessons if one.candidate.epochs == (last,)],
        "the runner-up": [one for one in ranked if one.candidate != best.candidate],
    }
    behind = {}
    for name, several in rivals.items():
        mine = {one.epochs: one for one in lessons if one.candidate == best.candidate}
        several = [one for one in _best(several) if one.epochs in mine and one.candidate != best.candidate]
        if several:
            behind[name] = _behind(mine[several[0].epochs], several[0], unit)
    warnings = [
        f"{best.candidate.words(unit)} is not surely better than {one['who']}: the gap of {one['mean']:.3f} nats "
        "is within the noise of the images"
        for name, one in behind.items()
        if one["low"] <= 0 and name != "the last checkpoint"
    ]
    return Probed(
        student=race.student,
        epochs=best.candidate.epochs,
        alpha=best.candidate.alpha,
        tau=race.settings.tau,
        reason=f"after lessons of {counted(best.epochs, 'epoch')} its student knew most of the labels, "
        f"{best.information:.3f} nats",
        lessons=[
            {
                "epochs": list(one.candidate.epochs),
                "alpha": one.candidate.alpha,
                "lesson_epochs": one.epochs,
                "information": one.information,
                "accuracy": one.accuracy,
                "probability": share[one.candidate] if one.epochs == best.epochs else 0.0,
            }
            for one in lessons
        ],
        behind=behind,
        skipped=skipped,
        spent_epochs=sum(one.epochs for one in lessons),
        student_epochs=race.recipe.epochs,
        unit=unit,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _behind(best: Lesson, other: Lesson, unit: str) -> dict[str, Any]:
    """By how many nats another lesson's student is behind, with a 95 % interval over the images."""
    gap_N = other.loss_N - best.loss_N
    mean, error = float(gap_N.mean()), float(gap_N.std() / len(gap_N) ** 0.5)
    return {"who": other.candidate.words(unit), "mean": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}


def _accuracies(trajectory: Trajectory, race: Race) -> dict[int, float]:
    """Each checkpoint's accuracy on the selection images, as its run noted it, or as measured now."""
    noted = {one["epoch"]: one["selection_accuracy"] for one in describe(trajectory.source)["checkpoints"]}
    same = all(trajectory.run["data"].get(name) == race.data.identity[name] for name in ("sha256", "protocol"))
    found = {}
    for epoch, checkpoint in trajectory.items():
        accuracy = noted.get(epoch) if same else None
        if accuracy is None:
            logits_NK = predict(checkpoint.network(race.device), race.data.selection)
            accuracy = measure(logits_NK, race.data.selection.labels_N)["accuracy"]
        found[epoch] = accuracy
    return found


def _refuse_another(path: Path, described: dict[str, Any]) -> None:
    """Raise UserError where another race's lessons are."""
    described = json.loads(json.dumps(described))
    if not path.exists():
        strangers = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".lock")]
        require(
            not strangers,
            f"{path.parent} holds something else ({', '.join(sorted(strangers)[:3])}); choose another --out",
        )
        files.write_json(path, described)
        return
    there = files.read_json(path)
    if not isinstance(there, dict):
        raise UserError(f"{path} is damaged; remove {path.parent}, and the lessons are held anew")
    unlike = [name for name, value in described.items() if there.get(name) != value]
    require(not unlike, f"{path.parent} holds a race with other {', '.join(unlike)}; choose another --out")
