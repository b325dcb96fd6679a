"""The pilot search: which candidates it tries, what it chooses, and that it continues after a kill."""

from __future__ import annotations

import html
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import checkpointkd as ckd
from checkpointkd.checkpoints.refs import resolve, resolve_ensemble
from checkpointkd.cli import main
from checkpointkd.errors import Diverged, UserError
from checkpointkd.records.selection import teachers_in_words
from checkpointkd.selection import pilot
from checkpointkd.selection.pilot_store import PILOT_RUNS
from checkpointkd.training import run as run_module

SHORT = {
    "student": "wrn_10_1",
    "epochs": 20,
    "batch_size": 20,
    "precision": "fp32",
    "budget": "70",
    "train_images": 100,
}
LAST = 24


@pytest.fixture(scope="module")
def _long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher"
    small = {"train_images": 400, "epochs": LAST, "save_every": 4, "batch_size": 20, "precision": "fp32"}
    ckd.train("wrn_10_1", data="digits", out=path, learning_rate=0.03, **small)
    return path


@pytest.fixture
def teacher(_long_run: Path, tmp_path: Path) -> Path:
    """A run on four times the images of its students, so that teaching helps; the test may change it."""
    return Path(shutil.copytree(_long_run, tmp_path / "teacher"))


@pytest.fixture(scope="module")
def _searched(_long_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("searched")
    ckd.train("wrn_10_1", data="digits", out=path / "bf16", epochs=1, train_images=100, precision="bf16")
    killed = path / "pilot" / PILOT_RUNS / "no-teacher-10-epochs" / "run.json"  # a process was killed at its start
    killed.parent.mkdir(parents=True)
    shutil.copy(path / "bf16" / "run.json", killed)
    (path / "pilot" / "pilot_search.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "load_test", lambda *_, **__: pytest.fail("a pilot run loaded the test images"))
        ckd.select(shutil.copytree(_long_run, path / "teacher"), out=path / "pilot", **SHORT)
    return path / "pilot"


@pytest.fixture
def searched(_searched: Path, tmp_path: Path) -> Path:
    """The directory of a finished search with `SHORT`, which the same command uses; the test may change it."""
    return Path(shutil.copytree(_searched, tmp_path / "pilot"))


def _results(out: Path) -> dict[Path, int]:
    """The results of completed pilot runs, with the times when they were written."""
    return {path: path.stat().st_mtime_ns for path in out.glob(f"{PILOT_RUNS}/*/result.json")}


def test_candidate_with_the_highest_expected_gain_is_chosen(teacher: Path, searched: Path):
    """`_searched` fails if a pilot run loads the test images."""
    result = ckd.select(teacher, out=searched, **SHORT)
    (chosen,) = (row for row in result.candidates if row.chosen)
    assert chosen.gain == max(row.gain for row in result.candidates) == result.gain
    assert (result.low, result.high, result.chance) == pytest.approx((chosen.low, chosen.high, chosen.chance))
    assert sum(row.chance for row in result.candidates) == pytest.approx(1)
    assert result.spent_epochs == 10 * len(result.pilot_runs) <= 70


def test_methods_and_teachers_are_candidates_and_the_default_and_no_teacher_are_tried(teacher: Path, searched: Path):
    result = ckd.select(teacher, out=searched, **SHORT)
    assert [run.candidate for run in result.pilot_runs[:2]] == [f"kd from epoch {LAST}, alpha 0.5", "no teacher"]
    names = {row.candidate for row in result.candidates}
    assert len(names) == len(result.candidates) == 1 + 4 * 7
    assert {"dist from epoch 16", "kd from mean:0.7-1.0, alpha 0.1", f"lskd from epochs 12 + {LAST}"} < names
    assert {run.candidate for run in result.pilot_runs} == {row.candidate for row in result.candidates if row.accuracy}


def test_space_can_be_restricted(teacher: Path, tmp_path: Path):
    restricted = {"methods": ["kd", "at"], "teachers_from": ["8+12", "last", f"{LAST}"], "alpha": [0.3]}
    result = ckd.select(teacher, out=tmp_path / "pilot", **{**SHORT, "epochs": 1, "budget": 9, **restricted})
    assert {row.candidate for row in result.candidates} == {
        "no teacher",
        "kd from epochs 8 + 12, alpha 0.3",
        "at from epochs 8 + 12",
        f"kd from epoch {LAST}, alpha 0.3",
        f"at from epoch {LAST}",
        f"kd from epoch {LAST}, alpha 0.5",
    }, "the default is always compared"
    for wrong, message in (
        ({"teachers_from": ["7"]}, "No checkpoint of epoch 7"),
        ({"teachers_from": ["first"]}, "'first' is not a checkpoint reference"),
        ({"methods": ["KD"]}, "'KD'"),
    ):
        with pytest.raises(UserError, match=message):
            ckd.select(teacher, out=tmp_path / "other", **{**SHORT, **wrong})


def test_run_with_one_checkpoint_compares_methods(teacher: Path, tmp_path: Path, caplog):
    caplog.set_level("INFO", "checkpointkd")
    for path in sorted(teacher.glob("checkpoints/*"))[:-1]:
        path.unlink()
    result = ckd.select(teacher, out=tmp_path / "pilot", **{**SHORT, "epochs": 1, "budget": 3})
    assert {row.candidate.partition(" from ")[2].partition(",")[0] for row in result.candidates} == {
        "",
        f"epoch {LAST}",
    }
    assert "Not compared: teachers mean:0.7-1.0" in caplog.text


def test_result_describes_the_stored_pilot_runs(teacher: Path, searched: Path):
    result = ckd.select(teacher, out=searched, **SHORT)
    for outcome in result.pilot_runs:
        method = f"{outcome.method}-from-{'+'.join(outcome.teachers)}".replace(":", "-")
        name = (
            method + ("" if outcome.alpha is None else f"-alpha-{outcome.alpha:g}")
            if outcome.teachers
            else "no-teacher"
        )
        run = ckd.open_trajectory(searched / PILOT_RUNS / f"{name}-{result.pilot_epochs}-epochs")
        stored = run.result()
        assert stored is not None
        assert stored.val.accuracy == pytest.approx(outcome.accuracy)
        assert run.run.precision == "fp32", "as asked for, not as in the run that was killed"
        assert run.run.recipe.epochs == 10, "the learning rate falls to its end"


def test_best_resolves_to_choice_and_command_uses_it(teacher: Path, searched: Path, tmp_path: Path):
    result = ckd.select(teacher, out=searched, then_distill=tmp_path / "then", **SHORT)
    if result.teachers:  # on some processors, no teacher is better for so few images
        refs = resolve_ensemble([f"{teacher}@best"])
        assert [ref.checkpoint.average or str(ref.checkpoint.epoch) for ref in refs] == list(result.teachers)
    stored = json.loads((searched / "pilot.json").read_text())["result"]
    assert stored["command"] == result.command
    command = shlex.split(result.command.replace("OUT", str(tmp_path / "student")))
    assert main(command[1:]) == 0
    run, then = ckd.open_trajectory(tmp_path / "student"), ckd.open_trajectory(tmp_path / "then")
    assert [taught.name for taught in getattr(run.run, "teachers", ())] == list(result.teachers)
    assert getattr(run.run, "method", None) == result.method
    if result.alpha is not None:
        assert (run.run.kd.alpha, run.run.kd.tau) == (result.alpha, 5.0)
    assert (run.run.recipe.epochs, run.run.recipe.batch_size) == (20, 20)
    assert (run.run.data.train_images, run.run.precision) == (100, "fp32")
    assert then.last.sha256 == run.last.sha256, "--then-distill trains the same student"


def test_best_can_be_a_weight_average(teacher: Path, tmp_path: Path):
    only = {"methods": ["kd"], "teachers_from": ["mean:0.5-1.0"], "alpha": [0.1]}
    result = ckd.select(teacher, out=tmp_path / "pilot", **{**SHORT, "epochs": 1, "budget": 3, **only})
    chosen = {"rule": "pilot", "student": "s", "reason": "", "epochs": [], "teachers": ["mean:0.5-1.0"], "method": "kd"}
    (teacher / "selection.json").write_text(json.dumps(chosen))
    assert resolve(f"{teacher}@best").checkpoint.average == "mean:0.5-1.0"
    assert list(ckd.inspect(teacher)["selected"]) == ["mean:0.5-1.0"]
    assert "kd from mean:0.5-1.0, alpha 0.1" in {run.candidate for run in result.pilot_runs}


def test_selection_json_is_readable(teacher: Path, searched: Path):
    result = ckd.select(teacher, out=searched, **SHORT)
    selection = ckd.open_trajectory(teacher).selection()
    assert selection is not None
    assert (selection.rule, selection.student, selection.epochs) == ("pilot", "wrn_10_1", result.epochs)
    assert (selection.teachers, selection.method, selection.alpha) == (result.teachers, result.method, result.alpha)
    assert selection.estimator is None


def test_distill_warns_if_best_is_for_another_student(teacher: Path, tmp_path: Path, caplog):
    chosen = {"rule": "pilot", "student": "wrn_10_1", "reason": "", "method": "kd", "alpha": 0.1, "tau": 5.0}
    (teacher / "selection.json").write_text(json.dumps({**chosen, "epochs": [LAST]}))
    quick = {"teachers": [f"{teacher}@best"], "epochs": 1, "save_every": 1, "precision": "fp32"}
    ckd.distill("wrn_10_1", out=tmp_path / "same", alpha=0.1, tau=5, **quick)
    assert "@best was " not in caplog.text
    ckd.distill("wrn_10_1", out=tmp_path / "weight", **quick)
    assert "selected for wrn_10_1, method kd, alpha 0.1, tau 5.0, but is used for wrn_10_1, method kd, " in caplog.text
    assert "add --method kd --alpha 0.1 --tau 5.0" in caplog.text
    caplog.clear()
    ckd.distill("resnet_8", out=tmp_path / "student", method="at", **quick)
    assert "@best was selected for wrn_10_1, method kd, but is used for resnet_8, method at. To choose" in caplog.text


def test_best_can_be_a_pair_or_no_teacher(teacher: Path):
    stored = {"rule": "pilot", "student": "wrn_10_1", "reason": "it was", "made_with": None}
    (teacher / "selection.json").write_text(json.dumps({**stored, "epochs": [4, 8]}))
    assert [ref.text for ref in resolve_ensemble([f"{teacher}@best"])] == [f"{teacher}@4", f"{teacher}@8"]
    with pytest.raises(UserError, match="Name one checkpoint"):
        resolve(f"{teacher}@best")
    (teacher / "selection.json").write_text(json.dumps({**stored, "epochs": []}))
    with pytest.raises(UserError, match="wrn_10_1"):
        resolve_ensemble([f"{teacher}@best"])
    for damaged in ({**stored, "epochs": [4.5]}, {**stored, "epochs": "2"}, {"rule": "pilot", "reason": ""}):
        (teacher / "selection.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match="damaged"):
            resolve_ensemble([f"{teacher}@best"])


@pytest.mark.slow
def test_killed_search_continues_with_the_same_result(teacher: Path, searched: Path, tmp_path: Path):
    whole = ckd.select(teacher, out=searched, **SHORT)
    killed = tmp_path / "killed"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    command = [sys.executable, "-m", "checkpointkd.cli", "select", str(teacher), "--out", str(killed), *options]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here, or the last bits differ
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=one_thread)
    while len(_results(killed)) < 2:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "killed" in next(line for line in ckd.report(tmp_path).read_text().splitlines() if "Not finished: " in line)
    stored = _results(killed)
    again = ckd.select(teacher, out=killed, **SHORT)
    assert stored.items() <= _results(killed).items(), "no stored run is trained again"
    assert [run.information for run in again.pilot_runs] == [run.information for run in whole.pilot_runs]
    assert (again.teachers, again.method) == (whole.teachers, whole.method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"budget": "10"},
            r"A budget of 10 epochs covers 1 pilot run of 10 epochs \(at least 100 steps each\), but a comparison "
            r"needs at least 2. Pass --budget 20 or more",
        ),
        ({"budget": "a lot"}, "'a lot'"),
        ({"budget": "0.0"}, "'0.0'"),
        ({"budget": " 70"}, "' 70'"),
        ({"budget": "٣"}, "'٣'"),
        ({"alpha": [1.0]}, "--alpha 1 gives the teacher no weight"),
        ({"rule": "algorithm1"}, "--rule algorithm1"),
        ({"alpha": [0.5, 0.5]}, "The values of --alpha must differ"),
        ({"alpha": [1.5]}, "alpha must"),
        ({"student": "wrn"}, "'wrn'"),
        ({"data": "cifar10:nowhere"}, "nowhere"),
    ],
)
def test_invalid_options_are_refused_and_leave_no_directory(teacher: Path, tmp_path: Path, options, message):
    with pytest.raises(UserError, match=message):
        ckd.select(teacher, out=tmp_path / "pilot", **{**SHORT, **options})
    assert not (tmp_path / "pilot").exists()
    ckd.select(teacher, out=tmp_path / "pilot", **{**SHORT, "epochs": 1, "budget": 3})


