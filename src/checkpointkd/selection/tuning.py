"""The search for α and τ: Optuna chooses the trials, each is a short or whole distillation in a folder of its own.

A trial is a run's folder, named by its settings, so a trial that was stopped continues. What counts is the accuracy on
the selection images; the test images are left alone. The study is a local SQLite file, or any storage of Optuna's,
which many machines can share.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import random
import re
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import storage
from ..checkpoints import RunDir, refuse_inside_run
from ..checkpoints.run_dir import read_metrics
from ..config import (
    KDConfig,
    OnProgress,
    Recipe,
    SamplerName,
    check_choice,
)
from ..data import Data
from ..errors import Diverged, UserError, first_line, pluralize
from ..losses import METHODS, takes_features
from ..records import plain, provenance
from ..training.distillation import DistillSpec, PreparedTeachers, prepare_teachers, run_distillation
from ..training.loop import Row
from ..training.run import RunSpec

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("checkpointkd")

RESULT = "tune.json"
STUDY = "study.db"
TRIALS = "trials"
PRECISION = "precision"  # of the study: what the first trial found to be faster

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
TAUS = (1.0, 2.0, 4.0, 8.0, 16.0)
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the weight that a method has by itself
RUNGS = 9  # a trial is looked at after so many equal parts, the worse stopped after 1, 3 and so on


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What is searched, how, and for how long. `space` has, by name, the values of a grid; TPE goes from the least to
    the greatest. `trials` is None for the whole grid, or 25 of TPE. Each trial is the mean over `seeds` students."""

    space: dict[str, tuple[float, ...]]
    sampler: SamplerName = "grid"
    trials: int | None = None
    prune: bool = True
    seeds: int = 1

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, SamplerName)
        space = {name: tuple(map(float, values)) for name, values in self.space.items()}
        object.__setattr__(self, "space", space)
        if not (self.trials is None or self.trials >= 1):
            raise UserError(f"a search needs at least 1 trial, not {self.trials}")
        if not 1 <= self.seeds <= 100:
            raise UserError(f"a trial takes from 1 to 100 seeds, not {self.seeds}")
        if not self.space:
            raise UserError("there is nothing to search")
        for name, values in self.space.items():
            if not len(values) > 0:
                raise UserError(f"no values of {name} are given")
            if not all(map(math.isfinite, values)):
                raise UserError(f"the values of {name} must be numbers, not {values}")
        if not (self.sampler == "grid" or any(len(v) > 1 for v in self.space.values())):
            raise UserError("TPE needs ranges to search")

    @property
    def planned(self) -> int:
        """How many trials there are to be."""
        if self.sampler == "grid":
            return len(self.grid()[: self.trials])
        return self.trials or 25

    def grid(self) -> list[dict[str, float]]:
        """All combinations of the values."""
        values = [sorted({float(value) for value in values}) for values in self.space.values()]
        return [dict(zip(self.space, combination, strict=True)) for combination in itertools.product(*values)]


@dataclass(frozen=True, kw_only=True, eq=False)
class TuneTask:
    """What all trials have in common: the run, how the teachers teach, and the data."""

    run: RunSpec
    spec: DistillSpec
    data: Data


def default_space(method: str) -> dict[str, tuple[float, ...]]:
    """What a search tries where nothing is said: α and τ for kd; the weight of another method's term, and τ if it
    softens."""
    if method == "kd":
        return {"alpha": ALPHAS, "tau": TAUS}
    weight = {"method_weight": tuple(float(f"{factor * METHODS[method].weight:.3g}") for factor in FACTORS)}
    return weight if takes_features(method) else {"tau": TAUS, **weight}


