"""Table 3: the teacher that Algorithm 1 chooses against other checkpoints of its run (§5)."""

from __future__ import annotations

from collections.abc import Sequence

from ..reports.charts import Table
from .items import Item, evaluation, single_teachers, student_items, teacher
from .paper_numbers import CHOSEN
from .presets import Preset
from .results import (
    Results,
    Row,
    compare,
    images_note,
    only,
    paper_cells,
    paper_numbers,
    students_note,
    students_table,
    teacher_accuracy,
)
from .tasks import CheckpointChoice

TITLE = "Table 3: the teacher that Algorithm 1 chooses"
TEACHERS = ("0.3", "midpoint", "0.7", "last", "best")
CHOICE = "T at 0.3 is the teacher after 0.3 of its training. T* is the checkpoint that Algorithm 1 chooses."


def needs(preset: Preset) -> list[Item]:
    items = []
    for pair in preset.pairs:
        items += student_items(preset, pair, single_teachers(pair, *TEACHERS))
        items += [evaluation(pair, f"teacher, {which}", CheckpointChoice(teacher(pair), which)) for which in TEACHERS]
    return items


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    lines: dict[tuple[str, ...], None] = {}  # each line once: pairs share teachers
    for pair in preset.pairs:
        students = only(rows, kind="network", pair=pair.name, variant="best")
        accuracies = [teacher_accuracy(rows, pair, which) for which in TEACHERS]
        if students and accuracies[-1] != "—":
            accuracies[-1] += f", epoch {students[0]['teachers'][0][2]}"
        lines[pair.teacher, *accuracies] = None
        if paper_numbers(preset, pair):
            cells = paper_cells(preset, pair, [f"teacher, {which}" for which in TEACHERS])
            lines[f"{pair.teacher}, paper", *cells] = None
    chosen = [
        f"{name}: epoch {CHOSEN[name]} of 200"
        for name in dict.fromkeys(pair.teacher for pair in preset.pairs)
        if preset.dataset == "cifar100" and name in CHOSEN
    ]
    note = images_note(preset, "test") + (f" The paper's T*: {'; '.join(chosen)}." if chosen else "")
    columns = ["teacher", "0.3", "midpoint", "0.7", "last", "T*"]
    title = "Students of T* and of other checkpoints"
    comparisons = [
        ("T* teaches better than T at 0.3", "best", "0.3"),
        ("T* teaches better than T midpoint", "best", "midpoint"),
        ("T* teaches better than T at 0.7", "best", "0.7"),
        ("T* teaches better than T last", "best", "last"),
        ("T at 0.7 teaches better than T last", "0.7", "last"),
    ]
    return Results(
        tables=[
            students_table(preset, rows, ("scratch", *TEACHERS), title, f"{CHOICE} {students_note(preset)}"),
            Table("Test accuracy of the teachers themselves, %", columns, [*map(list, lines)], note),
        ],
        claims=[
            compare(preset, rows, text, variant, baseline)[-1]  # on average over the pairs
            for text, variant, baseline in comparisons
        ],
    )
