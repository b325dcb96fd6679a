"""What lessons tell (SPEC §6): how long they are, which to hold next, and which teacher they show to be best.

Plain functions of outcomes; who holds the lessons is probing.py. Why this order and these numbers: docs/selection.md.

Letters in names: N images, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import PilotConfig
from ..errors import UserError, pluralize
from . import resamples

PILOT_FRACTION = 0.15  # of the student's epochs: from a tenth the order of teachers is another (docs/selection.md)
PILOT_BATCH_FRACTION = 0.5  # of the recipe's batch: twice the steps in the same epochs
MIN_STEPS = 100  # in less than that a student learns too little to tell teachers apart
PLAN_VERSION = 2  # raised with what lessons are held or what follows from them: studies then hold theirs anew
MIN_RUNS = 3  # lessons: without a teacher, of the last checkpoint, of another
MIN_RUNS_BEFORE_PROMOTION = 8  # lessons that a race has before it spends what is left on longer ones
N_PROMOTED = 2  # so many have a lesson of twice the length, in the end
LAST_CHECKPOINT_MARGIN = (
    0.2  # of what teaching gains: leads over the last checkpoint differ by half of it from seed to seed
)
CHECKPOINT_SHARE = 0.7  # of the lessons that are left after the one without a teacher go to checkpoints alone, at most


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
        return f"{unit}{several} {' + '.join(map(str, self.epochs))}, alpha {self.alpha!r}"

    @property
    def folder(self) -> str:
        return f"{'+'.join(map(str, self.epochs))}-alpha-{self.alpha!r}" if self.epochs else "none"


NO_TEACHER = Candidate((), 1.0)


@dataclass(frozen=True, eq=False)
class PilotOutcome:
    """What a candidate's student knows after a lesson; `loss_N` is each selection image's cross-entropy."""

    candidate: Candidate
    epochs: int
    information: float  # nats
    accuracy: float
    loss_N: np.ndarray


@dataclass(frozen=True)
class PilotResult:
    """Which teacher was found to be best for a student: `epochs` of the checkpoints that teach together, () for none.

    `lessons` is what was tried, in that order, each with its student's `information` in nats, whether it was `chosen`
    and, for those of the greatest length, the share of resamples of the images in which it is best (`probability`, else
    None). `behind` says
    by how many nats the student without a teacher, that of the last checkpoint and the runner-up were behind after
    lessons of one length: `mean`, `low` and `high`, a 95% interval over images. There is one lesson of each, so that
    another seed's may differ by more, and the best is named on the same images, which flatters it. `skipped` are
    checkpoints less accurate than the student after its lesson alone, `untried` those that the budget had no room for.
    `command` uses what was found.
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
    untried: tuple[int, ...] = ()
    unit: str = "epoch"
    rule: str = "pilot"
    command: str = ""
    warnings: tuple[str, ...] = ()


def plan_pilot_runs(settings: PilotConfig, student_epochs: int, steps_an_epoch: int) -> tuple[int, int]:
    """How long a lesson is, in epochs, and how many of them the budget buys; raises UserError for too few.

    In an epoch of a lesson there are so many steps.

    >>> lessons_within(PilotConfig(), 200, 704)
    (30, 6)
    """
    length = min(student_epochs, max(1, round(PILOT_FRACTION * student_epochs), math.ceil(MIN_STEPS / steps_an_epoch)))
    budget = settings.epochs(student_epochs)
    count = budget // length
    why = (
        f" (a lesson takes {MIN_STEPS} steps or more)"
        if length > max(1, round(PILOT_FRACTION * student_epochs))
        else ""
    )
    if not count >= MIN_RUNS:
        raise UserError(
            f"a budget of {pluralize(budget, 'epoch')} buys {pluralize(count, 'lesson')} of {pluralize(length, 'epoch')}{why}, "
            f"and at least {MIN_RUNS} are needed: without a teacher, of the last checkpoint, and of another or with another "
            f"alpha; give --budget {MIN_RUNS * length} or more, in epochs"
            f"{', or a share of one whole distillation, as in 1.0' * settings.in_epochs}"
        )
    return length, count


