"""All experiments on digits: what they leave, that runs are shared and kept, and what bad input and damage give."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import msgspec
import pytest

import checkpointkd as ckd
from checkpointkd.cli import main
from checkpointkd.experiments.catalog import EXPERIMENTS, get_experiment
from checkpointkd.experiments.context import Context
from checkpointkd.experiments.items import teacher
from checkpointkd.experiments.paper_numbers import CIFAR100
from checkpointkd.experiments.presets import PRESETS, Preset
from checkpointkd.experiments.tasks import CheckpointChoice, ScoreTask, TrainTask, ordered

from .conftest import copied, read_experiment, read_rows, smoke_preset, speeds_of

ALL_PRESETS = [make() for by_dataset in PRESETS.values() for make in by_dataset.values()]
SPEED = msgspec.to_builtins(speeds_of(smoke_preset())["wrn_10_1"])


def test_a_small_experiment_writes_rows_and_a_report(tmp_path: Path):
    """The only experiment of the fast tests. Its second call trains nothing."""
    small: dict = {"preset": "smoke", "seeds": 1, "teacher_epochs": 4, "student_epochs": 2, "train_images": 60}
    result = ckd.reproduce("figure3", out=tmp_path / "out", **small)
    rows = read_rows(tmp_path / "out", "figure3", kind="network")
    assert {row["pair"] for row in rows} == {"wrn_16_2 → wrn_10_1"}
    assert all(0 <= row["accuracy"] <= 100 for row in rows)
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert "Figure 3" in page
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/result.json")}
    assert len(runs) >= 3
    ckd.reproduce("figure3", out=tmp_path / "out", **small)
    assert runs == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/result.json")}


def test_all_experiments_are_complete(smoke: Path):
    for name in EXPERIMENTS:
        result = read_experiment(smoke, name)
        assert result["experiment"] == name
        assert result["missing"] == 0, name
        assert result["tables"], name
        assert all("—" not in row for table in result["tables"] for row in table["rows"]), name
        assert not any(note.startswith(("Not finished", "Failed")) for note in result["notes"])
    assert (smoke / "report.html").exists()


def test_rows_hold_what_the_runs_left(smoke: Path):
    """Each accuracy against the result file of its run, which the experiments do not write."""
    checked = 0
    for name in EXPERIMENTS:
        for row in read_rows(smoke, name, kind="network"):
            result = json.loads((smoke / "runs" / row["run"] / "result.json").read_text())
            run = json.loads((smoke / "runs" / row["run"] / "run.json").read_text())
            assert row["accuracy"] == 100 * result["test"]["accuracy"]
            assert row["seed"] == run["seed"]
            taught_by = [teacher.get("average") or teacher["epoch"] for teacher in run.get("taught_by", [])]
            assert [name for _, _, name in row.get("teachers", [])] == taught_by
            if "teachers" in row:
                assert (row["alpha"], row["tau"]) == (run["kd"]["alpha"], run["kd"]["tau"])
            checked += 1
    assert checked > 100


def test_tables_hold_the_means_of_their_rows(smoke: Path):
    table = read_experiment(smoke, "table3")["tables"][0]
    for line in table["rows"][:2]:
        for cell, variant in zip(line[1:], ("scratch", "0.3", "midpoint", "0.7", "last", "best"), strict=True):
            rows = read_rows(smoke, "table3", kind="network", pair=line[0], variant=variant)
            assert len(rows) == 2
            assert cell.startswith(f"{fmean(row['accuracy'] for row in rows):.2f} ± ")
    assert table["rows"][2][0] == "average of the pairs"
    pair = "wrn_16_2 → wrn_10_1"
    best = read_rows(smoke, "table3", kind="network", pair=pair, variant="best")[0]["teachers"][0][2]
    points = read_rows(smoke, "figure7", kind="point", model="wrn_16_2", chosen=True)
    assert [point["epoch"] for point in points] == [best], "T* of Table 3 is the choice of Figure 7"


def test_runs_are_shared_and_trained_once(smoke: Path, tmp_path: Path):
    """There are as many folders as different runs, though experiments ask for each several times."""
    kinds = ("network", "pilot run")
    asked = [row["run"] for name in EXPERIMENTS for kind in kinds for row in read_rows(smoke, name, kind=kind)]
    students = {path.name for path in (smoke / "runs").iterdir() if "teacher" not in path.name.split("-seed")[0]}
    assert set(asked) == students
    assert len(asked) > 1.5 * len(students)
    run = read_rows(smoke, "figure2", kind="network", variant="midpoint")[0]["run"]
    assert run in [row["run"] for row in read_rows(smoke, "table3", kind="network", variant="midpoint")]
    smoke = copied(smoke, tmp_path / "copy", "table1")
    written_at = {file: file.stat().st_mtime_ns for file in (smoke / "runs").rglob("*.safetensors")}
    before = read_experiment(smoke, "table1")
    calls: list[tuple[str, int, int]] = []
    again = ckd.reproduce("table1", preset="smoke", out=smoke, on_progress=lambda *call: calls.append(call))
    assert read_experiment(smoke, "table1")["tables"] == before["tables"]
    assert again["estimate"]["left"] == 0
    assert calls[-1][0] == "all tasks"
    assert calls[-1][1] == calls[-1][2]
    assert {file: file.stat().st_mtime_ns for file in (smoke / "runs").rglob("*.safetensors")} == written_at


def test_a_selection_by_another_rule_does_not_become_the_paper_s_choice(smoke: Path, tmp_path: Path):
    """T* is Algorithm 1's choice by the decoder, whatever `select` was last run with, and if it was killed."""
    folder, preset = copied(smoke, tmp_path / "copy"), smoke_preset()
    context = Context(folder, preset, "digits", speeds=speeds_of(preset))
    best = CheckpointChoice(teacher(preset.pairs[0]), "best")
    run, before = best.training.folder(context), best.epoch(context)
    ckd.select(run, rule="best-accuracy")
    assert best.epoch(context) == before
    ckd.score(run, estimator="ridge")
    ckd.select(run, estimator="ridge")
    assert best.epoch(context) == before
    (run / "selection.json").unlink()
    assert best.epoch(context) == before
    rows = read_rows(smoke, "figure7", kind="point", model="wrn_16_2", variant="teacher")
    assert [row["epoch"] for row in rows if row["chosen"]] == [before]
    for estimator in ("decoder", "ridge"):
        assert ScoreTask(best.training, estimator).done(context)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("preset", ALL_PRESETS, ids=lambda preset: f"{preset.name}-{preset.dataset}")
