"""The pilot plan: how many pilot runs there are, which candidate is next, and which one their outcomes favor."""

from __future__ import annotations

import math

import numpy as np
import pytest

from checkpointkd.distill_config import PilotConfig
from checkpointkd.errors import UserError
from checkpointkd.selection.candidates import AVERAGE, EARLIER, LAST, NO_TEACHER, Candidate
from checkpointkd.selection.pilot_plan import (
    PILOT_FRACTION,
    WORST,
    PilotOutcome,
    decide,
    gains_of,
    next_candidate,
    plan_pilot_runs,
)
from checkpointkd.selection.prior import PRIOR

SETTINGS = (("kd", 0.5), ("kd", 0.1), ("dkd", None), ("dist", None), ("lskd", None))
KINDS = ((LAST, ("30",)), (AVERAGE, ("mean:0.7-1.0",)))
CANDIDATES = [
    NO_TEACHER,
    *(Candidate(names, kind, method, alpha) for kind, names in KINDS for method, alpha in SETTINGS),
]
DEFAULT = Candidate(("30",), LAST, "kd", 0.5)
DIST = Candidate(("30",), LAST, "dist")


def _outcome(candidate: Candidate, accuracy: float) -> PilotOutcome:
    return PilotOutcome(candidate, 1.0, accuracy / 100, 5000)


def _search(accuracy: dict[Candidate, float], runs: int) -> list[PilotOutcome]:
    outcomes: list[PilotOutcome] = []
    while len(outcomes) < runs:
        candidate = next_candidate(CANDIDATES, outcomes, DEFAULT)
        if candidate is None:
            break
        outcomes.append(_outcome(candidate, accuracy[candidate]))
    return outcomes


def test_length_and_number_of_pilot_runs():
    assert plan_pilot_runs(PilotConfig(), 200, 704) == (30, 6)
    assert plan_pilot_runs(PilotConfig(budget="60"), 200, 704) == (30, 2)
    assert plan_pilot_runs(PilotConfig(budget="0.5"), 200, 704) == (30, 3)
    assert plan_pilot_runs(PilotConfig(budget=40), 20, 20) == (5, 8), "at least a hundred steps"
    assert plan_pilot_runs(PilotConfig(budget=40), 4, 1) == (4, 10), "at most a whole distillation"
    assert round(PILOT_FRACTION * 200) == 30
    with pytest.raises(UserError, match=r"A budget of 20 epochs covers 0 pilot runs of 30 epochs, .* --budget 60 or"):
        plan_pilot_runs(PilotConfig(budget="0.1"), 200, 704)


def test_default_and_no_teacher_come_first_and_no_candidate_twice():
    outcomes = _search(dict.fromkeys(CANDIDATES, 50.0), 99)
    tried = [outcome.candidate for outcome in outcomes]
    assert tried[:2] == [DEFAULT, NO_TEACHER]
    assert len(set(tried)) == len(tried) <= len(CANDIDATES)


def test_a_larger_budget_goes_on_where_the_smaller_one_ended():
    rng = np.random.default_rng(0)
    accuracy = {candidate: 30 + rng.normal(0, 2) for candidate in CANDIDATES}
    assert _search(accuracy, 8)[:5] == _search(accuracy, 5)


def test_search_finds_a_good_candidate_with_few_runs():
    """In worlds of strong effects six runs come nearer to the best than the default does, and are seldom far off."""
    rng = np.random.default_rng(1)
    regret, default_regret = [], []
    for _ in range(100):
        method = {setting: rng.normal(0, 2) for setting in SETTINGS}
        accuracy = {
            candidate: 30 + method[candidate.method, candidate.alpha] + rng.normal(0, 0.5)
            for candidate in CANDIDATES[1:]
        }
        accuracy[NO_TEACHER] = 28.0
        noisy = {candidate: value + rng.normal(0, 0.5) for candidate, value in accuracy.items()}
        chosen = decide(CANDIDATES, _search(noisy, 6), DEFAULT).candidate
        regret.append(max(accuracy.values()) - accuracy[chosen])
        default_regret.append(max(accuracy.values()) - accuracy[DEFAULT])
    assert np.mean(regret) < 0.4 * np.mean(default_regret)