def run_tuning(
    task: TuneTask,
    *,
    settings: TuneConfig,
    out: Path,
    storage_url: str | None,
    study_name: str,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Carry out the trials that are still to be done, and say what was found; `tune.json` has it after each.

    Raises UserError when the study is another's, and when no trial could be finished.
    """
    optuna = _optuna()
    from sqlalchemy.exc import SQLAlchemyError

    refuse_inside_run(out)
    if not (storage_url is None or "://" in storage_url):
        raise UserError(f"--storage takes a URL, such as sqlite:///study.db, not {storage_url!r}")
    for values in settings.grid():  # all that could be tried, before anything is
        _with(values, task)
    described = {
        "student": task.run.model,
        "method": task.spec.method,
        "average": task.spec.kd.average,
        "tau_squared": task.spec.kd.tau_squared,
        "teachers": [{"epoch": ref.checkpoint.epoch, "sha256": ref.checkpoint.sha256} for ref in task.spec.refs],
        "distill_config": plain(task.spec.config),
        "data": task.data.record.identity,
        "recipe": plain(task.run.recipe),
        "seed": task.run.seed,
        "seeds": settings.seeds,
        "space": {name: sorted(set(values)) for name, values in settings.space.items()},
        "sampler": settings.sampler,
    }
    prepared = prepare_teachers(task.spec, task.data, device=task.run.device)
    with storage.locked(out):
        url, shared = storage_url or _local(out / STUDY), storage_url is not None
        of_this_search = {name: value for name, value in described.items() if name not in ("space", "sampler")}
        of_this_search |= {"searched": sorted(settings.space), "precision": task.run.precision}
        fingerprint = hashlib.sha256(json.dumps(of_this_search, sort_keys=True).encode()).hexdigest()
        study = _study(optuna, url, study_name, settings, task.run.recipe, fingerprint, shared=shared)
        trial_of: dict[int, dict[str, Any]] = {}

        def tell(study: optuna.Study, trial: Any = None) -> dict[str, Any]:
            result = _result(study, described, task, url=url, out=out, settings=settings)
            storage.write_json(out / RESULT, result)
            if on_progress is not None:
                on_progress(f"search {out}", _ended(result, settings), settings.planned)
            return result

        def carry_out(trial: optuna.Trial) -> float:
            values = _suggested(trial, settings)
            trial_of[trial.number] = values
            return _trial(
                trial, values, optuna, task, prepared, settings=settings, out=out / TRIALS, on_progress=on_progress
            )

        def say(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            result = tell(study)
            best = result["best"]
            log.info(
                "trial %d of %d, %s: %s%s",
                _ended(result, settings),
                settings.planned,
                _words(trial_of.get(trial.number, trial.params)),
                _outcome(trial),
                f"; the best so far {100 * best['accuracy']:.1f}% with {_words(best['values'])}" if best else "",
            )

        found = tell(study)
        stopped = sum(trial["accuracy"] is None and "after epoch" in trial["stopped"] for trial in found["trials"])
        if stopped and not settings.prune:
            log.warning(
                "%s were stopped early before and stay so: --no-prune is for another --out", pluralize(stopped, "trial")
            )
        if 0 < _ended(found, settings) < settings.planned:
            log.info("%s continues after %d of %d trials", out, _ended(found, settings), settings.planned)
        while _ended(found, settings) < settings.planned and _next(optuna, study, settings, fingerprint, shared=shared):
            try:
                study.optimize(carry_out, n_trials=1, callbacks=[say])
            except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                raise UserError(f"the search's storage {url!r} can't be used any more: {first_line(error)}") from None
            found = tell(study)
    if found["best"] is None:
        raise UserError(f"no trial in {out} could be finished; see {out / RESULT}")
    return found


def _trial(
    trial: optuna.Trial,
    values: dict[str, float],
    optuna: Any,
    task: TuneTask,
    prepared: PreparedTeachers,
    *,
    settings: TuneConfig,
    out: Path,
    on_progress: OnProgress | None,
) -> float:
    """One trial: the mean accuracy of its students on the selection images. The first may be stopped half-way."""
    spec, recipe = _with(values, task)
    chosen = trial.study.user_attrs.get(PRECISION, task.run.precision)  # one for all, or they could not be compared
    accuracies, reported = [], set()
    for number in range(settings.seeds):
        folder = out / "_".join([*(f"{name}-{_number(value)}" for name, value in values.items()), _seed(task, number)])

        def tell(what: str, done: int, total: int, folder: Path = folder) -> None:
            if on_progress is not None:
                on_progress("this trial" if what == str(folder) else what, done, total)

        def on_row(row: Row, first: bool = number == 0) -> None:
            looked_at = first and settings.prune and "val_accuracy" in row and row["epoch"] < recipe.epochs
            if looked_at and row["epoch"] not in reported:
                reported.add(row["epoch"])
                trial.report(row["val_accuracy"], row["epoch"])
                if trial.should_prune():
                    raise optuna.TrialPruned

        try:
            for row in read_metrics(folder / "metrics.jsonl"):  # what was done before it was stopped
                on_row(plain(row))
            run = run_distillation(
                replace(
                    task.run,
                    out=folder,
                    recipe=recipe,
                    save_every=max(1, recipe.epochs // RUNGS),
                    seed=task.run.seed + number,
                    precision=chosen,
                    verbose=PRECISION not in trial.study.user_attrs,
                ),
                spec,
                task.data,
                prepared=prepared,
                on_row=on_row,
                on_progress=tell,
            )
        except Diverged as error:
            trial.set_user_attr("failed", str(error))
            raise optuna.TrialPruned from None
        finally:
            if PRECISION not in trial.study.user_attrs and (used := RunDir(folder).precision()) is not None:
                trial.study.set_user_attr(PRECISION, used)
        result = run.result()
        assert result is not None
        accuracies.append(result.val.accuracy)
    trial.set_user_attr("accuracies", accuracies)
    return sum(accuracies) / len(accuracies)


def _with(values: dict[str, float], task: TuneTask) -> tuple[DistillSpec, Recipe]:
    """The settings of a trial. Raises UserError for values that cannot be."""
    kd = replace(task.spec.kd, **{name: values[name] for name in ("alpha", "tau") if name in values})
    config, recipe = task.spec.config, task.run.recipe
    if "method_weight" in values:
        config = replace(config, method_weight=values["method_weight"])
    if "learning_rate" in values:
        recipe = replace(recipe, learning_rate=values["learning_rate"])
    return replace(task.spec, kd=kd, config=config), recipe


def _suggested(trial: optuna.Trial, settings: TuneConfig) -> dict[str, float]:
    """The values that are to be tried: of TPE's, four digits, which folders' names and reports can show."""
    found = {}
    for name, values in settings.space.items():
        least, most = min(values), max(values)
        logarithmic = name != "alpha" and least > 0
        value = trial.suggest_float(name, least, most, log=logarithmic)
        if settings.sampler == "tpe":
            value = min(max(float(f"{value:.4g}"), least), most)
        found[name] = value
    return found


def _study(
    optuna: Any,
    url: str,
    name: str,
    settings: TuneConfig,
    recipe: Recipe,
    fingerprint: str,
    *,
    shared: bool,
) -> optuna.Study:
    """The study at this address, new or as it was left."""
    least = max(1, recipe.epochs // RUNGS)
    pruner = (
        optuna.pruners.HyperbandPruner(min_resource=least, max_resource=recipe.epochs, reduction_factor=3)
        if settings.prune
        else optuna.pruners.NopPruner()
    )
    try:
        alive: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if shared:  # whoever dies stops giving signs of life, and another machine takes the trial over
                again = optuna.storages.RetryHeartbeatStaleTrialCallback()
                alive = {"heartbeat_interval": 60, "heartbeat_stale_trial_callback": again}
            kept = optuna.storages.RDBStorage(url, **alive)
        study = optuna.create_study(
            storage=kept, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
        )
        there = study.user_attrs.get("fingerprint")
        if there is None:
            study.set_user_attr("fingerprint", fingerprint)
    except Exception as error:  # a driver that isn't there, a server that doesn't answer, a file that is no database
        raise UserError(
            f"the search's storage {url!r} can't be used: {first_line(error)}; --storage takes what Optuna does"
        ) from None
    if there not in (None, fingerprint):
        raise UserError(
            f"the study {name!r} in {url} is of another search (other teachers, data, settings or names of what is "
            "searched); choose another --out" + (" or --study" if shared else "")
        )
    if not shared:  # this folder is ours alone, so what is said to be running was killed
        for trial in study.get_trials(deepcopy=False):
            if trial.state == optuna.trial.TrialState.RUNNING:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _local(path: Path) -> str:
    """The URL of a file, whatever its name."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(path)).render_as_string()


def _next(optuna: Any, study: optuna.Study, settings: TuneConfig, fingerprint: str, *, shared: bool) -> bool:
    """Say what the next trial tries: of what was begun and failed, or of the grid, the next in an order that the search
    fixes; for the rest TPE. Returns whether there is anything left to try.

    A sampler's state isn't kept, so TPE's seed follows from how many trials there were: a search that was stopped goes
    on as it would have. Machines that share a study must not try the same, so there it has none.
    """
    trials = study.get_trials(deepcopy=False)
    states = optuna.trial.TrialState
    if any(trial.state == states.WAITING for trial in trials):
        return True
    taken = [_asked_for(trial) for trial in trials if trial.state != states.FAIL]
    if settings.sampler == "tpe" and len(taken) >= settings.planned:
        return False  # other machines are at the last ones
    whole = [dict(trial.params) for trial in trials if trial.params.keys() == settings.space.keys()]
    left = [values for values in whole if values not in taken]  # begun, and failed
    if settings.sampler == "grid":
        grid = settings.grid()
        random.Random(fingerprint).shuffle(grid)
        left = grid[: settings.planned]
        if shared:
            random.shuffle(left)
    else:
        seed = None if shared else int(fingerprint[:7], 16) + len(taken)
        study.sampler = optuna.samplers.TPESampler(seed=seed)
    for values in left:
        if values not in taken:
            study.enqueue_trial(values)
            return True
    return settings.sampler == "tpe"


def _asked_for(trial: Any) -> dict[str, float]:
    """The values that a trial was given, whether it has begun or not."""
    return dict(trial.params or trial.system_attrs.get("fixed_params", {}))


def _result(
    study: optuna.Study,
    described: dict[str, Any],
    task: TuneTask,
    *,
    url: str,
    out: Path,
    settings: TuneConfig,
) -> dict[str, Any]:
    """All trials that ended, and the best of those that were not stopped, as JSON's values."""
    images = len(task.data.val)
    trials = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name not in ("COMPLETE", "PRUNED"):
            continue
        values = dict(trial.params)
        if settings.sampler == "tpe":
            values = {name: float(f"{value:.4g}") for name, value in values.items()}
        whole = trial.state.name == "COMPLETE"
        accuracy = trial.value if whole else None
        trials.append(
            {
                "trial": trial.number,
                "values": values,
                "accuracy": accuracy,
                "accuracies": trial.user_attrs.get("accuracies"),
                "stopped": None if whole else trial.user_attrs.get("failed", f"after epoch {trial.last_step}"),
                "last_seen": trial.intermediate_values[trial.last_step] if trial.last_step is not None else None,
                "seconds": trial.duration.total_seconds() if trial.duration is not None else None,
            }
        )
    whole = [trial for trial in trials if trial["accuracy"] is not None]
    best = max(whole, key=lambda trial: (trial["accuracy"], -trial["trial"]), default=None)
    if best is not None:
        spread = math.sqrt(best["accuracy"] * (1 - best["accuracy"]) / images)
        alike = [t for t in whole if best["accuracy"] - t["accuracy"] <= 1.96 * spread * math.sqrt(2)]
        best = {**best, "accuracy_se": spread, "within_noise": len(alike) - 1}
    return {
        **described,
        "planned": settings.planned,
        "images": images,
        "precision": study.user_attrs.get(PRECISION),
        "storage": "study.db" if url == _local(out / STUDY) else re.sub(r"//[^@/]*@", "//", url),  # no password
        "teacher_refs": [ref.text for ref in task.spec.refs],
        "best": best,
        "trials": trials,
        "provenance": provenance(),
    }


def _ended(result: dict[str, Any], settings: TuneConfig) -> int:
    """How many of the trials that there are to be have ended; a grid may have had other values before."""
    if settings.sampler == "tpe":
        return len(result["trials"])
    return sum(values in [trial["values"] for trial in result["trials"]] for values in settings.grid())


def command(found: dict[str, Any], *, given: dict[str, Any]) -> str:
    """The command that distils with what was found to be best, and as the trials were, by the options `given`."""
    told = {"method": found["method"], "average": found["average"], **given, **found["best"]["values"]}
    return format_command(["distill", found["student"], "--teachers", *found["teacher_refs"]], told)


def format_command(words: Sequence[str], told: dict[str, Any]) -> str:
    """A command that trains or distils, with those of the options told that aren't what they are by default.

    >>> command_of(["train", "wrn_10_1"], {"data": "digits", "epochs": 5, "seed": 0, "alpha": None})
    'checkpointkd train wrn_10_1 --data digits --epochs 5 --out OUT'
    """
    usual = {"method": "kd", "average": KDConfig.average, "tau_squared": True, "teacher_schedule": "joint", "seed": 0}
    usual |= {"channel_adapter": False, "allow_weak_teacher": False, "logit_cache_gb": 20.0, "device": "auto"}
    words = ["checkpointkd", *words]
    for name, value in told.items():
        if value is None or value == usual.get(name):
            continue
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            several = value if isinstance(value, list | tuple) else [value]
            words += [option, *(_number(one) if isinstance(one, float) else str(one) for one in several)]
    return shlex.join([*words, "--out", "OUT"])


def _seed(task: TuneTask, number: int) -> str:
    return f"seed-{task.run.seed + number}"


def _number(value: float) -> str:
    """A number as its users write it, all of its digits."""
    return repr(value).removesuffix(".0")


def _words(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items())


def _outcome(trial: Any) -> str:
    if trial.state.name == "COMPLETE":
        return f"{100 * trial.value:.1f}%"
    if "failed" in trial.user_attrs:
        return "it diverged"
    return f"stopped after epoch {trial.last_step}, behind others"


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("a search needs Optuna: pip install 'checkpointkd[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
