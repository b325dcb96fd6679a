"""Tuning: which trials it runs, that it continues, and that it leaves the test images alone."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import optuna
import pytest

import checkpointkd as ckd
from checkpointkd.commands.distill import DistillOptions
from checkpointkd.commands.tune import REPEATED, TuneOptions
from checkpointkd.errors import UserError
from checkpointkd.selection.optuna_storage import enqueue_next, should_prune, values_of
from checkpointkd.selection.tuning import TuneConfig, default_space
from checkpointkd.training import run as run_module

SHORT = {"epochs": 3, "batch_size": 25, "precision": "fp32", "alpha": [0.1, 0.9], "tau": [2.0, 4.0]}


def _tune(teacher_run: Path, out: Path, **options) -> dict:
    return ckd.tune("wrn_10_1", teachers=[f"{teacher_run}@4"], out=out, **{**SHORT, **options})


def test_grid_is_tried_without_test_images(teacher_run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run_module, "load_test", lambda *_, **__: pytest.fail("a trial loaded the test images"))
    result = _tune(teacher_run, tmp_path / "s", prune=False)
    tried = {(trial["values"]["alpha"], trial["values"]["tau"]) for trial in result["trials"]}
    assert tried == {(0.1, 2.0), (0.1, 4.0), (0.9, 2.0), (0.9, 4.0)}
    assert result["best"]["accuracy"] == max(trial["accuracy"] for trial in result["trials"])
    assert json.loads((tmp_path / "s" / "tune.json").read_text())["best"] == json.loads(json.dumps(result["best"]))
    for trial in result["trials"]:
        values = trial["values"]
        run = ckd.open_trajectory(tmp_path / "s" / "trials" / f"alpha-{values['alpha']:g}_tau-{values['tau']:g}_seed-0")
        assert (run.run.kd.alpha, run.run.kd.tau) == (values["alpha"], values["tau"])
        stored = run.result()
        assert stored is not None
        assert (stored.val.accuracy, stored.test) == (trial["accuracy"], None)
    best = result["best"]["values"]
    assert f"--alpha {best['alpha']:g} --tau {best['tau']:g}" in result["command"]


def test_command_trains_the_best_student(teacher_run: Path, tmp_path: Path):
    result = _tune(teacher_run, tmp_path / "s", prune=False)
    command = shlex.split(result["command"].replace("OUT", str(tmp_path / "student")))[1:]
    done = subprocess.run(
        [sys.executable, "-m", "checkpointkd.cli", *command, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["result"]["val"]["accuracy"] == pytest.approx(result["best"]["accuracy"])


def test_same_call_runs_no_trial_again(teacher_run: Path, tmp_path: Path):
    first = _tune(teacher_run, tmp_path / "s")
    began = time.perf_counter()
    again = _tune(teacher_run, tmp_path / "s")
    assert again["trials"] == first["trials"]
    assert time.perf_counter() - began < 5
    more = _tune(teacher_run, tmp_path / "s", trials=3)
    assert len(more["trials"]) == 4


def test_other_settings_are_refused(teacher_run: Path, tmp_path: Path):
    _tune(teacher_run, tmp_path / "s", trials=1)
    for change in ({"epochs": 2}, {"learning_rate": [0.1]}, {"method": "lskd"}, {"seed": 3}, {"precision": "bf16"}):
        with pytest.raises(UserError, match=r"study 'checkpointkd' in .* has other teachers.*Choose another --out"):
            _tune(teacher_run, tmp_path / "s", **change)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_stopped_process_continues(teacher_run: Path, tmp_path: Path, stop: signal.Signals):
    """The process is stopped in the middle of a trial. Ended trials are kept, and the trial continues at its epoch."""
    out = tmp_path / "s"
    command = [
        sys.executable,
        "-m",
        "checkpointkd.cli",
        "tune",
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
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -9), errors
    ended = json.loads((out / "tune.json").read_text())["trials"]
    assert len(ended) >= 1
    stopped = {path.parent.name: path.read_text() for path in out.glob("trials/*/metrics.jsonl")}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["trials"][: len(ended)] == ended
    assert sorted((t["values"]["alpha"], t["values"]["tau"]) for t in result["trials"]) == [(0.1, 2.0), (0.9, 2.0)]
    for name, rows in stopped.items():  # no epoch is trained again, except one whose state was not saved
        saved = [json.loads(line) for line in rows.splitlines()[:-1]]
        complete = (out / "trials" / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in complete][: len(saved)] == saved


@pytest.mark.slow
def test_bad_trials_are_pruned(teacher_run: Path, tmp_path: Path):
    """One learning rate is too small to learn anything; with another the loss diverges."""
    result = _tune(teacher_run, tmp_path / "s", epochs=9, alpha=[0.5], tau=[4.0], learning_rate=[1e-6, 0.01, 0.03, 1e6])
    by_rate = {trial["values"]["learning_rate"]: trial for trial in result["trials"]}
    assert set(by_rate) == {1e-6, 0.01, 0.03, 1e6}
    assert "after epoch" not in by_rate[1e6]["stopped"], "it diverged"
    assert result["best"]["values"]["learning_rate"] in (0.01, 0.03)
    assert (by_rate[1e-6]["accuracy"] or 0) < result["best"]["accuracy"] - 0.1  # or it was pruned


def test_tpe_searches_the_range(teacher_run: Path, tmp_path: Path):
    result = _tune(teacher_run, tmp_path / "s", sampler="tpe", trials=4, epochs=1)
    assert len(result["trials"]) == 4
    for trial in result["trials"]:
        assert 0.1 <= trial["values"]["alpha"] <= 0.9
        assert 2 <= trial["values"]["tau"] <= 4
    assert len({trial["values"]["tau"] for trial in result["trials"]}) == 4


def test_continued_tpe_tries_the_same_values(teacher_run: Path, tmp_path: Path):
    """The seed follows from the number of trials: a search in parts has the same trials as one in a single call."""
    whole = _tune(teacher_run, tmp_path / "whole", sampler="tpe", trials=5, epochs=1)
    for trials in (2, 3, 5):
        parts = _tune(teacher_run, tmp_path / "parts", sampler="tpe", trials=trials, epochs=1)
    tried = [[trial["values"] for trial in result["trials"]] for result in (whole, parts)]
    assert tried[0] == tried[1]
    assert len({json.dumps(values) for values in tried[0]}) == 5


def test_grid_can_grow(teacher_run: Path, tmp_path: Path):
    first = _tune(teacher_run, tmp_path / "s", epochs=1, tau=[2])
    more = _tune(teacher_run, tmp_path / "s", epochs=1, tau=[2, 4.0])
    assert more["trials"][:2] == first["trials"]
    assert sorted((t["values"]["alpha"], t["values"]["tau"]) for t in more["trials"]) == [
        (0.1, 2.0),
        (0.1, 4.0),
        (0.9, 2.0),
        (0.9, 4.0),
    ]


def test_trial_of_a_killed_process_is_repeated(teacher_run: Path, tmp_path: Path):
    """A process can die between any two lines: also a trial without values costs no point of the grid."""
    _tune(teacher_run, tmp_path / "s", epochs=1, trials=1)
    study = optuna.load_study(study_name="checkpointkd", storage=f"sqlite:///{tmp_path / 's' / 'study.db'}")
    study.ask()
    study.ask().suggest_float("alpha", 0.1, 0.9)
    result = _tune(teacher_run, tmp_path / "s", epochs=1)
    tried = {(trial["values"]["alpha"], trial["values"]["tau"]) for trial in result["trials"]}
    assert len(tried) == len(result["trials"]) == 4


@pytest.mark.parametrize("name", ["a?b#c", "a%20b", "ein Ordner é", "mode=memory?"])
def test_directory_can_have_any_name(teacher_run: Path, tmp_path: Path, name: str):
    _tune(teacher_run, tmp_path / name, epochs=1, trials=1)
    assert (tmp_path / name / "study.db").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("teacher", name)] == []


def test_directory_inside_a_run_is_refused(teacher_run: Path, tmp_path: Path):
    for out in (teacher_run, teacher_run / "tune"):
        with pytest.raises(UserError, match="lies in, the run directory"):
            _tune(teacher_run, out)
    assert not (teacher_run / "tune.json").exists()


def test_student_is_not_trained_in_a_trials_directory(teacher_run: Path, tmp_path: Path):
    _tune(teacher_run, tmp_path / "s", epochs=1, alpha=[0.5], tau=[4])
    folder = tmp_path / "s" / "trials" / "alpha-0.5_tau-4_seed-0"
    with pytest.raises(UserError, match="test"):
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
    with pytest.raises(UserError, match="trial"):
        _ = ckd.open_trajectory(folder).test_accuracy


def test_all_trials_have_one_precision(teacher_run: Path, tmp_path: Path):
    result = _tune(teacher_run, tmp_path / "s", epochs=1, precision="bf16")
    assert result["precision"] == "bf16"
    assert "--precision bf16" in result["command"]
    runs_of = [ckd.open_trajectory(path).run.precision for path in (tmp_path / "s" / "trials").iterdir()]
    assert runs_of == ["bf16"] * 4


def test_command_has_all_options_of_the_search(teacher_run: Path, tmp_path: Path):
    spaced = tmp_path / "a b;c"
    teacher_run.rename(spaced)
    result = ckd.tune(
        "wrn_10_1",
        teachers=[str(spaced)],
        ensemble="snapshot:2",
        average="logits",
        teacher_weights=[0.25, 0.75],
        epochs=1,
        batch_size=50,
        alpha=[0.5],
        tau=[1.2345678],
        seed=2,
        teacher_batch_norm="batch",
        teacher_tau="auto",
        class_order="names",
        device="cpu",
        tau_squared=False,
        allow_weak_teacher=True,
        out=tmp_path / "s",
    )
    words = shlex.split(result["command"])
    assert words[words.index("--teachers") + 1 :][:2] == [f"{spaced}@2", f"{spaced}@4"]
    assert f"'{spaced}@2'" in result["command"]
    for option in (
        "--average logits",
        "--teacher-weights 0.25 0.75",
        "--epochs 1",
        "--batch-size 50",
        "--tau 1.2345678",
        "--seed 2",
        "--teacher-batch-norm batch",
        "--teacher-tau auto",
        "--class-order names",
        "--device cpu",
        "--no-tau-squared",
        "--allow-weak-teacher",
        "--precision fp32",
    ):
        assert option in result["command"]


def test_each_option_that_tune_shares_with_distill_is_in_the_command():
    """A new option that is forgotten would change the student without a word."""
    shared = {field.name for field in fields(TuneOptions)} & {field.name for field in fields(DistillOptions)}
    elsewhere = {
        "teachers",
        "ensemble",
        "method",
        "average",
        "precision",
        "alpha",
        "tau",
        "method_weight",
        "learning_rate",
    }
    without_effect = {"out", "log", "on_progress"}
    assert shared - elsewhere - without_effect == set(REPEATED)


def test_accuracy_of_a_trial_is_the_mean_over_seeds(teacher_run: Path, tmp_path: Path):
    result = _tune(teacher_run, tmp_path / "s", seeds=2, alpha=[0.5], tau=[4.0], epochs=1)
    (trial,) = result["trials"]
    assert len(trial["accuracies"]) == 2
    assert trial["accuracy"] == pytest.approx(sum(trial["accuracies"]) / 2)


def test_methods_have_their_own_search_space(teacher_run: Path, tmp_path: Path):
    assert set(default_space("kd")) == {"alpha", "tau"}
    assert set(default_space("dkd")) == {"tau", "method_weight"}
    assert default_space("at") == {"method_weight": (100.0, 300.0, 1000.0, 3000.0, 10000.0)}
    result = ckd.tune(
        "wrn_10_1",
        teachers=[str(teacher_run)],
        method="at",
        method_weight=[0, 1000],
        epochs=1,
        batch_size=25,
        out=tmp_path / "s",
    )
    assert {trial["values"]["method_weight"] for trial in result["trials"]} == {0, 1000}


def test_optuna_storage_can_be_shared(teacher_run: Path, tmp_path: Path):
    """Two directories, as on two machines, use one study."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    first = _tune(teacher_run, tmp_path / "a", storage=storage, trials=2, epochs=1)
    both = _tune(teacher_run, tmp_path / "b", storage=storage, epochs=1)
    assert both["trials"][:2] == first["trials"]
    assert len(both["trials"]) == 4
    assert len(list((tmp_path / "b" / "trials").iterdir())) == 2
    assert len(optuna.load_study(study_name="checkpointkd", storage=storage).trials) == 4


