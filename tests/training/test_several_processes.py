"""One network trained by several processes: the same weights as one process, kills, and errors that are printed once.

The processes are real, started by torchrun on 127.0.0.1 with gloo.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpointkd.checkpoints import open_trajectory
from checkpointkd.information.plane import load_plane
from checkpointkd.losses import METHODS

SCRIPT = Path(__file__).with_name("several_processes.py")
DIGITS = ("train", "wrn_10_1", "--data", "digits", "--train-images", "90", "--batch-size", "40", "--precision", "fp32")


def launcher(processes: int, *, restarts: int = 0) -> list[str]:
    """Return the words that start so many processes, on any free port."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--max-restarts", str(restarts)),
    ]


def run(processes: int, *words: str, restarts: int = 0, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    command = launcher(processes, restarts=restarts) if processes > 1 else [sys.executable]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *words], capture_output=True, text=True, encoding="utf-8", env=environment, timeout=timeout
    )


def checkpointkd(processes: int, *words: str, **options: float) -> subprocess.CompletedProcess[str]:
    return run(processes, "-m", "checkpointkd", *words, **options)  # type: ignore[arg-type]


def largest_difference(folder: Path, method: str, processes: int) -> float:
    """Return max |Δw| between one process and each of several."""
    alone = torch.load(folder / f"{method}-1-0.pt")
    differences = []
    for rank in range(processes):
        several = torch.load(folder / f"{method}-{processes}-{rank}.pt")
        assert several["weights"].keys() == alone["weights"].keys()
        for name, tensor in alone["weights"].items():
            differences.append((tensor.double() - several["weights"][name].double()).abs().max().item())
        assert several["loss"] == pytest.approx(alone["loss"], rel=1e-5), method
        assert several["train_accuracy"] == pytest.approx(alone["train_accuracy"], abs=1e-6), method
    return max(differences)


@pytest.mark.parametrize(
    ("processes", "methods"),
    [
        pytest.param(2, ("labels", *METHODS), marks=pytest.mark.slow, id="2 processes, all methods"),
        pytest.param(3, ("labels", *METHODS), marks=pytest.mark.slow, id="3 processes, all methods"),
    ],
)
def test_weights_are_those_of_one_process(processes: int, methods: tuple[str, ...], tmp_path: Path):
    """In float64, with batch norm, two epochs and a short last batch. pkt and dist compare the examples of a batch."""
    for count in (1, processes):
        result = run(count, str(SCRIPT), str(tmp_path), *methods)
        assert result.returncode == 0, result.stderr[-2000:]
    differences = {method: largest_difference(tmp_path, method, processes) for method in methods}
    assert max(differences.values()) < 1e-12, differences


@pytest.mark.slow
def test_a_batch_with_fewer_examples_than_processes(tmp_path: Path):
    """Four processes share a last batch of three examples: one of them has none."""
    for count in (1, 4):
        result = run(count, str(SCRIPT), str(tmp_path), "labels")
        assert result.returncode == 0, result.stderr[-2000:]
    assert largest_difference(tmp_path, "labels", 4) < 1e-12


def test_two_processes_train_and_distill_one_run(tmp_path: Path):
    """The main process alone prints and writes; the run continues with another number of processes."""
    teacher, student = str(tmp_path / "teacher"), str(tmp_path / "student")
    result = checkpointkd(2, *DIGITS, "--epochs", "2", "--out", teacher)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stderr.count("2 epochs of 3 steps") == 1, "one process prints"
    trajectory = open_trajectory(Path(teacher))
    assert list(trajectory) == [1, 2]
    again = checkpointkd(1, *DIGITS, "--epochs", "2", "--out", teacher)
    assert "already complete" in again.stderr
    words = ("distill", "wrn_10_1", "--teachers", teacher, "--epochs", "1", "--batch-size", "40", "--out", student)
    result = checkpointkd(2, *words, "--precision", "fp32", "--allow-weak-teacher", "--train-images", "90")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (Path(student) / "student.safetensors").exists()


