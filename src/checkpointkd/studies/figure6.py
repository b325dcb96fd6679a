"""Figure 6: label smoothing on the information plane, and the order T half-way > T full > u (§4.3)."""

from __future__ import annotations

from collections.abc import Sequence

from ..comparisons import Claim, claim
from .figure4 import UNIT, charts, curves, information_gaps, last_points
from .figure7 import curve_pairs
from .rows import ONE_RUN, Results, Row, gaps, published, settings_note, with_paper
from .scales import Scale
from .work import Part

TITLE = "Figure 6: label smoothing on the information plane"


def needs(scale: Scale) -> list[Part]:
    return [part for pair in curve_pairs(scale) for part in curves(scale, pair, smoothed=True)]


def results(scale: Scale, rows: Sequence[Row]) -> Results:
    claims: list[Claim] = []
    for pair in curve_pairs(scale):
        for text, one, other in (
            ("Label smoothing compresses the student", "alone", "uniform"),
            ("The full teacher's students keep more I(X;F) than label smoothing's", "full", "uniform"),
        ):
            found = information_gaps(rows, pair, one, other)
            claims.append(claim(text, pair.name, found, unit=UNIT, caveat=ONE_RUN if "full" in (one, other) else ""))
        for text, one, other in (
            ("§4.3: the half-way teacher teaches better than the full one", "half", "full"),
            ("§4.3: the full teacher teaches better than the uniform one", "full", "uniform"),
        ):
            known = published(scale, pair)
            paper = round(known[one] - known[other], 2) if one in known and other in known else None
            claims.append(claim(text, pair.name, gaps(rows, pair, one, other), paper=paper, caveat=ONE_RUN))
    note = f"{settings_note(scale)} The uniform teacher is label smoothing by {scale.smoothing:g}."
    table = with_paper(rows, scale, ("alone", "uniform", "full", "half"), "Students by what taught them", note)
    return Results(tables=[table, last_points(scale, rows)], figures=charts(scale, rows), claims=claims)
