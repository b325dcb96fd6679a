"""Figures, in two steps: what is drawn, as data that tests read; then Plotly's drawing of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ..selection import normalised
from .collect import Collected, Scored

# Okabe and Ito's colours, distinguishable to the colour-blind.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SYMBOLS = {"alpha": "α", "tau": "τ"}
BLUE, ORANGE, GREEN, GREY = *OKABE_ITO[:3], "#808080"


@dataclass(frozen=True)
class PlaneData:
    """A trajectory on the normalised plane (Fig. 7 of the paper): one entry a checkpoint."""

    epochs: list[int]
    x: list[float]  # normalised I(X;F)
    y: list[float]  # normalised I(Y;F)
    hover: list[str]
    chosen: int | None  # an epoch


@dataclass(frozen=True)
class StudentsData:
    """Students' test accuracy against the epoch of their single teacher (Fig. 2), and the arms that have no epoch."""

    student: str
    epochs: list[int]
    mean: list[float]
    sd: list[float]
    hover: list[str]
    alone: tuple[float, float] | None  # mean and standard deviation without a teacher
    ensembles: list[tuple[str, float, float]]


def plane_data(scored: Scored) -> PlaneData:
    """What the plane's figure draws."""
    import numpy as np

    points = scored.plane.points
    x = normalised(np.array([point.image_information for point in points])).tolist()
    y = normalised(np.array([point.accuracy for point in points])).tolist()
    hover = [
        f"{scored.trajectory.unit} {point.epoch}<br>sum {a + b:.2f} = {a:.2f} + {b:.2f}<br>"
        f"accuracy {100 * point.accuracy:.1f} ± "
        f"{100 * point.accuracy_se:.1f} %<br>I(X;F) {point.image_information:.4f} ± "
        f"{point.image_information_se:.4f}<br>"
        f"{scored.trajectory[point.epoch].path.name if point.epoch in scored.trajectory else ''}"
        for point, a, b in zip(points, x, y, strict=True)
    ]
    chosen = scored.selection["epoch"] if scored.selection else None
    return PlaneData(scored.plane.epochs, x, y, hover, chosen)


def students_data(collected: Collected) -> list[StudentsData]:
    """What the students' figures draw: one figure for each family that had single teachers."""
    figures = []
    for arms in collected.families():
        plain = (arm for arm in arms if len(arm.teachers) == 1 and not arm.way)
        single = sorted(plain, key=lambda arm: arm.teachers[0][1])
        alone = next((arm for arm in arms if arm.alone), None)
        if len({arm.teachers[0][1] for arm in single}) > 1:
            figures.append(
                StudentsData(
                    student=arms[0].student,
                    epochs=[arm.teachers[0][1] for arm in single],
                    mean=[arm.mean for arm in single],
                    sd=[arm.sd for arm in single],
                    hover=[f"{arm.label}<br>{arm.mean:.2f} ± {arm.sd:.2f} %, n = {arm.n}" for arm in single],
                    alone=(alone.mean, alone.sd) if alone else None,
                    ensembles=[(arm.label, arm.mean, arm.sd) for arm in arms if len(arm.teachers) > 1],
                )
            )
    return figures


@dataclass(frozen=True)
class CurvesData:
    """Several trajectories on one plane, in their own units (Fig. 4 and 6): by name, epochs, I(X;F) and I(Y;F)."""

    estimator: str
    curves: dict[str, tuple[list[int], list[float], list[float]]]


def curves_data(collected: Collected) -> list[CurvesData]:
    """What the figures of several trajectories draw: one for those that were measured on the same images alike."""
    groups: dict[str, CurvesData] = {}
    for scored in collected.scored:
        settings = scored.plane.settings
        alike = json.dumps([settings[name] for name in ("estimator", "settings", "data")], sort_keys=True)
        points = scored.plane.points
        of_group = groups.setdefault(alike, CurvesData(settings["estimator"], {}))
        of_group.curves[scored.name] = (
            scored.plane.epochs,
            [point.image_information for point in points],
            [100 * point.accuracy for point in points],
        )
    return [data for data in groups.values() if len(data.curves) > 1]


def draw_curves(data: CurvesData) -> go.Figure:
    """The path of each trajectory on the plane, its last checkpoint marked."""
    figure = go.Figure()
    for number, (name, (epochs, x, y)) in enumerate(data.curves.items()):
        colour = OKABE_ITO[number % len(OKABE_ITO)]
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines+markers",
            marker={"size": [5] * (len(x) - 1) + [13], "color": colour},
            line={"color": colour, "dash": "solid" if number < len(OKABE_ITO) else "dot"},
            name=name,
            hovertext=[f"{name}, epoch {epoch}" for epoch in epochs],
            hoverinfo="text+x+y",
        )
    return _laid_out(figure, "I(X;F)", "I(Y;F) by accuracy, %")


