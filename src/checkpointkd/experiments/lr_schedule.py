"""Which schedule of the learning rate gives the paper's half-way accuracy: cosine, or the authors' code's steps."""

from __future__ import annotations

from collections.abc import Sequence

from ..recipes import recipe as recipe_of
from ..reports.charts import Chart, Series, Table
from .figure7 import best_by_sum, curve_pairs
from .paper_numbers import CHOSEN
from .presets import Pair, Preset
from .results import Results, Row, images_note, measured, only, published
from .tasks import CheckpointChoice, Item, ScoreTask, TrainTask

TITLE = "The schedule of the teacher's learning rate"
WHICH = {"midpoint": "half-way", "last": "last"}


def recipes(preset: Preset) -> list[str]:
    """The teachers' recipe and those that it is compared with."""
    return list(dict.fromkeys((preset.teacher_recipe, *preset.schedules)))


def needs(preset: Preset) -> list[Item]:
    parts = []
    for pair in curve_pairs(preset):
        for name in recipes(preset):
            run = TrainTask(pair.teacher, "teacher", recipe=None if name == preset.teacher_recipe else name)
            parts += [measured(pair, f"{name}, {which}", CheckpointChoice(run, which)) for which in WHICH]
            parts += [
                Item(pair, f"{name}, decoder", ScoreTask(run)),
                Item(pair, f"{name}, ridge", ScoreTask(run, "ridge")),
            ]
    return parts


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    lines = []
    for pair in curve_pairs(preset):
        for name in recipes(preset):
            accuracies = [only(rows, kind="measured", pair=pair.name, arm=f"{name}, {which}") for which in WHICH]
            planes = [_points(rows, pair, f"{name}, {estimator}") for estimator in ("decoder", "ridge")]
            lines.append(
                [
                    f"{pair.teacher}, {name} ({recipe_of(name).lr_schedule})",
                    *(f"{found[0]['accuracy']:.2f}" if found else "—" for found in accuracies),
                    *(str(best_by_sum(points) or "undecided") if points else "—" for points in planes),
                ]
            )
        if known := published(preset, pair):
            shown = [f"{known[name]:.2f}" if name in known else "" for name in ("teacher, midpoint", "teacher, last")]
            chosen = CHOSEN.get(pair.teacher, "") if preset.dataset == "cifar100" else ""
            lines.append([f"{pair.teacher}, the paper", *shown, f"{chosen}", ""])
    columns = [
        "teacher, recipe (schedule)",
        "half-way, %",
        "full, %",
        "chosen by the decoder, epoch",
        "chosen by ridge, epoch",
    ]
    note = f"One run each. {images_note(preset, 'test')}"
    charts = [_chart(preset, rows, pair) for pair in curve_pairs(preset)]
    return Results(
        tables=[Table("Teachers by their schedule", columns, lines, note)],
        figures=[chart for chart in charts if chart.series],
        notes=[] if len(recipes(preset)) > 1 else ["This scale has one schedule: there is nothing to compare it with."],
    )


def _points(rows: Sequence[Row], pair: Pair, arm: str) -> list[Row]:
    return only(rows, kind="point", pair=pair.name, arm=arm)


def _chart(preset: Preset, rows: Sequence[Row], pair: Pair) -> Chart:
    series = []
    for number, name in enumerate(recipes(preset)):
        if points := _points(rows, pair, f"{name}, decoder"):
            series.append(
                Series(
                    name=f"{name} ({recipe_of(name).lr_schedule})",
                    x=[point["epoch"] for point in points],
                    y=[point["accuracy"] for point in points],
                    hover=[f"epoch {point['epoch']}: {point['accuracy']:.2f}%, {point['file']}" for point in points],
                    color=number,
                )
            )
    known = published(preset, pair)
    if series and "teacher, midpoint" in known:
        series.append(
            Series(
                name="the paper",
                x=[preset.teacher_epochs / 2, preset.teacher_epochs],
                style="points",
                symbol="star",
                y=[known["teacher, midpoint"], known["teacher, last"]],
                color=3,
            )
        )
    return Chart(
        title=f"{pair.teacher}: accuracy by epoch and schedule",
        x_title="epoch",
        y_title="accuracy, %",
        series=series,
        caption=f"{images_note(preset, 'val')} The paper's two points are test accuracies.",
        alt=f"Accuracy of {pair.teacher} by epoch, for each schedule of the learning rate",
    )
