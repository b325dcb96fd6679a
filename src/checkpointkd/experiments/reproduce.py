"""`checkpointkd reproduce`: train the runs that a table or figure of the paper needs, and write a report.

The command line imports this module, so it imports no torch. Functions import the modules that need torch.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..commands.executor_options import ExecutorOptions
from ..commands.log_options import LogOptions
from ..commands.options import CommonOptions, LogitCacheOptions
from ..commands.signature import command
from ..config import PrecisionChoice, SelectOn, check_choice, check_estimator
from ..errors import InUse, UserError, pluralize, unknown_name
from ..executors.base import ExecutorConfig
from ..recipes import recipe as get_recipe
from .catalog import EXPERIMENTS, PAPER, by_priority, get_experiment
from .presets import Pair, Preset, get_preset

if TYPE_CHECKING:
    from .context import Context
    from .estimate import Estimate
    from .items import Item
    from .store import Done
    from .tasks import Task

log = logging.getLogger("checkpointkd")

ALL = "all"  # experiments of the paper
PAGE = "report.html"
LOCK_SECONDS = 300.0  # to wait while another process measures speeds or writes results
WRITE_SECONDS = 60.0  # between two writes of the results while tasks run
NOTED_OPTIONS = ("teacher_epochs", "student_epochs", "train_images", "seeds", "teacher_recipe", "student_recipe")
NOTED_OPTIONS += ("method", "pairs")
PRESET_OPTIONS = ("train_images", "seeds", "teacher_recipe", "student_recipe", "select_on", "alpha", "tau", "precision")


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions(LogitCacheOptions, ExecutorOptions, LogOptions, CommonOptions):
    """Options of `reproduce`."""

    preset: str
    """The size of the experiment. smoke: digits in a few minutes, to check that everything runs. digits: longer runs on
    digits. small: 10,000 images of CIFAR-100, about an hour per experiment on two CPU cores. overfit: 2,500 images,
    with overfit teachers. medium: 45,000 images, a day or two on two CPU cores. few-images: teachers on 20,000 images,
    students on 2,250. noisy-labels: 2,500 images with noisy labels, see --train-labels. paper: the paper's settings;
    the command shows the cost and asks before it starts."""

    out: Path | str
    """The folder of the experiments and of their runs."""

    data: str | None = None
    """The data set as NAME or NAME:PATH. For table2, the presets paper and smoke also take tiny-imagenet. For table1,
    the preset paper also takes imagenet:PATH. Default: the preset's."""

    train_labels: Path | str | None = None
    """A .npy file that replaces the labels of the training images, as for `train`. The preset noisy-labels needs it."""

    select_on: SelectOn | None = None
    """The images for choosing checkpoints and hyperparameters: val or test, as for `train`. Default: the preset's."""

    seeds: int | None = None
    """Number of students per variant, each with its own seed. Default: the preset's number."""

    teacher_epochs: int | None = None
    """Epochs of each teacher. The number of checkpoints stays about the same. Default: the preset's."""

    student_epochs: int | None = None
    """Epochs of each student. The number of checkpoints stays about the same. Default: the preset's."""

    train_images: int | None = None
    """Train on a class-balanced subset of this many images. Default: the preset's number."""

    teacher_recipe: str | None = None
    """The recipe of the teachers, such as cifar100-step. Default: the preset's."""

    student_recipe: str | None = None
    """The recipe of the students. Default: the preset's."""

    pairs: list[str] | None = None
    """Networks in place of the preset's, as TEACHER,STUDENT, such as timm:resnet50,timm:mobilenetv2_050."""

    alpha: float | None = None
    """The weight of the labels. For `selection`, it replaces the preset's list of weights. Default: the preset's."""

    tau: float | None = None
    """The temperature. Default: the preset's."""

    tune: bool = False
    """Tune α and τ for each student and its teachers on the validation set, as the paper did."""

    method: str | None = None
    """The distillation method of all students. `selection` compares this method with its other methods. Your own
    method: package.module:Class. Default: kd, as in the paper."""

    rule: str | None = None
    """For `selection`: a rule to compare in addition, such as your own as package.module:function."""

    estimator: str | None = None
    """For `selection`: the estimator of I(X;F) whose scores the rules use: ridge, or your own as
    package.module:function. Default: decoder."""

    precision: PrecisionChoice | None = None
    """fp32, bf16 or auto, as for `train`. Default: the preset's."""

    seed: int | None = None
    """Train only the students of this seed. Several machines with a shared folder can split an experiment
    by seed."""

    only: list[str] | None = None
    """Train only the students of these pairs or variants, by their names in the tables. * matches any text."""

    merge: list[Path | str] | None = None
    """First copy the finished runs of these folders into --out. They must hold parts of the same experiments, for
    example from other machines."""

    time_limit: float | None = None
    """Stop after this many minutes and write the report. The same command continues unfinished runs from their last
    epoch."""

    yes: bool = False
    """Start the preset paper without asking."""

    def changed_preset(self, name: str) -> Preset:
        """Return the preset with these options in place of its own settings, for the experiment of this name.

        The note of the returned preset lists options that change lengths, sizes or the method.

        Raises:
            UserError: If the preset or an option is unknown or out of range.
        """
        preset = get_preset(self.preset, self.data)
        if self.precision is not None:
            check_choice("precision", self.precision, PrecisionChoice)
        for given_recipe in (self.teacher_recipe, self.student_recipe):
            if given_recipe is not None:
                get_recipe(given_recipe)  # raises UserError for an unknown recipe
        noted = [
            f"{option.replace('_', ' ')} {getattr(self, option)}"
            for option in NOTED_OPTIONS
            if getattr(self, option) not in (None, getattr(preset, option))
        ]
        if self.pairs is not None:
            preset = replace(preset, pairs=self._own_pairs(preset))
        if noted:
            preset = replace(preset, note=f"Not the preset's own settings: {', '.join(noted)}. {preset.note}".strip())
        preset = preset.with_epochs(teacher_epochs=self.teacher_epochs, student_epochs=self.student_epochs)
        given = {option: getattr(self, option) for option in PRESET_OPTIONS if getattr(self, option) is not None}
        preset = replace(preset, tune=self.tune, **given)
        if name in ("selection", "teachers") and self.tune:
            raise UserError(f"--tune does not apply to the experiment {name!r}. Leave out --tune.")
        preset = self._with_own_parts(name, preset)
        return preset if name != "selection" or self.alpha is None else replace(preset, alphas=(self.alpha,))

    def _with_own_parts(self, name: str, preset: Preset) -> Preset:
        """Return the preset with --method, --rule and --estimator."""
        from ..information import get_estimator
        from ..losses import get_method
        from ..selection import RULES, get_rule

        if name != "selection":
            for option in ("rule", "estimator"):
                if getattr(self, option) is not None:
                    raise UserError(f"--{option} applies to the experiment 'selection' only. Leave out --{option}.")
        if self.method is not None:
            get_method(self.method)  # raises UserError for an unknown method
            if self.tune and self.method != "kd":
                raise UserError(f"--tune searches the α and τ of kd. Leave out --tune, or --method {self.method}.")
            compared = tuple(dict.fromkeys((*preset.compared_methods, self.method)))
            preset = replace(preset, method=self.method, compared_methods=compared)
        if self.rule is not None:
            get_rule(self.rule)  # raises UserError for an unknown rule
            preset = replace(preset, rules=() if self.rule in RULES else (self.rule,))
        if self.estimator is not None:
            check_estimator(self.estimator)
            get_estimator(self.estimator)  # raises UserError for a name that cannot be imported
            preset = replace(preset, rule_estimator=self.estimator)
        return preset

    def _own_pairs(self, preset: Preset) -> tuple[Pair, ...]:
        pairs = []
        for text in [self.pairs] if isinstance(self.pairs, str) else self.pairs or ():
            names = [name.strip() for name in text.split(",")]
            if len(names) != 2 or not all(names):
                raise UserError(
                    f"--pairs takes TEACHER,STUDENT, such as timm:resnet50,timm:mobilenetv2_050, not {text!r}"
                )
            pairs.append(Pair(teacher=names[0], student=names[1], sweep=preset.pairs[0].sweep))
        if not pairs:
            raise UserError("--pairs needs at least one TEACHER,STUDENT")
        return tuple(pairs)

    def check_limits(self) -> None:
        """Raise UserError if --time-limit, --seed or --logit-cache-gb is out of range."""
        if self.time_limit is not None and not 0 < self.time_limit < 1e6:
            raise UserError(f"--time-limit must be above 0 and below 1,000,000, not {self.time_limit}")
        if self.seed is not None and self.seed < 0:
            raise UserError(f"--seed must be at least 0, not {self.seed}")
        if not 0 <= self.logit_cache_gb < 1e9:
            raise UserError(f"--logit-cache-gb must be from 0 to 10⁹, not {self.logit_cache_gb}")


