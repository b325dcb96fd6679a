"""Where independent pieces of work run: in processes of this machine, on Ray, or as SLURM jobs.

An executor has one method, `submit`, which returns a `concurrent.futures.Future`. A function that raises sets its
exception; a process or machine that dies sets `WorkerDied`. The caller submits the same work again.
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
