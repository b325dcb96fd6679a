"""trackers.json: what of a run was logged to TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

from .base import Count, Record


class Logged(Record, frozen=True, omit_defaults=True):
    """What one tracker has of a run: its own name of the run, the last epoch, and whether it has the result."""

    id: str | None = None
    epoch: Count = 0
    complete: bool = False
