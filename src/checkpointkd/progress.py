"""Where a verb stands, on standard error: bars with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

QUIET_SECONDS = (10.0, 300.0)  # between two lines where there is no terminal: at first, and later at most
SLOWER = 1.3  # from line to line
STOPS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}  # Ctrl-C; a batch system


class Bars:
    """A bar for each task; a task's bar goes when it is done. Use as a context manager; call to tell of progress."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._progress = Progress(
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn(
                "left: {task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            ),
            console=self.console,
            transient=True,
            speed_estimate_period=60,
        )
        self._tasks: dict[str, TaskID] = {}
        self._shares: dict[str, int] = {}
        self._said, self._quiet = time.monotonic(), QUIET_SECONDS[0]
        self._stopped: int | None = None  # the signal by which
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Bars:
        for number, usual in STOPS.items():
            if signal.getsignal(number) is usual and threading.current_thread() is threading.main_thread():
                self._handlers[number] = signal.signal(number, self._stop)
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._stop:
                signal.signal(number, handler)
        if self.console.is_terminal:
            self._progress.stop()

    def _stop(self, number: int, *_: object) -> None:
        """Raised here, and again at the next step, should a library's callback have swallowed it."""
        self._stopped = number
        raise KeyboardInterrupt(number)

    def __call__(self, task: str, done: int, total: int) -> None:
        if self._stopped:
            raise KeyboardInterrupt(self._stopped)
        if not self.console.is_terminal:
            self._shares[task] = 100 * done // total
            if time.monotonic() - self._said >= self._quiet:
                self._said, self._quiet = time.monotonic(), min(SLOWER * self._quiet, QUIET_SECONDS[1])
                print(
                    ", ".join(f"{name}: {share}%" for name, share in self._shares.items()), file=sys.stderr, flush=True
                )
            if done >= total:
                del self._shares[task]
            return
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total)
        self._progress.update(self._tasks[task], completed=done, total=total)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(task))

    def say(self, text: str) -> None:
        """A line of text above the bars, as it is: what is in it is no markup."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