def test_another_search_and_other_files_are_refused(teacher: Path, tmp_path: Path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"papers already holds other files \(thesis.tex\). Choose another --out"):
        ckd.select(teacher, out=tmp_path / "papers", **SHORT)
    with pytest.raises(UserError, match="--out"):
        ckd.select(teacher, student="wrn_10_1")  # type: ignore[call-overload]
    quick = {**SHORT, "budget": "3.0", "epochs": 1}
    ckd.select(teacher, out=tmp_path / "pilot", **quick)
    for option, value, difference in (
        ("seed", 7, "seed 0 .*, 7"),
        ("precision", "bf16", "precision 'fp32' .*, 'bf16'"),
        ("batch_size", 30, "recipe batch_size 20 .*, 30"),
    ):
        with pytest.raises(UserError, match=rf"already holds another pilot search \({difference} "):
            ckd.select(teacher, out=tmp_path / "pilot", **{**quick, option: value})


def test_report_shows_pilot_runs_but_not_as_students(teacher: Path, searched: Path, tmp_path: Path):
    result = ckd.select(teacher, out=searched, **SHORT)
    page = ckd.report(tmp_path).read_text()
    assert f"{100 * result.pilot_runs[0].accuracy:.1f}" in page
    assert result.reason in html.unescape(page)
    assert f"<code>{result.command}</code>" in html.unescape(page)
    assert page.count(">wrn_10_1</td>") == 1, "the teacher only"
    (searched / "pilot.json").write_text('{"result": {"epochs": ["<script>"]}}')
    page = ckd.report(tmp_path).read_text()
    assert "pilot.json is damaged" in page
    assert result.reason not in html.unescape(page)


