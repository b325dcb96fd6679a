"""`checkpointkd reproduce`: a table or figure of the paper, from the runs that it needs to a report."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Device, OnProgress, PrecisionChoice, SelectOn, check_choice, config_differences
from ..errors import UserError, pluralize, unknown_name
from ..recipes import recipe as recipe_of
from .presets import Preset, get_preset
from .tasks import (
    DEPENDENCY_FAILED,
    AdvisedStudent,
    DistillTask,
    Item,
    PilotTask,
    Task,
    TrainTask,
    TuneTask,
    ordered,
)

if TYPE_CHECKING:
    from ..data import Data
    from .context import Context

log = logging.getLogger("checkpointkd")

PAPER = ("table1", "figure2", "table2", "figure3", "figure4", "figure5", "figure6", "figure7", "table3")
ALL = "all"  # of the paper
EXPERIMENTS = (*PAPER, "lr-schedule", "rules")
WORTH = (  # studies by what their runs are worth when time is short: within a row pair by pair, then study by study
    ("lr-schedule", "figure7", "table3", "table2"),
    ("figure5", "figure4", "figure6"),
    ("table1", "figure2", "figure3"),  # a teacher of every tenth epoch, and many of them
    ("rules",),
)
PAGE = "report.html"
OVERHEAD_SECONDS = 2.0  # of a piece of work, beside its steps: reading data, teachers and results
WRITE_SECONDS = 60.0  # at most so often results are written while runs go on


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
    search: bool = False,
    precision: PrecisionChoice | None = None,
    jobs: int = 1,
    time_limit: float | None = None,
    logit_cache_gb: float = 20.0,
    yes: bool = False,
    device: Device = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Reproduce a table or figure of the paper, with the claims that it makes, and write a report.

    Studies in one folder share their runs. The same command again continues what was stopped.

    Example:

        checkpointkd reproduce table3 --preset small --data cifar100:PATH --out studies

    Parameters
    ----------
    name
        table1, figure2, table2, figure3, figure4, figure5, figure6, figure7, table3; or all of these, the runs that are
        worth most first. And two that are not in the paper: schedule, which schedule of the teacher's learning rate
        gives the paper's half-way accuracy; selection, how good the rules are that choose a teacher.
    preset
        smoke, digits in a few minutes, to see that everything runs; digits, the same with whole runs; small, 10,000
        images of CIFAR-100, about an hour a study on two cores; ripe, 2,500 images, which teachers know by heart;
        paper, the paper's own settings, after saying what it will cost.
    out
        The folder of the studies and of their runs.
    data
        The data set, and where it lies; by default the scale's. At the scale paper also tiny-imagenet (table2) and
        imagenet:PATH (table1).
    select_on
        holdout or paper, see train; by default paper at the scale paper, else holdout.
    seeds
        Students of each teacher, in place of the scale's number.
    teacher_epochs
        How long teachers train, in place of the scale's, with about as many checkpoints; for trials.
    student_epochs
        The same for students.
    train_images
        Train on this many images only, in place of the scale's number.
    teacher_recipe
        The recipe of the teachers, in place of the scale's: cifar100-step, where the study schedule speaks for it.
    alpha
        The weight of the labels, in place of the scale's (selection: of its several).
    tau
        The temperature, in place of the scale's.
    search
        Search α and τ for each student and its teachers, on the selection images, as the paper did.
    precision
        fp32, bf16, or auto, as for train; by default the scale's.
    jobs
        Runs at once, each in a process of its own.
    time_limit
        Stop after so many minutes, with what is done until then, and write the report; the same command goes on another
        time, half-done runs from their last epoch.
    logit_cache_gb
        How many gigabytes the tables of teachers' answers may take up in all, as for distill.
    yes
        Don't ask before the scale paper begins.
    device
        Where to compute.

    Raises
    ------
    UserError
        For unknown studies and scales, and when a run failed; what is done is kept and shown.
    """
    from .. import storage
    from ..data import load_data
    from ..reports import refuse_others
    from .context import Context

    if name not in (*EXPERIMENTS, ALL):
        raise unknown_name("reproduce", name, (*EXPERIMENTS, ALL))
    if time_limit is not None and not 0 < time_limit < 1e6:
        raise UserError(f"--time-limit must be above 0 and below 1,000,000, not {time_limit}")
    until = math.inf if time_limit is None else time.monotonic() + 60 * time_limit
    names = PAPER if name == ALL else (name,)
    if not 1 <= jobs <= 256:
        raise UserError(f"--jobs must be from 1 to 256, not {jobs}")
    settings = standard = get_preset(preset, data)
    if precision is not None:
        check_choice("precision", precision, PrecisionChoice)
    if teacher_recipe is not None:
        recipe_of(teacher_recipe)
    told = {
        "select_on": select_on,
        "seeds": seeds,
        "train_images": train_images,
        "teacher_recipe": teacher_recipe,
        "alpha": alpha,
        "tau": tau,
        "precision": precision,
    }
    own = {
        "teacher_epochs": teacher_epochs,
        "student_epochs": student_epochs,
        "train_images": train_images,
        "seeds": seeds,
        "teacher_recipe": teacher_recipe,
    }
    unlike = [f"{key} {value}" for key, value in own.items() if value not in (None, getattr(standard, key))]
    if unlike:
        changed = f"Not the scale's own settings: {', '.join(unlike).replace('_', ' ')}."
        settings = replace(settings, note=f"{changed} {settings.note}".strip())
    settings = settings.shortened(teacher_epochs=teacher_epochs, student_epochs=student_epochs)
    settings = replace(settings, search=search, **{key: value for key, value in told.items() if value is not None})
    if name == "rules":
        if search:
            raise UserError("the study selection searches nothing; leave --search out")
        settings = settings if alpha is None else replace(settings, alphas=(alpha,))
    if not 0 <= logit_cache_gb < 1e9:
        raise UserError(f"the table limit must be from 0 to 10⁹ gigabytes, not {logit_cache_gb}")
    out = Path(out)
    refuse_others(out / PAGE)
    context = Context(out, settings, data or settings.dataset, device, logit_cache_gb)
    loaded = load_data(context.data_settings(), on_progress=on_progress)
    with storage.locked(out):
        _refuse_another(out, settings, loaded)
        _warn_of_other_settings(out, names, settings)
        parts = {one: _module(one).needs(settings) for one in names}
        works = by_worth(settings, parts)
        trained = [work for work in ordered(works) if isinstance(work, TrainTask | DistillTask)]
        models = Counter(work.model for work in trained)
        context = context.look(list(models), loaded)
        done = _remembering(context)
        estimate = _estimate(context, works, done)
        if settings.name == "paper" and estimate["left"] and not yes:
            _ask(estimate["words"])
        log.info("%s", estimate["words"])
        return _carry_out(
            context, parts, works, done, jobs=jobs, estimate=estimate, until=until, on_progress=on_progress
        )


