"""The pilot plan: how many pilot runs there are, which candidates they try, and which teacher their outcomes favor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from checkpointkd.distill_config import PilotConfig
from checkpointkd.records.selection import PilotResult
from checkpointkd.selection.pilot_plan import (
    N_PROMOTED,
    NO_TEACHER,
    PILOT_FRACTION,
    Candidate,
    PilotOutcome,
    RunAllowance,
    allow_runs,
    best_first,
    evenly_spaced,
    next_candidates,
    paired_gap,
    plan_pilot_runs,
    summarize,
    to_promote,
)


def _outcome(epochs: tuple[int, ...], information: float, *, alpha: float = 0.5, length: int = 3) -> PilotOutcome:
    """A pilot run whose images all have the same loss."""
    candidate = Candidate(epochs, alpha) if epochs else NO_TEACHER
    return PilotOutcome(candidate, length, information, 0.5, np.full(4, -information))


def _noisy_outcome(epochs: tuple[int, ...], loss_N: Any, *, length: int = 3) -> PilotOutcome:
    candidate = Candidate(epochs, 0.5) if epochs else NO_TEACHER
    return PilotOutcome(candidate, length, 2 - float(np.mean(loss_N)), 0.5, np.array(loss_N))


def _summarize(completed: list[PilotOutcome], **changes: Any) -> PilotResult:
    arguments: dict[str, Any] = {
        "student": "s",
        "student_epochs": 9,
        "tau": 5.0,
        "skipped": [],
        "last_epoch": 30,
        "unit": "epoch",
    }
    return summarize(completed, **{**arguments, **changes})


def test_evenly_spaced_starts_with_the_last_and_is_nested():
    assert evenly_spaced([10, 20, 30, 40], 3) == [40, 20, 30]
    assert evenly_spaced([10, 20], 9) == [20, 10]
    for saved in range(1, 30):
        all_epochs = evenly_spaced(range(1, saved + 1), saved)
        assert sorted(all_epochs) == list(range(1, saved + 1))
        assert all_epochs[0] == saved
        for count in range(1, saved):
            assert evenly_spaced(range(1, saved + 1), count) == all_epochs[:count]


def test_next_candidates_are_other_alphas_then_a_pair_then_neighbors():
    completed = [_outcome((), 2.0), _outcome((40,), 1.0), _outcome((20,), 1.5)]
    proposed = next_candidates(completed, [10, 20, 30, 40], (0.5, 0.1), 40)
    assert next(proposed) == Candidate((20,), 0.1)
    completed.append(_outcome((20,), 1.6, alpha=0.1))
    assert list(proposed) == [Candidate((20, 40), 0.1), Candidate((10,), 0.1), Candidate((30,), 0.1)]


def test_no_teacher_is_chosen_only_if_significantly_better():
    """Short runs favor no teacher."""
    noisy, worse = [0.5, 1.5, 0.4, 1.7], [1.0, 1.8, 0.9, 2.0]
    tie = _summarize([_noisy_outcome((), [0.9, 1.0, 1.0, 1.1]), _noisy_outcome((30,), noisy)])
    assert tie.epochs == (30,)
    assert "is not significantly better than no teacher" in tie.warnings[0]
    significant = _summarize([_noisy_outcome((), noisy), _noisy_outcome((30,), worse)])
    assert (significant.epochs, significant.warnings) == ((), ())


@pytest.mark.parametrize(("ahead", "chosen"), [(1.07, (30,)), (1.09, (15, 30))])
def test_last_checkpoint_is_kept_within_the_margin(ahead: float, chosen: tuple[int, ...]):
    """The gain is 0.27 or 0.29 nats, so the margin is 0.054 or 0.058. The CI over images has width 0 here."""
    completed = [_outcome((), 0.8), _outcome((30,), 1.02), _outcome((15,), 1.03), _outcome((15, 30), ahead)]
    assert best_first(completed, 30)[0].candidate.epochs == chosen
    result = _summarize(completed)
    assert result.epochs == chosen
    assert ("may be chance" in result.reason) == (chosen == (30,))
    assert result.warnings == (), "the reason says it"
    longer = [*completed, _outcome((30,), 1.22, length=6), _outcome((15, 30), ahead + 0.2, length=6)]
    assert best_first(longer, 30)[0].candidate.epochs == chosen, "longer runs have the same margin"
    assert best_first([_outcome((), 1.1), *completed[1:]], 30)[0].candidate == NO_TEACHER, "no gain, no margin"


def test_margin_decides_which_candidates_are_promoted():
    """Epoch 20 is ahead of the last checkpoint by 0.005 nats, and the gain is 0.2 nats."""
    completed = [_outcome((), 0.5), _outcome((30,), 0.615), _outcome((10,), 0.7), _outcome((20,), 0.62)]
    assert [outcome.candidate.epochs for outcome in best_first(completed, 30)[:2]] == [(10,), (30,)]
    runner_up = _summarize(completed).behind["the runner-up"]
    assert runner_up.candidate == "epoch 20, alpha 0.5", "the runner-up has the highest information, without a bonus"
    ahead = [*completed[:3], _outcome((20,), 0.66)]
    assert [outcome.candidate.epochs for outcome in best_first(ahead, 30)[:2]] == [(10,), (20,)]


@pytest.mark.parametrize("reason", ["diverged", "skipped"])
def test_no_other_checkpoint_gets_the_margin(reason: str):
    completed = [_outcome((), 0.5), _outcome((20,), 0.7), _outcome((10,), 0.71)]
    diverged = reason == "diverged"
    changes: dict[str, Any] = {"diverged": [(Candidate((30,), 0.5), 3)]} if diverged else {"skipped": [30]}
    result = _summarize(completed, **changes)
    assert result.epochs == (10,)
    assert "may be chance" not in result.reason
    assert result.spent_epochs == (12 if diverged else 9)
    assert any("epoch 30, alpha 0.5 over 3 epochs diverged" in warning for warning in result.warnings) == diverged


@pytest.mark.parametrize(("noise", "chosen"), [(0.5, (30,)), (0.001, (20,)), (0.3, (20,))])
def test_last_checkpoint_is_chosen_if_no_teacher_is_ahead(noise: float, chosen: tuple[int, ...]):
    """Without a gain there is no margin: the CI over images decides whether another outcome beats the last checkpoint.

    With a noise of 0.3, which no teacher has too, no teacher is significantly better than the last checkpoint.
    """
    sign = np.array([1, -1, 1, -1])
    completed = [
        _noisy_outcome((), 1 + 0.3 * sign),
        _noisy_outcome((20,), 1.001 + 0 * sign),
        _noisy_outcome((30,), 1.02 + noise * sign),
    ]
    result = _summarize(completed)
    assert result.epochs == chosen
    assert ("neither no teacher nor another teacher" in result.reason) == (chosen == (30,))


@pytest.mark.parametrize(("noise", "chosen"), [(0.0, ()), (0.3, (30,))])
def test_no_teacher_can_win_the_longer_runs(noise: float, chosen: tuple[int, ...]):
    """It leads by 0.03 nats, less than the margin that shorter runs give: significantly or not."""
    loss_N = noise * np.array([1, -1, 1, -1])
    longer = [PilotOutcome(NO_TEACHER, 6, 1.5, 0.5, loss_N - 1.5), _outcome((30,), 1.47, length=6)]
    result = _summarize([_outcome((), 1.0), _outcome((30,), 1.2), _outcome((20,), 1.1), *longer])
    assert result.epochs == chosen
    taught = chosen == (30,)
    assert ("no teacher, which short runs favor, was not significantly better" in result.reason) == taught
    assert any("not significantly better than no teacher" in warning for warning in result.warnings) == taught


def test_best_teacher_is_promoted_with_no_teacher():
    """It is the teacher that would be chosen: the last checkpoint, though another is ahead of it by a little."""
    sign = np.array([1, -1, 1, -1])
    last = PilotOutcome(Candidate((30,), 0.5), 3, 1.1, 0.5, 0.3 * sign - 1.1)
    completed = [_outcome((), 1.2), _outcome((20,), 1.15), last]
    assert to_promote(completed, skipped=[], last_epoch=30) == [NO_TEACHER, Candidate((20,), 0.5)]
    completed[0] = PilotOutcome(NO_TEACHER, 3, 1.2, 0.5, 0.3 * sign[::-1] - 1.2)
    assert to_promote(completed, skipped=[], last_epoch=30) == [NO_TEACHER, Candidate((30,), 0.5)]
    completed = [*completed[1:], _outcome((), 1.0)]
    assert to_promote(completed, skipped=[], last_epoch=30) == [Candidate((20,), 0.5), Candidate((30,), 0.5)]


def test_longer_runs_decide_only_if_there_are_two():
    """One of two promoted candidates may diverge."""
    diverging, other = Candidate((20,), 0.5), Candidate((30,), 0.5)
    single = [_outcome((), 0.1), _outcome((20,), 0.5), _outcome((30,), 0.3)]
    double = [_outcome((30,), 0.6, length=6), _outcome((20,), 0.4, length=6)]
    assert best_first(single, 40)[0].candidate == best_first([*single, double[0]], 40)[0].candidate == diverging
    assert best_first([*single, *double], 40)[0].candidate == other


def test_ci_of_a_gap_covers_the_true_gap():
    rng = np.random.default_rng(0)
    covered, true_gap = 0, 0.05
    for _ in range(400):
        common = rng.exponential(size=200)
        best = PilotOutcome(NO_TEACHER, 3, 0.0, 0.5, common)
        other = PilotOutcome(Candidate((1,), 0.5), 3, 0.0, 0.5, common + rng.normal(true_gap, 0.3, size=200))
        gap = paired_gap(best, other, "epoch")
        covered += gap.low <= true_gap <= gap.high
    assert 0.92 < covered / 400 < 0.98


def test_length_and_number_of_pilot_runs():
    assert plan_pilot_runs(PilotConfig(budget="1.0"), 200, 700) == (round(PILOT_FRACTION * 200), 6) == (30, 6)
    assert plan_pilot_runs(PilotConfig(budget="1.0"), 20, 25) == (4, 5), "at least a hundred steps"
    assert plan_pilot_runs(PilotConfig(budget=9), 2, 5) == (2, 4), "not longer than a whole distillation"


@pytest.mark.parametrize(
    ("stored_single", "stored_double", "may_double", "allowance"),
    [
        (0, 0, False, RunAllowance(with_teacher=11, new=11)),
        (0, 0, True, RunAllowance(with_teacher=11 - 2 * N_PROMOTED, new=11 - 2 * N_PROMOTED)),
        (5, 0, True, RunAllowance(with_teacher=11 - 2 * N_PROMOTED, new=12 - 2 * N_PROMOTED - 5)),
        (5, 2, True, RunAllowance(with_teacher=7, new=0)),
        (8, 2, True, RunAllowance(with_teacher=7, new=0)),
        (9, 0, True, RunAllowance(with_teacher=11, new=3)),
    ],
)
def test_twelve_runs_are_divided(stored_single: int, stored_double: int, may_double: bool, allowance: RunAllowance):
    assert allow_runs(12, stored_single=stored_single, stored_double=stored_double, may_double=may_double) == allowance
