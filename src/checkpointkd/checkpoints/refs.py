"""Resolve checkpoint references: `runs/teacher@160`, `@0.5`, `@midpoint`, `@last`, `@best`.

An integer is an epoch. A decimal in (0, 1] is a fraction of the planned epochs, and stands for the nearest saved epoch.
A run directory alone stands for `@last`. `@mean:0.7-1.0` and `@decay-mean:0.9` are weight averages.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import NoSuchEpoch, UserError, pluralize, unknown_name
from .averages import FORMS, average, names_average
from .trajectory import Checkpoint, Trajectory, open_trajectory

log = logging.getLogger("checkpointkd")

WORDS = ("midpoint", "last", "best")
ENSEMBLES = {  # how each is written, and from how many runs it is made; None: from K
    "snapshot": ("snapshot:K", 1),
    "full": ("full:K", None),
    "mixed": ("mixed", 2),
    "all": ("all", 1),
}


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint, and the reference that named it."""

    text: str
    checkpoint: Checkpoint

    def __str__(self) -> str:
        return f"{self.text} = epoch {self.checkpoint.epoch}"


def resolve(ref: str) -> CheckpointRef:
    """Return the checkpoint that a reference names.

    Raises:
        UserError: If the run, the epoch or the selection does not exist, or if the reference names several checkpoints.
    """
    refs = resolve_all(ref)
    if len(refs) != 1:
        raise UserError(f"{ref} is an ensemble ({', '.join(member.text for member in refs)}). Name one checkpoint.")
    return refs[0]


def resolve_all(ref: str) -> list[CheckpointRef]:
    """Return the checkpoints that a reference names: several for `@best` where an ensemble was chosen."""
    path, at, which = ref.rpartition("@")
    if not at or _exists(ref):  # a folder's name may hold an @
        path, which = ref, "last"
    _check_form(ref, which)
    trajectory = open_trajectory(Path(path))
    warn_if_new_files(trajectory)
    if which == "best" and len(names := _selected(trajectory)) > 1:
        return [CheckpointRef(f"{path}@{name}", find_checkpoint(trajectory, name)) for name in names]
    return [CheckpointRef(ref, find_checkpoint(trajectory, which))]


def last_of(ref: CheckpointRef) -> CheckpointRef:
    """Return the last saved checkpoint of the run that a reference names a checkpoint of."""
    path, at, _ = ref.text.rpartition("@")
    path = path if at and not _exists(ref.text) else ref.text
    trajectory = open_trajectory(Path(path))
    return CheckpointRef(f"{path}@{max(trajectory)}", trajectory[max(trajectory)])


def resolve_ensemble(teachers: Sequence[str], ensemble: str | None = None) -> list[CheckpointRef]:
    """Return the teachers, by their references, or those that an ensemble's name picks from runs.

    `snapshot:K` is the last checkpoint of one run and K − 1 equally spaced ones before it. `full:K` is the last
    checkpoints of K runs. `mixed` is the midpoint of the first run and the last checkpoint of the second (EN2 of the
    paper). `all` is every saved checkpoint of one run. The order is that of training.

    Raises:
        UserError: If the runs have no such ensemble.
    """
    if ensemble is None:
        return [ref for teacher in teachers for ref in resolve_all(teacher)]
    kind, _, count = ensemble.partition(":")
    if kind not in ENSEMBLES:
        raise unknown_name("ensemble", ensemble, [form for form, _ in ENSEMBLES.values()])
    form, runs = ENSEMBLES[kind]
    takes_number = form.endswith(":K")
    if not (re.fullmatch(r"[1-9][0-9]{0,4}", count) if takes_number else ensemble == kind):
        raise UserError(
            f"Unknown ensemble {ensemble!r}. Write {form}{', where K is at least 1' if takes_number else ''}."
        )
    expected = int(count) if runs is None else runs
    if len(teachers) != expected:
        raise UserError(f"--ensemble {ensemble} takes {pluralize(expected, 'run')}, not {len(teachers)}")
    for teacher in teachers:
        if "@" in teacher and not _exists(teacher):
            raise UserError(
                f"--ensemble {ensemble} picks the checkpoints itself. Name runs without @, not {teacher!r}."
            )
    if kind == "full":
        return [resolve(f"{teacher}@last") for teacher in teachers]
    if kind == "mixed":
        return [resolve(f"{teachers[0]}@midpoint"), resolve(f"{teachers[1]}@last")]
    trajectory = open_trajectory(Path(teachers[0]))
    warn_if_new_files(trajectory)
    epochs = list(trajectory) if kind == "all" else _equally_spaced(trajectory, int(count))
    if not epochs:
        raise UserError(f"The run in {trajectory.source} has saved no checkpoint yet")
    log.info("%s of %s: %ss %s", ensemble, teachers[0], trajectory.unit, ", ".join(map(str, epochs)))
    return [CheckpointRef(f"{teachers[0]}@{epoch}", trajectory[epoch]) for epoch in epochs]


