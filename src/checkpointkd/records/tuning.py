"""The records of `tune`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ..config import Precision, Recipe, SamplerName
from ..distill_config import DistillConfig, EnsembleAverage
from .base import Count, DataRecord, Name, Provenance, Record, Share, TeacherRecord


class TrialRecord(Record, frozen=True, kw_only=True):
    """One trial that ended. `accuracy` is the mean over its students, None if the trial was stopped.

    `stopped` says why a trial was stopped. `last_seen` is the last accuracy that the pruner saw.
    """

    trial: Count
    values: dict[str, float]
    accuracy: Share | None
    accuracies: tuple[Share, ...] | None
    stopped: str | None
    last_seen: Share | None
    seconds: float | None


class BestTrialRecord(TrialRecord, frozen=True, kw_only=True):
    """The most accurate trial. `comparable` counts the others for which the 95% CI of the difference includes 0."""

    accuracy: Share
    accuracy_se: Annotated[float, Meta(ge=0)]
    comparable: Count


class TuneSettings(Record, frozen=True, kw_only=True):
    """What `tune` was asked for: the first fields of tune.json."""

    student: Name
    method: Name
    average: EnsembleAverage
    tau_squared: bool
    teachers: Annotated[tuple[TeacherRecord, ...], Meta(min_length=1)]
    distill_config: DistillConfig
    data: DataRecord
    recipe: Recipe
    seed: int
    seeds: Annotated[int, Meta(ge=1)]
    space: Annotated[dict[str, tuple[float, ...]], Meta(min_length=1)]
    sampler: SamplerName


class TuneRecord(TuneSettings, frozen=True, kw_only=True):
    """tune.json: all trials that ended, and the best of those that were not stopped."""

    planned: Count
    images: Count
    precision: Precision | None
    storage: str
    teacher_refs: tuple[str, ...]
    best: BestTrialRecord | None
    trials: tuple[TrialRecord, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        if any(trial.values.keys() != self.space.keys() for trial in self.trials):
            raise ValueError("a trial has other hyper-parameters than the search space")
