"""`checkpointkd reproduce`: a table or figure of the paper, from the runs that it needs to a report.

The command line imports this module, so it imports no torch; the modules that do are imported in functions.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Device, OnProgress, PrecisionChoice, SelectOn, check_choice
from ..errors import UserError, pluralize, unknown_name
from ..recipes import recipe as get_recipe
from .catalog import EXPERIMENTS, PAPER, by_priority, get_experiment
from .presets import Preset, get_preset

if TYPE_CHECKING:
    from .context import Context
    from .estimate import Estimate
    from .items import Item
    from .store import Done
    from .tasks import Task

log = logging.getLogger("checkpointkd")

ALL = "all"  # experiments of the paper
PAGE = "report.html"
WRITE_SECONDS = 60.0  # between two writes of the results while tasks run


def reproduce(
    name: str,
    /,
    *,
    preset: str,
    out: Path | str,
    data: str | None = None,
    select_on: SelectOn | None = None,
    seeds: int | None = None,
    teacher_epochs: int | None = None,
    student_epochs: int | None = None,
    train_images: int | None = None,
    teacher_recipe: str | None = None,
    alpha: float | None = None,
    tau: float | None = None,
    tune: bool = False,
    precision: PrecisionChoice | None = None,
    jobs: int = 1,
    time_limit: float | None = None,
    logit_cache_gb: float = 20.0,
    yes: bool = False,
    device: Device = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Reproduce a table or figure of the paper, test its claims, and write a report.

    Experiments in one folder share their runs. Repeat the command after an interruption: it continues.

    Example:

        checkpointkd reproduce table3 --preset small --data cifar100:PATH --out experiments

    Parameters
    ----------
    name
        table1, figure2, table2, figure3, figure4, figure5, figure6, figure7 or table3; all of these, highest priority
        first; or a comparison of ours: lr-schedule (which learning-rate schedule of the teacher gives the paper's
        midpoint accuracy) or rules (how good the rules are that choose a teacher).
    preset
        smoke (digits, a few minutes, checks that everything runs); digits (long runs on digits); small (10,000 images
        of CIFAR-100, about an hour per experiment on two cores); overfit (2,500 images, which teachers memorize);
        paper (the paper's settings; shows its cost and asks first).
    out
        The folder of the experiments and of their runs.
    data
        The data set as NAME or NAME:PATH, by default the preset's. The preset paper also takes tiny-imagenet (for
        table2) and imagenet:PATH (for table1).
    select_on
        Images to choose on: val or test, as for train; by default the preset's.
    seeds
        Students per variant, in place of the preset's number.
    teacher_epochs
        Epochs of teachers, in place of the preset's, with about as many checkpoints.
    student_epochs
        Epochs of students, likewise.
    train_images
        Train on this many images only, in place of the preset's number.
    teacher_recipe
        The recipe of the teachers, in place of the preset's, such as cifar100-step.
    alpha
        The weight of the labels, in place of the preset's. For rules, in place of its several weights.
    tau
        The temperature, in place of the preset's.
    tune
        Tune α and τ for each student and its teachers on the validation set, as the paper did.
    precision
        fp32, bf16 or auto, as for train; by default the preset's.
    jobs
        Tasks that run at once, each in its own process.
    time_limit
        Stop after so many minutes and write the report. The same command continues, unfinished runs from their last
        epoch.
    logit_cache_gb
        Largest size of all cached teacher logits in gigabytes, as for distill.
    yes
        Start the preset paper without asking.
    device
        Where to compute.

    Raises
    ------
    UserError
        For an unknown experiment or preset, and when a task failed. Results of other tasks are kept and shown.
    """
    from .. import storage
    from ..data import load_data
    from ..reports import refuse_others
    from .context import Context
    from .estimate import estimate_of
    from .store import Done, claim_folder, warn_of_other_settings

    if name not in (*EXPERIMENTS, ALL):
        raise unknown_name("experiment", name, (*EXPERIMENTS, ALL))
    _check_limits(jobs=jobs, time_limit=time_limit, logit_cache_gb=logit_cache_gb)
    deadline = math.inf if time_limit is None else time.monotonic() + 60 * time_limit
    settings = _changed(
        get_preset(preset, data),
        {"teacher_epochs": teacher_epochs, "student_epochs": student_epochs},
        {"train_images": train_images, "seeds": seeds, "teacher_recipe": teacher_recipe},
        {"select_on": select_on, "alpha": alpha, "tau": tau, "precision": precision},
    )
    settings = _tuned(settings, name, tune=tune, alpha=alpha)
    out, names = Path(out), PAPER if name == ALL else (name,)
    refuse_others(out / PAGE)
    context = Context(out, settings, data or settings.dataset, device, logit_cache_gb)
    loaded = load_data(context.data_config(), on_progress=on_progress)
    with storage.locked(out):
        claim_folder(out, settings, loaded)
        warn_of_other_settings(out, names, settings)
        items = {each: get_experiment(each).needs(settings) for each in names}
        tasks = by_priority(settings, items)
        context = context.with_speeds(_models(settings, items), loaded)
        done = Done(context)
        estimate = estimate_of(context, tasks, done)
        if settings.name == "paper" and estimate.left and not yes:
            _ask(estimate.text)
        log.info("%s", estimate.text)
        return _run(
            context, items, tasks, done, estimate=estimate, jobs=jobs, deadline=deadline, on_progress=on_progress
        )


