"""Table 3: the teacher that Algorithm 1 chooses against others of its run (§5)."""

from __future__ import annotations

from collections.abc import Sequence

from ..reports.charts import Table
from .paper_numbers import CHOSEN
from .presets import Preset
from .results import (
    Results,
    Row,
    compared,
    images_note,
    measured,
    only,
    published,
    settings_note,
    teachers_accuracy,
    with_paper,
)
from .tasks import CheckpointChoice, Item, single, students, teacher

TITLE = "Table 3: the teacher that Algorithm 1 chooses"
ARMS = ("0.3", "midpoint", "0.7", "last", "best")


def needs(preset: Preset) -> list[Item]:
    parts = []
    for pair in preset.pairs:
        parts += students(preset, pair, single(pair, *ARMS))
        parts += [measured(pair, f"teacher, {which}", CheckpointChoice(teacher(pair), which)) for which in ARMS]
    return parts


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    lines = []
    for pair in preset.pairs:
        found = only(rows, kind="network", pair=pair.name, arm="best")
        epoch = f", epoch {found[0]['teachers'][0][2]}" if found else ""
        accuracies = [teachers_accuracy(rows, pair, which) for which in ARMS]
        lines.append([pair.teacher, *accuracies[:-1], accuracies[-1] + epoch * (accuracies[-1] != "—")])
        if known := published(preset, pair):
            shown = [known.get(f"teacher, {which}") for which in ARMS]
            lines.append([f"{pair.teacher}, the paper", *("" if one is None else f"{one:.2f}" for one in shown)])
    lines = [line for number, line in enumerate(lines) if line not in lines[:number]]
    theirs = [
        f"{name}: epoch {CHOSEN[name]} of 200"
        for name in dict.fromkeys(pair.teacher for pair in preset.pairs)
        if preset.dataset == "cifar100" and name in CHOSEN
    ]
    note = images_note(preset, "test") + (f" The paper's T*: {'; '.join(theirs)}." if theirs else "")
    columns = ["teacher", "0.3", "half-way", "0.7", "last", "T*"]
    teachers = Table("The teachers' own test accuracy, %", columns, lines, note)
    title = "Students of T* and of others"
    return Results(
        tables=[with_paper(rows, preset, ("scratch", *ARMS), title, settings_note(preset)), teachers],
        claims=[
            claim
            for other, word in {"0.3": "at 0.3", "midpoint": "half-way", "0.7": "at 0.7", "last": "last"}.items()
            for claim in compared(preset, rows, f"T* teaches better than T {word}", "best", other)[-1:]
        ]
        + compared(preset, rows, "T at 0.7 teaches better than T full", "0.7", "last")[-1:],
    )
