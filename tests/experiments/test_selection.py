"""The experiment on ways to teach: gains and regret by hand, and designs replayed on stored pilot runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import checkpointkd as ckd
from checkpointkd.experiments.designs import DESIGNS
from checkpointkd.experiments.presets import Pair, Preset
from checkpointkd.experiments.selection import (
    candidates_of,
    choices,
    default_of,
    gaps_of,
    reference_of,
    results,
    student,
)
from checkpointkd.experiments.tasks import DistillTask
from checkpointkd.reports.charts import Table
from checkpointkd.selection.candidates import NO_TEACHER, Candidate
from checkpointkd.selection.pilot_plan import PilotOutcome

from .conftest import read_experiment, read_rows, smoke_preset

PAIR = Pair(teacher="t", student="s")
PRESET: Preset = replace(smoke_preset(), pairs=(PAIR,), seeds=3, alphas=(0.5,), budgets=("1.0",))
DEFAULT = "kd α 0.5, last"


def _students(name: str, test: list[float], val: list[float] | None = None, *, pilot: float = 20.0) -> list[Any]:
    of_pair = {"pair": PAIR.name, "variant": f"teacher 1: {name}"}
    rows: list[Any] = []
    for seed, accuracy in enumerate(test):
        validation = (val or test)[seed]
        rows.append({**of_pair, "kind": "network", "seed": seed, "accuracy": accuracy, "val_accuracy": validation})
        for lengths in (1, 2):
            run = {"kind": "pilot run", "seed": seed, "lengths": lengths, "epochs": 3 * lengths, "student_epochs": 18}
            rows.append({**of_pair, **run, "information": 1.0, "val_accuracy": pilot, "images": 5000})
    return rows


def _rows() -> list[Any]:
    """The best by validation are dist from the average for seeds 0 and 1, and kd from 0.7 for seed 2."""
    accuracies = {candidate: [50.0, 50.0, 50.0] for candidate in candidates_of(PRESET)}
    named = {f"{c.method} {c.kind}": c for c in accuracies}
    rows = []
    for name, candidate in named.items():
        label = reference_of(PRESET, [], PAIR, 0).labels[candidate]
        if name == "dist average":
            rows += _students(label, [60.0, 61.0, 62.0], val=[10.0, 10.0, 90.0], pilot=60.0)
        elif name == "kd earlier":
            rows += _students(label, [55.0, 56.0, 57.0], val=[40.0, 40.0, 40.0])
        elif candidate == NO_TEACHER:
            rows += _students(label, [45.0, 46.0, 47.0], val=[1.0, 1.0, 1.0], pilot=10.0)
        else:
            rows += _students(label, [50.0, 51.0, 52.0], val=[2.0, 2.0, 2.0])
    return rows


def test_regret_is_measured_from_the_best_by_the_other_seeds():
    reference = reference_of(PRESET, _rows(), PAIR, 0)
    assert reference.runs_per_distillation == 6
    assert [reference.best(seed) for seed in range(3)] == [60.0, 61.0, 57.0]
    assert gaps_of([reference], lambda *_: DEFAULT, None) == [-10.0, -10.0, -5.0]
    assert gaps_of([reference], lambda *_: "no teacher", DEFAULT) == [-5.0, -5.0, -5.0]
    assert gaps_of([reference], lambda *_: "never run", None) == []


def test_designs_choose_from_the_pilot_runs_of_their_seed_only():
    reference = reference_of(PRESET, _rows(), PAIR, 0)
    best = "dist, mean of weights 0.7–1.0"
    found = {design for design in DESIGNS if reference.searched(design, 2.0, default_of(PRESET), 1) == best}
    assert found == {*DESIGNS} - {"prior alone", "one factor at a time"}, "dist is no better from the last checkpoint"
    assert reference.searched("effects", 1.0, default_of(PRESET), 7) is None, "no pilot runs with this seed"


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("runs", [2, 6, 12])
def test_no_design_uses_more_than_its_budget(design: str, runs: int):
    used: list[int] = []

    class Counted(dict[Any, Any]):
        def __getitem__(self, key: Any) -> Any:
            used.append(0 if key in seen else key[1])
            seen.add(key)
            return super().__getitem__(key)

    seen: set[Any] = set()
    candidates = candidates_of(PRESET)
    pilots = Counted(
        {(candidate, length): PilotOutcome(candidate, 1.0, 0.5, 5000) for candidate in candidates for length in (1, 2)}
    )
    DESIGNS[design](candidates, default_of(PRESET), pilots, runs)
    assert sum(used) <= runs


def test_table_has_a_line_for_every_choice_that_was_run():
    (table, *others) = results(PRESET, _rows()).tables
    lines = {line[0]: line for line in table.rows}
    assert lines[DEFAULT][1:] == ["3", "+0.00", "8.33", "10.00", "+5.00", "0"]
    assert lines["effects, budget 1"][-1] == "1"
    assert "rule midpoint" not in lines, "its students were not run"
    assert set(lines) <= set(choices(PRESET))
    (accuracies,) = others
    assert isinstance(accuracies, Table)
    assert accuracies.rows[1] == ["dist", "51.00 ± 1.00", "51.00 ± 1.00", "51.00 ± 1.00", "61.00 ± 1.00", "—"]
    (empty,) = results(PRESET, []).tables
    assert empty.rows == []


def test_students_of_the_reference_set_are_taught_as_named(smoke: Path):
    preset = smoke_preset()
    pair = preset.pairs[0]
    rows = read_rows(smoke, "selection", pair=pair.name, kind="network", seed=0)
    by_variant = {row["variant"]: row for row in rows}
    for name, method, teachers in (
        ("dist, last", "dist", [20]),
        ("dist, 0.7", "dist", [14]),
        ("kd α 0.5, midpoint + last", "kd", [10, 20]),
        ("kd α 0.5, mean of weights 0.7–1.0", "kd", ["mean:0.7-1.0"]),
    ):
        row = by_variant[f"teacher 1: {name}"]
        assert (row["method"], [teacher[2] for teacher in row["teachers"]]) == (method, teachers)
        run = ckd.open_trajectory(smoke / "runs" / row["run"]).run
        assert [teacher.average or teacher.epoch for teacher in run.teachers] == teachers
        assert (run.method, run.data.train_images) == (method, 100)
    chosen = by_variant["teacher 1: rule algorithm1"]["teachers"][0][2]
    point = read_rows(smoke, "figure4", kind="point", chosen=True, model=pair.teacher)
    assert chosen in {row["epoch"] for row in point}


def test_pilot_runs_of_the_experiment_are_those_of_a_search(smoke: Path):
    """Half the batch size, 15% of the epochs but at least a hundred steps, and other seeds than the students."""
    preset = smoke_preset()
    (row,) = [
        row
        for row in read_rows(smoke, "selection", pair=preset.pairs[0].name, kind="pilot run", seed=0, lengths=1)
        if row["variant"] == "teacher 1: dist, last"
    ]
    run = ckd.open_trajectory(smoke / "runs" / row["run"]).run
    assert (run.recipe.batch_size, run.recipe.epochs, run.seed) == (16, row["epochs"], 2000)
    assert row["epochs"] == preset.student_epochs, "a hundred steps are more than the whole training"
    assert read_experiment(smoke, "selection")["missing"] == 0


def test_equal_candidates_of_two_teachers_are_two_students():
    candidate = Candidate(("last",), "last", "dist")
    first, second = (student(PAIR, candidate, number, 0) for number in (0, 1))
    assert isinstance(first, DistillTask)
    assert first != second
    assert student(PAIR, NO_TEACHER, 0, 0) == student(PAIR, NO_TEACHER, 1, 0), "no teacher is trained once"
