"""The commands, one file each. The command line is built from their signatures.

A command takes names and paths, writes its result to disk and returns it. It logs to the logger `checkpointkd` and
reports progress to `on_progress(work, done, total)`. Torch is imported inside the functions only, so that the command
line can answer `--help` without it.

Each name below is the function; the module of the same name is reached by `from .train import ...`.
"""

from __future__ import annotations

from .cache import cache
from .convert import convert
from .correlate import correlate
from .distill import distill
from .evaluate import evaluate
from .export import export
from .inspect import inspect
from .report import report
from .score import score
from .select import select
from .train import train
from .tune import tune

__all__ = [
    "cache",
    "convert",
    "correlate",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "report",
    "score",
    "select",
    "train",
    "tune",
]
