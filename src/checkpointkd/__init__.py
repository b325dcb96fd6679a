"""Choose and use training checkpoints as knowledge-distillation teachers (Wang et al., NeurIPS 2022)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoints import Trajectory, open_trajectory
    from .checkpoints.writers import lightning_callback, save_checkpoint, transformers_callback
    from .commands import (
        cache,
        convert,
        correlate,
        distill,
        evaluate,
        export,
        inspect,
        report,
        score,
        select,
        train,
        tune,
    )
    from .errors import UserError
    from .experiments.demo import demo
    from .experiments.reproduce import reproduce
    from .exporting import load
    from .information.in_memory import plane
    from .reports.frame import results
    from .teachers.cached_logits import cached_logits
    from .teachers.teacher_module import teacher
    from .user_code import named
    from .user_data import Data

__all__ = [
    "Data",
    "Trajectory",
    "UserError",
    "cache",
    "cached_logits",
    "convert",
    "correlate",
    "demo",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "lightning_callback",
    "load",
    "named",
    "open_trajectory",
    "plane",
    "report",
    "reproduce",
    "results",
    "save_checkpoint",
    "score",
    "select",
    "teacher",
    "train",
    "transformers_callback",
    "tune",
]

# Imported on first use, so that the command line answers `--help` without importing torch.
_MODULES = {
    "Data": ".user_data",
    "Trajectory": ".checkpoints",
    "named": ".user_code",
    "open_trajectory": ".checkpoints",
    "UserError": ".errors",
    "load": ".exporting",
    "cached_logits": ".teachers.cached_logits",
    "plane": ".information.in_memory",
    "results": ".reports.frame",
    "teacher": ".teachers.teacher_module",
    "demo": ".experiments.demo",
    "reproduce": ".experiments.reproduce",
    **dict.fromkeys(("lightning_callback", "save_checkpoint", "transformers_callback"), ".checkpoints.writers"),
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, ".commands"), __name__), name)
