"""Figure 7: Algorithm 1's choice on the normalized information plane (§5), by both estimators of I(X;F)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..reports.charts import Table
from ..reports.figures import plane_chart
from ..selection import normalized
from .paper_numbers import CHOSEN
from .presets import Pair, Preset
from .results import Results, Row, images_note, only
from .tasks import Item, ScoreTask, teacher

TITLE = "Figure 7: the choice on the information plane"


def curve_pairs(preset: Preset) -> list[Pair]:
    """The first pair of each teacher."""
    return list({pair.teacher: pair for pair in reversed(preset.pairs)}.values())[::-1]


def needs(preset: Preset) -> list[Item]:
    return [
        part
        for pair in curve_pairs(preset)
        for part in (
            Item(pair, "teacher", ScoreTask(teacher(pair))),
            Item(pair, "teacher, ridge", ScoreTask(teacher(pair), "ridge")),
        )
    ]


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    figures, tables = [], []
    for pair in curve_pairs(preset):
        points, by_ridge = (only(rows, kind="point", pair=pair.name, arm=arm) for arm in ("teacher", "teacher, ridge"))
        lines = []
        if points:
            x, y = (normalized(np.array([point[name] for point in points])) for name in ("information", "accuracy"))
            chosen = [point["epoch"] for point in points if point["chosen"]]
            figures.append(plane_chart(pair.teacher, points, chosen=chosen))
            ridge = {point["epoch"]: f"{point['information']:.3f}" for point in by_ridge}
            lines = [
                [
                    f"{point['epoch']}{', chosen' if point['chosen'] else ''}",
                    f"{point['information']:.4f}",
                    f"{point['accuracy']:.2f}",
                    f"{a:.2f}",
                    f"{b:.2f}",
                    f"{a + b:.2f}",
                    ridge.get(point["epoch"], ""),
                ]
                for point, a, b in zip(points, x, y, strict=True)
            ]
        columns = ["epoch", "I(X;F)", "I(Y;F), %", "I(X;F) normalized", "I(Y;F) normalized", "sum", "I(X;F) by ridge"]
        note = (
            f"I(X;F): minus the excess loss a pixel of decoders of {preset.decoder_steps} steps, {preset.decoder_seeds} "
            f"fits, a proxy; by ridge, in nats a patch{_of_images(by_ridge)}. {images_note(preset, 'val')}"
            f"{_agreement(points, by_ridge)}{_theirs(preset, pair)}"
        )
        tables.append(Table(f"The checkpoints of {pair.teacher}", columns, lines, note))
        best = best_by_sum(by_ridge)
        if best is not None:
            figures.append(plane_chart(f"{pair.teacher}, by ridge", by_ridge, chosen=[best]))
    return Results(tables=tables, figures=figures)


def best_by_sum(points: Sequence[Row]) -> int | None:
    """The epoch of the checkpoint with the largest sum of normalized informations, of several the earliest (Algorithm
    1); None where I(X;F) tells nothing.

    >>> best_by_sum([{"information": 2, "accuracy": 1, "epoch": 1}, {"information": 1, "accuracy": 4, "epoch": 2}])
    1
    """
    if len({point["information"] for point in points}) < 2:
        return None
    x, y = (normalized(np.array([point[name] for point in points], float)) for name in ("information", "accuracy"))
    return points[int((x + y).argmax())]["epoch"]


def _of_images(by_ridge: Sequence[Row]) -> str:
    """On how many of the images ridge was measured, its accuracies too."""
    known = {point["images"] for point in by_ridge}
    return f", on {known.pop():,} of the images, as are the accuracies of its figure" if known else ""


def _theirs(preset: Preset, pair: Pair) -> str:
    """What the paper chose."""
    known = preset.dataset == "cifar100" and pair.teacher in CHOSEN
    return f" The paper's choice is epoch {CHOSEN[pair.teacher]} of 200." if known else ""


def _agreement(points: Sequence[Row], by_ridge: Sequence[Row]) -> str:
    """How well both estimators agree on the order, and what each would choose."""
    from scipy.stats import spearmanr

    known = {point["epoch"]: point["information"] for point in by_ridge}
    both = [(point["information"], known[point["epoch"]]) for point in points if point["epoch"] in known]
    if not both:
        return ""
    if len(both) < 3 or best_by_sum(by_ridge) is None or best_by_sum(points) is None:
        return " Both estimators can't be compared: one tells the checkpoints not apart, or there are too few."
    rank = spearmanr(*zip(*both, strict=True)).statistic  # type: ignore[attr-defined]
    return (
        f" Spearman's rank correlation of both estimators over {len(both)} checkpoints is {rank:.2f}; by ridge "
        f"Algorithm 1 would choose epoch {best_by_sum(by_ridge)}."
    )