def by_worth(preset: Preset, parts: dict[str, list[Item]]) -> list[Task]:
    """The work of some studies, what is worth most first; of one study and pair in the study's own order."""
    ranked = []
    for row, names in enumerate(WORTH):
        for at, name in enumerate(names):
            for part in parts.get(name, []):
                ranked.append(((row, 0 if len(names) == 1 else preset.pairs.index(part.pair), at), part.work))
    return [work for _, work in sorted(ranked, key=lambda one: one[0])]


def _carry_out(
    context: Context,
    parts: dict[str, list[Item]],
    works: list[Task],
    done: Callable[[Task], bool],
    *,
    jobs: int,
    estimate: dict[str, Any],
    until: float,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    from ..reports import write_report
    from .executor import run_tasks

    written = [time.monotonic()]

    def on_done(work: Task) -> None:
        if time.monotonic() - written[0] > WRITE_SECONDS:
            _write(context, parts, done, {})
            written[0] = time.monotonic()

    failed: dict[Task, str] = {}
    try:
        failed = run_tasks(context, works, jobs=jobs, on_progress=on_progress, on_done=on_done, until=until)
    finally:
        found = _write(context, parts, done, failed)
    needed = ordered(works)
    left = [work for work in needed if work not in failed and not done(work)]
    if left:
        log.info(
            "the time is over: %d of %s of work are done, and the same command goes on",
            len(needed) - len(left),
            pluralize(len(needed), "piece"),
        )
    if left and len(left) + len(failed) >= estimate["left"]:
        log.warning(
            "no piece of work came to its end: an epoch with its evaluation, and a measurement, must fit into "
            "the time, or it begins anew each time"
        )
    page = write_report(context.out, out=context.out / PAGE)
    own = [trouble for trouble in failed.values() if trouble != DEPENDENCY_FAILED]
    lacking = f", and {len(failed) - len(own)} that need them are left out" if len(failed) > len(own) else ""
    if failed:
        raise UserError(
            f"{pluralize(len(own), 'piece')} of {len(ordered(works))} failed{lacking}, the first because "
            f"{next(iter(own), '')}; what is done is in {page}"
        )
    return {"studies": found, "report": str(page), "estimate": estimate}


def _write(
    context: Context, parts: dict[str, list[Item]], done: Callable[[Task], bool], failed: dict[Task, str]
) -> dict[str, dict[str, Any]]:
    """Write each study's rows and what they amount to; returns the latter."""
    from .. import storage
    from ..analysis.statistics import corrected
    from ..records import plain, provenance
    from ..reports.charts import to_plain
    from .results import rows_of, searched

    written = {}
    for name, several in parts.items():
        module = _module(name)
        rows = rows_of(context, several, done)
        if hasattr(module, "extra_rows"):
            rows += module.extra_rows(context, several, done)
        results = module.results(context.preset, rows)
        needed = ordered(part.work for part in several)
        missing = [work for work in needed if not done(work)]
        notes = [context.preset.note] * bool(context.preset.note) + results.notes
        if missing:
            notes.insert(0, f"Not finished: {len(missing)} of {pluralize(len(needed), 'piece')} of work to do.")
        notes += [
            f"Failed: {failed[work]}" for work in missing if failed.get(work, DEPENDENCY_FAILED) != DEPENDENCY_FAILED
        ]
        folder = context.out / name
        storage.atomic_write_bytes(folder / "rows.jsonl", storage.jsonl_text(rows).encode())
        written[name] = {
            "study": name,
            "title": module.TITLE,
            "scale": asdict(context.preset),
            "missing": len(missing),
            "notes": notes,
            "tables": [
                asdict(table) for table in [*results.tables, *([searched(rows)] if context.preset.search else [])]
            ],
            "figures": [to_plain(figure) for figure in results.figures],
            "claims": [{**asdict(one), "verdict": one.verdict} for one in corrected(results.claims)],
            "provenance": plain(provenance()),
        }
        storage.write_json(folder / "experiment.json", written[name])
    return written


def _estimate(context: Context, works: Sequence[Task], done: Callable[[Task], bool]) -> dict[str, Any]:
    """What is left to do, and about what it will cost on this machine."""
    needed = ordered(works)
    left = [work for work in needed if not done(work)]
    students = [work for work in left if isinstance(work, DistillTask)]
    asked = {picked: sum(picked in work.teachers for work in students) for work in students for picked in work.teachers}
    seconds = sum(context.cost(work) for work in left) + sum(
        context.asking_cost(one, count) for one, count in asked.items()
    )
    runs = [work for work in left if isinstance(work, TrainTask | DistillTask | AdvisedStudent)]
    count = sum(isinstance(work, TuneTask | PilotTask) for work in left)
    searches = f"{count} searches for α and τ or for a teacher, " if count else ""
    seconds += OVERHEAD_SECONDS * len(left)
    megabytes = sum(map(context.megabytes, runs))
    tables = min(context.logit_cache_gb, len(asked) * context.table_gigabytes())
    teachers = sum(isinstance(work, TrainTask) and work.role == "teacher" for work in runs)
    words = (
        f"{len(needed) - len(left)} of {pluralize(len(needed), 'piece')} of work are done; to do: "
        f"{pluralize(teachers, 'teacher')}, {pluralize(len(runs) - teachers, 'student')}, {searches}"
        f"{pluralize(len(left) - len(runs) - count, 'measurement')}: as steps took when they were measured, about "
        f"{_hours(seconds)} on this machine, one after the other; "
        f"{megabytes / 1e3:.1f} GB of checkpoints, up to {tables:.1f} GB of tables"
    )
    if not left:
        words = f"all {pluralize(len(needed), 'piece')} of work are done"
    return {
        "left": len(left),
        "runs": len(runs),
        "teachers": teachers,
        "seconds": round(seconds),
        "words": words,
        "gigabytes": round(megabytes / 1e3 + tables, 1),
    }


def _hours(seconds: float) -> str:
    """A duration as one says it.

    >>> _hours(90), _hours(5400), _hours(90 * 3600)
    ('2 time_limit', '1.5 hours', '90 hours')
    """
    if seconds < 3600:
        return pluralize(max(1, round(seconds / 60)), "minute")
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 10 else f"{hours:,.0f} hours"


def _ask(words: str) -> None:
    """Let the user say yes to what it costs; raises UserError when it isn't said."""
    if not sys.stdin.isatty():
        raise UserError(f"{words}; say --yes (in Python yes=True) to begin")
    print(f"{words}\nBegin? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was begun")


def _refuse_another(out: Path, preset: Preset, data: Data) -> None:
    """Raise UserError where the studies of another scale or of other data are, which would share a page and tables, or
    something else is, which a page of studies would hide."""
    from .. import storage
    from .context import read_checked

    path = out / "experiments.json"
    ours = {"scale": preset.name, "dataset": preset.dataset, "images": data.record.sha256}
    if not path.exists():
        strangers = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
        shown = ", ".join(sorted(strangers)[:3])
        if strangers:
            raise UserError(f"{out} holds something else ({shown}); choose another --out")
        storage.write_json(path, ours)
        return
    there = read_checked(path, lambda found: found.keys() == ours.keys())
    for name, what in (("scale", "of the scale"), ("dataset", "on"), ("images", "on images of the content")):
        if there[name] != ours[name]:
            raise UserError(f"{out} holds studies {what} {there[name]}; choose another --out")


def _warn_of_other_settings(out: Path, names: Sequence[str], preset: Preset) -> None:
    """Say when results of other settings will be replaced; their runs stay."""
    from .. import storage

    now = json.loads(json.dumps(asdict(preset)))
    replaced, unlike = [], []
    for name in names:
        path = out / name / "experiment.json"
        there = storage.read_json(path) if path.exists() else {}
        before = there.get("scale", now) if isinstance(there, dict) else now
        if isinstance(before, dict) and (found := config_differences(now, before)):
            replaced, unlike = [*replaced, name], found
    if replaced:
        log.warning(
            "in %s the results of %s are replaced by those of other settings (%s); runs are kept",
            out,
            ", ".join(replaced),
            "; ".join(unlike[:3]),
        )


def _remembering(context: Context) -> Callable[[Task], bool]:
    """Whether work is done, asked of the disk until it is."""
    known: set[Task] = set()

    def done(work: Task) -> bool:
        if work in known:
            return True
        if all(done(before) for before in work.after()) and context.done(work):
            known.add(work)
        return work in known

    return done


def _module(name: str) -> Any:
    return import_module(f".{name.replace('-', '_')}", __package__)
