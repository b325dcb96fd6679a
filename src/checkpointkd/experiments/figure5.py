"""Figure 5: which classes a half-way and a full teacher find alike (§4.2, Eq. 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..analysis.statistics import Claim, Z, claim_of
from ..config import CORRELATION_KINDS
from ..reports.charts import Heatmaps, Table
from .presets import Preset
from .results import Results, Row, images_note, only
from .tasks import CorrelateTask, Item, teacher

TITLE = "Figure 5: class correlation, half-way and full"
TEXT = "A half-way teacher finds different classes more alike than the full one, by {}"
CAVEAT = (
    "rests on one teacher run; intervals of such differences hold the truth in some 85 to 95% of cases, so that p may "
    "be too small"
)


def needs(preset: Preset) -> list[Item]:
    pair = preset.pairs[0]
    return [Item(pair, "teacher", CorrelateTask(teacher(pair)))]


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    claims, figures, lines = [], [], []
    for found in only(rows, kind="correlation"):
        for kind, words in CORRELATION_KINDS.items():
            name = words.format(**found)
            of_kind = found[kind]
            figures.append(
                Heatmaps(
                    title=f"Class correlation by {name}",
                    names=["half-way", "last", "half-way less full"],
                    classes=found["classes"],
                    maps=[*of_kind["similarity"], of_kind["difference"]],
                    caption=f"Classes by {found['order']}. Blue is where the half-way teacher finds them more alike.",
                    alt=f"Heatmaps of the similarity of {len(found['classes'])} classes by {name}",
                )
            )
            for number in ("mean_similarity", "diversity"):
                half, full = found[kind]["numbers"][number]
                intervals = [f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for one in (half, full)]
                lines.append([f"{number.replace('_', ' ')}, {name}", *intervals])
            gap = of_kind["differences"]["mean_similarity"]
            claims.append(_claim(preset, name, gap["value"], (gap["high"] - gap["low"]) / (2 * Z), found["images"]))
    if not claims:
        names = [words.format(tau=preset.tau) for words in CORRELATION_KINDS.values()]
        claims = [_claim(preset, name, math.nan, math.nan, 0) for name in names]
    note = (
        "Mean similarity is how bright the map is beside its diagonal, which the paper reads as diversity; diversity "
        "is how widely pairs of classes differ. 95% intervals by bootstrap over the images. What noise in the images "
        f"adds is taken off the numbers, not off the maps. {images_note(preset, 'test')}"
    )
    table = Table("How alike different classes are", ["", "half-way", "last"], lines, note)
    return Results(tables=[table], figures=figures, claims=claims)


def _claim(preset: Preset, name: str, effect: float, error: float, images: int) -> Claim:
    return claim_of(
        TEXT.format(name), preset.pairs[0].teacher, effect, error, images, unit="cosine", units="image", caveat=CAVEAT
    )