@dataclass(frozen=True)
class SearchData:
    """A search's trials over the first two settings that it varied, or over the one: `z` is the accuracy on the
    selection images in percent, None for a trial that was stopped."""

    names: list[str]
    x: list[float]
    y: list[float] | None
    z: list[float | None]
    hover: list[str]
    best: int | None


def search_data(result: dict[str, Any]) -> SearchData:
    """What a search's figure draws."""
    varied = [name for name, values in result["space"].items() if len(values) > 1] or list(result["space"])
    names, trials = varied[:2], result["trials"]
    hover = [
        "<br>".join(
            [
                *(f"{SYMBOLS.get(name, name)} {value:g}" for name, value in trial["values"].items()),
                f"{100 * trial['accuracy']:.2f} %" if trial["accuracy"] is not None else f"stopped {trial['stopped']}",
            ]
        )
        for trial in trials
    ]
    numbers = [trial["trial"] for trial in trials]
    return SearchData(
        names=names,
        x=[trial["values"][names[0]] for trial in trials],
        y=[trial["values"][names[1]] for trial in trials] if len(names) > 1 else None,
        z=[None if trial["accuracy"] is None else 100 * trial["accuracy"] for trial in trials],
        hover=hover,
        best=numbers.index(result["best"]["trial"]) if result["best"] is not None else None,
    )


def draw_search(data: SearchData) -> go.Figure:
    """The trials, and, over two settings, contours of the accuracy between those that were finished."""
    figure = go.Figure()
    done = [number for number, accuracy in enumerate(data.z) if accuracy is not None]
    across = [SYMBOLS.get(name, name.replace("_", " ")) for name in data.names]
    what = "accuracy on the selection images, %"
    if data.y is None:
        order = sorted(done, key=lambda number: data.x[number])
        figure.add_scatter(
            x=[data.x[n] for n in order], y=[data.z[n] for n in order], mode="lines+markers", marker={"color": BLUE},
            hovertext=[data.hover[n] for n in order], hoverinfo="text", name="trials",
        )  # fmt: skip
        height, across = [data.z[n] for n in done], [across[0], what]
    else:
        if len({data.x[n] for n in done}) > 1 and len({data.y[n] for n in done}) > 1:
            figure.add_contour(
                x=[data.x[n] for n in done], y=[data.y[n] for n in done], z=[data.z[n] for n in done],
                connectgaps=True, colorscale="Cividis", contours={"coloring": "heatmap"}, line={"width": 0.5},
                colorbar={"title": what, "title_side": "right", "thickness": 12}, hoverinfo="skip",
            )  # fmt: skip
        height = [data.y[n] for n in done]
        stopped = [number for number, accuracy in enumerate(data.z) if accuracy is None]
        figure.add_scatter(
            x=[data.x[n] for n in stopped], y=[data.y[n] for n in stopped], mode="markers",
            marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": "#bbbbbb"}},
            hovertext=[data.hover[n] for n in stopped], hoverinfo="text", name="stopped early",
        )  # fmt: skip
        figure.add_scatter(
            x=[data.x[n] for n in done], y=height, mode="markers",
            marker={"size": 9, "color": "white", "line": {"width": 1.5, "color": "black"}},
            hovertext=[data.hover[n] for n in done], hoverinfo="text", name="finished",
        )  # fmt: skip
    if data.best is not None:
        figure.add_scatter(
            x=[data.x[data.best]], y=[height[done.index(data.best)]], mode="markers",
            marker={"symbol": "star", "size": 18, "color": ORANGE, "line": {"width": 1, "color": "white"}},
            hovertext=[data.hover[data.best]], hoverinfo="text", name="the best",
        )  # fmt: skip
    laid_out = _laid_out(figure, across[0], across[1])
    for axis, name in zip(("xaxis", "yaxis"), data.names, strict=False):
        values = data.x if axis == "xaxis" else data.y or []
        if name != "alpha" and values and min(values) > 0:
            on_a_grid = len(set(values)) <= min(10, len(values) / 2)
            ticks = sorted(set(values)) if on_a_grid else None
            laid_out.update_layout({axis: {"type": "log", "tickvals": ticks}})
    return laid_out


def draw_plane(data: PlaneData) -> go.Figure:
    """The information plane: the path of the checkpoints, the choice marked, and the line of equal sums through it."""
    figure = go.Figure()
    if data.chosen in data.epochs:
        at = data.epochs.index(data.chosen)
        total = data.x[at] + data.y[at]
        ends = [max(0.0, total - 1), min(1.0, total)]
        figure.add_scatter(
            x=ends,
            y=[total - end for end in ends],
            mode="lines",
            line={"dash": "dot", "color": GREY},
            name="equal sums",
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=data.x,
        y=data.y,
        mode="lines+markers+text",
        text=[str(epoch) for epoch in data.epochs],
        textposition="top center",
        marker={"size": 9, "color": BLUE},
        line={"color": BLUE, "width": 1},
        name="checkpoints, by epoch",
        hovertext=data.hover,
        hoverinfo="text",
    )
    if data.chosen in data.epochs:
        at = data.epochs.index(data.chosen)
        figure.add_scatter(
            x=[data.x[at]],
            y=[data.y[at]],
            mode="markers",
            marker={"symbol": "star", "size": 20, "color": ORANGE},
            name=f"chosen: epoch {data.chosen}",
            hovertext=[data.hover[at]],
            hoverinfo="text",
        )
    return _laid_out(figure, "I(X;F), normalised", "I(Y;F), normalised")