def test_grid_points_of_started_trials_are_taken():
    """Another machine may have started a trial that has no suggested values yet."""
    settings, study = TuneConfig(space={"alpha": (0.1, 0.9), "tau": (2.0, 4.0)}), optuna.create_study()
    started = []
    for _ in range(4):
        assert enqueue_next(study, settings, "fingerprint", shared=True)
        started.append(values_of(study.trials[study.ask().number]))
    assert not enqueue_next(study, settings, "fingerprint", shared=True)
    assert sorted(started, key=str) == sorted(settings.grid(), key=str)


def test_a_trial_that_was_stopped_while_it_was_judged_is_judged_alike():
    """The pruner marks a report as passed before it says whether the trial is pruned."""
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.HyperbandPruner(1, 9, 3))
    for accuracy in (0.9, 0.8, 0.7, 0.9, 0.8, 0.7, 0.9, 0.8):
        good = study.ask()
        for epoch in range(1, 9):
            good.report(accuracy, epoch)
            good.should_prune()
        study.tell(good, accuracy)
    pruned = 0
    for _ in range(8):
        trial = study.ask()
        trial.report(0.1, 1)
        expected = trial.should_prune()
        assert should_prune(study, trial, again=True) == expected
        pruned += expected and not trial.should_prune()
        study.tell(trial, 0.1)
    assert pruned, "Optuna itself lets a trial pass that it has judged before"


