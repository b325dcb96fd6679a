"""Figure 6: label smoothing on the information plane, and the order T midpoint > T last > u (§4.3)."""

from __future__ import annotations

from collections.abc import Sequence

from ..analysis.statistics import Claim, claim
from .figure4 import UNIT, charts, curve_items, information_gaps, last_points_table
from .figure7 import curve_pairs
from .items import Item
from .presets import Preset
from .results import ONE_RUN, Results, Row, gaps, paper_effect, students_note, students_table

TITLE = "Figure 6: label smoothing on the information plane"
INFORMATION_CLAIMS = (  # text, variant, baseline, caveat
    ("Label smoothing compresses the student: less I(X;F) than without a teacher", "scratch", "uniform", ""),
    ("Students of T last have more I(X;F) than with label smoothing", "last", "uniform", ONE_RUN),
)
ACCURACY_CLAIMS = (
    ("§4.3: T midpoint teaches better than T last", "midpoint", "last"),
    ("§4.3: T last teaches better than the uniform teacher", "last", "uniform"),
)


def needs(preset: Preset) -> list[Item]:
    return [item for pair in curve_pairs(preset) for item in curve_items(preset, pair, smoothed=True)]


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    claims: list[Claim] = []
    for pair in curve_pairs(preset):
        for text, variant, baseline, caveat in INFORMATION_CLAIMS:
            differences = information_gaps(rows, pair, variant, baseline)
            claims.append(claim(text, pair.name, differences, unit=UNIT, caveat=caveat))
        for text, variant, baseline in ACCURACY_CLAIMS:
            effect = paper_effect(preset, pair, variant, baseline)
            claims.append(claim(text, pair.name, gaps(rows, pair, variant, baseline), paper=effect, caveat=ONE_RUN))
    note = f"{students_note(preset)} The uniform teacher is label smoothing of {preset.smoothing:g}."
    variants = ("scratch", "uniform", "last", "midpoint")
    table = students_table(preset, rows, variants, "Students by their teacher", note)
    return Results(tables=[table, last_points_table(preset, rows)], figures=charts(preset, rows), claims=claims)
