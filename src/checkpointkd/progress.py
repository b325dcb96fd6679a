"""Progress on standard error: bars on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from .errors import duration, print_message, printable

LINE_SECONDS = (10.0, 300.0)  # between two lines without a terminal: at first, and at most
SLOWDOWN = 1.3  # growth of that interval from line to line
# Handlers to replace, by signal: Ctrl-C, and the stop signal of batch systems. Others' handlers stay.
DEFAULT_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Bars:
    """Progress bars, one per running task. Use as a context manager, and call as an `on_progress` callback."""

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
        self._bars: dict[str, TaskID] = {}
        # without a terminal, by task: what a line says, and the time and the completed steps of the first call
        self._lines: dict[str, str] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._last_line, self._line_seconds = time.monotonic(), LINE_SECONDS[0]
        self._stop_signal: int | None = None
        self._replaced_handlers: dict[int, Any] = {}

    def __enter__(self) -> Bars:
        for number, default in DEFAULT_HANDLERS.items():
            if signal.getsignal(number) is default and threading.current_thread() is threading.main_thread():
                self._replaced_handlers[number] = signal.signal(number, self._stop)
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._replaced_handlers.items():
            if signal.getsignal(number) == self._stop:
                signal.signal(number, handler)
        if self.console.is_terminal:
            self._progress.stop()

    def _stop(self, number: int, *_: object) -> None:
        """Raise KeyboardInterrupt here, and again at the next call: a library may swallow the first."""
        self._stop_signal = number
        raise KeyboardInterrupt(number)

    def __call__(self, task: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a task are done. The bar goes when all are."""
        task = printable(task)
        if self._stop_signal:
            raise KeyboardInterrupt(self._stop_signal)
        if self.console.is_terminal:
            self._update_bar(task, done, total)
        else:
            self._print_line(task, done, total)

    def _update_bar(self, task: str, done: int, total: int) -> None:
        if task not in self._bars:
            self._bars[task] = self._progress.add_task(task, total=total)
        self._progress.update(self._bars[task], completed=done, total=total)
        if done >= total:
            self._progress.remove_task(self._bars.pop(task))

    def _print_line(self, task: str, done: int, total: int) -> None:
        began, first = self._begun.setdefault(task, (time.monotonic(), done))
        seconds = time.monotonic() - began
        left = f", {duration(seconds / (done - first) * (total - done))} left" if first < done < total else ""
        self._lines[task] = f"{100 * done // total}%{left}"
        if time.monotonic() - self._last_line >= self._line_seconds:
            self._last_line = time.monotonic()
            self._line_seconds = min(SLOWDOWN * self._line_seconds, LINE_SECONDS[1])
            print_message("; ".join(f"{name}: {text}" for name, text in self._lines.items()))
        if done >= total:
            del self._lines[task], self._begun[task]

    def say(self, text: str) -> None:
        """Print a line above the bars, as plain text without markup."""
        if self.console.is_terminal:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print_message(text)
