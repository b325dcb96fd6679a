"""Figure 7: Algorithm 1's choice on the normalised information plane (§5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..charts import Table
from ..reports.figures import plane_chart
from ..selection import normalised
from .rows import Results, Row, images_note, only
from .scales import Pair, Scale
from .work import Part, Scoring, teacher

TITLE = "Figure 7: the choice on the information plane"


def curve_pairs(scale: Scale) -> list[Pair]:
    """The first pair of each teacher."""
    return list({pair.teacher: pair for pair in reversed(scale.pairs)}.values())[::-1]


def needs(scale: Scale) -> list[Part]:
    return [Part(pair, "teacher", Scoring(teacher(pair))) for pair in curve_pairs(scale)]


def results(scale: Scale, rows: Sequence[Row]) -> Results:
    figures, tables = [], []
    for pair in curve_pairs(scale):
        points = only(rows, kind="point", pair=pair.name, arm="teacher")
        lines = []
        if points:
            x, y = (normalised(np.array([point[name] for point in points])) for name in ("information", "accuracy"))
            chosen = [point["epoch"] for point in points if point["chosen"]]
            figures.append(plane_chart(pair.teacher, points, chosen=chosen))
            lines = [
                [f"{point['epoch']}{', chosen' if point['chosen'] else ''}", f"{point['information']:.4f}",
                 f"{point['accuracy']:.2f}", f"{a:.2f}", f"{b:.2f}", f"{a + b:.2f}"]
                for point, a, b in zip(points, x, y, strict=True)
            ]  # fmt: skip
        columns = ["epoch", "I(X;F)", "I(Y;F), %", "I(X;F) normalised", "I(Y;F) normalised", "sum"]
        note = f"I(X;F): minus the decoder's excess loss, in nats a pixel. {images_note(scale, 'selection')}"
        tables.append(Table(f"The checkpoints of {pair.teacher}", columns, lines, note))
    return Results(tables=tables, figures=figures)
