"""Tasks: their order by priority, when they are done, what they leave, and options that change a preset."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import checkpointkd as ckd
from checkpointkd.cli import main
from checkpointkd.data import load_data
from checkpointkd.experiments.catalog import PAPER, by_priority, get_experiment
from checkpointkd.experiments.context import Context
from checkpointkd.experiments.items import snapshot_ensemble, teacher
from checkpointkd.experiments.presets import Pair, paper
from checkpointkd.experiments.tasks import CheckpointChoice, DistillTask, ScoreTask, Task, TrainTask, ordered
from checkpointkd.records.runs import TrainRecord

from .conftest import smoke_preset

PRESET = paper()
WRN_WRN, WRN_MOBILE, RESNET_RESNET, _ = PRESET.pairs


def _position(tasks: list[Task], pair: Pair, *which: str, seed: int = 0) -> int:
    """Return the position of the student of these checkpoints of the pair's first teacher."""
    teachers = tuple(CheckpointChoice(teacher(pair), name) for name in which)
    return tasks.index(DistillTask(pair.student, teachers, seed))


def test_tasks_are_ordered_by_priority():
    """The order of the paper's central claims, on the paper's own networks."""
    items = {name: get_experiment(name).needs(PRESET) for name in (*PAPER, "lr-schedule")}
    tasks = ordered(by_priority(PRESET, items))
    assert set(tasks) == set(ordered(item.task for needed in items.values() for item in needed))
    first, second = teacher(WRN_WRN), teacher(WRN_WRN, 1)
    mixed = (CheckpointChoice(first, "midpoint"), CheckpointChoice(second, "last"))
    ten_runs = tuple(CheckpointChoice(teacher(WRN_WRN, number), "last") for number in range(10))
    positions = [
        tasks.index(first),
        tasks.index(ScoreTask(first, "ridge")),
        tasks.index(TrainTask("wrn_40_2", "teacher", recipe="cifar100-step")),
        tasks.index(TrainTask("wrn_40_1", "student", 0)),
        _position(tasks, WRN_WRN, "best"),
        _position(tasks, WRN_WRN, "best", seed=4),
        tasks.index(second),
        tasks.index(DistillTask(WRN_WRN.student, mixed, 4)),
        _position(tasks, WRN_MOBILE, "best"),
        _position(tasks, WRN_MOBILE, "midpoint", "last", seed=4),
        tasks.index(teacher(RESNET_RESNET)),
        _position(tasks, RESNET_RESNET, "best"),
        tasks.index(ScoreTask(TrainTask("wrn_40_1", "student", 0))),
        _position(tasks, WRN_WRN, "0.1"),
        tasks.index(DistillTask("wrn_40_1", ten_runs, 0)),
    ]
    assert positions == sorted(positions)
    ten_of_one_run = tasks.index(DistillTask("wrn_40_1", snapshot_ensemble(first, 10), 0))
    assert ten_of_one_run > _position(tasks, WRN_WRN, "0.9", seed=4)


def test_scores_with_other_settings_are_not_done(smoke: Path, tmp_path: Path):
    """Fewer images to measure on give another information plane."""
    (folder,) = (smoke / "runs").glob("resnet_14-teacher-seed0-*")
    run = tmp_path / "runs" / folder.name
    shutil.copytree(folder, run)
    shutil.copy(smoke / "machine.json", tmp_path)
    context = Context(tmp_path, smoke_preset(), "digits")
    context = context.with_speeds(["resnet_14"], load_data(context.data_config("teacher")))
    tasks = [ScoreTask(TrainTask("resnet_14", "teacher"), estimator) for estimator in ("decoder", "ridge")]
    assert [task.done(context) for task in tasks] == [True, True]
    ckd.score(run, estimator="ridge", measure_images=60)
    assert [task.done(context) for task in tasks] == [True, False]
    ckd.score(run, decoder_steps=20, decoder_seeds=2, fit_images=50)
    assert [task.done(context) for task in tasks] == [False, False]


def test_float16_runs_are_small(tmp_path: Path):
    """The run of seed 0 keeps its curve, other seeds the last checkpoint only, which can be scored all the same."""
    context = Context(tmp_path, replace(smoke_preset(), checkpoint_dtype="float16"), "digits")
    context = context.with_speeds(["wrn_10_1"], load_data(context.data_config("teacher")))
    sizes = {}
    for seed in (0, 1):
        run = TrainTask("wrn_10_1", "student", seed)
        scores = ScoreTask(run)
        for task in (run, scores):
            task.run(context)
            assert task.done(context)
        kept = sorted((run.folder(context) / "checkpoints").iterdir())
        assert len(kept) == run.checkpoints(context) == (2 if seed == 0 else 1)
        assert kept[-1].name == "epoch-0004.safetensors"
        sizes[seed] = kept[-1].stat().st_size
        (row,) = [row for row in scores.rows(context) if row["epoch"] == 4]
        assert row["seed"] == seed
        assert run.megabytes(context) == pytest.approx(len(kept) * sizes[seed] / 1e6, rel=0.2)
    assert sizes[0] == sizes[1] < 0.6 * 4 * 77_562


