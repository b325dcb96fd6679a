"""What runs left in a folder, as plain data: everything that a report draws or says is made here and can be tested.

Runs know nothing of reports; this reads their files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from .. import records, storage
from ..analysis.statistics import claim_from, paired
from ..checkpoints import Trajectory, open_trajectory
from ..errors import UserError, check_exists, pluralize
from ..information import Plane, load_planes
from ..records import AnyRun, DistillRecord, OwnRunRecord, PilotRecord, SelectionRecord, TuneRecord, plain
from .charts import Table, from_plain

# Studies, in the paper's order.
ORDER = ("table1", "figure2", "table2", "figure3", "figure4", "figure5", "figure6", "figure7", "table3")


@dataclass(frozen=True)
class Scored:
    """A trajectory on the information plane, with the selection that was made on it, if any."""

    name: str
    trajectory: Trajectory
    plane: Plane
    selection: SelectionRecord | None

    @property
    def chosen(self) -> list[int]:
        """The epochs that were chosen."""
        return list(self.selection.epochs) if self.selection else []


@dataclass(frozen=True)
class Variant:
    """Students that differ in nothing but their seed: what they learned from, and how well, in percent by seed.

    Arms of one `family` (network, data, recipe, precision) differ in what they learned from only, and can be compared.
    """

    student: str
    label: str
    teachers: tuple[tuple[str, int], ...]  # (run's name, epoch)
    accuracy: dict[int, float]
    family: str = field(repr=False)
    smoothing: float = 0.0
    way: str = ""  # how its teachers taught, where that was not plain KD
    chosen: bool = False  # whether just these teachers were chosen, for this student if they were for one

    @property
    def alone(self) -> bool:
        """Whether it learned from the labels only."""
        return not self.teachers and self.smoothing == 0

    @property
    def n(self) -> int:
        return len(self.accuracy)

    @property
    def mean(self) -> float:
        return fmean(self.accuracy.values())

    @property
    def sd(self) -> float:
        """Standard deviation over seeds, n − 1 in the denominator; NaN for one seed."""
        return stdev(self.accuracy.values()) if self.n > 1 else math.nan

    @property
    def words(self) -> str:
        """Its accuracy as people read it."""
        return f"{self.mean:.2f} ± {self.sd:.2f}" if self.n > 1 else f"{self.mean:.2f}"


@dataclass(frozen=True)
class Difference:
    """How much better one arm is than another, in points: paired over common seeds, with a 95% interval (t)."""

    n: int
    mean: float
    half_width: float

    @property
    def verdict(self) -> str:
        """Whether seeds alone could have made the difference, in two words."""
        if self.n < 2:
            return "undecided"
        return "beyond noise" if abs(self.mean) > self.half_width else "within noise"

    @property
    def words(self) -> str:
        """The difference and its verdict, as a cell of a table."""
        if self.n == 0:
            return "no seed in common"
        interval = f" ± {self.half_width:.2f}" if self.n > 1 else " on one seed"
        return f"{self.mean:+.2f}{interval} ({self.verdict})"


@dataclass(frozen=True)
class Collected:
    """All that a report on a folder says."""

    folder: Path
    scored: list[Scored]
    arms: list[Variant]
    searches: dict[str, dict[str, Any]]  # what `search` found, by its folder's name
    probings: dict[str, dict[str, Any]]  # what `select` found for students, by its folder's name
    studies: list[dict[str, Any]]  # what `study` found, in the order in which they are written about in the paper
    notes: list[str]  # runs that are unfinished, unreadable or there twice
    provenance: dict[str, str]

    def baseline(self, arm: Variant) -> Variant | None:
        """The same student, trained in the same way without a teacher."""
        return next((other for other in self.arms if other.family == arm.family and other.alone), None)

    def families(self) -> list[list[Variant]]:
        """Arms that can be compared, together."""
        return [
            [arm for arm in self.arms if arm.family == family]
            for family in dict.fromkeys(arm.family for arm in self.arms)
        ]


def collect(folder: Path) -> Collected:
    """Read every run below a folder; raises UserError when there is none."""
    check_exists(folder, "folder")
    runs, notes = [], []
    studies = _studies(folder, notes)
    searches, searched = _searches(folder, notes)
    probings = _probings(folder, notes)
    parts = [one / "trials" for one in searched] + [
        path.parent / "pilot_runs" for path in folder.rglob("pilot_search.json")
    ]
    for path in sorted(folder.rglob("run.json")):
        if any(part in path.parents for part in parts):
            continue  # a trial, a lesson
        try:
            run = open_trajectory(path.parent)
            for checkpoint in run.values():
                _ = checkpoint.sha256  # raises if it is damaged
            runs.append(run)
        except UserError as error:
            notes.append(f"left out: {error}")
    if (folder / "experiments.json").exists() and not studies:
        notes.append(
            "not finished: studies, of which these are the first runs; the same `checkpointkd reproduce` goes on"
        )
    why = f" ({notes[0]})" if notes else ""
    if not (runs or searches or probings or studies):
        raise UserError(f"there is no run in {folder}, nor in the folders below it, to report on{why}")
    names = {run.path: _name(run, folder) for run in runs}
    scored = [
        Scored(names[run.path], run, _shown(planes, run.selection()), run.selection())
        for run in runs
        if (planes := load_planes(run))
    ]
    for run in runs:
        if not run.complete:
            done = max((row.epoch for row in run.rows()), default=0)
            notes.append(f"not finished: {names[run.path]}, epoch {done} of {run.planned_epochs}")
    arms, doubled = _arms(runs, names)
    provenance = _provenance(runs) if runs else [*searches.values(), *probings.values(), *studies][0]["provenance"]
    return Collected(folder, scored, arms, searches, probings, studies, notes + doubled, provenance)


def _studies(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """What studies below a folder found; one that can't be read is noted."""
    found = []
    for path in sorted(folder.rglob("experiment.json")):
        try:
            result = storage.read_json(path)
            _check_study(result, path)
        except UserError as error:
            notes.append(f"left out: {error}")
            continue
        found.append(result)
    return sorted(
        found, key=lambda result: ORDER.index(result["experiment"]) if result["experiment"] in ORDER else len(ORDER)
    )


