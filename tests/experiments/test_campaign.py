"""A study in slices: what is worth most first, stopped by the clock or killed, carried elsewhere; and trials."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpointkd.studies import abreast

import checkpointkd as ckd
from checkpointkd.checkpoints import open_trajectory
from checkpointkd.cli import main
from checkpointkd.data import load_data
from checkpointkd.experiments.context import Context
from checkpointkd.experiments.lr_schedule import needs
from checkpointkd.experiments.presets import paper
from checkpointkd.experiments.presets import smoke as smoke_scale
from checkpointkd.experiments.reproduce import PAPER, _module, by_worth
from checkpointkd.experiments.results import rows_of
from checkpointkd.experiments.tasks import (
    CheckpointChoice,
    DistillTask,
    Item,
    ScoreTask,
    Task,
    TrainTask,
    ordered,
    snapshot,
    teacher,
)
from checkpointkd.information import load_plane

from .conftest import begun

SCALE = paper()
WRN_WRN, WRN_MOBILE, RESNET_RESNET, _ = SCALE.pairs
TIMES = ("seconds", "teachers_seconds")


def _at(works: list[Task], pair: Any, *which: str, seed: int = 0) -> int:
    """The place of the student of these checkpoints of the pair's first teacher."""
    members = tuple(CheckpointChoice(teacher(pair), one) for one in which)
    return works.index(DistillTask(pair.student, members, seed))


def test_what_is_worth_most_comes_first():
    """The order of the paper's central claims, on the paper's own networks."""
    parts = {name: _module(name).needs(SCALE) for name in (*PAPER, "schedule")}
    works = ordered(by_worth(SCALE, parts))
    assert set(works) == set(ordered(part.work for several in parts.values() for part in several))
    first, second = teacher(WRN_WRN), teacher(WRN_WRN, 1)
    step = TrainTask("wrn_40_2", "teacher", recipe="cifar100-step")
    mixed = DistillTask(WRN_WRN.student, (CheckpointChoice(first, "midpoint"), CheckpointChoice(second, "last")), 4)
    order = [
        works.index(first),
        works.index(ScoreTask(first, "ridge")),
        works.index(step),
        works.index(TrainTask("wrn_40_1", "student", 0)),
        _at(works, WRN_WRN, "best"),
        _at(works, WRN_WRN, "best", seed=4),
        works.index(second),
        works.index(mixed),
        _at(works, WRN_MOBILE, "best"),
        _at(works, WRN_MOBILE, "midpoint", "last", seed=4),
        works.index(teacher(RESNET_RESNET)),
        _at(works, RESNET_RESNET, "best"),
        works.index(ScoreTask(TrainTask("wrn_40_1", "student", 0))),
        _at(works, WRN_WRN, "0.1"),
        works.index(
            DistillTask("wrn_40_1", tuple(CheckpointChoice(teacher(WRN_WRN, n), "last") for n in range(10)), 0)
        ),
    ]
    assert order == sorted(order)
    assert works.index(DistillTask("wrn_40_1", snapshot(first, 10), 0)) > _at(works, WRN_WRN, "0.9", seed=4)


def _rows_of_planes() -> list[dict[str, Any]]:
    """Teachers of the scale paper by two schedules; the ridge finds the decoder's order reversed."""
    rows: list[dict[str, Any]] = []
    for part in needs(SCALE):
        recipe, _, what = part.arm.partition(", ")
        of = {"pair": part.pair.name, "arm": part.arm}
        if what in ("midpoint", "last"):
            accuracy = {"midpoint": 63.0, "last": 76.5}[what] - (5.0 if recipe == "cifar100" else 0.0)
            rows.append({"kind": "measured", **of, "accuracy": accuracy})
        else:
            information = [3.0, 2.9, 0.0] if what == "decoder" else [0.1, 0.5, 3.0]
            rows += [
                {
                    "kind": "point",
                    **of,
                    "epoch": epoch,
                    "accuracy": accuracy,
                    "information": found,
                    "chosen": False,
                    "accuracy_se": 0.3,
                    "information_se": 0.01,
                    "information_sd": 0.02,
                    "fits": 4,
                    "label_information": 1.0,
                    "file": "a/b",
                }
                for epoch, accuracy, found in zip((10, 100, 200), (20.0, 60.0, 76.0), information, strict=True)
            ]
    return rows


