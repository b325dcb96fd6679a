"""One self-contained HTML page of sections, and beside it each figure and table as files."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .. import storage
from ..analysis.statistics import CLAIM_COLUMNS, Claim
from ..errors import UserError
from .charts import Figure, Heatmaps, Table
from .drawing import draw
from .stills import KINDS, stills

GENERATOR = b'<meta name="generator" content="checkpointkd">'
CLAIMS_NOTE = (
    "A positive effect agrees with the claim. p is two-sided: of differences paired by seed where seeds are counted, "
    "by the errors over images where images are. It is corrected for the number of these claims, those not run yet "
    "included (Holm); intervals are not. Supported and not supported, which is that the opposite was found, need a "
    "corrected p below 0.05 and, where seeds are counted, three or more: of two nothing is decided, whatever they say. "
    "Where images are counted, the word is about these very checkpoints, of one training each. Undecided: the "
    "difference could be chance, or be in either direction. Can't show here: with these checkpoints no number of seeds "
    "or images could."
)
MARK = "made by checkpointkd.txt"  # in the folder beside a page: it is ours, and may be written anew


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page: words first, then a command to be copied, notes of what is missing, tables, claims, figures."""

    title: str
    words: Sequence[str] = ()
    command: str = ""
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    claims: Sequence[Claim] = ()
    figures: Sequence[Figure] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that a page says; `findings` are lists by their headings, `provenance` is by name."""

    title: str
    about: str
    sections: Sequence[Section]
    words: Sequence[str] = ()
    findings: dict[str, list[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    provenance: dict[str, str] = field(default_factory=dict)


def write_page(page: Page, *, out: Path) -> Path:
    """Write the page as one HTML file that needs no network, and its figures and tables as files in a folder beside it,
    `NAME_files`; raises UserError when either is there and is not ours."""
    beside = refuse_others(out)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {"caveats": caveats, "claim_rows": claim_rows, "claims_note": CLAIMS_NOTE}
    environment.filters |= {"plotly": _embedded, "numbers": _numbers, "csv_link": _csv_link, "anchor": anchor}
    figures = [figure for section in page.sections for figure in section.figures]
    text = environment.get_template("page.html.jinja").render(
        page=page,
        plotly_js=Markup(get_plotlyjs() if figures else ""),
        number_of=lambda figure: next(n for n, one in enumerate(figures) if one is figure),
    )
    storage.atomic_write_bytes(out, text.lstrip().encode())
    _write_files(page, out, beside)
    return out


def refuse_others(out: Path) -> Path:
    """The folder beside a page that is to be written; raises UserError when either is there and is not ours."""
    beside = out.parent / f"{out.stem}_files"
    try:
        there, also_there = out.exists(), beside.exists()
    except OSError as error:
        raise UserError(f"{str(out)[:80]}… can't be written: {error.strerror}") from None
    if there and not (out.is_file() and GENERATOR in out.read_bytes()[:1000]):
        raise UserError(f"{out} is there already and is no page of ours; choose another --out")
    if also_there and _written(beside)[:1] != [out.name]:
        raise UserError(f"{beside} is there already and is not of this page; choose another --out")
    return beside


def _written(folder: Path) -> list[str]:
    """The page whose files are in this folder, and their names; empty when it is no such folder."""
    try:
        return (folder / MARK).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def _write_files(page: Page, out: Path, folder: Path) -> None:
    """Every figure as CSV, SVG, PNG and PDF, every table and the claims as CSV; those of the page before go."""
    for name in _written(folder)[1:]:
        if Path(name).name == name and (folder / name).is_file():
            (folder / name).unlink()
    contents = {f"{number:02d}-{anchor(title)}": content for number, (title, content) in enumerate(_contents(page), 1)}
    kinds = {name: ["csv"] if isinstance(content, tuple) else ["csv", *KINDS] for name, content in contents.items()}
    names = [f"{name}.{kind}" for name in contents for kind in kinds[name]]
    storage.atomic_write_bytes(folder / MARK, "\n".join([out.name, *names]).encode())
    for name, content in contents.items():
        path = folder / name
        columns, rows = content if isinstance(content, tuple) else content.table()
        storage.atomic_write_bytes(path.with_name(f"{path.name}.csv"), csv_text(columns, rows).encode())
        if not isinstance(content, tuple):
            for suffix, still in stills(content):
                storage.atomic_write_bytes(path.with_name(f"{path.name}.{suffix}"), still)


def _contents(page: Page) -> Iterator[tuple[str, Figure | tuple[list[str], list[list[Any]]]]]:
    for section in page.sections:
        for table in section.tables:
            yield table.title or section.title, (table.columns, table.rows)
        if section.claims:
            names = (
                "text",
                "where",
                "effect",
                "half_width",
                "unit",
                "n",
                "units",
                "p",
                "p_corrected",
                "paper",
                "verdict",
                "caveat",
            )
            yield (
                f"{section.title}: claims",
                ([*names], [[getattr(one, name) for name in names] for one in section.claims]),
            )
        for figure in section.figures:
            yield figure.title, figure


def caveats(claims: Sequence[Claim]) -> list[str]:
    """What to know of the claims that were tested, each once."""
    return list(dict.fromkeys(one.caveat for one in claims if one.caveat and one.n))


def claim_rows(claims: Sequence[Claim]) -> tuple[list[str], list[list[str]]]:
    """The claims as a table, the paper's effects left out where it has none; a number stands for a caveat."""
    known = caveats(claims)
    kept = [
        n for n, name in enumerate(CLAIM_COLUMNS) if "paper" not in name or any(one.paper is not None for one in claims)
    ]
    rows = []
    for one in claims:
        mark = f" [{known.index(one.caveat) + 1}]" if one.caveat in known else ""
        cells = [f"{one.text}{mark}", one.where, *one.cells()]
        rows.append([cells[n] for n in kept])
    return [CLAIM_COLUMNS[n] for n in kept], rows


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as CSV. A spreadsheet would take a text that begins with = or @ for a formula: it gets a quote. What is
    no number, as the deviation of one seed is, stays empty.

    >>> csv_text(["name", "x"], [["=1+1", 0.5], ["-3", float("nan")]])
    "name,x\\r\\n'=1+1,0.5\\r\\n-3,\\r\\n"
    """
    written = io.StringIO()
    out = csv.writer(written)
    for row in [columns, *rows]:
        known = ["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row]
        formula = [isinstance(cell, str) and re.match(r"[=@\t\r]|[+-][^0-9.]", cell) is not None for cell in known]
        out.writerow([f"'{cell}" if quoted else cell for cell, quoted in zip(known, formula, strict=True)])
    return written.getvalue()


def anchor(title: str) -> str:
    """A title as a name in a link or of a file.

    >>> anchor("Table 1: <T> against é")
    'table-1-t-against-e'
    """
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")[:60] or "figure"


def _numbers(figure: Figure) -> Table | None:
    """A figure's numbers as a table for those who can't point at it; not of maps, which have too many."""
    if isinstance(figure, Heatmaps):
        return None
    columns, rows = figure.table()
    shown = [
        [f"{cell:.6g}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in row]
        for row in rows
    ]
    return Table(figure.title, columns, shown)


def _csv_link(figure: Figure) -> str:
    encoded = base64.b64encode(csv_text(*figure.table()).encode()).decode()
    return f"data:text/csv;charset=utf-8;base64,{encoded}"


def _embedded(figure: Figure, number: int) -> Markup:
    html = draw(figure).to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{number}",
        config={
            "responsive": True,
            "displaylogo": False,
            "toImageButtonOptions": {"format": "svg", "filename": anchor(figure.title)},
        },
    )
    return Markup(html)
