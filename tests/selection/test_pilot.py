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

import checkpointkd as ckd
from checkpointkd.checkpoints.refs import resolve, resolve_ensemble
from checkpointkd.cli import main
from checkpointkd.errors import Diverged, UserError
from checkpointkd.records.selection import PilotRunRecord
from checkpointkd.selection import pilot
from checkpointkd.selection.pilot_plan import LAST_CHECKPOINT_MARGIN, N_PROMOTED
from checkpointkd.selection.pilot_store import DIVERGED, PILOT_RUNS
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


def _ranking_key(runs: tuple[PilotRunRecord, ...]) -> Any:
    """Information plus the bonus of the last checkpoint, from the runs of the first one's length."""
    same_length = [run.information for run in runs if run.pilot_epochs == runs[0].pilot_epochs]
    bonus = LAST_CHECKPOINT_MARGIN * (max(same_length) - runs[0].information)
    assert bonus > 0, "here teaching helps"
    return lambda run: run.information + bonus * (run.epochs == (LAST,))


def test_best_candidate_is_chosen_without_test_images(teacher: Path, searched: Path):
    """`_searched` fails if a pilot run loads the test images."""
    result = ckd.select(teacher, out=searched, **SHORT)
    longest = max(run.pilot_epochs for run in result.pilot_runs)
    deciding = [run for run in result.pilot_runs if run.pilot_epochs == longest]
    (chosen,) = (run for run in deciding if run.chosen)
    assert (result.epochs, result.alpha) == (chosen.epochs, chosen.alpha)
    assert chosen == max(deciding, key=_ranking_key(result.pilot_runs))
    assert result.pilot_runs[0].epochs == (), "no teacher comes first"
    assert sum(run.probability or 0 for run in result.pilot_runs) == pytest.approx(1)
    assert result.spent_epochs == sum(run.pilot_epochs for run in result.pilot_runs) <= 70


def test_single_checkpoints_pairs_and_alphas_are_tried(teacher: Path, searched: Path):
    result = ckd.select(teacher, out=searched, **SHORT)
    tried = {epoch for run in result.pilot_runs for epoch in run.epochs}
    assert {*result.untried} == {*ckd.open_trajectory(teacher)} - tried - {*result.skipped} != set()
    assert (LAST,) in [run.epochs for run in result.pilot_runs]
    assert any(len(run.epochs) == 2 for run in result.pilot_runs)
    assert {run.alpha for run in result.pilot_runs if run.epochs} == {0.5, 0.1}


def test_result_describes_the_stored_pilot_runs(teacher: Path, searched: Path):
    for outcome in ckd.select(teacher, out=searched, **SHORT).pilot_runs:
        name = "+".join(map(str, outcome.epochs)) + f"-alpha-{outcome.alpha:g}" if outcome.epochs else "no-teacher"
        run = ckd.open_trajectory(searched / PILOT_RUNS / f"{name}-{outcome.pilot_epochs}-epochs")
        stored = run.result()
        assert stored is not None
        assert stored.val.accuracy == pytest.approx(outcome.accuracy)
        assert run.run.precision == "fp32", "as asked for, not as in the run that was killed"
        assert run.run.recipe.epochs == outcome.pilot_epochs, "the learning rate falls to its end"


def test_best_resolves_to_choice_and_command_uses_it(teacher: Path, searched: Path, tmp_path: Path):
    ckd.score(teacher, estimator="ridge")
    result = ckd.select(teacher, out=searched, **SHORT)
    assert result.epochs, "the teacher of digits is better than none"
    assert [ref.checkpoint.epoch for ref in resolve_ensemble([f"{teacher}@best"])] == list(result.epochs)
    assert list(ckd.inspect(teacher)["selected"]) == list(result.epochs)
    assert {run.epochs for run in result.pilot_runs if run.chosen} == {result.epochs}
    stored = json.loads((searched / "pilot.json").read_text())["result"]
    assert stored["command"] == result.command
    command = shlex.split(result.command.replace("OUT", str(tmp_path / "student")))
    assert main(command[1:]) == 0
    run = ckd.open_trajectory(tmp_path / "student")
    assert [taught.epoch for taught in run.run.teachers] == list(result.epochs)
    assert (run.run.kd.alpha, run.run.kd.tau) == (result.alpha, 5.0)
    assert (run.run.recipe.epochs, run.run.recipe.batch_size) == (20, 20)
    assert (run.run.data.train_images, run.run.precision) == (100, "fp32")


def test_selection_json_is_readable(teacher: Path, searched: Path):
    result = ckd.select(teacher, out=searched, **SHORT)
    selection = ckd.open_trajectory(teacher).selection()
    assert selection is not None
    assert (selection.rule, selection.student, selection.epochs) == ("pilot", "wrn_10_1", result.epochs)
    assert (selection.alpha, selection.tau, selection.estimator) == (result.alpha, 5.0, None)