def test_an_experiment_without_results_says_so(name: str, preset: Preset):
    """Every experiment has tasks with every preset, and results that can be shown before any task is done."""
    experiment = get_experiment(name)
    items = experiment.needs(preset)
    assert items
    results = experiment.results(preset, [])
    assert results.tables
    assert all(claim.verdict == "not run yet" for claim in results.claims)
    tasks = ordered(item.task for item in items)
    assert all(tasks.index(required) < tasks.index(task) for task in tasks for required in task.requires())


def test_the_paper_s_averages_are_those_that_it_prints():
    """The last line of Table 3 and the differences of Table 1, from the numbers that we hold."""
    for variant, average in {"0.3": 69.78, "midpoint": 70.76, "0.7": 70.77, "last": 70.46, "best": 70.87}.items():
        assert fmean(pair[variant] for pair in CIFAR100.values()) == pytest.approx(average, abs=0.006)
    best = [pair["best in hindsight"] - pair["last"] for pair in CIFAR100.values()]
    assert best == pytest.approx([0.58, 0.96, 0.15, 0.42])
    assert [pair["midpoint"] - pair["last"] for pair in CIFAR100.values()] == pytest.approx([0.08, 0.96, 0.01, 0.16])


def test_costs_are_steps_times_the_measured_speed(tmp_path: Path):
    preset = smoke_preset()
    context = Context(tmp_path, preset, "digits", speeds=speeds_of(preset), teacher_steps=10, student_steps=10)
    run = TrainTask("wrn_16_2", "teacher")
    assert run.cost(context) == pytest.approx(20 * 10 * 0.1)
    assert ScoreTask(run).cost(context) == pytest.approx(33 * 10 * 0.1)
    assert run.checkpoints(context) == 10
    assert TrainTask("wrn_10_1", "student").checkpoints(context) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table9", "--preset", "smoke"], "Unknown experiment 'table9'. Did you mean"),
        (["table1", "--preset", "smal"], "Unknown preset 'smal'. Did you mean 'small'?"),
        (["table1", "--preset", "small", "--data", "digits"], "Preset 'small' runs on cifar100, not on 'digits'"),
        (["table1", "--preset", "smoke", "--jobs", "0"], "--jobs must be from 1 to 4,096, not 0"),
        (["table1", "--preset", "smoke", "--seeds", "0"], "--seeds must be from 1 to 1,000, not 0"),
        (["table1", "--preset", "smoke", "--select-on", "hold"], "hold"),
        (["table1", "--preset", "smoke", "--alpha", "2"], "alpha must lie in [0, 1], not 2"),
        (["table1", "--preset", "smoke", "--tau", "0"], "tau must be above 0"),
        (["table1", "--preset", "smoke", "--logit-cache-gb", "-1"], "--logit-cache-gb must be from 0"),
        (["table1", "--preset", "smoke", "--data", "digits:foo"], "foo"),
        (["table1", "--preset", "smoke", "--precision", "fp8"], "fp8"),
        (["table1", "--preset", "paper", "--data", "cifar100:nowhere"], "nowhere"),
        (["selection", "--preset", "smoke", "--tune"], "--tune does not apply to the experiment 'selection'"),
    ],
)
def test_bad_input_gives_one_sentence(arguments: list[str], message: str, tmp_path: Path, capsys):
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.glob("out/runs/*"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("machine.json", text) for text in ("[]", "no JSON", '{"a": {"wrn_10_1": {}}}', '{"a": {"b": 5}}')),
        ("machine.json", json.dumps({"a": {"b": {**SPEED, "precision": "fp64"}}})),
        ("machine.json", json.dumps({"a": {"b": {**SPEED, "seconds_per_step": -1}}})),
        *(("experiments.json", text) for text in ("[]", "{}", "no JSON", '{"preset": 3}')),
    ],
)
def test_damaged_files_are_named(name: str, content: str, smoke: Path, tmp_path: Path, capsys):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    shutil.copy(smoke / "experiments.json", path.parent)
    path.write_text(content)
    assert main(["reproduce", "table1", "--preset", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert f"{path} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        *(("measured", text) for text in ("{}", "[]", "null", '{"ensemble": {}, "members": [], "images": 3}')),
        *(("correlated", text) for text in ("{}", "[]", "no JSON", '{"classes": []}')),
        ("runs", "{}"),
    ],
)
def test_a_damaged_result_is_named(smoke: Path, tmp_path: Path, kind: str, content: str, capsys):
    name = {"measured": "table2", "correlated": "figure5", "runs": "table2"}[kind]
    out = copied(smoke, tmp_path / "out")
    file = "result.json" if kind == "runs" else f"{kind}.json"
    part = {"measured": "+", "correlated": "", "runs": "-teacher-"}[kind]  # of the name of a folder that is needed
    path = next(path for path in sorted(out.glob(f"{kind}/*/{file}")) if part in path.parent.name)
    path.write_text(content)
    expected = 0 if kind == "runs" else 2  # the numbers of a finished run are stored elsewhere, too
    assert main(["reproduce", name, "--preset", "smoke", "--out", str(out)]) == expected
    printed = capsys.readouterr().err
    assert "is damaged" in printed
    assert str(path.parent) in printed
    assert "Traceback" not in printed