def test_diverged_run_counts_and_is_not_trained_again(teacher: Path, tmp_path: Path, monkeypatch, caplog):
    caplog.set_level("INFO", "checkpointkd")
    trained: list[str] = []
    run_distillation = pilot.run_distillation

    def diverge_by_dist(run, spec, data, **options):
        trained.append(run.out.name)
        assert run.precision == "fp32"
        if spec.method == "dist":
            raise Diverged("the loss became NaN")
        return run_distillation(run, spec, data, **options)

    monkeypatch.setattr(pilot, "run_distillation", diverge_by_dist)
    quick = {**SHORT, "methods": ["kd", "dist"], "alpha": [0.5], "teachers_from": ["last"], "epochs": 1, "budget": 12}
    result = ckd.select(teacher, out=tmp_path / "pilot", **quick)
    name = f"dist-from-{LAST}-1-epochs"
    assert sorted(trained) == [name, f"kd-from-{LAST}-alpha-0.5-1-epochs"]
    assert result.spent_epochs == 1 + len(trained), "the diverged run counts"
    assert result.method != "dist"
    assert any(f"dist from epoch {LAST} failed" in warning for warning in result.warnings)
    assert "(stored)" not in caplog.text
    again = ckd.select(teacher, out=tmp_path / "pilot", **quick)
    assert trained.count(name) == 1
    assert (again.teachers, again.spent_epochs) == (result.teachers, result.spent_epochs)
    assert caplog.text.count("(stored)") == len(result.pilot_runs)