@command(ReproduceOptions)
def reproduce(name: str, /, *, options: ReproduceOptions) -> dict[str, Any]:
    """Reproduce a table or figure of the paper, test its claims, and write a report.

    Experiments in one folder share their runs. Repeat the command to continue after an interruption.

    Example:

        checkpointkd reproduce table3 --preset small --data cifar100:PATH --out experiments

    Args:
        name: table1, figure2, table2, figure3, figure4, figure5, figure6, figure7 or table3. all: these nine, highest
            priority first. Not in the paper: lr-schedule tests which learning-rate schedule gives the paper's midpoint
            accuracy. selection compares candidates, and the rules and searches that choose among them. teachers
            compares checkpoints, ensembles, weight averages and teachers that were trained differently.

    Raises:
        UserError: If the experiment or preset is unknown, or if a task failed. The results of other tasks are kept and
            shown.
    """
    from .. import storage
    from ..data import load_data
    from ..reports.page import refuse_others
    from .context import Context
    from .estimate import estimate_of
    from .merge import merge_folders
    from .store import Done, claim_folder, warn_of_other_settings

    if name not in (*EXPERIMENTS, ALL):
        raise unknown_name("experiment", name, (*EXPERIMENTS, ALL))
    options.check_limits()
    executor_config, tracking = options.executor_config(), options.tracking(options.out)
    deadline = math.inf if options.time_limit is None else time.monotonic() + 60 * options.time_limit
    preset = options.changed_preset(name)
    if preset.noisy and options.train_labels is None:
        raise UserError(
            f"Preset {preset.name!r} needs noisy labels. Give --train-labels FILE, such as CIFAR-100N's "
            "noisy_fine_labels.npy."
        )
    out, names = Path(options.out), PAPER if name == ALL else (name,)
    refuse_others(out / PAGE)
    context = Context(
        out,
        preset,
        options.data or preset.dataset,
        options.device,
        options.logit_cache_gb,
        tracking=tracking,
        train_labels=None if options.train_labels is None else str(Path(options.train_labels).resolve()),
    )
    data = load_data(context.data_config("teacher"), on_progress=options.on_progress)
    items = {each: get_experiment(each).needs(preset) for each in names}
    tasks = by_priority(preset, _chosen(items, options.seed, options.only))
    with storage.locked(out, wait=LOCK_SECONDS):
        context = replace(context, folder_id=claim_folder(out, preset, data))
        warn_of_other_settings(out, names, preset)
        merge_folders(out, [Path(folder) for folder in options.merge or ()])
        context = context.with_speeds(_models(items), data)
    done = Done(context)
    estimate = estimate_of(context, tasks, done)
    if preset.name == "paper" and estimate.left and not options.yes:
        _ask(estimate.text)
    log.info("%s", estimate.text)
    return _run(context, items, tasks, done, estimate, deadline, executor_config, options)


