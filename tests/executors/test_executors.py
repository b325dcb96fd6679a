"""Executors: slots and their GPUs, processes that die, and bad settings."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from checkpointkd.errors import UserError
from checkpointkd.executors import (
    ExecutorConfig,
    InProcessExecutor,
    LocalExecutor,
    WorkerDied,
    devices_of_slots,
    open_executor,
    run_all,
)


def _environment(delay: float = 0.0) -> tuple[str | None, str | None, int]:
    import torch

    time.sleep(delay)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()


def _kill_once(marker: Path) -> str:
    """Kill this process, unless the file says that this has happened."""
    if marker.exists():
        return "second attempt"
    marker.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _fail() -> None:
    raise UserError("the function's own error")


@pytest.mark.parametrize(
    ("jobs", "share", "gpus", "expected"),
    [
        (8, None, 8, list("01234567")),
        (8, None, 2, list("01010101")),
        (3, None, 8, list("012")),
        (8, 0.25, 2, list("01010101")),
        (2, 1, 2, list("01")),
        (3, 0, 2, ["", "", ""]),
        (2, None, 0, [None, None]),
    ],
)
def test_slots_are_spread_over_the_gpus(jobs: int, share: float | None, gpus: int, expected: list[str]):
    assert devices_of_slots(jobs, share, [str(number) for number in range(gpus)]) == expected


@pytest.mark.parametrize(
    ("jobs", "share", "gpus", "message"),
    [
        (3, 1, 2, "--jobs 3 with --gpus-per-run 1 needs more than the 2 GPUs of this machine. Use --jobs 2 or fewer."),
        (9, 0.25, 2, "Use --jobs 8 or fewer"),
        (1, 0.5, 0, "PyTorch finds no CUDA GPU"),
    ],
)
def test_too_few_gpus_are_named(jobs: int, share: float, gpus: int, message: str):
    with pytest.raises(UserError, match=message):
        devices_of_slots(jobs, share, [str(number) for number in range(gpus)])


def test_visible_gpus_keep_the_names_that_the_user_gave(monkeypatch):
    """With a faked count of GPUs: this machine may have none."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    executor = open_executor(ExecutorConfig(jobs=4), "auto", Path())
    assert isinstance(executor, LocalExecutor)
    assert executor._devices == ["5", "7", "5", "7"]
    one_gpu = open_executor(ExecutorConfig(jobs=2), "cuda:1", Path())
    assert isinstance(one_gpu, LocalExecutor)
    assert one_gpu._devices == [None, None], "--device cuda:1 names the GPU of all runs"


@pytest.mark.slow
def test_each_process_has_its_gpu_and_its_threads():
    executor = LocalExecutor(["3", "4"])
    try:
        results = [future.result(60) for future in [executor.submit(_environment, 0.5) for _ in range(2)]]
    finally:
        executor.close()
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert results == [("3", str(threads), threads), ("4", str(threads), threads)]


@pytest.mark.slow
def test_work_of_a_killed_process_is_done_again(tmp_path: Path):
    """The other process is left alone."""
    executor = LocalExecutor([None, None])
    other = executor.submit(_environment, 3.0)
    with pytest.raises(WorkerDied, match="killed"):
        executor.submit(_kill_once, tmp_path / "first").result(60)
    assert other.result(60)[2] >= 1
    executor.close()
    executor = LocalExecutor([None])
    try:
        assert run_all(executor, _kill_once, [(tmp_path / "second",)]) == ["second attempt"]
    finally:
        executor.close()


@pytest.mark.parametrize("in_process", [True, False])
def test_errors_of_the_function_pass_through(in_process: bool):
    executor = InProcessExecutor() if in_process else LocalExecutor([None])
    try:
        with pytest.raises(UserError, match="the function's own error"):
            executor.submit(_fail).result(60)
    finally:
        executor.close()


@pytest.mark.slow
def test_closing_stops_what_runs():
    executor = LocalExecutor([None])
    executor.submit(_environment).result(60)
    executor.submit(time.sleep, 1000)
    began = time.monotonic()
    executor.close()
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "rey"}, "Unknown executor 'rey'. Did you mean 'ray'"),
        ({"jobs": 0}, "--jobs must be from 1 to 4,096, not 0"),
        ({"gpus_per_run": 2}, "start `train` or `distill` with torchrun"),
        ({"gpus_per_run": -1}, "--gpus-per-run must be from 0 to 1, not -1"),
        ({"gpus_per_run": float("nan")}, "--gpus-per-run must be from 0 to 1, not nan"),
        ({"executor": "slurm", "gpus_per_run": 0.5}, "SLURM gives out whole GPUs"),
        ({"slurm": ("a=b",)}, "--slurm applies to --executor slurm only"),
    ],
)
def test_bad_settings_are_refused(options: dict, message: str):
    with pytest.raises(UserError, match=message):
        ExecutorConfig(**options)


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_missing_library_is_named(name: str, monkeypatch):
    monkeypatch.setitem(sys.modules, {"ray": "ray", "slurm": "submitit"}[name], None)
    with pytest.raises(UserError, match=rf"pip install 'checkpointkd\[{name}\]'"):
        open_executor(ExecutorConfig(executor=name), "cpu", Path())  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["partition", "=x", "a b=3"])
def test_slurm_parameters_are_key_value(text: str, tmp_path: Path):
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="--slurm takes KEY=VALUE"):
        open_executor(ExecutorConfig(executor="slurm", slurm=(text,)), "cpu", tmp_path)


def test_slurm_without_sbatch_says_where_to_start(tmp_path: Path):
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="Start this command where `sbatch` works"):
        open_executor(ExecutorConfig(executor="slurm"), "cpu", tmp_path)


def test_ray_at_an_address_that_answers_nothing(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"Ray could not be reached at RAY_ADDRESS=127\.0\.0\.1:1"):
        open_executor(ExecutorConfig(executor="ray"), "cpu", Path())
