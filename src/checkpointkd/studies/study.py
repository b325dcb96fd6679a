"""`checkpointkd study`: a table or figure of the paper, from the runs that it needs to a report."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, counted, require, unknown
from ..recipes import recipe as recipe_of
from ..settings import Device, PrecisionChoice, Progress, Protocol, differences, one_of
from .scales import Scale, scale_of
from .work import LACKS, Distillation, Following, Part, Probing, Search, Training, Work, ordered

if TYPE_CHECKING:
    from ..data import Data
    from .lab import Lab

log = logging.getLogger("checkpointkd")

PAPER = ("table1", "figure2", "table2", "figure3", "figure4", "figure5", "figure6", "figure7", "table3")
ALL = "all"  # of the paper
AUTO = "auto"
STUDIES = (*PAPER, "schedule", "selection")
WORTH = (  # studies by what their runs are worth when time is short: within a row pair by pair, then study by study
    ("schedule", "figure7", "table3", "table2"),
    ("figure5", "figure4", "figure6"),
    ("table1", "figure2", "figure3"),  # a teacher of every tenth epoch, and many of them
    ("selection",),
)
PAGE = "report.html"
OVERHEAD_SECONDS = 2.0  # of a piece of work, beside its steps: reading data, teachers and results
WRITE_SECONDS = 60.0  # at most so often results are written while runs go on


def study(
    name: str,
    /,
    *,
    scale: str,
    out: Path | str,
    data: str | None = None,
    protocol: Protocol | None = None,
    seeds: int | None = None,
    teacher_epochs: int | None = None,
    student_epochs: int | None = None,
    train_images: int | None = None,
    teacher_recipe: str | None = None,
    alpha: float | None = None,
    tau: float | None = None,
    search: bool = False,
    precision: PrecisionChoice | None = None,
    jobs: str | int = 1,
    minutes: float | None = None,
    table_limit: float = 20.0,
    yes: bool = False,
    device: Device = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Reproduce a table or figure of the paper, with the claims that it makes, and write a report.

    Studies in one folder share their runs. The same command again continues what was stopped.

    Example:

        checkpointkd study table3 --scale small --data cifar100:PATH --out studies

    Parameters
    ----------
    name
        table1, figure2, table2, figure3, figure4, figure5, figure6, figure7, table3; or all of these, the runs that are
        worth most first. And two that are not in the paper: schedule, which schedule of the teacher's learning rate
        gives the paper's half-way accuracy; selection, how good the rules are that choose a teacher.
    scale
        smoke, digits in a few minutes, to see that everything runs; digits, the same with whole runs; small, 10,000
        images of CIFAR-100, about an hour a study on two cores; ripe, 2,500 images, which teachers know by heart;
        paper, the paper's own settings, after saying what it will cost.
    out
        The folder of the studies and of their runs.
    data
        The data set, and where it lies; by default the scale's. At the scale paper also tiny-imagenet (table2) and
        imagenet:PATH (table1).
    protocol
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
        Runs at once, each in a process of its own; auto measures how many train most images a second on this machine.
    minutes
        Stop after so many minutes, with what is done until then, and write the report; the same command goes on another
        time, half-done runs from their last epoch.
    table_limit
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
    from .. import files
    from ..data import load_data
    from ..reports import refuse_others
    from .abreast import most_at_once
    from .lab import Lab

    if name not in (*STUDIES, ALL):
        raise unknown("study", name, (*STUDIES, ALL))
    require(minutes is None or 0 < minutes < 1e6, f"--minutes must be above 0 and below 1,000,000, not {minutes}")
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    names = PAPER if name == ALL else (name,)
    wanted = int(jobs) if re.fullmatch("[0-9]{1,9}", str(jobs)) else 0
    require(jobs == AUTO or 1 <= wanted <= 256, f"--jobs must be auto or from 1 to 256, not {jobs}")
    settings = standard = scale_of(scale, data)
    if precision is not None:
        one_of("precision", precision, PrecisionChoice)
    if teacher_recipe is not None:
        recipe_of(teacher_recipe)
    told = {"protocol": protocol, "seeds": seeds, "train_images": train_images, "teacher_recipe": teacher_recipe,
            "alpha": alpha, "tau": tau, "precision": precision}  # fmt: skip
    own = {"teacher_epochs": teacher_epochs, "student_epochs": student_epochs, "train_images": train_images,
           "seeds": seeds, "teacher_recipe": teacher_recipe}  # fmt: skip
    unlike = [f"{key} {value}" for key, value in own.items() if value not in (None, getattr(standard, key))]
    if unlike:
        changed = f"Not the scale's own settings: {', '.join(unlike).replace('_', ' ')}."
        settings = replace(settings, note=f"{changed} {settings.note}".strip())
    settings = settings.shortened(teacher_epochs=teacher_epochs, student_epochs=student_epochs)
    settings = replace(settings, search=search, **{key: value for key, value in told.items() if value is not None})
    if name == "selection":
        require(not search, "the study selection searches nothing; leave --search out")
        settings = settings if alpha is None else replace(settings, alphas=(alpha,))
    require(0 <= table_limit < 1e9, f"the table limit must be from 0 to 10⁹ gigabytes, not {table_limit}")
    out = Path(out)
    refuse_others(out / PAGE)
    lab = Lab(out, settings, data or settings.dataset, device, table_limit)
    loaded = load_data(lab.data_settings(), progress=progress)
    with files.locked(out):
        _refuse_another(out, settings, loaded)
        _warn_of_other_settings(out, names, settings)
        parts = {one: _module(one).needs(settings) for one in names}
        works = by_worth(settings, parts)
        trained = [work for work in ordered(works) if isinstance(work, Training | Distillation)]
        models = Counter(work.model for work in trained)
        lab = lab.look(list(models), loaded)
        done = _remembering(lab)
        estimate = _estimate(lab, works, done)
        if settings.name == "paper" and estimate["left"] and not yes:
            _ask(estimate["words"])
        log.info("%s", estimate["words"])
        at_once = wanted
        if jobs == AUTO:
            at_once = most_at_once(lab, models.most_common(1)[0][0], until) if estimate["left"] else 1
        return _carry_out(lab, parts, works, done, jobs=at_once, estimate=estimate, until=until, progress=progress)


def by_worth(scale: Scale, parts: dict[str, list[Part]]) -> list[Work]:
    """The work of some studies, what is worth most first; of one study and pair in the study's own order."""
    ranked = []
    for row, names in enumerate(WORTH):
        for at, name in enumerate(names):
            for part in parts.get(name, []):
                ranked.append(((row, 0 if len(names) == 1 else scale.pairs.index(part.pair), at), part.work))
    return [work for _, work in sorted(ranked, key=lambda one: one[0])]


