"""Choose and use training checkpoints as knowledge-distillation teachers (Wang et al., NeurIPS 2022)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import UserError
    from .portable import load
    from .studies.demo import demo
    from .studies.study import study
    from .trajectory import Trajectory, open_trajectory
    from .trajectory.writers import lightning_callback, save_checkpoint, transformers_callback
    from .verbs import correlate, distill, evaluate, export, inspect, pack, report, score, search, select, train, unpack

__all__ = [
    "Trajectory",
    "UserError",
    "correlate",
    "demo",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "lightning_callback",
    "load",
    "open_trajectory",
    "pack",
    "report",
    "save_checkpoint",
    "score",
    "search",
    "select",
    "study",
    "train",
    "transformers_callback",
    "unpack",
]

# Looked up on first use, so that the command line answers without importing torch.
_HOMES = {
    "Trajectory": ".trajectory",
    "open_trajectory": ".trajectory",
    "UserError": ".errors",
    "load": ".portable",
    "demo": ".studies.demo",
    "study": ".studies.study",
    **dict.fromkeys(("lightning_callback", "save_checkpoint", "transformers_callback"), ".trajectory.writers"),
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, ".verbs"), __name__), name)
