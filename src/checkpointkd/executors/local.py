"""Run functions in this process, or in other processes on this machine, each with its GPU and CPU threads."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from ..config import Device
from ..errors import UserError, pluralize
from .base import Executor, ExecutorConfig, WorkerDied

WATCH_SECONDS = 0.5  # between two checks that the parent process is alive
CLOSE_SECONDS = 0.1  # loky's thread fails if its processes are killed while it starts a call


def open_executor(config: ExecutorConfig, device: Device, folder: Path) -> Executor:
    """Return the executor of these settings, for functions that compute on a device.

    `folder` is for SLURM's scripts and logs.

    Raises:
        UserError: If the executor is not installed or cannot be reached, or if this machine has too few GPUs.
    """
    if config.executor == "ray":
        from .on_ray import RayExecutor

        return RayExecutor(config)
    if config.executor == "slurm":
        from .slurm import SlurmExecutor

        return SlurmExecutor(config, folder)
    return LocalExecutor(devices_of_slots(config.jobs, config.gpus_per_run, _visible_gpus(device)))


def devices_of_slots(jobs: int, gpus_per_run: float | None, gpus: Sequence[str]) -> list[str | None]:
    """Return the GPU of each of `jobs` slots, or None for a slot that may use all visible GPUs.

    Args:
        jobs: The number of slots.
        gpus_per_run: The share of a GPU that each slot takes, from 0 to 1. None spreads the slots evenly.
        gpus: The visible GPUs, as in CUDA_VISIBLE_DEVICES.

    Raises:
        UserError: If the GPUs are too few.

    >>> devices_of_slots(3, None, ["0", "1"]), devices_of_slots(2, 0.5, ["0", "1"]), devices_of_slots(2, None, [])
    (['0', '1', '0'], ['0', '1'], [None, None])
    """
    if gpus_per_run == 0:
        return [""] * jobs
    if not gpus:
        if gpus_per_run is not None:
            raise UserError(
                f"--gpus-per-run {gpus_per_run:g} needs a GPU, but PyTorch finds no CUDA GPU on this machine. "
                "Leave out --gpus-per-run."
            )
        return [None] * jobs
    if gpus_per_run is not None and jobs > (largest := len(gpus) * math.floor(1 / gpus_per_run + 1e-9)):
        raise UserError(
            f"--jobs {jobs} with --gpus-per-run {gpus_per_run:g} needs more than the {pluralize(len(gpus), 'GPU')} of "
            f"this machine. Use --jobs {largest} or fewer."
        )
    return [gpus[slot % len(gpus)] for slot in range(jobs)]


def _visible_gpus(device: Device) -> list[str]:
    """Return the GPUs over which slots may be spread, by their names in CUDA_VISIBLE_DEVICES."""
    if device not in ("auto", "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] or [str(number) for number in range(count)]


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class InProcessExecutor:
    """Runs one function at a time in this process. `submit` returns after the function has ended."""

    jobs = 1

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def close(self) -> None:
        pass


class LocalExecutor:
    """Runs functions in other processes, one process per slot. The processes end when this process ends.

    A slot keeps its process, because starting one takes seconds. If the process dies, the slot gets a new one.
    """

    def __init__(self, devices: Sequence[str | None]) -> None:
        self.jobs = len(devices)
        self._threads = max(1, cores() // self.jobs)
        self._devices = list(devices)
        self._pools: dict[int, Any] = {}
        self._idle = list(reversed(range(self.jobs)))

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        slot = self._idle.pop()
        if slot not in self._pools:
            self._pools[slot] = self._new_pool(self._devices[slot])
        future: Future[Any] = Future()
        inner = self._pools[slot].submit(function, *arguments)
        inner.add_done_callback(partial(self._finish, slot, future))
        return future

    def close(self) -> None:
        time.sleep(CLOSE_SECONDS)
        for pool in self._pools.values():
            pool.shutdown(wait=True, kill_workers=True)
        self._pools.clear()

    def _new_pool(self, device: str | None) -> Any:
        from joblib.externals.loky import ProcessPoolExecutor

        env = {"OMP_NUM_THREADS": str(self._threads)}  # read when PyTorch is imported
        if device is not None:
            env["CUDA_VISIBLE_DEVICES"] = device
        return ProcessPoolExecutor(1, env=env, initializer=_start, initargs=(os.getpid(), self._threads))

    def _finish(self, slot: int, future: Future[Any], inner: Future[Any]) -> None:
        from joblib.externals.loky.process_executor import BrokenProcessPool

        if inner.cancelled():
            future.cancel()
            return
        error = inner.exception()
        if isinstance(error, BrokenProcessPool):
            self._pools.pop(slot, None)
            error = WorkerDied("its process was killed, perhaps because memory ran out")
        self._idle.append(slot)
        if error is None:
            future.set_result(inner.result())
        else:
            future.set_exception(error)


def _start(parent: int, threads: int) -> None:
    """Prepare a new process: ignore Ctrl-C, which the parent handles, and end when the parent ends or is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