def test_schedules_stand_beside_the_paper():
    found = _module("schedule").results(SCALE, _rows_of_planes())
    (table,) = found.tables
    assert table.rows[:3] == [
        ["wrn_40_2, cifar100 (cosine)", "58.00", "71.50", "100", "200"],
        ["wrn_40_2, cifar100-step (step)", "63.00", "76.50", "100", "200"],
        ["wrn_40_2, the paper", "62.99", "76.53", "160", ""],
    ]
    paper_s = found.figures[0].series[-1]  # type: ignore[union-attr]
    assert (list(paper_s.x), list(paper_s.y)) == ([100, 200], [62.99, 76.53])


def test_the_other_schedule_s_teacher_is_another_run(smoke: Path):
    """With its schedule, moved to the scale's epochs; and both estimators' scores are those that the run keeps."""
    (run,) = (smoke / "runs").glob("wrn_16_2-cifar100-step-teacher-seed0-*")
    recipe = json.loads((run / "run.json").read_text())["recipe"]
    assert (recipe["schedule"], recipe["epochs"], recipe["step_every"]) == ("step", 20, 6)
    (usual,) = (smoke / "runs").glob("wrn_16_2-teacher-seed0-*")
    assert json.loads((usual / "run.json").read_text())["recipe"]["lr_schedule"] == "cosine"
    for folder, arm in ((run, "cifar100-step"), (usual, "digits")):
        for estimator in ("decoder", "ridge"):
            plane = load_plane(open_trajectory(folder), estimator=estimator)
            assert plane is not None
            rows = [
                row
                for row in map(json.loads, _lines(smoke, "schedule"))
                if row["arm"] == f"{arm}, {estimator}" and row["model"] == "wrn_16_2"
            ]
            assert [row["information"] for row in rows] == [point.image_information for point in plane.points]


def test_both_estimators_stand_in_figure_7():
    of = {"pair": WRN_WRN.name}
    arms = {"cifar100, decoder": "teacher", "cifar100, ridge": "teacher, ridge"}
    rows = [
        {**row, **of, "arm": arms[row["arm"]], "chosen": row["epoch"] == 100, "images": 1000}
        for row in _rows_of_planes()
        if row["arm"] in arms and row["pair"] == WRN_WRN.name
    ]
    found = _module("figure7").results(SCALE, rows)
    table = found.tables[0]
    assert [line[0] for line in table.rows] == ["10", "100, chosen", "200"]
    assert [line[-1] for line in table.rows] == ["0.100", "0.500", "3.000"]
    assert "by ridge, in nats a patch, on 1,000 of the images" in table.note
    assert "Spearman's rank correlation of both estimators over 3 checkpoints is -1.00" in table.note
    assert "by ridge Algorithm 1 would choose epoch 200" in table.note
    assert [figure.title for figure in found.figures][1] == "The information plane of wrn_40_2, by ridge"
    for row in rows:
        row["information"] = 0.0 if row["arm"] == "teacher, ridge" else row["information"]
    found = _module("figure7").results(SCALE, rows)
    assert "can't be compared" in found.tables[0].note
    assert len(found.figures) == 1, "no plane of scores that are all the same"