def test_a_correlation_of_other_classes_is_damaged(smoke: Path, tmp_path: Path, capsys):
    """Matrices that do not fit the classes could not be drawn."""
    out = copied(smoke, tmp_path / "out")
    (path,) = out.glob("correlated/*/correlated.json")
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "classes": stored["classes"][:-1]}))
    assert main(["reproduce", "figure5", "--preset", "smoke", "--out", str(out)]) == 2
    assert f"{path} is damaged: a matrix is not 9 × 9" in capsys.readouterr().err


def test_a_run_that_lost_a_checkpoint_is_named(smoke: Path, tmp_path: Path, capsys):
    out = copied(smoke, tmp_path / "out")
    (run,) = out.glob("runs/wrn_16_2-teacher-seed0-*")
    (run / "checkpoints" / "epoch-0006.safetensors").unlink()
    assert main(["reproduce", "table3", "--preset", "smoke", "--out", str(out)]) == 2
    assert f"{run} is complete but has 9 of its 10 checkpoints" in capsys.readouterr().err


def test_nothing_starts_where_the_report_cannot_be_written(tmp_path: Path, capsys):
    (tmp_path / "report.html").write_text("mine")
    assert main(["reproduce", "table3", "--preset", "smoke", "--out", str(tmp_path)]) == 2
    assert str(tmp_path / "report.html") in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_replaced_results_give_a_warning(smoke: Path, tmp_path: Path, caplog):
    out = copied(smoke, tmp_path / "out", "figure7")
    ckd.reproduce("figure7", preset="smoke", out=out, seeds=1)
    assert f"The results of figure7 in {out} are replaced" in caplog.text
    assert "seeds 2 stored, 1 given" in caplog.text


