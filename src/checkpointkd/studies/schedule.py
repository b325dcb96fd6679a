"""Which schedule of the learning rate gives the paper's half-way accuracy: cosine, or the authors' code's steps."""

from __future__ import annotations

from collections.abc import Sequence

from ..charts import Chart, Series, Table
from ..recipes import recipe as recipe_of
from .figure7 import best_by_sum, curve_pairs
from .published import CHOSEN
from .rows import Results, Row, images_note, measured, only, published
from .scales import Pair, Scale
from .work import Part, Picked, Scoring, Training

TITLE = "The schedule of the teacher's learning rate"
WHICH = {"half": "half-way", "full": "full"}


def recipes(scale: Scale) -> list[str]:
    """The teachers' recipe and those that it is compared with."""
    return list(dict.fromkeys((scale.teacher_recipe, *scale.schedules)))


def needs(scale: Scale) -> list[Part]:
    parts = []
    for pair in curve_pairs(scale):
        for name in recipes(scale):
            run = Training(pair.teacher, "teacher", recipe=None if name == scale.teacher_recipe else name)
            parts += [measured(pair, f"{name}, {which}", Picked(run, which)) for which in WHICH]
            parts += [Part(pair, f"{name}, decoder", Scoring(run)), Part(pair, f"{name}, ridge", Scoring(run, "ridge"))]
    return parts


def results(scale: Scale, rows: Sequence[Row]) -> Results:
    lines = []
    for pair in curve_pairs(scale):
        for name in recipes(scale):
            accuracies = [only(rows, kind="measured", pair=pair.name, arm=f"{name}, {which}") for which in WHICH]
            planes = [_points(rows, pair, f"{name}, {estimator}") for estimator in ("decoder", "ridge")]
            lines.append([
                f"{pair.teacher}, {name} ({recipe_of(name).schedule})",
                *(f"{found[0]['accuracy']:.2f}" if found else "—" for found in accuracies),
                *(str(best_by_sum(points) or "undecided") if points else "—" for points in planes),
            ])  # fmt: skip
        if known := published(scale, pair):
            shown = [f"{known[name]:.2f}" if name in known else "" for name in ("teacher, half", "teacher, full")]
            chosen = CHOSEN.get(pair.teacher, "") if scale.dataset == "cifar100" else ""
            lines.append([f"{pair.teacher}, the paper", *shown, f"{chosen}", ""])
    columns = ["teacher, recipe (schedule)", "half-way, %", "full, %", "chosen by the decoder, epoch",
               "chosen by ridge, epoch"]  # fmt: skip
    note = f"One run each. {images_note(scale, 'test')}"
    charts = [_chart(scale, rows, pair) for pair in curve_pairs(scale)]
    return Results(
        tables=[Table("Teachers by their schedule", columns, lines, note)],
        figures=[chart for chart in charts if chart.series],
        notes=[] if len(recipes(scale)) > 1 else ["This scale has one schedule: there is nothing to compare it with."],
    )


def _points(rows: Sequence[Row], pair: Pair, arm: str) -> list[Row]:
    return only(rows, kind="point", pair=pair.name, arm=arm)


def _chart(scale: Scale, rows: Sequence[Row], pair: Pair) -> Chart:
    series = []
    for number, name in enumerate(recipes(scale)):
        if points := _points(rows, pair, f"{name}, decoder"):
            series.append(
                Series(
                    name=f"{name} ({recipe_of(name).schedule})",
                    x=[point["epoch"] for point in points],
                    y=[point["accuracy"] for point in points],
                    hover=[f"epoch {point['epoch']}: {point['accuracy']:.2f} %, {point['file']}" for point in points],
                    colour=number,
                )
            )
    known = published(scale, pair)
    if series and "teacher, half" in known:
        series.append(
            Series(name="the paper", x=[scale.teacher_epochs / 2, scale.teacher_epochs], style="points", symbol="star",
                   y=[known["teacher, half"], known["teacher, full"]], colour=3)
        )  # fmt: skip
    return Chart(
        title=f"{pair.teacher}: accuracy by epoch and schedule",
        x_title="epoch",
        y_title="accuracy, %",
        series=series,
        caption=f"{images_note(scale, 'selection')} The paper's two points are test accuracies.",
        alt=f"Accuracy of {pair.teacher} by epoch, for each schedule of the learning rate",
    )
