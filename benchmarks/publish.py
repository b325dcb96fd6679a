"""A folder of studies as a page that a repository shows: Markdown, figures as SVG, rows as JSON lines.

python benchmarks/publish.py studies/small docs/results/small
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpointkd.analysis.statistics import claim_from
from checkpointkd.errors import UserError
from checkpointkd.reports import collect, notes_of_all, settings_words
from checkpointkd.reports.charts import from_plain
from checkpointkd.reports.page import CLAIMS_NOTE, anchor, caveats, claim_rows
from checkpointkd.reports.stills import stills

LONG = 400_000  # bytes
ORIGIN = "## Where this comes from"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    collected = collect(options.studies)
    if not collected.studies:
        raise UserError(f"no experiment in {options.studies}")
    page = options.out / "README.md"
    ours = not options.out.exists() or (page.exists() and ORIGIN in page.read_text(encoding="utf-8").splitlines())
    if not ours:
        raise UserError(f"{options.out} is not a page of published experiments: choose another folder")
    made = options.out.with_name(f"{options.out.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    several = len(collected.studies) > 1
    title = "The paper's experiments" if several else collected.studies[0]["title"]
    lines = [f"# {title} at the scale {collected.studies[0]['preset']['name']}", ""]
    lines += dict.fromkeys(settings_words(study["preset"]) for study in collected.studies)
    of_all = notes_of_all(collected.studies)
    lines += ["", *(line for note in [*of_all, *collected.notes] for line in (f"> {note}", ""))]
    lines += [f"Of the claims: {CLAIMS_NOTE}", ""]
    for study in collected.studies:
        _rows(options.studies / study["experiment"] / "rows.jsonl", made / f"{study['experiment']}.jsonl")
        lines += _section({**study, "notes": [note for note in study["notes"] if note not in of_all]}, made)
    lines += [ORIGIN, ""]
    rows = [path.name for path in sorted(made.glob("*.jsonl*"))]
    lines += [f"- rows: {', '.join(f'[{name}]({name})' for name in rows)}"]
    lines += [f"- {name}: {value}" for name, value in collected.provenance.items()]
    (made / "README.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    shutil.rmtree(options.out, ignore_errors=True)
    made.rename(options.out)


def _rows(rows: Path, out: Path) -> None:
    """Without the folder's own path; compressed where they are long, as those with maps of 100 classes are."""
    text = rows.read_text(encoding="utf-8").replace(f"{rows.parents[1].resolve()}/", "").encode()
    if len(text) <= LONG:
        out.write_bytes(text)
    else:
        out.with_name(f"{out.name}.gz").write_bytes(gzip.compress(text, mtime=0))


def _section(study: dict[str, Any], out: Path) -> list[str]:
    lines = [f"## {study['title']}", "", *(line for note in study["notes"] for line in (f"> {note}", ""))]
    for table in study["tables"]:
        lines += [f"**{table['title']}**", "", *_table(table["columns"], table["rows"]), "", table["note"], ""]
    if study["claims"]:
        claims = [claim_from(stored) for stored in study["claims"]]
        lines += [*_table(*claim_rows(claims)), ""]
        lines += [f"[{number}] {caveat[0].upper()}{caveat[1:]}.  " for number, caveat in enumerate(caveats(claims), 1)]
        lines += [""]
    for number, stored in enumerate(study["figures"], start=1):
        figure = from_plain(stored)
        name = f"{study['experiment']}-{number}-{anchor(figure.title)}.svg"
        (out / name).write_bytes(dict(stills(figure))["svg"])
        lines += [f"![{figure.alt}]({name})", "", f"*{figure.title}. {figure.caption}*", ""]
    return lines


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown's table."""
    shown = [[cell.replace("|", "\\|") for cell in row] for row in [columns, *rows]]
    return [f"| {' | '.join(row)} |" for row in [shown[0], ["---"] * len(columns), *shown[1:]]]


if __name__ == "__main__":
    main()
