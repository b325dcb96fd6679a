"""Runs tasks in the order of their requirements, several at once in processes of their own."""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol

from ..config import OnProgress
from ..errors import UserError, first_line
from .context import Context
from .tasks import Task, ordered

log = logging.getLogger("checkpointkd")

DEPENDENCY_FAILED = "a required task failed"
ALL_TASKS = "all tasks"  # the label of the overall progress
POLL_SECONDS = 0.2


def run_tasks(
    context: Context,
    tasks: Sequence[Task],
    *,
    jobs: int,
    on_progress: OnProgress | None,
    on_done: Callable[[Task], None] = lambda task: None,
    deadline: float = math.inf,
) -> dict[Task, str]:
    """Run tasks and all that they require, `jobs` at once, those that come first in `tasks` first.

    Tasks that are done are not run again. Tasks that require a failed one are left out.

    Args:
        context: The context of all tasks.
        tasks: The tasks.
        jobs: Tasks that run at once.
        on_progress: Called with the progress of each task, and of all tasks.
        on_done: Called with each task that is done.
        deadline: The value of `time.monotonic` at which running tasks are stopped. They continue in the next call.

    Returns:
        The tasks that failed, and why.

    Raises:
        UserError: If a result is damaged.
    """
    order = {task: position for position, task in enumerate(ordered(tasks))}
    graph: TopologicalSorter[Task] = TopologicalSorter({task: task.requires() for task in order})
    graph.prepare()
    progress = _Progress(context, list(order), on_progress)
    failed: dict[Task, str] = {}
    waiting: list[Task] = []

    def finish(task: Task) -> None:
        graph.done(task)
        progress.finish(task)
        on_done(task)

    def release(executor: _Executor) -> None:
        """Move tasks whose requirements are done to `waiting`, unless they are done themselves."""
        while released := graph.get_ready():
            for task in released:
                if not executor.occupies(task.folder(context)) and task.done(context):
                    finish(task)
                else:
                    waiting.append(task)
        waiting.sort(key=order.__getitem__)

    # a deadline needs a process even for one job: it stops whatever runs
    in_process = jobs == 1 and deadline == math.inf
    with _InProcess(context, progress) if in_process else _Processes(context, jobs, progress) as executor:
        release(executor)
        while (waiting or executor.running) and time.monotonic() < deadline:
            for task in list(waiting):
                if executor.full:
                    break
                if executor.occupies(task.folder(context)):
                    continue  # another task comes to the same run
                waiting.remove(task)
                if task.done(context):
                    finish(task)
                else:
                    executor.submit(task)
            for task, error in executor.ended():
                if error:
                    failed[task] = error
                    log.warning("%s", error)
                else:
                    finish(task)
            release(executor)
    for task in order:
        if task not in failed and any(required in failed for required in task.requires()):
            failed[task] = DEPENDENCY_FAILED
    return failed


def _error_of(context: Context, task: Task, on_progress: OnProgress) -> str:
    """Run a task; return what went wrong, or an empty text."""
    import torch

    try:
        with warnings_only():
            task.run(context, on_progress)
    except UserError as error:
        return str(error)
    except (OSError, torch.cuda.OutOfMemoryError) as error:
        return f"{task.folder(context)}: {first_line(error)}"
    return ""


@contextlib.contextmanager
def warnings_only(active: bool = True) -> Iterator[None]:
    """Log only warnings: the messages of a single run would be too many for hundreds of runs."""
    level = log.level
    log.setLevel(logging.WARNING if active else level)
    try:
        yield
    finally:
        log.setLevel(level)


class _Progress:
    """The progress of all tasks as one, weighted by their cost."""

    def __init__(self, context: Context, tasks: list[Task], on_progress: OnProgress | None) -> None:
        self._context = context
        self._cost = {task: task.cost(context) for task in tasks}
        self._share: dict[Task, float] = {}
        self._on_progress = on_progress or (lambda label, done, total: None)

    def within(self, task: Task) -> OnProgress:
        """Return the callback for the progress of one task."""
        folder = str(task.folder(self._context))

        def on_progress(label: str, done: int, total: int) -> None:
            if label == folder or label.startswith("score "):  # other labels are of parts of the task
                self._share[task] = max(self._share.get(task, 0.0), min(0.99, done / max(1, total)))
                self._show()
            self._on_progress(label, done, total)

        return on_progress

    def finish(self, task: Task) -> None:
        self._share[task] = 1.0
        self._show()

    def _show(self) -> None:
        total = sum(self._cost.values())
        done = sum(self._cost[task] * share for task, share in self._share.items())
        if sum(share == 1.0 for share in self._share.values()) == len(self._cost):
            done = total
        self._on_progress(ALL_TASKS, round(1000 * done), round(1000 * total))


