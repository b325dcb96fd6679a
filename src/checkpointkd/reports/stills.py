"""Matplotlib's drawing of figures, for paper: SVG, PNG and PDF."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from ..errors import printable
from .charts import Chart, Figure, Heatmaps, Series
from .drawing import OKABE_ITO

log = logging.getLogger("checkpointkd")

KINDS = ("svg", "png", "pdf")
MARKERS = {"circle": "o", "star": "*", "diamond": "D", "x": "x"}
STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "checkpointkd",
    "svg.fonttype": "none",
    "savefig.dpi": 200,
    "text.usetex": False,
    "text.parse_math": False,
}


def stills(figure: Figure) -> Iterator[tuple[str, bytes]]:
    """The figure as files, by kind; none where Matplotlib is not installed, which is said once."""
    try:
        import matplotlib
        from matplotlib.figure import Figure as Drawn
    except ImportError:
        _say_once()
        return
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # names may be in any script
        size = (7.2, 2.9) if isinstance(figure, Heatmaps) else (4.8, 4.4 if figure.x_names else 3.2)
        drawn = Drawn(figsize=size, layout="constrained")
        if isinstance(figure, Heatmaps):
            _heatmaps(drawn, figure)
        else:
            _chart(drawn, figure)
        layout: Any = drawn.get_layout_engine()
        layout.execute(drawn)
        drawn.set_layout_engine("none")  # once for all kinds
        _thin_out(drawn)
        for kind in KINDS:
            written = io.BytesIO()
            # without the date, equal figures are equal files
            drawn.savefig(written, format=kind, metadata={} if kind == "png" else _no_date(kind))
            yield kind, written.getvalue()


def _no_date(kind: str) -> dict[str, Any]:
    return {"Date": None} if kind == "svg" else {"CreationDate": None}


def _chart(drawn: Any, chart: Chart) -> None:
    axes = drawn.add_subplot()
    axes.use_sticky_edges = False  # room for the points at the edges of contours
    if chart.contour is not None:
        filled = axes.tricontourf(*chart.contour, cmap="cividis")
        drawn.colorbar(filled, label=_short(chart.contour_title))
    for number, one in enumerate(chart.series):
        _add(axes, one, OKABE_ITO[(one.color if one.color is not None else number) % len(OKABE_ITO)])
    axes.set(xlabel=_short(chart.x_title), ylabel=_short(chart.y_title))
    for axis, is_log, ticks in ((axes.xaxis, chart.log_x, chart.x_ticks), (axes.yaxis, chart.log_y, chart.y_ticks)):
        if is_log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
            if ticks:
                axis.set_ticks(ticks)
                axis.minorticks_off()
    if chart.x_names:
        names = [_short(name, 40) for name in chart.x_names]
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    elif not chart.log_x and all(float(x).is_integer() for one in chart.series for x in one.x):
        axes.xaxis.get_major_locator().set_params(integer=True)  # there is no epoch 1.5
    if len(chart.series) > 1:
        drawn.legend(loc="outside lower center", ncols=2)


def _add(axes: Any, one: Series, color: str) -> None:
    if one.style == "edge":
        axes.plot(one.x, one.y, ":", color=OKABE_ITO[3], label=_short(one.name))
        return
    if one.style == "level":
        axes.plot(one.x, one.y, "--", color=color, label=_short(one.name))
        if one.error is not None:
            low, high = ([y + sign * e for y, e in zip(one.y, one.error, strict=True)] for sign in (-1, 1))
            axes.fill_between(one.x, low, high, color=color, alpha=0.2, linewidth=0)
        return
    size = 12 if one.symbol == "star" else 5
    axes.errorbar(
        one.x,
        one.y,
        one.error,
        color=color,
        label=_short(one.name),
        marker=MARKERS[one.symbol],
        markersize=size,
        linestyle="none" if one.style == "points" else "-",
        linewidth=1.2,
        capsize=2,
    )
    for position in one.large or []:
        axes.plot(one.x[position], one.y[position], marker="o", markersize=9, color=color)
    for word, x, y in zip(one.words or [], one.x, one.y, strict=False):
        axes.annotate(_short(word, 12), (x, y), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=7)


def _thin_out(drawn: Any) -> None:
    """Of words that would lie on each other the last stays, which is of a later epoch."""
    for axes in drawn.axes:
        kept: list[Any] = []
        for word in reversed(axes.texts):
            box = word.get_window_extent()
            word.set_visible(not any(box.overlaps(other) for other in kept))
            kept += [box] * word.get_visible()


def _heatmaps(drawn: Any, figure: Heatmaps) -> None:
    differ = len(figure.maps) == 3
    plain = figure.maps[:2]
    lowest = min(cell for each in plain for i, line in enumerate(each) for j, cell in enumerate(line) if i != j)
    for number, (name, values) in enumerate(zip(figure.names, figure.maps, strict=True)):
        axes = drawn.add_subplot(1, len(figure.maps), number + 1)
        is_difference = differ and number == 2
        reach = max(abs(cell) for line in values for cell in line) or 1.0
        scale = (
            {"cmap": "RdBu", "vmin": -reach, "vmax": reach}
            if is_difference
            else {"cmap": "cividis", "vmin": lowest, "vmax": 1}
        )
        shown = axes.imshow(values, interpolation="none", **scale)  # files hold one pixel a cell
        axes.grid(False)
        axes.set_title(_short(name, 32), fontsize=8)
        axes.set(xticks=[], yticks=[])
        if len(figure.classes) <= 20:
            places = range(len(figure.classes))
            axes.set_yticks(
                places,
                [_short(one, 16) for one in figure.classes] if number == 0 else [""] * len(figure.classes),
                fontsize=6,
            )
        if number in (len(plain) - 1, 2):
            drawn.colorbar(shown, ax=axes, shrink=0.7)


def _short(text: str, most: int = 60) -> str:
    """What there is room for, without what XML forbids."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


_said: set[str] = set()


def _say_once() -> None:
    if not _said:
        _said.add("said")
        log.info(
            "figures are also written as SVG, PNG and PDF where Matplotlib is: pip install 'checkpointkd[figures]'"
        )
