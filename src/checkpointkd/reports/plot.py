"""Draw figures with Matplotlib, as SVG, PNG and PDF."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Canvas

from ..errors import printable
from .charts import Chart, Figure, Heatmaps, Series

KINDS = ("svg", "png", "pdf")
# Okabe and Ito's colors, which color-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#808080", "#56B4E9", "#CC79A7", "#E69F00")
GUIDE_COLOR = COLORS[3]
MARKERS = {"circle": "o", "star": "*", "diamond": "D", "x": "x"}
MAX_CLASS_NAMES = 20  # more class names cannot be read beside a heatmap
MAX_HALF_LEGEND = 36  # characters; a longer name does not fit into a legend of two columns
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
# Without dates and versions, equal figures are equal files.
METADATA: dict[str, dict[str, Any]] = {
    "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    "png": {"Software": None},
    "pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
}


def draw(figure: Figure, kinds: Sequence[str] = KINDS) -> dict[str, bytes]:
    """Return the figure as files: the content by kind ("svg", "png", "pdf").

    All text of a figure is plain text: neither markup nor formulas in it are interpreted. In the SVG, points with a
    `hover` text carry it as a tooltip.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # names may be in any script
        size = (7.2, 2.5) if isinstance(figure, Heatmaps) else (4.8, 4.4 if figure.x_names else 3.2)
        canvas = Canvas(figsize=size, layout="constrained")
        if isinstance(figure, Heatmaps):
            _draw_heatmaps(canvas, figure)
        else:
            _draw_chart(canvas, figure)
        layout: Any = canvas.get_layout_engine()
        layout.execute(canvas)
        canvas.set_layout_engine("none")  # computed once for all kinds
        _hide_overlapping_labels(canvas)
        files = {}
        for kind in kinds:
            content = io.BytesIO()
            canvas.savefig(content, format=kind, metadata=METADATA[kind])
            files[kind] = content.getvalue()
    if "svg" in files:
        files["svg"] = _with_tooltips(files["svg"].decode(), figure).encode()
    return files


def _draw_chart(canvas: Canvas, chart: Chart) -> None:
    axes = canvas.add_subplot()
    axes.use_sticky_edges = False  # leaves room for points at the edge of a contour plot
    if chart.contour is not None:
        filled = axes.tricontourf(*chart.contour, cmap="cividis")
        canvas.colorbar(filled, label=_short(chart.contour_title))
    for number, series in enumerate(chart.series):
        color = COLORS[(number if series.color is None else series.color) % len(COLORS)]
        _draw_series(axes, series, color, line="-" if number < len(COLORS) else "-.", group=f"series-{number}")
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
    elif not chart.log_x and all(float(x).is_integer() for series in chart.series for x in series.x):
        locator: Any = axes.xaxis.get_major_locator()
        locator.set_params(integer=True)  # there is no epoch 1.5
    if len(chart.series) > 1:
        longest = max(len(series.name) for series in chart.series)
        canvas.legend(loc="outside lower center", ncols=2 if longest <= MAX_HALF_LEGEND else 1)


def _draw_series(axes: Any, series: Series, color: str, *, line: str, group: str) -> None:
    label = _short(series.name)
    if series.style == "guide":
        axes.plot(series.x, series.y, ":", color=GUIDE_COLOR, label=label)
        return
    if series.style == "hline":
        axes.plot(series.x, series.y, "--", color=color, label=label)
        if series.error is not None:
            pairs = list(zip(series.y, series.error, strict=True))
            low, high = [y - error for y, error in pairs], [y + error for y, error in pairs]
            axes.fill_between(series.x, low, high, color=color, alpha=0.2, linewidth=0)
        return
    drawn = axes.errorbar(
        series.x,
        series.y,
        series.error,
        color=color,
        label=label,
        marker=MARKERS[series.symbol],
        markersize=12 if series.symbol == "star" else 5,
        linestyle="none" if series.style == "points" else line,
        linewidth=1.2,
        capsize=2,
    )
    drawn.lines[0].set_gid(group)
    for position in series.highlight or []:
        axes.plot(series.x[position], series.y[position], marker="o", markersize=9, color=color, zorder=1.5)
    for number, text in enumerate(series.labels or []):
        above = (0, 7) if number in (series.highlight or []) else (0, 5)
        point = (series.x[number], series.y[number])
        axes.annotate(_short(text, 12), point, xytext=above, textcoords="offset points", ha="center", fontsize=7)


def _hide_overlapping_labels(canvas: Canvas) -> None:
    """Of labels that overlap, show only the last, which belongs to the latest epoch."""
    for axes in canvas.axes:
        shown: list[Any] = []
        for label in reversed(axes.texts):
            box = label.get_window_extent()
            label.set_visible(not any(box.overlaps(other) for other in shown))
            if label.get_visible():
                shown.append(box)


def _draw_heatmaps(canvas: Canvas, figure: Heatmaps) -> None:
    plain, has_difference = figure.maps[:2], len(figure.maps) == 3
    lowest = min(cell for cells in plain for i, row in enumerate(cells) for j, cell in enumerate(row) if i != j)
    for number, (name, cells) in enumerate(zip(figure.names, figure.maps, strict=True)):
        axes: Any = canvas.add_subplot(1, len(figure.maps), number + 1)
        if has_difference and number == 2:
            largest = max(abs(cell) for row in cells for cell in row) or 1.0
            scale: dict[str, Any] = {"cmap": "RdBu", "vmin": -largest, "vmax": largest}
        else:
            scale = {"cmap": "cividis", "vmin": lowest, "vmax": 1}
        image = axes.imshow(cells, interpolation="none", **scale)  # stored with one pixel per cell
        axes.grid(False)
        axes.set_title(_short(name, 32), fontsize=8)
        axes.set(xticks=[], yticks=[])
        if len(figure.classes) <= MAX_CLASS_NAMES:
            names = [_short(name, 16) if number == 0 else "" for name in figure.classes]
            axes.set_yticks(range(len(names)), names, fontsize=6)
        if number in (len(plain) - 1, 2):
            canvas.colorbar(image, ax=axes, shrink=0.7)


def _with_tooltips(svg: str, figure: Figure) -> str:
    """Return the SVG with a tooltip at each point that has a hover text.

    Groups lose their ids, which would not be unique in a page of several figures; nothing refers to them.
    """
    for number, series in enumerate(figure.series if isinstance(figure, Chart) else ()):
        group = f'<g id="series-{number}">'
        if series.hover and group in svg:
            before, after = svg.split(group, 1)
            texts = iter(series.hover)
            after = re.sub(
                r"(<use [^>]*)/>",
                lambda point, texts=texts: f"{point[1]}><title>{_escaped(next(texts))}</title></use>",
                after,
                count=len(series.hover),
            )
            svg = f"{before}{group}{after}"
    return re.sub('<g id="[^"]*">', "<g>", svg)


def _escaped(text: str) -> str:
    return "\n".join(html.escape(printable(line), quote=False) for line in text.split("\n"))


def _short(text: str, length: int = 60) -> str:
    """Return the text, cut to the length, without the control characters that XML forbids."""
    text = printable(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"
