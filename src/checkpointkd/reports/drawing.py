"""Plotly's drawing of figures, for the pointer."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import plotly.graph_objects as go

from .charts import Chart, Figure, Heatmaps, Series

# Okabe and Ito's colors, distinguishable to the color-blind.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#808080", "#56B4E9", "#CC79A7", "#E69F00")
SYMBOLS = {"circle": "circle", "star": "star", "diamond": "diamond", "x": "x-thin"}
FAINT = "rgba(128,128,128,0.25)"


def draw(figure: Figure) -> go.Figure:
    """The figure, as Plotly's. Names are text, whatever is in them: Plotly would read tags."""
    return _heatmaps(figure) if isinstance(figure, Heatmaps) else _chart(figure)


def _chart(chart: Chart) -> go.Figure:
    drawn = go.Figure()
    if chart.contour is not None:
        x, y, z = chart.contour
        drawn.add_contour(
            x=x,
            y=y,
            z=z,
            connectgaps=True,
            colorscale="Cividis",
            contours={"coloring": "heatmap"},
            line={"width": 0.5},
            hoverinfo="skip",
            colorbar={"title": _text(chart.contour_title), "title_side": "right", "thickness": 12},
        )
    for number, one in enumerate(chart.series):
        _add(drawn, one, OKABE_ITO[(one.color if one.color is not None else number) % len(OKABE_ITO)], number)
    _laid_out(drawn, chart.x_title, chart.y_title)
    for axis, is_log, ticks in (("xaxis", chart.log_x, chart.x_ticks), ("yaxis", chart.log_y, chart.y_ticks)):
        if is_log:
            drawn.update_layout({axis: {"type": "log", "tickvals": ticks}})
    if chart.x_names:
        names = [_text(name) for name in chart.x_names]
        drawn.update_xaxes(tickvals=list(range(len(names))), ticktext=names, tickangle=-60)
        drawn.update_layout(height=560, legend={"y": 1.02, "yanchor": "bottom"})  # the names need the room below
    return drawn


def _add(drawn: go.Figure, one: Series, color: str, number: int) -> None:
    common: dict[str, Any] = {"x": one.x, "y": one.y, "name": _text(one.name)}
    if one.style == "edge":
        drawn.add_scatter(**common, mode="lines", line={"dash": "dot", "color": OKABE_ITO[3]}, hoverinfo="skip")
        return
    if one.style == "level":
        for sign in (1, -1):
            if one.error is not None:
                edge = [y + sign * error for y, error in zip(one.y, one.error, strict=True)]
                filled: dict[str, Any] = {"fill": "tonexty", "fillcolor": _faint(color)} if sign < 0 else {}
                drawn.add_scatter(
                    x=one.x, y=edge, mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip", **filled
                )
        drawn.add_scatter(**common, mode="lines", line={"dash": "dash", "color": color})
        return
    sizes = {"circle": 8, "diamond": 11, "star": 18, "x": 9}
    marker: dict[str, Any] = {"symbol": SYMBOLS[one.symbol], "size": sizes[one.symbol], "color": color}
    if one.large is not None:
        marker["size"] = [13 if position in one.large else 5 for position in range(len(one.x))]
    if one.symbol == "x":
        marker["line"] = {"width": 2, "color": color}
    elif one.style == "points":
        marker["line"] = {"width": 1, "color": "white"}
    mode = "markers" if one.style == "points" else "lines+markers"
    hover = one.hover or [f"{one.name}<br>{x:g}, {y:g}" for x, y in zip(one.x, one.y, strict=True)]
    drawn.add_scatter(
        **common,
        mode=f"{mode}+text" if one.words else mode,
        text=None if one.words is None else [_text(word) for word in one.words],
        textposition="top center",
        error_y=None if one.error is None else {"type": "data", "array": one.error},
        marker=marker,
        line={"color": color, "dash": "solid" if number < len(OKABE_ITO) else "dot"},
        hovertext=["<br>".join(_text(line) for line in text.split("<br>")) for text in hover],
        hoverinfo="text",
    )


def _heatmaps(figure: Heatmaps) -> go.Figure:
    """One scale below the maps, another below their difference."""
    from plotly.subplots import make_subplots

    maps = [np.array(each, dtype=np.float32) for each in figure.maps]
    differ = len(maps) == 3
    plain = maps[:2]
    beside = ~np.eye(len(figure.classes), dtype=bool)
    axes: dict[str, Any] = {
        "coloraxis": {"colorscale": "Cividis", "cmin": float(min(each[beside].min() for each in plain)), "cmax": 1}
    }
    if differ:
        reach = float(np.abs(maps[-1]).max()) or 1.0
        axes["coloraxis2"] = {"colorscale": "RdBu", "cmin": -reach, "cmax": reach}
    titles, classes = [_text(name) for name in figure.names], [_text(name) for name in figure.classes]
    drawn = make_subplots(cols=len(maps), subplot_titles=titles, horizontal_spacing=0.02, shared_yaxes=True)
    for number, values in enumerate(maps):
        axis = "coloraxis2" if differ and number == 2 else "coloraxis"
        hover = "%{x}, %{y}: %{z:.3f}<extra></extra>"
        drawn.add_heatmap(z=values, x=classes, y=classes, coloraxis=axis, hovertemplate=hover, row=1, col=number + 1)
    few = len(classes) <= 20  # more names can't be read; the pointer tells them
    drawn.update_yaxes(autorange="reversed", constrain="domain", showticklabels=few)
    drawn.update_xaxes(constrain="domain", showticklabels=few)
    for number in range(1, len(maps)):  # the first is what the others match
        drawn.update_xaxes(matches="x", col=number + 1)
    drawn.update_yaxes(scaleanchor="x", col=1)
    drawn.update_yaxes(showticklabels=few, col=1)
    for number, axis in enumerate(axes.values()):  # each scale below its maps
        wide = min(2, len(maps)) / len(maps) if number == 0 else 1 / 3
        middle = wide / 2 if number == 0 else 5 / 6
        axis["colorbar"] = {"orientation": "h", "y": -0.25, "x": middle, "len": 0.9 * wide, "thickness": 12}
    return _laid_out(drawn, None, None).update_layout(**axes, height=420, margin={"t": 40})


def _laid_out(drawn: go.Figure, x_title: str | None, y_title: str | None) -> go.Figure:
    drawn.update_xaxes(gridcolor=FAINT, zerolinecolor=FAINT, automargin=True)
    drawn.update_yaxes(gridcolor=FAINT, zerolinecolor=FAINT, automargin=True)
    return drawn.update_layout(
        xaxis_title=x_title and _text(x_title),
        yaxis_title=y_title and _text(y_title),
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#777"},
        margin={"l": 60, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "y": -0.25},
        height=460,
    )


def _text(text: str) -> str:
    """A text as Plotly shows it as it is: tags it would obey, and formulas between dollars."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def _faint(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"
