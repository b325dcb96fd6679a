"""Figures, in two steps: what is drawn, as data that tests read; then Plotly's drawing of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ..selection import normalised
from .collect import Collected, Scored

# Okabe and Ito's colours, distinguishable to the colour-blind.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#808080"


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
        f"epoch {point.epoch}<br>sum {a + b:.2f} = {a:.2f} + {b:.2f}<br>accuracy {100 * point.accuracy:.1f} ± "
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
        single = sorted((arm for arm in arms if len(arm.teachers) == 1), key=lambda arm: arm.teachers[0][1])
        alone = next((arm for arm in arms if not arm.teachers), None)
        if single:
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


def _laid_out(figure: go.Figure, x_title: str, y_title: str) -> go.Figure:
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