def test_candidate_that_is_clearly_best_is_chosen_and_called_sure():
    accuracy = {**dict.fromkeys(CANDIDATES, 30.0), DIST: 45.0, NO_TEACHER: 25.0}
    decision = decide(CANDIDATES, [_outcome(candidate, value) for candidate, value in accuracy.items()], DEFAULT)
    assert decision.candidate == decision.safe == DIST
    assert 0 < decision.low < decision.gain < decision.high
    assert decision.chance_C[CANDIDATES.index(DIST)] > 0.9


def test_no_teacher_is_chosen_if_every_teacher_is_worse():
    accuracy = {**dict.fromkeys(CANDIDATES, 30.0), NO_TEACHER: 45.0}
    assert decide(CANDIDATES, _search(accuracy, 6), DEFAULT).candidate == NO_TEACHER


def test_default_is_chosen_and_safe_if_all_others_are_worse():
    accuracy = {**dict.fromkeys(CANDIDATES, 20.0), DEFAULT: 40.0}
    decision = decide(CANDIDATES, _search(accuracy, 9), DEFAULT)
    assert (decision.candidate, decision.safe) == (DEFAULT, DEFAULT)
    assert (decision.gain, decision.low, decision.high) == pytest.approx((0, 0, 0))


def test_search_stops_when_no_run_is_worth_its_cost():
    accuracy = {**dict.fromkeys(CANDIDATES, 20.0), DIST: 60.0}
    assert len(_search(accuracy, 99)) < len(CANDIDATES)


def test_diverged_candidate_is_not_chosen_and_not_trained_again():
    outcomes = [_outcome(DEFAULT, 30.0), _outcome(NO_TEACHER, 28.0), PilotOutcome(DIST, math.nan, math.nan, 5000)]
    best = decide(CANDIDATES, outcomes[:2], DEFAULT).candidate
    diverged = [*outcomes[:2], PilotOutcome(best, math.nan, math.nan, 5000)]
    assert decide(CANDIDATES, diverged, DEFAULT).candidate != best
    assert next_candidate(CANDIDATES, diverged, DEFAULT) != best
    alone = [PilotOutcome(DEFAULT, math.nan, math.nan, 5000), PilotOutcome(NO_TEACHER, math.nan, math.nan, 5000)]
    assert next_candidate(CANDIDATES, alone, DEFAULT) not in (None, DEFAULT, NO_TEACHER)


def test_a_failed_candidate_does_not_pull_others_down():
    """A method that learns nothing at this learning rate says no more of its teachers than a poor method does."""
    good = [_outcome(DEFAULT, 80.0), _outcome(NO_TEACHER, 79.0)]
    failed = gains_of(CANDIDATES, [*good, _outcome(DIST, 10.0)], DEFAULT)
    poor = gains_of(CANDIDATES, [*good, _outcome(DIST, 79.0 - WORST)], DEFAULT)
    assert failed.mean_C == pytest.approx(poor.mean_C)


def test_no_teacher_is_surely_better_than_a_teacher_that_teaches_nothing():
    """The scores of the default and of no teacher are never raised."""
    decision = decide(CANDIDATES, [_outcome(DEFAULT, 10.0), _outcome(NO_TEACHER, 60.0)], DEFAULT)
    assert decision.candidate == decision.safe == NO_TEACHER
    assert decision.low > 10


def test_only_candidates_with_a_pilot_run_are_chosen():
    outcomes = [_outcome(DEFAULT, 30.0), _outcome(NO_TEACHER, 28.0)]
    tried = decide(CANDIDATES, outcomes, DEFAULT)
    assert tried.candidate in (DEFAULT, NO_TEACHER)
    assert tried.chance_C.sum() == pytest.approx(1)
    assert tried.chance_C[CANDIDATES.index(DIST)] > 0, "it may be the best"
    assert decide(CANDIDATES, outcomes, DEFAULT, tried_only=False).candidate not in (DEFAULT, NO_TEACHER)


