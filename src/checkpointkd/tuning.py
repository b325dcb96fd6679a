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
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files
from .distillation import Lesson, distil
from .errors import UserError, require
from .loop import Row
from .losses import METHODS, defaults, takes_features
from .settings import KDSettings, PrecisionChoice, Progress, Recipe, Sampler, one_of
from .trajectory import RunFolder, provenance

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("checkpointkd")

RESULT = "search.json"
STUDY = "study.db"
TRIALS = "trials"
PRECISION = "precision"  # of the study: what the first trial found to be faster

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
TAUS = (1.0, 2.0, 4.0, 8.0, 16.0)
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the weight that a method has by itself
RUNGS = 9  # a trial is looked at after so many equal parts, the worse stopped after 1, 3 and so on


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What is searched, how, and for how long. `space` has, by name, the values of a grid; TPE goes from the least to
    the greatest. `trials` is None for the whole grid, or 25 of TPE. Each trial is the mean over `seeds` students."""

    space: dict[str, tuple[float, ...]]
    sampler: Sampler = "grid"
    trials: int | None = None
    prune: bool = True
    seeds: int = 1

    def __post_init__(self) -> None:
        one_of("sampler", self.sampler, Sampler)
        require(self.trials is None or self.trials >= 1, f"a search needs at least 1 trial, not {self.trials}")
        require(1 <= self.seeds <= 100, f"a trial takes from 1 to 100 seeds, not {self.seeds}")
        require(bool(self.space), "there is nothing to search")
        for name, values in self.space.items():
            require(len(values) > 0, f"no values of {name} are given")
            require(all(map(math.isfinite, values)), f"the values of {name} must be numbers, not {values}")
        require(self.sampler == "grid" or any(len(v) > 1 for v in self.space.values()), "TPE needs ranges to search")

    @property
    def planned(self) -> int:
        """How many trials there are to be."""
        grid = math.prod(len(set(values)) for values in self.space.values())
        if self.sampler == "grid":
            return grid if self.trials is None else min(grid, self.trials)
        return self.trials or 25


def usual_space(method: str) -> dict[str, tuple[float, ...]]:
    """What a search tries where nothing is said: α and τ for kd; the weight of another method's term, and τ if it
    softens."""
    if method == "kd":
        return {"alpha": ALPHAS, "tau": TAUS}
    weight = {"weight": tuple(float(f"{factor * METHODS[method].weight:.3g}") for factor in FACTORS)}
    return weight if takes_features(method) else {"tau": TAUS, **weight}


def search(
    student: str,
    lesson: Lesson,
    *,
    out: Path,
    method: str,
    settings: SearchSettings,
    average: Any,
    recipe: Recipe,
    seed: int,
    precision: PrecisionChoice,
    table_limit: float,
    storage: str | None,
    study_name: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """Carry out the trials that are still to be done, and say what was found; `search.json` has it after each.

    Raises UserError when the study is another's, and when no trial could be finished.
    """
    optuna = _optuna()
    for values in itertools.product(*settings.space.values()):  # all that could be tried, before anything is
        _with(dict(zip(settings.space, values, strict=True)), lesson, method, average, recipe)
    described = {
        "student": student,
        "method": method,
        "average": average,
        "teachers": lesson.teacher.manifest(),
        "teaching": asdict(lesson.teaching),
        "data": {name: value for name, value in lesson.data.identity.items() if name != "source"},
        "recipe": asdict(recipe),
        "seed": seed,
        "seeds": settings.seeds,
        "space": {name: sorted(set(values)) for name, values in settings.space.items()},
        "sampler": settings.sampler,
    }
    with files.locked(out):
        url = storage or f"sqlite:///{out / STUDY}"
        study = _study(optuna, url, study_name, settings, recipe, described, shared=storage is not None, out=out)
        trial_of: dict[int, dict[str, Any]] = {}

        def tell(study: optuna.Study, trial: Any = None) -> dict[str, Any]:
            result = _result(study, described, lesson, url=url, out=out, settings=settings)
            files.write_json(out / RESULT, result)
            if progress is not None:
                progress(f"search {out}", len(result["trials"]), settings.planned)
            return result

        def carry_out(trial: optuna.Trial) -> float:
            values = _suggested(trial, settings)
            trial_of[trial.number] = values
            return _trial(
                trial, values, optuna, student, lesson, out=out / TRIALS, method=method, average=average,
                settings=settings, recipe=recipe, seed=seed, precision=precision, table_limit=table_limit,
                progress=progress,
            )  # fmt: skip

        def say(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            result = tell(study)
            best = result["best"]
            log.info(
                "trial %d of %d, %s: %s%s", len(result["trials"]), settings.planned,
                _words(trial_of.get(trial.number, trial.params)), _outcome(trial),
                f"; the best so far {100 * best['accuracy']:.1f} % with {_words(best['values'])}" if best else "",
            )  # fmt: skip

        found, ended = tell(study), -1
        if 0 < len(found["trials"]) < settings.planned:
            log.info("%s continues after %d of %d trials", out, len(found["trials"]), settings.planned)
        while ended < len(found["trials"]) < settings.planned:  # the grid's sampler may stop before the last
            ended = len(found["trials"])
            study.optimize(carry_out, n_trials=settings.planned - ended, callbacks=[say])
            found = tell(study)
    require(found["best"] is not None, f"no trial in {out} could be finished; see {out / RESULT}")
    return found


def _trial(
    trial: optuna.Trial,
    values: dict[str, float],
    optuna: Any,
    student: str,
    lesson: Lesson,
    *,
    out: Path,
    method: str,
    average: Any,
    settings: SearchSettings,
    recipe: Recipe,
    seed: int,
    precision: PrecisionChoice,
    table_limit: float,
    progress: Progress | None,
) -> float:
    """One trial: the mean accuracy of its students on the selection images. The first may be stopped half-way."""
    kd, taught, recipe = _with(values, lesson, method, average, recipe)
    chosen = trial.study.user_attrs.get(PRECISION, precision)  # one for all, or they could not be compared
    accuracies = []
    for number in range(settings.seeds):
        folder = out / f"{_words(values).replace(', ', '_').replace(' ', '-')}_seed-{seed + number}"

        def tell(task: str, done: int, total: int, folder: Path = folder) -> None:
            if progress is not None:
                progress("this trial" if task == str(folder) else task, done, total)

        def on_row(row: Row, first: bool = number == 0) -> None:
            if first and settings.prune and "selection_accuracy" in row and row["epoch"] < recipe.epochs:
                trial.report(row["selection_accuracy"], row["epoch"])
                if trial.should_prune():
                    raise optuna.TrialPruned

        try:
            for row in files.read_rows(folder / "metrics.jsonl"):  # what was done before it was stopped
                on_row(row)
            run = distil(
                student,
                taught,
                out=folder,
                method=method,
                settings=kd,
                recipe=recipe,
                save_every=max(1, recipe.epochs // RUNGS),
                seed=seed + number,
                precision=chosen,
                compile=False,
                table_limit=table_limit,
                touch_test=False,
                announce=PRECISION not in trial.study.user_attrs,
                on_row=on_row,
                progress=tell,
            )
        except UserError as error:
            if "stopped being a number" not in str(error):
                raise
            trial.set_user_attr("failed", str(error))
            raise optuna.TrialPruned from None
        finally:
            if PRECISION not in trial.study.user_attrs and (used := RunFolder(folder).precision()) is not None:
                trial.study.set_user_attr(PRECISION, used)
        result = run.result()
        assert result is not None
        accuracies.append(result["selection"]["accuracy"])
    trial.set_user_attr("accuracies", accuracies)
    return sum(accuracies) / len(accuracies)


def _with(
    values: dict[str, float], lesson: Lesson, method: str, average: Any, recipe: Recipe
) -> tuple[KDSettings, Lesson, Recipe]:
    """The settings of a trial; raises UserError where there can be none such."""
    alpha, tau = defaults(method)
    kd = KDSettings(alpha=values.get("alpha", alpha), tau=values.get("tau", tau), average=average)
    teaching = lesson.teaching
    if "weight" in values:
        teaching = replace(teaching, weight=values["weight"])
    if "learning_rate" in values:
        recipe = replace(recipe, learning_rate=values["learning_rate"])
    return kd, replace(lesson, teaching=teaching), recipe


def _suggested(trial: optuna.Trial, settings: SearchSettings) -> dict[str, float]:
    """The values that are to be tried: of TPE's, four digits, which folders' names and reports can show."""
    found = {}
    for name, values in settings.space.items():
        least, most = min(values), max(values)
        logarithmic = name != "alpha" and least > 0
        value = trial.suggest_float(name, least, most, log=logarithmic) if most > least else least
        if settings.sampler == "tpe":
            value = min(max(float(f"{value:.4g}"), least), most)
        found[name] = value
    return found


def _study(
    optuna: Any,
    url: str,
    name: str,
    settings: SearchSettings,
    recipe: Recipe,
    described: dict[str, Any],
    *,
    shared: bool,
    out: Path,
) -> optuna.Study:
    """The study at this address, new or as it was left."""
    fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    sampler_seed = int(fingerprint[:8], 16)  # the same search tries the same, whenever it is begun
    if settings.sampler == "grid":
        grid = {name: sorted(set(values)) for name, values in settings.space.items() if len(set(values)) > 1}
        sampler = optuna.samplers.GridSampler(grid or {"only": [0]}, seed=sampler_seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=sampler_seed)
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
            storage=kept, study_name=name, direction="maximize", sampler=sampler, pruner=pruner, load_if_exists=True
        )
        there = study.user_attrs.get("fingerprint")
        if there is None:
            study.set_user_attr("fingerprint", fingerprint)
    except Exception as error:  # a driver that isn't there, a server that doesn't answer, a file that is no database
        raise UserError(
            f"the search's storage {url!r} can't be used: {_first_line(error)}; --storage takes what Optuna does"
        ) from None
    require(
        there in (None, fingerprint),
        f"the study {name!r} in {url} is of another search (other teachers, data, settings or space); choose another "
        "--out" + (" or --study" if shared else ""),
    )
    if not shared:  # this folder is ours alone, so what is said to be running was killed
        for trial in study.get_trials(deepcopy=False):
            if trial.state == optuna.trial.TrialState.RUNNING:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        failed = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.FAIL]
        others = [t.params or t.system_attrs.get("fixed_params") for t in study.trials if t not in failed]
        for trial in failed:  # a sampler takes what failed for tried
            if trial.params and trial.params not in others:
                study.enqueue_trial(trial.params)
                others.append(trial.params)
    return study


def _result(
    study: optuna.Study,
    described: dict[str, Any],
    lesson: Lesson,
    *,
    url: str,
    out: Path,
    settings: SearchSettings,
) -> dict[str, Any]:
    """All trials that ended, and the best of those that were not stopped, as JSON's values."""
    images = len(lesson.data.selection)
    trials = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name not in ("COMPLETE", "PRUNED"):
            continue
        values = {name: trial.params.get(name, min(choices)) for name, choices in settings.space.items()}
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
        "storage": url.replace(str(out), "."),
        "teacher_addresses": [member.text for member in lesson.teacher.members],
        "best": best,
        "trials": trials,
        "provenance": provenance(),
    }


def command(found: dict[str, Any]) -> str:
    """The command that distils with what was found to be best."""
    options = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in found["best"]["values"].items())
    method = "" if found["method"] == "kd" else f" --method {found['method']}"
    teachers = " ".join(found["teacher_addresses"])
    return f"checkpointkd distill {found['student']} --teachers {teachers}{method} {options} --out OUT"


def _words(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _outcome(trial: Any) -> str:
    if trial.state.name == "COMPLETE":
        return f"{100 * trial.value:.1f} %"
    if "failed" in trial.user_attrs:
        return "its loss stopped being a number"
    return f"stopped after epoch {trial.last_step}, behind others"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("a search needs Optuna: pip install 'checkpointkd[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
