"""Run tasks in the order of their requirements, as many at once as an executor allows.

All state is in files: a task is done when its results are in its folder. So all executors work the same way, and
several machines may share a folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from ..config import OnProgress
from ..errors import InUse, UserError, first_line
from ..executors import MAX_ATTEMPTS, Executor, InProcessExecutor, WorkerDied
from .context import Context
from .tasks import Task, ordered

log = logging.getLogger("checkpointkd")

DEPENDENCY_FAILED = "a required task failed"
ALL_TASKS = "all tasks"  # the label of the overall progress
POLL_SECONDS = 0.5
IN_USE_SECONDS, LONGEST_PAUSE = 5.0, 60.0  # until a task that another process runs is tried again
VISIBLE_SECONDS = 60.0  # for files of other machines to appear: NFS also caches that a file is missing


@dataclass(frozen=True)
class Outcome:
    """How a task ended: its error, if any, and its warnings."""

    error: str = ""
    in_use: bool = False
    warnings: tuple[str, ...] = ()


def run_tasks(
    context: Context,
    tasks: Sequence[Task],
    *,
    executor: Executor,
    on_progress: OnProgress | None,
    on_done: Callable[[Task], None] = lambda task: None,
    deadline: float = math.inf,
) -> dict[Task, str]:
    """Run tasks and the tasks that they require, in the order of `tasks` where possible.

    Tasks that are done are not run again. Tasks that require a failed task are left out. If a task's process
    or machine dies, the task continues elsewhere. A task that another process runs is left to that process.

    Args:
        context: The context of all tasks.
        tasks: The tasks.
        executor: Where tasks run. It is closed at the end, which stops tasks that still run.
        on_progress: Called with the progress of each running task, and of all tasks.
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
    running: dict[Future[Outcome], Task] = {}
    attempts: dict[Task, int] = {}
    pauses: dict[Task, float] = {}
    not_before: dict[Task, float] = {}

    def finish(task: Task) -> None:
        graph.done(task)
        progress.finish(task)
        on_done(task)

    def is_occupied(folder: Path) -> bool:
        return any(task.folder(context) == folder for task in running.values())

    def release() -> None:
        """Move tasks whose requirements are done to `waiting`, unless they are done themselves."""
        while released := graph.get_ready():
            for task in released:
                if not is_occupied(task.folder(context)) and task.done(context):
                    finish(task)
                else:
                    waiting.append(task)
        waiting.sort(key=order.__getitem__)
        progress.show()  # once for all tasks that were done before, so that they do not count as speed

    def start_ready() -> None:
        for task in list(waiting):
            if len(running) >= executor.jobs:
                return
            if is_occupied(task.folder(context)) or time.monotonic() < not_before.get(task, 0):
                continue  # another task or process uses the same run
            waiting.remove(task)
            if task.done(context):
                finish(task)
                continue
            inside = isinstance(executor, InProcessExecutor)
            future = executor.submit(run_task, context, task, *([progress.within(task)] if inside else []))
            running[future] = task

    def end(task: Task, outcome: Outcome) -> None:
        for warning in outcome.warnings:
            log.warning("%s", warning)
        if outcome.in_use:
            if task not in not_before:
                log.warning("%s Other tasks continue.", outcome.error)
            pauses[task] = min(2 * pauses.get(task, IN_USE_SECONDS / 2), LONGEST_PAUSE)
            not_before[task] = time.monotonic() + pauses[task]
            waiting.append(task)
        elif outcome.error:
            failed[task] = outcome.error
            log.warning("%s", outcome.error)
        elif not _becomes_done(task, context):
            failed[task] = (
                f"{task.folder(context)} was finished on another machine, but its files are not visible here. "
                "Give --out a folder that all machines share."
            )
            log.warning("%s", failed[task])
        else:
            finish(task)

    try:
        release()
        while (waiting or running) and time.monotonic() < deadline:
            start_ready()
            ended, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
            if not running and waiting and not any(time.monotonic() >= not_before.get(task, 0) for task in waiting):
                time.sleep(POLL_SECONDS)  # for another process
            for future in ended:
                task = running.pop(future)
                try:
                    end(task, future.result())
                except WorkerDied as error:
                    attempts[task] = attempts.get(task, 1) + 1
                    again = attempts[task] <= MAX_ATTEMPTS
                    _log_death(context, task, error, again)
                    if again:
                        waiting.append(task)
                    else:
                        failed[task] = f"{task.folder(context)} failed {MAX_ATTEMPTS} times: {error}"
            release()
            progress.read(running.values())
    finally:
        executor.close()
    for task in order:
        if task not in failed and any(required in failed for required in task.requires()):
            failed[task] = DEPENDENCY_FAILED
    return failed