def _equally_spaced(trajectory: Trajectory, count: int) -> list[int]:
    """Return the last epoch and `count` − 1 equally spaced ones before it."""
    unit = trajectory.unit
    if count > len(trajectory):
        saved = f"{len(trajectory)} ({unit}s {', '.join(map(str, trajectory))})"
        raise UserError(f"snapshot:{count} needs {count} checkpoints, and {trajectory.source} has {saved}")
    checkpoints = [trajectory.at(number / count) for number in range(1, count)] + [trajectory.last]
    epochs = [checkpoint.epoch for checkpoint in checkpoints]
    if len(set(epochs)) != count:
        raise UserError(
            f"{trajectory.source} has no {count} equally spaced checkpoints. The checkpoints nearest to {count} equal "
            f"parts of its {trajectory.planned_epochs} {unit}s are {', '.join(map(str, epochs))}. Name checkpoints "
            "with --teachers."
        )
    return epochs


def warn_if_new_files(trajectory: Trajectory) -> None:
    """Warn if another trainer's folder holds checkpoints that are new or changed since it was inspected."""
    if names := trajectory.new_files():
        log.warning(
            "%s holds checkpoints that are new or changed since it was inspected (%s). To use them, run `checkpointkd "
            "inspect %s`",
            trajectory.source,
            ", ".join(names[:3]),
            trajectory.source,
        )


def find_checkpoint(trajectory: Trajectory, which: str) -> Checkpoint:
    """Return the checkpoint or weight average that a reference names after its @.

    `which` is an epoch (`160`), a fraction (`0.5`), `midpoint`, `last`, a weight average (`mean:0.7-1.0`), or `best` if
    `select` has chosen a teacher.
    """
    _check_form(which, which)
    if names_average(which):
        return average(trajectory, which)
    if which == "last":
        return trajectory.last
    if which == "midpoint":
        return trajectory.midpoint
    if which == "best":
        return find_checkpoint(trajectory, _selected(trajectory)[0])
    if which.isdecimal():
        return trajectory[int(which)]
    return trajectory.at(float(which))


def _check_form(ref: str, which: str) -> None:
    if not (names_average(which) or which in WORDS or re.fullmatch(r"[0-9]{1,9}|[0-9]{0,9}\.[0-9]{1,9}", which)):
        raise UserError(
            f"{ref!r} is not a checkpoint reference. After @ comes an epoch (160), a fraction of the planned epochs "
            f"(0.5), one of {', '.join(WORDS)}, or a weight average: {FORMS}."
        )


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # longer than a path can be
        return False


def _selected(trajectory: Trajectory) -> list[str]:
    """Return the epochs and weight averages that `select` chose."""
    selection = trajectory.selection()
    if selection is None:
        raise NoSuchEpoch(
            f"Nothing has been selected in {trajectory.source} yet. Run `checkpointkd score {trajectory.source}` and "
            f"`checkpointkd select {trajectory.source}` first."
        )
    if not selection.names:
        raise UserError(
            f"`select` chose no teacher from {trajectory.source} for {selection.student or 'the student'}. Train the "
            "student with `checkpointkd train`, or name a checkpoint."
        )
    if "best" in selection.names:
        raise UserError(
            f"{trajectory.path / 'selection.json'} is damaged: its choice is `best` itself. Run `checkpointkd select` "
            "again."
        )
    return list(selection.names)
