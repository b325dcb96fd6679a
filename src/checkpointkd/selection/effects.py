"""Estimate the gains of candidates from pilot runs, by a linear Gaussian model of effects of methods and teachers.

The gain of a candidate is the sum of an effect of its method, an effect of its teachers and an interaction. A pilot run
shows a share of the gain, with an error: short runs favor some methods and teachers, and every run is noisy. So each
pilot run also tells the model about the other candidates with the same method or teachers. The prior comes from earlier
experiments.

Letters in names: C candidates, R pilot runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

DRAWS = 4096  # of the posterior, for the chance that a candidate is the best
LEVEL_SD = 1e3  # in points; large, because the accuracy of pilot runs is not known in advance


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Standard deviations in points: between methods, between sets of teachers, and of the interaction."""

    method: float
    teachers: float
    rest: float

    def covariance(self, methods: Sequence[str], teachers: Sequence[str]) -> np.ndarray:
        """Return the covariance (C, C) of candidates with these methods and teachers."""
        method_C, teachers_C = np.array(methods), np.array(teachers)
        return (
            self.method**2 * (method_C[:, None] == method_C)
            + self.teachers**2 * (teachers_C[:, None] == teachers_C)
            + self.rest**2 * np.eye(len(method_C))
        )


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Estimates before the first pilot run, in points of accuracy.

    Attributes:
        method_gain: Mean gain of each method over `kd` with α 0.5.
        teachers_gain: Mean gain of each kind of teachers over the last checkpoint.
        gain: Spread of the gains around these means.
        slope: The share of a gain that a pilot run shows.
        bias_of_method: Mean amount by which a pilot run of each method shows more than this share.
        bias_of_teachers: The same for each kind of teachers.
        bias: Spread of these amounts, which do not change with the seed.
        noise: Standard deviation of a pilot run between seeds.
    """

    method_gain: Mapping[str, float]
    teachers_gain: Mapping[str, float]
    gain: Spread
    slope: float
    bias_of_method: Mapping[str, float]
    bias_of_teachers: Mapping[str, float]
    bias: Spread
    noise: float

    def with_means_scaled(self, factor: float) -> Prior:
        """Return the prior with all means times a factor. The spreads stay: a method can also fail."""
        names = ("method_gain", "teachers_gain", "bias_of_method", "bias_of_teachers")
        scaled = {name: {key: factor * mean for key, mean in getattr(self, name).items()} for name in names}
        return replace(self, **scaled)


@dataclass(frozen=True)
class Level:
    """A method or a set of teachers. Candidates with the same name share an effect.

    `parts` are keys of the prior, with weights. The mean effect is the weighted sum over these keys. Keys that the
    prior lacks count as 0.
    """

    name: str
    parts: tuple[tuple[str, float], ...]

    def of(self, means: Mapping[str, float]) -> float:
        """Return the mean effect."""
        return sum(weight * means.get(key, 0.0) for key, weight in self.parts)


@dataclass(frozen=True, eq=False)
class Gains:
    """The posterior of the candidates' gains over a baseline, in points: mean (C,) and covariance (C, C)."""

    mean_C: np.ndarray
    covariance_CC: np.ndarray

    def chance_best(self, allowed: Sequence[int] | None = None) -> np.ndarray:
        """Return the chance (C,) that each candidate is the best of the allowed candidates; 0 if it is not allowed."""
        draws = np.random.default_rng(0).multivariate_normal(self.mean_C, self.covariance_CC, size=DRAWS, method="eigh")
        if allowed is not None:
            draws[:, [index for index in range(len(self.mean_C)) if index not in allowed]] = -np.inf
        return np.bincount(draws.argmax(1), minlength=len(self.mean_C)) / DRAWS

    def sd_of_difference(self, candidate: int, other: int) -> float:
        """Return the standard deviation of the difference of two gains."""
        covariance = self.covariance_CC
        variance = covariance[candidate, candidate] + covariance[other, other] - 2 * covariance[candidate, other]
        return float(np.sqrt(max(variance, 0.0)))

    def expected_improvement(self, best: int) -> np.ndarray:
        """Return the expected improvement (C,) of each candidate over `best`, in points. A loss counts as 0."""
        from scipy.stats import norm

        sd_C = np.array([self.sd_of_difference(candidate, best) for candidate in range(len(self.mean_C))])
        ahead_C = self.mean_C - self.mean_C[best]
        score_C = ahead_C / np.maximum(sd_C, 1e-12)
        return ahead_C * norm.cdf(score_C) + sd_C * norm.pdf(score_C)


def posterior(
    prior: Prior,
    methods: Sequence[Level],
    teachers: Sequence[Level],
    runs: Sequence[tuple[int, float]],
    *,
    baseline: int,
) -> Gains:
    """Return the posterior of the candidates' gains over the baseline, after pilot runs.

    Args:
        prior: Estimates before the pilot runs.
        methods: The method of each candidate.
        teachers: The set of teachers of each candidate.
        runs: The candidate and the score in points of each pilot run. Only differences between scores matter.
        baseline: The candidate that gains are relative to.
    """
    names = [method.name for method in methods], [set_of_teachers.name for set_of_teachers in teachers]
    both = list(zip(methods, teachers, strict=True))
    mean_C = np.array([method.of(prior.method_gain) + kind.of(prior.teachers_gain) for method, kind in both])
    bias_C = np.array([method.of(prior.bias_of_method) + kind.of(prior.bias_of_teachers) for method, kind in both])
    gain_CC = prior.gain.covariance(*names)
    if runs:
        index_R = np.array([candidate for candidate, _ in runs])
        score_R = np.array([score for _, score in runs])
        shown_CC = prior.slope**2 * gain_CC + prior.bias.covariance(*names)
        covariance_RR = shown_CC[np.ix_(index_R, index_R)] + prior.noise**2 * np.eye(len(runs)) + LEVEL_SD**2
        shown_with_gain_RC = prior.slope * gain_CC[index_R]
        weight_CR = np.linalg.solve(covariance_RR, shown_with_gain_RC).T
        expected_R = (prior.slope * mean_C + bias_C)[index_R]
        mean_C = mean_C + weight_CR @ (score_R - score_R.mean() - expected_R)
        gain_CC = gain_CC - weight_CR @ shown_with_gain_RC
    difference_CC = np.eye(len(methods))
    difference_CC[:, baseline] -= 1
    return Gains(difference_CC @ mean_C, difference_CC @ gain_CC @ difference_CC.T)
