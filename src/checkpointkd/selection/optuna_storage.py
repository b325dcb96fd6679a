"""The Optuna study of `tune`: its storage, its pruner, and the next trial. Importing this module needs Optuna."""

from __future__ import annotations

import contextlib
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from ..errors import InUse, UserError, first_line

if TYPE_CHECKING:
    from .tuning import TuneConfig, TuneTask

RUNG = "completed_rung_"  # starts the names of attributes in which Optuna's pruners keep the reports that passed
VALUES = "values"  # the user attribute of an enqueued trial with the values that it was given
JOURNAL = "journal:"  # starts the URL of a journal file
DEAD_SECONDS = 30.0  # without a lock or a new epoch, until a trial in a journal is repeated
HEARTBEAT_SECONDS = 60  # in a shared storage; without it another machine takes a trial over


class TrialTaken(Exception):  # noqa: N818 - reads well where it is raised and caught
    """Another process took the trial that this one had enqueued, so the sampler invented values."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's own log while `tune` runs."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn errors of the storage during the search into UserError."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(f"The Optuna storage {without_password(url)!r} failed: {first_line(error)}") from None


def sqlite_url(path: Path) -> str:
    """Return the SQLAlchemy URL of a SQLite file with any name."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def without_password(url: str) -> str:
    """Return a storage URL without user name and password.

    >>> without_password("mysql://me:secret@host/db")
    'mysql://host/db'
    """
    return re.sub(r"//[^@/]*@", "//", url)


def open_study(
    url: str, name: str, task: TuneTask, settings: TuneConfig, fingerprint: str, *, shared: bool
) -> optuna.Study:
    """Create the study, or load it.

    Args:
        url: The storage.
        name: The study's name.
        task: What all trials have in common; its length decides on the pruner.
        settings: Whether to prune.
        fingerprint: A hash of all settings that trials have in common.
        shared: Whether other machines may use the storage at the same time.

    Raises:
        UserError: If the storage cannot be used, or if the study has another fingerprint.
    """
    try:
        study = optuna.create_study(
            storage=_storage(url, shared=shared),
            study_name=name,
            direction="maximize",
            pruner=_pruner(task, settings),
            load_if_exists=True,
        )
        stored = study.user_attrs.get("fingerprint")
        if stored is None:
            study.set_user_attr("fingerprint", fingerprint)
    except Exception as error:  # a missing driver, an unreachable server, a file that is no database
        raise UserError(
            f"Could not open the Optuna storage {without_password(url)!r}: {first_line(error)}. "
            "--storage takes any storage URL that Optuna takes."
        ) from None
    if stored not in (None, fingerprint):
        raise UserError(
            f"The Optuna study {name!r} in {without_password(url)} has other teachers, data, settings or "
            f"hyper-parameters. Choose another --out{' or --study-name' if shared else ''}."
        )
    if not shared and settings.sampler == "grid":
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if VALUES not in trial.user_attrs:  # not a point of the grid
                study.tell(trial.number, state=TrialState.FAIL)
    return study


