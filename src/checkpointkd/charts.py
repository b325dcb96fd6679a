"""What figures show, as plain data: made in one place, tested as data, drawn elsewhere (`reports`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Style = Literal["line", "points", "level", "edge"]
Symbol = Literal["circle", "star", "diamond", "x"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points (x, y), with what the pointer shows at each.

    `error` is half the length of each point's bar. A `level` is a dashed line across, with `error` as a band around it;
    an `edge` a dotted line that only guides the eye. `words` stand at the points, `large` marks some. Series of one
    `colour` belong together; by default each has its own.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    hover: list[str] | None = None
    words: list[str] | None = None
    style: Style = "line"
    symbol: Symbol = "circle"
    large: list[int] | None = None  # positions
    colour: int | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with two axes. `contour` gives heights at points, (x, y, z), between which lines are drawn."""

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
    contour: tuple[Sequence[float], Sequence[float], Sequence[float]] | None = None
    contour_title: str = ""

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """The figure's numbers, as a table: columns and rows."""
        rows = []
        for one in self.series:
            if one.style != "edge":
                errors = one.error or [None] * len(one.x)
                rows += [[one.name, *point] for point in zip(one.x, one.y, errors, strict=True)]
        return ["series", self.x_title, self.y_title, "±"], rows


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
    """A figure from what `to_plain` gave.

    >>> from_plain(to_plain(Chart(title="a", x_title="b", y_title="c", series=[Series(name="d", x=[1], y=[2])]))).title
    'a'
    """
    values = {name: value for name, value in stored.items() if name != "kind"}
    if stored["kind"] == "heatmaps":
        return Heatmaps(**values)
    contour = values.get("contour")
    return Chart(**{
        **values, "series": [Series(**one) for one in values["series"]], "contour": contour and tuple(contour)
    })  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first column says what a row is, `marked` rows stand out."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    marked: list[int] = field(default_factory=list)
