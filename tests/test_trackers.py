"""`--log`: what each tracker has of a run, read back with the tracker's own library.

Trackers that are not installed are skipped; TensorBoard always is.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import checkpointkd as ckd
from checkpointkd import trackers
from checkpointkd.checkpoints import Trajectory
from checkpointkd.cli import main

from .conftest import SMALL

INSTALLED = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}"))
    for name in trackers.TRACKERS
]
Curves = dict[str, list[tuple[int, float]]]  # (epoch, value) by metric, in the order in which they were logged


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch):
    """Leave out what the user's environment says of trackers."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


def _tensorboard(run: Path, folder: Path) -> tuple[Curves, dict[str, str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    curves = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    (settings,) = (event.tensor_proto.string_val[0].decode() for event in events.Tensors("settings/text_summary"))
    cells = [line.strip("| ").split(" | ") for line in settings.splitlines()[2:]]
    return curves, dict(cells)


def _records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file, a LevelDB log: blocks of 32 KiB, chunks with a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def _complete_records(path: Path) -> list[Any]:
    """Return the records of a file once it is complete: W&B's own process writes it, shortly after `finish`."""
    deadline = time.monotonic() + 30
    while True:
        records = list(_records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.1)


def _wandb(run: Path, folder: Path) -> tuple[Curves, dict[str, str]]:
    curves: Curves = {}
    settings: dict[str, str] = {}
    state = json.loads((run / "trackers.json").read_text())["wandb"]
    for path in sorted(folder.glob(f"wandb/offline-run-*/run-{state['id']}.wandb")):
        summary, epoch = {}, 0
        for record in _complete_records(path):
            if record.WhichOneof("record_type") == "run" and record.run.display_name:
                assert record.run.display_name == run.name
                settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
                settings["group"] = record.run.run_group
            values = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            if "loss" in values:
                epoch = int(values["_step"])
            for name, value in values.items():
                if not name.startswith("_"):
                    curves.setdefault(name, []).append((epoch, float(value)))
            summary |= {item.key or item.nested_key[0]: item.value_json for item in record.summary.update}
        for name, value in summary.items():
            if name.startswith("final_"):
                curves.setdefault(name, []).append((epoch, float(value)))
    return curves, settings


def _mlflow(run: Path, folder: Path) -> tuple[Curves, dict[str, str]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    entry = client.get_run(json.loads((run / "trackers.json").read_text())["mlflow"]["id"])
    curves = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(entry.info.run_id, name)]
        for name in entry.data.metrics
    }
    group = client.get_experiment(entry.info.experiment_id).name
    return curves, {**entry.data.params, "status": entry.info.status, "group": group}


READERS: dict[str, Callable[[Path, Path], tuple[Curves, dict[str, str]]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def _expected(run: Path) -> Curves:
    """Return what metrics.jsonl and result.json hold."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curves: Curves = {}
    for row in rows:
        for name, value in row.items():
            if name != "epoch":
                curves.setdefault(name, []).append((row["epoch"], value))
    result = json.loads((run / "result.json").read_text())
    for split in ("val", "test"):
        if result.get(split):
            for name in ("accuracy", "nll"):
                curves[f"final_{split}_{name}"] = [(result["epoch"], result[split][name])]
    return curves


def _check(name: str, run: Path, folder: Path | None = None) -> dict[str, str]:
    """Check that a tracker has each value of a run once, and return its settings."""
    curves, settings = READERS[name](run, folder or run)
    expected = _expected(run)
    assert curves.keys() == expected.keys()
    for metric, points in expected.items():
        assert [epoch for epoch, _ in curves[metric]] == [epoch for epoch, _ in points], metric
        assert [value for _, value in curves[metric]] == pytest.approx([value for _, value in points]), metric
    return settings


def _train(out: Path, **options: Any) -> Trajectory:
    return ckd.train("wrn_10_1", out=out, **(SMALL | options))


@pytest.mark.parametrize("name", INSTALLED)
def test_tracker_has_each_epoch_the_result_and_the_settings(name: str, tmp_path: Path):
    run = _train(tmp_path / "run", log=[name])
    settings = _check(name, tmp_path / "run")
    assert (settings["model"], settings["recipe.epochs"], settings["data.name"]) == ("wrn_10_1", "4", "digits")
    assert settings.get("status", "FINISHED") == "FINISHED"
    plain = _train(tmp_path / "plain")
    assert run.last.sha256 == plain.last.sha256
    assert not run.run.differences(plain.run)
    assert not (tmp_path / "plain" / "trackers.json").exists()


@pytest.mark.parametrize("name", INSTALLED)
def test_complete_run_is_logged_later_and_once(name: str, tmp_path: Path):
    _train(tmp_path / "run")
    saved = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").iterdir()}
    for _ in range(2):
        _train(tmp_path / "run", log=name)
        _check(name, tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").iterdir()} == saved


def _interrupt(out: Path, epochs: int, **options: Any) -> None:
    """Train until so many epochs are done."""

    def on_progress(task: str, done: int, total: int) -> None:
        if task == str(out) and done > epochs * total / 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(out, on_progress=on_progress, **options)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("name", INSTALLED)
def test_run_that_continues_logs_no_epoch_twice(name: str, killed: bool, tmp_path: Path):
    """`killed` is what a process leaves that dies after it has logged an epoch, before it has noted so."""
    run = tmp_path / "run"
    _interrupt(run, 2, log=[name])
    state = json.loads((run / "trackers.json").read_text())
    assert state[name]["epoch"] == 2
    if killed:
        if name == "wandb":
            pytest.skip("Weights & Biases cannot read or discard what an offline run holds: the epoch is there twice")
        state[name]["epoch"] = 1
        (run / "trackers.json").write_text(json.dumps(state))
    _train(run, log=[name])
    assert _check(name, run).get("status", "FINISHED") == "FINISHED"


def test_event_files_and_notes_that_disagree_are_logged_in_full(tmp_path: Path):
    run = tmp_path / "run"
    _interrupt(run, 2, log=["tensorboard"])
    for path in run.glob("events.out.tfevents.*"):
        path.unlink()
    _train(run, log=["tensorboard"])
    _check("tensorboard", run)
    (run / "trackers.json").unlink()
    _train(run, log=["tensorboard"])
    curves, _ = _curves_of(run)
    assert [epoch for epoch, _ in curves["loss"]] == [1, 2, 3, 4]


def _curves_of(run: Path) -> tuple[Curves, None]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]
    }, None


class Failing:
    """A tracker whose server goes away in the second epoch."""

    package = "json"
    id = None

    def __init__(self, run: trackers.TrackedRun) -> None:
        self.epoch = 0

    def log(self, values: Any, epoch: int) -> None:
        if epoch == 2:
            raise ConnectionError("the server went away")

    result = log

    def close(self, status: str) -> None:
        raise ConnectionError("the server is still away")


def test_failing_tracker_warns_once_and_harms_nothing(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setitem(trackers.TRACKERS, "failing", Failing)
    with caplog.at_level(logging.WARNING, "checkpointkd"):
        run = _train(tmp_path / "run", log=["failing", "tensorboard"])
    assert [record.getMessage() for record in caplog.records] == [
        f"failing cannot log {tmp_path / 'run'}: the server went away. The run goes on, and its own files are complete."
    ]
    _check("tensorboard", tmp_path / "run")
    assert run.last.sha256 == _train(tmp_path / "plain").last.sha256


def test_damaged_notes_harm_nothing(tmp_path: Path, caplog):
    run = tmp_path / "run"
    _interrupt(run, 2, log=["tensorboard"])
    (run / "trackers.json").write_text("{")
    with caplog.at_level(logging.WARNING, "checkpointkd"):
        assert _train(run, log=["tensorboard"]).result() is not None
    (warning,) = [record.getMessage() for record in caplog.records if "trackers.json is damaged" in record.getMessage()]
    assert "Remove the file" in warning


COMMANDS = {
    "train": ["train", "wrn_10_1", "--data", "digits"],
    "distill": ["distill", "wrn_10_1", "--teachers", "{teacher}"],
    "tune": ["tune", "wrn_10_1", "--teachers", "{teacher}"],
    "select": ["select", "{teacher}", "--student", "wrn_10_1"],
    "reproduce": ["reproduce", "table3", "--preset", "smoke"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_and_missing_trackers_are_refused_before_anything_else(
    command: str, teacher_run: Path, tmp_path: Path, monkeypatch, capsys
):
    out = tmp_path / "out"
    words = [word.format(teacher=teacher_run) for word in COMMANDS[command]]
    assert main([*words, "--out", str(out), "--log", "tensorboard", "wandbb"]) == 2
    assert (
        "Unknown tracker 'wandbb'. Did you mean 'wandb'? Known: tensorboard, wandb, mlflow" in capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    assert main([*words, "--out", str(out), "--log", "wandb"]) == 2
    assert "Run: pip install 'checkpointkd[wandb]'" in capsys.readouterr().err
    assert not out.exists()


def test_names_of_trackers_are_texts(tmp_path: Path):
    with pytest.raises(ckd.UserError, match=r"log takes names of trackers, such as \['tensorboard'\], not 3"):
        _train(tmp_path / "run", log=3)
    with pytest.raises(ckd.UserError, match=r"log takes names of trackers, .*, not \[\]"):
        _train(tmp_path / "run", log=[])


@pytest.mark.parametrize("name", INSTALLED)
def test_trials_of_a_search_are_grouped(name: str, teacher_run: Path, tmp_path: Path):
    out = tmp_path / "study"
    ckd.tune(
        "wrn_10_1", teachers=[f"{teacher_run}@last"], alpha=[0.1, 0.9], tau=[4], out=out, log=[name],
        epochs=4, train_images=60, batch_size=20, precision="fp32", allow_weak_teacher=True,
    )  # fmt: skip
    trials = sorted((out / "trials").iterdir())
    assert len(trials) == 2
    for trial in trials:
        settings = _check(name, trial, out)
        assert settings["kd.tau"] == "4.0"
        assert settings.get("group", "study") == "study"


def test_pilot_runs_and_the_student_after_them_are_logged(teacher_run: Path, tmp_path: Path):
    out = tmp_path / "search"
    ckd.select(
        teacher_run, student="wrn_10_1", out=out, log=["tensorboard"], then_distill=tmp_path / "student", epochs=4,
        budget=8, methods=["kd"], teachers_from=["last"], train_images=60, batch_size=20, precision="fp32",
    )  # fmt: skip
    runs = sorted((out / "pilot_runs").iterdir())
    assert len(runs) == 2
    for run in [*runs, tmp_path / "student"]:
        _check("tensorboard", run, out)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("name", INSTALLED)
def test_runs_of_an_experiment_are_grouped(name: str, jobs: int, tmp_path: Path):
    out = tmp_path / "experiments"
    ckd.reproduce(
        "figure2", preset="smoke", out=out, log=[name], only=["last", "scratch"], seed=0, jobs=jobs, teacher_epochs=4,
        student_epochs=2, train_images=60,
    )  # fmt: skip
    runs = sorted((out / "runs").iterdir())
    assert len(runs) > 3
    for run in runs:
        assert _check(name, run, out).get("group", "experiments") == "experiments"


@pytest.mark.slow
def test_only_the_main_process_logs(tmp_path: Path):
    """Without the `--`, torchrun takes --log for one of its own options."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29731"]
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    command += ["-m", "--", "checkpointkd", "train", "wrn_10_1", *arguments, "--device", "cpu", "--log", "tensorboard"]
    done = subprocess.run([*command, "--out", "run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 1
    _check("tensorboard", tmp_path / "run")


def test_a_copied_run_keeps_its_log(tmp_path: Path):
    _train(tmp_path / "run", log=["tensorboard"])
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    _train(tmp_path / "copy", log=["tensorboard"])
    _check("tensorboard", tmp_path / "copy")
