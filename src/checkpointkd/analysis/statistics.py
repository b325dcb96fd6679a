"""Paired differences with confidence intervals, claims about them, and Holm's correction for many claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean
from typing import Any

from ..errors import pluralize

CONFIDENCE = 0.95
MIN_PAIRS = 3  # a claim over fewer pairs is undecided: two pairs may agree by chance
ROUNDING = 1e-9  # two accuracies over the same number of images differ in their last bits
Z = 1.96  # half-width of a 95% interval in standard errors, normal distribution


class Verdict(StrEnum):
    """The outcome of a claim. The values are what reports show and what `experiment.json` stores."""

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    UNDECIDED = "undecided"
    NOT_TESTABLE = "not testable"
    SAME_STUDENTS = "same students"
    NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Paired:
    """The mean of n paired differences, the half-width of its 95% interval (Student's t) and the two-sided p.

    `half_width` and `p` are NaN for n < 2 and for differences that are all equal.
    """

    n: int
    mean: float
    half_width: float
    p: float


def paired(gaps: Sequence[float]) -> Paired:
    """Run Student's t test on paired differences.

    >>> paired([1.0, 2.0, 3.0])  # doctest: +ELLIPSIS
    Paired(n=3, mean=2.0, half_width=2.484..., p=0.0741...)
    """
    from scipy import stats

    n, mean = len(gaps), fmean(gaps) if gaps else math.nan
    if n < 2 or max(gaps) - min(gaps) <= ROUNDING * max(1.0, abs(mean)):
        return Paired(n, mean, math.nan, math.nan)
    test: Any = stats.ttest_1samp(gaps, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    return Paired(n, mean, float(interval.high - interval.low) / 2, float(test.pvalue))


@dataclass(frozen=True)
class Claim:
    """A claim and its evidence here. A positive `effect` agrees with the claim.

    Attributes:
        text: the claim as a sentence.
        where: the pair of networks, the teacher or the average that the evidence is from.
        unit: the unit of `effect`.
        units: what `n` counts, in the singular ("seed", "image").
        n: how many units the effect is a mean over; 0 before anything has run.
        effect: the mean effect, None if unknown.
        half_width: half of its 95% interval, None if unknown.
        p: two-sided p of no effect, None if the effect is no evidence for or against the claim.
        p_corrected: p after `corrected`.
        paper: the effect in the paper, where the paper has one.
        caveat: what the interval does not cover.
        same: both sides are the same students, so there is no difference to test.
    """

    text: str
    where: str
    unit: str
    units: str
    n: int
    effect: float | None = None
    half_width: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    paper: float | None = None
    caveat: str = ""
    same: bool = False

    @property
    def verdict(self) -> Verdict:
        if self.n == 0:
            return Verdict.NOT_RUN
        if self.same:
            return Verdict.SAME_STUDENTS
        if self.p is None and self.half_width is not None:
            return Verdict.NOT_TESTABLE
        if self.n < MIN_PAIRS or self.effect is None or self.p_corrected is None or self.p_corrected >= 1 - CONFIDENCE:
            return Verdict.UNDECIDED
        return Verdict.SUPPORTED if self.effect > 0 else Verdict.NOT_SUPPORTED

    @property
    def effect_text(self) -> str:
        """The effect, its interval and its unit, as a table shows them."""
        if self.effect is None:
            return ""
        digits = 2 if self.unit == "points" else 4
        interval = "" if self.half_width is None else f" ± {self.half_width:.{digits}f}"
        return f"{self.effect + ROUNDING:+.{digits}f}{interval} {self.unit}"

    @property
    def n_text(self) -> str:
        """The number of units, as a table shows it."""
        return pluralize(self.n, self.units) if self.n else ""


AVERAGE = "all pairs on average"


def claim_from(stored: dict[str, Any]) -> Claim:
    """Return a claim from its stored fields; raises KeyError or TypeError for fields that are missing or wrong."""
    numbers = [stored[name] for name in ("effect", "half_width", "p", "p_corrected", "paper")]
    if not all(number is None or (isinstance(number, float | int) and abs(number) < 1e12) for number in numbers):
        raise TypeError("the numbers of a claim must be numbers")
    if not isinstance(stored["n"], int) or isinstance(stored["n"], bool):
        raise TypeError("the n of a claim must be an integer")
    if not all(isinstance(stored[name], str) for name in ("text", "where", "unit", "units", "caveat")):
        raise TypeError("the texts of a claim must be texts")
    return Claim(**{name: stored[name] for name in Claim.__dataclass_fields__})


def claim(
    text: str,
    where: str,
    gaps: Sequence[float],
    *,
    unit: str = "points",
    units: str = "seed",
    paper: float | None = None,
    caveat: str = "",
) -> Claim:
    """Return the claim that the mean of paired differences is above 0."""
    test = paired(gaps)
    effect, half_width, p = (None if math.isnan(value) else value for value in (test.mean, test.half_width, test.p))
    return Claim(text, where, unit, units, test.n, effect, half_width, p, paper=paper, caveat=caveat)


def claim_of(
    text: str,
    where: str,
    effect: float,
    error: float,
    n: int,
    *,
    unit: str = "points",
    units: str,
    degrees: float = math.inf,
    paper: float | None = None,
    caveat: str = "",
) -> Claim:
    """Return the claim that a mean over n is above 0, from its standard error and the error's degrees of freedom."""
    from scipy import stats

    if n < 2 or math.isnan(effect):
        return Claim(text, where, unit, units, 0, paper=paper, caveat=caveat)
    if not error > 0:
        return Claim(text, where, unit, units, n, effect, paper=paper, caveat=caveat)
    p = float(2 * stats.t.sf(abs(effect) / error, degrees))
    half_width = float(stats.t.ppf(0.5 + CONFIDENCE / 2, degrees)) * error
    return Claim(text, where, unit, units, n, effect, half_width, p, paper=paper, caveat=caveat)


def corrected(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims with p corrected for their number (Holm, Scandinavian Journal of Statistics 1979).

    Claims that cannot be tested yet count, so that a claim that is supported today stays supported when they run.
    Claims about the same students do not count: they have nothing to test.

    >>> claims = [Claim("", "", "", "", 3, effect=1.0, p=p) for p in (0.01, 0.04, 0.03)]
    >>> [round(claim.p_corrected, 3) for claim in corrected(claims)]
    [0.03, 0.06, 0.06]
    """
    tested = sorted((claim.p, index) for index, claim in enumerate(claims) if claim.p is not None and not claim.same)
    count = sum(not claim.same for claim in claims)
    result, largest = list(claims), 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (count - rank)))
        result[index] = replace(claims[index], p_corrected=largest)
    return result
