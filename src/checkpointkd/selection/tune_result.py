"""The result of `tune`: all trials that ended, and the best trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from ..analysis.statistics import Z
from ..records.base import provenance
from ..records.tuning import BestTrialRecord, TrialRecord, TuneRecord, TuneSettings
from .command_line import format_number

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from .tuning import TuneConfig, TuneTask

PRECISION = "precision"  # the study's attribute with the precision that the first trial used


def shown_values(trial: FrozenTrial, settings: TuneConfig) -> dict[str, float]:
    """Return the values of a trial for logs and reports."""
    return {name: rounded(value) if settings.sampler == "tpe" else value for name, value in trial.params.items()}


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def tune_settings(task: TuneTask, settings: TuneConfig) -> TuneSettings:
    """Return the settings that all trials of a study share."""
    return TuneSettings(
        student=task.run.model,
        method=task.spec.method,
        average=task.spec.kd.average,
        tau_squared=task.spec.kd.tau_squared,
        teachers=tuple(ref.checkpoint.record for ref in task.spec.refs),
        distill_config=task.spec.config,
        data=task.data.record,
        recipe=task.run.recipe,
        seed=task.run.seed,
        seeds=settings.seeds,
        space={name: tuple(sorted(set(values))) for name, values in settings.space.items()},
        sampler=settings.sampler,
    )


def tune_record(study: optuna.Study, task: TuneTask, settings: TuneConfig, shown_url: str) -> TuneRecord:
    """Return the record of all trials that ended, and the best trial among the completed."""
    images = len(task.data.val)
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]
    trials = tuple(_trial_record(trial, settings) for trial in ended)
    return TuneRecord(
        **msgspec.structs.asdict(tune_settings(task, settings)),
        planned=settings.planned,
        images=images,
        precision=study.user_attrs.get(PRECISION),
        storage=shown_url,
        teacher_refs=tuple(ref.text for ref in task.spec.refs),
        best=_best(trials, images),
        trials=trials,
        provenance=provenance(),
    )


def _trial_record(trial: FrozenTrial, settings: TuneConfig) -> TrialRecord:
    complete = trial.state.name == "COMPLETE"
    return TrialRecord(
        trial=trial.number,
        values=shown_values(trial, settings),
        accuracy=trial.value if complete else None,
        accuracies=tuple(trial.user_attrs["accuracies"]) if complete else None,
        stopped=None if complete else trial.user_attrs.get("failed", f"after epoch {trial.last_step}"),
        last_seen=trial.intermediate_values[trial.last_step] if trial.last_step is not None else None,
        seconds=trial.duration.total_seconds() if trial.duration is not None else None,
    )


def _best(trials: tuple[TrialRecord, ...], images: int) -> BestTrialRecord | None:
    """Return the most accurate trial and the number of trials whose accuracy is within the margin of error.

    Of equally accurate trials, the earliest is returned.
    """
    complete = [(trial.accuracy, -trial.trial, trial) for trial in trials if trial.accuracy is not None]
    if not complete:
        return None
    accuracy, _, best = max(complete, key=lambda item: item[:2])
    standard_error = math.sqrt(accuracy * (1 - accuracy) / images)
    margin = Z * standard_error * math.sqrt(2)
    comparable = sum(accuracy - other <= margin for other, _, trial in complete if trial is not best)
    return BestTrialRecord(**msgspec.structs.asdict(best), accuracy_se=standard_error, comparable=comparable)


def ended_trials(result: TuneRecord, settings: TuneConfig) -> int:
    """Return how many planned trials have ended. Earlier trials may be of another grid, and do not count."""
    if settings.sampler == "tpe":
        return len(result.trials)
    return sum(values in [trial.values for trial in result.trials] for values in settings.grid())


def describe(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {format_number(value)}" for name, value in values.items())
