"""The table of docs/regimes.md, regimes by claims, from the rows of published experiments.

python benchmarks/regimes.py [--results docs/results]

A regime's rows may come from several experiments. Students are compared within one experiment only, so each source is a
run of the teacher of its own here. Several experiments in one source share their runs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checkpointkd.analysis.statistics import Claim, corrected
from checkpointkd.experiments.items import of_teacher
from checkpointkd.experiments.presets import get_preset
from checkpointkd.experiments.teachers import CHOSEN, CLAIMS, FOUR, LAST, MEAN, MIDPOINT, SCRATCH, TWO, results

RULES = {
    "0.3, 0.5": "0.3",
    "midpoint, 0.5": MIDPOINT,
    "0.7, 0.5": "0.7",
    "last, 0.5": LAST,
    "algorithm1, 0.5": CHOSEN,
    "midpoint and last, 0.5": TWO,
    "scratch": SCRATCH,
}
FIGURE2 = {name: name for name in ("0.3", MIDPOINT, "0.7", LAST)} | {"scratch": SCRATCH}
FIGURE3 = {"snapshot 1": LAST, "snapshot 4": FOUR}


def selection(run: int) -> dict[str, str]:
    """Return the variants of the experiment `selection` that are not in others."""
    return {of_teacher(run, f"kd α 0.5, {name}"): name for name in (LAST, MEAN)}


@dataclass(frozen=True)
class Source:
    """Rows of one experiment, by file, and the names that their variants have in the experiment `teachers`."""

    file: str
    variants: dict[str, str]


REGIMES = {
    "small": (Source("small-rules/rules.jsonl", RULES), Source("small/figure3.jsonl", FIGURE3)),
    "overfit": (
        Source("overfit/rules.jsonl", RULES),
        Source("selection-overfit/selection.jsonl", selection(0)),
        Source("selection-overfit/selection.jsonl", selection(1)),
    ),
    "few-images": (
        Source("few-images/figure2.jsonl", FIGURE2),
        Source(
            "selection-few-images/selection.jsonl",
            {**selection(0), of_teacher(0, "kd α 0.5, midpoint + last"): TWO},
        ),
    ),
}


def claims_of(results_folder: Path, regime: str) -> list[Claim]:
    """Return the claims of a regime, with p corrected for their number (Holm)."""
    preset = get_preset(regime, None)
    if regime not in REGIMES:  # the experiment `teachers` itself
        return corrected(results(preset, _read(results_folder / f"teachers-{regime}" / "teachers.jsonl")).claims)
    rows: list[dict[str, Any]] = []
    first_source = 0
    for number, source in enumerate(REGIMES[regime]):
        for row in _read(results_folder / source.file):
            if row["kind"] == "network" and (name := source.variants.get(row["variant"])):
                rows.append({**row, "variant": name if name == SCRATCH else of_teacher(number, name)})
        first_source = first_source or len(rows)
    against_scratch = results(preset, rows[:first_source]).claims[0]  # only the first source has such students
    others = results(replace(preset, compared_teachers=len(REGIMES[regime])), rows).claims[1:]
    return corrected([claim for claim in (against_scratch, *others) if claim.n])


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def table(results_folder: Path, regimes: list[str]) -> str:
    """Return the table as Markdown: claims down, regimes across."""
    by_regime = {regime: {claim.text: claim for claim in claims_of(results_folder, regime)} for regime in regimes}
    lines = [f"| claim | {' | '.join(f'`{regime}`' for regime in regimes)} |", "|---|" + "---|" * len(regimes)]
    for text, _, _ in CLAIMS:
        cells = [_cell(claims.get(text)) for claims in by_regime.values()]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(claim: Claim | None) -> str:
    if claim is None or not claim.n or claim.effect is None:
        return "not run"
    interval = "" if claim.half_width is None else f" ± {claim.half_width:.1f}"
    effect = f"{round(claim.effect, 1) + 0.0:+.1f}".replace("-", "−")
    return f"{effect}{interval}, {claim.n_text}, {claim.verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--regimes", nargs="+", default=["small", "few-images", "overfit", "noisy-labels", "digits"])
    options = parser.parse_args()
    print(table(options.results, options.regimes))


if __name__ == "__main__":
    main()
