"""Tasks, the units of work of an experiment.

A task's folder is named by its key, which holds all that determines the result, so that no task runs twice.
"""

from .base import Kind, Row, Task, ordered
from .distilling import DistillTask, TuneTask
from .measuring import CorrelateTask, EvaluateTask
from .pilot import AdvisedTask, PilotRunTask, PilotTask
from .training import CheckpointChoice, ScoreTask, TrainTask

__all__ = [
    "AdvisedTask",
    "CheckpointChoice",
    "CorrelateTask",
    "DistillTask",
    "EvaluateTask",
    "Kind",
    "PilotRunTask",
    "PilotTask",
    "Row",
    "ScoreTask",
    "Task",
    "TrainTask",
    "TuneTask",
    "ordered",
]
