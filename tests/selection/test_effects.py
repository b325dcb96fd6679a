"""The model of effects: its posterior against sums by hand, and that its intervals and chances are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from checkpointkd.selection.effects import Level, Prior, Spread, posterior

METHODS = [Level(name, ((name, 1.0),)) for name in ("kd", "kd", "dist", "dist", "none")]
TEACHERS = [Level(name, ((name, 1.0),)) for name in ("last", "average", "last", "average", "no teacher")]
NAMES = [level.name for level in METHODS], [level.name for level in TEACHERS]
PRIOR = Prior(
    method_gain={"dist": 2.0, "none": -3.0},
    teachers_gain={"average": 0.5},
    gain=Spread(method=2.0, teachers=1.0, rest=0.5),
    slope=0.5,
    bias_of_method={"dist": 1.0},
    bias_of_teachers={},
    bias=Spread(method=0.5, teachers=0.5, rest=0.5),
    noise=0.7,
)
EXACT = replace(PRIOR, slope=1.0, bias_of_method={}, bias=Spread(method=0.0, teachers=0.0, rest=0.0), noise=1e-4)


def test_without_runs_the_prior_is_returned():
    gains = posterior(PRIOR, METHODS, TEACHERS, [], baseline=0)
    assert gains.mean_C == pytest.approx([0.0, 0.5, 2.0, 2.5, -3.0])
    assert gains.covariance_CC[0] == pytest.approx(np.zeros(5))
    variance = 2 * (2.0**2 + 0.5**2)  # other method, same teachers
    assert gains.covariance_CC[2, 2] == pytest.approx(variance)


def test_exact_runs_determine_the_gains_whatever_their_level():
    for level in (0.0, 40.0):
        runs = [(0, level + 10.0), (2, level + 13.5), (4, level + 4.0)]
        gains = posterior(EXACT, METHODS, TEACHERS, runs, baseline=0)
        assert gains.mean_C[[0, 2, 4]] == pytest.approx([0.0, 3.5, -6.0], abs=1e-3)
        assert gains.sd_of_difference(2, 0) == pytest.approx(0.0, abs=1e-2)


def test_a_run_says_something_about_candidates_with_the_same_method_or_teachers():
    """Two runs of one difference: the posterior of two variables by hand."""
    gains = posterior(EXACT, METHODS, TEACHERS, [(0, 10.0), (2, 15.0)], baseline=0)
    surprise = 15.0 - 10.0 - 2.0
    of_difference = 2 * (2.0**2 + 0.5**2)
    shared = 2 * 2.0**2  # dist − kd, with other teachers: their interactions are not shared
    assert gains.mean_C[3] - gains.mean_C[1] == pytest.approx(2.0 + surprise * shared / of_difference, abs=1e-3)


def test_known_bias_is_taken_off_and_unknown_bias_counts_less():
    runs = [(0, 10.0), (2, 13.0)]
    biased = replace(EXACT, bias_of_method={"dist": 1.0})
    assert posterior(biased, METHODS, TEACHERS, runs, baseline=0).mean_C[2] == pytest.approx(2.0, abs=1e-3)
    unknown = replace(EXACT, bias=Spread(method=2.0, teachers=0.0, rest=0.0))
    surprised = posterior(unknown, METHODS, TEACHERS, [(0, 10.0), (2, 20.0)], baseline=0).mean_C[2]
    assert 2.0 < surprised < 8.0


def test_pilot_run_shows_a_share_of_the_gain():
    gains = posterior(replace(EXACT, slope=0.5), METHODS, TEACHERS, [(0, 10.0), (2, 13.0)], baseline=0)
    assert gains.mean_C[2] == pytest.approx(6.0, abs=1e-3)


def test_intervals_and_chances_hold_in_worlds_from_the_prior():
    """In worlds drawn from the prior, 95% of the intervals cover the gain, and chances are frequencies."""
    rng = np.random.default_rng(0)
    mean_C = np.array([0.0, 0.5, 2.0, 2.5, -3.0])
    bias_C = np.array([0.0, 0.0, 1.0, 1.0, 0.0])
    covered, chances, best = [], [], []
    for _ in range(400):
        gain_C = rng.multivariate_normal(mean_C, PRIOR.gain.covariance(*NAMES))
        shown_C = PRIOR.slope * gain_C + rng.multivariate_normal(bias_C, PRIOR.bias.covariance(*NAMES))
        runs = [(index, 30 + shown_C[index] + rng.normal(0, PRIOR.noise)) for index in (0, 2, 4)]
        gains = posterior(PRIOR, METHODS, TEACHERS, runs, baseline=0)
        true_C, sd_C = gain_C - gain_C[0], np.sqrt(np.diag(gains.covariance_CC))
        covered.append(np.abs(true_C - gains.mean_C)[1:] < 1.96 * sd_C[1:])
        chances.append(gains.chance_best())
        best.append(np.eye(5)[gain_C.argmax()])
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)
    assert np.mean(chances, axis=0) == pytest.approx(np.mean(best, axis=0), abs=0.05)
    squared_error = np.mean((np.array(chances) - np.array(best)) ** 2)
    assert squared_error < np.mean((np.mean(best, axis=0) - np.array(best)) ** 2), "they say more than the frequency"


def test_expected_improvement_is_the_mean_of_the_positive_part():
    gains = posterior(PRIOR, METHODS, TEACHERS, [(0, 10.0)], baseline=0)
    draws = np.random.default_rng(0).multivariate_normal(gains.mean_C, gains.covariance_CC, size=200_000)
    expected = np.maximum(draws - draws[:, [2]], 0.0).mean(0)
    assert gains.expected_improvement(2) == pytest.approx(expected, abs=0.03)
