"""Replay search designs on stored pilot runs, to see which candidate each design chooses with a budget.

`select --student` uses the design `effects`. The experiment compares the other designs with it at the same cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..selection.candidates import LAST, NO_TEACHER, Candidate
from ..selection.pilot_plan import PilotOutcome, decide, next_candidate

Pilots = Mapping[tuple[Candidate, int], PilotOutcome]  # by candidate and length, 1 or 2
PRIOR_ALONE = "prior alone"
Design = Callable[[Sequence[Candidate], Candidate, Pilots, float], Candidate]


def effects(candidates: Sequence[Candidate], default: Candidate, pilots: Pilots, runs: float) -> Candidate:
    """Search as `select --student` does: a model of effects chooses each next run, and the candidate."""
    outcomes: list[PilotOutcome] = []
    while len(outcomes) + 1 <= runs:
        candidate = next_candidate(candidates, outcomes, default)
        if candidate is None:
            break
        outcomes.append(pilots[candidate, 1])
    return decide(candidates, outcomes, default).candidate


def one_factor_at_a_time(candidates: Sequence[Candidate], default: Candidate, pilots: Pilots, runs: float) -> Candidate:
    """Compare methods from the last checkpoint, then teachers with the best method. Choose the best score."""
    tried = {default: pilots[default, 1]}

    def best() -> Candidate:
        return max(tried, key=lambda candidate: tried[candidate].score)

    for candidate in [NO_TEACHER, *(each for each in candidates if each.kind == LAST)]:
        if len(tried) + 1 <= runs:
            tried.setdefault(candidate, pilots[candidate, 1])
    settings = (best().method, best().alpha)
    for candidate in candidates:
        if (candidate.method, candidate.alpha) == settings and len(tried) + 1 <= runs:
            tried.setdefault(candidate, pilots[candidate, 1])
    return best()


def successive_halving(candidates: Sequence[Candidate], default: Candidate, pilots: Pilots, runs: float) -> Candidate:
    """Try candidates in the order of the prior, then train the best twice as long. Choose the best of these scores."""
    promoted = int(runs / 6) if runs >= 12 else 0  # a single longer run cannot be compared with another one
    first = _by_prior(candidates, default)[: max(1, int(runs) - 2 * promoted)]
    ranked = sorted(first, key=lambda candidate: -pilots[candidate, 1].score)
    if not promoted:
        return ranked[0]
    return max(ranked[:promoted], key=lambda candidate: pilots[candidate, 2].score)


def prior_alone(candidates: Sequence[Candidate], default: Candidate, pilots: Pilots, runs: float) -> Candidate:
    """Choose the candidate with the highest expected gain by the prior, without any pilot run."""
    return decide(candidates, [], default, tried_only=False).candidate


def pilots_alone(candidates: Sequence[Candidate], default: Candidate, pilots: Pilots, runs: float) -> Candidate:
    """Try candidates in the order of the prior. Choose the best score."""
    first = _by_prior(candidates, default)[: max(1, int(runs))]
    return max(first, key=lambda candidate: pilots[candidate, 1].score)


DESIGNS: dict[str, Design] = {
    "effects": effects,
    "one factor at a time": one_factor_at_a_time,
    "successive halving": successive_halving,
    "best score of the runs": pilots_alone,
    PRIOR_ALONE: prior_alone,
}


def _by_prior(candidates: Sequence[Candidate], default: Candidate) -> list[Candidate]:
    """Return the default, no teacher, then the other candidates in the order of their expected gain by the prior."""
    mean_C = decide(candidates, [], default).gains.mean_C
    expected = dict(zip(candidates, mean_C, strict=True))
    others = [candidate for candidate in candidates if candidate not in (default, NO_TEACHER)]
    return [default, NO_TEACHER, *sorted(others, key=lambda candidate: -expected[candidate])]
