"""What several verbs do with what they were told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..config import Device, DistillConfig, KDConfig, Recipe, check_choice
from ..errors import UserError
from ..recipes import recipe as recipe_of
from ..records import AnyRun, ExternalRecord

if TYPE_CHECKING:
    import torch

    from ..checkpoints import CheckpointRef
    from ..data import Data


log = logging.getLogger("checkpointkd")

AUTO = "auto"  # the rule that looks at the student where there is one


def recipe_from(name: str, epochs: int | None, batch_size: int | None, learning_rate: float | None) -> Recipe:
    """The recipe of this name, with what is given in place of its own."""
    changes = {"batch_size": batch_size, "learning_rate": learning_rate}
    given = {key: value for key, value in changes.items() if value is not None}
    return replace(recipe_of(name, epochs=epochs), **given)


def shares_of(given: list[float] | None, teachers: int) -> tuple[float, ...] | None:
    """How much each of so many teachers counts."""
    if given is None:
        return None
    if len(given) != teachers:
        raise UserError(f"--teacher-weights gives {len(given)} weights to {teachers} checkpoints")
    return DistillConfig(teacher_weights=tuple(given)).teacher_weights


def say_if_seen(who: str, run: AnyRun, data: Data) -> None:
    """Warn when a network may have learned from the images that are kept back here to choose with."""
    ours, theirs = data.record, run.data
    if isinstance(run, ExternalRecord):
        if ours.select_on == "val":
            log.warning(
                "%s was trained elsewhere, so it may have seen the selection images, which are part of the training "
                "set, and its accuracy on them may flatter it; `inspect --select-on test` has the test images instead",
                who,
            )
        return
    if ours.select_on == "test" and theirs.sha256 == ours.sha256:
        return  # the test images, from which nothing of ours learns
    split = ("sha256", "select_on", "val_fraction", "split_seed")
    if any(getattr(theirs, name) != getattr(ours, name) for name in split):
        log.warning(
            "%s was trained on another split (other data, other settings, or files that changed since), so it may "
            "have seen the selection images, and its accuracy on them may flatter it",
            who,
        )


def say_if_any_has_seen(addresses: Sequence[CheckpointRef], data: Data) -> None:
    for run in {id(address.checkpoint.run): address for address in addresses}.values():  # once for each run
        say_if_seen(run.text.rpartition("@")[0] or run.text, run.checkpoint.run, data)


def device_of(device: Device) -> torch.device:
    from ..device import pick_device

    check_choice("device", device, Device)
    return pick_device(device)


def say_if_found_otherwise(teachers: Sequence[str], student: str, settings: KDConfig | None) -> None:
    """Warn when RUN@best was found for another student, or with another weight of the labels or temperature."""
    from ..checkpoints import open_trajectory

    for teacher in teachers:
        run, _, which = teacher.rpartition("@")
        found = open_trajectory(run).selection() if which == "best" else None
        if found is None or found.rule != "pilot":
            continue
        there, here = [found.student], [student]
        if settings is not None:
            there += [f"{name} {float(getattr(found, name))!r}" for name in ("alpha", "tau")]
            here += [f"alpha {float(settings.alpha)!r}", f"tau {float(settings.tau)!r}"]
        if there != here:
            way = f"checkpointkd select {run} --student {student} finds this one's"
            way = way if there[0] != here[0] else f"give {' '.join(f'--{one}' for one in there[1:])}"
            log.warning(
                "%s was found for %s, and here it teaches %s: %s",
                teacher,
                ", ".join(map(str, there)),
                ", ".join(here),
                way,
            )