def test_nothing_is_chosen_if_all_runs_diverge(teacher: Path, tmp_path: Path, monkeypatch):
    def diverge(*_: Any, **__: Any):
        raise Diverged("the loss became NaN")

    monkeypatch.setattr(pilot, "run_distillation", diverge)
    quick = {**SHORT, "methods": ["kd"], "teachers_from": ["last"], "epochs": 1, "budget": 12}
    assert ckd.select(teacher, out=tmp_path / "alone", **quick).teachers == (), "only no teacher is left"
    monkeypatch.setattr(pilot, "run_training", diverge)
    (teacher / "selection.json").unlink()
    with pytest.raises(UserError, match=r"All pilot runs from .* failed.* smaller --learning-rate"):
        ckd.select(teacher, out=tmp_path / "pilot", **quick)
    assert not (teacher / "selection.json").exists()


def test_larger_budget_continues(teacher: Path, tmp_path: Path):
    quick = {**SHORT, "epochs": 1}
    first = ckd.select(teacher, out=tmp_path / "pilot", **{**quick, "budget": 3})
    stored = _results(tmp_path / "pilot")
    more = ckd.select(teacher, out=tmp_path / "pilot", **{**quick, "budget": 6})
    assert stored.items() <= _results(tmp_path / "pilot").items()
    assert more.pilot_runs[: len(first.pilot_runs)] == first.pilot_runs
    assert len(first.pilot_runs) == 3 < len(more.pilot_runs) <= 6
    less = ckd.select(teacher, out=tmp_path / "pilot", **{**quick, "budget": 3})
    assert less == more, "stored runs are used, whatever the budget"


