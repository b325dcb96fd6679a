"""Decide which pilot run to train next, and which candidate the pilot runs favor.

All functions here are pure. pilot.py trains the runs, and `reproduce selection` replays the functions on stored runs.
docs/selection.md has the evidence.

Letters in names: C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..analysis.statistics import Z
from ..distill_config import PilotConfig
from ..errors import UserError, pluralize
from .candidates import NO_TEACHER, Candidate
from .effects import Gains, Prior, posterior
from .prior import PRIOR

PILOT_FRACTION = 0.15  # of the student's epochs; pilot runs of 10% ranked teachers differently (docs/selection.md)
PILOT_BATCH_FRACTION = 0.5  # of the recipe's batch size, for twice the steps in the same epochs
MIN_STEPS = 100  # of a pilot run; after fewer steps students hardly differ
MIN_RUNS = 2  # a comparison needs two runs
PRIOR_HEADROOM = 92.0  # points up to 100% that the pilot runs of the prior had
WORST = 5.0  # points below both default and no teacher; a lower score only shows that a candidate is bad
ENOUGH = 0.02  # points; the search stops when no run is expected to improve the choice by more


@dataclass(frozen=True)
class PilotOutcome:
    """A pilot run: the student's H(Y) − CE in nats and its accuracy; NaN if it diverged or could not be trained."""

    candidate: Candidate
    information: float
    accuracy: float
    images: int  # that both were measured on
    at_chance: bool = False  # the accuracy is not clearly above that of guessing

    @property
    def diverged(self) -> bool:
        return math.isnan(self.information)

    @property
    def score(self) -> float:
        """The accuracy in points, by which candidates are compared."""
        return 100 * self.accuracy


def failed_candidates(outcomes: Sequence[PilotOutcome]) -> set[Candidate]:
    """Return the candidates whose pilot run diverged, or stayed at chance level while another one did not."""
    learned = any(not outcome.diverged and not outcome.at_chance for outcome in outcomes)
    return {outcome.candidate for outcome in outcomes if outcome.diverged or (outcome.at_chance and learned)}


def pilot_batch_size(batch_size: int) -> int:
    """Return the batch size of a pilot run, from that of the full distillation."""
    return max(1, round(PILOT_BATCH_FRACTION * batch_size))


def pilot_length(student_epochs: int, steps_per_epoch: int) -> int:
    """Return the length of a pilot run in epochs."""
    usual_epochs = max(1, round(PILOT_FRACTION * student_epochs))
    return min(student_epochs, max(usual_epochs, math.ceil(MIN_STEPS / steps_per_epoch)))


def plan_pilot_runs(settings: PilotConfig, student_epochs: int, steps_per_epoch: int) -> tuple[int, int]:
    """Return the length of a pilot run in epochs, and how many such runs the budget covers.

    Args:
        settings: The budget.
        student_epochs: Epochs of one full distillation.
        steps_per_epoch: Steps of an epoch of a pilot run.

    Raises:
        UserError: If the budget covers fewer than `MIN_RUNS` runs.

    >>> plan_pilot_runs(PilotConfig(), 200, 704)
    (30, 6)
    """
    pilot_epochs = pilot_length(student_epochs, steps_per_epoch)
    budget = settings.epochs(student_epochs)
    run_count = budget // pilot_epochs
    if run_count < MIN_RUNS:
        longer = pilot_epochs > max(1, round(PILOT_FRACTION * student_epochs))
        because = f" (at least {MIN_STEPS} steps each)" if longer else ""
        share = "" if not settings.in_epochs else ", or a share of one full distillation, such as 1.0"
        raise UserError(
            f"A budget of {pluralize(budget, 'epoch')} covers {pluralize(run_count, 'pilot run')} of "
            f"{pluralize(pilot_epochs, 'epoch')}{because}, but a comparison needs at least {MIN_RUNS}. "
            f"Pass --budget {MIN_RUNS * pilot_epochs} or more, in epochs{share}."
        )
    return pilot_epochs, run_count


def gains_of(
    candidates: Sequence[Candidate], outcomes: Sequence[PilotOutcome], default: Candidate, prior: Prior = PRIOR
) -> Gains:
    """Return the gains of all candidates over the default, in points, after these pilot runs.

    The means of the prior are scaled to the headroom: where the best student is already accurate, gains are small.
    """
    number = {candidate: index for index, candidate in enumerate(candidates)}
    completed = [outcome for outcome in outcomes if not outcome.diverged]
    if completed:
        best = max(completed, key=lambda outcome: outcome.score)
        prior = prior.with_means_scaled(min(1.0, (100 - best.score) / PRIOR_HEADROOM))
        prior = replace(prior, noise=math.hypot(prior.noise, _sampling_error(best)))
    floor = lowest_score(completed, default)
    return posterior(
        prior,
        [candidate.method_level for candidate in candidates],
        [candidate.teachers_level for candidate in candidates],
        [(number[outcome.candidate], max(floor, outcome.score)) for outcome in completed],
        baseline=number[default],
    )


