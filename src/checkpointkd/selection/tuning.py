"""Tune α, τ and other hyper-parameters of a distillation: Optuna chooses the trials, each trial is a distillation.

Each student of a trial has its own run directory, named by its hyper-parameters, so a stopped trial continues. Trials
are compared by accuracy on the validation set. The test set is left alone. The Optuna study is a local SQLite file, or
any storage of Optuna's that several machines share.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import storage
from ..checkpoints import RunDir, Trajectory, refuse_inside_run
from ..checkpoints.run_dir import read_metrics
from ..config import OnProgress, Recipe, SamplerName, check_choice
from ..data import Data
from ..errors import Diverged, UserError, pluralize
from ..losses import get_method, takes_features
from ..records.base import plain
from ..records.tuning import TuneRecord
from ..trackers import Tracking, tracked
from ..training.distillation import DistillSpec, PreparedTeachers, prepare_teachers, run_distillation
from ..training.loop import Row
from ..training.run import RunSpec
from .command_line import format_command, format_number
from .tune_result import PRECISION, describe, ended_trials, rounded, shown_values, tune_record, tune_settings

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

log = logging.getLogger("checkpointkd")

RESULT = "tune.json"
STUDY = "study.db"
TRIALS = "trials"

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
TAUS = (1.0, 2.0, 4.0, 8.0, 16.0)
WEIGHT_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the method's default weight
TPE_TRIALS = 25  # unless --trials says otherwise
WAIT_SECONDS = 1.0  # between two checks of the trials of other processes
RUNGS = 9  # equal parts of a trial; Hyperband compares trials after 1, 3 and 9 of them


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """The hyper-parameters to tune, how, and for how long.

    `space` has the values of a grid by name; TPE searches from the smallest to the largest. `trials` is None for the
    whole grid, or for 25 trials of TPE. A trial is the mean over `seeds` students.
    """

    space: dict[str, tuple[float, ...]]
    sampler: SamplerName = "grid"
    trials: int | None = None
    prune: bool = True
    seeds: int = 1

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, SamplerName)
        space = {name: tuple(map(float, values)) for name, values in self.space.items()}
        object.__setattr__(self, "space", space)
        if self.trials is not None and self.trials < 1:
            raise UserError(f"--trials must be at least 1, not {self.trials}")
        if not 1 <= self.seeds <= 100:
            raise UserError(f"--seeds must be from 1 to 100, not {self.seeds}")
        if not space:
            raise UserError("There is nothing to tune. Give --alpha, --tau, --method-weight or --learning-rate.")
        for name, values in space.items():
            if not values:
                raise UserError(f"--{name.replace('_', '-')} needs at least one value")
            if not all(map(math.isfinite, values)):
                raise UserError(f"The values of {name} must be finite numbers, not {values}")
        if self.sampler == "tpe" and all(len(values) == 1 for values in space.values()):
            raise UserError("--sampler tpe needs a range: give at least two values of one hyper-parameter")

    @property
    def planned(self) -> int:
        """The number of trials of the whole search."""
        if self.sampler == "grid":
            return len(self.grid()[: self.trials])
        return self.trials or TPE_TRIALS

    def grid(self) -> list[dict[str, float]]:
        """Return all combinations of the values."""
        values = [sorted(set(values)) for values in self.space.values()]
        return [dict(zip(self.space, combination, strict=True)) for combination in itertools.product(*values)]


@dataclass(frozen=True, kw_only=True, eq=False)
class TuneTask:
    """What all trials have in common: the run, how the teachers teach, the data, and where trials are logged."""

    run: RunSpec
    spec: DistillSpec
    data: Data
    tracking: Tracking | None = None

    @property
    def rung_epochs(self) -> int:
        """Epochs between two points at which a trial may be pruned, and between its checkpoints."""
        return max(1, self.run.recipe.epochs // RUNGS)


def default_space(method: str) -> dict[str, tuple[float, ...]]:
    """Return the default search space: α and τ for `kd`; else the method's weight, and τ if it uses one."""
    if get_method(method).weight is None:  # 1 − α
        return {"alpha": ALPHAS, "tau": TAUS}
    weight = {"method_weight": tuple(float(f"{factor * get_method(method).weight:.3g}") for factor in WEIGHT_FACTORS)}
    return weight if takes_features(method) else {"tau": TAUS, **weight}