def _carry_out(
    lab: Lab,
    parts: dict[str, list[Part]],
    works: list[Work],
    done: Callable[[Work], bool],
    *,
    jobs: int,
    estimate: dict[str, Any],
    until: float,
    progress: Progress | None,
) -> dict[str, Any]:
    from ..reports import write_report
    from .crew import carry_out

    written = [time.monotonic()]

    def on_done(work: Work) -> None:
        if time.monotonic() - written[0] > WRITE_SECONDS:
            _write(lab, parts, done, {})
            written[0] = time.monotonic()

    failed: dict[Work, str] = {}
    try:
        failed = carry_out(lab, works, jobs=jobs, progress=progress, on_done=on_done, until=until)
    finally:
        found = _write(lab, parts, done, failed)
    needed = ordered(works)
    left = [work for work in needed if work not in failed and not done(work)]
    if left:
        log.info("the time is over: %d of %s of work are done, and the same command goes on", len(needed) - len(left),
                 counted(len(needed), "piece"))  # fmt: skip
    if left and len(left) + len(failed) >= estimate["left"]:
        log.warning("no piece of work came to its end: an epoch with its evaluation, and a measurement, must fit into "
                    "the time, or it begins anew each time")  # fmt: skip
    page = write_report(lab.out, out=lab.out / PAGE)
    own = [trouble for trouble in failed.values() if trouble != LACKS]
    lacking = f", and {len(failed) - len(own)} that need them are left out" if len(failed) > len(own) else ""
    require(
        not failed,
        f"{counted(len(own), 'piece')} of {len(ordered(works))} failed{lacking}, the first because "
        f"{next(iter(own), '')}; what is done is in {page}",
    )
    return {"studies": found, "report": str(page), "estimate": estimate}


def _write(
    lab: Lab, parts: dict[str, list[Part]], done: Callable[[Work], bool], failed: dict[Work, str]
) -> dict[str, dict[str, Any]]:
    """Write each study's rows and what they amount to; returns the latter."""
    from .. import files
    from ..charts import to_plain
    from ..comparisons import corrected
    from ..trajectory import provenance
    from .rows import rows_of, searched

    written = {}
    for name, several in parts.items():
        module = _module(name)
        rows = rows_of(lab, several, done)
        if hasattr(module, "extra_rows"):
            rows += module.extra_rows(lab, several, done)
        results = module.results(lab.scale, rows)
        needed = ordered(part.work for part in several)
        missing = [work for work in needed if not done(work)]
        notes = [lab.scale.note] * bool(lab.scale.note) + results.notes
        if missing:
            notes.insert(0, f"Not finished: {len(missing)} of {counted(len(needed), 'piece')} of work to do.")
        notes += [f"Failed: {failed[work]}" for work in missing if failed.get(work, LACKS) != LACKS]
        folder = lab.out / name
        files.write_whole(folder / "rows.jsonl", files.rows_text(rows).encode())
        written[name] = {
            "study": name,
            "title": module.TITLE,
            "scale": asdict(lab.scale),
            "missing": len(missing),
            "notes": notes,
            "tables": [asdict(table) for table in [*results.tables, *([searched(rows)] if lab.scale.search else [])]],
            "figures": [to_plain(figure) for figure in results.figures],
            "claims": [{**asdict(one), "verdict": one.verdict} for one in corrected(results.claims)],
            "provenance": provenance(),
        }
        files.write_json(folder / "study.json", written[name])
    return written


