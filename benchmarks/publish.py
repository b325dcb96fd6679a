"""A folder of studies as a page that a repository shows: Markdown, figures as SVG, rows as JSON lines.

python benchmarks/publish.py studies/small docs/results/small
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path

from checkpointkd.errors import UserError
from checkpointkd.reports import collect, preset_sentence, shared_notes
from checkpointkd.reports.collect import Experiment
from checkpointkd.reports.page import anchor
from checkpointkd.reports.plot import draw
from checkpointkd.reports.tables import CLAIMS_NOTE, caveats, claims_table

LONG = 400_000  # bytes
ORIGIN = "## Where this comes from"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    collected = collect(options.studies)
    if not collected.experiments:
        raise UserError(f"no experiment in {options.studies}")
    page = options.out / "README.md"
    ours = not options.out.exists() or (page.exists() and ORIGIN in page.read_text(encoding="utf-8").splitlines())
    if not ours:
        raise UserError(f"{options.out} is not a page of published experiments: choose another folder")
    made = options.out.with_name(f"{options.out.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    results = [experiment.record for experiment in collected.experiments]
    title = "The paper's experiments" if len(results) > 1 else results[0].title
    lines = [f"# {title}, preset {results[0].preset.name}", ""]
    lines += dict.fromkeys(preset_sentence(result.preset) for result in results)
    shared = shared_notes(results)
    lines += ["", *(line for note in [*shared, *collected.notes] for line in (f"> {note}", ""))]
    lines += [f"Of the claims: {CLAIMS_NOTE}", ""]
    for experiment in collected.experiments:
        name = experiment.record.experiment
        _rows(options.studies / name / "rows.jsonl", made / f"{name}.jsonl")
        lines += _section(experiment, shared, made)
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


def _section(experiment: Experiment, shared: Sequence[str], out: Path) -> list[str]:
    record = experiment.record
    notes = [note for note in record.notes if note not in shared]
    lines = [f"## {record.title}", "", *(line for note in notes for line in (f"> {note}", ""))]
    for table in experiment.tables:
        lines += [f"**{table.title}**", "", *_table(table.columns, table.rows), "", table.note, ""]
    if experiment.claims:
        table = claims_table(experiment.claims)
        lines += [*_table(table.columns, table.rows), ""]
        numbered = enumerate(caveats(experiment.claims), 1)
        lines += [*(f"[{number}] {caveat[0].upper()}{caveat[1:]}.  " for number, caveat in numbered), ""]
    for number, figure in enumerate(experiment.figures, start=1):
        name = f"{record.experiment}-{number}-{anchor(figure.title)}.svg"
        (out / name).write_bytes(draw(figure, ["svg"])["svg"])
        lines += [f"![{figure.alt}]({name})", "", f"*{figure.title}. {figure.caption}*", ""]
    return lines


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown's table."""
    shown = [[cell.replace("|", "\\|") for cell in row] for row in [columns, *rows]]
    return [f"| {' | '.join(row)} |" for row in [shown[0], ["---"] * len(columns), *shown[1:]]]


if __name__ == "__main__":
    main()
