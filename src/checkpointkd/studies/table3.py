"""Table 3: the teacher that Algorithm 1 chooses against others of its run (§5)."""

from __future__ import annotations

from collections.abc import Sequence

from ..charts import Table
from .published import CHOSEN
from .rows import (
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
from .scales import Scale
from .work import Part, Picked, single, students, teacher

TITLE = "Table 3: the teacher that Algorithm 1 chooses"
ARMS = ("0.3", "half", "0.7", "full", "best")


def needs(scale: Scale) -> list[Part]:
    parts = []
    for pair in scale.pairs:
        parts += students(scale, pair, single(pair, *ARMS))
        parts += [measured(pair, f"teacher, {which}", Picked(teacher(pair), which)) for which in ARMS]
    return parts


def results(scale: Scale, rows: Sequence[Row]) -> Results:
    lines = []
    for pair in scale.pairs:
        found = only(rows, kind="network", pair=pair.name, arm="best")
        epoch = f", epoch {found[0]['teachers'][0][2]}" if found else ""
        accuracies = [teachers_accuracy(rows, pair, which) for which in ARMS]
        lines.append([pair.teacher, *accuracies[:-1], accuracies[-1] + epoch * (accuracies[-1] != "—")])
        if known := published(scale, pair):
            shown = [known.get(f"teacher, {which}") for which in ARMS]
            lines.append([f"{pair.teacher}, the paper", *("" if one is None else f"{one:.2f}" for one in shown)])
    lines = [line for number, line in enumerate(lines) if line not in lines[:number]]
    theirs = [f"{name}: epoch {CHOSEN[name]} of 200" for name in dict.fromkeys(pair.teacher for pair in scale.pairs)
              if scale.dataset == "cifar100" and name in CHOSEN]  # fmt: skip
    note = images_note(scale, "test") + (f" The paper's T*: {'; '.join(theirs)}." if theirs else "")
    columns = ["teacher", "0.3", "half-way", "0.7", "full", "T*"]
    teachers = Table("The teachers' own test accuracy, %", columns, lines, note)
    title = "Students of T* and of others"
    return Results(
        tables=[with_paper(rows, scale, ("alone", *ARMS), title, settings_note(scale)), teachers],
        claims=[
            claim
            for other, word in {"0.3": "at 0.3", "half": "half-way", "0.7": "at 0.7", "full": "full"}.items()
            for claim in compared(scale, rows, f"T* teaches better than T {word}", "best", other)[-1:]
        ]
        + compared(scale, rows, "T at 0.7 teaches better than T full", "0.7", "full")[-1:],
    )
