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

from scipy import stats

from .. import files
from ..errors import UserError, existing, require
from ..information import Plane, load_planes
from ..trajectory import Trajectory, open_trajectory

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Scored:
    """A trajectory on the information plane, with the selection that was made on it, if any."""

    name: str
    trajectory: Trajectory
    plane: Plane
    selection: dict[str, Any] | None


@dataclass(frozen=True)
class Arm:
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


@dataclass(frozen=True)
class Difference:
    """How much better one arm is than another, in points: paired over common seeds, with a 95 % interval (t)."""

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
    arms: list[Arm]
    searches: dict[str, dict[str, Any]]  # what `search` found, by its folder's name
    notes: list[str]  # runs that are unfinished, unreadable or there twice
    provenance: dict[str, str]

    def baseline(self, arm: Arm) -> Arm | None:
        """The same student, trained in the same way without a teacher."""
        return next((other for other in self.arms if other.family == arm.family and other.alone), None)

    def families(self) -> list[list[Arm]]:
        """Arms that can be compared, together."""
        return [
            [arm for arm in self.arms if arm.family == family]
            for family in dict.fromkeys(arm.family for arm in self.arms)
        ]


def collect(folder: Path) -> Collected:
    """Read every run below a folder; raises UserError when there is none."""
    existing(folder, "folder")
    runs, notes = [], []
    searches, searched = _searches(folder, notes)
    for path in sorted(folder.rglob("run.json")):
        if any(one in path.parents for one in searched):
            continue  # a trial
        try:
            runs.append(open_trajectory(path.parent))
        except UserError as error:
            notes.append(f"left out: {error}")
    why = f" ({notes[0]})" if notes else ""
    require(bool(runs or searches), f"there is no run in {folder}, nor in the folders below it, to report on{why}")
    names = {run.path: _name(run, folder) for run in runs}
    scored = [
        Scored(names[run.path], run, _shown(planes, run.selection()), run.selection())
        for run in runs
        if (planes := load_planes(run))
    ]
    for run in runs:
        if not run.complete:
            done = max((row["epoch"] for row in run.rows()), default=0)
            notes.append(f"not finished: {names[run.path]}, epoch {done} of {run.planned_epochs}")
    arms, doubled = _arms(runs, names)
    provenance = _provenance(runs) if runs else next(iter(searches.values()))["provenance"]
    return Collected(folder, scored, arms, searches, notes + doubled, provenance)


def _searches(folder: Path, notes: list[str]) -> tuple[dict[str, dict[str, Any]], list[Path]]:
    """What searches below a folder found, by name, and where these are; one that can't be read is noted."""
    found: dict[str, dict[str, Any]] = {}
    paths = sorted(folder.rglob("search.json"))
    for path in paths:
        try:
            result = files.read_json(path)
            if not isinstance(result, dict) or not _is_search(result):
                raise UserError(f"{path} is damaged: it is no search's")
        except UserError as error:
            notes.append(f"left out: {error}")
            continue
        relative = path.parent.relative_to(folder)
        name = str(relative) if relative.parts else path.parent.resolve().name
        found[name] = result
        if len(result["trials"]) < result["planned"]:
            notes.append(f"not finished: the search {name}, {len(result['trials'])} of {result['planned']} trials")
    return found, [path.parent for path in paths]


def _is_search(result: dict[str, Any]) -> bool:
    """Whether this can be what a search found."""
    try:
        values = all(set(trial["values"]) == set(result["space"]) for trial in result["trials"])
        texts = all(isinstance(result[name], str) for name in ("student", "method"))
        teachers = all(isinstance(one, str) for one in result["teacher_addresses"])
        numbers = [trial["accuracy"] for trial in result["trials"]]
        best = result["best"] is None or isinstance(result["best"]["accuracy_se"], float)
        sound = all(number is None or 0 <= number <= 1 for number in numbers)
        sizes = isinstance(result["planned"], int) and isinstance(result["images"], int)
        return values and texts and teachers and best and sound and sizes and isinstance(result["provenance"], dict)
    except (KeyError, TypeError):
        return False