def _models(items: dict[str, list[Item]]) -> list[str]:
    """Return the networks of the pairs that the experiments use."""
    pairs = dict.fromkeys(item.pair for needed in items.values() for item in needed)
    return [model for pair in pairs for model in (pair.teacher, pair.student)]


def _chosen(items: dict[str, list[Item]], seed: int | None, only: Sequence[str] | str | None) -> dict[str, list[Item]]:
    """Return the items of this seed and of these pairs or variants. Raises UserError if there are none."""
    patterns = [only] if isinstance(only, str) else only
    known = dict.fromkeys(
        name for needed in items.values() for item in needed for name in (item.pair.name, item.variant)
    )
    for pattern in patterns or ():
        if not fnmatch.filter(known, pattern):
            raise unknown_name("pair or variant", pattern, known)

    def is_chosen(item: Item) -> bool:
        names = (item.pair.name, item.variant)
        named = patterns is None or any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
        return named and (seed is None or item.seed in (None, seed))

    chosen = {name: [item for item in needed if is_chosen(item)] for name, needed in items.items()}
    if not any(chosen.values()):
        seeds = {item.seed for needed in items.values() for item in needed if item.seed is not None}
        raise UserError(f"No student has --seed {seed}. The seeds are 0 to {max(seeds, default=0)}; see --seeds.")
    return chosen


