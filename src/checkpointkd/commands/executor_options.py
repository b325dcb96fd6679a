"""The options of commands that train independent runs: how many at once, and where."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from ..executors.base import ExecutorConfig, ExecutorName
from ..user_code import OBJECT


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Where runs are trained."""

    jobs: int = 1
    """Number of runs to train at the same time, each in its own process. On a machine with several GPUs, the runs are
    spread over the GPUs."""

    executor: ExecutorName = "local"
    """local: processes on this machine. ray: the Ray cluster at the address in the environment variable RAY_ADDRESS.
    slurm: one SLURM job per run. All machines need --out and the data at the same paths."""

    gpus_per_run: float | None = None
    """Share of a GPU for each run: 0.25 for four runs per GPU, 0 for no GPU. Default of local: an equal share of the
    GPUs of this machine. Default of ray: one GPU if the cluster has GPUs. Default of slurm: no GPU."""

    slurm: list[str] | None = None
    """Parameters of each SLURM job as KEY=VALUE, such as partition=gpu timeout_min=240."""

    def refuse_objects(self, *names: str) -> None:
        """Raise UserError if one of these names, or of the options, is an object of this process only."""
        for option in vars(self).values():
            names += tuple(option) if isinstance(option, list | tuple) else (option,)
        for name in names:
            if isinstance(name, str) and name.startswith(OBJECT):
                raise UserError(
                    f"{name!r} is an object of this process, which the processes of --jobs and --executor do not have. "
                    "Put it into a module, and give 'package.module:NAME', or leave out --jobs and --executor."
                )

    def executor_config(self) -> ExecutorConfig:
        """Return the settings of the executor. Raises UserError for values out of range."""
        slurm = [self.slurm] if isinstance(self.slurm, str) else self.slurm or []
        return ExecutorConfig(
            executor=self.executor, jobs=self.jobs, gpus_per_run=self.gpus_per_run, slurm=tuple(slurm)
        )
