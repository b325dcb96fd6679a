"""What runs left in a folder, as plain data: everything that a report draws or says is made here and can be tested.

Runs know nothing of reports; this reads their files.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from .. import files
from ..errors import existing, require
from ..information import Plane, load_plane
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
    """Students that differ in nothing but their seed: what they learned from, and how well, in percent by seed."""

    student: str
    label: str
    teachers: tuple[tuple[str, int], ...]  # (run's name, epoch)
    settings: dict[str, Any]
    accuracy: dict[int, float]
    key: str = field(repr=False)

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
    def words(self) -> str:
        """The difference as a sentence's part, saying plainly when it is within noise."""
        if self.n < 2:
            return f"{self.mean:+.2f} (one seed: undecided)"
        verdict = "beyond noise" if abs(self.mean) > self.half_width else "within noise"
        return f"{self.mean:+.2f} ± {self.half_width:.2f} ({verdict})"


@dataclass(frozen=True)
class Collected:
    """All that a report on a folder says."""

    folder: Path
    scored: list[Scored]
    arms: list[Arm]
    unfinished: list[str]
    provenance: dict[str, str]

    def baseline(self, arm: Arm) -> Arm | None:
        """The same student without a teacher."""
        return next((other for other in self.arms if other.student == arm.student and not other.teachers), None)


def collect(folder: Path) -> Collected:
    """Read every run below a folder; raises UserError when there is none."""
    existing(folder, "folder")
    runs = [open_trajectory(path.parent) for path in sorted(folder.rglob("run.json"))]
    require(bool(runs), f"there is no run in {folder}, nor in the folders below it, to report on")
    names = {run.path: _name(run, folder) for run in runs}
    scored = [
        Scored(names[run.path], run, plane, _selection(run))
        for run in runs
        if (plane := load_plane(run, missing_ok=True)) is not None
    ]
    return Collected(
        folder=folder,
        scored=scored,
        arms=_arms(runs, names),
        unfinished=[
            f"{names[run.path]}: epoch {max((row['epoch'] for row in run.rows()), default=0)} of {run.planned_epochs}"
            for run in runs
            if not run.complete
        ],
        provenance=_provenance(runs),
    )


def difference(arm: Arm, other: Arm) -> Difference:
    """The paired difference of two arms over the seeds that both have, in points.

    >>> a = Arm("s", "a", (), {}, {0: 91.0, 1: 92.0, 2: 93.0}, "a")
    >>> b = Arm("s", "b", (), {}, {0: 90.0, 1: 90.5, 2: 92.5}, "b")
    >>> difference(a, b).words
    '+1.00 ± 1.24 (within noise)'
    """
    seeds = sorted(arm.accuracy.keys() & other.accuracy.keys())
    gaps = [arm.accuracy[seed] - other.accuracy[seed] for seed in seeds]
    if len(gaps) < 2:
        return Difference(len(gaps), fmean(gaps) if gaps else math.nan, math.nan)
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(gaps) - 1))
    return Difference(len(gaps), fmean(gaps), quantile * stdev(gaps) / math.sqrt(len(gaps)))


def _arms(runs: list[Trajectory], names: dict[Path, str]) -> list[Arm]:
    """Students by what they learned from. A run that taught others and had no teacher is a teacher, not a student."""
    where = {
        checkpoint.sha256: (names[run.path], epoch, _epoch_word(run, epoch))
        for run in runs
        for epoch, checkpoint in run.items()
    }
    taught = {teacher["sha256"] for run in runs for teacher in run.run.get("teachers", [])}
    grouped: dict[str, list[Trajectory]] = {}
    for run in runs:
        is_teacher = run.run["kind"] == "train" and any(checkpoint.sha256 in taught for checkpoint in run.values())
        if run.complete and not is_teacher:
            what = {key: value for key, value in run.run.items() if key in _SAME_IN_AN_ARM}
            grouped.setdefault(json.dumps(what, sort_keys=True), []).append(run)
    arms = []
    for key, members in grouped.items():
        teachers = members[0].run.get("teachers", [])
        found = [
            where.get(teacher["sha256"], ("?", teacher["epoch"], f"epoch {teacher['epoch']}")) for teacher in teachers
        ]
        arms.append(
            Arm(
                student=members[0].run["model"],
                label=" and ".join(word for _, _, word in found) or "no teacher",
                teachers=tuple((name, epoch) for name, epoch, _ in found),
                settings=members[0].run.get("kd", {}),
                accuracy={run.run["seed"]: 100 * run.result()["test"]["accuracy"] for run in members},  # type: ignore[index]
                key=key,
            )
        )
    return sorted(arms, key=lambda arm: (arm.student, len(arm.teachers), arm.teachers))


_SAME_IN_AN_ARM = ("kind", "model", "data", "recipe", "precision", "method", "kd", "teachers")


def _epoch_word(run: Trajectory, epoch: int) -> str:
    words = []
    if epoch == run.planned_epochs:
        words.append("full")
    if epoch == run.half.epoch:
        words.append("half-way")
    selection = _selection(run)
    if selection is not None and selection["epoch"] == epoch:
        words.append(f"chosen by {selection['rule']}")
    return f"epoch {epoch}" + (f" ({', '.join(words)})" if words else "")


def _selection(run: Trajectory) -> dict[str, Any] | None:
    path = run.path / "selection.json"
    return files.read_json(path) if path.exists() else None


def _name(run: Trajectory, folder: Path) -> str:
    relative = run.path.relative_to(folder)
    return str(relative) if relative.parts else run.path.name


def _provenance(runs: list[Trajectory]) -> dict[str, str]:
    """What a reviewer asks first: versions, machine, data, protocol, seeds."""
    first = runs[0].run
    data = first["data"]
    seeds = sorted({run.run["seed"] for run in runs})
    return {
        "runs": str(len(runs)),
        "data": f"{data['data']}, content {data['sha256'][:12]}",
        "protocol": f"{data['protocol']}: {data['train_size']:,} images to train, {data['selection_size']:,} to select",
        "seeds": ", ".join(map(str, seeds)),
        "precision": ", ".join(sorted({run.run["precision"] for run in runs})),
        **{name: value for name, value in first["provenance"].items() if name != "started"},
        "first run started": first["provenance"]["started"],
    }
