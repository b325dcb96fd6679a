"""Figure 6: label smoothing on the information plane, and the order T half-way > T full > u (§4.3)."""

from __future__ import annotations

from collections.abc import Sequence

from ..analysis.statistics import Claim, claim
from .figure4 import UNIT, charts, curves, information_gaps, last_points
from .figure7 import curve_pairs
from .presets import Preset
from .results import ONE_RUN, Results, Row, gaps, published, settings_note, with_paper
from .tasks import Item

TITLE = "Figure 6: label smoothing on the information plane"


def needs(preset: Preset) -> list[Item]:
    return [part for pair in curve_pairs(preset) for part in curves(preset, pair, smoothed=True)]


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    claims: list[Claim] = []
    for pair in curve_pairs(preset):
        for text, one, other in (
            ("Label smoothing compresses the student", "scratch", "uniform"),
            ("The full teacher's students keep more I(X;F) than label smoothing's", "last", "uniform"),
        ):
            found = information_gaps(rows, pair, one, other)
            claims.append(claim(text, pair.name, found, unit=UNIT, caveat=ONE_RUN if "last" in (one, other) else ""))
        for text, one, other in (
            ("§4.3: the half-way teacher teaches better than the full one", "midpoint", "last"),
            ("§4.3: the full teacher teaches better than the uniform one", "last", "uniform"),
        ):
            known = published(preset, pair)
            paper = round(known[one] - known[other], 2) if one in known and other in known else None
            claims.append(claim(text, pair.name, gaps(rows, pair, one, other), paper=paper, caveat=ONE_RUN))
    note = f"{settings_note(preset)} The uniform teacher is label smoothing by {preset.smoothing:g}."
    table = with_paper(rows, preset, ("scratch", "uniform", "last", "midpoint"), "Students by what taught them", note)
    return Results(tables=[table, last_points(preset, rows)], figures=charts(preset, rows), claims=claims)
