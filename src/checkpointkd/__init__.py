"""Choose and use training checkpoints as knowledge-distillation teachers (Wang et al., NeurIPS 2022)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import UserError
    from .report import write_report as report
    from .trajectory import Trajectory, open_trajectory
    from .verbs import distill, evaluate, inspect, score, select, train

# Looked up on first use, so that the command line answers without importing torch.
_PUBLIC = {
    "Trajectory": "trajectory",
    "UserError": "errors",
    "distill": "verbs",
    "evaluate": "verbs",
    "inspect": "verbs",
    "open_trajectory": "trajectory",
    "report": "verbs",
    "score": "verbs",
    "select": "verbs",
    "train": "verbs",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
