"""The report's figures as data (`charts`). `plot` draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config import CORRELATION_KINDS, EstimatorConfig, information_unit
from ..errors import pluralize
from ..records.base import DataRecord
from ..records.tuning import TrialRecord, TuneRecord
from ..selection import normalized
from .charts import Chart, Heatmaps, Series
from .collect import Collected, Scored
from .tables import setting_name
from .variants import Variant

Point = Mapping[str, Any]  # of a plane: epoch, information, accuracy (in percent), their errors, and its file


def points_of(scored: Scored) -> list[Point]:
    """Return the points of a scored trajectory, as the charts of the information plane take them."""
    run = scored.trajectory
    return [
        {
            "epoch": point.epoch,
            "accuracy": 100 * point.accuracy,
            "accuracy_se": 100 * point.accuracy_se,
            "information": point.image_information,
            "information_se": point.image_information_se,
            "information_sd": point.image_information_sd,
            "file": run[point.epoch].path.name if point.epoch in run else "",
        }
        for point in scored.plane.points
    ]


def plane_chart(name: str, points: Sequence[Point], *, chosen: Sequence[int], unit: str = "epoch") -> Chart:
    """Return a trajectory on the normalized information plane (Fig. 7), with the chosen epochs as stars.

    A dotted line through each star joins the points of equal sum, by which Algorithm 1 chooses.
    """
    x, y = (normalized(np.array([point[key] for point in points])).tolist() for key in ("information", "accuracy"))
    epochs = [point["epoch"] for point in points]
    hover = [
        f"sum {a + b:.2f} = {a:.2f} + {b:.2f}\n{_point_text(point, unit)}"
        for point, a, b in zip(points, x, y, strict=True)
    ]
    guides, stars = [], []
    for index in [epochs.index(epoch) for epoch in chosen if epoch in epochs]:
        total = x[index] + y[index]
        ends = [max(0.0, total - 1), min(1.0, total)]
        guides.append(Series(name="equal sums", x=ends, y=[total - end for end in ends], style="guide"))
        stars.append(
            Series(
                name=f"chosen: {unit} {epochs[index]}",
                x=[x[index]],
                y=[y[index]],
                hover=[hover[index]],
                style="points",
                symbol="star",
                color=1,
            )
        )
    labels = [str(epoch) for epoch in epochs]
    return Chart(
        title=f"Information plane of {name}",
        x_title="I(X;F), normalized",
        y_title="I(Y;F), normalized",
        series=[*guides, Series(name=f"checkpoints, by {unit}", x=x, y=y, hover=hover, labels=labels, color=0), *stars],
        caption=f"Upper right is better: Algorithm 1 chooses the largest sum. Numbers are {unit}s."
        + (" A star is a checkpoint that `select` chose, by Algorithm 1, another rule or pilot runs." if stars else ""),
        alt=f"The checkpoints of {name} by normalized I(X;F) and I(Y;F)",
    )


def curves_chart(
    title: str,
    points_by_name: Mapping[str, Sequence[Point]],
    *,
    estimator: str = "decoder",
    colors: Sequence[int] | None = None,
) -> Chart:
    """Return several trajectories on one plane, not normalized (Fig. 4 and 6), with the last checkpoints larger."""
    series = []
    for number, (name, points) in enumerate(points_by_name.items()):
        labels = [""] * len(points)
        labels[0], labels[-1] = str(points[0]["epoch"]), str(points[-1]["epoch"])
        series.append(
            Series(
                name=name,
                x=[point["information"] for point in points],
                y=[point["accuracy"] for point in points],
                hover=[f"{name}\n{_point_text(point, 'epoch')}" for point in points],
                labels=labels,
                highlight=[len(points) - 1],
                color=colors[number] if colors else None,
            )
        )
    return Chart(
        title=title,
        x_title="I(X;F)",
        y_title="I(Y;F) by accuracy, %",
        series=series,
        caption="The larger point is the last checkpoint of a run; numbers are epochs. I(X;F) by "
        f"{estimator}, larger for more information: {information_unit(estimator)}.",
        alt="The checkpoints of several runs by I(X;F) and accuracy",
    )


def _point_text(point: Point, unit: str) -> str:
    sd = "" if point["information_sd"] is None else f", sd over fits {point['information_sd']:.4f}"
    return (
        f"{unit} {point['epoch']}\naccuracy {point['accuracy']:.1f} ± {point['accuracy_se']:.1f}%\nI(X;F) "
        f"{point['information']:.4f} ± {point['information_se']:.4f} over images{sd}\n{point['file']}"
    )


def curves_charts(collected: Collected) -> list[Chart]:
    """Return one chart for each group of trajectories that were scored in the same way on the same images."""
    groups: dict[tuple[EstimatorConfig, DataRecord], dict[str, list[Point]]] = {}
    for scored in collected.scored:
        settings = scored.plane.settings
        groups.setdefault((settings.estimator_config, settings.data), {})[scored.name] = points_of(scored)
    return [
        curves_chart(f"{len(points)} trajectories on one information plane", points, estimator=config.estimator)
        for (config, _), points in groups.items()
        if len(points) > 1
    ]


def students_charts(collected: Collected) -> list[Chart]:
    """Return a chart for each family of students: accuracy against the epoch of the single teacher (Fig. 2)."""
    charts = []
    for variants in collected.families():
        single = [variant for variant in variants if len(variant.teachers) == 1 and not variant.distillation]
        if len({variant.teachers[0][1] for variant in single}) > 1:
            charts.append(_students_chart(variants, sorted(single, key=lambda variant: variant.teachers[0][1])))
    return charts


def _students_chart(variants: Sequence[Variant], single: Sequence[Variant]) -> Chart:
    epochs, series = [variant.teachers[0][1] for variant in single], []
    baseline = next((variant for variant in variants if variant.from_scratch), None)
    if baseline is not None:
        ends = [min(epochs), max(epochs)]
        level: dict[str, Any] = {"x": ends, "y": [baseline.mean] * 2, "error": [baseline.sd] * 2}
        series.append(Series(name="no teacher", **level, style="hline", color=3))
    series.append(
        Series(
            name="one checkpoint as teacher",
            x=epochs,
            y=[variant.mean for variant in single],
            error=[variant.sd for variant in single],
            hover=[f"{variant.label}\n{variant.text}%, n = {variant.n}" for variant in single],
            color=0,
        )
    )
    series += [
        Series(
            name=f"ensemble: {variant.label}",
            x=[max(epochs)],
            y=[variant.mean],
            error=[variant.sd],
            hover=[f"{variant.label}\n{variant.text}%, n = {variant.n}"],
            style="points",
            symbol="diamond",
            color=2,
        )
        for variant in variants
        if len(variant.teachers) > 1
    ]
    student = variants[0].student
    return Chart(
        title=f"{student}: accuracy against the teacher's epoch",
        x_title="epoch of the teacher",
        y_title=f"test accuracy of {student}, %",
        series=series,
        caption="Bars and the gray band are one standard deviation over seeds.",
        alt=f"Test accuracy of {student} by the epoch of its teacher",
    )


def tune_chart(name: str, result: TuneRecord) -> Chart:
    """Return the trials of a tune search over the first two settings that vary, with contours of the accuracy.

    With one setting, the chart is a line of accuracy against that setting.
    """
    varied = [name for name, values in result.space.items() if len(values) > 1] or list(result.space)
    settings, trials = varied[:2], result.trials
    titles = [setting_name(setting) for setting in settings]
    accuracy = f"{'validation' if result.data.select_on == 'val' else 'test'} accuracy, %"
    finished = [trial for trial in trials if trial.accuracy is not None]
    stopped = [trial for trial in trials if trial.accuracy is None]
    best = [trial for trial in finished if result.best is not None and trial.trial == result.best.trial]

    def series(label: str, some: Sequence[TrialRecord], **style: Any) -> Series:
        x = [trial.values[settings[0]] for trial in some]
        y = [trial.values[settings[1]] if len(settings) > 1 else 100 * (trial.accuracy or 0.0) for trial in some]
        return Series(name=label, x=x, y=y, hover=[_trial_text(trial) for trial in some], **style)

    contour = None
    if len(settings) == 1:
        drawn = [series("trials", sorted(finished, key=lambda trial: trial.values[settings[0]]), color=0)]
    else:
        drawn = [
            series("stopped early", stopped, style="points", symbol="x", color=5),
            series("finished", finished, style="points", color=4),
        ]
        points = np.array([drawn[1].x, drawn[1].y])
        if len(finished) > 2 and np.linalg.matrix_rank(points - points[:, :1]) == 2:  # points on a line span no area
            contour = (drawn[1].x, drawn[1].y, [100 * (trial.accuracy or 0.0) for trial in finished])
    drawn.append(series("best", best, style="points", symbol="star", color=1))
    x_log, x_ticks = _scale(settings[0], trials)
    y_log, y_ticks = _scale(settings[1], trials) if len(settings) > 1 else (False, None)
    return Chart(
        title=f"Tuning {' and '.join(titles)}: {name}",
        x_title=titles[0],
        y_title=titles[1] if len(settings) > 1 else accuracy,
        series=drawn,
        caption=f"{result.student} distilled from {', '.join(result.teacher_refs)}, method {result.method}; "
        f"{len(trials)} of {pluralize(result.planned, 'trial')}.",
        alt=f"{accuracy.capitalize()} by {' and '.join(titles)}",
        log_x=x_log,
        log_y=y_log,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        contour=contour,
        contour_title=accuracy,
    )


def _scale(setting: str, trials: Sequence[TrialRecord]) -> tuple[bool, list[float] | None]:
    """Return whether the axis of a setting is logarithmic, and its ticks: the values tried, where they are few."""
    values = sorted({trial.values[setting] for trial in trials})
    is_log = bool(values) and setting != "alpha" and values[0] > 0
    return is_log, values if is_log and len(values) <= min(10, len(trials) / 2) else None


def _trial_text(trial: TrialRecord) -> str:
    outcome = f"stopped {trial.stopped}" if trial.accuracy is None else f"{100 * trial.accuracy:.2f}%"
    return "\n".join([*(f"{setting_name(name)} {value:g}" for name, value in trial.values.items()), outcome])


def correlation_heatmaps(result: Mapping[str, Any], kind: str) -> Heatmaps:
    """Return the class similarity (Fig. 5) of one checkpoint, or of two and their difference."""
    maps = list(result[kind]["similarity"])
    names = [checkpoint["ref"] for checkpoint in result["checkpoints"]]
    caption = f"Classes are ordered by {result['order']}."
    if "difference" in result[kind]:
        maps.append(result[kind]["difference"])
        names.append("first minus second")
        caption += " In the last map, two classes are more similar to the first checkpoint where blue, to the second "
        caption += "where red."
    return Heatmaps(
        title=f"Class correlation: {CORRELATION_KINDS[kind].format(**result)}",
        names=names,
        classes=result["classes"],
        maps=maps,
        caption=caption,
        alt=f"Heatmaps of the similarity of {len(result['classes'])} classes",
    )