def test_pilot_run_has_the_whole_learning_rate_schedule(teacher: Path, tmp_path: Path):
    steps = {**SHORT, "recipe": "cifar100-step", "epochs": 40, "budget": 30}
    ckd.select(teacher, out=tmp_path / "pilot", **steps)
    (run,) = (tmp_path / "pilot" / PILOT_RUNS).glob("no-teacher-*")
    recipe = ckd.open_trajectory(run).run.recipe
    assert (recipe.epochs, recipe.step_every) == (10, 3), "it falls every 60 of 200 epochs"


@pytest.mark.slow
def test_no_teacher_is_chosen_if_the_teachers_are_poor(teacher_run: Path, tmp_path: Path):
    """The checkpoints of `teacher_run` have accuracies of 24 to 56%, below that of the pilot run without a teacher."""
    result = ckd.select(teacher_run, out=tmp_path / "pilot", **{**SHORT, "budget": 60})
    assert result.teachers == ()
    assert result.reason.startswith("Use no teacher")
    assert "train wrn_10_1 --data digits" in result.command
    assert f"--epochs {SHORT['epochs']}" in result.command
    assert "--no-flip" in result.command, "on the same images as the pilot runs"


def test_search_keeps_its_checkpoints_and_refuses_changed_ones(teacher: Path, tmp_path: Path, caplog):
    quick = {**SHORT, "epochs": 1, "budget": 3}
    later = teacher / "checkpoints" / f"epoch-00{LAST}.safetensors"
    content = later.read_bytes()
    later.unlink()
    first = ckd.select(teacher, out=tmp_path / "pilot", **quick)
    later.write_bytes(content)
    (tmp_path / "pilot" / "pilot_search.json.17.unfinished").write_text("{")  # a process was killed while it wrote
    caplog.clear()
    again = ckd.select(teacher, out=tmp_path / "pilot", **quick)
    assert again.pilot_runs == first.pilot_runs
    assert again.candidates == first.candidates
    assert "1 checkpoint saved since the pilot search in" in caplog.text
    other = ckd.train(
        "wrn_10_1",
        data="digits",
        out=tmp_path / "other",
        epochs=LAST,
        save_every=4,
        train_images=60,
        batch_size=60,
        precision="fp32",
    )
    shutil.copy(other[20].path, teacher / "checkpoints" / "epoch-0020.safetensors")
    with pytest.raises(UserError, match=r"already holds another pilot search \(teachers"):
        ckd.select(teacher, out=tmp_path / "pilot", **quick)