def test_in_slices_it_comes_to_the_same(smoke: Path, tmp_path: Path):
    """Stopped by the clock, killed once, carried in pieces to another folder each time: the same rows in the end."""
    pieces = tmp_path / "pieces"
    slices = ["--time-limit 0.1", "killed", ""]  # the last one ends, however slow the machine
    for place, how in enumerate(slices):
        here = tmp_path / f"slice{place}"
        if place:
            ckd.REMOVEDunpack(pieces, out=here)
        else:
            begun(smoke, here)
        before = _bytes_of_metrics(here)
        words = f"study figure3 --preset smoke --seeds 1 --jobs 2 --out {here}".split()
        words += how.split() if how != "killed" else []
        process = subprocess.Popen(
            [sys.executable, "-m", "checkpointkd.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if how == "killed":
            while _bytes_of_metrics(here) <= before:
                assert process.poll() is None
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        else:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said
            left = json.loads((here / "figure3" / "experiment.json").read_text())["missing"]
            assert left if place == 0 else how or not left
            assert ("the time is over" in said) == bool(left)
            assert ("and the same command goes on" in said) == bool(left)
        packed = ckd.REMOVEDpack(here, out=pieces, megabytes=0.1)
        assert all((pieces / name).stat().st_size <= 1e5 for name in packed["pieces"])
        if place + 1 < len(slices):
            shutil.rmtree(here)
    kept, made = (
        [{name: row[name] for name in row if name not in TIMES} for row in map(json.loads, _lines(where))]
        for where in (smoke, here)
    )
    assert made == [row for row in kept if row["seed"] == 0]


def _bytes_of_metrics(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("runs/*/metrics.jsonl"))


def _lines(folder: Path, study: str = "figure3") -> list[str]:
    return (folder / study / "rows.jsonl").read_text(encoding="utf-8").splitlines()


def test_a_report_on_teachers_before_half_way(smoke: Path, tmp_path: Path):
    """As a slice leaves them that ends early: which checkpoint is half-way, nobody knows yet."""
    (run,) = (smoke / "runs").glob("wrn_16_2-teacher-seed0-*")
    (student,) = (smoke / "runs").glob("wrn_10_1-student-seed0-*")
    shutil.copytree(run, tmp_path / "runs" / run.name)
    shutil.copytree(student, tmp_path / "runs" / student.name)
    run = tmp_path / "runs" / run.name
    for path in [*run.glob("plane*"), run / "result.json", run / "selection.json", *run.glob("checkpoints/*")]:
        if path.stem not in ("epoch-0002", "epoch-0004"):
            path.unlink()
    assert "not finished" in ckd.report(tmp_path).read_text(encoding="utf-8")


def test_scores_made_otherwise_are_made_again(smoke: Path, tmp_path: Path):
    """Fewer images to measure on give another plane, which is none of the study's."""
    preset = smoke_scale()
    (folder,) = (smoke / "runs").glob("resnet_14-teacher-seed0-*")
    shutil.copytree(folder, tmp_path / "runs" / folder.name)
    shutil.copy(smoke / "machine.json", tmp_path)
    context = Context(tmp_path, preset, "digits")
    context = context.look(
        [name for pair in preset.pairs for name in (pair.teacher, pair.student)], load_data(context.data_settings())
    )
    works = [ScoreTask(TrainTask("resnet_14", "teacher"), estimator) for estimator in ("decoder", "ridge")]
    assert all(map(context.done, works))
    ckd.score(tmp_path / "runs" / folder.name, estimator="ridge", measure_images=60)
    assert [*map(context.done, works)] == [True, False]
    ckd.score(tmp_path / "runs" / folder.name, decoder_steps=20, decoder_seeds=2, fit_images=50)
    assert [*map(context.done, works)] == [False, False]


def test_a_schedule_s_teacher_is_trained_once(smoke: Path):
    """By whatever name it is asked for: as the other schedule's, or as everybody's by --teacher-recipe."""
    preset = smoke_scale()
    machine = json.loads((smoke / "machine.json").read_text())["auto, digits, fp32"]
    context = Context(smoke, preset, "digits", machine=machine)
    other = replace(context, preset=replace(preset, teacher_recipe="cifar100-step"))
    run = TrainTask("wrn_16_2", "teacher")
    assert context.folder(replace(run, recipe="cifar100-step")) == other.folder(run)
    assert context.folder(run) == other.folder(replace(run, recipe="digits"))
    assert {context.folder(part.work.run) for part in needs(preset) if isinstance(part.work, ScoreTask)} == {
        other.folder(part.work.run) for part in needs(other.preset) if isinstance(part.work, ScoreTask)
    }


def test_how_many_at_once_is_measured_once(tmp_path: Path):
    """That it is measured at all: below, by a trial."""
    preset = smoke_scale()
    context = Context(tmp_path, preset, "digits")
    student = preset.pairs[0].student
    context = context.look([student], load_data(context.data_settings()))
    path = tmp_path / "at_once.json"
    key = f"cpu, {os.cpu_count()} cores, {student}, fp32"
    path.write_text(json.dumps({key: 7}))
    assert abreast.most_at_once(context, student) == 7
    for damaged in ('{"a": ', json.dumps({key: True}), json.dumps({key: 257}), "[]"):
        path.write_text(damaged)
        assert abreast.most_at_once(context, student, until=0.0) == 1, "measured again, for which there is no time here"
        assert path.read_text() == damaged


def test_what_travels_is_little(tmp_path: Path):
    """In 16 bits; the first seed's curve, and others' last checkpoint only, which can be scored all the same."""
    preset = replace(smoke_scale(), checkpoint_dtype="float16")
    context = Context(tmp_path, preset, "digits").look(
        ["wrn_10_1"], load_data(Context(tmp_path, preset, "digits").data_settings())
    )
    sizes = {}
    for seed in (0, 1):
        run = TrainTask("wrn_10_1", "student", seed)
        for work in (run, ScoreTask(run)):
            context.carry_out(work)
            assert context.done(work)
        kept = sorted((context.folder(run) / "checkpoints").iterdir())
        assert len(kept) == context.checkpoints(run) == (2 if seed == 0 else 1)
        assert kept[-1].name == "epoch-0004.safetensors"
        sizes[seed] = kept[-1].stat().st_size
        (row,) = [
            row
            for row in rows_of(context, [Item(preset.pairs[0], "scratch", ScoreTask(run))], context.done)
            if row["epoch"] == 4
        ]
        assert row["seed"] == seed
    assert sizes[0] == sizes[1] < 0.6 * 4 * 77_562


def test_what_was_measured_serves_other_numbers_of_images(tmp_path: Path):
    context = Context(tmp_path, smoke_scale(), "digits")
    assert context.look(["wrn_10_1"], load_data(context.data_settings())).machine["wrn_10_1"]["steps_an_epoch"] == 4
    measured = (tmp_path / "machine.json").read_text()
    fewer = replace(context, preset=replace(context.preset, train_images=30))
    assert fewer.look(["wrn_10_1"], load_data(fewer.data_settings())).machine["wrn_10_1"]["steps_an_epoch"] == 1
    assert (tmp_path / "machine.json").read_text() == measured


def test_a_trial_says_that_it_is_one(tmp_path: Path, monkeypatch):
    """Runs as short as one likes, with as many checkpoints as they have room for, in a study that has no students."""
    monkeypatch.setattr(abreast, "SECONDS", 0.1)
    out = tmp_path / "out"
    found = ckd.reproduce("figure5", preset="smoke", teacher_epochs=4, train_images=60, seeds=1, jobs="auto", out=out)
    ((measured, count),) = json.loads((out / "at_once.json").read_text()).items()
    assert measured.startswith(f"cpu, {os.cpu_count()} cores, ")
    assert 1 <= count <= (os.cpu_count() or 1)
    assert (
        "Not the scale's own settings: teacher epochs 4, train images 60, seeds 1."
        in found["studies"]["figure5"]["notes"][0]
    )
    (run,) = (out / "runs").iterdir()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        f"epoch-000{epoch}.safetensors" for epoch in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--teacher-epochs 1", "--teacher-epochs must be at least 2, or there is nothing half-way, not 1"),
        ("--student-epochs 0", "--student-epochs must be at least 2"),
        ("--train-images 0", "train_images must be at least 1"),
        ("--teacher-recipe cifar", "Unknown recipe 'cifar'. Did you mean"),
        ("--time-limit 0", "--time-limit must be above 0 and below 1,000,000, not 0"),
        ("--jobs many", "--jobs must be auto or from 1 to 256, not many"),
        ("--jobs 1.5", "--jobs must be auto or from 1 to 256, not 1.5"),
    ],
)
def test_bad_numbers_are_told(words: str, said: str, tmp_path: Path, capsys):
    assert main(["reproduce", "figure5", "--preset", "smoke", *words.split(), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()
