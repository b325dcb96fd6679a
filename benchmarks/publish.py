"""Publish a folder of experiments as a page: a summary of ten rows, the figures, then all rows, also as JSON lines.

python benchmarks/publish.py experiments/small docs/results/small
"""

from __future__ import annotations

import argparse
import gzip
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from checkpointkd.analysis.statistics import AVERAGE, Verdict
from checkpointkd.errors import UserError
from checkpointkd.records.experiments import PresetRecord
from checkpointkd.reports.build import shared_notes
from checkpointkd.reports.collect import Experiment, collect
from checkpointkd.reports.page import anchor
from checkpointkd.reports.plot import draw
from checkpointkd.reports.tables import CLAIMS_NOTE, caveats, claims_table

COMPRESS_ABOVE = 400_000  # bytes of rows; maps of 100 classes are longer
SUMMARY_ROWS = 10
ORIGIN = "## Where this comes from"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    collected = collect(options.experiments)
    if not collected.experiments:
        raise UserError(f"There is no experiment in {options.experiments}")
    page = options.out / "README.md"
    is_published = page.exists() and ORIGIN in page.read_text(encoding="utf-8").splitlines()
    if options.out.exists() and not is_published:
        raise UserError(f"{options.out} is not a page of published experiments. Choose another folder.")
    made = options.out.with_name(f"{options.out.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    records = [experiment.record for experiment in collected.experiments]
    name = records[0].preset.name
    title = f"The paper's experiments, preset {name}" if len(records) > 1 else f"{records[0].title}, preset {name}"
    shared = shared_notes(records)
    lines = [f"# {title}", "", *_summary(collected.experiments), "## Setting", ""]
    for preset in {record.preset.name: record.preset for record in records}.values():
        lines += [*_table(["setting", "value"], _setting(preset)), ""]
    lines += _notes([*shared, *collected.notes])
    figures = [line for experiment in collected.experiments for line in _figures(experiment, made)]
    lines += ["## Figures", "", *figures] if figures else []
    lines += ["## All rows", ""]
    for experiment in collected.experiments:
        name = experiment.record.experiment
        _rows(options.experiments / name / "rows.jsonl", made / f"{name}.jsonl")
        lines += _section(experiment, shared)
    lines += ["## How to read the claims", "", CLAIMS_NOTE, "", ORIGIN, ""]
    rows = ", ".join(f"[{path.name}]({path.name})" for path in sorted(made.glob("*.jsonl*")))
    lines += _table(
        ["source", "value"], [["rows", rows], *([name, text] for name, text in collected.provenance.items())]
    )
    (made / "README.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    shutil.rmtree(options.out, ignore_errors=True)
    made.rename(options.out)


def _summary(experiments: Sequence[Experiment]) -> list[str]:
    """Return a table of at most ten rows: the main claims, or the first rows if no claim has run."""
    claims = list({(c.text, c.where): c for experiment in experiments for c in experiment.claims if c.n}.values())
    decided = (Verdict.SUPPORTED, Verdict.NOT_SUPPORTED)
    claims.sort(key=lambda claim: (claim.where != AVERAGE, claim.verdict not in decided))  # the rest keeps its order
    if claims:
        table = claims_table(claims)
        count = f"{len(claims)} claims have run. Claims on average over pairs come first, then decided ones."
    else:
        table = next(table for experiment in experiments for table in experiment.tables if table.rows)
        count = f"No claim has run yet. The table has {len(table.rows)} rows."
    lines = _table(
        table.columns, [[re.sub(r" \[\d+\]$", "", cell) for cell in row] for row in table.rows[:SUMMARY_ROWS]]
    )
    more = " All are [below](#all-rows)." if max(len(claims), len(table.rows)) > SUMMARY_ROWS else ""
    return [*lines, "", count + more, ""]


def _setting(preset: PresetRecord) -> list[list[str]]:
    return [
        ["data", preset.dataset],
        *([["training images", f"{preset.train_images:,}"]] if preset.train_images else []),
        ["teacher → student", ", ".join(f"{pair.teacher} → {pair.student}" for pair in preset.pairs)],
        ["epochs of teachers, of students", f"{preset.teacher_epochs}, {preset.student_epochs}"],
        ["seeds", str(preset.seeds)],
        ["selection on", str(preset.select_on)],
    ]


def _rows(rows: Path, out: Path) -> None:
    """Copy rows without the path of their folder; compress long ones."""
    text = rows.read_text(encoding="utf-8").replace(f"{rows.parents[1].resolve()}/", "").encode()
    if len(text) <= COMPRESS_ABOVE:
        out.write_bytes(text)
    else:
        out.with_name(f"{out.name}.gz").write_bytes(gzip.compress(text, mtime=0))


def _figures(experiment: Experiment, out: Path) -> list[str]:
    lines = []
    for number, figure in enumerate(experiment.figures, start=1):
        name = f"{experiment.record.experiment}-{number}-{anchor(figure.title)}.svg"
        (out / name).write_bytes(draw(figure, ["svg"])["svg"])
        lines += [f"![{figure.alt}]({name})", "", f"*{figure.title}. {figure.caption}*", ""]
    return lines


def _section(experiment: Experiment, shared: Sequence[str]) -> list[str]:
    record = experiment.record
    lines = [f"### {record.title}", "", *_notes([note for note in record.notes if note not in shared])]
    for table in experiment.tables:
        if table.rows:
            lines += [f"**{table.title}**", "", *_table(table.columns, table.rows), "", table.note, ""]
    if experiment.claims:
        table = claims_table(experiment.claims)
        lines += [f"**{table.title}**", "", *_table(table.columns, table.rows), ""]
        numbered = enumerate(caveats(experiment.claims), 1)
        lines += [*(f"[{number}] {caveat[0].upper()}{caveat[1:]}.  " for number, caveat in numbered), ""]
    return lines


def _notes(notes: Sequence[str]) -> list[str]:
    return [line for note in notes for line in (f"> {note}", "")]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    shown = [[cell.replace("|", "\\|") for cell in row] for row in [columns, *rows]]
    return [f"| {' | '.join(row)} |" for row in [shown[0], ["---"] * len(columns), *shown[1:]]]


if __name__ == "__main__":
    main()
