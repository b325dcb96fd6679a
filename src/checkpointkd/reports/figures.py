"""What the report's figures show, as data (`charts`); `drawing` and `stills` draw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config import CORRELATION_KINDS, INFORMATION_UNITS, EstimatorConfig
from ..records import DataRecord
from ..selection import normalized
from .charts import Chart, Heatmaps, Series
from .collect import Collected, Scored

SYMBOLS: dict[str, str] = {"alpha": "α", "tau": "τ"}
Point = Mapping[str, Any]  # of a plane: epoch, information, accuracy (in percent), their errors, and its file


def points_of(scored: Scored) -> list[Point]:
    """A scored trajectory's points, as the figures of the plane take them."""
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
    """A trajectory on the normalized plane (Fig. 7 of the paper), what was chosen marked, on a line of equal sums."""
    x, y = (normalized(np.array([point[what] for point in points])).tolist() for what in ("information", "accuracy"))
    epochs = [point["epoch"] for point in points]
    hover = [
        f"sum {a + b:.2f} = {a:.2f} + {b:.2f}<br>{_said(point, unit)}" for point, a, b in zip(points, x, y, strict=True)
    ]
    series = [
        Series(name=f"checkpoints, by {unit}", x=x, y=y, hover=hover, words=[str(epoch) for epoch in epochs], color=0)
    ]
    for at in [epochs.index(epoch) for epoch in chosen if epoch in epochs]:
        total = x[at] + y[at]
        ends = [max(0.0, total - 1), min(1.0, total)]
        series.insert(0, Series(name="equal sums", x=ends, y=[total - end for end in ends], style="edge"))
        series.append(
            Series(
                name=f"chosen: {unit} {epochs[at]}",
                x=[x[at]],
                y=[y[at]],
                hover=[hover[at]],
                style="points",
                symbol="star",
                color=1,
            )
        )
    return Chart(
        title=f"The information plane of {name}",
        x_title="I(X;F), normalized",
        y_title="I(Y;F), normalized",
        series=series,
        caption=f"Up and to the right is better: Algorithm 1 chooses the largest sum; a star may be another rule's "
        f"choice, or probing's. Numbers are {unit}s.",
        alt=f"The checkpoints of {name} by normalized I(X;F) and I(Y;F)",
    )


def curves_chart(
    title: str,
    points_by_name: Mapping[str, Sequence[Point]],
    *,
    estimator: str = "decoder",
    colors: Sequence[int] | None = None,
) -> Chart:
    """Several trajectories on one plane, in their own units (Fig. 4 and 6), the last checkpoint of each marked."""
    return Chart(
        title=title,
        x_title="I(X;F)",
        y_title="I(Y;F) by accuracy, %",
        series=[
            Series(
                name=name,
                x=[point["information"] for point in points],
                y=[point["accuracy"] for point in points],
                hover=[f"{name}<br>{_said(point, 'epoch')}" for point in points],
                words=[
                    str(points[0]["epoch"]),
                    *[""] * (len(points) - 2),
                    *[str(points[-1]["epoch"])][: len(points) - 1],
                ],
                large=[len(points) - 1],
                color=colors[number] if colors else None,
            )
            for number, (name, points) in enumerate(points_by_name.items())
        ],
        caption="The large point is a run's last checkpoint; numbers are epochs. I(X;F) by "
        f"{estimator}, larger for more: {INFORMATION_UNITS[estimator]}.",
        alt="The checkpoints of several runs by I(X;F) and accuracy",
    )


def _said(point: Point, unit: str) -> str:
    by_fits = "" if point["information_sd"] is None else f", ± {point['information_sd']:.4f} (sd) by fits"
    return (
        f"{unit} {point['epoch']}<br>accuracy {point['accuracy']:.1f} ± {point['accuracy_se']:.1f}%<br>I(X;F) "
        f"{point['information']:.4f} ± {point['information_se']:.4f} by images{by_fits}<br>{point['file']}"
    )


def curves_charts(collected: Collected) -> list[Chart]:
    """A plane for trajectories that were measured on the same images alike."""
    groups: dict[tuple[EstimatorConfig, DataRecord], dict[str, list[Point]]] = {}
    for scored in collected.scored:
        settings = scored.plane.settings
        alike = (settings.estimator_config, settings.data)
        groups.setdefault(alike, {})[scored.name] = points_of(scored)
    return [
        curves_chart(f"{len(points)} trajectories on one information plane", points, estimator=alike[0].estimator)
        for alike, points in groups.items()
        if len(points) > 1
    ]


