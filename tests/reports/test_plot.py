"""The data of the figures against the runs, and what is drawn against the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from msgspec import structs

import checkpointkd as ckd
from checkpointkd import records
from checkpointkd.records.tuning import BestTrialRecord, TrialRecord, TuneRecord
from checkpointkd.reports.charts import Chart, Heatmaps, Series
from checkpointkd.reports.collect import collect
from checkpointkd.reports.figures import curves_charts, plane_chart, points_of, students_charts, tune_chart
from checkpointkd.reports.plot import KINDS, _draw_chart, draw

SVG = "{http://www.w3.org/2000/svg}"


def _drawn(chart: Chart) -> dict[str, list[list[float]]]:
    """Return the coordinates that Matplotlib draws, x and y, by the name of the series."""
    canvas = Canvas()
    _draw_chart(canvas, chart)
    axes: Any = canvas.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    lines |= {container.get_label(): container.lines[0] for container in axes.containers}
    return {name: [list(line.get_xdata()), list(line.get_ydata())] for name, line in lines.items()}


def _texts(svg: bytes, tag: str = "text") -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}{tag}")]


def test_figures_draw_the_data(runs: Path):
    collected = collect(runs)
    (scored,) = collected.scored
    plane = plane_chart(scored.name, points_of(scored), chosen=[4])
    sums, checkpoints, star = plane.series
    assert checkpoints.labels == ["1", "2", "3", "4"]
    assert (min(checkpoints.x), max(checkpoints.x), min(checkpoints.y), max(checkpoints.y)) == (0, 1, 0, 1)
    assert (star.name, star.x, star.y) == ("chosen: epoch 4", [checkpoints.x[3]], [checkpoints.y[3]])
    total = round(star.x[0] + star.y[0], 9)
    assert {round(x + y, 9) for x, y in zip(sums.x, sums.y, strict=True)} == {total}
    assert _drawn(plane)["checkpoints, by epoch"] == [checkpoints.x, checkpoints.y]
    assert _drawn(plane)["chosen: epoch 4"] == [star.x, star.y]

    (students,) = students_charts(collected)
    scratch, curve, ensemble = students.series
    variants = collected.variants
    assert (scratch.y, scratch.error) == ([variants[0].mean] * 2, [variants[0].sd] * 2)
    assert (curve.x, curve.y) == ([2, 4], [variants[1].mean, variants[2].mean])
    assert ensemble.y == [variants[3].mean]
    assert _drawn(students)["one checkpoint as teacher"] == [curve.x, curve.y]
    assert _drawn(students)["no teacher"] == [scratch.x, scratch.y]


def test_trajectories_scored_alike_share_a_plane(runs: Path):
    assert curves_charts(collect(runs)) == []
    for student in ("scratch-0", "two-0"):
        ckd.score(runs / student, decoder_steps=4, decoder_seeds=2)
    ckd.score(runs / "four-0", decoder_steps=5, decoder_seeds=2)
    (chart,) = curves_charts(collect(runs))
    series_by_name = {series.name: series for series in chart.series}
    assert set(series_by_name) == {"scratch-0", "teacher", "two-0"}
    for scored in collect(runs).scored:
        if scored.name in series_by_name:
            series, points = series_by_name[scored.name], scored.plane.points
            assert series.x == [point.image_information for point in points]
            assert series.y == [100 * point.accuracy for point in points]
            assert _drawn(chart)[series.name] == [series.x, series.y]
    assert "3 trajectories on one information plane" in ckd.report(runs).read_text(encoding="utf-8")


def _with_trials(result: TuneRecord, trials: list[TrialRecord], **fields: Any) -> TuneRecord:
    best = max(trials, key=lambda trial: trial.accuracy or 0.0)
    best = records.convert({**records.plain(best), "accuracy_se": 0.1, "comparable": 0}, BestTrialRecord)
    return structs.replace(result, trials=tuple(trials), best=best, **fields)


def test_a_tune_search_over_two_settings_has_contours(tuned: Path):
    result = collect(tuned).tunings["tune"]
    assert result.best is not None
    chart = tune_chart("tune", result)
    assert (chart.x_title, chart.y_title) == ("α", "τ")
    stopped, finished, best = chart.series
    whole = [trial for trial in result.trials if trial.accuracy is not None]
    assert finished.x == [trial.values["alpha"] for trial in whole]
    assert finished.y == [trial.values["tau"] for trial in whole]
    assert len(stopped.x) == 6 - len(whole)
    assert best.x == [result.best.values["alpha"]]
    trials = [  # as if none had been pruned; how many are differs by machine
        structs.replace(trial, accuracy=trial.accuracy or 0.01 * (number + 1))
        for number, trial in enumerate(result.trials)
    ]
    chart = tune_chart("tune", _with_trials(result, trials))
    finished = chart.series[1]
    assert chart.contour == (finished.x, finished.y, [100 * (trial.accuracy or 0) for trial in trials])
    assert _drawn(chart)["finished"] == [finished.x, finished.y]
    assert b"validation accuracy, %" in draw(chart, ["svg"])["svg"], "the color bar of the contours"


def test_a_tune_search_over_one_setting_is_a_line(tuned: Path):
    result = collect(tuned).tunings["tune"]
    trials = [trial for trial in result.trials if trial.values["tau"] == 2]
    chart = tune_chart("tune", _with_trials(result, trials, space={**result.space, "tau": (2.0,)}))
    assert (chart.x_title, chart.y_title) == ("α", "validation accuracy, %")
    assert chart.series[0].x == sorted(trial.values["alpha"] for trial in trials if trial.accuracy is not None)


def test_of_overlapping_labels_the_last_is_shown():
    points = Series(name="", x=[0.0, 0.999, 1.0], y=[0.0, 1.0, 1.0], labels=["10", "20", "30"])
    texts = _texts(draw(Chart(title="", x_title="x", y_title="y", series=[points]))["svg"])
    assert ("10" in texts, "20" in texts, "30" in texts) == (True, False, True)


def test_any_name_is_plain_text_in_an_svg():
    name = 'bell\x07\x1b[1m & <b>"$x_1$'
    series = [Series(name=name, x=[1, 2], y=[1, 2], hover=[name, f"{name}\nsecond line"])] * 2
    svg = draw(Chart(title="", x_title=name, y_title="y", series=series))["svg"]
    shown = r'bell\x07\x1b[1m & <b>"$x_1$'
    assert _texts(svg).count(shown) == 3, "the axis, and two entries of the legend"
    assert _texts(svg, "title") == [shown, f"{shown}\nsecond line"] * 2


def test_each_point_has_its_tooltip():
    """Error bars have marks of their own, and the series before may have no tooltips."""
    chart = Chart(
        title="",
        x_title="x",
        y_title="y",
        series=[
            Series(name="without", x=[1, 2], y=[1, 2], error=[0.1, 0.1]),
            Series(name="with", x=[1, 2, 3], y=[2, 1, 0], error=[0.1, 0.1, 0.1], hover=["a", "b", "c"]),
        ],
    )
    root = ElementTree.fromstring(draw(chart)["svg"])
    marks = [mark for mark in root.iter(f"{SVG}use") if mark.find(f"{SVG}title") is not None]
    assert [mark[0].text for mark in marks] == ["a", "b", "c"]
    x, y = (np.array([float(mark.attrib[axis]) for mark in marks]) for axis in "xy")
    assert np.allclose(np.diff(x, 2), 0, atol=1e-3)
    assert x[0] < x[1]
    assert y[0] < y[1], "y grows downward in SVG"
    assert not [group for group in root.iter(f"{SVG}g") if "id" in group.attrib], "ids would repeat on a page"


@pytest.mark.parametrize("kind", KINDS)
def test_equal_figures_are_equal_files(kind: str):
    chart = Chart(title="", x_title="x", y_title="y", series=[Series(name="a", x=[1, 2], y=[1, 2])])
    maps = Heatmaps(title="", names=["a"] * 3, classes=["b", "c"], maps=[[[1, 0.5], [0.5, 1]]] * 3)
    for figure in (chart, maps):
        assert draw(figure, [kind])[kind] == draw(figure)[kind]
