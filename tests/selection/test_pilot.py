"""Probing: lessons that say which teacher suits a student, what is tried, and that a race that was stopped goes on."""

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
from checkpointkd.selection import pilot
from checkpointkd.selection.pilot_plan import LAST_CHECKPOINT_MARGIN, N_PROMOTED
from checkpointkd.training import run

SHORT = {
    "student": "wrn_10_1",
    "epochs": 20,
    "batch_size": 20,
    "precision": "fp32",
    "budget": "70",
    "train_images": 100,
}


@pytest.fixture(scope="module")
def _ripe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ripe") / "teacher"
    small = {"train_images": 400, "epochs": 24, "save_every": 4, "batch_size": 20, "precision": "fp32"}
    ckd.train("wrn_10_1", data="digits", out=path, learning_rate=0.03, **small)
    return path


@pytest.fixture
def teacher(_ripe: Path, tmp_path: Path) -> Path:
    """A run of four times its students' images, so that it surely knows more than they; the test may change it."""
    return Path(shutil.copytree(_ripe, tmp_path / "teacher"))


@pytest.fixture(scope="module")
def _probed(_ripe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probed")
    begun = path / "probe" / "lessons" / "none-10-epochs" / "run.json"  # of an asking that was killed at its start
    begun.parent.mkdir(parents=True)
    begun.write_text('{"precision": "bf16"}')
    (path / "probe" / "pilot_search.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load_test", lambda *_, **__: pytest.fail("a lesson looked at the test images"))
        ckd.select(shutil.copytree(_ripe, path / "teacher"), out=path / "probe", **SHORT)
    return path / "probe"


@pytest.fixture
def probe(_probed: Path, tmp_path: Path) -> Path:
    """The folder of a finished race of `SHORT`, whose lessons the same command finds; the test may change it."""
    return Path(shutil.copytree(_probed, tmp_path / "probe"))


def test_the_best_lesson_is_chosen_and_no_test_image_is_seen(teacher: Path, probe: Path):
    """Of the latter `_probed` makes sure."""
    found = ckd.select(teacher, out=probe, **SHORT)
    longest = max(lesson["lesson_epochs"] for lesson in found.lessons)
    nats = [one["information"] for one in found.lessons if one["lesson_epochs"] == found.lessons[0]["lesson_epochs"]]
    credit = LAST_CHECKPOINT_MARGIN * (max(nats) - nats[0])
    best = max(
        (one for one in found.lessons if one["lesson_epochs"] == longest),
        key=lambda one: one["information"] + credit * (one["epochs"] == [24]),
    )
    (chosen,) = (one for one in found.lessons if one["chosen"] and one["lesson_epochs"] == longest)
    assert (list(found.epochs), found.alpha) == (chosen["epochs"], chosen["alpha"])
    assert chosen == best, "of all, with what the last is credited with"
    assert found.lessons[0]["epochs"] == [], "no teacher comes first"
    tried = {epoch for one in found.lessons for epoch in one["epochs"]}
    assert {*found.untried} == {*ckd.open_trajectory(teacher)} - tried - {*found.skipped} != set()
    assert [max(ckd.open_trajectory(teacher))] in [one["epochs"] for one in found.lessons]
    assert any(len(one["epochs"]) == 2 for one in found.lessons), "two of them together"
    assert {one["alpha"] for one in found.lessons if one["epochs"]} == {0.5, 0.1}
    assert found.spent_epochs == sum(one["lesson_epochs"] for one in found.lessons) <= 70
    assert sum(one["probability"] or 0 for one in found.lessons) == pytest.approx(1)
    for lesson in found.lessons:  # what is said of a lesson is true of the run that it left
        words = "+".join(map(str, lesson["epochs"])) + f"-alpha-{lesson['alpha']:g}" if lesson["epochs"] else "none"
        run = ckd.open_trajectory(probe / "lessons" / f"{words}-{lesson['lesson_epochs']}-epochs")
        result = run.result()
        assert result is not None
        assert result.val.accuracy == pytest.approx(lesson["accuracy"])
        assert run.run.precision == "fp32", "as was asked, not as what had begun there"
        assert run.run.recipe.epochs == lesson["lesson_epochs"], "its learning rate falls to the end"


def test_what_was_chosen_is_what_best_means_and_the_command_uses_it(teacher: Path, probe: Path, tmp_path: Path):
    ckd.score(teacher, estimator="ridge")
    found = ckd.select(teacher, out=probe, **SHORT)
    assert found.epochs, "digits' teacher is better than none"
    assert [one.checkpoint.epoch for one in resolve_ensemble([f"{teacher}@best"])] == list(found.epochs)
    assert ckd.inspect(teacher)["selected"] == list(found.epochs)
    assert {tuple(one["epochs"]) for one in found.lessons if one["chosen"]} == {found.epochs}
    kept = json.loads((probe / "pilot.json").read_text())["found"]
    assert kept["command"] == found.command
    command = shlex.split(found.command.replace("OUT", str(tmp_path / "student")))
    assert main(command[1:]) == 0
    run = ckd.open_trajectory(tmp_path / "student")
    assert [one["epoch"] for one in run.run.teachers] == list(found.epochs)
    assert (run.run.kd.alpha, run.run.kd.tau) == (found.alpha, 5.0)
    assert (run.run.recipe.epochs, run.run.recipe.batch_size) == (20, 20)
    assert (run.run.data.train_images, run.run.precision) == (100, "fp32")
    page = ckd.report(teacher)
    assert f"probing chose epoch{'s' if len(found.epochs) > 1 else ''} " in page.read_text()


def test_best_for_one_student_is_not_best_for_another(teacher: Path, tmp_path: Path, caplog):
    chosen = {"rule": "auto", "student": "wrn_10_1", "reason": "", "made_with": None, "alpha": 0.1, "tau": 5.0}
    (teacher / "selection.json").write_text(json.dumps({**chosen, "epochs": [24]}))
    quick = {"teachers": [f"{teacher}@best"], "epochs": 1, "save_every": 1, "precision": "fp32"}
    ckd.distill("wrn_10_1", out=tmp_path / "same", alpha=0.1, tau=5, **quick)
    assert "was found for" not in caplog.text
    ckd.distill("wrn_10_1", out=tmp_path / "weight", **quick)
    assert "@best was found for wrn_10_1, alpha 0.1, tau 5.0, and here it teaches wrn_10_1, alpha 0.5" in caplog.text
    assert "give --alpha 0.1 --tau 5.0" in caplog.text
    caplog.clear()
    ckd.distill("resnet_8", out=tmp_path / "student", method="at", **quick)
    assert "@best was found for wrn_10_1, and here it teaches resnet_8: checkpointkd select" in caplog.text


def test_two_that_were_chosen_teach_together_and_none_is_none(teacher: Path):
    told = {"rule": "auto", "student": "wrn_10_1", "reason": "it was", "made_with": None}
    (teacher / "selection.json").write_text(json.dumps({**told, "epochs": [4, 8]}))
    assert [one.text for one in resolve_ensemble([f"{teacher}@best"])] == [f"{teacher}@4", f"{teacher}@8"]
    with pytest.raises(UserError, match=r"several checkpoints that teach together .*: name one"):
        resolve(f"{teacher}@best")
    (teacher / "selection.json").write_text(json.dumps({**told, "epochs": []}))
    with pytest.raises(
        UserError, match=r"no checkpoint of .* was found to teach wrn_10_1 better than the labels alone"
    ):
        resolve_ensemble([f"{teacher}@best"])
    for damaged in ({**told, "epochs": [4.5]}, {**told, "epochs": "2"}, {"rule": "auto", "reason": ""}):
        (teacher / "selection.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match="damaged"):
            resolve_ensemble([f"{teacher}@best"])


def test_a_race_that_was_killed_goes_on_and_ends_the_same(teacher: Path, probe: Path, tmp_path: Path):
    whole = ckd.select(teacher, out=probe, **SHORT)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    command = [
        sys.executable,
        "-m",
        "checkpointkd.cli",
        "select",
        str(teacher),
        "--out",
        str(tmp_path / "cut"),
        *options,
    ]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here, or the last bits differ
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=one_thread)
    while len(list((tmp_path / "cut").glob("lessons/*/result.json"))) < 2:
        assert process.poll() is None, "it was to be killed on the way"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "not finished: the lessons in cut" in ckd.report(tmp_path).read_text()
    held = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("lessons/*/result.json")}
    again = ckd.select(teacher, out=tmp_path / "cut", **SHORT)
    assert {path: path.stat().st_mtime_ns for path in held} == held, "what was held isn't held again"
    assert [one["information"] for one in again.lessons] == [one["information"] for one in whole.lessons]
    assert again.epochs == whole.epochs


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"budget": "20"}, r"buys 2 lessons of 10 epochs \(a lesson takes 100 steps or more\), and at least 3 are"),
        ({"budget": "a lot"}, "a budget is a number of epochs"),
        ({"budget": "0.0"}, "a budget is a number of epochs"),
        ({"budget": " 70"}, "a budget is a number of epochs"),
        ({"budget": "٣"}, "a budget is a number of epochs"),
        ({"alpha": [1.0]}, "a teacher has no weight"),
        ({"rule": "algorithm1"}, "--rule algorithm1 looks at no student"),
        ({"alpha": [0.5, 0.5]}, "twice"),
        ({"alpha": [1.5]}, "alpha must lie in"),
        ({"student": "wrn"}, "unknown model"),
        ({"data": "cifar10:nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_probed_is_said(teacher: Path, tmp_path: Path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        ckd.select(teacher, out=tmp_path / "probe", **{**SHORT, **options})
    assert not (tmp_path / "probe").exists()
    ckd.select(teacher, out=tmp_path / "probe", **{**SHORT, "epochs": 1, "budget": 3})  # it wasn't spoiled


def test_other_lessons_and_other_things_are_refused(teacher: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds something else"):
        ckd.select(teacher, out=tmp_path / "mine", **SHORT)
    with pytest.raises(UserError, match="need --out"):
        ckd.select(teacher, student="wrn_10_1")  # type: ignore[call-overload]
    ckd.select(teacher, out=tmp_path / "probe", **{**SHORT, "budget": "3.0", "epochs": 1})
    for option, value, sentence in (
        ("seed", 7, "seed 0 there, 7 here"),
        ("precision", "bf16", "precision 'fp32' there, 'bf16' here"),
        ("batch_size", 30, "recipe batch_size 20 there, 30 here"),
    ):
        with pytest.raises(UserError, match=rf"holds another race \({sentence}\)"):
            ckd.select(teacher, out=tmp_path / "probe", **{**SHORT, "budget": "3.0", "epochs": 1, option: value})


def test_a_report_shows_the_lessons_and_no_lesson_as_a_student(teacher: Path, probe: Path, tmp_path: Path):
    found = ckd.select(teacher, out=probe, **SHORT)
    page = ckd.report(tmp_path).read_text()
    assert "Which teacher for wrn_10_1: probe" in page
    assert f"{found.lessons[0]['information']:.3f}" in page
    assert page.count(", chosen</td>") == 1, "in words, too"
    assert f"for wrn_10_1: {found.reason}" in html.unescape(page)
    assert "is behind by" in page
    assert "Lessons of seed 0. To train the student:" in page
    assert f"<code>{found.command}</code>" in html.unescape(page)
    assert page.count("<td>wrn_10_1</td>") == 1, "the teacher; lessons are no students"
    (probe / "pilot.json").write_text('{"found": {"epochs": ["<script>"]}}')
    page = ckd.report(tmp_path).read_text()
    assert "damaged: no lessons left it" in page
    assert "Which teacher for" not in page


def test_a_lost_lesson_is_not_held_twice_and_asks_what_was_asked(teacher: Path, tmp_path: Path, monkeypatch, caplog):
    caplog.set_level("INFO", "checkpointkd")
    asked, hold = [], pilot.run_distillation

    def lose(student, taught, *, out, **settings):
        asked.append(out.name)
        assert settings["precision"] == "fp32"
        if out.name.startswith("20-"):
            raise Diverged("The loss became NaN or infinite")
        return hold(student, taught, out=out, **settings)

    monkeypatch.setattr(pilot, "run_distillation", lose)
    found = ckd.select(teacher, out=tmp_path / "probe", **{**SHORT, "alpha": [0.5], "epochs": 1, "budget": 12})
    assert "20-alpha-0.5-1-epochs" in asked
    assert len(set(asked)) == len(asked), "neighbors of the best were tried, but not the one that was lost"
    assert {one["epochs"][0] for one in found.lessons if len(one["epochs"]) == 1} == {4, 8, 12, 16, 24}
    assert found.spent_epochs == 1 + len(asked) <= 12, "what was lost has cost as much"
    assert any("epoch 20, alpha 0.5 diverged" in warning for warning in found.warnings)
    assert "kept from before" not in caplog.text
    before = list(asked)
    again = ckd.select(teacher, out=tmp_path / "probe", **{**SHORT, "alpha": [0.5], "epochs": 1, "budget": 12})
    assert "20-alpha-0.5-1-epochs" not in asked[len(before) :], "nor when the race goes on"
    assert (again.epochs, again.spent_epochs) == (found.epochs, found.spent_epochs)
    assert caplog.text.count("kept from before") == len(found.lessons)
    (tmp_path / "probe/lessons/20-alpha-0.5-1-epochs" / pilot.DIVERGED).write_text("[]")
    with pytest.raises(UserError, match=r"lost.json is damaged; delete .*20-alpha-0.5-1-epochs, and its lesson is"):
        ckd.select(teacher, out=tmp_path / "probe", **{**SHORT, "alpha": [0.5], "epochs": 1, "budget": 12})


def test_where_every_lesson_is_lost_nothing_is_chosen(teacher: Path, tmp_path: Path, monkeypatch):
    def lose(*_: Any, **__: Any):
        raise Diverged("The loss became NaN or infinite")

    monkeypatch.setattr(pilot, "run_distillation", lose)
    with pytest.raises(UserError, match=r"every lesson from .* diverged, so nothing says which checkpoint should"):
        ckd.select(teacher, out=tmp_path / "probe", **{**SHORT, "epochs": 1, "budget": 12})
    assert not (teacher / "selection.json").exists()


def test_a_larger_budget_goes_on_and_the_best_have_longer_lessons(teacher: Path, tmp_path: Path):
    short = {**SHORT, "epochs": 2, "batch_size": 2}  # a hundred steps are an epoch
    first = ckd.select(teacher, out=tmp_path / "probe", **{**short, "budget": 3})
    held = {path: path.stat().st_mtime_ns for path in (tmp_path / "probe").glob("lessons/*/result.json")}
    more = ckd.select(teacher, out=tmp_path / "probe", **{**short, "budget": 12})
    assert len(first.lessons) == 3 < len(more.lessons)
    assert {path: path.stat().st_mtime_ns for path in held} == held
    lengths = [one["lesson_epochs"] for one in more.lessons]
    assert lengths == [1] * (len(lengths) - N_PROMOTED) + [2] * N_PROMOTED
    held_short = more.lessons[:-N_PROMOTED]
    credit = LAST_CHECKPOINT_MARGIN * (max(one["information"] for one in held_short) - held_short[0]["information"])
    ranked = sorted(held_short, key=lambda one: -one["information"] - credit * (one["epochs"] == [24]))
    who = [
        [(one["epochs"], one["alpha"]) for one in several]
        for several in (ranked[:N_PROMOTED], more.lessons[-N_PROMOTED:])
    ]
    assert credit > 0, "here teaching helps"
    assert who[0] == who[1], "the two best, with what the last is credited with"
    assert [one["probability"] is None for one in more.lessons] == [True] * (len(lengths) - N_PROMOTED) + [
        False
    ] * N_PROMOTED
    for budget in (12, 10, 13, 15):  # none of which pays for another lesson and new longer ones
        again = ckd.select(teacher, out=tmp_path / "probe", **{**short, "budget": budget})
        assert (again.spent_epochs, again.epochs) == (more.spent_epochs, more.epochs) == (12, more.epochs)
    last = ckd.select(teacher, out=tmp_path / "probe", **{**short, "budget": 17})
    assert 12 < last.spent_epochs <= 17


def test_no_lesson_is_lost_to_another_budget(teacher: Path, tmp_path: Path, caplog):
    """Whatever the budgets in between, all that was held counts, and there is no more of it than the last one pays."""
    caplog.set_level("INFO", "checkpointkd")
    quick = {**SHORT, "epochs": 1}
    for budget in (5, 8, 6, 9):
        found = ckd.select(teacher, out=tmp_path / "probe", **{**quick, "budget": budget})
        assert len(found.lessons) == len(list((tmp_path / "probe").glob("lessons/*/result.json")))
        assert found.spent_epochs == len(found.lessons) == max(budget, 8 if budget == 6 else 0)
        assert ("lessons of 8 epochs in all are there, and count" in caplog.text) == (budget == 6)
        caplog.clear()
    assert len({(*one["epochs"], one["alpha"]) for one in found.lessons}) == 9


@pytest.mark.parametrize(("budget", "singles"), [(5, 2), (6, 3), (7, 4), (9, 6)])
def test_there_is_room_for_another_weight_and_for_two_together(teacher: Path, tmp_path: Path, budget, singles):
    found = ckd.select(teacher, out=tmp_path / "probe", **{**SHORT, "epochs": 1, "budget": budget})
    kinds = [(len(one["epochs"]), one["alpha"]) for one in found.lessons]
    assert kinds[: singles + 2] == [(0, 1.0), *[(1, 0.5)] * singles, (1, 0.1)]
    assert [many for many, _ in kinds[singles + 2 :]] == [2], "the default budget, six lessons, too, tries a pair"


def test_what_is_left_of_the_budget_goes_into_longer_lessons(teacher: Path, tmp_path: Path):
    for path in sorted(teacher.glob("checkpoints/*"))[:-2]:
        path.unlink()
    found = ckd.select(teacher, out=tmp_path / "probe", **{**SHORT, "epochs": 2, "batch_size": 2, "budget": 9})
    lengths = [one["lesson_epochs"] for one in found.lessons]
    assert lengths == [1] * 5 + [2] * N_PROMOTED, "none, two, the other weight, both together; 9 is nine lessons"


def test_a_lesson_has_the_whole_schedule(teacher: Path, tmp_path: Path):
    steps = {**SHORT, "recipe": "cifar100-step", "epochs": 40, "budget": 30}
    ckd.select(teacher, out=tmp_path / "probe", **steps)
    (run, *_) = (tmp_path / "probe" / "lessons").glob("none-*")
    recipe = ckd.open_trajectory(run).run.recipe
    assert (recipe["epochs"], recipe["step_every"]) == (10, 3), "of 200 epochs they fall every 60"


def test_unripe_checkpoints_are_left_out_and_win_no_tie(teacher_run: Path, tmp_path: Path):
    """The checkpoints of `teacher_run` are right on 24 to 56% of the images, the student on more after a lesson."""
    found = ckd.select(teacher_run, out=tmp_path / "probe", **{**SHORT, "budget": 30})
    alone = found.lessons[0]["accuracy"]
    accuracies = {row["epoch"]: row["val_accuracy"] for row in ckd.open_trajectory(teacher_run).rows()}
    assert found.skipped == [epoch for epoch, accuracy in accuracies.items() if accuracy < alone] == [1, 2, 3, 4]
    assert [one["epochs"] for one in found.lessons] == [[], [4], [4]], "one, to compare with"
    assert found.epochs == ()
    assert f"train wrn_10_1 --data digits --epochs {SHORT['epochs']}" in found.command
    assert "--no-flip" in found.command, "on the images that the lessons had"


def test_a_race_keeps_its_checkpoints_and_refuses_changed_ones(teacher: Path, tmp_path: Path, caplog):
    small = {**SHORT, "epochs": 1, "budget": 3}
    later = teacher / "checkpoints" / "epoch-0024.safetensors"
    content = later.read_bytes()
    later.unlink()
    first = ckd.select(teacher, out=tmp_path / "probe", **small)
    later.write_bytes(content)
    (tmp_path / "probe" / "race.json.17.unfinished").write_text("{")  # a process was killed while it wrote
    caplog.clear()
    again = ckd.select(teacher, out=tmp_path / "probe", **small)
    assert again.lessons == first.lessons
    assert again.behind == first.behind
    assert "1 checkpoint that came since the race in" in caplog.text
    other = ckd.train(
        "wrn_10_1",
        data="digits",
        out=tmp_path / "other",
        epochs=24,
        save_every=4,
        train_images=60,
        batch_size=60,
        precision="fp32",
    )
    shutil.copy(other[20].path, teacher / "checkpoints" / "epoch-0020.safetensors")
    with pytest.raises(UserError, match=r"holds another race \(teachers"):
        ckd.select(teacher, out=tmp_path / "probe", **small)


def test_a_damaged_selection_stands_in_nobodys_way_and_a_sound_one_is_not_overwritten_in_silence(
    teacher: Path, tmp_path: Path, caplog
):
    caplog.set_level("INFO", "checkpointkd")
    (teacher / "selection.json").write_text("[]")
    found = ckd.select(teacher, out=tmp_path / "probe", **{**SHORT, "epochs": 1, "budget": 3})
    assert ckd.inspect(teacher)["selected"] == list(found.epochs)
    assert "@best" not in caplog.text
    ckd.select(teacher, rule="midpoint")
    assert f"{teacher}@best is epoch 12, by the rule half from now on; it was " in caplog.text
    assert caplog.text.rstrip().endswith(f"{found.epochs[0]}, for wrn_10_1" if found.epochs else "for wrn_10_1")
    caplog.clear()
    ckd.select(teacher, rule="midpoint")
    assert "@best" not in caplog.text
    (teacher / "selection.json").write_text(json.dumps({"rule": None, "reason": "", "epochs": [4], "student": None}))
    ckd.select(teacher, rule="midpoint")
    assert "by the rule half from now on; it was epoch 4, for None" in caplog.text
