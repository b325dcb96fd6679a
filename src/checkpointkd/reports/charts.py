"""Charts, heatmaps and tables as plain data. `plot`, `page` and the console show them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

SeriesStyle = Literal["line", "points", "hline", "guide"]
Symbol = Literal["circle", "star", "diamond", "x"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points (x, y) of one color.

    Attributes:
        error: half the length of each point's error bar.
        hover: the tooltip of each point; lines are separated by a newline.
        labels: a short text above each point.
        style: `hline` is a dashed line with `error` as a band around it; `guide` is a dotted line without data.
        highlight: positions of points to draw larger.
        color: series with the same number have the same color; by default each series has its own.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    hover: list[str] | None = None
    labels: list[str] | None = None
    style: SeriesStyle = "line"
    symbol: Symbol = "circle"
    highlight: list[int] | None = None
    color: int | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with two axes.

    Attributes:
        x_names: names to show at x = 0, 1, … in place of numbers.
        contour: x, y and z of points between which filled contours are drawn.
    """

    title: str
    x_title: str
    y_title: str
    series: list[Series]
    caption: str = ""
    alt: str = ""
    log_x: bool = False
    log_y: bool = False
    x_ticks: list[float] | None = None
    y_ticks: list[float] | None = None
    x_names: list[str] | None = None
    contour: tuple[Sequence[float], Sequence[float], Sequence[float]] | None = None
    contour_title: str = ""

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Return the numbers of the figure as columns and rows, with the tooltips of the points, if there are any.

        >>> series = Series(name="d", x=[1], y=[2], hover=["epoch 1\\n2%"])
        >>> Chart(title="a", x_title="b", y_title="c", series=[series]).table()
        (['series', 'b', 'c', '±', 'point'], [['d', 1, 2, None, 'epoch 1; 2%']])
        """
        rows = []
        has_hover = any(series.hover for series in self.series)
        for series in self.series:
            if series.style == "guide":
                continue
            xs = [self.x_names[int(x)] for x in series.x] if self.x_names else series.x
            errors = series.error or [None] * len(series.x)
            hover = series.hover or [""] * len(series.x)
            rows += [
                [series.name, x, y, error, *[text.replace("\n", "; ")] * has_hover]
                for x, y, error, text in zip(xs, series.y, errors, hover, strict=True)
            ]
        return ["series", self.x_title, self.y_title, "±", *["point"] * has_hover], rows


@dataclass(frozen=True, kw_only=True)
class Heatmaps:
    """One to three square maps over the same classes, on one color scale.

    The third map, if there is one, is a difference and has its own color scale.
    """

    title: str
    names: list[str]
    classes: list[str]
    maps: list[list[list[float]]]
    caption: str = ""
    alt: str = ""

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Return the numbers of the figure as columns and rows."""
        rows = [
            [self.classes[i], self.classes[j], *(cells[i][j] for cells in self.maps)]
            for i in range(len(self.classes))
            for j in range(len(self.classes))
        ]
        return ["class", "and class", *self.names], rows


Figure = Chart | Heatmaps


def to_plain(figure: Figure) -> dict[str, Any]:
    """Return a figure as JSON values."""
    return {"kind": type(figure).__name__.lower(), **asdict(figure)}


def from_plain(stored: dict[str, Any]) -> Figure:
    """Return the figure that `to_plain` stored; raises ValueError, TypeError or KeyError if it cannot be drawn.

    >>> from_plain(to_plain(Chart(title="a", x_title="b", y_title="c", series=[Series(name="d", x=[1], y=[2])]))).title
    'a'
    """
    values = {name: value for name, value in stored.items() if name != "kind"}
    if stored["kind"] == "heatmaps":
        maps = Heatmaps(**values)
        _check_maps(maps)
        return maps
    if stored["kind"] != "chart":
        raise ValueError(f"unknown kind of figure {stored['kind']!r}")
    contour = values.get("contour")
    series = [Series(**each) for each in values["series"]]
    chart = Chart(**{**values, "series": series, "contour": contour and tuple(contour)})
    _check_chart(chart)
    return chart


