"""`checkpointkd tune`: find the α and τ with which teachers teach a student best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import SamplerName, check_choice
from ..distill_config import EnsembleAverage, KDConfig
from ..errors import UserError
from ..executors.base import JOBS_FOLDER, ExecutorConfig
from ..records.base import plain
from ..user_code import name_of
from .checks import warn_if_any_saw_validation_images
from .executor_options import ExecutorOptions
from .log_options import LogOptions
from .options import CommonOptions, DataOptions, Model, RunOptions, TeacherOptions
from .recipe_options import RECIPE_OPTIONS, RecipeOptions
from .signature import command

if TYPE_CHECKING:
    from ..selection.tuning import TuneConfig

REPEATED = (  # options that `distill` repeats to train the best trial's student
    "tau_squared",
    "teacher_weights",
    "teacher_schedule",
    "teacher_tau",
    "teacher_batch_norm",
    "teacher_features",
    "student_features",
    "channel_adapter",
    "data",
    "recipe",
    "epochs",
    *RECIPE_OPTIONS,
    "select_on",
    "val",
    "train_images",
    "train_labels",
    "image_size",
    "resize",
    "class_order",
    "flip",
    "logit_cache_gb",
    "device",
    "seed",
    "allow_weak_teacher",
    "top_k",
)


@dataclass(frozen=True, kw_only=True)
class TuneOptions(TeacherOptions, DataOptions, RecipeOptions, RunOptions, ExecutorOptions, LogOptions, CommonOptions):
    """Options of `tune`."""

    out: Path | str
    """The directory of the trials, of tune.json with the results, and of Optuna's study."""

    alpha: list[float] | None = None
    """Label weights to try. Default: 0.1 0.3 0.5 0.7 0.9 for kd; the method's own for others."""

    tau: list[float] | None = None
    """Temperatures to try. Default: 1 2 4 8 16; the method's own for feature methods."""

    method_weight: list[float] | None = None
    """Weights of the method's own term to try. Default: 0.1 to 10 times its usual weight; kd has none."""

    learning_rate: list[float] | None = None
    """Learning rates to try. Default: the recipe's."""

    sampler: SamplerName = "grid"
    """grid tries every combination of the values; tpe samples between the lowest and the highest of each."""

    trials: int | None = None
    """Number of trials. Default: the whole grid, or 25."""

    prune: bool = True
    """Stop the worse trials early (Hyperband)."""

    seeds: int = 1
    """Students per trial, one for each seed. Trials are ranked by their mean accuracy."""

    storage: str | None = None
    """URL of an Optuna storage, to share a study between machines. journal:FILE is a file in a shared folder; all
    processes then need the same --out. Default: a file in --out."""

    study_name: str = "checkpointkd"
    """Name of the study in the storage."""

    def storage_url(self) -> str | None:
        """Return the storage; None for a file in --out that only this process uses."""
        journal = Path(self.out) / "study.journal"
        if self.storage is not None or (self.executor_config() == ExecutorConfig() and not journal.exists()):
            return self.storage
        if (Path(self.out) / "study.db").exists():
            raise UserError(
                f"{self.out} holds a study that was started without --jobs. Leave out --jobs and --executor, or "
                "choose another --out."
            )
        return f"journal:{journal}"

    def tune_config(self) -> TuneConfig:
        """Return what to try and how.

        Raises:
            UserError: For an unknown method, for values out of range, and for a τ that would have no effect.
        """
        from ..losses import takes_features
        from ..selection.tuning import TuneConfig, default_space

        check_choice("average", self.average, EnsembleAverage)
        given = {name: getattr(self, name) for name in ("alpha", "tau", "method_weight", "learning_rate")}
        space = default_space(self.method) | {name: tuple(v) for name, v in given.items() if v is not None}
        if self.tau is not None and takes_features(self.method) and not min(space.get("alpha") or (1.0,)) < 1:
            raise UserError(f"--tau has no effect on {self.method} at alpha 1. Add --alpha below 1, or remove --tau")
        return TuneConfig(space=space, sampler=self.sampler, trials=self.trials, prune=self.prune, seeds=self.seeds)


@command(TuneOptions)
def tune(student: Model, /, *, options: TuneOptions) -> dict[str, Any]:
    """Find the α and τ with which teachers teach a student best, measured on the validation set.

    Repeat the command to continue an interrupted search. The logit cache makes a trial about as fast as training
    without a teacher.

    Example:

        checkpointkd tune wrn_10_1 --teachers runs/teacher@midpoint --out runs/tune

    Args:
        student: The student's network, as for `train`.

    Raises:
        UserError: As `distill` does, if the study belongs to another search, or if its storage cannot be used.
    """
    from ..checkpoints import resolve_ensemble
    from ..data import load_data
    from ..losses import defaults
    from ..selection import tuning
    from ..training.distillation import DistillSpec
    from ..training.run import RunSpec

    network = name_of(student)
    settings, executor_config, storage_url = options.tune_config(), options.executor_config(), options.storage_url()
    tracking = options.tracking(options.out)
    if not options.teachers:
        raise UserError("tune needs --teachers")
    refs = resolve_ensemble(options.teacher_list, options.ensemble)
    data_config = options.config_like(refs[0].checkpoint.run.data, options.train_images)
    data = load_data(data_config, on_progress=options.on_progress)
    warn_if_any_saw_validation_images(refs, data)
    alpha, tau = defaults(options.method)
    task = tuning.TuneTask(
        run=RunSpec(
            model=network,
            out=Path(options.out),
            recipe=options.recipe_for(network, data),
            device=options.torch_device,
            seed=options.seed,
            precision=options.precision,
            evaluate_test=False,
        ),
        spec=DistillSpec(
            refs=tuple(refs),
            method=options.method,
            kd=KDConfig(alpha=alpha, tau=tau, tau_squared=options.tau_squared, average=options.average),
            config=options.distill_config(len(refs)),
            logit_cache_gb=options.logit_cache_gb,
            allow_weak_teacher=options.allow_weak_teacher,
        ),
        data=data,
        tracking=tracking,
    )
    if executor_config != ExecutorConfig():
        options.refuse_objects(network, data.record.name, *(ref.checkpoint.run.model for ref in refs))
        _run_workers(network, replace(options, storage=storage_url), executor_config)
    result = tuning.run_tuning(
        task,
        settings=settings,
        out=Path(options.out),
        storage_url=storage_url,
        study_name=options.study_name,
        on_progress=options.on_progress,
    )
    given = {name: getattr(options, name) for name in REPEATED} | {"precision": result.precision}
    return plain(result) | {"command": tuning.distill_command(result, options=given)}


def _run_workers(student: str, options: TuneOptions, config: ExecutorConfig) -> None:
    """Run the trials in `config.jobs` processes. The caller runs the trials that they leave, and reads the result."""
    from ..executors import WorkerDied, open_executor, run_all

    options = replace(options, jobs=1, executor="local", gpus_per_run=None, slurm=None, on_progress=None)
    executor = open_executor(config, options.device, Path(options.out) / JOBS_FOLDER)
    try:
        run_all(executor, _work, [(student, options)] * config.jobs)
    except WorkerDied as error:
        raise UserError(f"A process of this search failed several times: {error}. Repeat the command.") from None
    finally:
        executor.close()


def _work(student: str, options: TuneOptions) -> None:
    """Run trials in this process until all trials have started."""
    tune.__wrapped__(student, options=options)  # type: ignore[attr-defined]