def difference(arm: Arm, other: Arm) -> Difference:
    """The paired difference of two arms over the seeds that both have, in points.

    >>> a = Arm("s", "a", (), {0: 91.0, 1: 92.0, 2: 93.0}, family="")
    >>> b = Arm("s", "b", (), {0: 90.0, 1: 90.5, 2: 92.5}, family="")
    >>> difference(a, b).words
    '+1.00 ± 1.24 (within noise)'
    """
    seeds = sorted(arm.accuracy.keys() & other.accuracy.keys())
    gaps = [arm.accuracy[seed] - other.accuracy[seed] for seed in seeds]
    if len(gaps) < 2:
        return Difference(len(gaps), fmean(gaps) if gaps else math.nan, math.nan)
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(gaps) - 1))
    return Difference(len(gaps), fmean(gaps), quantile * stdev(gaps) / math.sqrt(len(gaps)))


def _shown(planes: dict[str, Plane], selection: dict[str, Any] | None) -> Plane:
    """The plane on which the choice was made, else the decoder's, else what there is."""
    used = ((selection or {}).get("made_with") or {}).get("estimator")
    return planes.get(str(used)) or planes.get("decoder") or next(iter(planes.values()))


_FAMILY = ("model", "data", "recipe", "precision")  # what students that are compared must have in common
_TEACHING = ("method", "kd", "teaching", "teachers", "label_smoothing")  # what they learned from


def _arms(runs: list[Trajectory], names: dict[Path, str]) -> tuple[list[Arm], list[str]]:
    """Students by what they learned from, and notes on runs that are there twice."""
    where = {
        checkpoint.sha256: (names[run.path], epoch, _epoch_word(run, epoch))
        for run in runs
        for epoch, checkpoint in run.items()
    }
    grouped: dict[tuple[str, str], list[Trajectory]] = {}
    for run in runs:
        if "test" in (run.result() or {}):
            grouped.setdefault((_part(run, _FAMILY), _part(run, _TEACHING)), []).append(run)
    taught = {teacher["sha256"] for run in runs for teacher in run.run.get("teachers", [])}
    with_students = {
        family
        for (family, _), members in grouped.items()
        if members[0].run.get("teachers") or members[0].run.get("label_smoothing")
    }
    found, notes = [], []
    for (family, _), members in grouped.items():
        teachers = members[0].run.get("teachers", [])
        known = [where.get(t["sha256"], ("elsewhere", t["epoch"], f"epoch {t['epoch']}")) for t in teachers]
        is_teacher = not teachers and all(any(c.sha256 in taught for c in run.values()) for run in members)
        if is_teacher and family not in with_students:
            continue  # it is nobody's baseline
        accuracy: dict[int, float] = {}
        for run in members:
            result = run.result()
            assert result is not None
            if run.run["seed"] in accuracy:
                notes.append(f"there twice, counted once: {names[run.path]}")
            accuracy.setdefault(run.run["seed"], 100 * result["test"]["accuracy"])
        smoothing = members[0].run.get("label_smoothing", 0.0)
        alone = f"the uniform teacher (label smoothing {smoothing:g})" if smoothing else "no teacher"
        way = _way(members[0].run) if teachers else ""
        label = (" and ".join(word for _, _, word in known) or alone) + (f", {way}" if way else "")
        who = tuple((name, epoch) for name, epoch, _ in known)
        found.append((members[0], Arm(members[0].run["model"], label, who, accuracy, family, smoothing, way)))
    found.sort(key=lambda pair: _order(pair[1]))
    arms = [arm for _, arm in found]
    return [_told_apart(run, arm, arms) for run, arm in found], notes


def _order(arm: Arm) -> tuple:
    return arm.student, arm.family, arm.smoothing, len(arm.teachers), arm.teachers, arm.way