def lowest_score(outcomes: Sequence[PilotOutcome], default: Candidate) -> float:
    """Return the score below which scores count as this score; −∞ if neither the default nor no teacher was tried."""
    standards = [o.score for o in outcomes if o.candidate in (default, NO_TEACHER) and not o.diverged]
    return min(standards) - WORST if standards else -math.inf


def _sampling_error(outcome: PilotOutcome) -> float:
    """Return the standard error of an accuracy in points. Half of the variance is shared: the images are the same."""
    return 100 * math.sqrt(outcome.accuracy * (1 - outcome.accuracy) / outcome.images / 2)


def next_candidate(
    candidates: Sequence[Candidate], outcomes: Sequence[PilotOutcome], default: Candidate, prior: Prior = PRIOR
) -> Candidate | None:
    """Return the candidate of the next pilot run, or None if no run is worth its cost.

    The first two runs are the default and no teacher. Each later run is the candidate with the largest expected
    improvement over the best candidate with a pilot run.
    """
    tried = {outcome.candidate for outcome in outcomes}
    for candidate in (default, NO_TEACHER):
        if candidate not in tried and candidate in candidates:
            return candidate
    left = [index for index, candidate in enumerate(candidates) if candidate not in tried]
    if not left:
        return None
    gains = gains_of(candidates, outcomes, default, prior)
    completed = {outcome.candidate for outcome in outcomes if not outcome.diverged}
    chosen_now = [index for index, candidate in enumerate(candidates) if candidate in completed]
    if not chosen_now:
        return candidates[max(left, key=lambda index: gains.mean_C[index])]
    best = max(chosen_now, key=lambda index: gains.mean_C[index])
    improvement_C = gains.expected_improvement(best)
    following = max(left, key=lambda index: improvement_C[index])
    return candidates[following] if improvement_C[following] > ENOUGH else None


def next_candidates(
    candidates: Sequence[Candidate], outcomes: Sequence[PilotOutcome], default: Candidate, *, count: int
) -> list[Candidate]:
    """Return up to `count` candidates for pilot runs that are trained at the same time.

    They have the largest expected improvements, given the outcomes so far.
    """
    chosen: list[Candidate] = []
    while len(chosen) < count:
        without = [PilotOutcome(candidate, math.nan, math.nan, 1) for candidate in chosen]
        candidate = next_candidate(candidates, [*outcomes, *without], default)
        if candidate is None:
            break
        chosen.append(candidate)
    return chosen


@dataclass(frozen=True, eq=False)
class Decision:
    """The chosen candidate, its expected gain over the default in points, and the uncertainty of this gain.

    `low` and `high` are the ends of the gain's 95% interval. `chance_C` is the chance of each candidate to be the best;
    it is 0 if the candidate's pilot run failed. `safe` is the candidate whose interval has the highest lower end.
    """

    candidate: Candidate
    gain: float
    low: float
    high: float
    safe: Candidate
    gains: Gains
    chance_C: np.ndarray


def decide(
    candidates: Sequence[Candidate],
    outcomes: Sequence[PilotOutcome],
    default: Candidate,
    prior: Prior = PRIOR,
    *,
    tried_only: bool = True,
) -> Decision:
    """Choose the candidate with the highest expected gain.

    With `tried_only`, the choice is one of the candidates with a completed pilot run, if there is one. The other
    candidates still count in the chance that the choice is the best.
    """
    gains = gains_of(candidates, outcomes, default, prior)
    failed = failed_candidates(outcomes)
    completed = {outcome.candidate for outcome in outcomes} - failed
    possible = [index for index, candidate in enumerate(candidates) if candidate not in failed]
    allowed = [index for index in possible if candidates[index] in completed] if tried_only else []
    allowed = allowed or possible
    low_C = gains.mean_C - Z * np.sqrt(np.maximum(np.diag(gains.covariance_CC), 0.0))
    best = max(allowed, key=lambda index: gains.mean_C[index])
    safe = max(allowed, key=lambda index: low_C[index])
    return Decision(
        candidates[best],
        gain=float(gains.mean_C[best]),
        low=float(low_C[best]),
        high=float(2 * gains.mean_C[best] - low_C[best]),
        safe=candidates[safe],
        gains=gains,
        chance_C=gains.chance_best(possible),
    )
