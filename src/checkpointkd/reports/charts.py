"""What figures show, as plain data: made in one place, tested as data, drawn elsewhere (`reports`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

SeriesStyle = Literal["line", "points", "level", "edge"]
Symbol = Literal["circle", "star", "diamond", "x"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points (x, y), with what the pointer shows at each.

    `error` is half the length of each point's bar. A `level` is a dashed line across, with `error` as a band around it;
    an `edge` a dotted line that only guides the eye. `words` stand at the points, `large` marks some. Series of one
    `color` belong together; by default each has its own.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    hover: list[str] | None = None
    words: list[str] | None = None
    style: SeriesStyle = "line"
    symbol: Symbol = "circle"
    large: list[int] | None = None  # positions
    color: int | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with two axes. `x_names` are what stands at x = 0, 1 … instead of numbers. `contour` gives heights at
    points, (x, y, z), between which lines are drawn."""

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
        """The figure's numbers, as a table: columns and rows, with what the pointer shows at points, if anything.

        >>> one = Series(name="d", x=[1], y=[2], hover=["epoch 1<br>2%"])
        >>> Chart(title="a", x_title="b", y_title="c", series=[one]).table()
        (['series', 'b', 'c', '±', 'point'], [['d', 1, 2, None, 'epoch 1; 2%']])
        """
        rows = []
        shown = any(one.hover for one in self.series)
        for one in self.series:
            if one.style != "edge":
                places = [self.x_names[int(x)] for x in one.x] if self.x_names else one.x
                errors = one.error or [None] * len(one.x)
                said = [[text.replace("<br>", "; ")] * shown for text in one.hover or [""] * len(one.x)]
                rows += [
                    [one.name, x, y, error, *text]
                    for x, y, error, text in zip(places, one.y, errors, said, strict=True)
                ]
        return ["series", self.x_title, self.y_title, "±", *["point"] * shown], rows


@dataclass(frozen=True, kw_only=True)
class Heatmaps:
    """Square maps over the same classes, on one scale; the last one is a difference, on a scale of its own, if there
    are three."""

    title: str
    names: list[str]
    classes: list[str]
    maps: list[list[list[float]]]
    caption: str = ""
    alt: str = ""

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """The figure's numbers, as a table: columns and rows."""
        rows = [
            [self.classes[i], self.classes[j], *(each[i][j] for each in self.maps)]
            for i in range(len(self.classes))
            for j in range(len(self.classes))
        ]
        return ["class", "and class", *self.names], rows


Figure = Chart | Heatmaps


def to_plain(figure: Figure) -> dict[str, Any]:
    """A figure as JSON's values."""
    return {"kind": type(figure).__name__.lower(), **asdict(figure)}


def from_plain(stored: dict[str, Any]) -> Figure:
    """A figure from what `to_plain` gave; raises ValueError, TypeError or KeyError for what can't be one.

    >>> from_plain(to_plain(Chart(title="a", x_title="b", y_title="c", series=[Series(name="d", x=[1], y=[2])]))).title
    'a'
    """
    values = {name: value for name, value in stored.items() if name != "kind"}
    if stored["kind"] not in ("chart", "heatmaps"):
        raise ValueError("a kind of figure that there isn't")
    if stored["kind"] == "heatmaps":
        maps = Heatmaps(**values)
        _check_maps(maps)
        return maps
    contour = values.get("contour")
    series = [Series(**one) for one in values["series"]]
    chart = Chart(**{**values, "series": series, "contour": contour and tuple(contour)})
    _check_chart(chart)
    return chart


LARGEST = 1e12  # what can be drawn


def _texts(*texts: Any) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{text!r} is no text")
        text.encode()  # raises ValueError for halves of characters


def _numbers(*numbers: Any, least: float = -LARGEST) -> None:
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not least <= number <= LARGEST:
            raise ValueError(f"{number!r} can't be drawn")


def _lists(length: int, *lists: Any) -> None:
    for one in lists:
        if one is not None and (not isinstance(one, list | tuple) or len(one) != length):
            raise ValueError("lists of one length are needed")


def _check_chart(chart: Chart) -> None:
    _texts(chart.title, chart.x_title, chart.y_title, chart.caption, chart.alt, chart.contour_title)
    for axis, is_log, ticks in (("x", chart.log_x, chart.x_ticks), ("y", chart.log_y, chart.y_ticks)):
        _numbers(*(ticks or []))
        for one in chart.series if is_log else ():
            _numbers(*getattr(one, axis), least=1e-12)
    _texts(*(chart.x_names or []))
    for one in chart.series:
        if chart.x_names is not None and not all(x in range(len(chart.x_names)) for x in one.x):
            raise ValueError("a place without a name")
        _texts(one.name, *(one.hover or []), *(one.words or []))
        _lists(len(one.x), one.x, one.y, one.error, one.hover, one.words)
        _numbers(*one.x, *one.y)
        _numbers(*(one.error or []), least=0)
        _numbers(*(one.large or []), *([] if one.color is None else [one.color]), least=0)
        if one.style not in get_args(SeriesStyle) or one.symbol not in get_args(Symbol):
            raise ValueError("a style or a symbol that there isn't")
        if not all(isinstance(at, int) and at < len(one.x) for at in one.large or []):
            raise ValueError("a point that there isn't")
        if not isinstance(one.color, int | None):
            raise TypeError("a color is a number")
    if chart.contour is not None:
        _lists(3, chart.contour)
        _lists(len(chart.contour[0]), *chart.contour)
        _numbers(*(number for numbers in chart.contour for number in numbers))


def _check_maps(figure: Heatmaps) -> None:
    _texts(figure.title, figure.caption, figure.alt, *figure.names, *figure.classes)
    several = len(figure.classes)
    if several < 2 or not 1 <= len(figure.maps) <= 3:
        raise ValueError("one to three maps of two classes or more are needed")
    _lists(len(figure.maps), figure.names, figure.maps)
    for each in figure.maps:
        _lists(several, each, *each)
        _numbers(*(cell for line in each for cell in line))


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first column says what a row is, `marked` rows stand out."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    marked: list[int] = field(default_factory=list)

    def check(self) -> None:
        """Raise ValueError or TypeError for what can't be shown."""
        _texts(self.title, self.note, *self.columns, *(cell for row in self.rows for cell in row))
        _lists(len(self.columns), *self.rows)
        if not isinstance(self.marked, list) or not isinstance(self.rows, list):
            raise TypeError("rows are lists")