def _way(run: dict[str, Any]) -> str:
    """How teachers taught, in words, where it was not by the mean of their predictions and as they are."""
    teaching, words = run["teaching"], []
    if run["method"] != "kd":
        words.append(f"by {run['method']}")
    if teaching["route"] != "together":
        words.append(f"one after the other ({teaching['route']})")
    if teaching["weights"] is not None:
        words.append(f"weighted {' : '.join(f'{weight:g}' for weight in teaching['weights'])}")
    if run["kd"]["average"] != "probabilities":
        words.append("mean of logits")
    if teaching["batch_norm"] != "eval":
        words.append("normalised by batch")
    for name in ("teacher_features", "student_features"):
        if teaching[name] is not None:
            words.append(f"{name.replace('_', ' ')} {' '.join(teaching[name])}")
    return ", ".join(words)


def _told_apart(run: Trajectory, arm: Arm, arms: list[Arm]) -> Arm:
    """The arm, its label with the settings and the teachers' run where another arm would have the same."""
    if sum(other.label == arm.label and other.student == arm.student for other in arms) < 2:
        return arm
    kd = run.run.get("kd", {})
    words = [f"from {', '.join(dict.fromkeys(name for name, _ in arm.teachers))}"] if arm.teachers else []
    words += [f"α {kd['alpha']:g}, τ {kd['tau']:g}"] if kd else []
    weight = run.run.get("teaching", {}).get("weight")
    words += [f"weight {weight:g}"] if weight is not None else []
    words += [f"{run.planned_epochs} epochs", f"{run.run['data']['train_size']:,} images of {run.run['data']['data']}"]
    words += [run.run["precision"]]
    return replace(arm, label=f"{arm.label}; {', '.join(words)}")


def _part(run: Trajectory, names: tuple[str, ...]) -> str:
    """Some of what a run is, as a key; where data lie is no part of it."""
    part = {name: run.run[name] for name in names if name in run.run}
    if "data" in part:
        part["data"] = {name: value for name, value in part["data"].items() if name != "source"}
    return json.dumps(part, sort_keys=True)


def _epoch_word(run: Trajectory, epoch: int) -> str:
    words = []
    if epoch == run.planned_epochs:
        words.append("full")
    if epoch == run.half.epoch:
        words.append("half-way")
    selection = run.selection()
    if selection is not None and selection["epoch"] == epoch:
        words.append(f"chosen by {rule_name(selection['rule'])}")
    return f"{run.unit} {epoch}" + (f" ({', '.join(words)})" if words else "")


def rule_name(rule: str) -> str:
    """A rule as a reader knows it."""
    return "Algorithm 1" if rule == "paper" else f"the rule {rule!r}"


def _name(run: Trajectory, folder: Path) -> str:
    if run.foreign:
        return run.source.name
    relative = run.path.relative_to(folder)
    return str(relative) if relative.parts else run.path.name


def _provenance(runs: list[Trajectory]) -> dict[str, str]:
    """What a reviewer asks first: versions, machine, data, protocol, seeds."""

    def all_of(value: Callable[[dict[str, Any]], object]) -> str:
        return "; ".join(dict.fromkeys(str(value(run.run)) for run in runs))

    def protocol(run: dict[str, Any]) -> str:
        data = run["data"]
        return f"{data['protocol']}: {data['train_size']:,} images to train, {data['selection_size']:,} to select"

    return {
        "runs": str(len(runs)),
        "data": all_of(lambda run: f"{run['data']['data']}, content {run['data']['sha256'][:12]}"),
        "protocol": all_of(protocol),
        "seeds": ", ".join(map(str, sorted({run.run["seed"] for run in runs if not run.foreign}))),
        "precision": all_of(lambda run: run["precision"]),
        **{
            name: all_of(lambda run, name=name: run["provenance"].get(name, "?"))
            for name in ("checkpointkd", "torch", "python", "machine")
        },
        "first run started": min(str(run.run["provenance"].get("started", "?")) for run in runs),
    }