def _check_study(result: Any, path: Path) -> None:
    """Raise UserError unless this can be what a study found."""
    try:
        for figure in result["figures"]:
            from_plain(figure)
        for table in result["tables"]:
            Table(**table).check()
        for claim in map(claim_from, result["claims"]):
            Table(claim.text, [claim.where, *claim.cells()], [], claim.caveat).check()
        scale, provenance = result["preset"], result["provenance"]
        words = [scale["name"], scale["dataset"], scale["select_on"], *provenance, *provenance.values()]
        words += [one for pair in scale["pairs"] for one in (pair["teacher"], pair["student"])]
        Table(result["title"], [*result["notes"], result["experiment"], *words], []).check()
        counts = (scale["seeds"], scale["teacher_epochs"], scale["student_epochs"], scale["train_images"] or 0)
        right = isinstance(result["notes"], list) and all(isinstance(one, int) for one in counts)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        right = False
    if not right:
        raise UserError(f"{path} is damaged: it is no study's")


def _probings(folder: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    """What lessons below a folder found, by name; one that can't be read is noted."""
    found = {}
    for path in sorted(folder.rglob("pilot_search.json")):
        if not (path.parent / "pilot.json").exists():
            notes.append(f"not finished: the lessons in {path.parent.relative_to(folder)}")
    for path in sorted(folder.rglob("pilot.json")):
        relative = path.parent.relative_to(folder)
        name = str(relative) if relative.parts else path.parent.resolve().name
        try:
            found[name] = plain(records.read(path, PilotRecord, remedy="Run the same `select` again."))
        except UserError as error:
            notes.append(f"left out: {error}")
    return found


def _searches(folder: Path, notes: list[str]) -> tuple[dict[str, dict[str, Any]], list[Path]]:
    """What searches below a folder found, by name, and where these are; one that can't be read is noted."""
    found: dict[str, dict[str, Any]] = {}
    paths = sorted(folder.rglob("tune.json"))
    for path in paths:
        try:
            result = plain(records.read(path, TuneRecord, remedy="Run the same `tune` again."))
        except UserError as error:
            notes.append(f"left out: {error}")
            continue
        relative = path.parent.relative_to(folder)
        name = str(relative) if relative.parts else path.parent.resolve().name
        found[name] = result
        if len(result["trials"]) < result["planned"]:
            notes.append(f"not finished: the search {name}, {len(result['trials'])} of {result['planned']} trials")
    return found, [path.parent for path in paths]


def difference(arm: Variant, other: Variant) -> Difference:
    """The paired difference of two arms over the seeds that both have, in points.

    >>> a = Arm("s", "a", (), {0: 91.0, 1: 92.0, 2: 93.0}, family="")
    >>> b = Arm("s", "b", (), {0: 90.0, 1: 90.5, 2: 92.5}, family="")
    >>> difference(a, b).words
    '+1.00 ± 1.24 (within noise)'
    """
    seeds = sorted(arm.accuracy.keys() & other.accuracy.keys())
    found = paired([arm.accuracy[seed] - other.accuracy[seed] for seed in seeds])
    return Difference(found.n, found.mean, 0.0 if found.n > 1 and math.isnan(found.half_width) else found.half_width)


def _shown(planes: dict[str, Plane], selection: SelectionRecord | None) -> Plane:
    """The plane on which the choice was made, else the decoder's, else what there is."""
    used = None if selection is None else selection.estimator
    return planes.get(str(used)) or planes.get("decoder") or next(iter(planes.values()))


_FAMILY = ("model", "data", "recipe", "precision")  # what students that are compared must have in common
BY_PILOT = "chosen by pilot runs"
_TEACHING = ("method", "kd", "distill_config", "teachers", "label_smoothing")  # what they learned from


def _arms(runs: list[Trajectory], names: dict[Path, str]) -> tuple[list[Variant], list[str]]:
    """Students by what they learned from, and notes on runs that are there twice."""
    where = {
        checkpoint.sha256: (names[run.path], epoch, _epoch_word(run, epoch))
        for run in runs
        for epoch, checkpoint in run.items()
    }
    grouped: dict[tuple[str, str], list[Trajectory]] = {}
    for run in runs:
        if (result := run.result()) is not None and result.test is not None:
            grouped.setdefault((_part(run, _FAMILY), _part(run, _TEACHING)), []).append(run)
    taught = {teacher.sha256 for run in runs for teacher in run.run.teachers}
    with_students = {
        family
        for (family, _), members in grouped.items()
        if members[0].run.teachers or getattr(members[0].run, "label_smoothing", 0.0)
    }
    found, notes = [], []
    for (family, _), members in grouped.items():
        teachers = members[0].run.teachers
        known = [where.get(t.sha256, ("elsewhere", t.epoch, f"epoch {t.epoch}")) for t in teachers]
        is_teacher = not teachers and all(any(c.sha256 in taught for c in run.values()) for run in members)
        if is_teacher and family not in with_students:
            continue  # it is nobody's baseline
        accuracy: dict[int, float] = {}
        for run in members:
            result = run.result()
            assert result is not None
            assert result.test is not None
            if run.run.seed in accuracy:
                notes.append(f"{names[run.path]} is the same as another run here, and is counted once")
            accuracy.setdefault(run.run.seed, 100 * result.test.accuracy)
        smoothing = getattr(members[0].run, "label_smoothing", 0.0)
        alone = f"the uniform teacher (label smoothing {smoothing:g})" if smoothing else "no teacher"
        way = _way(members[0].run) if teachers else ""
        chosen = _chosen(members[0], runs)
        label = (" and ".join(word for _, _, word in known) or alone) + (f", {way}" if way else "")
        label += f", {chosen}" if chosen == BY_PILOT else ""
        who = tuple((name, epoch) for name, epoch, _ in known)
        arm = Variant(members[0].run.model, label, who, accuracy, family, smoothing, way, chosen != "")
        found.append((members[0], arm))
    found.sort(key=lambda pair: _order(pair[1]))
    return [_told_apart(run, arm, found) for run, arm in found], notes


def distilled(run: Trajectory) -> DistillRecord:
    """The record of a run that is known to be distilled."""
    assert isinstance(run.run, DistillRecord)
    return run.run


def _order(arm: Variant) -> tuple:
    return arm.student, arm.family, arm.smoothing, len(arm.teachers), arm.teachers, arm.way


def _way(run: AnyRun) -> str:
    """How teachers taught, in words, where it was not by the mean of their predictions and as they are."""
    assert isinstance(run, DistillRecord)
    distill_config, words = run.distill_config, []
    if run.method != "kd":
        words.append(f"by {run.method}")
    if distill_config.teacher_schedule != "joint":
        words.append(f"one after the other ({distill_config.teacher_schedule})")
    if distill_config.teacher_weights is not None:
        words.append(f"weighted {' : '.join(f'{weight:g}' for weight in distill_config.teacher_weights)}")
    if run.kd.average != "probabilities":
        words.append("mean of logits")
    if distill_config.teacher_batch_norm != "eval":
        words.append("normalized by batch")
    for name in ("teacher_features", "student_features"):
        if getattr(distill_config, name) is not None:
            words.append(f"{name.replace('_', ' ')} {' '.join(getattr(distill_config, name))}")
    return ", ".join(words)


def _told_apart(run: Trajectory, arm: Variant, found: list[tuple[Trajectory, Variant]]) -> Variant:
    """The arm, its label with those settings and teachers in which the same student's arms differ."""
    peers = [(other, one) for other, one in found if one.student == arm.student]

    def differ(value: Callable[[Trajectory, Variant], Any], only: Callable[[Variant], bool] = lambda one: True) -> bool:
        return len({value(other, one) for other, one in peers if only(one)}) > 1

    kd, words = getattr(run.run, "kd", None), []
    teachers = list(dict.fromkeys(name for name, _ in arm.teachers))
    if teachers and (len(teachers) > 1 or differ(lambda _, one: one.teachers[0][0], lambda one: bool(one.teachers))):
        words.append(f"from {', '.join(teachers)}")
    alike = lambda one: bool(one.teachers) and one.way == arm.way  # noqa: E731
    if kd and differ(lambda other, _: (distilled(other).kd.alpha, distilled(other).kd.tau), alike):
        words.append(f"α {kd.alpha:g}, τ {kd.tau:g}")
    if kd and differ(lambda other, _: distilled(other).distill_config.method_weight, alike):
        weight = distilled(run).distill_config.method_weight
        words.append("the usual weight" if weight is None else f"weight {weight:g}")
    if differ(lambda other, _: other.planned_epochs):
        words.append(pluralize(run.planned_epochs, "epoch"))
    if differ(lambda other, _: (other.run.data.train_size, other.run.data.sha256)):
        words.append(f"{run.run.data.train_size:,} images of {run.run.data.name}")
    if differ(lambda other, _: other.run.precision):
        words.append(run.run.precision)
    others = [one for other, one in peers if one is not arm and one.label == arm.label]
    same = [one for one in others if one.family == arm.family]
    if others and not words and not same:
        assert isinstance(run.run, OwnRunRecord)
        recipe = run.run.recipe
        words.append(f"batch {recipe.batch_size}, learning rate {recipe.learning_rate:g}")
    return replace(arm, label=f"{arm.label}; {', '.join(words)}") if words else arm


def _part(run: Trajectory, names: tuple[str, ...]) -> str:
    """Some of what a run is, as a key; where data lie is no part of it."""
    part = {name: getattr(run.run, name) for name in names if hasattr(run.run, name)}
    if "data" in part:
        part["data"] = run.run.data.identity
    return json.dumps(part, sort_keys=True, default=plain)


def _epoch_word(run: Trajectory, epoch: int) -> str:
    words = []
    if epoch == run.planned_epochs:
        words.append("full")
    if (run.complete or 2 * max(run) >= run.planned_epochs) and epoch == run.midpoint.epoch:
        words.append("half-way")
    selection = run.selection()
    if selection is not None and selection.rule != "pilot" and epoch in selection.epochs:
        words.append(f"chosen by {rule_name(selection.rule)}")
    return f"{run.unit} {epoch}" + (f" ({', '.join(words)})" if words else "")


def _chosen(student: Trajectory, runs: list[Trajectory]) -> str:
    """By what just these teachers were chosen, in words; by probing, for this student and with this α."""
    teachers = {teacher.sha256 for teacher in student.run.teachers}
    for run in runs:
        selection = run.selection()
        if selection is not None and teachers and teachers == {run[epoch].sha256 for epoch in selection.epochs}:
            found_for = (selection.student, selection.alpha)
            if selection.rule != "pilot" or found_for == (student.run.model, distilled(student).kd.alpha):
                return f"chosen by {rule_name(selection.rule)}"
    return ""


def rule_name(rule: str) -> str:
    """A rule as a reader knows it."""
    return {"algorithm1": "Algorithm 1", "pilot": "pilot runs"}.get(rule, f"the rule {rule!r}")


def _name(run: Trajectory, folder: Path) -> str:
    if run.external:
        return run.source.name
    relative = run.path.relative_to(folder)
    return str(relative) if relative.parts else run.path.name


def _provenance(runs: list[Trajectory]) -> dict[str, str]:
    """What a reviewer asks first: versions, machine, data, protocol, seeds."""

    def all_of(value: Callable[[AnyRun], object]) -> str:
        return "; ".join(dict.fromkeys(str(value(run.run)) for run in runs))

    def select_on(run: AnyRun) -> str:
        data = run.data
        return f"{data.select_on}: {data.train_size:,} images to train, {data.val_size:,} to select"

    return {
        "runs": str(len(runs)),
        "data": all_of(lambda run: f"{run.data.name}, content {run.data.sha256[:12]}"),
        "select_on": all_of(select_on),
        "seeds": ", ".join(map(str, sorted({run.run.seed for run in runs if not run.external}))),
        "precision": all_of(lambda run: run.precision),
        **{
            name: all_of(lambda run, name=name: getattr(run.provenance, name))
            for name in ("checkpointkd", "torch", "python", "machine")
        },
        "first run started": min(run.run.provenance.started for run in runs),
    }