def _ask(question: str) -> None:
    """Let the user accept the cost; raises UserError if the user does not."""
    if not sys.stdin.isatty():
        raise UserError(f"{question} To start, add --yes (in Python yes=True).")
    print(f"{question}\nStart? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("Nothing was started: the answer was not 'y'. Repeat the command to start")


def _run(
    context: Context,
    items: dict[str, list[Item]],
    tasks: list[Task],
    done: Done,
    estimate: Estimate,
    deadline: float,
    executor_config: ExecutorConfig,
    options: ReproduceOptions,
) -> dict[str, Any]:
    """Run the tasks and write the results, even if the tasks are stopped; then write the report."""
    from .. import storage
    from ..executors import JOBS_FOLDER, InProcessExecutor, open_executor
    from ..reports.build import write_report
    from .scheduler import DEPENDENCY_FAILED, run_tasks
    from .store import write_results
    from .tasks import ordered

    written_at = time.monotonic()

    def write(failed: dict[Task, str]) -> dict[str, dict[str, Any]]:
        with storage.locked(context.out, wait=LOCK_SECONDS):
            return write_results(context, items, done, failed)

    def on_done(task: Task) -> None:
        nonlocal written_at
        if time.monotonic() - written_at > WRITE_SECONDS:
            with contextlib.suppress(InUse):  # another process writes; the end of this command writes again
                write({})
            written_at = time.monotonic()

    # a deadline needs another process even for one job, because a running task can be stopped only there
    in_process = executor_config == ExecutorConfig() and deadline == math.inf
    executor = (
        InProcessExecutor() if in_process else open_executor(executor_config, context.device, context.out / JOBS_FOLDER)
    )
    failed: dict[Task, str] = {}
    try:
        failed = run_tasks(
            context,
            tasks,
            executor=executor,
            on_progress=options.on_progress,
            on_done=on_done,
            deadline=deadline,
        )
    finally:
        results = write(failed)
    left = [task for task in ordered(tasks) if task not in failed and not done(task)]
    if left:
        count = estimate.tasks - len(left)
        log.info(
            "The time limit is over: %d of %s are done. Repeat the command to continue.", count, _tasks(estimate.tasks)
        )
    if left and len(left) + len(failed) >= estimate.left:
        log.warning(
            "No task finished within --time-limit. No progress is kept unless one epoch with its evaluation fits into "
            "the limit. Use a longer limit."
        )
    with storage.locked(context.out, wait=LOCK_SECONDS):
        page = write_report(context.out, out=context.out / PAGE)
    errors = [error for error in failed.values() if error != DEPENDENCY_FAILED]
    if failed:
        dependents = len(failed) - len(errors)
        left_out = f", and {_tasks(dependents)} that require a failed one did not run" if dependents else ""
        raise UserError(
            f"{len(errors)} of {_tasks(estimate.tasks)} failed{left_out}. The results are in {page}. "
            f"First error: {next(iter(errors), '')}"
        )
    return {"experiments": results, "report": str(page), "estimate": {**asdict(estimate), "text": estimate.text}}


def _tasks(count: int) -> str:
    return pluralize(count, "task")
