"""Decide which pilot runs to train, and which teacher their outcomes favor.

These are pure functions; pilot.py trains the runs. docs/selection.md has the reasons for their order and numbers.

Letters in names: N images, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..analysis.statistics import Z
from ..distill_config import PilotConfig
from ..errors import UserError, pluralize
from ..records.selection import PilotGap, PilotResult, PilotRunRecord
from . import resamples

PILOT_FRACTION = 0.15  # of the student's epochs; pilot runs of 10% ranked teachers differently (docs/selection.md)
PILOT_BATCH_FRACTION = 0.5  # of the recipe's batch size, for twice the steps in the same epochs
MIN_STEPS = 100  # of a pilot run; after fewer steps students hardly differ
PLAN_VERSION = 2  # raised when other pilot runs are trained or decide otherwise; experiments then repeat theirs
MIN_RUNS = 3  # no teacher, the last checkpoint, and one more candidate
MIN_RUNS_BEFORE_PROMOTION = 8  # single-length runs that a search trains before it promotes candidates
N_PROMOTED = 2  # candidates with a pilot run of twice the length at the end
LAST_CHECKPOINT_MARGIN = (
    0.2  # of the gain over no teacher; leads over the last checkpoint vary by half of it between seeds
)
CHECKPOINT_SHARE = 0.7  # of the runs with a teacher, at most, compare single checkpoints


@dataclass(frozen=True, order=True)
class Candidate:
    """One way to teach: the epochs of the checkpoints that teach together, none for no teacher, and alpha."""

    epochs: tuple[int, ...]
    alpha: float

    def describe(self, unit: str = "epoch") -> str:
        """Return the candidate in words.

        >>> Candidate((15, 30), 0.5).describe(), Candidate((), 1.0).describe()
        ('epochs 15 + 30, alpha 0.5', 'no teacher')
        """
        if not self.epochs:
            return "no teacher"
        plural = "s" if len(self.epochs) > 1 else ""
        return f"{unit}{plural} {' + '.join(map(str, self.epochs))}, alpha {self.alpha!r}"

    @property
    def folder_name(self) -> str:
        """The start of the name of its pilot runs' directories."""
        return f"{'+'.join(map(str, self.epochs))}-alpha-{self.alpha!r}" if self.epochs else "no-teacher"


NO_TEACHER = Candidate((), 1.0)


@dataclass(frozen=True, eq=False)
class PilotOutcome:
    """A completed pilot run: the student's H(Y) − CE in nats, its accuracy, and each validation image's CE."""

    candidate: Candidate
    pilot_epochs: int
    information: float
    accuracy: float
    loss_N: np.ndarray


@dataclass(frozen=True)
class RunAllowance:
    """How many pilot runs of single length, besides the one without a teacher, the budget allows.

    `with_teacher` counts the stored ones too; `new` may still be trained.
    """

    with_teacher: int
    new: int


def pilot_batch_size(batch_size: int) -> int:
    """Return the batch size of a pilot run, from that of the whole distillation."""
    return max(1, round(PILOT_BATCH_FRACTION * batch_size))


def pilot_length(student_epochs: int, steps_per_epoch: int) -> int:
    """Return the length of a pilot run in epochs."""
    usual_epochs = max(1, round(PILOT_FRACTION * student_epochs))
    return min(student_epochs, max(usual_epochs, math.ceil(MIN_STEPS / steps_per_epoch)))


def plan_pilot_runs(settings: PilotConfig, student_epochs: int, steps_per_epoch: int) -> tuple[int, int]:
    """Return the length of a pilot run in epochs, and how many such runs the budget covers.

    Args:
        settings: The budget.
        student_epochs: Epochs of one whole distillation.
        steps_per_epoch: Steps of an epoch of a pilot run.

    Raises:
        UserError: If the budget covers fewer than `MIN_RUNS` runs.

    >>> plan_pilot_runs(PilotConfig(), 200, 704)
    (30, 6)
    """
    usual_epochs = max(1, round(PILOT_FRACTION * student_epochs))
    pilot_epochs = pilot_length(student_epochs, steps_per_epoch)
    budget = settings.epochs(student_epochs)
    run_count = budget // pilot_epochs
    if run_count < MIN_RUNS:
        because = f" (at least {MIN_STEPS} steps each)" if pilot_epochs > usual_epochs else ""
        share = "" if not settings.in_epochs else ", or a share of one whole distillation, such as 1.0"
        raise UserError(
            f"A budget of {pluralize(budget, 'epoch')} covers {pluralize(run_count, 'pilot run')} of "
            f"{pluralize(pilot_epochs, 'epoch')}{because}, but the search needs at least {MIN_RUNS}: no teacher, "
            f"the last "
            f"checkpoint, and one more candidate. Pass --budget {MIN_RUNS * pilot_epochs} or more, in epochs{share}."
        )
    return pilot_epochs, run_count


