"""Intervals and p-values against SciPy's, Holm's correction by hand, and the words that follow."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from scipy import stats

from checkpointkd.analysis.statistics import CLAIM_COLUMNS, Claim, claim, claim_from, claim_of, corrected, paired


@pytest.mark.parametrize("seed", range(5))
def test_paired_differences_are_students_t_test(seed: int):
    chances = random.Random(seed)
    gaps = [chances.gauss(0.3, 1) for _ in range(2 + seed)]
    known = stats.ttest_1samp(gaps, 0)
    interval = known.confidence_interval(0.95)
    found = paired(gaps)
    assert found.p == pytest.approx(known.pvalue)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(tuple(interval))


def test_an_interval_holds_the_truth_as_often_as_it_says():
    chances = random.Random(0)
    held, significant, trials = 0, 0, 2000
    for _ in range(trials):
        found = paired([chances.gauss(0.5, 2) for _ in range(4)])
        held += abs(found.mean - 0.5) <= found.half_width
        significant += paired([chances.gauss(0, 1) for _ in range(3)]).p < 0.05
    assert held / trials == pytest.approx(0.95, abs=0.015)
    assert significant / trials == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("gaps", [[], [1.0], [2.0, 2.0], [0.0] * 3, [61.55 - 61.0, 98.0 - 97.45, 12.75 - 12.2]])
def test_too_few_or_equal_differences_tell_nothing_of_chance(gaps: list[float]):
    found = paired(gaps)
    assert math.isnan(found.half_width)
    assert math.isnan(found.p)
    (one,) = corrected([claim("a", "b", gaps)])
    assert one.word == "undecided"
    assert one.verdict == ("not run yet" if not gaps else f"undecided at n = {len(gaps)}")
    assert len(one.cells()) == len(CLAIM_COLUMNS) - 2


def _with(*ps: float | None) -> list[Claim]:
    return [Claim("", "", "points", "seed", 5, effect=1.0, half_width=0.5, p=p) for p in ps]


def test_what_no_number_of_images_could_show_is_not_called_undecided():
    (one,) = corrected(_with(None))
    assert (one.word, one.verdict) == ("undecided", "can't show here")


def test_holm_s_correction():
    """Sorted 0.01, 0.02, 0.03, 0.04, and one that can't be tested yet: times 5, 4, 3, 2, never less than before."""
    found = [one.p_corrected for one in corrected(_with(0.04, None, 0.01, 0.03, 0.02))]
    assert found == [pytest.approx(0.09), None, pytest.approx(0.05), pytest.approx(0.09), pytest.approx(0.08)]
    same = replace(_with(0.04)[0], same=True)
    assert [one.p_corrected for one in corrected([same, *_with(0.04)])] == [None, 0.04], "of the same students: no test"
    assert [one.p_corrected for one in corrected(_with(0.9, 0.8))] == [1.0, 1.0]


def test_words_follow_from_the_corrected_p_and_the_sign():
    alone, against = claim("a", "b", [1.0, 1.1, 0.9, 1.0]), claim("a", "b", [-1.0, -1.1, -0.9, -1.0])
    many = [claim("a", "b", [3.0, -2.9, 0.1])] * 3
    words = [one.word for one in corrected([alone, against, *many])]
    assert words == ["supported", "not supported", "undecided", "undecided", "undecided"]
    barely = claim("a", "b", [0.9, 2.0, 1.3])
    assert barely.p is not None
    assert 0.02 < barely.p < 0.05
    assert corrected([barely])[0].word == "supported"
    assert corrected([barely, *many])[0].word == "undecided", "among four claims it may be chance"
    (two,) = corrected([claim("a", "b", [1.0, 1.01])])
    assert two.p_corrected is not None
    assert two.p_corrected < 0.05
    assert two.word == "undecided", "two pairs decide nothing"


def test_a_mean_over_many_is_judged_by_the_normal_law():
    found = claim_of("a", "b", 1.0, 0.5, 1000, units="image")
    assert found.half_width == pytest.approx(0.98, abs=1e-4)
    assert found.p == pytest.approx(0.0455, abs=1e-4)
    assert claim_of("a", "b", math.nan, math.nan, 0, units="image").verdict == "not run yet"


def test_a_claim_survives_its_storage():
    (one,) = corrected([claim("a", "b", [1.0, 2.0, 1.5], paper=0.5, caveat="c")])
    stored = {**vars(one), "verdict": one.verdict}
    assert claim_from(stored) == one
    assert one.cells()[:2] == ["+1.50 ± 1.24 points, 3 seeds", "+0.50"]
