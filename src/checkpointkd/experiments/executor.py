"""Carries out many pieces of work in order, several at once in processes of their own."""

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
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from ..config import OnProgress
from ..errors import UserError, first_line
from .context import Context
from .quiet import quiet
from .tasks import DEPENDENCY_FAILED, Task, ordered

log = logging.getLogger("checkpointkd")

LOOK_SECONDS = 0.2  # how often processes are asked how far they are


def run_tasks(
    context: Context,
    works: Sequence[Task],
    *,
    jobs: int,
    on_progress: OnProgress | None,
    on_done: Callable[[Task], None] = lambda work: None,
    until: float = math.inf,
) -> dict[Task, str]:
    """Do all of this, what is needed first, `jobs` at once; returns what failed, and why.

    What needs something that failed is left out. Stopped, it can be called again. At `until` (of `time.monotonic`) it
    stops by itself, whatever is being done, for which even a single job needs a process.
    """
    overall = _Overall(context, ordered(works), on_progress)
    failed: dict[Task, str] = {}
    waiting: list[Task] = []
    done: set[Task] = set()
    for work in ordered(works):
        if all(before in done for before in work.after()) and context.done(work):
            done.add(work)
            overall.finish(work)
        else:
            waiting.append(work)
    if jobs == 1 and until == math.inf:
        for work in waiting:
            if _lacks(work, failed):
                continue
            if trouble := "" if context.done(work) else _trouble(context, work, overall.within(work)):
                failed[work] = trouble
                log.warning("%s", trouble)
                continue
            overall.finish(work)
            on_done(work)
        return failed
    with _Processes(context, jobs, overall) as processes:
        while (waiting or processes.running) and time.monotonic() < until:
            for work in list(waiting):
                if _lacks(work, failed):
                    waiting.remove(work)
                elif (
                    len(processes.running) < jobs
                    and all(before in done for before in work.after())
                    and not processes.busy(work)  # nor looked into: what is there is being written
                ):
                    waiting.remove(work)
                    if context.done(work):
                        done.add(work)
                        overall.finish(work)
                        on_done(work)
                    else:
                        processes.begin(work)
            for work, trouble in processes.ended():
                if trouble:
                    failed[work] = trouble
                    log.warning("%s", trouble)
                else:
                    done.add(work)
                    overall.finish(work)
                    on_done(work)
    return failed


def _trouble(context: Context, work: Task, on_progress: OnProgress) -> str:
    """Do this work; returns what went wrong, if anything did."""
    try:
        with quiet():
            context.carry_out(work, on_progress)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{context.folder(work)}: {first_line(error)}"
    return ""


def _lacks(work: Task, failed: dict[Task, str]) -> bool:
    """Whether something that it needs failed; then it fails too."""
    if any(before in failed for before in work.after()):
        failed[work] = DEPENDENCY_FAILED
        return True
    return False


class _Overall:
    """One bar over all pieces, weighted by what they cost."""

    def __init__(self, context: Context, works: list[Task], on_progress: OnProgress | None) -> None:
        self._lab = context
        self._cost = {work: context.cost(work) for work in works}
        self._part: dict[Task, float] = {}
        self._tell = on_progress or (lambda task, done, total: None)

    def within(self, work: Task) -> OnProgress:
        folder = self._lab.folder(work)

        def tell(task: str, done: int, total: int) -> None:
            if task == str(folder) or task.startswith("score "):  # others are parts of parts
                self._part[work] = max(self._part.get(work, 0.0), min(0.99, done / max(1, total)))
                self._show()
            self._tell(task, done, total)

        return tell

    def finish(self, work: Task) -> None:
        self._part[work] = 1.0
        self._show()

    def _show(self) -> None:
        done = sum(self._cost[work] * part for work, part in self._part.items())
        total = sum(self._cost.values())
        whole = sum(part == 1.0 for part in self._part.values())
        self._tell(
            "all runs", round(1000 * done) if whole < len(self._cost) else round(1000 * total), round(1000 * total)
        )


@dataclass(eq=False)
class _Worker:
    """A process that does one piece after the other: starting one takes longer than many a piece."""

    process: SpawnProcess
    pipe: Connection


class _Processes:
    """Pieces that are being done, each in a process that dies with this one."""

    def __init__(self, context: Context, jobs: int, overall: _Overall) -> None:
        self._lab, self._overall = context, overall
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._context = multiprocessing.get_context("spawn")
        self._told: Any = self._context.Queue()
        self._idle: list[_Worker] = []
        self.running: dict[_Worker, Task] = {}

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        workers = [*self.running, *self._idle]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()

    def busy(self, work: Task) -> bool:
        """Whether its folder is being worked in, for a piece that comes to the same."""
        return self._lab.folder(work) in {self._lab.folder(other) for other in self.running.values()}

    def begin(self, work: Task) -> None:
        worker = self._idle.pop() if self._idle else self._started()
        worker.pipe.send(work)
        self.running[worker] = work

    def _started(self) -> _Worker:
        ours, its = self._context.Pipe()
        process = self._context.Process(target=_work, args=(self._lab, self._threads, its, self._told), daemon=True)
        with deaf_to_interrupts():  # which a process takes over: it must not die of Ctrl-C while it starts
            process.start()
        its.close()
        return _Worker(process, ours)

    def ended(self) -> list[tuple[Task, str]]:
        """What ended meanwhile, and what went wrong with it; waits a moment."""
        wait([worker.pipe for worker in self.running], LOOK_SECONDS)
        self._listen()
        ended = []
        for worker in [one for one in self.running if one.pipe.poll()]:
            try:
                trouble = worker.pipe.recv()
                self._idle.append(worker)
            except (EOFError, OSError):
                worker.process.join()
                died = f"died (exit code {worker.process.exitcode})"
                trouble = f"the process for {self._lab.folder(self.running[worker])} {died}"
            self._listen()
            ended.append((self.running.pop(worker), trouble))
        return ended

    def _listen(self) -> None:
        by_pid = {worker.process.pid: work for worker, work in self.running.items()}
        while not self._told.empty():
            said = self._told.get()
            if isinstance(said, logging.LogRecord):
                log.handle(said)
            elif (work := by_pid.get(said[0])) is not None:
                self._overall.within(work)(*said[1:])


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C is ignored meanwhile; whoever starts processes stops them."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def end_with_parent() -> None:
    """Let this process die when the one that began it does, however that dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _work(context: Context, threads: int, pipe: Connection, told: Any) -> None:
    """What a process does: pieces of work as they come, each answered by what went wrong with it, if anything did."""
    end_with_parent()
    import torch

    torch.set_num_threads(threads)
    log.handlers, log.propagate = [QueueHandler(told)], False
    said = [0.0]

    def tell(task: str, done: int, total: int) -> None:
        if done >= total or time.monotonic() - said[0] > LOOK_SECONDS:
            said[0] = time.monotonic()
            told.put((os.getpid(), task, done, total))

    while True:
        pipe.send(_trouble(context, pipe.recv(), tell))
