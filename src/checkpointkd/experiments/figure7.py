"""Figure 7: Algorithm 1's choice on the normalized information plane (§5), with both estimators of I(X;F)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..reports.charts import Figure, Table
from ..reports.figures import plane_chart
from ..selection import normalized
from .items import Item, teacher
from .paper_numbers import CHOSEN
from .presets import Pair, Preset
from .results import Results, Row, images_note, only
from .tasks import ScoreTask

TITLE = "Figure 7: the choice on the information plane"
COLUMNS = ["epoch", "I(X;F)", "I(Y;F), %", "I(X;F) normalized", "I(Y;F) normalized", "sum", "I(X;F) by ridge"]


def curve_pairs(preset: Preset) -> list[Pair]:
    """Return the first pair of each teacher network."""
    return list({pair.teacher: pair for pair in reversed(preset.pairs)}.values())[::-1]


def needs(preset: Preset) -> list[Item]:
    return [
        item
        for pair in curve_pairs(preset)
        for item in (
            Item(pair, "teacher", ScoreTask(teacher(pair))),
            Item(pair, "teacher, ridge", ScoreTask(teacher(pair), "ridge")),
        )
    ]


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    figures: list[Figure] = []
    tables = []
    for pair in curve_pairs(preset):
        points = only(rows, kind="point", pair=pair.name, variant="teacher")
        ridge_points = only(rows, kind="point", pair=pair.name, variant="teacher, ridge")
        if points:
            chosen = [point["epoch"] for point in points if point["chosen"]]
            figures.append(plane_chart(pair.teacher, points, chosen=chosen))
        ridge_best = best_by_sum(ridge_points)
        if ridge_best is not None:
            figures.append(plane_chart(f"{pair.teacher}, by ridge", ridge_points, chosen=[ridge_best]))
        note = (
            f"I(X;F) by the decoder is a proxy: the negative excess loss per pixel, from {preset.decoder_seeds} "
            f"fits of "
            f"{preset.decoder_steps} steps. By ridge: in nats per patch{_ridge_images(ridge_points)}. "
            f"{images_note(preset, 'val')}"
            f"{_agreement(points, ridge_points)}{_paper_choice(preset, pair)}"
        )
        tables.append(Table(f"Checkpoints of {pair.teacher}", COLUMNS, _lines(points, ridge_points), note))
    return Results(tables=tables, figures=figures)


def _lines(points: Sequence[Row], ridge_points: Sequence[Row]) -> list[list[str]]:
    if not points:
        return []
    x, y = (normalized(np.array([point[name] for point in points])) for name in ("information", "accuracy"))
    ridge = {point["epoch"]: f"{point['information']:.3f}" for point in ridge_points}
    return [
        [
            f"{point['epoch']}{', chosen' if point['chosen'] else ''}",
            f"{point['information']:.4f}",
            f"{point['accuracy']:.2f}",
            f"{information:.2f}",
            f"{accuracy:.2f}",
            f"{information + accuracy:.2f}",
            ridge.get(point["epoch"], ""),
        ]
        for point, information, accuracy in zip(points, x, y, strict=True)
    ]


def best_by_sum(points: Sequence[Row]) -> int | None:
    """Return the epoch with the largest sum of both normalized estimates, the earliest of several (Algorithm 1).

    None if I(X;F) is the same at all checkpoints.

    >>> best_by_sum([{"information": 2, "accuracy": 1, "epoch": 1}, {"information": 1, "accuracy": 4, "epoch": 2}])
    1
    """
    if len({point["information"] for point in points}) < 2:
        return None
    x, y = (normalized(np.array([point[name] for point in points], float)) for name in ("information", "accuracy"))
    return points[int((x + y).argmax())]["epoch"]


def _ridge_images(ridge_points: Sequence[Row]) -> str:
    """Return the number of images that ridge was measured on."""
    if not ridge_points:
        return ""
    return f", on {ridge_points[0]['images']:,} of the images, as are the accuracies of its figure"


def _paper_choice(preset: Preset, pair: Pair) -> str:
    in_paper = preset.dataset == "cifar100" and pair.teacher in CHOSEN
    return f" The paper's choice is epoch {CHOSEN[pair.teacher]} of 200." if in_paper else ""


def _agreement(points: Sequence[Row], ridge_points: Sequence[Row]) -> str:
    """Return how well both estimators agree on the order of checkpoints, and what ridge would choose."""
    from scipy.stats import spearmanr

    ridge = {point["epoch"]: point["information"] for point in ridge_points}
    common = [(point["information"], ridge[point["epoch"]]) for point in points if point["epoch"] in ridge]
    if not common:
        return ""
    if len(common) < 3 or best_by_sum(ridge_points) is None or best_by_sum(points) is None:
        return " The estimators cannot be compared: there are too few checkpoints, or all have the same estimate."
    rank: float = spearmanr(*zip(*common, strict=True)).statistic  # type: ignore[attr-defined]
    return (
        f" Spearman's rank correlation of both estimators over {len(common)} checkpoints is {rank:.2f}. By ridge, "
        f"Algorithm 1 would choose epoch {best_by_sum(ridge_points)}."
    )