@pytest.mark.slow
def test_a_killed_rank_is_replaced_and_the_run_goes_on_with_other_numbers_of_processes(tmp_path: Path):
    """kill -9 of one of two ranks under --max-restarts, then one process, then three."""
    out = tmp_path / "run"
    words = (*DIGITS, "--epochs", "30", "--save-every", "5", "--out", str(out))
    process = subprocess.Popen(
        [*launcher(2, restarts=1), "-m", "checkpointkd", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for_epoch(out, 3)
    os.kill(child_with_rank(process.pid, 1), signal.SIGKILL)
    reached = epochs(out)
    wait_for_epoch(out, reached + 2)
    process.terminate()
    _, printed = process.communicate(timeout=60)
    assert "continues after epoch" in printed
    for processes, until in ((1, 3), (3, 100)):
        before = epochs(out)
        process = subprocess.Popen(
            [*(launcher(processes) if processes > 1 else [sys.executable]), "-m", "checkpointkd", *words],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        while process.poll() is None and epochs(out) < before + until:
            time.sleep(0.05)
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 31))
    assert (out / "result.json").exists()


def epochs(out: Path) -> int:
    try:
        return len((out / "metrics.jsonl").read_text().splitlines())
    except OSError:
        return 0


def wait_for_epoch(out: Path, epoch: int) -> None:
    deadline = time.monotonic() + 120
    while epochs(out) < epoch:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def child_with_rank(parent: int, rank: int) -> int:
    """Return the process id of a rank below a torchrun process."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    for pid in map(int, children.split()):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return pid
    raise AssertionError(children)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            ("train", "wrn_10_1", "--data", "digits", "--batch-size", "1", "--epochs", "1", "--out", "OUT"),
            "--batch-size 1 is smaller than the number of processes, 2",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (*DIGITS, "--epochs", "1", "--accumulate", "21", "--out", "OUT"),
            "--accumulate 21 is too large: a batch has 40 images, over all processes. Use at most 20.",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("tune", "wrn_10_1", "--teachers", "x", "--out", "OUT"),
            "`tune` does not run under torchrun",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("train", "no_such_network", "--data", "digits", "--out", "OUT"), "no_such_network", marks=pytest.mark.slow
        ),
    ],
)
def test_an_error_is_printed_once(words: tuple[str, ...], message: str, tmp_path: Path):
    out = str(tmp_path / "run")
    result = checkpointkd(2, *(out if word == "OUT" else word for word in words))
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("checkpointkd: ") and message in line]
    assert len(lines) == 1, result.stderr[-3000:]
    assert "checkpointkd/cli.py" not in result.stderr, "no traceback but torchrun's own"


@pytest.mark.slow
def test_a_damaged_image_of_one_process_ends_all(tmp_path: Path):
    from PIL import Image

    for split, count in (("train", 8), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (number * 20, 0, 0)).save(folder / f"{number}.png")
    words = ("train", "resnet_8", "--data", f"folder:{tmp_path / 'data'}", "--image-size", "32", "--epochs", "2")
    words = (*words, "--batch-size", "4", "--precision", "fp32", "--select-on", "test")
    whole = checkpointkd(2, *words, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr[-2000:]
    damaged = tmp_path / "data" / "train" / "dog" / "5.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    result = checkpointkd(2, *words, "--out", str(tmp_path / "damaged"))
    assert result.returncode != 0
    assert len([line for line in result.stderr.splitlines() if line.startswith("checkpointkd: ")]) >= 1
    assert "5.png" in result.stderr
    shutil.rmtree(tmp_path / "data")


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path):
    """Each process scores a part of the checkpoints; the number of checkpoints is odd."""
    run_path, copy = tmp_path / "run", tmp_path / "copy"
    assert checkpointkd(1, *DIGITS, "--epochs", "3", "--save-every", "1", "--out", str(run_path)).returncode == 0
    shutil.copytree(run_path, copy)
    words = ("--decoder-steps", "4", "--decoder-seeds", "2")
    results = [checkpointkd(count, "score", str(path), *words) for count, path in ((1, run_path), (2, copy))]
    assert [result.returncode for result in results] == [0, 0], results[1].stderr[-2000:]
    assert results[0].stdout.count("\n") == results[1].stdout.count("\n"), "one process prints"
    alone, together = (load_plane(open_trajectory(path)) for path in (run_path, copy))
    assert alone.points == together.points
    np.testing.assert_array_equal(alone.information_ASN, together.information_ASN)