def run_tuning(
    task: TuneTask,
    *,
    settings: TuneConfig,
    out: Path,
    storage_url: str | None,
    study_name: str,
    on_progress: OnProgress | None,
) -> TuneRecord:
    """Run the trials that are left, and return all trials and the best. tune.json is written to `out` after each trial.

    `storage_url` names an Optuna storage that may be shared, None a file in `out`.

    Raises:
        UserError: If Optuna is not installed, if the storage fails, if the study is another search's, or if all trials
            were stopped.
    """
    try:
        from . import optuna_storage
    except ImportError:
        raise UserError("`tune` needs Optuna: pip install 'checkpointkd[tune]'") from None
    refuse_inside_run(out)
    if storage_url is not None and "://" not in storage_url and not storage_url.startswith(optuna_storage.JOURNAL):
        raise UserError(f"--storage takes a URL, such as sqlite:///study.db, or journal:FILE, not {storage_url!r}.")
    for values in settings.grid():
        _with_values(task, values)  # raises UserError for impossible values, before any trial starts
    prepared = prepare_teachers(task.spec, task.data, device=task.run.device)
    url, shared = storage_url or optuna_storage.sqlite_url(out / STUDY), storage_url is not None
    fingerprint = _fingerprint(task, settings)
    with contextlib.nullcontext() if shared else storage.locked(out), optuna_storage.quiet():
        study = optuna_storage.open_study(url, study_name, task, settings, fingerprint, shared=shared)
        shown_url = optuna_storage.without_password(url) if shared else STUDY
        runner = _Runner(task, settings, out, study, shown_url, prepared, on_progress)
        result = runner.write_result()
        runner.log_start(result)
        while ended_trials(result, settings) < settings.planned:
            with optuna_storage.storage_errors(url):
                if url.startswith(optuna_storage.JOURNAL):
                    optuna_storage.repeat_dead_trials(study, runner.last_sign_of_life)
                if optuna_storage.enqueue_next(study, settings, fingerprint, shared=shared):
                    optuna_storage.run_trial(study, runner.objective, runner.log_trial, shared=shared)
                elif not url.startswith(optuna_storage.JOURNAL) or not optuna_storage.has_running_trials(study):
                    break
                else:  # other processes run the last trials; one of them may die
                    time.sleep(WAIT_SECONDS)
            result = runner.write_result()
    if result.best is None:
        raise UserError(f"All trials in {out} were stopped. {out / RESULT} has the reasons.")
    return result


