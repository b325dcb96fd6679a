"""Log runs to TensorBoard, Weights & Biases and MLflow, for `--log`.

A tracker reads what a run leaves: run.json, metrics.jsonl and result.json. The run does not know its trackers, so that
they cannot change it. If one fails, a warning says so, and the training goes on. trackers.json in the run directory
says what is logged, so that a run that continues logs no epoch twice. No torch here: the command line imports this
module.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock

from .errors import UserError, first_line, unknown_name
from .records.base import plain, read, read_lines
from .records.runs import MetricsRow, RunResult, read_run
from .records.tracking import Logged

log = logging.getLogger("checkpointkd")

Status = Literal["finished", "stopped", "failed"]
STATE = "trackers.json"
PROJECT = "checkpointkd"  # of runs that belong to no experiment
LEFT_OUT = {"format", "classes", "network_config"}  # fields of run.json that are no settings
LONGEST = 500  # characters of a setting


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where runs are logged.

    Attributes:
        names: The trackers.
        folder: The folder of an experiment, which holds the files of MLflow and Weights & Biases, and whose name groups
            the runs. None: a run by itself, with its files in the run directory.
    """

    names: tuple[str, ...]
    folder: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(dict.fromkeys(self.names)))
        for name in self.names:
            if name not in TRACKERS:
                raise unknown_name("tracker", name, TRACKERS)
            with _offline(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    importlib.import_module(TRACKERS[name].package)
                except ImportError as error:
                    raise UserError(
                        f"--log {name} needs a package that cannot be imported ({first_line(error)}). Run: pip install "
                        f"'checkpointkd[{name}]'."
                    ) from None

    @property
    def group(self) -> str | None:
        """The name of the experiment, if there is one."""
        return None if self.folder is None else self.folder.resolve().name


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run as a tracker sees it: its directory, the folder for files, the group, the settings, what is logged."""

    path: Path
    folder: Path
    group: str | None
    settings: dict[str, str]
    logged: Logged


class Tracker(Protocol):
    """One run in one tracker. Every method may raise; the caller then stops logging this run to it."""

    package: str
    id: str | None  # by which the tracker finds the run again
    epoch: int  # the last epoch that is logged

    def __init__(self, run: TrackedRun) -> None: ...

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Log the row of an epoch."""
        ...

    def result(self, values: Mapping[str, float], epoch: int) -> None:
        """Log the final measurement."""
        ...

    def close(self, status: Status) -> None:
        """End the logging of this process."""
        ...


class TensorBoard:
    """Event files in the run directory. TensorBoard discards what a killed process wrote of a later epoch."""

    package = "tensorboard"
    id: str | None = None

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.epoch = run.logged.epoch if any(run.path.glob("events.out.tfevents.*")) else 0
        self._writer = SummaryWriter(str(run.path), purge_step=self.epoch + 1)
        if self.epoch == 0:
            rows = [f"| {name} | {value} |" for name, value in run.settings.items()]
            self._writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    result = log

    def close(self, status: Status) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases. Offline, unless the environment sets WANDB_MODE; `wandb sync` uploads the files."""

    package = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        wandb: Any = importlib.import_module("wandb")
        self.epoch = run.logged.epoch
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=run.folder,
            mode=os.environ.get("WANDB_MODE", "offline"),
            id=run.logged.id,
            resume=None if run.logged.id is None else "allow",
            group=run.group,
            name=run.path.resolve().name,
            config=run.settings,
            reinit="create_new",  # a run of the user's own stays as it is
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        self.id = self._run.id

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(values), step=epoch)

    def result(self, values: Mapping[str, float], epoch: int) -> None:
        self._run.summary.update(dict(values))

    def close(self, status: Status) -> None:
        self._run.finish(exit_code=int(status == "failed"))


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI if it is set. Otherwise a file, mlflow.db, which several processes may share."""

    package = "mlflow"
    STATUS: Mapping[Status, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

    def __init__(self, run: TrackedRun) -> None:
        self._mlflow: Any = importlib.import_module("mlflow")
        folder, server = run.folder.resolve(), os.environ.get("MLFLOW_TRACKING_URI")
        self._lock: Any = contextlib.nullcontext() if server else FileLock(folder / ".lock-mlflow")
        with self._lock:
            self._client = self._mlflow.MlflowClient(server or f"sqlite:///{folder / 'mlflow.db'}")
            self.epoch = 0
            self.id = self._found(run.logged.id)
            if self.id is not None:
                self._client.update_run(self.id, status="RUNNING")
                history = self._client.get_metric_history(self.id, "loss")
                self.epoch = max((metric.step for metric in history), default=0)
                return
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.group or PROJECT
            experiment = self._client.get_experiment_by_name(name)
            artifacts = None if server else (folder / "mlartifacts").as_uri()
            number = experiment.experiment_id if experiment else self._client.create_experiment(name, artifacts)
            self.id = self._client.create_run(number, run_name=run.path.resolve().name).info.run_id
            self._client.log_batch(
                self.id, params=[self._mlflow.entities.Param(*item) for item in run.settings.items()]
            )

    def _found(self, run_id: str | None) -> str | None:
        """Return the run that an earlier process logged to, or None if this server does not have it."""
        try:
            return None if run_id is None else self._client.get_run(run_id).info.run_id
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        now, metric = round(1000 * time.time()), self._mlflow.entities.Metric
        metrics = [metric(name, value, now, epoch) for name, value in values.items()]
        with self._lock:
            self._client.log_batch(self.id, metrics)  # all of an epoch or nothing

    result = log

    def close(self, status: Status) -> None:
        with self._lock:
            self._client.set_terminated(self.id, self.STATUS[status])


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


@contextlib.contextmanager
def tracked(
    run: Path, tracking: Tracking | None, *, stops: tuple[type[BaseException], ...] = ()
) -> Iterator[Callable[[Any], None]]:
    """Yield a function that logs each new epoch of a run, to call once the epoch is saved, as `run_training` does.

    At the end, the result is logged, and all epochs that are not: a complete run can be logged later. Only the main
    process of several logs.

    Args:
        run: The run directory.
        tracking: Where to log. None: nowhere.
        stops: Exceptions that stop a run before its end without a failure, besides KeyboardInterrupt.
    """
    from .ranks import is_secondary

    if tracking is None or is_secondary():
        yield lambda row: None
        return
    run_log, status = _RunLog(run, tracking), "failed"
    try:
        yield lambda row: run_log.update()
        run_log.update()
        status = "finished"
    except (KeyboardInterrupt, *stops):
        status = "stopped"
        raise
    finally:
        run_log.close(status)


class _RunLog:
    """One run in its trackers. A tracker that fails is left out from then on."""

    def __init__(self, path: Path, tracking: Tracking) -> None:
        self._path, self._tracking = path, tracking
        self._trackers: dict[str, Tracker] = {}
        self._failed: set[str] = set()

    def update(self) -> None:
        """Log what is new in the run directory."""
        for name in self._tracking.names:
            with self._guarded(name):
                self._log_new(name)

    def close(self, status: Status) -> None:
        """Close the trackers that were opened."""
        for name, tracker in self._trackers.items():
            with self._guarded(name):
                tracker.close(status)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Turn the first error of a tracker into a warning; later calls are of no use, and their errors no news."""
        try:
            with _offline(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of these libraries
                yield
        except Exception as error:  # a library, its server and its disk may raise anything
            if name not in self._failed:
                log.warning(
                    "%s cannot log %s: %s. The run goes on, and its own files are complete.",
                    name,
                    self._path,
                    first_line(error),
                )
            self._failed.add(name)

    def _log_new(self, name: str) -> None:
        if name in self._failed:
            return
        logged = self._state().get(name, Logged())
        rows = read_lines(self._path / "metrics.jsonl", MetricsRow, remedy="")
        finished = (self._path / "result.json").exists() and not logged.complete
        if not finished and not any(row.epoch > logged.epoch for row in rows):
            return
        tracker = self._trackers.get(name) or self._start(name, logged)
        for row in rows:
            if row.epoch > tracker.epoch:
                values = plain(row)
                tracker.log({key: value for key, value in values.items() if key != "epoch"}, row.epoch)
                tracker.epoch = row.epoch
        if finished:
            tracker.result(*_final(read(self._path / "result.json", RunResult, remedy="")))
        self._save(name, Logged(id=tracker.id, epoch=tracker.epoch, complete=finished))

    def _start(self, name: str, logged: Logged) -> Tracker:
        settings = dict(_flat({k: v for k, v in plain(read_run(self._path / "run.json")).items() if k not in LEFT_OUT}))
        folder, group = self._tracking.folder or self._path, self._tracking.group
        run = TrackedRun(path=self._path, folder=folder, group=group, settings=settings, logged=logged)
        tracker = self._trackers[name] = TRACKERS[name](run)
        self._save(name, Logged(id=tracker.id, epoch=tracker.epoch))
        return tracker

    def _state(self) -> dict[str, Logged]:
        path = self._path / STATE
        return read(path, dict[str, Logged], remedy="Remove the file.") if path.exists() else {}

    def _save(self, name: str, logged: Logged) -> None:
        from .storage import write_json

        write_json(self._path / STATE, {key: plain(value) for key, value in (self._state() | {name: logged}).items()})


def _final(result: RunResult) -> tuple[dict[str, float], int]:
    """Return a run's final measurement and its epoch."""
    values = {"final_val_accuracy": result.val.accuracy, "final_val_nll": result.val.nll}
    if result.test is not None:
        values |= {"final_test_accuracy": result.test.accuracy, "final_test_nll": result.test.nll}
    return values, result.epoch


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as pairs of a dotted name and a short text.

    >>> dict(_flat({"kd": {"alpha": 0.5}, "seed": 0, "init": None}))
    {'kd.alpha': '0.5', 'seed': '0'}
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", str(value)[:LONGEST]


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let W&B and MLflow send no reports of usage or errors, unless the user's environment names a server."""
    for name, server in (("WANDB_ERROR_REPORTING", "WANDB_MODE"), ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_TRACKING_URI")):
        if server not in os.environ:
            os.environ.setdefault(name, "false" if name.startswith("WANDB") else "true")
    yield
