"""The interface of executors, and their settings. No torch here: the command line imports this module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..config import check_choice
from ..errors import UserError

ExecutorName = Literal["local", "ray", "slurm"]


class WorkerDied(Exception):  # noqa: N818 - reads well where it is raised and caught
    """The process or machine that ran a call has died. Files that the call saved are still there."""


JOBS_FOLDER = ".jobs"  # of SLURM's scripts and logs, in the folder of results
MAX_ATTEMPTS = 3  # of a call whose process or machine dies


class Executor(Protocol):
    """Runs up to `jobs` functions at once."""

    @property
    def jobs(self) -> int:
        """The number of functions that run at once."""
        ...

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Start a function. Call this only while fewer than `jobs` functions run."""
        ...

    def close(self) -> None:
        """Stop all running functions."""
        ...


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """The settings of an executor.

    Attributes:
        executor: Where functions run.
        jobs: How many functions run at once.
        gpus_per_run: The share of a GPU for each function. None: an equal share of the GPUs of this machine, one GPU of
            a Ray cluster that has GPUs, or no GPU for SLURM.
        slurm: Parameters of SLURM jobs as KEY=VALUE.
    """

    executor: ExecutorName = "local"
    jobs: int = 1
    gpus_per_run: float | None = None
    slurm: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("executor", self.executor, ExecutorName)
        if not 1 <= self.jobs <= 4096:
            raise UserError(f"--jobs must be from 1 to 4,096, not {self.jobs}")
        share = self.gpus_per_run
        if share is not None and not (0 <= share <= 1):
            raise UserError(
                f"--gpus-per-run must be from 0 to 1, not {share:g}: a run uses one GPU or a share of it. To train one "
                "run on several GPUs, start `train` or `distill` with torchrun."
            )
        if self.executor == "slurm" and share not in (None, 0, 1):
            raise UserError(f"--gpus-per-run must be 0 or 1 for SLURM, not {share:g}: SLURM gives out whole GPUs.")
        if self.slurm and self.executor != "slurm":
            raise UserError("--slurm applies to --executor slurm only. Add --executor slurm, or leave out --slurm.")


def run_all(executor: Executor, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call a function once for each tuple of arguments, and return the results in order.

    A call whose process dies is repeated, up to three attempts in all.

    Raises:
        WorkerDied: If the process died in each of three attempts. Errors that the function raises are passed on.
    """
    waiting = [(number, 1) for number in range(len(calls))]
    running: dict[Future[Any], tuple[int, int]] = {}
    results: dict[int, Any] = {}
    while waiting or running:
        while waiting and len(running) < executor.jobs:
            number, attempt = waiting.pop(0)
            running[executor.submit(function, *calls[number])] = (number, attempt)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            number, attempt = running.pop(future)
            try:
                results[number] = future.result()
            except WorkerDied:
                if attempt == MAX_ATTEMPTS:
                    raise
                waiting.append((number, attempt + 1))
    return [results[number] for number in range(len(calls))]