def run_task(context: Context, task: Task, on_progress: OnProgress | None = None) -> Outcome:
    """Run one task in this process. The tasks that it requires must be done."""
    import torch

    collected = _Collected()
    try:
        context.check_shared(VISIBLE_SECONDS)
        for required in task.requires():
            _becomes_done(required, context)
        with warnings_only(), collected if on_progress is None else contextlib.nullcontext():
            task.run(context, on_progress)
    except InUse as error:
        return Outcome(str(error), in_use=True, warnings=tuple(collected.messages))
    except UserError as error:
        return Outcome(str(error), warnings=tuple(collected.messages))
    except (OSError, torch.cuda.OutOfMemoryError) as error:
        return Outcome(f"{task.folder(context)}: {first_line(error)}", warnings=tuple(collected.messages))
    return Outcome(warnings=tuple(collected.messages))


def _becomes_done(task: Task, context: Context) -> bool:
    """Return whether the results of a task that ran elsewhere are visible here, at once or within `VISIBLE_SECONDS`."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not task.done(context):
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


def _log_death(context: Context, task: Task, error: WorkerDied, again: bool) -> None:
    """Log that a task's process has died, and from which epoch the task continues."""
    folder = task.folder(context)
    epochs = _saved_epochs(folder)
    where = f"after epoch {epochs}" if epochs else "from its start"
    log.warning(
        "%s stopped: %s. %s",
        folder,
        error,
        f"It continues {where}." if again else f"It failed after {MAX_ATTEMPTS} attempts.",
    )


@contextlib.contextmanager
def warnings_only(active: bool = True) -> Iterator[None]:
    """Log only warnings: with hundreds of runs, the messages of each run would be too many."""
    level = log.level
    log.setLevel(logging.WARNING if active else level)
    try:
        yield
    finally:
        log.setLevel(level)


class _Collected(logging.Handler):
    """Keeps log messages of a worker process, which has no terminal, for the process that started it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> None:
        self._before = log.handlers, log.propagate
        log.handlers, log.propagate = [self], False

    def __exit__(self, *_: object) -> None:
        log.handlers, log.propagate = self._before


class _Progress:
    """The overall progress of all tasks, weighted by their cost. It is read from files of the runs, on any machine."""

    def __init__(self, context: Context, tasks: list[Task], on_progress: OnProgress | None) -> None:
        self._context = context
        self._cost = {task: task.cost(context) for task in tasks}
        self._share: dict[Task, float] = {}
        self._shown: dict[str, int] = {}
        self._on_progress = on_progress or (lambda label, done, total: None)

    def within(self, task: Task) -> OnProgress:
        """Return the callback for the progress of one task in this process."""
        folder = str(task.folder(self._context))

        def on_progress(label: str, done: int, total: int) -> None:
            if label == folder or label.startswith("score "):  # other labels are of parts of the task
                self._advance(task, done / max(1, total))
            self._on_progress(label, done, total)

        return on_progress

    def read(self, tasks: Iterable[Task]) -> None:
        """Read the progress of tasks that run in other processes."""
        for task in tasks:
            folder = task.folder(self._context)
            epochs, label = _saved_epochs(folder), str(folder)
            if epochs and epochs != self._shown.get(label) and (planned := _planned_epochs(folder)):
                self._shown[label] = epochs
                self._advance(task, epochs / planned)
                self._on_progress(label, epochs, planned)

    def finish(self, task: Task) -> None:
        self._share[task] = 1.0

    def _advance(self, task: Task, share: float) -> None:
        self._share[task] = max(self._share.get(task, 0.0), min(0.99, share))
        self.show()

    def show(self) -> None:
        total = sum(self._cost.values())
        done = sum(self._cost[task] * share for task, share in self._share.items())
        if sum(share == 1.0 for share in self._share.values()) == len(self._cost):
            done = total
        self._on_progress(ALL_TASKS, round(1000 * done), round(1000 * total))


def _saved_epochs(run: Path) -> int:
    """Return how many epochs a run has saved. Another process may be writing the file."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def _planned_epochs(run: Path) -> int:
    """Return the planned epochs of a run, or 0 if its record cannot be read yet."""
    try:
        return int(json.loads((run / "run.json").read_bytes())["recipe"]["epochs"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0