def draw_students(data: StudentsData) -> go.Figure:
    """Accuracy of the students against the epoch of the teacher, mean ± standard deviation over seeds."""
    figure = go.Figure()
    if data.alone is not None:
        mean, sd = data.alone
        ends = [min(data.epochs), max(data.epochs)]
        for level, width in ((mean + sd, 0), (mean - sd, 0)):
            filled: dict[str, Any] = {"fill": "tonexty", "fillcolor": "rgba(128,128,128,0.2)"} if level < mean else {}
            figure.add_scatter(
                x=ends,
                y=[level] * 2,
                mode="lines",
                line={"width": width, "color": GREY},
                showlegend=False,
                hoverinfo="skip",
                **filled,
            )
        figure.add_scatter(x=ends, y=[mean] * 2, mode="lines", line={"dash": "dash", "color": GREY}, name="no teacher")
    figure.add_scatter(
        x=data.epochs,
        y=data.mean,
        error_y={"type": "data", "array": data.sd},
        mode="lines+markers",
        marker={"size": 9, "color": BLUE},
        line={"color": BLUE},
        name="one checkpoint as teacher",
        hovertext=data.hover,
        hoverinfo="text",
    )
    for label, mean, sd in data.ensembles:
        figure.add_scatter(
            x=[max(data.epochs)],
            y=[mean],
            error_y={"type": "data", "array": [sd]},
            mode="markers",
            marker={"symbol": "diamond", "size": 11, "color": GREEN},
            name=f"ensemble: {label}",
            hovertext=[f"{label}<br>{mean:.2f} ± {sd:.2f} %"],
            hoverinfo="text",
        )
    return _laid_out(figure, "epoch of the teacher", f"test accuracy of {data.student}, %")


def draw_correlation(found: dict[str, Any], kind: str) -> go.Figure:
    """Heatmaps of class similarity (Fig. 5): one for each checkpoint on one scale, and, for two, their difference."""
    import numpy as np
    from plotly.subplots import make_subplots

    maps = [np.array(each, dtype=np.float32) for each in found[kind]["similarity"]]
    titles = [one["address"] for one in found["checkpoints"]]
    classes = found["classes"]
    beside = ~np.eye(len(classes), dtype=bool)
    axes: dict[str, Any] = {
        "coloraxis": {"colorscale": "Cividis", "cmin": float(min(each[beside].min() for each in maps)), "cmax": 1}
    }
    if "difference" in found[kind]:
        maps.append(np.array(found[kind]["difference"], dtype=np.float32))
        titles.append("the first less the second")
        reach = float(np.abs(maps[-1]).max()) or 1.0
        axes["coloraxis2"] = {"colorscale": "RdBu", "cmin": -reach, "cmax": reach}
    figure = make_subplots(cols=len(maps), subplot_titles=titles, horizontal_spacing=0.02, shared_yaxes=True)
    for number, values in enumerate(maps):
        axis = list(axes)[number // 2]
        hover = "%{x}, %{y}: %{z:.3f}<extra></extra>"
        figure.add_heatmap(z=values, x=classes, y=classes, coloraxis=axis, hovertemplate=hover, row=1, col=number + 1)
    few = len(classes) <= 20  # more names can't be read; the pointer tells them
    figure.update_yaxes(autorange="reversed", constrain="domain", showticklabels=few)
    figure.update_xaxes(constrain="domain", showticklabels=few)
    for number in range(len(maps)):
        figure.update_yaxes(scaleanchor=f"x{number + 1 if number else ''}", col=number + 1)
    figure.update_yaxes(showticklabels=few, col=1)
    for number, axis in enumerate(axes.values()):  # each scale below its maps
        wide = min(2, len(maps)) / len(maps) if number == 0 else 1 / 3
        middle = wide / 2 if number == 0 else 5 / 6
        axis["colorbar"] = {"orientation": "h", "y": -0.25, "x": middle, "len": 0.9 * wide, "thickness": 12}
    return _laid_out(figure, None, None).update_layout(**axes, height=420, margin={"t": 40})


def _laid_out(figure: go.Figure, x_title: str | None, y_title: str | None) -> go.Figure:
    faint = "rgba(128,128,128,0.25)"
    figure.update_xaxes(gridcolor=faint, zerolinecolor=faint)
    figure.update_yaxes(gridcolor=faint, zerolinecolor=faint)
    return figure.update_layout(
        xaxis_title=x_title,
        yaxis_title=y_title,
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#777"},
        margin={"l": 60, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "y": -0.25},
        height=460,
    )
