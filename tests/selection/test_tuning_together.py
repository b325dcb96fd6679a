"""Several processes tune together through a journal file: one is killed, and the trials are those of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import checkpointkd as ckd
from checkpointkd.errors import UserError

OPTIONS = {"epochs": 6, "batch_size": 10, "precision": "fp32", "alpha": [0.1, 0.5, 0.9], "tau": [2.0], "prune": False}
WORDS = ("--epochs", "6", "--batch-size", "10", "--precision", "fp32", "--alpha", "0.1", "0.5", "0.9", "--tau", "2")


def _start(teacher_run: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    command = ["tune", "wrn_10_1", "--teachers", f"{teacher_run}@4", *WORDS, "--no-prune", *words, "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "checkpointkd", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _accuracies(out: Path) -> dict[float, list[float]]:
    trials = json.loads((out / "tune.json").read_text(encoding="utf-8"))["trials"]
    return {trial["values"]["alpha"]: trial["accuracies"] for trial in trials}


@pytest.fixture(scope="module")
def alone(_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[float, list[float]]:
    """The accuracies of the same trials in one process."""
    out = tmp_path_factory.mktemp("alone") / "tune"
    ckd.tune("wrn_10_1", teachers=[f"{_trained}@4"], out=out, **OPTIONS)
    return _accuracies(out)


@pytest.mark.slow
def test_the_trial_of_a_killed_process_is_continued_by_another(
    teacher_run: Path, tmp_path: Path, alone: dict[float, list[float]]
):
    storage = ("--storage", f"journal:{tmp_path / 'study.journal'}")
    out = tmp_path / "tune"
    first = _start(teacher_run, out, *storage)
    deadline = time.monotonic() + 200
    while not (started := [path for path in out.glob("trials/*/metrics.jsonl") if path.stat().st_size]):
        assert first.poll() is None, first.stderr and first.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    saved = started[0].read_text(encoding="utf-8").splitlines()[:-1]
    both = [_start(teacher_run, out, *storage) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
    assert _accuracies(out) == alone
    assert started[0].read_text(encoding="utf-8").splitlines()[: len(saved)] == saved, "no epoch is trained again"


@pytest.mark.slow
def test_jobs_share_the_trials(teacher_run: Path, tmp_path: Path, alone: dict[float, list[float]]):
    out = tmp_path / "tune"
    ckd.tune("wrn_10_1", teachers=[f"{teacher_run}@4"], out=out, jobs=2, **OPTIONS)
    assert _accuracies(out) == alone
    assert len(list(out.glob("trials/*/result.json"))) == 3
    again = ckd.tune("wrn_10_1", teachers=[f"{teacher_run}@4"], out=out, **OPTIONS)
    assert len(again["trials"]) == 3, "without --jobs, the same search goes on"


def test_the_folder_of_a_search_without_jobs_is_not_mixed(teacher_run: Path, tmp_path: Path):
    """Its study is another file, whose trials --jobs would not see."""
    options = {**OPTIONS, "epochs": 1, "alpha": [0.1]}
    ckd.tune("wrn_10_1", teachers=[f"{teacher_run}@4"], out=tmp_path / "tune", **options)
    with pytest.raises(UserError, match="without --jobs"):
        ckd.tune("wrn_10_1", teachers=[f"{teacher_run}@4"], out=tmp_path / "tune", jobs=2, **options)