class _Executor(Protocol):
    """Where tasks run."""

    @property
    def running(self) -> Sequence[Task]: ...

    @property
    def full(self) -> bool:
        """Whether no further task can start now."""
        ...

    def occupies(self, folder: Path) -> bool:
        """Return whether a running task writes into a folder."""
        ...

    def submit(self, task: Task) -> None:
        """Start a task that is not done."""
        ...

    def ended(self) -> list[tuple[Task, str]]:
        """Return the tasks that ended, with what went wrong, after waiting a moment."""
        ...


class _InProcess:
    """Runs one task at a time in this process."""

    def __init__(self, context: Context, progress: _Progress) -> None:
        self._context, self._progress = context, progress
        self._ended: list[tuple[Task, str]] = []

    def __enter__(self) -> _InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def running(self) -> Sequence[Task]:
        return [task for task, _ in self._ended]

    @property
    def full(self) -> bool:
        return bool(self._ended)

    def occupies(self, folder: Path) -> bool:
        return False

    def submit(self, task: Task) -> None:
        self._ended.append((task, _error_of(self._context, task, self._progress.within(task))))

    def ended(self) -> list[tuple[Task, str]]:
        ended, self._ended = self._ended, []
        return ended


@dataclass(eq=False)
class _Worker:
    """A process that runs one task after another: a process takes longer to start than many a task to run."""

    process: SpawnProcess
    pipe: Connection


class _Processes:
    """Runs tasks in processes that die with this one."""

    def __init__(self, context: Context, jobs: int, progress: _Progress) -> None:
        self._context, self._jobs, self._progress = context, jobs, progress
        self._threads = max(1, _cores() // jobs)
        self._spawn = multiprocessing.get_context("spawn")
        self._messages: Any = self._spawn.Queue()
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, Task] = {}

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        workers = [*self._busy, *self._idle]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()

    @property
    def running(self) -> Sequence[Task]:
        return list(self._busy.values())

    @property
    def full(self) -> bool:
        return len(self._busy) >= self._jobs

    def occupies(self, folder: Path) -> bool:
        return any(task.folder(self._context) == folder for task in self._busy.values())

    def submit(self, task: Task) -> None:
        worker = self._idle.pop() if self._idle else self._start()
        worker.pipe.send(task)
        self._busy[worker] = task

    def ended(self) -> list[tuple[Task, str]]:
        wait([worker.pipe for worker in self._busy], POLL_SECONDS)
        self._forward()
        ended = []
        for worker in [worker for worker in self._busy if worker.pipe.poll()]:
            try:
                error = worker.pipe.recv()
                self._idle.append(worker)
            except (EOFError, OSError):
                worker.process.join()
                folder = self._busy[worker].folder(self._context)
                error = f"the process for {folder} died (exit code {worker.process.exitcode})"
            self._forward()
            ended.append((self._busy.pop(worker), error))
        return ended

    def _start(self) -> _Worker:
        pipe, worker_pipe = self._spawn.Pipe()
        process = self._spawn.Process(
            target=_work, args=(self._context, self._threads, worker_pipe, self._messages), daemon=True
        )
        with _ignoring_interrupts():  # the process inherits it: Ctrl-C must not kill it while it starts
            process.start()
        worker_pipe.close()
        return _Worker(process, pipe)

    def _forward(self) -> None:
        """Log and show what workers have sent."""
        by_pid = {worker.process.pid: task for worker, task in self._busy.items()}
        while not self._messages.empty():
            message = self._messages.get()
            if isinstance(message, logging.LogRecord):
                log.handle(message)
            elif (task := by_pid.get(message[0])) is not None:
                self._progress.within(task)(*message[1:])


def _cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C. The process that starts others stops them."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)


def _work(context: Context, threads: int, pipe: Connection, messages: Any) -> None:
    """Run tasks as they come through the pipe, and answer each with what went wrong."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # a worker ends when its parent does, even when the parent is killed
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    log.handlers, log.propagate = [QueueHandler(messages)], False
    sent_at = 0.0

    def on_progress(label: str, done: int, total: int) -> None:
        nonlocal sent_at
        if done >= total or time.monotonic() - sent_at > POLL_SECONDS:
            sent_at = time.monotonic()
            messages.put((os.getpid(), label, done, total))

    while True:
        pipe.send(_error_of(context, pipe.recv(), on_progress))