@dataclass(frozen=True, eq=False)
class _Runner:
    """Runs the trials of one search and writes its result."""

    task: TuneTask
    settings: TuneConfig
    out: Path
    study: optuna.Study
    shown_url: str
    prepared: PreparedTeachers
    on_progress: OnProgress | None

    def objective(self, trial: optuna.Trial) -> float:
        """Return the mean validation accuracy of a trial's students. The first student may be pruned."""
        from .optuna_storage import TrialTaken

        values = _suggest(trial, self.settings)
        if self.settings.sampler == "grid" and values not in self.settings.grid():
            raise TrialTaken
        # All trials have the precision of the first, or they could not be compared.
        precision = self.study.user_attrs.get(PRECISION, self.task.run.precision)
        spec, recipe = _with_values(self.task, values)
        accuracies = []
        for number in range(self.settings.seeds):
            seed = self.task.run.seed + number
            run = replace(
                self.task.run,
                out=self.run_path(values, seed),
                recipe=recipe,
                save_every=self.task.rung_epochs,
                seed=seed,
                precision=precision,
                verbose=PRECISION not in self.study.user_attrs,
            )
            student = self.distill(trial, run, spec, prune=self.settings.prune and number == 0)
            result = student.result()
            assert result is not None  # the run is complete
            accuracies.append(result.val.accuracy)
        trial.set_user_attr("accuracies", accuracies)
        return sum(accuracies) / len(accuracies)

    def run_path(self, values: Mapping[str, float], seed: int) -> Path:
        """Return the run directory of one student of a trial."""
        names = [*(f"{name}-{format_number(value)}" for name, value in values.items()), f"seed-{seed}"]
        return self.out / TRIALS / "_".join(names)

    def last_sign_of_life(self, trial: FrozenTrial) -> float:
        """Return when a trial's process last wrote an epoch, in seconds since 1970. With a locked run, this is now."""
        from .optuna_storage import values_of

        values = {name: rounded(v) if self.settings.sampler == "tpe" else v for name, v in values_of(trial).items()}
        signs = [trial.datetime_start.timestamp() if trial.datetime_start else 0.0]
        for number in range(self.settings.seeds):
            run = self.run_path(values, self.task.run.seed + number)
            if storage.is_locked(run):
                return time.time()
            with contextlib.suppress(OSError):
                signs.append((run / "metrics.jsonl").stat().st_mtime)
        return max(signs)

    def distill(self, trial: optuna.Trial, run: RunSpec, spec: DistillSpec, *, prune: bool) -> Trajectory:
        """Train one student of a trial, or continue it. Raises `optuna.TrialPruned` if it is pruned or diverges."""
        import optuna

        from .optuna_storage import should_prune

        before = self.study.get_trials()[trial.number].intermediate_values  # of an interrupted trial

        def on_row(row: Row) -> None:
            if not prune or "val_accuracy" not in row or row["epoch"] >= run.recipe.epochs:
                return
            if row["epoch"] not in before:
                trial.report(row["val_accuracy"], row["epoch"])
            elif row["epoch"] != max(before, default=None):  # the last report may not have been judged
                return
            if should_prune(self.study, trial, again=row["epoch"] in before):
                raise optuna.TrialPruned

        def on_progress(name: str, done: int, total: int) -> None:
            if self.on_progress is not None:
                self.on_progress("this trial" if name == str(run.out) else name, done, total)

        try:
            for row in read_metrics(run.out / "metrics.jsonl"):  # the epochs before the trial was stopped
                on_row(plain(row))
            with tracked(run.out, self.task.tracking, stops=(optuna.TrialPruned,)) as log_row:

                def on_new_row(row: Row) -> None:
                    log_row(row)
                    on_row(row)

                return run_distillation(
                    run, spec, self.task.data, prepared=self.prepared, on_row=on_new_row, on_progress=on_progress
                )
        except Diverged as error:
            trial.set_user_attr("failed", str(error))
            raise optuna.TrialPruned from None
        finally:
            if PRECISION not in self.study.user_attrs and (precision := RunDir(run.out).precision()) is not None:
                self.study.set_user_attr(PRECISION, precision)

    def write_result(self) -> TuneRecord:
        """Write tune.json and return its content."""
        result = tune_record(self.study, self.task, self.settings, self.shown_url)
        self.out.mkdir(parents=True, exist_ok=True)
        storage.write_json(self.out / RESULT, result)
        if self.on_progress is not None:
            self.on_progress(f"tune {self.out}", ended_trials(result, self.settings), self.settings.planned)
        return result

    def log_start(self, result: TuneRecord) -> None:
        """Log what a continued search has already done."""
        pruned = [trial for trial in result.trials if trial.stopped is not None and "after epoch" in trial.stopped]
        if pruned and not self.settings.prune:
            log.warning(
                "%s of this search were pruned earlier and stay pruned. To train them, use --no-prune with "
                "another --out.",
                pluralize(len(pruned), "trial"),
            )
        ended = ended_trials(result, self.settings)
        if 0 < ended < self.settings.planned:
            log.info("%s continues after %d of %d trials", self.out, ended, self.settings.planned)

    def log_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Log the outcome of a trial and the best trial so far."""
        from . import optuna_storage

        result = self.write_result()
        best = result.best
        log.info(
            "Trial %d of %d, %s: %s%s",
            ended_trials(result, self.settings),
            self.settings.planned,
            describe(shown_values(trial, self.settings)),
            optuna_storage.outcome(trial),
            f"; best so far: {100 * best.accuracy:.1f}% with {describe(best.values)}" if best else "",
        )


def distill_command(result: TuneRecord, *, options: Mapping[str, Any]) -> str:
    """Return the command that distills with the best hyper-parameters, and with the user's other options."""
    best = {} if result.best is None else result.best.values
    return format_command(
        ["distill", result.student, "--teachers", *result.teacher_refs],
        {"method": result.method, "average": result.average, **options, **best},
    )


def _fingerprint(task: TuneTask, settings: TuneConfig) -> str:
    """Return a hash of what all trials of a study have in common. Values and sampler may change; names may not.

    The order of a grid and the seed of TPE follow from it, so a change of its content changes the trials.
    """
    fields = plain(tune_settings(task, settings)) | {"data": task.data.record.identity}
    common = {name: value for name, value in fields.items() if name not in ("space", "sampler")}
    common |= {"searched": sorted(settings.space), "precision": task.run.precision}
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()


def _with_values(task: TuneTask, values: Mapping[str, float]) -> tuple[DistillSpec, Recipe]:
    """Return the settings of a trial. Raises UserError for impossible values."""
    kd = replace(task.spec.kd, **{name: values[name] for name in ("alpha", "tau") if name in values})
    config, recipe = task.spec.config, task.run.recipe
    if "method_weight" in values:
        config = replace(config, method_weight=values["method_weight"])
    if "learning_rate" in values:
        recipe = replace(recipe, learning_rate=values["learning_rate"])
    return replace(task.spec, kd=kd, config=config), recipe


def _suggest(trial: optuna.Trial, settings: TuneConfig) -> dict[str, float]:
    """Return the values that the sampler suggests for a trial; those of TPE have four digits, to name directories."""
    from .optuna_storage import suggest

    suggested = suggest(trial, settings)
    if settings.sampler == "grid":
        return suggested
    ranges = {name: (min(values), max(values)) for name, values in settings.space.items()}
    return {name: min(max(rounded(value), ranges[name][0]), ranges[name][1]) for name, value in suggested.items()}