def allow_runs(run_count: int, *, stored_single: int, stored_double: int, may_double: bool) -> RunAllowance:
    """Divide a budget of `run_count` single-length runs, of which stored runs of single and double length use a part.

    Double-length runs count twice. With a large budget `N_PROMOTED` of them are reserved for the promotion.
    """
    left = run_count - 2 * (N_PROMOTED + stored_double)
    reserved = N_PROMOTED if may_double and left >= max(MIN_RUNS_BEFORE_PROMOTION, stored_single) else 0
    with_teacher = run_count - 2 * (reserved + stored_double) - 1
    new = max(0, with_teacher + 1 - max(1, stored_single))
    # After a promotion, new single-length runs may need new double-length ones: without room for these, train neither.
    return RunAllowance(with_teacher, new if reserved or not stored_double else 0)


def single_checkpoints(teacher_epochs: Sequence[int], alphas: Sequence[float], with_teacher: int) -> list[Candidate]:
    """Return candidates with one checkpoint, spread over the trajectory, and leave runs for other alphas and a pair."""
    count = min(round(CHECKPOINT_SHARE * with_teacher), with_teacher - len(alphas))
    return [Candidate((epoch,), alphas[0]) for epoch in evenly_spaced(teacher_epochs, max(min(2, with_teacher), count))]


def evenly_spaced(epochs: Sequence[int], count: int) -> list[int]:
    """Return `count` of the epochs, spread over the training: the last, the middle one, then the middles between these.

    Of several middles the later comes first. A larger count adds epochs and removes none.

    >>> evenly_spaced([3, 6, 9, 12, 15, 18, 21, 24], 4), evenly_spaced([3, 6], 5), evenly_spaced([3, 6], 1)
    ([24, 12, 18, 6], [6, 3], [6])
    """
    spaced: dict[int, None] = {}
    parts = 1
    while len(spaced) < min(count, len(epochs)):
        for number in range(parts, 0, -1):
            spaced[epochs[max(1, round(number * len(epochs) / parts)) - 1]] = None
        parts *= 2
    return list(spaced)[:count]


def next_candidates(
    completed: Sequence[PilotOutcome], teacher_epochs: Sequence[int], alphas: Sequence[float], last_epoch: int
) -> Iterator[Candidate]:
    """Yield candidates near the best one, once runs with single checkpoints are complete.

    First the best checkpoint with the other alphas. Then, with its best alpha, the best two checkpoints together and
    the other checkpoints, the nearest first. `completed` may grow between two candidates.
    """
    single = [outcome for outcome in best_first(completed, last_epoch) if outcome.candidate.epochs]
    if not single:  # all diverged
        return
    best = single[0].candidate
    for alpha in alphas[1:]:
        yield replace(best, alpha=alpha)
    ranked = [outcome.candidate for outcome in best_first(completed, last_epoch)]
    alpha = next(candidate.alpha for candidate in ranked if candidate.epochs == best.epochs)
    if len(single) > 1:
        yield Candidate(tuple(sorted(best.epochs + single[1].candidate.epochs)), alpha)
    tried = {outcome.candidate.epochs for outcome in completed}
    center = teacher_epochs.index(best.epochs[0])
    for epoch in sorted(teacher_epochs, key=lambda epoch: abs(teacher_epochs.index(epoch) - center)):
        if (epoch,) not in tried:
            yield Candidate((epoch,), alpha)


