"""Whether one thing is larger than another, by pairs: intervals, p-values, and their correction for being many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, Literal

from ..errors import pluralize

CONFIDENCE = 0.95
LEAST = 3  # pairs below which no claim is decided: two may agree by chance
ROUNDING = 1e-9  # differences of accuracies that are of as many images differ by the last bits
Z = 1.96  # standard errors on either side of such an interval, by the normal law

Word = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True)
class Paired:
    """The mean of n paired differences, half the width of its 95% interval (Student's t), and the two-sided p of no
    difference; NaN where n is 1 or all differences are the same, which tell nothing of chance."""

    n: int
    mean: float
    half_width: float
    p: float


def paired(gaps: Sequence[float]) -> Paired:
    """What paired differences amount to.

    >>> paired([1.0, 2.0, 3.0])  # doctest: +ELLIPSIS
    Paired(n=3, mean=2.0, half_width=2.484..., p=0.0741...)
    """
    from scipy import stats

    n, mean = len(gaps), fmean(gaps) if gaps else math.nan
    if n < 2 or max(gaps) - min(gaps) <= ROUNDING * max(1.0, abs(mean)):
        return Paired(n, mean, math.nan, math.nan)
    error = stdev(gaps) / math.sqrt(n)
    return Paired(
        n,
        mean,
        float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * error,
        float(2 * stats.t.sf(abs(mean) / error, n - 1)),
    )


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, and what is found here: `effect` is above 0 where it is as the paper says.

    `p` is of no effect, two-sided, None where the effect can be no evidence; `p_corrected` by Holm for all claims of
    the study. `units` says what n counts, in the singular, `paper` is the paper's own effect, where it gives one.
    `caveat` is what the interval doesn't see; `same` where both sides are the same students, so that there is nothing
    to test.
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
    def word(self) -> Word:
        if self.n < LEAST or self.p_corrected is None or self.p_corrected >= 1 - CONFIDENCE or self.effect is None:
            return "undecided"
        return "supported" if self.effect > 0 else "not supported"

    @property
    def verdict(self) -> str:
        """The word, and where it is undecided, at which n, or that no n could decide it (the caveat says why)."""
        if self.n == 0:
            return "not run yet"
        if self.same:
            return "the same students"
        if self.p is None and self.half_width is not None:
            return "can't show here"
        return f"undecided at n = {self.n}" if self.word == "undecided" else self.word

    def cells(self) -> list[str]:
        """The effect with its interval, the paper's, the corrected p and the verdict, as a table shows them."""
        digits = 2 if self.unit == "points" else 4
        effect = "" if self.effect is None else f"{self.effect + ROUNDING:+.{digits}f}"
        if self.half_width is not None:
            effect += f" ± {self.half_width:.{digits}f}"
        of = f" {self.unit}, {pluralize(self.n, self.units)}" if effect else ""
        p = "" if self.p_corrected is None else "< 0.001" if self.p_corrected < 0.001 else f"{self.p_corrected:.3f}"
        return [effect + of, "" if self.paper is None else f"{self.paper:+.2f}", p, self.verdict]


CLAIM_COLUMNS = ["claim", "for", "effect, 95% interval", "effect in the paper", "p, corrected", "verdict"]
AVERAGE = "all pairs on average"


def claim_from(stored: dict[str, Any]) -> Claim:
    """A claim from its fields, as they are stored; raises KeyError or TypeError for what can't be one."""
    numbers = [stored[name] for name in ("effect", "half_width", "p", "p_corrected", "paper")]
    if not all(one is None or (isinstance(one, float | int) and abs(one) < 1e12) for one in numbers):
        raise TypeError("a claim's numbers are numbers")
    if not isinstance(stored["n"], int) or isinstance(stored["n"], bool):
        raise TypeError("a claim's n is a number")
    stored = {"same": False, **stored}  # which earlier versions didn't know
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
    """A claim that paired differences are above 0."""
    found = paired(gaps)
    number = lambda value: None if math.isnan(value) else value  # noqa: E731 - JSON has no NaN
    return Claim(
        text,
        where,
        unit,
        units,
        found.n,
        number(found.mean),
        number(found.half_width),
        number(found.p),
        paper=paper,
        caveat=caveat,
    )


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
    """A claim that a mean over n, with this standard error of so many degrees of freedom, is above 0."""
    from scipy import stats

    if n < 2 or math.isnan(effect):
        return Claim(text, where, unit, units, 0, paper=paper, caveat=caveat)
    if not error > 0:
        return Claim(text, where, unit, units, n, effect, paper=paper, caveat=caveat)
    p = float(2 * stats.t.sf(abs(effect) / error, degrees))
    half_width = float(stats.t.ppf(0.5 + CONFIDENCE / 2, degrees)) * error
    return Claim(text, where, unit, units, n, effect, half_width, p, paper=paper, caveat=caveat)


def corrected(claims: Sequence[Claim]) -> list[Claim]:
    """The claims, with the p of each corrected for how many there are (Holm, Scandinavian Journal of Statistics 1979).

    Those that can't be tested yet count, or what is supported today could be undecided when they are; those that have
    nothing to test, being of the same students, don't.

    >>> three = [Claim("", "", "", "", 3, effect=1.0, p=p) for p in (0.01, 0.04, 0.03)]
    >>> [round(claim.p_corrected, 3) for claim in corrected(three)]
    [0.03, 0.06, 0.06]
    """
    tested = sorted((one.p, number) for number, one in enumerate(claims) if one.p is not None and not one.same)
    found, least = list(claims), 0.0
    many = sum(not one.same for one in claims)
    for rank, (p, number) in enumerate(tested):
        least = max(least, min(1.0, p * (many - rank)))
        found[number] = replace(claims[number], p_corrected=least)
    return found
