"""One self-contained HTML page, and beside it each figure and table as files."""

from __future__ import annotations

import base64
import csv
import io
import math
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from .. import storage
from ..analysis.statistics import Claim
from ..errors import UserError
from .charts import Chart, Figure, Heatmaps, Table
from .plot import draw
from .tables import caveats, claims_table

GENERATOR = b'<meta name="generator" content="checkpointkd">'
MARK = "made by checkpointkd.txt"  # lists the files of a page in the folder beside it, which a new page may replace
CLAIM_FIELDS = (
    *("text", "where", "effect", "half_width", "unit", "n", "units"),
    *("p", "p_corrected", "paper", "verdict", "caveat"),
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page, in the order in which it is shown. `command` is shown as code, to be copied."""

    title: str
    paragraphs: Sequence[str] = ()
    command: str = ""
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    claims: Sequence[Claim] = ()
    figures: Sequence[Figure] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of a page. `findings` are lists by heading, `provenance` are values by name."""

    title: str
    about: str
    sections: Sequence[Section]
    summary: Sequence[str] = ()
    findings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)


def write_page(page: Page, *, out: Path) -> Path:
    """Write the page as one HTML file that needs no network and no JavaScript.

    Its figures and tables are also files in the folder `NAME_files` beside it.

    Raises:
        UserError: the file or the folder exists and was not written by this function.
    """
    folder = refuse_others(out)
    drawn = [(figure, draw(figure)) for section in page.sections for figure in section.figures]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {"caveats": caveats, "claims_table": claims_table}
    environment.filters |= {
        "anchor": anchor,
        "csv_link": _csv_link,
        "numbers": _numbers,
        "sentence": lambda text: f"{text[0].upper()}{text[1:].removesuffix('.')}.",
        "svg": lambda figure: next(_inline(files["svg"], figure) for each, files in drawn if each is figure),
        "unbroken": lambda text: text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"),
    }
    text = environment.get_template("page.html.jinja").render(page=page)
    storage.remove_leftovers(out.parent, f"{out.name}.")
    storage.atomic_write_bytes(out, text.lstrip().encode())
    _write_files(folder, out.name, _files(page, [files for _, files in drawn]))
    return out


def refuse_others(out: Path) -> Path:
    """Return the folder beside a page; raises UserError if the page or the folder exists and is not ours."""
    folder = out.parent / f"{out.stem}_files"
    try:
        page_exists, folder_exists = out.exists(), folder.exists()
    except OSError as error:
        raise UserError(f"Cannot write {str(out)[:80]}: {error.strerror}") from None
    if page_exists and not (out.is_file() and GENERATOR in out.read_bytes()[:1000]):
        raise UserError(f"{out} exists and was not written by checkpointkd. Choose another --out")
    if folder_exists and _read_mark(folder)[:1] != [out.name] and not _is_unmarked(folder):
        raise UserError(f"{folder} exists and does not belong to {out.name}. Choose another --out")
    return folder


def _is_unmarked(folder: Path) -> bool:
    """Whether a folder holds only half-written files: a process may have been killed before it wrote the mark."""
    return folder.is_dir() and all(name.endswith(storage.TMP_SUFFIX) for name in os.listdir(folder))


def _read_mark(folder: Path) -> list[str]:
    """Return the name of the page whose files are in the folder, then their names; empty if there is no mark."""
    try:
        return (folder / MARK).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def _files(page: Page, drawn: Sequence[Mapping[str, bytes]]) -> dict[str, bytes]:
    """Return the files beside the page: each table and the claims as CSV, each figure as CSV, SVG, PNG and PDF."""
    drawings, contents = iter(drawn), []
    for section in page.sections:
        contents += [
            (table.title or section.title, {"csv": _csv(table.columns, table.rows)}) for table in section.tables
        ]
        if section.claims:
            rows = [[getattr(claim, name) for name in CLAIM_FIELDS] for claim in section.claims]
            contents.append((f"{section.title}: claims", {"csv": _csv(CLAIM_FIELDS, rows)}))
        contents += [(figure.title, {"csv": _csv(*figure.table()), **next(drawings)}) for figure in section.figures]
    return {
        f"{number:02d}-{anchor(title)}.{kind}": content
        for number, (title, files) in enumerate(contents, 1)
        for kind, content in files.items()
    }


def _write_files(folder: Path, page_name: str, files: Mapping[str, bytes]) -> None:
    """Write the files, and remove those that an earlier page of this name wrote; other files stay."""
    for name in _read_mark(folder)[1:]:
        if Path(name).name == name and (folder / name).is_file():
            (folder / name).unlink()
    storage.remove_leftovers(folder)
    storage.atomic_write_bytes(folder / MARK, "\n".join([page_name, *files]).encode())
    for name, content in files.items():
        storage.atomic_write_bytes(folder / name, content)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    return csv_text(columns, rows).encode()


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table as CSV.

    A text that a spreadsheet would take for a formula (it begins with = or @) gets a quote in front. NaN, such as the
    standard deviation of one seed, becomes an empty cell.

    >>> csv_text(["name", "x"], [["=1+1", 0.5], ["-3", float("nan")]])
    "name,x\\r\\n'=1+1,0.5\\r\\n-3,\\r\\n"
    """

    def cell_text(cell: Any) -> Any:
        if isinstance(cell, float) and math.isnan(cell):
            return ""
        is_formula = isinstance(cell, str) and re.match(r"[=@\t\r]|[+-][^0-9.]", cell)
        return f"'{cell}" if is_formula else cell

    text = io.StringIO()
    csv.writer(text).writerows([map(cell_text, row) for row in [columns, *rows]])
    return text.getvalue()


def anchor(title: str) -> str:
    """Return a title as the name of a link or a file.

    >>> anchor("Table 1: <T> against é")
    'table-1-t-against-e'
    """
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")[:60] or "figure"


def _numbers(figure: Figure) -> Table | None:
    """Return the numbers of a chart as a table; None for heatmaps, which have too many."""
    if isinstance(figure, Heatmaps):
        return None
    columns, rows = figure.table()
    cells = [
        [f"{cell:.6g}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in row]
        for row in rows
    ]
    return Table(figure.title, columns, cells)


def _csv_link(figure: Figure) -> str:
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(_csv(*figure.table())).decode()}"


def _inline(svg: bytes, figure: Figure) -> Markup:
    """Return an SVG as an element of the page, with the figure's alternative text."""
    text = svg.decode()
    text = text[text.index("<svg ") :]  # without the XML declaration
    kind = "chart" if isinstance(figure, Chart) else "heatmaps"
    label = escape(figure.alt or figure.title)
    return Markup(text.replace("<svg ", f'<svg class="{kind}" role="img" aria-label="{label}" ', 1))