def test_distill_warns_if_best_is_for_another_student(teacher: Path, tmp_path: Path, caplog):
    chosen = {"rule": "pilot", "student": "wrn_10_1", "reason": "", "made_with": None, "alpha": 0.1, "tau": 5.0}
    (teacher / "selection.json").write_text(json.dumps({**chosen, "epochs": [LAST]}))
    quick = {"teachers": [f"{teacher}@best"], "epochs": 1, "save_every": 1, "precision": "fp32"}
    ckd.distill("wrn_10_1", out=tmp_path / "same", alpha=0.1, tau=5, **quick)
    assert "@best was " not in caplog.text
    ckd.distill("wrn_10_1", out=tmp_path / "weight", **quick)
    assert "@best was selected for wrn_10_1, alpha 0.1, tau 5.0, but is used for wrn_10_1, alpha 0.5" in caplog.text
    assert "add --alpha 0.1 --tau 5.0" in caplog.text
    caplog.clear()
    ckd.distill("resnet_8", out=tmp_path / "student", method="at", **quick)
    assert "@best was selected for wrn_10_1, but is used for resnet_8. To choose" in caplog.text


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
    assert again.epochs == whole.epochs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"budget": "20"},
            r"A budget of 20 epochs covers 2 pilot runs of 10 epochs \(at least 100 steps each\), but the search needs "
            r"at least 3: .* Pass --budget 30 or more",
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
    assert f"{result.pilot_runs[0].information:.3f}" in page
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

    def diverge_at_20(run, spec, data, **options):
        trained.append(run.out.name)
        assert run.precision == "fp32"
        if run.out.name.startswith("20-"):
            raise Diverged("the loss became NaN")
        return run_distillation(run, spec, data, **options)

    monkeypatch.setattr(pilot, "run_distillation", diverge_at_20)
    quick = {**SHORT, "alpha": [0.5], "epochs": 1, "budget": 12}
    result = ckd.select(teacher, out=tmp_path / "pilot", **quick)
    assert "20-alpha-0.5-1-epochs" in trained
    assert len(set(trained)) == len(trained), "neighbors of the best are tried, but not the diverged one again"
    assert {run.epochs[0] for run in result.pilot_runs if len(run.epochs) == 1} == {4, 8, 12, 16, LAST}
    assert result.spent_epochs == 1 + len(trained) <= 12, "the diverged run counts"
    assert any("epoch 20, alpha 0.5 over 1 epoch diverged" in warning for warning in result.warnings)
    assert "(stored)" not in caplog.text
    first = list(trained)
    again = ckd.select(teacher, out=tmp_path / "pilot", **quick)
    assert "20-alpha-0.5-1-epochs" not in trained[len(first) :]
    assert (again.epochs, again.spent_epochs) == (result.epochs, result.spent_epochs)
    assert caplog.text.count("(stored)") == len(result.pilot_runs)
    (tmp_path / "pilot" / PILOT_RUNS / "20-alpha-0.5-1-epochs" / DIVERGED).write_text("[]")
    with pytest.raises(UserError, match=r"diverged.json is damaged: .* Remove .*20-alpha-0.5-1-epochs to train this"):
        ckd.select(teacher, out=tmp_path / "pilot", **quick)


def test_nothing_is_chosen_if_all_runs_with_a_teacher_diverge(teacher: Path, tmp_path: Path, monkeypatch):
    def diverge(*_: Any, **__: Any):
        raise Diverged("the loss became NaN")

    monkeypatch.setattr(pilot, "run_distillation", diverge)
    with pytest.raises(UserError, match=r"All pilot runs with a teacher from .* diverged.* smaller --learning-rate"):
        ckd.select(teacher, out=tmp_path / "pilot", **{**SHORT, "epochs": 1, "budget": 12})
    assert not (teacher / "selection.json").exists()


def test_diverged_run_without_teacher_is_an_error(teacher: Path, tmp_path: Path, monkeypatch):
    def diverge(*_: Any, **__: Any):
        raise Diverged("the loss became NaN")

    monkeypatch.setattr(pilot, "run_training", diverge)
    with pytest.raises(UserError, match=r"the loss became NaN. All candidates are compared with this pilot run"):
        ckd.select(teacher, out=tmp_path / "pilot", **{**SHORT, "epochs": 1, "budget": 12})


