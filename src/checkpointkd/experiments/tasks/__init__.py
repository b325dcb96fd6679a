"""Tasks, the units of work of an experiment.

A task's folder is named by its key, which holds all that determines the result, so that no task runs twice.
"""

from .base import Kind, Row, Task, ordered
from .distilling import DistillTask, TuneTask
from .measuring import CorrelateTask, EvaluateTask
from .pilot import PilotRunTask
from .training import CheckpointChoice, ScoreTask, TrainTask

__all__ = [
    "CheckpointChoice",
    "CorrelateTask",
    "DistillTask",
    "EvaluateTask",
    "Kind",
    "PilotRunTask",
    "Row",
    "ScoreTask",
    "Task",
    "TrainTask",
    "TuneTask",
    "ordered",
]
