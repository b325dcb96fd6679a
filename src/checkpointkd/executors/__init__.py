"""Executors run independent function calls: in processes on this machine, on Ray, or as SLURM jobs.

`submit` starts a call and returns a `concurrent.futures.Future`. If the function raises, the future holds the
exception. If the process or machine dies, the future holds `WorkerDied`, and the caller submits the call again.
"""

from .base import JOBS_FOLDER, MAX_ATTEMPTS, Executor, ExecutorConfig, ExecutorName, WorkerDied, run_all
from .local import InProcessExecutor, LocalExecutor, devices_of_slots, open_executor

__all__ = [
    "JOBS_FOLDER",
    "MAX_ATTEMPTS",
    "Executor",
    "ExecutorConfig",
    "ExecutorName",
    "InProcessExecutor",
    "LocalExecutor",
    "WorkerDied",
    "devices_of_slots",
    "open_executor",
    "run_all",
]