def _storage(url: str, *, shared: bool) -> optuna.storages.BaseStorage:
    """Return the storage. In a shared one, another machine repeats the trials of a machine that died."""
    if url.startswith(JOURNAL):
        path = Path(url.removeprefix(JOURNAL))
        path.parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    if not shared:
        return optuna.storages.RDBStorage(url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        open_storage = partial(
            optuna.storages.RDBStorage,
            url,
            heartbeat_interval=HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )
        try:
            return open_storage()
        except DatabaseError:  # perhaps another process was creating the same tables
            time.sleep(1)
            return open_storage()


def _pruner(task: TuneTask, settings: TuneConfig) -> optuna.pruners.BasePruner:
    if not settings.prune:
        return optuna.pruners.NopPruner()
    return optuna.pruners.HyperbandPruner(
        min_resource=task.rung_epochs, max_resource=task.run.recipe.epochs, reduction_factor=3
    )


def enqueue_next(study: optuna.Study, settings: TuneConfig, fingerprint: str, *, shared: bool) -> bool:
    """Prepare the next trial, and return whether there is one.

    Trials that were interrupted are continued first. A grid is tried in an order that follows from the fingerprint.
    The seed of TPE follows from the fingerprint and the number of trials, so a stopped search continues as it would
    have. Machines that share a study must not try the same values, so there the order and the seed are random.
    """
    trials = study.get_trials(deepcopy=False)
    prepared = {TrialState.WAITING} if shared else {TrialState.WAITING, TrialState.RUNNING}
    taken = [values_of(trial) for trial in trials if trial.state not in {TrialState.FAIL, *prepared}]
    if settings.sampler == "tpe":
        study.sampler = optuna.samplers.TPESampler(seed=None if shared else int(fingerprint[:7], 16) + len(taken))
    if any(trial.state in prepared for trial in trials):
        return True
    if settings.sampler == "tpe" and len(taken) >= settings.planned:
        return False  # other machines run the last ones
    if settings.sampler == "grid":
        candidates = settings.grid()
        random.Random(fingerprint).shuffle(candidates)
        candidates = candidates[: settings.planned]
        if shared:
            random.shuffle(candidates)
    else:
        candidates = [dict(trial.params) for trial in trials if trial.params.keys() == settings.space.keys()]
        if not shared:
            candidates.append(_drawn(study, settings))
    for values in candidates:
        if values not in taken:
            study.enqueue_trial(values, user_attrs={VALUES: values})
            return True
    return settings.sampler == "tpe"


def _drawn(study: optuna.Study, settings: TuneConfig) -> dict[str, float]:
    """Return the values that the sampler suggests next. They are stored together, so no process stops between them."""
    in_memory = optuna.create_study(direction="maximize", sampler=study.sampler)
    in_memory.add_trials(study.get_trials())
    return suggest(in_memory.ask(), settings)


def suggest(trial: optuna.Trial, settings: TuneConfig) -> dict[str, float]:
    """Return the values that the sampler suggests for a trial."""
    return {
        name: trial.suggest_float(name, min(values), max(values), log=name != "alpha" and min(values) > 0)
        for name, values in settings.space.items()
    }


def should_prune(study: optuna.Study, trial: optuna.Trial, *, again: bool) -> bool:
    """Return whether the pruner stops a trial after its last report.

    Args:
        study: The study.
        trial: A trial that runs.
        again: Whether a process that was stopped may have asked before. The pruner then has a mark that the trial has
            passed this report. The trial is judged without the mark.
    """
    if not again:
        return trial.should_prune()
    frozen = study.get_trials()[trial.number]
    last = frozen.intermediate_values[max(frozen.intermediate_values)]
    frozen.system_attrs = {
        name: value for name, value in frozen.system_attrs.items() if not (name.startswith(RUNG) and value == last)
    }
    return study.pruner.prune(study, frozen)


def run_trial(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float],
    callback: Callable[[optuna.Study, FrozenTrial], None],
    *,
    shared: bool,
) -> None:
    """Run the next trial. In a study that is not shared, first continue a trial that a stopped process left.

    A continued trial keeps its number: Hyperband's brackets depend on the number, and so does the pruning.
    `Study.optimize` abandons a stopped trial. Shared studies use `Study.optimize`, because it sends heartbeats.
    """
    if shared:
        # raised if this process was taken for dead and another process repeats the trial
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            study.optimize(objective, n_trials=1, callbacks=[callback], catch=(TrialTaken, InUse))
        return
    interrupted = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
    trial = optuna.Trial(study, interrupted[0]._trial_id) if interrupted else study.ask()
    try:
        ended = study.tell(trial, objective(trial))
    except optuna.TrialPruned:
        ended = study.tell(trial, state=TrialState.PRUNED)
    callback(study, ended)


def has_running_trials(study: optuna.Study) -> bool:
    """Return whether a trial is marked as running. Its process may have died."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def repeat_dead_trials(study: optuna.Study, last_sign_of_life: Callable[[FrozenTrial], float]) -> None:
    """Fail the trials of processes that died, and enqueue their values again. Their runs continue after the last epoch.

    A journal has no heartbeat, so a trial counts as dead `DEAD_SECONDS` after its last activity.

    Args:
        study: A study in a journal.
        last_sign_of_life: Returns when a trial's process was last active, in seconds since 1970.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if time.time() - last_sign_of_life(trial) < DEAD_SECONDS:
            continue
        with contextlib.suppress(
            ValueError, optuna.exceptions.UpdateFinishedTrialError
        ):  # another process did it first
            study.tell(trial.number, state=TrialState.FAIL)
            values = values_of(trial)
            study.enqueue_trial(values, user_attrs={VALUES: values})


def values_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the values of a trial, also of an enqueued one that has not started."""
    return dict(trial.params or trial.user_attrs.get(VALUES, {}))


def outcome(trial: FrozenTrial) -> str:
    """Return how a trial ended, for a log message."""
    if trial.value is not None and trial.state.name == "COMPLETE":
        return f"{100 * trial.value:.1f}%"
    if "failed" in trial.user_attrs:
        return "diverged"
    return f"pruned after epoch {trial.last_step}"