def _estimate(lab: Lab, works: Sequence[Work], done: Callable[[Work], bool]) -> dict[str, Any]:
    """What is left to do, and about what it will cost on this machine."""
    needed = ordered(works)
    left = [work for work in needed if not done(work)]
    students = [work for work in left if isinstance(work, Distillation)]
    asked = {picked: sum(picked in work.teachers for work in students) for work in students for picked in work.teachers}
    seconds = sum(lab.cost(work) for work in left) + sum(lab.asking_cost(one, count) for one, count in asked.items())
    runs = [work for work in left if isinstance(work, Training | Distillation | Following)]
    count = sum(isinstance(work, Search | Probing) for work in left)
    searches = f"{count} searches for α and τ or for a teacher, " if count else ""
    seconds += OVERHEAD_SECONDS * len(left)
    megabytes = sum(map(lab.megabytes, runs))
    tables = min(lab.table_limit, len(asked) * lab.table_gigabytes())
    teachers = sum(isinstance(work, Training) and work.role == "teacher" for work in runs)
    words = (
        f"{len(needed) - len(left)} of {counted(len(needed), 'piece')} of work are done; to do: "
        f"{counted(teachers, 'teacher')}, {counted(len(runs) - teachers, 'student')}, {searches}"
        f"{counted(len(left) - len(runs) - count, 'measurement')}: as steps took when they were measured, about "
        f"{_hours(seconds)} on this machine, one after the other; "
        f"{megabytes / 1e3:.1f} GB of checkpoints, up to {tables:.1f} GB of tables"
    )
    if not left:
        words = f"all {counted(len(needed), 'piece')} of work are done"
    return {"left": len(left), "runs": len(runs), "teachers": teachers, "seconds": round(seconds), "words": words,
            "gigabytes": round(megabytes / 1e3 + tables, 1)}  # fmt: skip


def _hours(seconds: float) -> str:
    """A duration as one says it.

    >>> _hours(90), _hours(5400), _hours(90 * 3600)
    ('2 minutes', '1.5 hours', '90 hours')
    """
    if seconds < 3600:
        return counted(max(1, round(seconds / 60)), "minute")
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 10 else f"{hours:,.0f} hours"


def _ask(words: str) -> None:
    """Let the user say yes to what it costs; raises UserError when it isn't said."""
    if not sys.stdin.isatty():
        raise UserError(f"{words}; say --yes (in Python yes=True) to begin")
    print(f"{words}\nBegin? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was begun")


def _refuse_another(out: Path, scale: Scale, data: Data) -> None:
    """Raise UserError where the studies of another scale or of other data are, which would share a page and tables, or
    something else is, which a page of studies would hide."""
    from .. import files
    from .lab import read_checked

    path = out / "studies.json"
    ours = {"scale": scale.name, "dataset": scale.dataset, "images": data.identity["sha256"]}
    if not path.exists():
        strangers = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
        shown = ", ".join(sorted(strangers)[:3])
        require(not strangers, f"{out} holds something else ({shown}); choose another --out")
        files.write_json(path, ours)
        return
    there = read_checked(path, lambda found: found.keys() == ours.keys())
    for name, what in (("scale", "of the scale"), ("dataset", "on"), ("images", "on images of the content")):
        require(there[name] == ours[name], f"{out} holds studies {what} {there[name]}; choose another --out")


def _warn_of_other_settings(out: Path, names: Sequence[str], scale: Scale) -> None:
    """Say when results of other settings will be replaced; their runs stay."""
    from .. import files

    now = json.loads(json.dumps(asdict(scale)))
    replaced, unlike = [], []
    for name in names:
        path = out / name / "study.json"
        there = files.read_json(path) if path.exists() else {}
        before = there.get("scale", now) if isinstance(there, dict) else now
        if isinstance(before, dict) and (found := differences(now, before)):
            replaced, unlike = [*replaced, name], found
    if replaced:
        log.warning("in %s the results of %s are replaced by those of other settings (%s); runs are kept",
                    out, ", ".join(replaced), "; ".join(unlike[:3]))  # fmt: skip


def _remembering(lab: Lab) -> Callable[[Work], bool]:
    """Whether work is done, asked of the disk until it is."""
    known: set[Work] = set()

    def done(work: Work) -> bool:
        if work in known:
            return True
        if all(done(before) for before in work.after()) and lab.done(work):
            known.add(work)
        return work in known

    return done


def _module(name: str) -> Any:
    return import_module(f".{name}", __package__)
