"""Run functions as SLURM jobs. Needs the extra `slurm`, which installs submitit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line
from .base import ExecutorConfig, WorkerDied

POLL_SECONDS = 1.0
TIMEOUT_MINUTES = 240  # time limit of a job, unless --slurm sets timeout_min; the queued job continues the run
MAX_REQUEUES = 100  # of a job at its time limit; submitit's default is 3


class SlurmExecutor:
    """Runs each function as a SLURM job. At the time limit and after a preemption, the job is queued again.

    Scripts, results and logs of jobs are files in `folder`, which all machines must share.
    """

    def __init__(self, config: ExecutorConfig, folder: Path) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError("--executor slurm needs submitit: pip install 'checkpointkd[slurm]'") from None
        self.jobs = config.jobs
        parameters = _parameters(config)
        try:
            self._executor = submitit.AutoExecutor(
                folder=folder, cluster=parameters.pop("cluster", "slurm"), slurm_max_num_timeout=MAX_REQUEUES
            )
            self._executor.update_parameters(**parameters)
        except Exception as error:  # submitit raises many kinds
            raise UserError(
                f"submitit could not use SLURM: {first_line(error)}. Start this command where `sbatch` works, and "
                "check --slurm."
            ) from None
        self._jobs: dict[Any, Future[Any]] = {}
        self._closed = threading.Event()
        self._watcher: threading.Thread | None = None

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            job = self._executor.submit(_Call(), function, *arguments)
        except Exception as error:  # sbatch refuses a partition, an account, …
            raise UserError(f"sbatch refused a job: {first_line(error)}. Check --slurm.") from None
        self._jobs[job] = future
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return future

    def close(self) -> None:
        self._closed.set()
        for job in list(self._jobs):
            job.cancel()

    def _watch(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            for job in [job for job in list(self._jobs) if job.done()]:
                _set(self._jobs.pop(job), job)


class _Call:
    """A call that submitit queues again if SLURM stops its job early."""

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def checkpoint(self, function: Callable[..., Any], *arguments: Any) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, function, *arguments)


def _set(future: Future[Any], job: Any) -> None:
    """Set the result or the exception of a job."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        future.set_result(job.result())
    except FailedJobError as error:  # the function raised
        last_line = str(error).strip().splitlines()[-1]
        future.set_exception(UserError(f"SLURM job {job.job_id} failed: {last_line}. Its log is {job.paths.stderr}"))
    except UncompletedJobError as error:
        future.set_exception(WorkerDied(f"SLURM job {job.job_id} ended early ({first_line(error)})"))
    except Exception as error:  # a result that cannot be read, for example
        future.set_exception(error)


def _parameters(config: ExecutorConfig) -> dict[str, Any]:
    """Return the parameters for submitit from KEY=VALUE strings."""
    parameters: dict[str, Any] = {"timeout_min": TIMEOUT_MINUTES}
    if config.gpus_per_run:
        parameters["gpus_per_node"] = 1
    for text in config.slurm:
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier():
            raise UserError(f"--slurm takes KEY=VALUE, such as timeout_min=240, not {text!r}.")
        own = name in ("cluster", "timeout_min", "gpus_per_node", "cpus_per_task", "mem_gb", "name")
        key = name if own or name.startswith("slurm_") else f"slurm_{name}"
        parameters[key] = int(value) if value.isdecimal() else value
    return parameters
