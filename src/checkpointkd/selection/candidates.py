"""The candidates of a pilot search: every method with every set of teachers, and training without a teacher."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..checkpoints import CheckpointRef, Trajectory, find_checkpoint
from ..distill_config import KDConfig, PilotConfig
from ..errors import UserError
from ..records.selection import teachers_in_words
from .effects import Level

log = logging.getLogger("checkpointkd")

LAST, EARLIER, SEVERAL, AVERAGE = "last", "earlier", "several", "average"  # kinds of teachers
KD = "kd"
LONGEST_NAME = 100  # of a folder, in characters; a hash replaces the rest of a longer name


@dataclass(frozen=True, order=True)
class Candidate:
    """One full way to teach: teachers, a method and α.

    `teachers` are epochs and weight averages, written like the part of a reference after the @. Training without a
    teacher has none.
    """

    teachers: tuple[str, ...]
    kind: str
    method: str
    alpha: float | None = None

    def describe(self, unit: str = "epoch") -> str:
        """Return the candidate in words.

        >>> Candidate(("15", "30"), SEVERAL, "kd", 0.5).describe(), NO_TEACHER.describe()
        ('kd from epochs 15 + 30, alpha 0.5', 'no teacher')
        """
        if not self.teachers:
            return self.method
        alpha = "" if self.alpha is None else f", alpha {self.alpha!r}"
        return f"{self.method} from {teachers_in_words(self.teachers, unit)}{alpha}"

    @property
    def method_level(self) -> Level:
        """The method with its α. The prior has effects of α 0.5 and 0.1; the effect of another α is interpolated."""
        if self.alpha is None:
            return Level(self.method, ((self.method, 1.0),))
        small = min(max((0.5 - self.alpha) / 0.4, 0.0), 1.0)
        return Level(f"{self.method} {self.alpha!r}", ((f"{self.method}, α 0.1", small),))

    @property
    def teachers_level(self) -> Level:
        """The set of teachers. The prior has one effect for each kind of set."""
        return Level("+".join(self.teachers), ((self.kind, 1.0),))

    @property
    def folder_name(self) -> str:
        """The first part of the name of the pilot run's directory."""
        if not self.teachers:
            return "no-teacher"
        alpha = "" if self.alpha is None else f"-alpha-{self.alpha!r}"
        name = f"{self.method}-from-{'+'.join(self.teachers)}{alpha}".replace(":", "-")
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{digest}"


NO_TEACHER = Candidate((), "none", "no teacher")


def candidates_of(
    trajectory: Trajectory, *, methods: Sequence[str], alphas: Sequence[float], teachers: Sequence[str]
) -> list[Candidate]:
    """Return no teacher, then every method with every set of teachers that the run has.

    Args:
        trajectory: The teacher's run.
        methods: Names of methods.
        alphas: The weights of the labels to try with `kd`.
        teachers: Sets of teachers, as for `PilotConfig`.

    Raises:
        UserError: If the run has none of the sets of teachers, or if a set is not a valid reference.
    """
    found = [NO_TEACHER]
    for kind, names in _sets(trajectory, teachers):
        for method in methods:
            for alpha in alphas if method == KD else (None,):
                found.append(Candidate(names, kind, method, alpha))
    return found


def default_candidate(trajectory: Trajectory) -> Candidate:
    """Return the usual way to teach: `kd` from the last checkpoint, with the default α."""
    return Candidate((str(max(trajectory)),), LAST, KD, KDConfig.alpha)


def refs_of(trajectory: Trajectory, candidate: Candidate) -> tuple[CheckpointRef, ...]:
    """Return the checkpoints that teach."""
    return tuple(
        CheckpointRef(f"{trajectory.source}@{name}", find_checkpoint(trajectory, name)) for name in candidate.teachers
    )


def _sets(trajectory: Trajectory, teachers: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the kind and the names of each set of teachers, each set once."""
    seen: set[tuple[str, ...]] = set()
    problems: list[str] = []
    for text in teachers:
        try:
            kind, names = _resolved(trajectory, text)
        except UserError as error:
            if text not in PilotConfig.teachers:
                raise UserError(f"--teachers-from {text}: {error}") from None
            log.info("Not compared: teachers %s. %s", text, error)
            problems.append(str(error))
            continue
        if names not in seen:
            seen.add(names)
            yield kind, names
    if not seen:
        raise UserError(f"{trajectory.source} has no teachers to compare: {'; '.join(problems)}")


def _resolved(trajectory: Trajectory, text: str) -> tuple[str, tuple[str, ...]]:
    """Return the kind of a set of teachers, and the epoch or weight average of each of its teachers."""
    if "best" in text.split("+"):
        raise UserError("the search itself changes RUN@best. Name the epoch, or the weight average")
    parts = [str(max(trajectory)) if part == "last" else part for part in text.split("+")]  # in an unfinished run too
    checkpoints = [find_checkpoint(trajectory, part) for part in parts]
    if not trajectory.complete and any(checkpoint.average for checkpoint in checkpoints):
        raise UserError("the run is not finished, so its weight averages will change. Finish the run, or name epochs")
    names = tuple(dict.fromkeys(checkpoint.average or str(checkpoint.epoch) for checkpoint in checkpoints))
    if len(names) > 1:
        return SEVERAL, names
    if checkpoints[0].average:
        return AVERAGE, names
    return LAST if names == (str(max(trajectory)),) else EARLIER, names