def test_select_replaces_a_damaged_selection_and_logs_a_changed_one(teacher: Path, tmp_path: Path, caplog):
    caplog.set_level("INFO", "checkpointkd")
    (teacher / "selection.json").write_text("[]")
    result = ckd.select(teacher, out=tmp_path / "pilot", **{**SHORT, "epochs": 1, "budget": 3})
    assert list(ckd.inspect(teacher)["selected"]) == list(result.epochs or result.teachers)
    assert "@best" not in caplog.text
    ckd.select(teacher, rule="midpoint")
    assert f"{teacher}@best is now epoch 12, by rule midpoint" in caplog.text
    assert f"it was {teachers_in_words(result.teachers)}, for wrn_10_1" in caplog.text
    assert f"The safe choice is the last checkpoint, {teacher}@{LAST}" in caplog.text
    caplog.clear()
    ckd.select(teacher, rule="midpoint")
    assert "@best" not in caplog.text


QUICK = {**SHORT, "epochs": 1, "budget": 6}


def test_set_of_an_average_and_a_checkpoint_can_be_chosen(teacher: Path, tmp_path: Path):
    only = {"methods": ["kd"], "teachers_from": ["mean:0.5-1.0+last"], "alpha": [0.5]}
    result = ckd.select(teacher, out=tmp_path / "pilot", **{**QUICK, **only})
    assert f"kd from mean:0.5-1.0 + {LAST}, alpha 0.5" in {run.candidate for run in result.pilot_runs}
    chosen = {"rule": "pilot", "student": "s", "reason": "", "epochs": [], "teachers": ["mean:0.5-1.0", f"{LAST}"]}
    (teacher / "selection.json").write_text(json.dumps(chosen))
    assert [ref.text for ref in resolve_ensemble([f"{teacher}@best"])] == [
        f"{teacher}@mean:0.5-1.0",
        f"{teacher}@{LAST}",
    ]
    (teacher / "selection.json").write_text(json.dumps({**chosen, "teachers": ["best"]}))
    with pytest.raises(UserError, match="damaged: its choice is `best` itself"):
        resolve(f"{teacher}@best")


def test_teachers_that_change_their_meaning_are_refused(teacher: Path, tmp_path: Path):
    ckd.select(teacher, rule="midpoint")
    with pytest.raises(UserError, match=r"--teachers-from best: the search itself changes RUN@best"):
        ckd.select(teacher, out=tmp_path / "pilot", **{**QUICK, "teachers_from": ["best"]})
    (teacher / "result.json").unlink()  # not finished
    (teacher / "checkpoints" / f"epoch-00{LAST}.safetensors").unlink()
    with pytest.raises(UserError, match=r"--teachers-from mean:0.5-1.0: the run is not finished"):
        ckd.select(teacher, out=tmp_path / "pilot", **{**QUICK, "teachers_from": ["mean:0.5-1.0"]})
    result = ckd.select(teacher, out=tmp_path / "pilot", **{**QUICK, "budget": 3})
    assert not any("mean" in row.candidate for row in result.candidates)
    assert not (tmp_path / "other").exists()


