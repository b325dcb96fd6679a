"""The verbs: train, inspect, score, select, distill, evaluate, report. The command line is made from their signatures.

Each takes names and paths, leaves its result in a run's folder, and returns it. What is worth saying goes to the logger
`checkpointkd`; how far a verb is, to the callable `progress(task, done, total)`. Torch is imported inside the functions
only, because the command line imports this module to answer `--help`.
"""

from __future__ import annotations

from .choosing import inspect, score, select
from .measuring import correlate, evaluate, export, report
from .teaching import distill, train, tune

__all__ = [
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
