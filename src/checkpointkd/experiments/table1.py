"""Table 1: last teachers against midpoint ones, and against the best intermediate one (§3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ..analysis.statistics import Claim, claim
from ..reports.charts import Table
from .items import Item, evaluation, student_items, swept_teachers, teacher
from .presets import Pair, Preset
from .results import (
    ONE_RUN,
    Results,
    Row,
    accuracy_cell,
    by_seed,
    compare,
    compare_teachers,
    only,
    paper_cells,
    paper_effect,
    paper_numbers,
    picked_gaps,
    students_note,
    teacher_accuracy,
)
from .tasks import CheckpointChoice

TITLE = "Table 1: intermediate teachers against last ones"
COLUMNS = [
    "teacher → student",
    "T last",
    "T midpoint",
    "S without a teacher",
    "S from T last",
    "S from T midpoint",
    "S from the best intermediate T",
]
PAPER_COLUMNS = ("teacher, last", "teacher, midpoint", "scratch", "last", "midpoint", "best in hindsight")


def needs(preset: Preset) -> list[Item]:
    items = []
    for pair in preset.pairs:
        items += student_items(preset, pair, swept_teachers(pair))
        items += [
            evaluation(pair, f"teacher, {which}", CheckpointChoice(teacher(pair), which))
            for which in ("last", "midpoint")
        ]
    return items


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    lines = []
    for pair in preset.pairs:
        best = best_intermediate(rows, pair)
        lines.append(
            [
                pair.name,
                *(teacher_accuracy(rows, pair, which) for which in ("last", "midpoint")),
                *(accuracy_cell(preset, rows, pair, variant) for variant in ("scratch", "last", "midpoint")),
                "—" if best is None else f"{accuracy_cell(preset, rows, pair, best)} ({_epoch(rows, pair, best)})",
            ]
        )
        if paper_numbers(preset, pair):
            lines.append([f"{pair.name}, paper", *paper_cells(preset, pair, PAPER_COLUMNS)])
    by_other_seeds = " For the claim below, the other seeds' students determine it." if preset.seeds > 1 else ""
    note = (
        f"{students_note(preset)} The best intermediate teacher has the students with the highest validation accuracy. "
        f"The same students measure it, so the table favors it.{by_other_seeds} Epochs compared: {_sweeps(preset)}."
    )
    return Results(
        tables=[Table("Students of intermediate and of last teachers", COLUMNS, lines, note)],
        claims=[
            *compare(preset, rows, "T midpoint teaches better than T last", "midpoint", "last"),
            *best_intermediate_claims(preset, rows),
            *compare_teachers(
                preset,
                rows,
                "T last is itself more accurate than T midpoint",
                "teacher, last",
                "teacher, midpoint",
                paper="{}",
            ),
        ],
    )


def intermediate(pair: Pair) -> list[str]:
    """Return the variants of Figure 2 without the last checkpoint."""
    return [variant for variant in swept_teachers(pair) if variant != "last"]


def best_intermediate(rows: Sequence[Row], pair: Pair) -> str | None:
    """Return the intermediate variant with the highest validation accuracy of its students."""
    means = {
        variant: fmean(accuracies.values())
        for variant in intermediate(pair)
        if (accuracies := by_seed(rows, pair, variant, "val_accuracy"))
    }
    return max(means, key=means.__getitem__, default=None)


def best_intermediate_claims(preset: Preset, rows: Sequence[Row]) -> list[Claim]:
    """Return the claims that some intermediate teacher teaches better than the last checkpoint.

    The teacher is picked by the other seeds' students on the validation set, and compared on the test set.
    """
    claims = []
    for pair in preset.pairs:
        effect = paper_effect(preset, pair, "best in hindsight", "last")
        caveat = picked_caveat(preset)
        if effect is not None:
            caveat += "; the paper picks its best epoch in hindsight, which favors it"
        differences = picked_gaps(preset, rows, pair, intermediate(pair), max, "last")
        text = "The best intermediate teacher teaches better than T last"
        claims.append(claim(text, pair.name, differences, paper=effect, caveat=caveat))
    return claims


def picked_caveat(preset: Preset) -> str:
    """Return the caveat of a claim about a variant that was picked."""
    caveats = []
    if preset.seeds == 1:
        caveats.append("picked by the same students that measure it, because there is one seed")
    if preset.select_on == "test":
        caveats.append("picked on the test set")
    return "; ".join([*caveats, ONE_RUN])


def _epoch(rows: Sequence[Row], pair: Pair, variant: str) -> str:
    """Return the epoch of a variant's teacher, and how many variants have no student yet."""
    epoch = only(rows, kind="network", pair=pair.name, variant=variant)[0]["teachers"][0][2]
    variants = intermediate(pair)
    present = sum(bool(by_seed(rows, pair, name)) for name in variants)
    missing = len(variants) - present
    return f"epoch {epoch}" + (f", the best of {present}; {missing} missing" if missing else "")


def _sweeps(preset: Preset) -> str:
    return "; ".join(
        f"{pair.name} at "
        + ", ".join(f"{fraction * preset.teacher_epochs:g}" for fraction in pair.sweep if fraction < 1)
        for pair in preset.pairs
    )
