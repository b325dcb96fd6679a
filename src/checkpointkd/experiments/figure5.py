"""Figure 5: the class correlation of a midpoint and a last teacher (§4.2, Eq. 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..analysis.statistics import Claim, Z, claim_of
from ..config import CORRELATION_KINDS
from ..reports.charts import Figure, Heatmaps, Table
from .items import Item, teacher
from .presets import Preset
from .results import Results, Row, images_note, only
from .tasks import CorrelateTask

TITLE = "Figure 5: class correlation, midpoint and last"
CAVEAT = "one run of the teacher; the intervals of such differences cover 85 to 95%, so p may be too small"


def needs(preset: Preset) -> list[Item]:
    pair = preset.pairs[0]
    return [Item(pair, "teacher", CorrelateTask(teacher(pair)))]


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    correlations = only(rows, kind="correlation")
    claims, lines = [], []
    figures: list[Figure] = []
    for row in correlations:
        for kind, template in CORRELATION_KINDS.items():
            name, similarity = template.format(**row), row[kind]
            figures.append(_heatmaps(row, kind, name))
            for number in ("mean_similarity", "diversity"):
                cells = [
                    f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
                    for interval in similarity["numbers"][number]
                ]
                lines.append([f"{number.replace('_', ' ')}, {name}", *cells])
            gap = similarity["differences"]["mean_similarity"]
            claims.append(_claim(preset, name, gap["value"], (gap["high"] - gap["low"]) / (2 * Z), row["images"]))
    if not correlations:
        names = [template.format(tau=preset.tau) for template in CORRELATION_KINDS.values()]
        claims = [_claim(preset, name, math.nan, math.nan, 0) for name in names]
    note = (
        "Mean similarity is the mean of the cells off the diagonal. The paper calls a larger mean more diverse. "
        "Diversity here is the standard deviation of these cells. 95% bootstrap intervals over images. The bias from "
        f"noise in the images is removed from these numbers, not from the maps. {images_note(preset, 'test')}"
    )
    table = Table("Similarity of different classes", ["", "midpoint", "last"], lines, note)
    return Results(tables=[table], figures=figures, claims=claims)


def _heatmaps(row: Row, kind: str, name: str) -> Heatmaps:
    return Heatmaps(
        title=f"Class correlation by {name}",
        names=["midpoint", "last", "midpoint − last"],
        classes=row["classes"],
        maps=[*row[kind]["similarity"], row[kind]["difference"]],
        caption=f"Classes are ordered by {row['order']}. Blue in the difference: more similar to the midpoint teacher.",
        alt=f"Heatmaps of the similarity of {len(row['classes'])} classes by {name}",
    )


def _claim(preset: Preset, name: str, effect: float, error: float, images: int) -> Claim:
    text = f"Different classes are more similar to T midpoint than to T last, by {name}"
    teacher_name = preset.pairs[0].teacher
    return claim_of(text, teacher_name, effect, error, images, unit="cosine", units="image", caveat=CAVEAT)