def students_charts(collected: Collected) -> list[Chart]:
    """Students' accuracy against the epoch of their single teacher (Fig. 2), and beside it arms that have no epoch: a
    figure for each family that had single teachers."""
    figures = []
    for arms in collected.families():
        plain = (arm for arm in arms if len(arm.teachers) == 1 and not arm.way)
        single = sorted(plain, key=lambda arm: arm.teachers[0][1])
        epochs = [arm.teachers[0][1] for arm in single]
        if len(set(epochs)) < 2:
            continue
        series = []
        alone = next((arm for arm in arms if arm.alone), None)
        if alone is not None:
            ends = [min(epochs), max(epochs)]
            series.append(
                Series(name="no teacher", x=ends, y=[alone.mean] * 2, error=[alone.sd] * 2, style="level", color=3)
            )
        series.append(
            Series(
                name="one checkpoint as teacher",
                x=epochs,
                y=[arm.mean for arm in single],
                error=[arm.sd for arm in single],
                hover=[f"{arm.label}<br>{arm.words}%, n = {arm.n}" for arm in single],
                color=0,
            )
        )
        for arm in (one for one in arms if len(one.teachers) > 1):
            hover = [f"{arm.label}<br>{arm.words}%"]
            series.append(
                Series(
                    name=f"ensemble: {arm.label}",
                    x=[max(epochs)],
                    y=[arm.mean],
                    error=[arm.sd],
                    hover=hover,
                    style="points",
                    symbol="diamond",
                    color=2,
                )
            )
        student = arms[0].student
        figures.append(
            Chart(
                title=f"{student}: accuracy against the teacher's epoch",
                x_title="epoch of the teacher",
                y_title=f"test accuracy of {student}, %",
                series=series,
                caption="Bars and the gray band: one standard deviation over seeds.",
                alt=f"Test accuracy of {student} by the epoch of its teacher",
            )
        )
    return figures


def search_chart(name: str, result: dict[str, Any]) -> Chart:
    """A search's trials over the first two settings that it varied, or over the one; contours between those that were
    finished."""
    varied = [name for name, values in result["space"].items() if len(values) > 1] or list(result["space"])
    names, trials = varied[:2], result["trials"]
    across = [str(SYMBOLS.get(one, one.replace("_", " "))) for one in names]
    accuracy = "accuracy on the selection images, %"
    done = [trial for trial in trials if trial["accuracy"] is not None]
    stopped = [trial for trial in trials if trial["accuracy"] is None]
    best = [trial for trial in done if result["best"] is not None and trial["trial"] == result["best"]["trial"]]

    def series(label: str, some: list[dict[str, Any]], **look: Any) -> Series:
        x = [trial["values"][names[0]] for trial in some]
        y = [trial["values"][names[1]] if len(names) > 1 else 100 * trial["accuracy"] for trial in some]
        return Series(name=label, x=x, y=y, hover=[_trial(trial) for trial in some], **look)

    found = []
    contour = None
    if len(names) == 1:
        found.append(series("trials", sorted(done, key=lambda trial: trial["values"][names[0]]), color=0))
    else:
        finished = series("finished", done, style="points", color=4)
        at = np.array([finished.x, finished.y])
        if len(done) > 2 and np.linalg.matrix_rank(at - at[:, :1]) == 2:  # points on one line span no area
            contour = (finished.x, finished.y, [100 * trial["accuracy"] for trial in done])
        found += [series("stopped early", stopped, style="points", symbol="x", color=5), finished]
    found.append(series("the best", best, style="points", symbol="star", color=1))
    logs, ticks = [], []
    for one in [*names, ""][:2]:
        values = sorted({trial["values"][one] for trial in trials}) if one else []
        logs.append(bool(values) and one != "alpha" and values[0] > 0)
        ticks.append(values if logs[-1] and len(values) <= min(10, len(trials) / 2) else None)
    return Chart(
        title=f"The search for {' and '.join(across)}: {name}",
        x_title=across[0],
        y_title=across[1] if len(names) > 1 else accuracy,
        series=found,
        caption=f"{result['student']} taught by {', '.join(result['teacher_refs'])}, method {result['method']}; "
        f"{len(trials)} of {result['planned']} trials.",
        alt=f"Accuracy on the selection images by {' and '.join(across)}",
        log_x=logs[0],
        log_y=logs[1],
        x_ticks=ticks[0],
        y_ticks=ticks[1],
        contour=contour,
        contour_title=accuracy,
    )


def _trial(trial: dict[str, Any]) -> str:
    reached = f"{100 * trial['accuracy']:.2f}%" if trial["accuracy"] is not None else f"stopped {trial['stopped']}"
    return "<br>".join([*(f"{SYMBOLS.get(name, name)} {value:g}" for name, value in trial["values"].items()), reached])


def correlation_heatmaps(found: dict[str, Any], kind: str) -> Heatmaps:
    """Class similarity (Fig. 5) of one checkpoint, or of two and their difference."""
    maps, names = list(found[kind]["similarity"]), [one["ref"] for one in found["checkpoints"]]
    differ = "difference" in found[kind]
    return Heatmaps(
        title=f"Class correlation: {CORRELATION_KINDS[kind].format(**found)}",
        names=[*names, "the first less the second"] if differ else names,
        classes=found["classes"],
        maps=[*maps, found[kind]["difference"]] if differ else maps,
        caption=f"Classes by {found['order']}"
        + (
            "; in the last map blue is where the first finds two classes more alike, red where the second does."
            if differ
            else "."
        ),
        alt=f"Heatmaps of the similarity of {len(found['classes'])} classes",
    )