def evenly_spaced(epochs: Sequence[int], count: int) -> list[int]:
    """So many of the epochs, all over the training: the last, the middle one, and what halves what is between them, the
    later first, so that a greater number has those of a smaller one.

    >>> spread([3, 6, 9, 12, 15, 18, 21, 24], 4), spread([3, 6], 5), spread([3, 6], 1)
    ([24, 12, 18, 6], [6, 3], [6])
    """
    found: dict[int, None] = {}
    parts = 1
    while len(found) < min(count, len(epochs)):
        for number in range(parts, 0, -1):
            found[epochs[max(1, round(number * len(epochs) / parts)) - 1]] = None
        parts *= 2
    return list(found)[:count]


def next_candidates(
    held: Sequence[PilotOutcome], able: Sequence[int], alphas: Sequence[float], last: int
) -> Iterator[Candidate]:
    """What to try when the checkpoints are known: with the best of them the other weights of the labels; with the
    weight that is best then, the two best together, and its neighbors, as long as there are any."""
    single = [one for one in best_first(held, last) if one.candidate.epochs]
    if not single:  # all were lost
        return
    best = single[0].candidate
    for alpha in alphas[1:]:
        yield replace(best, alpha=alpha)
    alpha = next(one.candidate for one in best_first(held, last) if one.candidate.epochs == best.epochs).alpha
    if len(single) > 1:
        yield Candidate(tuple(sorted(best.epochs + single[1].candidate.epochs)), alpha)
    tried = {one.candidate.epochs for one in held}
    where = able.index(best.epochs[0])
    for neighbor in sorted(able, key=lambda epoch: abs(able.index(epoch) - where)):
        if (neighbor,) not in tried:
            yield Candidate((neighbor,), alpha)


def best_first(held: Sequence[PilotOutcome], last: int) -> list[PilotOutcome]:
    """The lessons of the greatest length that two or more have, the best first, then the others.

    The last checkpoint alone, of epoch `last`, is credited with `DOUBT` of what teaching gains: short lessons favour
    softer teachers, which are earlier ones and several together.
    """
    lengths = Counter(one.epochs for one in held)
    decides = max((length for length, several in lengths.items() if several > 1), default=max(lengths))
    credit = LAST_CHECKPOINT_MARGIN * _gain(held)
    return sorted(
        held, key=lambda one: (one.epochs != decides, -one.information - credit * (one.candidate.epochs == (last,)))
    )


def _gain(held: Sequence[PilotOutcome]) -> float:
    """By how many nats the best student is ahead of the one without a teacher, after lessons as long as its."""
    alone = next(one for one in held if one.candidate == NO_TEACHER)
    return max(one.information for one in held if one.epochs == alone.epochs) - alone.information