@pytest.mark.slow
def test_larger_budget_continues_and_promotes_the_best(teacher: Path, tmp_path: Path):
    short = {**SHORT, "epochs": 2, "batch_size": 2}  # an epoch has a hundred steps
    first = ckd.select(teacher, out=tmp_path / "pilot", **{**short, "budget": 3})
    stored = _results(tmp_path / "pilot")
    more = ckd.select(teacher, out=tmp_path / "pilot", **{**short, "budget": 12})
    assert len(first.pilot_runs) == 3 < len(more.pilot_runs)
    assert stored.items() <= _results(tmp_path / "pilot").items()
    single, double = more.pilot_runs[:-N_PROMOTED], more.pilot_runs[-N_PROMOTED:]
    assert [run.pilot_epochs for run in more.pilot_runs] == [1] * len(single) + [2] * N_PROMOTED
    ranked = sorted(single, key=_ranking_key(single), reverse=True)
    assert [(run.epochs, run.alpha) for run in double] == [(run.epochs, run.alpha) for run in ranked[:N_PROMOTED]]
    assert all(run.probability is None for run in single)
    assert all(run.probability is not None for run in double)
    for budget in (12, 10, 13, 15):  # none covers another run and new ones of twice the length
        again = ckd.select(teacher, out=tmp_path / "pilot", **{**short, "budget": budget})
        assert (again.spent_epochs, again.epochs) == (more.spent_epochs, more.epochs) == (12, more.epochs)
    last = ckd.select(teacher, out=tmp_path / "pilot", **{**short, "budget": 17})
    assert 12 < last.spent_epochs <= 17


def test_every_stored_run_counts_with_any_budget(teacher: Path, tmp_path: Path, caplog):
    """All stored runs count, whatever the budgets in between, and no more are trained than the last budget covers."""
    caplog.set_level("INFO", "checkpointkd")
    for budget in (5, 8, 6, 9):
        result = ckd.select(teacher, out=tmp_path / "pilot", **{**SHORT, "epochs": 1, "budget": budget})
        assert len(result.pilot_runs) == len(_results(tmp_path / "pilot"))
        assert result.spent_epochs == len(result.pilot_runs) == max(budget, 8 if budget == 6 else 0)
        assert ("pilot runs of 8 epochs in total, more than this budget" in caplog.text) == (budget == 6)
        caplog.clear()
    assert len({(*run.epochs, run.alpha) for run in result.pilot_runs}) == 9


@pytest.mark.parametrize(("budget", "singles"), [(5, 2), (6, 3), (7, 4), (9, 6)])
def test_budget_leaves_room_for_another_alpha_and_a_pair(teacher: Path, tmp_path: Path, budget, singles):
    result = ckd.select(teacher, out=tmp_path / "pilot", **{**SHORT, "epochs": 1, "budget": budget})
    kinds = [(len(run.epochs), run.alpha) for run in result.pilot_runs]
    assert kinds[: singles + 2] == [(0, 1.0), *[(1, 0.5)] * singles, (1, 0.1)]
    assert [checkpoints for checkpoints, _ in kinds[singles + 2 :]] == [2]


def test_rest_of_the_budget_promotes_candidates(teacher: Path, tmp_path: Path):
    for path in sorted(teacher.glob("checkpoints/*"))[:-2]:
        path.unlink()
    result = ckd.select(teacher, out=tmp_path / "pilot", **{**SHORT, "epochs": 2, "batch_size": 2, "budget": 9})
    lengths = [run.pilot_epochs for run in result.pilot_runs]
    assert lengths == [1] * 5 + [2] * N_PROMOTED, "no teacher, two checkpoints, the other alpha, the pair"


def test_pilot_run_has_the_whole_learning_rate_schedule(teacher: Path, tmp_path: Path):
    steps = {**SHORT, "recipe": "cifar100-step", "epochs": 40, "budget": 30}
    ckd.select(teacher, out=tmp_path / "pilot", **steps)
    (run, *_) = (tmp_path / "pilot" / PILOT_RUNS).glob("no-teacher-*")
    recipe = ckd.open_trajectory(run).run.recipe
    assert (recipe.epochs, recipe.step_every) == (10, 3), "it falls every 60 of 200 epochs"


def test_undertrained_checkpoints_are_skipped(teacher_run: Path, tmp_path: Path):
    """The checkpoints of `teacher_run` have accuracies of 24 to 56%, below that of the first pilot run."""
    result = ckd.select(teacher_run, out=tmp_path / "pilot", **{**SHORT, "budget": 30})
    baseline = result.pilot_runs[0].accuracy
    accuracy_of = {row.epoch: row.val_accuracy for row in ckd.open_trajectory(teacher_run).rows()}
    below = [epoch for epoch, accuracy in accuracy_of.items() if accuracy is not None and accuracy < baseline]
    assert list(result.skipped) == below == [1, 2, 3, 4]
    assert [run.epochs for run in result.pilot_runs] == [(), (4,), (4,)], "the last, for comparison"
    assert result.epochs == ()
    assert f"train wrn_10_1 --data digits --epochs {SHORT['epochs']}" in result.command
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
    assert again.behind == first.behind
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
    assert list(ckd.inspect(teacher)["selected"]) == list(result.epochs)
    assert "@best" not in caplog.text
    ckd.select(teacher, rule="midpoint")
    assert f"{teacher}@best is now epoch 12, by rule midpoint" in caplog.text
    assert caplog.text.rstrip().endswith(f"{result.epochs[0]}, for wrn_10_1" if result.epochs else "for wrn_10_1")
    caplog.clear()
    ckd.select(teacher, rule="midpoint")
    assert "@best" not in caplog.text
