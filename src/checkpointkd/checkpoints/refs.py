"""Checkpoints by address: `runs/teacher@160`, `@0.5`, `@midpoint`, `@last`, `@best`; a bare run is `@last`.

An integer is an epoch; a decimal in (0, 1] is a fraction of the planned epochs, whose nearest saved epoch is taken.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import NoSuchEpoch, UserError, unknown_name
from .trajectory import Checkpoint, Trajectory, open_trajectory

log = logging.getLogger("checkpointkd")

WORDS = ("midpoint", "last", "best")


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint, and how it was asked for."""

    text: str
    checkpoint: Checkpoint

    def __str__(self) -> str:
        return f"{self.text} = epoch {self.checkpoint.epoch}"


def resolve(address: str) -> CheckpointRef:
    """The checkpoint at an address; raises UserError when the run, the epoch or the selection isn't there."""
    found = resolve_all(address)
    if len(found) != 1:
        raise UserError(
            f"{address} is several checkpoints that teach together ({', '.join(one.text for one in found)}): name one"
        )
    return found[0]


def resolve_all(address: str) -> list[CheckpointRef]:
    """The same for an address that may stand for several checkpoints, as @best does where these were chosen."""
    path, at, which = address.rpartition("@")
    if not at or _exists(address):  # an @ may be part of a folder's name
        path, which = address, "last"
    if not _is_which(which):
        raise UserError(
            f"{address!r} names no checkpoint: after @ comes an epoch (160), a fraction of the planned epochs (0.5), "
            f"or one of {', '.join(WORDS)}"
        )
    trajectory = open_trajectory(Path(path))
    warn_if_new_files(trajectory)
    if which == "best" and len(epochs := _selected(trajectory)) > 1:
        return [CheckpointRef(f"{path}@{epoch}", trajectory[epoch]) for epoch in epochs]
    return [CheckpointRef(address, find_checkpoint(trajectory, which))]


def resolve_ensemble(teachers: Sequence[str], ensemble: str | None = None) -> list[CheckpointRef]:
    """The checkpoints that teach together, by their addresses, or those that a word for an ensemble picks from runs.

    `snapshot:k` is one run's end and k − 1 equally spaced checkpoints before it; `full:k` the ends of k runs; `mixed`
    half-way of the first run and the end of the second (the paper's EN2); `all` every saved checkpoint of one run.
    Always in the order of training. Raises UserError when the runs hold no such ensemble.
    """
    if ensemble is None:
        return [address for teacher in teachers for address in resolve_all(teacher)]
    kind, _, count = ensemble.partition(":")
    known = {"snapshot": ("snapshot:K", 1), "full": ("full:K", None), "mixed": ("mixed", 2), "all": ("all", 1)}
    if kind not in known:
        raise unknown_name("ensemble", ensemble, [word for word, _ in known.values()])
    word, runs = known[kind]
    takes_number = word.endswith(":K")
    if not (bool(re.fullmatch(r"[1-9][0-9]{0,4}", count)) if takes_number else ensemble == kind):
        raise UserError(
            f"an ensemble {kind!r} is written {word}{', K being 1 or more' if takes_number else ''}, not {ensemble!r}"
        )
    wanted = int(count) if runs is None else runs
    if len(teachers) != wanted:
        raise UserError(
            f"--ensemble {ensemble} is made from {wanted} run{'s' if wanted > 1 else ''}, and {len(teachers)} are named"
        )
    for teacher in teachers:
        if not ("@" not in teacher or _exists(teacher)):
            raise UserError(
                f"--ensemble {ensemble} picks the checkpoints itself: name runs, without @, not {teacher!r}"
            )
    if kind == "full":
        return [resolve(f"{teacher}@last") for teacher in teachers]
    if kind == "mixed":
        return [resolve(f"{teachers[0]}@midpoint"), resolve(f"{teachers[1]}@last")]
    trajectory = open_trajectory(Path(teachers[0]))
    warn_if_new_files(trajectory)
    if kind == "all":
        epochs = list(trajectory)
        if not epochs:
            raise UserError(f"the run in {trajectory.source} has saved no checkpoint yet")
    else:
        size = int(count)
        if not size <= len(trajectory):
            raise UserError(
                f"{ensemble} needs {size} checkpoints, and {trajectory.source} has {len(trajectory)} "
                f"({trajectory.unit}s {', '.join(map(str, trajectory))})"
            )
        picked = [trajectory.at(number / size) for number in range(1, size)] + [trajectory.last]
        epochs = [checkpoint.epoch for checkpoint in picked]
        if len(set(epochs)) != size:
            raise UserError(
                f"{trajectory.source} has no {size} equally spaced checkpoints: the nearest to each {size}th part of its "
                f"{trajectory.planned_epochs} {trajectory.unit}s are {', '.join(map(str, epochs))}; name those you want "
                "with --teachers"
            )
        log.info("%s of %s: %ss %s", ensemble, teachers[0], trajectory.unit, ", ".join(map(str, epochs)))
    return [CheckpointRef(f"{teachers[0]}@{epoch}", trajectory[epoch]) for epoch in epochs]


def warn_if_new_files(trajectory: Trajectory) -> None:
    """Warn when another trainer's folder holds what nobody has looked at yet."""
    if news := trajectory.new_files():
        log.warning(
            "in %s there are checkpoints that are new or changed since it was looked at (%s); `checkpointkd inspect %s`"
            " or `score` takes them in",
            trajectory.source,
            ", ".join(news[:3]),
            trajectory.source,
        )


def find_checkpoint(trajectory: Trajectory, which: str) -> Checkpoint:
    """The checkpoint of a trajectory that `160`, `0.5`, `half`, `full` or, where one was chosen, `best` stands for."""
    if which == "last":
        return trajectory.last
    if which == "midpoint":
        return trajectory.midpoint
    if which == "best":
        return trajectory[_selected(trajectory)[0]]
    if which.isdigit():
        return trajectory[int(which)]
    return trajectory.at(float(which))


def _is_which(text: str) -> bool:
    return text in WORDS or re.fullmatch(r"[0-9]{1,9}|[0-9]{0,9}\.[0-9]{1,9}", text) is not None


def _exists(address: str) -> bool:
    try:
        return Path(address).exists()
    except OSError:  # longer than a path can be
        return False


def _selected(trajectory: Trajectory) -> list[int]:
    selection = trajectory.selection()
    if selection is None:
        raise NoSuchEpoch(
            f"nothing has been selected in {trajectory.source} yet; run `checkpointkd score {trajectory.source}` and "
            f"`checkpointkd select {trajectory.source}` first"
        )
    if not len(selection.epochs) > 0:
        raise UserError(
            f"no checkpoint of {trajectory.source} was found to teach {selection.student or 'the student'} better "
            "than the labels alone: train it with `checkpointkd train`, or name a checkpoint"
        )
    return list(selection.epochs)