def test_speeds_are_measured_once_for_any_number_of_images(tmp_path: Path):
    context = Context(tmp_path, smoke_preset(), "digits")
    assert context.with_speeds(["wrn_10_1"], load_data(context.data_config("teacher"))).teacher_steps == 4
    stored = (tmp_path / "machine.json").read_text()
    fewer = replace(context, preset=replace(context.preset, train_images=30))
    assert fewer.with_speeds(["wrn_10_1"], load_data(fewer.data_config("teacher"))).teacher_steps == 1
    assert (tmp_path / "machine.json").read_text() == stored


def test_students_without_a_teacher_have_the_smoothing_of_their_recipe(tmp_path: Path):
    """Like students of teachers, unless the task asks for a smoothing of its own."""
    context = Context(tmp_path, replace(smoke_preset(), student_recipe="deit", student_epochs=2), "digits")
    context = context.with_speeds(["wrn_10_1"], load_data(context.data_config("teacher")))
    for smoothing, expected in ((0.0, 0.1), (0.3, 0.3)):
        task = TrainTask("wrn_10_1", "student", smoothing=smoothing)
        task.run(context)
        run = task.trajectory(context).run
        assert isinstance(run, TrainRecord)
        assert run.label_smoothing == run.recipe.label_smoothing == expected


def test_students_can_have_fewer_images_than_their_teachers(tmp_path: Path):
    """The students' images are among the teachers', and all networks have the same validation images."""
    preset = replace(smoke_preset(), student_train_images=40, teacher_epochs=2, student_epochs=2)
    context = Context(tmp_path, preset, "digits")
    context = context.with_speeds(["wrn_10_1"], load_data(context.data_config("teacher")))
    assert (context.teacher_steps, context.student_steps) == (4, 2)
    training = TrainTask("wrn_10_1", "teacher")
    student = DistillTask("wrn_10_1", (CheckpointChoice(training, "last"),), seed=0)
    scratch = TrainTask("wrn_10_1", "student")
    for task in (training, student, scratch):
        task.run(context)
        assert task.done(context)
    sizes = [task.trajectory(context).run.data.train_size for task in (training, student, scratch)]
    assert sizes == [100, 40, 40]
    few, many = (load_data(context.data_config(role)) for role in ("student", "teacher"))
    assert set(few.train.index_N.tolist()) < set(many.train.index_N.tolist())
    assert few.val.index_N.tolist() == many.val.index_N.tolist()


def test_other_sizes_are_noted_in_the_results(tmp_path: Path):
    """Runs of any length, with as many checkpoints as they have room for, in an experiment without students."""
    out = tmp_path / "out"
    result = ckd.reproduce("figure5", preset="smoke", teacher_epochs=4, train_images=60, seeds=1, out=out)
    expected = "Not the preset's own settings: teacher epochs 4, train images 60, seeds 1."
    assert expected in result["experiments"]["figure5"]["notes"][0]
    (run,) = (out / "runs").iterdir()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        f"epoch-000{epoch}.safetensors" for epoch in (1, 2, 3, 4)
    ]
    assert json.loads((out / "figure5" / "experiment.json").read_text())["preset"]["save_every"] == 1
    shown: list[tuple[int, int]] = []

    def on_progress(label: str, done: int, total: int) -> None:
        if label == "all tasks":
            shown.append((done, total))

    options: dict[str, Any] = {"preset": "smoke", "teacher_epochs": 4, "train_images": 60, "out": out}
    ckd.reproduce("figure5", seeds=1, on_progress=on_progress, **options)
    assert {done / total for done, total in shown} == {1.0}, "tasks that were done before are no progress of this call"


def test_a_report_on_teachers_before_their_midpoint(smoke: Path, tmp_path: Path):
    """An early --time-limit leaves such runs. Which checkpoint is the midpoint is not known yet."""
    for pattern in ("wrn_16_2-teacher-seed0-*", "wrn_10_1-student-seed0-*"):
        (run,) = (smoke / "runs").glob(pattern)
        shutil.copytree(run, tmp_path / "runs" / run.name)
    (run,) = (tmp_path / "runs").glob("wrn_16_2-*")
    for path in [*run.glob("plane*"), run / "result.json", run / "selection.json", *run.glob("checkpoints/*")]:
        if path.stem not in ("epoch-0002", "epoch-0004"):
            path.unlink()
    assert "not finished" in ckd.report(tmp_path).read_text(encoding="utf-8").lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--teacher-epochs 1", "--teacher-epochs must be at least 2, so that a run has a midpoint, not 1"),
        ("--student-epochs 0", "--student-epochs must be at least 2"),
        ("--train-images 0", "train_images must be at least 1"),
        ("--teacher-recipe cifar", "Unknown recipe 'cifar'. Did you mean"),
        ("--time-limit 0", "--time-limit must be above 0 and below 1,000,000, not 0"),
        ("--jobs many", "many"),
        ("--jobs 1.5", "1.5"),
    ],
)
def test_wrong_numbers_give_one_sentence(arguments: str, message: str, tmp_path: Path, capsys):
    assert main(["reproduce", "figure5", "--preset", "smoke", *arguments.split(), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()
