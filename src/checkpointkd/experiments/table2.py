"""Table 2: Snapshot Ensembles against Full Ensembles of two (§3.4)."""

from __future__ import annotations

from collections.abc import Sequence

from ..reports.charts import Table
from .presets import Pair, Preset
from .results import (
    Results,
    Row,
    compared,
    images_note,
    measured,
    only,
    own_claims,
    published,
    settings_note,
    with_paper,
)
from .tasks import CheckpointChoice, Item, single, students, teacher

TITLE = "Table 2: Snapshot Ensembles against Full Ensembles"
ENSEMBLES = ("EN1", "EN2", "EN3")
TWO_RUNS = "rests on two teacher runs: others' students may differ by more than seeds do"


def ensembles(pair: Pair) -> dict[str, tuple[CheckpointChoice, ...]]:
    """The paper's three: two full runs; half-way of one and the end of the other; half-way and the end of one."""
    first, second = teacher(pair), teacher(pair, 1)
    return {
        "EN1": (CheckpointChoice(first, "last"), CheckpointChoice(second, "last")),
        "EN2": (CheckpointChoice(first, "midpoint"), CheckpointChoice(second, "last")),
        "EN3": (CheckpointChoice(first, "midpoint"), CheckpointChoice(first, "last")),
    }


def needs(preset: Preset) -> list[Item]:
    parts = []
    for pair in preset.pairs:
        parts += students(preset, pair, {**single(pair, "last"), **ensembles(pair)})
        parts += [measured(pair, name, *members) for name, members in ensembles(pair).items()]
    return parts


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    accuracy = with_paper(rows, preset, ("scratch", "last", *ENSEMBLES), "Students of ensembles", settings_note(preset))
    own = []
    for pair in preset.pairs:
        found = {name: only(rows, kind="measured", pair=pair.name, arm=name) for name in ENSEMBLES}
        own.append([pair.name, *(f"{one[0]['accuracy']:.2f}" if one else "—" for one in found.values())])
        known = published(preset, pair)
        if "own EN1" in known:
            own.append([f"{pair.name}, the paper", *(f"{known[f'own {name}']:.2f}" for name in ENSEMBLES)])
    columns = ["teacher → student", *(f"{name[:2]}{'₁₂₃'[int(name[2]) - 1]}" for name in ENSEMBLES)]
    return Results(
        tables=[accuracy, Table("The ensembles' own test accuracy, %", columns, own, images_note(preset, "test"))],
        claims=[
            *compared(
                preset,
                rows,
                "Snapshot Ensembles (EN₃) teach better than Full Ensembles (EN₁)",
                "EN3",
                "EN1",
                caveat=TWO_RUNS,
            ),
            *compared(
                preset,
                rows,
                "Mixed ensembles (EN₂) teach better than Full Ensembles (EN₁)",
                "EN2",
                "EN1",
                caveat=TWO_RUNS,
            ),
            *own_claims(
                preset,
                rows,
                "Full Ensembles are themselves more accurate than Snapshot Ensembles",
                "EN1",
                "EN3",
                paper="own {}",
            ),
            *own_claims(
                preset,
                rows,
                "Full Ensembles are themselves more accurate than mixed ones",
                "EN1",
                "EN2",
                paper="own {}",
            ),
            *own_claims(
                preset,
                rows,
                "Mixed ensembles are themselves more accurate than Snapshot Ensembles",
                "EN2",
                "EN3",
                paper="own {}",
            ),
        ],
    )