def test_failed_candidates_have_no_chance_to_be_the_best():
    failed = [Candidate(("30",), LAST, method) for method in ("dist", "dkd", "lskd")]
    outcomes = [_outcome(DEFAULT, 30.0), _outcome(NO_TEACHER, 25.0)]
    outcomes += [PilotOutcome(candidate, math.nan, math.nan, 5000) for candidate in failed]
    decision = decide(CANDIDATES, outcomes, DEFAULT)
    assert decision.chance_C.sum() == pytest.approx(1)
    assert [decision.chance_C[CANDIDATES.index(candidate)] for candidate in failed] == [0, 0, 0]


def test_sets_of_teachers_of_one_kind_have_effects_of_their_own():
    """A poor early checkpoint says less about a later one than about itself."""
    early, later = (Candidate((epoch,), EARLIER, "kd", 0.5) for epoch in ("1", "9"))
    candidates = [NO_TEACHER, DEFAULT, early, later]
    outcomes = [_outcome(DEFAULT, 60.0), _outcome(NO_TEACHER, 50.0)]
    before = gains_of(candidates, outcomes, DEFAULT).mean_C
    after = gains_of(candidates, [*outcomes, _outcome(early, 20.0)], DEFAULT).mean_C
    of_early, of_later = (after - before)[2:]
    assert of_early < 2 * of_later < 0


def test_prior_expects_little_where_little_can_be_gained():
    """At 95% accuracy no method gains 6 points. Few images make a pilot run noisier."""
    low = [_outcome(DEFAULT, 10.0), _outcome(NO_TEACHER, 9.0)]
    high = [_outcome(DEFAULT, 95.0), _outcome(NO_TEACHER, 94.0)]
    expected = [gains_of(CANDIDATES, outcomes, DEFAULT).mean_C[CANDIDATES.index(DIST)] for outcomes in (low, high)]
    assert expected[0] > 3
    assert abs(expected[1]) < 1
    few = [PilotOutcome(outcome.candidate, 1.0, outcome.accuracy, 50) for outcome in low]
    spread = [
        gains_of(CANDIDATES, outcomes, DEFAULT).sd_of_difference(CANDIDATES.index(NO_TEACHER), 1)
        for outcomes in (low, few)
    ]
    assert spread[0] < spread[1]


@pytest.mark.parametrize(("alpha", "share"), [(0.9, 0.0), (0.5, 0.0), (0.3, 0.5), (0.1, 1.0), (0.0, 1.0)])
def test_prior_of_other_alphas_lies_between_the_known_ones(alpha: float, share: float):
    level = Candidate(("30",), LAST, "kd", alpha).method_level
    assert level.of({"kd, α 0.1": 2.0}) == pytest.approx(2.0 * share)


def test_gains_are_in_the_order_of_the_candidates():
    gains = gains_of(CANDIDATES, [], DEFAULT)
    assert gains.mean_C[CANDIDATES.index(DEFAULT)] == 0.0
    assert gains.mean_C[CANDIDATES.index(DIST)] == pytest.approx(PRIOR.method_gain["dist"])


def test_a_pilot_run_at_chance_level_has_failed_if_another_one_learned():
    outcomes = [_outcome(DEFAULT, 42.0), _outcome(NO_TEACHER, 34.0), PilotOutcome(DIST, 1.0, 0.1, 500, at_chance=True)]
    decision = decide(CANDIDATES, outcomes, DEFAULT)
    assert decision.chance_C[CANDIDATES.index(DIST)] == 0
    assert decision.candidate == DEFAULT
    same = [PilotOutcome(candidate, 1.0, 0.1, 500, at_chance=True) for candidate in (DEFAULT, NO_TEACHER, DIST)]
    assert decide(CANDIDATES, same, DEFAULT).chance_C[CANDIDATES.index(DIST)] > 0, "too short to tell"
