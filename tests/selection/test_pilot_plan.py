"""What lessons tell: which teacher they show to be best, in doubt and beyond it, and how many there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from checkpointkd.config import PilotConfig
from checkpointkd.selection.pilot_plan import (
    NO_TEACHER,
    PILOT_FRACTION,
    Candidate,
    PilotOutcome,
    PilotResult,
    best_first,
    evenly_spaced,
    next_candidates,
    paired_gap,
    plan_pilot_runs,
    summarize,
    to_promote,
)


def _lesson(epochs: tuple[int, ...], information: float, *, alpha: float = 0.5, length: int = 3) -> PilotOutcome:
    return PilotOutcome(
        Candidate(epochs, alpha) if epochs else NO_TEACHER, length, information, 0.5, np.full(4, -information)
    )


def test_checkpoints_are_spread_with_the_last_first():
    assert evenly_spaced([10, 20, 30, 40], 3) == [40, 20, 30]
    assert evenly_spaced([10, 20], 9) == [20, 10]
    for many in range(1, 30):
        whole = evenly_spaced(range(1, many + 1), many)
        assert sorted(whole) == list(range(1, many + 1))
        assert whole[0] == many
        assert all(evenly_spaced(range(1, many + 1), count) == whole[:count] for count in range(1, many)), (
            "only more of them"
        )


def test_near_the_best_the_weight_comes_first_then_two_together_then_neighbors():
    lessons = [_lesson((), 2.0), _lesson((40,), 1.0), _lesson((20,), 1.5)]
    proposed = next_candidates(lessons, [10, 20, 30, 40], (0.5, 0.1), 40)
    assert next(proposed) == Candidate((20,), 0.1)
    lessons.append(_lesson((20,), 1.6, alpha=0.1))
    assert list(proposed) == [Candidate((20, 40), 0.1), Candidate((10,), 0.1), Candidate((30,), 0.1)]


def _verdict(held: list[PilotOutcome], **more: Any) -> PilotResult:
    given: dict[str, Any] = {
        "student": "s",
        "student_epochs": 9,
        "tau": 5.0,
        "skipped": [],
        "last": 30,
        "unit": "epoch",
    }
    return summarize(held, **{**given, **more})


def test_a_tie_with_no_teacher_is_the_teachers():
    """Short lessons favour labels alone, so that is chosen only where it is surely better."""

    def lesson(candidate, loss):
        return PilotOutcome(candidate, 3, 2 - float(np.mean(loss)), 0.5, np.array(loss))

    taught = Candidate((30,), 0.5)
    noisy, worse = [0.5, 1.5, 0.4, 1.7], [1.0, 1.8, 0.9, 2.0]
    tie = _verdict([lesson(NO_TEACHER, [0.9, 1.0, 1.0, 1.1]), lesson(taught, noisy)])
    assert tie.epochs == (30,)
    assert "is not surely better than no teacher" in tie.warnings[0]
    sure = _verdict([lesson(NO_TEACHER, noisy), lesson(taught, worse)])
    assert (sure.epochs, sure.warnings) == ((), ())


@pytest.mark.parametrize(("ahead", "chosen"), [(1.07, (30,)), (1.09, (15, 30))])
def test_in_doubt_the_last_checkpoint_teaches(ahead: float, chosen: tuple[int, ...]):
    """Of 0.27 or 0.29 nats that teaching gains a fifth is 0.054 or 0.058; images explain nothing of either lead."""
    held = [_lesson((), 0.8), _lesson((30,), 1.02), _lesson((15,), 1.03), _lesson((15, 30), ahead)]
    assert best_first(held, 30)[0].candidate.epochs == chosen
    found = _verdict(held)
    assert found.epochs == chosen
    assert ("may be chance" in found.reason) == (chosen == (30,))
    assert found.warnings == (), "the reason has it"
    whole = [*held, _lesson((30,), 1.22, length=6), _lesson((15, 30), ahead + 0.2, length=6)]
    assert best_first(whole, 30)[0].candidate.epochs == chosen, "lessons of another length are doubted alike"
    assert best_first([_lesson((), 1.1), *held[1:]], 30)[0].candidate == NO_TEACHER, "where teaching gains nothing"


def test_doubt_says_which_two_have_longer_lessons():
    """The second is ahead of the last checkpoint by 0.005 of 0.2 nats: too little to be tried on in its place."""
    held = [_lesson((), 0.5), _lesson((30,), 0.615), _lesson((10,), 0.7), _lesson((20,), 0.62)]
    assert [one.candidate.epochs for one in best_first(held, 30)[:2]] == [(10,), (30,)]
    runner_up = _verdict(held).behind["the runner-up"]
    assert runner_up["who"] == "epoch 20, alpha 0.5", "by what its student knows, nothing added"
    sure = [*held[:3], _lesson((20,), 0.66)]
    assert [one.candidate.epochs for one in best_first(sure, 30)[:2]] == [(10,), (20,)]


@pytest.mark.parametrize("gone", ["lost", "skipped"])
def test_doubt_is_for_no_other_than_the_last(gone: str):
    held = [_lesson((), 0.5), _lesson((20,), 0.7), _lesson((10,), 0.71)]
    more: dict[str, Any] = {"lost": [(Candidate((30,), 0.5), 3)]} if gone == "lost" else {"skipped": [30]}
    found = _verdict(held, **more)
    assert found.epochs == (10,)
    assert "may be chance" not in found.reason
    assert found.spent_epochs == (12 if gone == "lost" else 9)
    assert any("epoch 30, alpha 0.5 diverged" in warning for warning in found.warnings) == (gone == "lost")


@pytest.mark.parametrize(("noise", "chosen"), [(0.5, (30,)), (0.001, (20,)), (0.3, (20,))])
def test_where_no_teacher_is_ahead_the_last_is_advised_unless_another_is_surely_better(
    noise: float, chosen: tuple[int, ...]
):
    """Lessons that show no gain from teaching can't tell by how much a lead counts; the images can. With a noise of
    0.3, which the student without a teacher has, that one is surely better than the last checkpoint's."""
    sign = np.array([1, -1, 1, -1])

    def lesson(epochs, loss_N):
        return PilotOutcome(Candidate(epochs, 0.5) if epochs else NO_TEACHER, 3, 2 - float(loss_N.mean()), 0.5, loss_N)

    alone = lesson((), 1 + 0.3 * sign)
    held = [alone, lesson((20,), 1.001 + 0 * sign), lesson((30,), 1.02 + noise * sign)]
    found = _verdict(held)
    assert found.epochs == chosen
    assert ("than the last checkpoint's" in found.reason) == (chosen == (30,))


