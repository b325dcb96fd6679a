"""Checks that several commands make before they start."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import UserError
from ..records.runs import AnyRun, ExternalRecord

if TYPE_CHECKING:
    from ..checkpoints import CheckpointRef, Trajectory
    from ..data import Data

log = logging.getLogger("checkpointkd")


def check_same_classes(trajectory: Trajectory, data: Data) -> None:
    """Raise UserError unless the run was trained on the classes of the data, in the same order."""
    if trajectory.run.classes != data.classes:
        raise UserError(
            f"{trajectory.path} was trained on {len(trajectory.run.classes)} classes. They differ in number, name or "
            f"order from the {len(data.classes)} classes of {data.name!r}. Give the run's own data set with --data"
        )


def warn_if_any_saw_validation_images(refs: Sequence[CheckpointRef], data: Data) -> None:
    """Warn once for each run whose training may have included validation images."""
    runs = {id(ref.checkpoint.run): ref for ref in refs}
    for ref in runs.values():
        warn_if_saw_validation_images(ref.text.rpartition("@")[0] or ref.text, ref.checkpoint.run, data)


def warn_if_saw_validation_images(name: str, run: AnyRun, data: Data) -> None:
    """Warn if the run's training may have included images of the validation set that is used now."""
    used, trained_on = data.record, run.data
    if isinstance(run, ExternalRecord):
        if used.select_on == "val" and used.val_sha256 is None:
            log.warning(
                "%s was trained elsewhere and may have seen the validation set, which is a part of the training set. "
                "Its validation accuracy may be too high. `inspect --select-on test` uses the test set instead.",
                name,
            )
        return
    if used.select_on == "test" and trained_on.sha256 == used.sha256:
        return  # no run of this toolkit trains on test images
    split = ("sha256", "select_on", "val_fraction", "split_seed", "val_sha256")
    if any(getattr(trained_on, field) != getattr(used, field) for field in split):
        log.warning(
            "%s was trained on another split (other data, other settings, or changed files) and may have seen the "
            "validation set. Its validation accuracy may be too high.",
            name,
        )