def best_first(completed: Sequence[PilotOutcome], last_epoch: int) -> list[PilotOutcome]:
    """Rank outcomes: first the longest runs of which there are at least two, by information, then all others.

    The last checkpoint alone gets a bonus of `LAST_CHECKPOINT_MARGIN` of the gain over no teacher. Short runs favor
    softer teachers: earlier checkpoints, and several together.
    """
    counts = Counter(outcome.pilot_epochs for outcome in completed)
    deciding = max((length for length, count in counts.items() if count > 1), default=max(counts))
    bonus = LAST_CHECKPOINT_MARGIN * _gain(completed)

    def key(outcome: PilotOutcome) -> tuple[bool, float]:
        is_last = outcome.candidate.epochs == (last_epoch,)
        return outcome.pilot_epochs != deciding, -outcome.information - bonus * is_last

    return sorted(completed, key=key)


def _gain(completed: Sequence[PilotOutcome]) -> float:
    """Return how many nats the best student gains over no teacher, in runs as long as the one without a teacher."""
    baseline = next(outcome for outcome in completed if outcome.candidate == NO_TEACHER)
    same_length = [outcome for outcome in completed if outcome.pilot_epochs == baseline.pilot_epochs]
    return max(outcome.information for outcome in same_length) - baseline.information


def to_promote(completed: Sequence[PilotOutcome], *, skipped: Sequence[int], last_epoch: int) -> list[Candidate]:
    """Return the candidates for runs of twice the length: the best two, or no teacher and the best teacher."""
    best = [outcome.candidate for outcome in best_first(completed, last_epoch)[:N_PROMOTED]]
    teacher = _decide(completed, skipped=skipped, last_epoch=last_epoch, unit="epoch").outcome.candidate
    return [NO_TEACHER, teacher] if best[0] == NO_TEACHER != teacher else best


