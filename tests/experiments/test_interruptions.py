"""Experiments that are killed, interrupted, stopped by the clock, or that have a failing task."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import checkpointkd as ckd
from checkpointkd.cli import main

from .conftest import copied, read_experiment, read_rows, started

TIMES = ("seconds", "teachers_seconds")


def _start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start Figure 3 with one seed and two jobs."""
    words = ["reproduce", "figure3", "--preset", "smoke", "--seeds", "1", "--jobs", "2", "--out", str(out), *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "checkpointkd.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _count(out: Path, file: str) -> int:
    return len(list(out.glob(f"runs/*/{file}")))


def _metrics_bytes(out: Path) -> int:
    return sum(path.stat().st_size for path in out.glob("runs/*/metrics.jsonl"))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(child) for child in listing.split()]


def _wait_for_the_end_of(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(_is_alive, pids)):
        assert time.monotonic() < deadline, "processes outlive their experiment"
        time.sleep(0.05)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_killed_experiment_leaves_no_process(signal_number: signal.Signals, smoke: Path, tmp_path: Path):
    """With two jobs, when only the parent gets the signal. Another test continues it."""
    process = _start(started(smoke, tmp_path))
    before = _count(tmp_path, "metrics.jsonl")
    _wait_for(lambda: _count(tmp_path, "metrics.jsonl") > before, process)
    children = _children(process.pid)
    assert len(children) >= 2
    process.send_signal(signal_number)
    _, printed = process.communicate(timeout=60)
    _wait_for_the_end_of(children)
    if signal_number == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 143
        assert "stopped" in printed.lower()


def test_an_interrupted_experiment_shows_its_results(smoke: Path, tmp_path: Path):
    out = started(smoke, tmp_path / "interrupted")
    before = _count(out, "result.json")
    process = _start(out)
    _wait_for(lambda: _count(out, "result.json") > before, process)
    os.killpg(process.pid, signal.SIGSTOP)  # so that it does not finish meanwhile
    children = _children(process.pid)
    for signal_number in (signal.SIGINT, signal.SIGCONT):  # a terminal signals all processes
        os.killpg(process.pid, signal_number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped" in printed.lower()
    assert "Traceback" not in printed
    _wait_for_the_end_of(children)
    result = read_experiment(out, "figure3")
    assert result["missing"] > 0
    assert result["notes"][0].startswith("Not finished: ")
    page = ckd.report(out).read_text(encoding="utf-8")
    assert result["notes"][0] in page
    assert "not run yet" in page.lower()


@pytest.mark.slow
def test_a_stopped_and_killed_experiment_continues_to_the_same_rows(smoke: Path, tmp_path: Path):
    """Stopped by --time-limit, killed, moved to another folder each time, and finished: the rows do not differ."""
    out = started(smoke, tmp_path / "first")
    process = _start(out, "--time-limit", "0.1")
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert read_experiment(out, "figure3")["missing"]
    assert "The time limit is over" in printed
    assert "Repeat the command to continue" in printed

    out = out.rename(tmp_path / "second")
    before = _metrics_bytes(out)
    process = _start(out)
    _wait_for(lambda: _metrics_bytes(out) > before, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    out = out.rename(tmp_path / "third")
    process = _start(out)
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert not read_experiment(out, "figure3")["missing"]
    assert "The time limit is over" not in printed
    expected, rows = (
        [{name: row[name] for name in row if name not in TIMES} for row in read_rows(folder, "figure3", seed=0)]
        for folder in (smoke, out)
    )
    assert rows == expected


def test_a_failed_task_is_named_and_the_others_run(smoke: Path, tmp_path: Path, capsys):
    """One run's folder holds something else: all other tasks run, and the results say what is missing."""
    out = copied(smoke, tmp_path / "out", "table3")
    taken = out / "runs" / read_rows(out, "table3", kind="network", variant="0.7", seed=1)[0]["run"]
    shutil.rmtree(taken)
    taken.mkdir()
    (taken / "thesis.tex").write_text("precious")
    removed = out / "runs" / read_rows(out, "table3", kind="network", variant="scratch", seed=1)[0]["run"]
    shutil.rmtree(removed)
    assert main(["reproduce", "table3", "--preset", "smoke", "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert "1 of 38 tasks failed. The results are in " in printed
    assert "thesis.tex" in printed
    assert (removed / "result.json").exists()
    result = read_experiment(out, "table3")
    assert result["missing"] == 1
    assert any(note.startswith("Failed: ") and "thesis.tex" in note for note in result["notes"])
    assert (taken / "thesis.tex").read_text() == "precious"


@pytest.mark.slow
def test_tasks_that_require_a_failed_one_do_not_run(smoke: Path, tmp_path: Path, capsys):
    """A teacher's folder holds something else: its students are left out, those without a teacher train."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("experiments.json", "machine.json"):
        shutil.copy(smoke / name, out)
    (teacher,) = smoke.glob("runs/wrn_16_2-teacher-seed0-*")
    taken = out / "runs" / teacher.name
    taken.mkdir(parents=True)
    (taken / "thesis.tex").write_text("precious")
    assert main(["reproduce", "figure2", "--preset", "smoke", "--seeds", "1", "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert "1 of 18 tasks failed, and 10 tasks that require a failed one did not run" in printed
    assert len(list(out.glob("runs/wrn_10_1-student-*/result.json"))) == 1
    assert not list(out.glob("runs/wrn_10_1-from-*"))
    assert json.loads((out / "figure2" / "experiment.json").read_text())["missing"] == 11