def _check_limits(*, jobs: int, time_limit: float | None, logit_cache_gb: float) -> None:
    if time_limit is not None and not 0 < time_limit < 1e6:
        raise UserError(f"--time-limit must be above 0 and below 1,000,000, not {time_limit}")
    if not 1 <= jobs <= 256:
        raise UserError(f"--jobs must be from 1 to 256, not {jobs}")
    if not 0 <= logit_cache_gb < 1e9:
        raise UserError(f"--logit-cache-gb must be from 0 to 10⁹, not {logit_cache_gb}")


def _changed(preset: Preset, lengths: dict[str, int | None], sizes: dict[str, Any], choices: dict[str, Any]) -> Preset:
    """Return the preset with the options that are given. Other lengths and sizes are noted in its results."""
    if choices["precision"] is not None:
        check_choice("precision", choices["precision"], PrecisionChoice)
    if sizes["teacher_recipe"] is not None:
        get_recipe(sizes["teacher_recipe"])
    noted = [
        f"{option.replace('_', ' ')} {value}"
        for option, value in {**lengths, **sizes}.items()
        if value not in (None, getattr(preset, option))
    ]
    if noted:
        preset = replace(preset, note=f"Not the preset's own settings: {', '.join(noted)}. {preset.note}".strip())
    given = {option: value for option, value in {**sizes, **choices}.items() if value is not None}
    return replace(preset.with_epochs(**lengths), **given)


def _tuned(preset: Preset, name: str, *, tune: bool, alpha: float | None) -> Preset:
    """Return the preset with the options that the experiment `rules` treats in its own way."""
    if name != "rules":
        return replace(preset, tune=tune)
    if tune:
        raise UserError("The experiment 'rules' tunes nothing. Leave out --tune.")
    return preset if alpha is None else replace(preset, alphas=(alpha,))


def _models(preset: Preset, items: dict[str, list[Item]]) -> list[str]:
    """Return the networks of the pairs that the experiments use."""
    pairs = dict.fromkeys(item.pair for needed in items.values() for item in needed)
    return [model for pair in pairs for model in (pair.teacher, pair.student)]


def _ask(question: str) -> None:
    """Let the user accept the cost; raises UserError if the user does not."""
    if not sys.stdin.isatty():
        raise UserError(f"{question} To start, add --yes (in Python yes=True).")
    print(f"{question}\nStart? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("Nothing was started")


def _run(
    context: Context,
    items: dict[str, list[Item]],
    tasks: list[Task],
    done: Done,
    *,
    estimate: Estimate,
    jobs: int,
    deadline: float,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Run the tasks, and write results and report, also when the tasks are stopped."""
    from ..reports import write_report
    from .executor import DEPENDENCY_FAILED, run_tasks
    from .store import write_results
    from .tasks import ordered

    written_at = time.monotonic()

    def on_done(task: Task) -> None:
        nonlocal written_at
        if time.monotonic() - written_at > WRITE_SECONDS:
            write_results(context, items, done, {})
            written_at = time.monotonic()

    failed: dict[Task, str] = {}
    try:
        failed = run_tasks(context, tasks, jobs=jobs, on_progress=on_progress, on_done=on_done, deadline=deadline)
    finally:
        results = write_results(context, items, done, failed)
    left = [task for task in ordered(tasks) if task not in failed and not done(task)]
    if left:
        count = estimate.tasks - len(left)
        log.info("The time is over: %d of %s are done. The same command continues.", count, _tasks(estimate.tasks))
    if left and len(left) + len(failed) >= estimate.left:
        log.warning(
            "No task finished within --time-limit. One epoch with its evaluation must fit, or no progress is kept."
        )
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