def summarize(
    completed: Sequence[PilotOutcome],
    *,
    student: str,
    student_epochs: int,
    tau: float,
    skipped: Sequence[int],
    last_epoch: int,
    unit: str,
    diverged: Sequence[tuple[Candidate, int]] = (),
    untried: Sequence[int] = (),
) -> PilotResult:
    """Return the result of a pilot search.

    Args:
        completed: All completed pilot runs, in order.
        student: The student's model name.
        student_epochs: Epochs of one whole distillation.
        tau: The temperature of all pilot runs.
        skipped: Checkpoints that were too inaccurate to try.
        last_epoch: The epoch of the trajectory's last checkpoint.
        unit: The unit of checkpoints, "epoch" or "step".
        diverged: Pilot runs that diverged, with their length; they count against the budget as if completed.
        untried: Checkpoints that the budget left no room for.
    """
    decision = _decide(completed, skipped=skipped, last_epoch=last_epoch, unit=unit)
    best = decision.outcome
    deciding = [outcome for outcome in completed if outcome.pilot_epochs == best.pilot_epochs]
    winner_R = (resamples(len(best.loss_N)) @ np.stack([outcome.loss_N for outcome in deciding]).T).argmin(1)
    share = {outcome.candidate: float((winner_R == number).mean()) for number, outcome in enumerate(deciding)}
    behind = _gaps_to_rivals(completed, best, last_epoch, unit)
    warnings = [
        f"The pilot run of {candidate.describe(unit)} over {pluralize(epochs, 'epoch')} diverged"
        for candidate, epochs in diverged
    ] + [
        f"{best.candidate.describe(unit)} is not significantly better than {gap.candidate}: the gap is "
        f"{gap.mean:.3f} nats (95% CI over images: {gap.low:.3f} to {gap.high:.3f})"
        for name, gap in behind.items()
        if gap.low <= 0 and name != "the last checkpoint" and gap.candidate != decision.within_margin
    ]
    return PilotResult(
        student=student,
        epochs=best.candidate.epochs,
        alpha=best.candidate.alpha,
        tau=tau,
        reason=f"{decision.reason}: {best.information:.3f} nats",
        pilot_runs=tuple(
            PilotRunRecord(
                epochs=outcome.candidate.epochs,
                alpha=outcome.candidate.alpha,
                pilot_epochs=outcome.pilot_epochs,
                information=outcome.information,
                accuracy=outcome.accuracy,
                chosen=outcome.candidate == best.candidate,
                probability=share[outcome.candidate] if outcome.pilot_epochs == best.pilot_epochs else None,
            )
            for outcome in completed
        ),
        behind=behind,
        skipped=tuple(skipped),
        spent_epochs=sum(outcome.pilot_epochs for outcome in completed) + sum(epochs for _, epochs in diverged),
        student_epochs=student_epochs,
        untried=tuple(untried),
        unit="step" if unit == "step" else "epoch",
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _gaps_to_rivals(
    completed: Sequence[PilotOutcome], best: PilotOutcome, last_epoch: int, unit: str
) -> dict[str, PilotGap]:
    """Return how far no teacher, the last checkpoint and the runner-up are behind the best, in their longest runs."""
    of_best = {outcome.pilot_epochs: outcome for outcome in completed if outcome.candidate == best.candidate}
    others = [o for o in completed if o.candidate != best.candidate and o.pilot_epochs in of_best]
    others.sort(key=lambda outcome: (-outcome.pilot_epochs, -outcome.information))
    last = (last_epoch,)
    rivals = {
        "no teacher": [o for o in others if o.candidate == NO_TEACHER],
        "the last checkpoint": [o for o in others if o.candidate.epochs == last != best.candidate.epochs],
        "the runner-up": others,
    }
    return {
        name: paired_gap(of_best[outcomes[0].pilot_epochs], outcomes[0], unit)
        for name, outcomes in rivals.items()
        if outcomes
    }


@dataclass(frozen=True)
class _Decision:
    """The outcome whose candidate is chosen, and why.

    `within_margin` describes the candidate that was ahead of the last checkpoint by less than the margin, if any.
    """

    outcome: PilotOutcome
    reason: str
    within_margin: str = ""


def _decide(completed: Sequence[PilotOutcome], *, skipped: Sequence[int], last_epoch: int, unit: str) -> _Decision:
    """Choose between the outcomes.

    The best of `best_first` is chosen. If that is no teacher, but not significantly, a teacher is chosen all the same:
    short runs favor no teacher. It is the last checkpoint unless another outcome is significantly better than that.
    """
    ranked = best_first(completed, last_epoch)
    best = ranked[0]
    runs = f"pilot runs of {pluralize(best.pilot_epochs, 'epoch')}"
    deciding = [outcome for outcome in ranked if outcome.pilot_epochs == best.pilot_epochs]
    highest = max(deciding, key=lambda outcome: outcome.information)
    taught = [o for o in deciding if o.candidate.epochs and not {*o.candidate.epochs} & {*skipped}]
    last = next((outcome for outcome in taught if outcome.candidate.epochs == (last_epoch,)), None)
    best_taught = max(taught, key=lambda outcome: outcome.information, default=best)
    if highest.candidate == NO_TEACHER:  # these runs show no gain over no teacher, whatever shorter runs show
        best = highest
    if best.candidate == NO_TEACHER and taught and not _significant(best, best_taught):
        reason = f"the best teacher in {runs}; no teacher, which short runs favor, was not significantly better"
        rivals = (highest, best_taught)
        if last is not None and best_taught is not last and not any(_significant(rival, last) for rival in rivals):
            best_taught = last
            reason = f"in {runs} neither no teacher nor another teacher was significantly better"
        return _Decision(best_taught, reason)
    if last is best and best_taught.information > best.information:
        rival = best_taught.candidate.describe(unit)
        return _Decision(
            best,
            f"in {runs} {rival} was ahead by less than {100 * LAST_CHECKPOINT_MARGIN:.0f}% of the gain over no teacher,"
            " which may be chance, so the last checkpoint is kept",
            within_margin=rival,
        )
    return _Decision(best, f"the highest validation I(Y;F) of the student in {runs}")


def _significant(better: PilotOutcome, worse: PilotOutcome) -> bool:
    """Return whether the 95% CI of a gap, over images, lies above 0."""
    return paired_gap(better, worse, "epoch").low > 0


def paired_gap(best: PilotOutcome, other: PilotOutcome, unit: str) -> PilotGap:
    """Return how many nats another outcome is behind, with the 95% CI of paired images."""
    gap_N = other.loss_N - best.loss_N
    mean, error = float(gap_N.mean()), float(gap_N.std() / len(gap_N) ** 0.5)
    return PilotGap(
        candidate=other.candidate.describe(unit),
        pilot_epochs=other.pilot_epochs,
        mean=mean,
        low=mean - Z * error,
        high=mean + Z * error,
    )