@pytest.mark.slow
def test_alpha_and_tau_are_tuned_for_each_student_and_its_teachers(tmp_path: Path):
    ckd.reproduce("figure3", preset="smoke", out=tmp_path, seeds=1, tune=True, teacher_epochs=10, student_epochs=2)
    tunings = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("tuned/*/tune.json")}
    rows = read_rows(tmp_path, "figure3", kind="network")
    assert len(rows) == 7
    for row in rows:
        prefix = row["run"].rpartition("-seed")[0]
        (tuning,) = [result for name, result in tunings.items() if name.rpartition("-")[0] == prefix]
        assert {"alpha": row["alpha"], "tau": row["tau"]} == tuning["best"]["values"]
        assert len(tuning["trials"]) == 3
    first, *_, last = read_experiment(tmp_path, "figure3")["tables"]
    assert "α and τ tuned for each student and its teachers" in first["note"]
    assert len(last["rows"]) == 7


def test_a_folder_holds_one_preset(smoke: Path, tmp_path: Path, capsys):
    shutil.copy(smoke / "experiments.json", tmp_path)
    assert main(["reproduce", "table1", "--preset", "digits", "--out", str(tmp_path)]) == 2
    assert "holds experiments with the preset smoke. Choose another --out." in capsys.readouterr().err


def test_a_folder_holds_one_set_of_images(smoke: Path, tmp_path: Path, capsys):
    stored = json.loads((smoke / "experiments.json").read_text())
    (tmp_path / "experiments.json").write_text(json.dumps({**stored, "images_sha256": "0" * 64}))
    assert main(["reproduce", "table1", "--preset", "smoke", "--out", str(tmp_path)]) == 2
    assert "holds experiments with the image content 000" in capsys.readouterr().err


def test_a_folder_with_something_else_is_left_alone(teacher_run: Path, capsys):
    """The report of experiments would stand for all that is there."""
    folder = teacher_run.parent
    before = {path for path in folder.rglob("*") if path.name != ".lock"}
    assert main(["reproduce", "table1", "--preset", "smoke", "--out", str(folder)]) == 2
    assert f"{folder} holds something else (teacher). Choose another --out." in capsys.readouterr().err
    assert {path for path in folder.rglob("*") if path.name != ".lock"} == before


def test_a_report_before_the_first_result_says_so(smoke: Path, tmp_path: Path):
    shutil.copy(smoke / "experiments.json", tmp_path)
    run = next(smoke.glob("runs/wrn_16_2-teacher-seed0-*"))
    shutil.copytree(run, tmp_path / "runs" / run.name)
    assert "not finished" in ckd.report(tmp_path).read_text(encoding="utf-8").lower()


@pytest.mark.slow
def test_the_paper_s_preset_asks_first(tmp_path: Path, cifar100: Path):
    """It prints the cost before anything is trained, and starts only if the user accepts."""
    command = [
        *(sys.executable, "-m", "checkpointkd.cli", "reproduce", "figure3", "--preset", "paper"),
        *("--data", f"cifar100:{cifar100}", "--precision", "fp32", "--out", str(tmp_path / "paper")),
    ]
    process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ})
    assert process.returncode == 2
    assert "10 teachers, 45 students" in process.stderr
    assert "hours with one job" in process.stderr
    assert "To start, add --yes (in Python yes=True)." in process.stderr
    assert not (tmp_path / "paper" / "runs").exists()