def test_all_values_of_a_trial_are_stored_together():
    settings, study = TuneConfig(space={"alpha": (0.1, 0.9), "tau": (2.0, 4.0)}, sampler="tpe"), optuna.create_study()
    assert enqueue_next(study, settings, "fedcba9876543210", shared=False)
    assert study.trials[0].user_attrs["values"].keys() == {"alpha", "tau"}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_two_processes_share_the_trials(teacher_run: Path, tmp_path: Path, sampler: str):
    """They run at the same time. No trial is run twice, except one that both start at the same instant."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"  # both processes may try to create the tables
    command = [
        sys.executable,
        "-m",
        "checkpointkd.cli",
        "tune",
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
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    trials = optuna.load_study(study_name="checkpointkd", storage=storage).trials
    assert len(trials) in (4, 5)  # both may start the last trial
    assert len({json.dumps(trial.params) for trial in trials}) >= len(trials) - 1
    done = [len(list((tmp_path / name / "trials").glob("*"))) for name in ("a", "b")]
    different = len({json.dumps(trial.params) for trial in trials})
    assert different <= sum(done) <= len(trials)  # a process that gets the same values again has that trial already


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": [0.1, 1.5]}, r"alpha must .*\[0, 1\], not 1.5"),
        ({"tau": [0.0]}, "tau must be"),
        ({"learning_rate": [-1.0]}, "learning rate must be"),
        ({"method_weight": [-1.0]}, "at least 0, not -1"),
        ({"alpha": [float("nan")]}, "The values of alpha must be finite numbers"),
        ({"alpha": []}, "--alpha needs at least one value"),
        ({"trials": 0}, "--trials must be at least 1, not 0"),
        ({"seeds": 0}, "--seeds must be from 1 to 100, not 0"),
        ({"sampler": "random"}, "sampler 'random'"),
        ({"sampler": "tpe", "alpha": [0.5], "tau": [4.0]}, "--sampler tpe needs a range"),
        (
            {"storage": "nosql://me:secret@here"},
            r"Could not open the Optuna storage 'nosql://here': .*--storage takes any storage URL",
        ),
        ({"method": "xkd"}, "method 'xkd'"),
        ({"method": "at", "alpha": [1.0]}, "--tau .*alpha"),
        ({"storage": ""}, "--storage takes a URL"),
    ],
)
def test_invalid_options_are_refused(teacher_run: Path, tmp_path: Path, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        _tune(teacher_run, tmp_path / "s", **options)
    assert not list((tmp_path / "s").glob("trials/*"))


def test_file_that_is_no_database_is_refused(teacher_run: Path, tmp_path: Path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.db").write_text("no database at all" * 100)
    with pytest.raises(UserError, match="Could not open the Optuna storage"):
        _tune(teacher_run, tmp_path / "s")


def test_number_of_planned_trials():
    grid = {"alpha": (0.1, 0.5, 0.5), "tau": (1.0, 2.0)}
    assert TuneConfig(space=grid).planned == 4
    assert TuneConfig(space=grid, trials=3).planned == 3
    assert TuneConfig(space=grid, sampler="tpe").planned == 25


@pytest.mark.slow
def test_cifar100_is_tuned_on_its_validation_set(cifar100: Path, tmp_path: Path):
    data = f"cifar100:{cifar100}"
    ckd.train("wrn_10_1", data=data, train_images=100, epochs=1, batch_size=50, precision="fp32", out=tmp_path / "t")
    result = ckd.tune(
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
    assert result["images"] == 5000
    assert len(result["trials"]) == 1


@pytest.mark.slow
def test_an_interrupted_search_prunes_and_finds_the_same_as_an_uninterrupted_search(teacher_run: Path, tmp_path: Path):
    options = {"epochs": 9, "alpha": [0.1, 0.5, 0.9], "tau": [1.0, 16.0], "prune": True}

    def outcome(result: dict) -> dict:
        return {tuple(trial["values"].values()): (trial["accuracy"], trial["stopped"]) for trial in result["trials"]}

    whole = _tune(teacher_run, tmp_path / "whole", **options)
    for interrupted in (1, 2, 4):  # the trial, from 1
        started = []

        def stop(
            task: str, done: int, total: int, interrupted: int = interrupted, started: list[int] = started
        ) -> None:
            if task == "this trial" and done == 1:
                started.append(total)
            if len(started) == interrupted and task == "this trial" and done > total // 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            _tune(teacher_run, tmp_path / str(interrupted), **options, on_progress=stop)
        result = _tune(teacher_run, tmp_path / str(interrupted), **options)
        assert outcome(result) == outcome(whole)
        assert result["best"]["values"] == whole["best"]["values"]
