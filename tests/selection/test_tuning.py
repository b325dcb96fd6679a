"""The search for α and τ: what it tries, that it continues, that it never looks at the test images."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

import checkpointkd as ckd
from checkpointkd.errors import UserError
from checkpointkd.selection.tuning import TuneConfig, default_space
from checkpointkd.training import run as run_module

SHORT = {"epochs": 3, "batch_size": 25, "precision": "fp32", "alpha": [0.1, 0.9], "tau": [2.0, 4.0]}


def _search(teacher_run: Path, out: Path, **options) -> dict:
    return ckd.tune("wrn_10_1", teachers=[f"{teacher_run}@4"], out=out, **{**SHORT, **options})


def test_the_grid_is_tried_and_the_best_is_the_best(teacher_run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run_module, "load_test", lambda *_, **__: pytest.fail("a search looked at the test images"))
    found = _search(teacher_run, tmp_path / "s", prune=False)
    tried = {(trial["values"]["alpha"], trial["values"]["tau"]) for trial in found["trials"]}
    assert tried == {(0.1, 2.0), (0.1, 4.0), (0.9, 2.0), (0.9, 4.0)}
    assert found["best"]["accuracy"] == max(trial["accuracy"] for trial in found["trials"])
    assert json.loads((tmp_path / "s" / "tune.json").read_text())["best"] == found["best"]
    for trial in found["trials"]:
        values = trial["values"]
        run = ckd.open_trajectory(tmp_path / "s" / "trials" / f"alpha-{values['alpha']:g}_tau-{values['tau']:g}_seed-0")
        assert (run.run.kd.alpha, run.run.kd.tau) == (values["alpha"], values["tau"])
        result = run.result()
        assert result is not None
        assert result.val.accuracy == trial["accuracy"]
        assert "test" not in result
    best = found["best"]["values"]
    assert f"--alpha {best['alpha']:g} --tau {best['tau']:g}" in found["command"]


def test_the_command_that_is_named_gives_the_student_that_was_best(teacher_run: Path, tmp_path: Path):
    found = _search(teacher_run, tmp_path / "s", prune=False)
    command = shlex.split(found["command"].replace("OUT", str(tmp_path / "student")))[1:]
    done = subprocess.run(
        [sys.executable, "-m", "checkpointkd.cli", *command, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["result"]["val"]["accuracy"] == pytest.approx(found["best"]["accuracy"])


def test_the_same_command_does_nothing_again(teacher_run: Path, tmp_path: Path):
    first = _search(teacher_run, tmp_path / "s")
    began = time.perf_counter()
    again = _search(teacher_run, tmp_path / "s")
    assert again["trials"] == first["trials"]
    assert time.perf_counter() - began < 5
    more = _search(teacher_run, tmp_path / "s", trials=3)
    assert len(more["trials"]) == 4


def test_another_search_is_refused(teacher_run: Path, tmp_path: Path):
    _search(teacher_run, tmp_path / "s", trials=1)
    for change in ({"epochs": 2}, {"learning_rate": [0.1]}, {"method": "lskd"}, {"seed": 3}, {"precision": "bf16"}):
        with pytest.raises(UserError, match=r"is of another search .*choose another --out"):
            _search(teacher_run, tmp_path / "s", **change)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_search_that_was_stopped_continues(teacher_run: Path, tmp_path: Path, how: signal.Signals):
    """A real process, in the middle of a trial; what is there is kept, and the trial goes on from its last epoch."""
    out = tmp_path / "s"
    command = [
        sys.executable,
        "-m",
        "checkpointkd.cli",
        "search",
        "wrn_10_1",
        "--teachers",
        f"{teacher_run}@4",
        "--out",
        str(out),
        "--epochs",
        "5",
        "--batch-size",
        "5",
        "--precision",
        "fp32",
        "--alpha",
        "0.1",
        "0.9",
        "--tau",
        "2",
        "--no-prune",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        folders = list(out.glob("trials/*/metrics.jsonl"))
        if len(folders) >= 2 and sum(len(path.read_text().splitlines()) >= 2 for path in folders) >= 2:
            break
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (130, -9), said
    there = json.loads((out / "tune.json").read_text())["trials"]
    assert len(there) >= 1
    stopped = {path.parent.name: path.read_text() for path in out.glob("trials/*/metrics.jsonl")}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["trials"][: len(there)] == there
    assert sorted((t["values"]["alpha"], t["values"]["tau"]) for t in found["trials"]) == [(0.1, 2.0), (0.9, 2.0)]
    for name, rows in stopped.items():  # nothing is done again, but for an epoch whose state wasn't written yet
        sure = "".join(rows.splitlines(keepends=True)[:-1])
        assert (out / "trials" / name / "metrics.jsonl").read_text().startswith(sure)


def test_bad_trials_are_stopped_early_and_the_good_are_not(teacher_run: Path, tmp_path: Path):
    """A learning rate at which nothing is learned falls behind; one at which the loss breaks is told."""
    found = _search(
        teacher_run, tmp_path / "s", epochs=9, alpha=[0.5], tau=[4.0], learning_rate=[1e-6, 0.01, 0.03, 1e6]
    )
    by_rate = {trial["values"]["learning_rate"]: trial for trial in found["trials"]}
    assert set(by_rate) == {1e-6, 0.01, 0.03, 1e6}
    assert "became NaN or infinite" in by_rate[1e6]["stopped"]
    assert found["best"]["values"]["learning_rate"] in (0.01, 0.03)
    assert all(trial["accuracy"] is not None for rate, trial in by_rate.items() if rate in (0.01, 0.03))


def test_tpe_goes_between_the_ends(teacher_run: Path, tmp_path: Path):
    found = _search(teacher_run, tmp_path / "s", sampler="tpe", trials=4, epochs=1)
    assert len(found["trials"]) == 4
    for trial in found["trials"]:
        assert 0.1 <= trial["values"]["alpha"] <= 0.9
        assert 2 <= trial["values"]["tau"] <= 4
    assert len({trial["values"]["tau"] for trial in found["trials"]}) == 4


def test_tpe_goes_on_as_it_would_have(teacher_run: Path, tmp_path: Path):
    """Its seed follows from how many trials there were: stopped or not, the same trials, none twice."""
    whole = _search(teacher_run, tmp_path / "whole", sampler="tpe", trials=5, epochs=1)
    for trials in (2, 3, 5):
        parts = _search(teacher_run, tmp_path / "parts", sampler="tpe", trials=trials, epochs=1)
    tried = [[trial["values"] for trial in found["trials"]] for found in (whole, parts)]
    assert tried[0] == tried[1]
    assert len({json.dumps(values) for values in tried[0]}) == 5


def test_a_grid_can_grow(teacher_run: Path, tmp_path: Path):
    first = _search(teacher_run, tmp_path / "s", epochs=1, tau=[2])
    more = _search(teacher_run, tmp_path / "s", epochs=1, tau=[2, 4.0])
    assert more["trials"][:2] == first["trials"]
    assert sorted((t["values"]["alpha"], t["values"]["tau"]) for t in more["trials"]) == [
        (0.1, 2.0),
        (0.1, 4.0),
        (0.9, 2.0),
        (0.9, 4.0),
    ]


def test_a_trial_that_was_begun_and_never_told_anything_is_tried_again(teacher_run: Path, tmp_path: Path):
    """A process can die between any two lines: a trial that only has a number loses no point of the grid."""
    _search(teacher_run, tmp_path / "s", epochs=1, trials=1)
    study = optuna.load_study(study_name="checkpointkd", storage=f"sqlite:///{tmp_path / 's' / 'study.db'}")
    study.ask()
    study.ask().suggest_float("alpha", 0.1, 0.9)
    found = _search(teacher_run, tmp_path / "s", epochs=1)
    tried = {(trial["values"]["alpha"], trial["values"]["tau"]) for trial in found["trials"]}
    assert len(tried) == len(found["trials"]) == 4


@pytest.mark.parametrize("name", ["a?b#c", "a%20b", "ein Ordner é", "mode=memory?"])
def test_a_folder_may_be_called_anything(teacher_run: Path, tmp_path: Path, name: str):
    _search(teacher_run, tmp_path / name, epochs=1, trials=1)
    assert (tmp_path / name / "study.db").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("teacher", name)] == []


def test_a_search_has_a_folder_of_its_own(teacher_run: Path, tmp_path: Path):
    for out in (teacher_run, teacher_run / "search"):
        with pytest.raises(UserError, match="is or lies in the folder of a run"):
            _search(teacher_run, out)
    assert not (teacher_run / "tune.json").exists()


def test_a_trials_folder_is_no_students(teacher_run: Path, tmp_path: Path):
    _search(teacher_run, tmp_path / "s", epochs=1, alpha=[0.5], tau=[4])
    folder = tmp_path / "s" / "trials" / "alpha-0.5_tau-4_seed-0"
    with pytest.raises(UserError, match="is a trial of a search, which left the test images alone"):
        ckd.distill(
            "wrn_10_1",
            teachers=[f"{teacher_run}@4"],
            alpha=0.5,
            tau=4.0,
            epochs=1,
            batch_size=25,
            precision="fp32",
            save_every=1,
            out=folder,
        )
    with pytest.raises(UserError, match="is a trial of a search"):
        _ = ckd.open_trajectory(folder).test_accuracy


def test_one_precision_for_all_trials(teacher_run: Path, tmp_path: Path):
    found = _search(teacher_run, tmp_path / "s", epochs=1, precision="bf16")
    assert found["precision"] == "bf16"
    assert "--precision bf16" in found["command"]
    runs_of = [ckd.open_trajectory(path).run.precision for path in (tmp_path / "s" / "trials").iterdir()]
    assert runs_of == ["bf16"] * 4


def test_the_command_says_all_that_the_search_was_told(teacher_run: Path, tmp_path: Path):
    spaced = tmp_path / "a b;c"
    teacher_run.rename(spaced)
    found = ckd.tune(
        "wrn_10_1",
        teachers=[str(spaced)],
        ensemble="snapshot:2",
        average="logits",
        weights=[0.25, 0.75],
        epochs=1,
        batch_size=50,
        alpha=[0.5],
        tau=[1.2345678],
        seed=2,
        teacher_batch_norm="batch",
        tau_squared=False,
        allow_weak_teacher=True,
        out=tmp_path / "s",
    )
    words = shlex.split(found["command"])
    assert words[words.index("--teachers") + 1 :][:2] == [f"{spaced}@2", f"{spaced}@4"]
    assert f"'{spaced}@2'" in found["command"]
    for said in (
        "--average logits",
        "--weights 0.25 0.75",
        "--epochs 1",
        "--batch-size 50",
        "--tau 1.2345678",
        "--seed 2",
        "--teacher-batch-norm batch",
        "--no-tau-squared",
        "--allow-weak-teacher",
        "--precision fp32",
    ):
        assert said in found["command"]


def test_a_trials_students_count_by_their_mean(teacher_run: Path, tmp_path: Path):
    found = _search(teacher_run, tmp_path / "s", seeds=2, alpha=[0.5], tau=[4.0], epochs=1)
    (trial,) = found["trials"]
    assert len(trial["accuracies"]) == 2
    assert trial["accuracy"] == pytest.approx(sum(trial["accuracies"]) / 2)


def test_other_methods_have_their_own_spaces(teacher_run: Path, tmp_path: Path):
    assert set(default_space("kd")) == {"alpha", "tau"}
    assert set(default_space("dkd")) == {"tau", "weight"}
    assert default_space("at") == {"method_weight": (100.0, 300.0, 1000.0, 3000.0, 10000.0)}
    found = ckd.tune(
        "wrn_10_1",
        teachers=[str(teacher_run)],
        method="at",
        weight=[0, 1000],
        epochs=1,
        batch_size=25,
        out=tmp_path / "s",
    )
    assert {trial["values"]["weight"] for trial in found["trials"]} == {0, 1000}


def test_a_storage_of_optunas_can_be_shared(teacher_run: Path, tmp_path: Path):
    """Two folders, as of two machines, one study."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    first = _search(teacher_run, tmp_path / "a", storage=storage, trials=2, epochs=1)
    both = _search(teacher_run, tmp_path / "b", storage=storage, epochs=1)
    assert both["trials"][:2] == first["trials"]
    assert len(both["trials"]) == 4
    assert len(list((tmp_path / "b" / "trials").iterdir())) == 2
    assert len(optuna.load_study(study_name="checkpointkd", storage=storage).trials) == 4


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_two_processes_share_the_work(teacher_run: Path, tmp_path: Path, sampler: str):
    """At the same time, in one study: nothing is done twice but for what both begin in the same instant."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    _search(teacher_run, tmp_path / "first", storage=storage, sampler=sampler, trials=1)
    command = [
        sys.executable,
        "-m",
        "checkpointkd.cli",
        "search",
        "wrn_10_1",
        "--teachers",
        f"{teacher_run}@4",
        "--epochs",
        "3",
        "--batch-size",
        "25",
        "--precision",
        "fp32",
        "--alpha",
        "0.1",
        "0.9",
        "--tau",
        "2",
        "4",
        "--storage",
        storage,
        "--sampler",
        sampler,
        "--trials",
        "4",
        "--json",
        "--out",
    ]
    both = [
        subprocess.Popen([*command, str(tmp_path / name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    trials = optuna.load_study(study_name="checkpointkd", storage=storage).trials
    assert len(trials) in (4, 5)  # both may see the last place free
    assert len({json.dumps(trial.params) for trial in trials}) >= len(trials) - 1
    done = [len(list((tmp_path / name / "trials").glob("*"))) for name in ("a", "b")]
    assert sum(done) == len(trials) - 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alpha": [0.1, 1.5]}, r"alpha must lie in \[0, 1\], not 1.5"),
        ({"tau": [0.0]}, "tau must be above 0"),
        ({"learning_rate": [-1.0]}, "the learning rate must be above 0"),
        ({"method_weight": [-1.0]}, "must be at least 0, not -1"),
        ({"alpha": [float("nan")]}, "the values of alpha must be numbers"),
        ({"alpha": []}, "no values of alpha are given"),
        ({"trials": 0}, "at least 1 trial, not 0"),
        ({"seeds": 0}, "from 1 to 100 seeds, not 0"),
        ({"sampler": "random"}, "unknown sampler 'random'"),
        ({"sampler": "tpe", "alpha": [0.5], "tau": [4.0]}, "TPE needs ranges"),
        ({"storage": "nosql://here"}, r"storage 'nosql://here' can't be used: .*--storage takes what Optuna does"),
        ({"method": "xkd"}, "unknown method 'xkd'"),
        ({"method": "at", "alpha": [1.0]}, "--tau means nothing to at while alpha is 1"),
        ({"storage": ""}, "--storage takes a URL"),
    ],
)
def test_searches_that_cannot_be_are_one_sentence(teacher_run: Path, tmp_path: Path, options: dict, sentence: str):
    with pytest.raises(UserError, match=sentence):
        _search(teacher_run, tmp_path / "s", **options)
    assert not list((tmp_path / "s").glob("trials/*"))


def test_a_storage_that_is_no_database(teacher_run: Path, tmp_path: Path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.db").write_text("no database at all" * 100)
    with pytest.raises(UserError, match="can't be used"):
        _search(teacher_run, tmp_path / "s")


def test_settings_say_how_many_trials_there_will_be():
    grid = {"alpha": (0.1, 0.5, 0.5), "tau": (1.0, 2.0)}
    assert TuneConfig(space=grid).planned == 4
    assert TuneConfig(space=grid, trials=3).planned == 3
    assert TuneConfig(space=grid, sampler="tpe").planned == 25


def test_real_cifar100_is_searched_on_its_selection_images(cifar100: Path, tmp_path: Path):
    data = f"cifar100:{cifar100}"
    ckd.train("wrn_10_1", data=data, train_images=100, epochs=1, batch_size=50, precision="fp32", out=tmp_path / "t")
    found = ckd.tune(
        "wrn_10_1",
        teachers=[str(tmp_path / "t")],
        epochs=1,
        batch_size=100,
        alpha=[0.5],
        tau=[4],
        allow_weak_teacher=True,
        precision="fp32",
        out=tmp_path / "s",
    )
    assert found["images"] == 5000
    assert len(found["trials"]) == 1
