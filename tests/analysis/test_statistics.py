"""Intervals and p-values against SciPy, Holm's correction by hand, and the verdicts that follow."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from scipy import stats

from checkpointkd.analysis.statistics import Claim, Verdict, claim, claim_from, claim_of, corrected, paired


@pytest.mark.parametrize("seed", range(5))
def test_paired_differences_follow_students_t_test(seed: int):
    """By the formula: mean ± t(97.5%) · sd / √n, and twice the tail of |mean| · √n / sd."""
    rng = random.Random(seed)
    gaps = [rng.gauss(0.3, 1) for _ in range(2 + seed)]
    n, mean = len(gaps), sum(gaps) / len(gaps)
    error = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (n - 1) / n)
    result = paired(gaps)
    assert (result.n, result.mean) == (n, pytest.approx(mean))
    assert result.half_width == pytest.approx(stats.t.ppf(0.975, n - 1) * error)
    assert result.p == pytest.approx(2 * stats.t.sf(abs(mean) / error, n - 1))


def test_the_interval_covers_the_truth_at_its_stated_rate():
    rng = random.Random(0)
    covered, significant, trials = 0, 0, 2000
    for _ in range(trials):
        result = paired([rng.gauss(0.5, 2) for _ in range(4)])
        covered += abs(result.mean - 0.5) <= result.half_width
        significant += paired([rng.gauss(0, 1) for _ in range(3)]).p < 0.05
    assert covered / trials == pytest.approx(0.95, abs=0.015)
    assert significant / trials == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("gaps", [[], [1.0], [2.0, 2.0], [0.0] * 3, [61.55 - 61.0, 98.0 - 97.45, 12.75 - 12.2]])
def test_too_few_or_equal_differences_have_no_interval_and_no_p(gaps: list[float]):
    result = paired(gaps)
    assert math.isnan(result.half_width)
    assert math.isnan(result.p)
    (tested,) = corrected([claim("a", "b", gaps)])
    assert tested.verdict == (Verdict.UNDECIDED if gaps else Verdict.NOT_RUN)


def _with(*ps: float | None) -> list[Claim]:
    return [Claim("", "", "points", "seed", 5, effect=1.0, half_width=0.5, p=p) for p in ps]


def test_an_effect_that_is_no_evidence_is_not_testable():
    (tested,) = corrected(_with(None))
    assert tested.verdict == "not testable"


def test_holms_correction():
    """Sorted 0.01, 0.02, 0.03, 0.04, and a claim that cannot be tested yet: times 5, 4, 3, 2, never decreasing."""
    p_corrected = [tested.p_corrected for tested in corrected(_with(0.04, None, 0.01, 0.03, 0.02))]
    assert p_corrected == [pytest.approx(0.09), None, pytest.approx(0.05), pytest.approx(0.09), pytest.approx(0.08)]
    same = replace(_with(0.04)[0], same=True)
    assert [tested.p_corrected for tested in corrected([same, *_with(0.04)])] == [None, 0.04], "same students: no test"
    assert [tested.p_corrected for tested in corrected(_with(0.9, 0.8))] == [1.0, 1.0]


def test_the_verdict_follows_from_the_corrected_p_and_the_sign():
    better, worse = claim("a", "b", [1.0, 1.1, 0.9, 1.0]), claim("a", "b", [-1.0, -1.1, -0.9, -1.0])
    noise = [claim("a", "b", [3.0, -2.9, 0.1])] * 3
    verdicts = [tested.verdict for tested in corrected([better, worse, *noise])]
    assert verdicts == ["supported", "not supported", "undecided", "undecided", "undecided"]
    barely = claim("a", "b", [0.9, 2.0, 1.3])
    assert barely.p is not None
    assert 0.02 < barely.p < 0.05
    assert corrected([barely])[0].verdict == "supported"
    assert corrected([barely, *noise])[0].verdict == "undecided", "one of four claims may be significant by chance"
    (two,) = corrected([claim("a", "b", [1.0, 1.01])])
    assert two.p_corrected is not None
    assert two.p_corrected < 0.05
    assert two.verdict == "undecided", "two pairs decide nothing"


def test_a_mean_over_many_images_is_tested_by_the_normal_distribution():
    tested = claim_of("a", "b", 1.0, 0.5, 1000, units="image")
    assert tested.half_width == pytest.approx(0.98, abs=1e-4)
    assert tested.p == pytest.approx(0.0455, abs=1e-4)
    assert claim_of("a", "b", math.nan, math.nan, 0, units="image").verdict == "not run yet"


def test_a_claim_survives_storage():
    (tested,) = corrected([claim("a", "b", [1.0, 2.0, 1.5], paper=0.5, caveat="c")])
    assert claim_from({**vars(tested), "verdict": tested.verdict}) == tested
    assert (tested.effect_text, tested.n_text) == ("+1.50 ± 1.24 points", "3 seeds")
