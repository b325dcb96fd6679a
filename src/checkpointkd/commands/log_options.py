"""The option of every command that trains: which trackers its runs are logged to."""

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
    unless WANDB_MODE is set, mlflow unless MLFLOW_TRACKING_URI is set. The results of the runs do not change."""

    def tracking(self, experiment: Path | str | None = None) -> Tracking | None:
        """Return where to log.

        Args:
            experiment: The folder of several runs that belong together. None: there is one run.

        Raises:
            UserError: If a tracker is unknown or not installed.
        """
        if self.log is None or isinstance(self.log, Tracking):  # of the experiment that this run belongs to
            return self.log
        names = [self.log] if isinstance(self.log, str) else self.log
        if not isinstance(names, list | tuple):
            raise UserError(f"log takes names of trackers, such as ['tensorboard'], not {names!r}")
        return Tracking(names=tuple(names), folder=None if experiment is None else Path(experiment))
