"""Log runs to TensorBoard, Weights & Biases and MLflow, for `--log`.

A tracker reads the files of a run: run.json, metrics.jsonl and result.json. The run does not know its trackers, so they
cannot change the run. If a tracker fails, it causes a warning, and the training continues. trackers.json in the run
directory lists the logged epochs, so that a run that continues logs no epoch twice. No torch here: the command line
imports this module.
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
PROJECT = "checkpointkd"  # the W&B project; the MLflow experiment of runs that belong to no experiment
LEFT_OUT = {"format", "classes", "network_config"}  # fields of run.json that are not settings
LONGEST = 500  # number of characters of a logged setting


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """The trackers of a command, and the folder of their files.

    Attributes:
        names: The trackers.
        folder: The folder of an experiment. It holds the files of MLflow and Weights & Biases, and its name is the
            group of the runs. None: a single run, with the files in its run directory.
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
    """A run for a tracker: run directory, folder of the tracker's files, group, settings, and the logged epochs."""

    path: Path
    folder: Path
    group: str | None
    settings: dict[str, str]
    logged: Logged


class Tracker(Protocol):
    """One run in one tracker. If a method raises, the caller stops logging this run to this tracker."""

    package: str
    id: str | None  # the tracker's name of the run, to find the run again
    epoch: int  # the last logged epoch

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
    """Event files in the run directory. TensorBoard discards values of later epochs that a killed process wrote."""

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
            reinit="create_new",  # leaves an open W&B run of the user's program unchanged
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
    """MLflow: the server at MLFLOW_TRACKING_URI, or the file mlflow.db, which several processes may share."""

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
        """Return the id of the run that an earlier process logged to, or None if this server does not have it."""
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
            self._client.log_batch(self.id, metrics)  # in one call: an epoch is logged as a whole or not at all

    result = log

    def close(self, status: Status) -> None:
        with self._lock:
            self._client.set_terminated(self.id, self.STATUS[status])


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


@contextlib.contextmanager
def tracked(
    run: Path, tracking: Tracking | None, *, stops: tuple[type[BaseException], ...] = ()
) -> Iterator[Callable[[Any], None]]:
    """Yield a function that logs new epochs of a run. Call it after an epoch is saved, as `run_training` does.

    At the end, `tracked` logs the result and all missing epochs, so a finished run can be logged later. Of several
    processes, only the main process logs.

    Args:
        run: The run directory.
        tracking: The trackers. None: log nothing.
        stops: Exceptions besides KeyboardInterrupt that stop a run early without a failure.
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
    """Logs one run to its trackers. After its first error, a tracker is not used again."""

    def __init__(self, path: Path, tracking: Tracking) -> None:
        self._path, self._tracking = path, tracking
        self._trackers: dict[str, Tracker] = {}
        self._failed: set[str] = set()

    def update(self) -> None:
        """Log new epochs and the result from the run directory."""
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
        """Turn the first error of a tracker into a warning, and ignore its later errors."""
        try:
            with _offline(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings of the trackers' libraries
                yield
        except Exception as error:  # a tracker's library may raise any error
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
    """Turn off usage and error reports of W&B and MLflow, unless WANDB_MODE or MLFLOW_TRACKING_URI is set."""
    for name, server in (("WANDB_ERROR_REPORTING", "WANDB_MODE"), ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_TRACKING_URI")):
        if server not in os.environ:
            os.environ.setdefault(name, "false" if name.startswith("WANDB") else "true")
    yield
