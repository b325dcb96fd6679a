"""The ways to teach a student, and how well a search with pilot runs finds the best of them.

A reference set has every method with every set of teachers. Each candidate has a whole student and pilot runs for each
seed, so that a search can be replayed on stored pilot runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..reports.charts import Table
from .items import Item, snapshot_ensemble, teacher
from .presets import Pair, Preset
from .results import Results, Row, accuracy_cell
from .tasks import CheckpointChoice, DistillTask, PilotRunTask, TrainTask

TITLE = "Ways to teach, and the search for the best"
NO_TEACHER = "no teacher"


def candidates(preset: Preset, pair: Pair, number: int, seed: int) -> Iterator[tuple[str, TrainTask | DistillTask]]:
    """Yield the name and the student of each candidate with one teacher run."""
    yield NO_TEACHER, TrainTask(pair.student, "student", seed)
    run = teacher(pair, number)
    for kind, teachers in {
        "last": (CheckpointChoice(run, "last"),),
        "0.7": (CheckpointChoice(run, "0.7"),),
        "midpoint + last": snapshot_ensemble(run, 2),
        "weight mean": (CheckpointChoice(run, "mean:0.7-1.0"),),
    }.items():
        for method in preset.compared_methods:
            for alpha in preset.alphas if method == "kd" else (None,):
                name = method if alpha is None else f"{method}, α {alpha:g}"
                task = DistillTask(pair.student, teachers, seed, alpha=alpha, method=method)
                yield f"{name}, {kind}", task


def needs(preset: Preset) -> list[Item]:
    return [
        Item(pair, f"teacher {number + 1}: {name}", task)
        for pair in preset.pairs
        for number in range(preset.compared_teachers)
        for lengths in (1, 2)
        for seed in range(preset.seeds)
        for name, student in candidates(preset, pair, number, seed)
        for task in ([student, PilotRunTask(student)] if lengths == 1 else [PilotRunTask(student, 2)])
    ]


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    lines = [
        [f"{pair.name}, {variant}", accuracy_cell(preset, rows, pair, variant)]
        for pair in preset.pairs
        for variant in dict.fromkeys(row["variant"] for row in rows if row["pair"] == pair.name)
    ]
    return Results(tables=[Table("Students", ["candidate", "accuracy, %"], lines)])