@pytest.mark.parametrize(("noise", "chosen"), [(0.0, ()), (0.3, (30,))])
def test_no_teacher_may_win_the_longer_lessons(noise: float, chosen: tuple[int, ...]):
    """By 0.03 nats, less than the last checkpoint is credited with for what shorter lessons gain: surely, or not."""
    loss_N = noise * np.array([1, -1, 1, -1])
    longer = [PilotOutcome(NO_TEACHER, 6, 1.5, 0.5, loss_N - 1.5), _lesson((30,), 1.47, length=6)]
    found = _verdict([_lesson((), 1.0), _lesson((30,), 1.2), _lesson((20,), 1.1), *longer])
    assert found.epochs == chosen
    assert ("without one it did not surely know more" in found.reason) == (chosen == (30,))
    assert any("not surely better than no teacher" in warning for warning in found.warnings) == (chosen == (30,))


def test_with_no_teacher_ahead_the_one_to_be_advised_has_the_other_longer_lesson():
    """The last checkpoint, though another is ahead of it by a little."""
    sign = np.array([1, -1, 1, -1])
    held = [_lesson((), 1.2), _lesson((20,), 1.15), PilotOutcome(Candidate((30,), 0.5), 3, 1.1, 0.5, 0.3 * sign - 1.1)]
    assert to_promote(held, skipped=[], last=30) == [NO_TEACHER, Candidate((20,), 0.5)], "no teacher is surely better"
    held[0] = PilotOutcome(NO_TEACHER, 3, 1.2, 0.5, 0.3 * sign[::-1] - 1.2)
    assert to_promote(held, skipped=[], last=30) == [NO_TEACHER, Candidate((30,), 0.5)]
    assert to_promote([*held[1:], _lesson((), 1.0)], skipped=[], last=30) == [
        Candidate((20,), 0.5),
        Candidate((30,), 0.5),
    ]


def test_longer_lessons_decide_only_between_two():
    """One of the two may be lost."""
    lost, other = Candidate((20,), 0.5), Candidate((30,), 0.5)
    short = [
        PilotOutcome(NO_TEACHER, 3, 0.1, 0.5, np.zeros(4)),
        PilotOutcome(lost, 3, 0.5, 0.5, np.zeros(4)),
        PilotOutcome(other, 3, 0.3, 0.5, np.zeros(4)),
    ]
    longer = [PilotOutcome(other, 6, 0.6, 0.5, np.zeros(4)), PilotOutcome(lost, 6, 0.4, 0.5, np.zeros(4))]
    assert best_first(short, 40)[0].candidate == best_first([*short, longer[0]], 40)[0].candidate == lost
    assert best_first([*short, *longer], 40)[0].candidate == other


def test_the_interval_is_that_of_paired_images():
    rng = np.random.default_rng(0)
    inside, mean = 0, 0.05
    for _ in range(400):
        common = rng.exponential(size=200)
        best = PilotOutcome(NO_TEACHER, 3, 0.0, 0.5, common)
        other = PilotOutcome(Candidate((1,), 0.5), 3, 0.0, 0.5, common + rng.normal(mean, 0.3, size=200))
        found = paired_gap(best, other, "epoch")
        inside += found["low"] <= mean <= found["high"]
    assert 0.92 < inside / 400 < 0.98


def test_how_long_lessons_are_and_how_many():
    assert plan_pilot_runs(PilotConfig(budget="1.0"), 200, 700) == (round(PILOT_FRACTION * 200), 6) == (30, 6)
    assert plan_pilot_runs(PilotConfig(budget="1.0"), 20, 25) == (4, 5), "a hundred steps at least"
    assert plan_pilot_runs(PilotConfig(budget=9), 2, 5) == (2, 4), "never longer than the whole"