def test_candidate_that_cannot_be_trained_is_left_out(teacher: Path, tmp_path: Path, caplog):
    """FSP needs equal channels, which these two networks do not have."""
    ckd.train("wrn_10_2", data="digits", out=tmp_path / "wide", epochs=1, train_images=100, precision="fp32")
    options = {**QUICK, "methods": ["kd", "fsp"], "alpha": [0.5], "teachers_from": ["last"]}
    result = ckd.select(tmp_path / "wide", out=tmp_path / "pilot", **options)
    assert "The pilot run of fsp from epoch 1 failed" in caplog.text
    (failed,) = (row for row in result.candidates if row.failed)
    assert (failed.candidate, failed.chance, failed.chosen) == ("fsp from epoch 1", 0, False)
    again = ckd.select(tmp_path / "wide", out=tmp_path / "pilot", **options)
    assert again == result


def test_other_settings_do_not_inherit_failures(teacher: Path, tmp_path: Path):
    options = {**QUICK, "methods": ["kd"], "alpha": [0.5], "teachers_from": ["last"]}
    with pytest.raises(UserError, match="All pilot runs from"):
        ckd.select(teacher, out=tmp_path / "pilot", learning_rate=1e6, **options)
    with pytest.raises(UserError, match=r"already holds another pilot search \(recipe learning_rate"):
        ckd.select(teacher, out=tmp_path / "pilot", learning_rate=0.1, **options)


def test_occupied_folder_for_the_student_is_found_before_pilot_runs(teacher: Path, tmp_path: Path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("x")
    ckd.train("resnet_8", data="digits", out=tmp_path / "other", epochs=1, train_images=100, precision="fp32")
    for folder, message in (
        ("papers", r"--then-distill .*papers already holds thesis.tex. Name another folder"),
        ("other", r"--then-distill .*other already holds a run of resnet_8. Name another folder"),
    ):
        with pytest.raises(UserError, match=message):
            ckd.select(teacher, out=tmp_path / "pilot", then_distill=tmp_path / folder, **QUICK)
    with pytest.raises(UserError, match="--tau applies to kd, which is not among --methods"):
        ckd.select(teacher, out=tmp_path / "pilot", tau=3.0, **{**QUICK, "methods": ["dist"]})
    assert not (tmp_path / "pilot").exists()


def test_long_sets_of_teachers_have_short_folder_names(teacher: Path, tmp_path: Path):
    many = "+".join(map(str, range(4, LAST + 1, 4)))
    result = ckd.select(
        teacher, out=tmp_path / "pilot", **{**QUICK, "methods": ["kd"], "teachers_from": [many], "alpha": [0.123456789]}
    )
    assert any(many.replace("+", " + ") in run.candidate for run in result.pilot_runs)


def test_objects_of_this_process_are_refused_for_other_processes(teacher: Path, tmp_path: Path):
    def build(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    with pytest.raises(UserError, match="'object:build' is an object of this process, which the processes of --jobs"):
        ckd.select(teacher, out=tmp_path / "pilot", jobs=2, **{**SHORT, "student": build})
    with pytest.raises(UserError, match="'object:build' is an object of this process, which the processes of --jobs"):
        ckd.tune(build, teachers=f"{teacher}@last", epochs=1, jobs=2, out=tmp_path / "tune")
    assert {path.name for path in tmp_path.iterdir()} <= {"teacher"}


@pytest.mark.slow
def test_two_processes_train_the_pilot_runs_of_one_search(teacher: Path, searched: Path, tmp_path: Path):
    """Runs of candidates that a search in one process also tried are equal to its runs. The search continues."""
    budget = {**SHORT, "budget": "40"}
    result = ckd.select(teacher, out=tmp_path / "together", jobs=2, **budget)
    runs = {path.parent.name: path for path in _results(tmp_path / "together")}
    assert len(runs) == 4
    common = runs.keys() & {path.parent.name for path in _results(searched)}
    assert len(common) >= 3, "the default, no teacher, and the first choice"
    for name in common:
        weights = [next(out.glob(f"{PILOT_RUNS}/{name}/checkpoints/*")) for out in (tmp_path / "together", searched)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), name
    before = _results(tmp_path / "together")
    again = ckd.select(teacher, out=tmp_path / "together", jobs=2, **budget)
    assert _results(tmp_path / "together") == before, "nothing is trained again"
    assert again == result
