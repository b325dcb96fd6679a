"""Table 2: Snapshot Ensembles against Full Ensembles of two (§3.4)."""

from __future__ import annotations

from collections.abc import Sequence

from ..reports.charts import Table
from .items import Item, Teachers, evaluation, single_teachers, student_items, teacher
from .presets import Pair, Preset
from .results import (
    Results,
    Row,
    compare,
    compare_teachers,
    images_note,
    only,
    paper_cells,
    paper_numbers,
    students_note,
    students_table,
)
from .tasks import CheckpointChoice

TITLE = "Table 2: Snapshot Ensembles against Full Ensembles"
ENSEMBLES = ("EN1", "EN2", "EN3")
TWO_RUNS = "two runs of the teacher; with other runs the difference may vary by more than between seeds"
STUDENT_CLAIMS = (
    ("Snapshot Ensembles (EN₃) teach better than Full Ensembles (EN₁)", "EN3", "EN1"),
    ("Mixed ensembles (EN₂) teach better than Full Ensembles (EN₁)", "EN2", "EN1"),
)
TEACHER_CLAIMS = (
    ("Full Ensembles are themselves more accurate than Snapshot Ensembles", "EN1", "EN3"),
    ("Full Ensembles are themselves more accurate than mixed ones", "EN1", "EN2"),
    ("Mixed ensembles are themselves more accurate than Snapshot Ensembles", "EN2", "EN3"),
)


def ensembles(pair: Pair) -> dict[str, Teachers]:
    """Return the paper's three ensembles of two checkpoints, from one run or two."""
    first, second = teacher(pair), teacher(pair, 1)
    return {
        "EN1": (CheckpointChoice(first, "last"), CheckpointChoice(second, "last")),
        "EN2": (CheckpointChoice(first, "midpoint"), CheckpointChoice(second, "last")),
        "EN3": (CheckpointChoice(first, "midpoint"), CheckpointChoice(first, "last")),
    }


def needs(preset: Preset) -> list[Item]:
    items = []
    for pair in preset.pairs:
        items += student_items(preset, pair, {**single_teachers(pair, "last"), **ensembles(pair)})
        items += [evaluation(pair, name, *members) for name, members in ensembles(pair).items()]
    return items


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    lines = []
    for pair in preset.pairs:
        measured = [only(rows, kind="measured", pair=pair.name, variant=name) for name in ENSEMBLES]
        lines.append([pair.name, *(f"{found[0]['accuracy']:.2f}" if found else "—" for found in measured)])
        if "own EN1" in paper_numbers(preset, pair):
            lines.append([f"{pair.name}, paper", *paper_cells(preset, pair, [f"own {name}" for name in ENSEMBLES])])
    columns = ["teacher → student", "EN₁", "EN₂", "EN₃"]
    title = "Students of ensembles"
    claims = []
    for text, variant, baseline in STUDENT_CLAIMS:
        claims += compare(preset, rows, text, variant, baseline, caveat=TWO_RUNS)
    for text, variant, baseline in TEACHER_CLAIMS:
        claims += compare_teachers(preset, rows, text, variant, baseline, paper="own {}")
    return Results(
        tables=[
            students_table(preset, rows, ("scratch", "last", *ENSEMBLES), title, students_note(preset)),
            Table("Test accuracy of the ensembles themselves, %", columns, lines, images_note(preset, "test")),
        ],
        claims=claims,
    )