LARGEST = 1e12  # beyond it, Matplotlib's axes overflow


def _check_texts(*texts: Any) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{text!r} is not a text")
        text.encode()  # raises ValueError for unpaired surrogates


def _check_numbers(*numbers: Any, least: float = -LARGEST) -> None:
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not least <= number <= LARGEST:
            raise ValueError(f"{number!r} cannot be drawn")


def _check_lengths(length: int, *lists: Any) -> None:
    for values in lists:
        if values is not None and (not isinstance(values, list | tuple) or len(values) != length):
            raise ValueError(f"expected a list of length {length}")


def _check_chart(chart: Chart) -> None:
    _check_texts(chart.title, chart.x_title, chart.y_title, chart.caption, chart.alt, chart.contour_title)
    _check_texts(*(chart.x_names or []))
    _check_numbers(*(chart.x_ticks or []), *(chart.y_ticks or []))
    for series in chart.series:
        _check_series(series)
        if chart.x_names is not None and not all(x in range(len(chart.x_names)) for x in series.x):
            raise ValueError("a point has no name on the x axis")
        for is_log, values in ((chart.log_x, series.x), (chart.log_y, series.y)):
            _check_numbers(*(values if is_log else ()), least=1e-12)
    if chart.contour is not None:
        _check_lengths(3, chart.contour)
        _check_lengths(len(chart.contour[0]), *chart.contour)
        _check_numbers(*(number for numbers in chart.contour for number in numbers))


def _check_series(series: Series) -> None:
    _check_texts(series.name, *(series.hover or []), *(series.labels or []))
    _check_lengths(len(series.x), series.x, series.y, series.error, series.hover, series.labels)
    _check_numbers(*series.x, *series.y)
    _check_numbers(*(series.error or []), *(series.highlight or []), least=0)
    if series.style not in get_args(SeriesStyle) or series.symbol not in get_args(Symbol):
        raise ValueError(f"unknown style {series.style!r} or symbol {series.symbol!r}")
    if not all(isinstance(position, int) and position < len(series.x) for position in series.highlight or []):
        raise ValueError("a highlighted point does not exist")
    if not isinstance(series.color, int | None):
        raise TypeError("a color must be an integer")
    _check_numbers(*([] if series.color is None else [series.color]), least=0)


def _check_maps(figure: Heatmaps) -> None:
    _check_texts(figure.title, figure.caption, figure.alt, *figure.names, *figure.classes)
    count = len(figure.classes)
    if count < 2 or not 1 <= len(figure.maps) <= 3:
        raise ValueError("one to three maps of at least two classes are needed")
    _check_lengths(len(figure.maps), figure.names, figure.maps)
    for cells in figure.maps:
        _check_lengths(count, cells, *cells)
        _check_numbers(*(cell for row in cells for cell in row))


@dataclass(frozen=True)
class Table:
    """A table of texts. The first column names the rows; rows in `marked` stand out."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    marked: list[int] = field(default_factory=list)

    def text_columns(self) -> list[bool]:
        """Return which columns hold text, to be aligned left; columns of numbers are aligned right.

        >>> Table("", ["epoch", "p", "stopped"], [["1", "< 0.001", "after epoch 3"], ["2", "", ""]]).text_columns()
        [True, False, True]
        """
        number = re.compile(r"([-+−<] ?)?\d|—$|$")
        return [
            column == 0 or not all(number.match(row[column]) for row in self.rows)
            for column in range(len(self.columns))
        ]

    def check(self) -> None:
        """Raise ValueError or TypeError if the table cannot be shown."""
        _check_texts(self.title, self.note, *self.columns, *(cell for row in self.rows for cell in row))
        _check_lengths(len(self.columns), *self.rows)
        if not isinstance(self.marked, list) or not isinstance(self.rows, list):
            raise TypeError("rows and marked rows must be lists")
