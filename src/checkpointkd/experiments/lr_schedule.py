"""Which learning-rate schedule gives the paper's midpoint accuracy: cosine, or the steps of the authors' code."""

from __future__ import annotations

from collections.abc import Sequence

from ..recipes import recipe as get_recipe
from ..reports.charts import Chart, Series, Table
from .figure7 import best_by_sum, curve_pairs
from .items import Item, evaluation
from .paper_numbers import CHOSEN
from .presets import Pair, Preset
from .results import Results, Row, images_note, only, paper_cells, paper_numbers
from .tasks import CheckpointChoice, ScoreTask, TrainTask

TITLE = "The learning-rate schedule of the teacher"
CHECKPOINTS = ("midpoint", "last")
COLUMNS = [
    "teacher, recipe (schedule)",
    "midpoint, %",
    "last, %",
    "epoch chosen by the decoder",
    "epoch chosen by ridge",
]


def recipes(preset: Preset) -> list[str]:
    """Return the teachers' recipe and those that it is compared with."""
    return list(dict.fromkeys((preset.teacher_recipe, *preset.compared_recipes)))


def needs(preset: Preset) -> list[Item]:
    items = []
    for pair in curve_pairs(preset):
        for name in recipes(preset):
            run = TrainTask(pair.teacher, "teacher", recipe=None if name == preset.teacher_recipe else name)
            items += [evaluation(pair, f"{name}, {which}", CheckpointChoice(run, which)) for which in CHECKPOINTS]
            items += [
                Item(pair, f"{name}, decoder", ScoreTask(run)),
                Item(pair, f"{name}, ridge", ScoreTask(run, "ridge")),
            ]
    return items


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    lines = []
    for pair in curve_pairs(preset):
        for name in recipes(preset):
            measured = [
                only(rows, kind="measured", pair=pair.name, variant=f"{name}, {which}") for which in CHECKPOINTS
            ]
            planes = [_points(rows, pair, f"{name}, {estimator}") for estimator in ("decoder", "ridge")]
            lines.append(
                [
                    f"{pair.teacher}, {name} ({get_recipe(name).lr_schedule})",
                    *(f"{found[0]['accuracy']:.2f}" if found else "—" for found in measured),
                    *(str(best_by_sum(points) or "undecided") if points else "—" for points in planes),
                ]
            )
        if paper_numbers(preset, pair):
            accuracies = paper_cells(preset, pair, [f"teacher, {which}" for which in CHECKPOINTS])
            chosen = CHOSEN.get(pair.teacher, "") if preset.dataset == "cifar100" else ""
            lines.append([f"{pair.teacher}, paper", *accuracies, f"{chosen}", ""])
    note = f"One run each. {images_note(preset, 'test')}"
    charts = [_chart(preset, rows, pair) for pair in curve_pairs(preset)]
    one_schedule = "This preset has one learning-rate schedule, so there is nothing to compare."
    return Results(
        tables=[Table("Teachers by learning-rate schedule", COLUMNS, lines, note)],
        figures=[chart for chart in charts if chart.series],
        notes=[] if len(recipes(preset)) > 1 else [one_schedule],
    )


def _points(rows: Sequence[Row], pair: Pair, variant: str) -> list[Row]:
    return only(rows, kind="point", pair=pair.name, variant=variant)


def _chart(preset: Preset, rows: Sequence[Row], pair: Pair) -> Chart:
    series = []
    for color, name in enumerate(recipes(preset)):
        if points := _points(rows, pair, f"{name}, decoder"):
            series.append(
                Series(
                    name=f"{name} ({get_recipe(name).lr_schedule})",
                    x=[point["epoch"] for point in points],
                    y=[point["accuracy"] for point in points],
                    hover=[f"epoch {point['epoch']}: {point['accuracy']:.2f}%, {point['file']}" for point in points],
                    color=color,
                )
            )
    numbers = paper_numbers(preset, pair)
    if series and "teacher, midpoint" in numbers:
        series.append(
            Series(
                name="paper",
                x=[preset.teacher_epochs / 2, preset.teacher_epochs],
                y=[numbers["teacher, midpoint"], numbers["teacher, last"]],
                style="points",
                symbol="star",
                color=3,
            )
        )
    return Chart(
        title=f"{pair.teacher}: accuracy by epoch and learning-rate schedule",
        x_title="epoch",
        y_title="accuracy, %",
        series=series,
        caption=f"{images_note(preset, 'val')} The paper's two points are test accuracies.",
        alt=f"Accuracy of {pair.teacher} by epoch, for each learning-rate schedule",
    )