def summarize(
    held: list[PilotOutcome],
    *,
    student: str,
    student_epochs: int,
    tau: float,
    skipped: list[int],
    last: int,
    unit: str,
    lost: Sequence[tuple[Candidate, int]] = (),
) -> PilotResult:
    """What the lessons amount to; `last` is the epoch of the trajectory's last checkpoint, `skipped` had no lesson, the
    lessons of `lost` diverged, and their epochs count as whole."""
    best, reason, doubted = _advised(held, skipped=skipped, last=last, unit=unit)
    longest = [one for one in held if one.epochs == best.epochs]
    wins_R = (resamples(len(best.loss_N)) @ np.stack([one.loss_N for one in longest]).T).argmin(1)
    share = {one.candidate: float((wins_R == number).mean()) for number, one in enumerate(longest)}
    mine = {one.epochs: one for one in held if one.candidate == best.candidate}
    others = [one for one in held if one.candidate != best.candidate and one.epochs in mine]
    others.sort(key=lambda one: (-one.epochs, -one.information))
    rivals = {
        "no teacher": [one for one in others if one.candidate == NO_TEACHER],
        "the last checkpoint": [one for one in others if one.candidate.epochs == (last,) != best.candidate.epochs],
        "the runner-up": others,
    }
    behind = {
        name: paired_gap(mine[several[0].epochs], several[0], unit) for name, several in rivals.items() if several
    }
    warnings = [
        f"the lesson from {candidate.words(unit)} diverged, {pluralize(epochs, 'epoch')} long"
        for candidate, epochs in lost
    ] + [
        f"{best.candidate.words(unit)} is not surely better than {one['who']}: the gap of {one['mean']:.3f} nats "
        "is within the noise of the images"
        for name, one in behind.items()
        if one["low"] <= 0 and name != "the last checkpoint" and one["who"] != doubted
    ]
    return PilotResult(
        student=student,
        epochs=best.candidate.epochs,
        alpha=best.candidate.alpha,
        tau=tau,
        reason=f"{reason}: {best.information:.3f} nats",
        lessons=[
            {
                "epochs": list(one.candidate.epochs),
                "alpha": one.candidate.alpha,
                "lesson_epochs": one.epochs,
                "information": one.information,
                "accuracy": one.accuracy,
                "chosen": one.candidate == best.candidate,
                "probability": share[one.candidate] if one.epochs == best.epochs else None,
            }
            for one in held
        ],
        behind=behind,
        skipped=skipped,
        spent_epochs=sum(one.epochs for one in held) + sum(epochs for _, epochs in lost),
        student_epochs=student_epochs,
        unit=unit,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def to_promote(held: Sequence[PilotOutcome], *, skipped: Sequence[int], last: int) -> list[Candidate]:
    """Which have a lesson of twice the length: the best, and where that is no teacher, the teacher to compare with."""
    best = [one.candidate for one in best_first(held, last)[:N_PROMOTED]]
    teacher = _advised(held, skipped=skipped, last=last, unit="epoch")[0].candidate
    return [NO_TEACHER, teacher] if best[0] == NO_TEACHER != teacher else best


def _advised(
    held: Sequence[PilotOutcome], *, skipped: Sequence[int], last: int, unit: str
) -> tuple[PilotOutcome, str, str]:
    """The lesson that decides, why, and which other was ahead by too little to be believed, if one was."""
    ranked = best_first(held, last)
    best, lessons = ranked[0], f"lessons of {pluralize(ranked[0].epochs, 'epoch')}"
    most = max((one for one in ranked if one.epochs == best.epochs), key=lambda one: one.information)
    reason = f"after {lessons} its student knew more of the labels than the others'"
    able = [one for one in ranked if one.candidate.epochs and not {*one.candidate.epochs} & {*skipped}]
    able = [one for one in able if one.epochs == best.epochs]
    plain = next((one for one in able if one.candidate.epochs == (last,)), None)
    ahead = max(able, key=lambda one: one.information, default=best)
    doubted = ""
    if most.candidate == NO_TEACHER:  # these lessons show no gain from teaching, whatever shorter ones do
        best = most
    if best.candidate == NO_TEACHER and able and paired_gap(best, ahead, unit)["low"] <= 0:
        best = ahead
        reason = (
            f"of those with a teacher its student knew the most of the labels after {lessons}; without one it did not "
            "surely know more, which short lessons favour"
        )
        if plain not in (None, ahead) and all(paired_gap(one, plain, unit)["low"] <= 0 for one in (most, ahead)):
            best = plain
            reason = (
                f"after {lessons} neither the student without a teacher nor another teacher's surely knew more of the "
                "labels than the last checkpoint's"
            )
    elif plain is best and ahead.information > best.information:
        doubted = ahead.candidate.words(unit)
        reason = (
            f"after {lessons} the student of {doubted} was ahead by less than {100 * LAST_CHECKPOINT_MARGIN:.0f}% of what teaching "
            "gains, which may be chance; the last checkpoint's knew"
        )
    return best, reason, doubted


def paired_gap(best: PilotOutcome, other: PilotOutcome, unit: str) -> dict[str, Any]:
    """By how many nats another lesson's student is behind, with a 95% interval over the images."""
    gap_N = other.loss_N - best.loss_N
    mean, error = float(gap_N.mean()), float(gap_N.std() / len(gap_N) ** 0.5)
    return {
        "who": other.candidate.words(unit),
        "lesson_epochs": other.epochs,
        "mean": mean,
        "low": mean - 1.96 * error,
        "high": mean + 1.96 * error,
    }
