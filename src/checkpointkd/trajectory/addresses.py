"""Checkpoints by address: `runs/teacher@160`, `@0.5`, `@half`, `@full`, `@best`; a bare run is `@full`.

An integer is an epoch; a decimal in (0, 1] is a fraction of the planned epochs, whose nearest saved epoch is taken.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import NoSuchEpoch, UserError
from .trajectory import Checkpoint, Trajectory, open_trajectory

log = logging.getLogger("checkpointkd")

WORDS = ("half", "full", "best")


@dataclass(frozen=True)
class Address:
    """A checkpoint, and how it was asked for."""

    text: str
    checkpoint: Checkpoint

    def __str__(self) -> str:
        return f"{self.text} = epoch {self.checkpoint.epoch}"


def resolve(address: str) -> Address:
    """The checkpoint at an address; raises UserError when the run, the epoch or the selection isn't there."""
    path, at, which = address.rpartition("@")
    if not at or _exists(address):  # an @ may be part of a folder's name
        path, which = address, "full"
    if not _is_which(which):
        raise UserError(
            f"{address!r} names no checkpoint: after @ comes an epoch (160), a fraction of the planned epochs (0.5), "
            f"or one of {', '.join(WORDS)}"
        )
    trajectory = open_trajectory(Path(path))
    say_if_grown(trajectory)
    return Address(address, find(trajectory, which))


def say_if_grown(trajectory: Trajectory) -> None:
    """Warn when another trainer's folder holds what nobody has looked at yet."""
    if news := trajectory.news():
        log.warning(
            "in %s there are checkpoints that are new or changed since it was looked at (%s); `checkpointkd inspect %s`"
            " or `score` takes them in",
            trajectory.source, ", ".join(news[:3]), trajectory.source,
        )  # fmt: skip


def find(trajectory: Trajectory, which: str) -> Checkpoint:
    """The checkpoint of a trajectory that `160`, `0.5`, `half`, `full` or `best` stands for."""
    if which == "full":
        return trajectory.full
    if which == "half":
        return trajectory.half
    if which == "best":
        return trajectory[_selected(trajectory)]
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


def _selected(trajectory: Trajectory) -> int:
    selection = trajectory.selection()
    if selection is None:
        raise NoSuchEpoch(
            f"nothing has been selected in {trajectory.source} yet; run `checkpointkd score {trajectory.source}` and "
            f"`checkpointkd select {trajectory.source}` first"
        )
    return selection["epoch"]
