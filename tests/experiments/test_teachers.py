"""The experiment on teachers: which runs it needs, gains by hand, and the choice of the best earlier checkpoint."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpointkd as ckd
from checkpointkd.experiments.context import Context
from checkpointkd.experiments.items import of_teacher
from checkpointkd.experiments.presets import PRESETS, Pair, Preset, get_preset
from checkpointkd.experiments.tasks import DistillTask, TrainTask
from checkpointkd.experiments.teachers import (
    BEST_EARLIER,
    CLAIMS,
    EARLIER,
    LAST,
    SCRATCH,
    best_earlier_gaps,
    needs,
    read_students,
    results,
    students_of,
)

from .conftest import read_experiment, read_rows, smoke_preset, speeds_of

PAIR = Pair(teacher="t", student="s")
PRESET: Preset = replace(smoke_preset(), pairs=(PAIR,), seeds=2, compared_teachers=2)


def _rows(accuracy: dict[tuple[int, str], list[float]], val: dict[tuple[int, str], list[float]]) -> list[Any]:
    """Return rows of students: accuracies by teacher run and variant, a value per seed."""
    return [
        {"kind": "network", "pair": PAIR.name, "variant": variant, "seed": seed, "accuracy": value, "val_accuracy": v}
        for (number, name), values in accuracy.items()
        for variant in [SCRATCH if name == SCRATCH else of_teacher(number, name)]
        for seed, (value, v) in enumerate(zip(values, val.get((number, name), values), strict=True))
    ]


ACCURACY = {
    (0, "0.3"): [50.0, 51.0],
    (0, "midpoint"): [60.0, 62.0],
    (0, "0.7"): [58.0, 59.0],
    (0, LAST): [57.0, 58.0],
    (1, "0.3"): [40.0, 40.0],
    (1, "midpoint"): [55.0, 56.0],
    (1, "0.7"): [70.0, 71.0],
    (1, LAST): [60.0, 60.0],
    (0, SCRATCH): [30.0, 31.0],
}


def test_the_other_runs_students_choose_the_best_earlier_checkpoint():
    """Run 2's students prefer 0.7, so it is measured on run 1's students, and the other way around."""
    rows = _rows(ACCURACY, {})
    by_teacher = [read_students(PRESET, rows, PAIR, number) for number in range(2)]
    assert best_earlier_gaps(by_teacher) == [[58.0 - 57, 59.0 - 58], [55.0 - 60, 56.0 - 60]]
    # with one run the other seed chooses, by validation accuracy
    validation = {(0, "0.3"): [90.0, 0.0], (0, "midpoint"): [0.0, 90.0], (0, "0.7"): [1.0, 1.0]}
    one = read_students(PRESET, _rows(ACCURACY, validation), PAIR, 0)
    assert best_earlier_gaps([one]) == [[60.0 - 57, 51.0 - 58]]
    assert best_earlier_gaps([read_students(PRESET, [], PAIR, 0)]) == [[]]


def test_claims_count_all_students_and_are_fixed():
    shown = results(PRESET, _rows(ACCURACY, {}))
    claims = {claim.text: claim for claim in shown.claims}
    assert list(claims) == [text for text, _, _ in CLAIMS]
    midpoint = claims["The midpoint teaches better than the last checkpoint"]
    assert (midpoint.n, midpoint.effect) == (4, pytest.approx((3 + 4 - 5 - 4) / 4))
    assert midpoint.where == "2 teacher runs"
    scratch = claims["The last checkpoint teaches better than no teacher"]
    assert (scratch.n, scratch.effect) == (4, pytest.approx((27 + 27 + 30 + 29) / 4))
    assert claims["T* teaches better than the last checkpoint"].n == 0, "not run yet"
    (table,) = shown.tables
    cells = {row[0]: row for row in table.rows}
    assert cells["midpoint"][2:4] == ["61.00 ± 1.41", "55.50 ± 0.71"]
    assert cells["midpoint"][-1].startswith("-0.50 ± ")
    assert cells[BEST_EARLIER][-1].startswith("-1.75 ± ")
    assert cells[LAST][-1] == ""
    assert "T*" not in cells
    assert [claim.n for claim in results(PRESET, []).claims] == [0] * len(CLAIMS)


def test_with_three_teacher_runs_a_claim_is_about_runs():
    """Ten students of each of three runs are three values, not thirty."""
    accuracy = {(number, LAST): [50.0] * 10 for number in range(3)}
    accuracy |= {(number, "midpoint"): [50.0 + gain] * 10 for number, gain in enumerate((1.0, 2.0, 6.0))}
    claims = results(replace(PRESET, compared_teachers=3), _rows(accuracy, {})).claims
    (midpoint,) = (claim for claim in claims if claim.text == "The midpoint teaches better than the last checkpoint")
    assert (midpoint.n, midpoint.n_text, midpoint.effect) == (3, "3 teacher runs", 3.0)
    assert midpoint.half_width == pytest.approx(4.303 * np.std([1, 2, 6], ddof=1) / 3**0.5, rel=1e-3)


def test_every_claim_names_variants_that_run():
    for by_dataset in PRESETS.values():
        for preset in (build() for build in by_dataset.values()):
            pair = preset.pairs[0]
            variants = {*students_of(preset, pair, 0, 0), SCRATCH, BEST_EARLIER}
            assert {name for _, first, second in CLAIMS for name in (first, second)} <= variants
            assert variants >= set(EARLIER)
            items = needs(preset)
            seeds = {item.seed for item in items} - {None}
            assert seeds == set(range(preset.seeds))
            runs = {
                choice.training for item in items if isinstance(item.task, DistillTask) for choice in item.task.teachers
            }
            assert {run.seed for run in runs if run.model == pair.teacher} == set(range(preset.compared_teachers))


def test_the_shorter_run_is_a_whole_training(tmp_path: Path):
    """Half of the epochs, with a learning rate that falls to the end of these; in a folder of its own."""
    preset = replace(smoke_preset(), teacher_epochs=4, save_every=1)
    context = Context(tmp_path, preset, "digits", "cpu", speeds=speeds_of(preset))
    whole = TrainTask("wrn_10_1", "teacher")
    shorter, squared = replace(whole, share=0.5), replace(whole, loss="squared-error")
    for task, epochs in ((shorter, 2), (squared, 4)):
        task.run(context)
        assert task.done(context)
        assert task.trajectory(context).run.recipe.epochs == epochs
    assert squared.trajectory(context).run.loss == "squared-error"
    names = [task.folder(context).name.rsplit("-", 1)[0] for task in (whole, shorter, squared)]
    assert names == [
        "wrn_10_1-teacher-seed0",
        "wrn_10_1-2-epochs-teacher-seed0",
        "wrn_10_1-squared-error-teacher-seed0",
    ]


def test_the_squared_error_leaves_out_the_smoothing_of_a_recipe(tmp_path: Path):
    preset = replace(smoke_preset(), teacher_epochs=2, save_every=1)
    context = Context(tmp_path, preset, "digits", "cpu", speeds=speeds_of(preset))
    task = TrainTask("wrn_10_1", "teacher", loss="squared-error", recipe="deit")
    task.run(context)
    assert task.trajectory(context).run.recipe.label_smoothing == 0


def test_a_method_applies_to_all_but_the_further_settings():
    preset = replace(PRESET, method="dkd", further_settings=(("kd", 0.1),))
    students = students_of(preset, PAIR, 0, 0)
    assert {name for name, task in students.items() if task.method != "dkd"} == {
        name for name in students if name.endswith(", kd α 0.1")
    }
    assert "; dkd, its default α and τ unless stated" in results(preset, []).tables[0].note


def test_tune_is_refused(tmp_path: Path):
    with pytest.raises(ckd.UserError, match=r"--tune does not apply to the experiment 'teachers'\. Leave out --tune"):
        ckd.reproduce("teachers", preset="smoke", tune=True, out=tmp_path / "out")


def test_teachers_of_smoke(smoke: Path):
    """Every variant has a student; the averages and the controls have other teachers than the last checkpoint."""
    preset = smoke_preset()
    pair = preset.pairs[0]
    rows = read_rows(smoke, "teachers", kind="network", pair=pair.name, seed=0)
    by_variant = {row["variant"]: row for row in rows}
    names = students_of(preset, pair, 0, 0)
    assert by_variant.keys() == {SCRATCH, *(of_teacher(0, name) for name in names)}
    assert by_variant[of_teacher(0, "half the epochs")]["teachers"] == [["wrn_16_2", 0, preset.teacher_epochs // 2]]
    assert by_variant[of_teacher(0, "midpoint")]["run"] != by_variant[of_teacher(0, "half the epochs")]["run"]
    assert by_variant[of_teacher(0, "squared error")]["run"] != by_variant[of_teacher(0, LAST)]["run"]
    assert by_variant[of_teacher(0, "last, fitted τ")]["run"] != by_variant[of_teacher(0, LAST)]["run"]
    result = read_experiment(smoke, "teachers")
    assert [claim["text"] for claim in result["claims"]] == [text for text, _, _ in CLAIMS]
    not_run = {text for text, first, _ in CLAIMS if first == BEST_EARLIER}  # needs a second run or seed
    assert {claim["text"] for claim in result["claims"] if not claim["n"]} == not_run


def test_noisy_labels_need_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ckd.UserError, match=r"Preset 'noisy-labels' needs noisy labels\. Give --train-labels FILE"):
        ckd.reproduce("teachers", preset="noisy-labels", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    np.save(tmp_path / "labels.npy", np.arange(1198) % 10)
    monkeypatch.setitem(PRESETS, "noisy-labels", {"digits": lambda: replace(get_preset("smoke", None), noisy=True)})
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"preset": "noisy-labels", "only": "teacher 1: last", "seeds": 1, "out": "out"}
    ckd.reproduce("teachers", train_labels="labels.npy", teacher_epochs=2, student_epochs=2, **options)
    runs = [ckd.open_trajectory(path) for path in (tmp_path / "out" / "runs").iterdir()]
    assert {run.run.data.train_labels for run in runs} == {str(tmp_path / "labels.npy")}
    with pytest.raises(ckd.UserError, match="experiments with the image content"):
        ckd.reproduce("teachers", preset="smoke", teacher_epochs=2, student_epochs=2, only="teacher 1: last", out="out")


def test_the_table_of_regimes_is_made_from_the_published_rows():
    root = Path(__file__).parents[2]
    script = runpy.run_path(str(root / "benchmarks" / "regimes.py"))
    regimes = ["small", "few-images", "overfit", "noisy-labels", "digits"]
    table = script["table"](root / "docs" / "results", regimes)
    assert table in (root / "docs" / "regimes.md").read_text(encoding="utf-8")
    claims = {claim.text: claim for claim in script["claims_of"](root / "docs" / "results", "overfit")}
    midpoint = claims["The midpoint teaches better than the last checkpoint"]
    rows = [json.loads(line) for line in (root / "docs/results/overfit/rules.jsonl").read_text().splitlines()]
    values = {(row["pair"], row["variant"], row["seed"]): row["accuracy"] for row in rows if row["kind"] == "network"}
    gaps = [
        values[pair, "midpoint, 0.5", seed] - values[pair, "last, 0.5", seed]
        for pair, variant, seed in values
        if variant == "scratch"
    ]
    assert (midpoint.n, midpoint.effect) == (6, pytest.approx(np.mean(gaps)))
