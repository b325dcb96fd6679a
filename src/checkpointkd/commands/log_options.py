"""The option `--log` of the commands that train: the trackers that log the runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..trackers import Tracking


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Logging."""

    log: list[str] | Tracking | None = None
    """Log each epoch to tensorboard, wandb or mlflow, or to several of them, with files in --out. wandb is offline
    unless WANDB_MODE is set. mlflow is offline unless MLFLOW_TRACKING_URI is set. Logging does not change the results
    of the runs."""

    def tracking(self, experiment: Path | str | None = None) -> Tracking | None:
        """Return the trackers and the folder of their files, or None without `--log`.

        Args:
            experiment: The folder of several runs that belong together. None: the command trains a single run.

        Raises:
            UserError: If a tracker is unknown or not installed.
        """
        if self.log is None or isinstance(self.log, Tracking):  # an experiment passes its own to each of its runs
            return self.log
        names = [self.log] if isinstance(self.log, str) else self.log
        if not isinstance(names, list | tuple) or not names:
            raise UserError(f"log takes names of trackers, such as ['tensorboard'], not {names!r}")
        return Tracking(names=tuple(names), folder=None if experiment is None else Path(experiment))
