"""A trajectory: the checkpoints of one run, by number of completed epochs."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .. import records, storage
from ..errors import NoSuchEpoch, UserError, check_exists, pluralize
from ..models import Network, build_network
from ..records.base import TeacherRecord
from ..records.runs import AnyRun, ExternalCheckpoint, ExternalRecord, MetricsRow, OwnRunRecord, RunResult
from ..records.selection import SelectionRecord
from .metadata import check_trusted, checkpoints_folder, file_fingerprint, metadata_dir
from .run_dir import CHECKPOINT, read_metrics
from .scan import candidate_files, scan_folder
from .weights import differing_shapes, size, weights


@dataclass(frozen=True)
class Checkpoint:
    """One saved network of a run: the file, its epoch, and how to load it.

    A weight average is a checkpoint, too: `average` says of what, as in `mean:0.7-1.0`, and `averaged_from` is the file
    of its last checkpoint.
    """

    path: Path
    epoch: int
    run: AnyRun = field(repr=False)
    average: str | None = None
    averaged_from: Path | None = field(default=None, repr=False)

    @property
    def saved_path(self) -> Path:
        """The file that the training wrote; of an average, its last checkpoint's."""
        return self.averaged_from or self.path

    @property
    def record(self) -> TeacherRecord:
        """The identity of the checkpoint as a teacher."""
        return TeacherRecord(epoch=self.epoch, sha256=self.sha256, average=self.average)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return size(self.path)

    @cached_property
    def sha256(self) -> str:
        """The content hash of the weights, as the file states it. `network` verifies it."""
        registered = self._registered
        if registered is not None:
            return registered.sha256
        metadata = storage.read_metadata(self.path)
        self._check_epoch(metadata)
        return str(metadata.get("sha256", ""))

    @property
    def _registered(self) -> ExternalCheckpoint | None:
        """The record of another trainer's checkpoint; None for ours, and for averages, which we write."""
        return self.run.checkpoints[self.epoch] if isinstance(self.run, ExternalRecord) and not self.average else None

    def _check_epoch(self, metadata: dict[str, str]) -> None:
        if metadata.get("epoch") != str(self.epoch):
            raise UserError(f"{self.path} holds epoch {metadata.get('epoch')}, not {self.epoch}. Was the file renamed?")

    def network(self, device: torch.device | str = "cpu") -> Network:
        """Return the network with these weights, in evaluation mode.

        Raises:
            UserError: If the file is damaged, does not fit the network, or has changed since it was registered.
        """
        network = build_from_run(self.run)
        run = self.run
        if isinstance(run, ExternalRecord) and not self.average:
            stored = weights(
                self.path, network.body, key=run.state_dict_key, model=run.model, ignore=run.ignore_tensors
            )
            network.body.load_state_dict(stored.tensors)
            if storage.content_hash(network.state_dict()) != self.sha256:
                raise UserError(
                    f"{os.path.normpath(self.path)} has changed since it was inspected. "
                    "Run `checkpointkd inspect` again."
                )
        else:
            self._load_own(network)
        return network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def _load_own(self, network: Network) -> None:
        tensors, metadata = storage.load_tensors(self.path)
        self._check_epoch(metadata)
        if differing := differing_shapes(network.state_dict(), tensors):
            raise UserError(f"{self.path} does not fit {self.run.model}: {differing}")
        network.load_state_dict(tensors)


class Trajectory(Mapping[int, Checkpoint]):
    """The checkpoints of one run, by epoch, in order.

    `trajectory[160]` is the checkpoint of epoch 160, `trajectory.at(0.5)` the one nearest to half of the training. An
    epoch that was not saved raises NoSuchEpoch, which lists the saved epochs.
    """

    def __init__(self, path: Path, run: AnyRun, checkpoints: dict[int, Checkpoint]) -> None:
        self.path, self.run = path, run
        self._checkpoints = dict(sorted(checkpoints.items()))

    def __getitem__(self, epoch: int) -> Checkpoint:
        if epoch not in self._checkpoints:
            raise NoSuchEpoch(
                f"No checkpoint of {self.unit} {epoch} in {self.source} (saved {self.unit}s: {self._listed()})"
            )
        return self._checkpoints[epoch]

    def __iter__(self) -> Iterator[int]:
        return iter(self._checkpoints)

    def __len__(self) -> int:
        return len(self._checkpoints)

    def __repr__(self) -> str:
        return f"Trajectory({str(self.path)!r}, {self.unit}s {self._listed()} of {self.planned_epochs})"

    @property
    def planned_epochs(self) -> int:
        """The epochs that the run was to have. For another trainer's run, the epoch of its last checkpoint."""
        return self.run.recipe.epochs if isinstance(self.run, OwnRunRecord) else max(self)

    @property
    def source(self) -> Path:
        """The folder, file or wildcard that a user names. `path` is where the record lies."""
        if isinstance(self.run, ExternalRecord):
            return checkpoints_folder(self.path, self.run) / (self.run.files or "")
        return self.path

    def new_files(self) -> list[str]:
        """Return another trainer's files that are new or changed since they were inspected."""
        if not isinstance(self.run, ExternalRecord):
            return []
        fingerprints = {checkpoint.file: checkpoint.fingerprint for checkpoint in self.run.checkpoints.values()}
        seen = fingerprints.keys() | set(self.run.passed_over)
        try:
            folder = checkpoints_folder(self.path, self.run)
            new = [name for name in candidate_files(self.source) if name not in seen]
            changed = [
                name for name, stored in fingerprints.items() if file_fingerprint(folder / name) not in (stored, None)
            ]
            return new + changed
        except UserError:
            return []

    @property
    def unit(self) -> str:
        """What the checkpoints are numbered by: "epoch", or "step" where another trainer saved within epochs."""
        return self.run.unit if isinstance(self.run, ExternalRecord) else "epoch"

    @property
    def measured(self) -> bool:
        """Whether the accuracy of every checkpoint of another trainer was recorded."""
        return isinstance(self.run, ExternalRecord) and all(
            checkpoint.accuracy is not None for checkpoint in self.run.checkpoints.values()
        )

    @property
    def external(self) -> bool:
        """Whether another trainer wrote the checkpoints."""
        return isinstance(self.run, ExternalRecord)

    @property
    def complete(self) -> bool:
        """Whether the run has its final measurement. Another trainer's run counts as complete."""
        return self.external or (self.path / "result.json").exists()

    @property
    def last(self) -> Checkpoint:
        """The checkpoint of the last planned epoch. Raises NoSuchEpoch while the run is unfinished."""
        if self.planned_epochs not in self._checkpoints and self.complete:
            raise NoSuchEpoch(
                f"The last checkpoint, of epoch {self.planned_epochs}, is missing from {self.source} (saved: "
                f"{self._listed()}). Restore the file, or train in another folder."
            )
        if self.planned_epochs not in self._checkpoints:
            raise NoSuchEpoch(
                f"The run in {self.source} is not finished (planned epochs: {self.planned_epochs}, saved: "
                f"{self._listed()}). Run the same `train` or `distill` command again to finish it, or name an epoch."
            )
        return self._checkpoints[self.planned_epochs]

    @property
    def midpoint(self) -> Checkpoint:
        """The checkpoint nearest to the middle of the training."""
        return self.at(0.5)

    def only(self, epochs: Collection[int]) -> Trajectory:
        """Return a trajectory with only the checkpoints of these epochs."""
        return Trajectory(self.path, self.run, {epoch: self[epoch] for epoch in epochs})

    def at(self, fraction: float) -> Checkpoint:
        """Return the checkpoint nearest to a fraction in (0, 1] of the planned epochs; of two, the earlier."""
        if not 0 < fraction <= 1:
            raise UserError(f"The fraction of the training must lie in (0, 1], not {fraction}")
        if len(self) == 0:
            raise UserError(f"The run in {self.source} has saved no checkpoint yet")
        epoch_wanted = fraction * self.planned_epochs
        if not self.complete and max(self._checkpoints) < epoch_wanted:
            raise UserError(
                f"The run in {self.source} has not reached {fraction:g} of its {self.planned_epochs} epochs (saved: "
                f"{self._listed()}). Run its command again to finish it, or name an epoch."
            )
        return self._checkpoints[min(self._checkpoints, key=lambda epoch: (abs(epoch - epoch_wanted), epoch))]

    def rows(self) -> list[MetricsRow]:
        """Return the rows of metrics.jsonl, one per epoch."""
        return read_metrics(self.path / "metrics.jsonl")

    def result(self) -> RunResult | None:
        """Return the final measurement. None while the run is unfinished, and for another trainer's run."""
        path = self.path / "result.json"
        if not path.exists():
            return None
        return records.read(path, RunResult, remedy="Remove the run directory and train again.")

    def selection(self) -> SelectionRecord | None:
        """Return what `select` chose last, or None.

        Raises:
            UserError: If selection.json is damaged, or if a chosen checkpoint is gone.
        """
        path = self.path / "selection.json"
        if not path.exists():
            return None
        selection = records.read(path, SelectionRecord, remedy="Run `checkpointkd select` again.")
        for epoch in selection.epochs:
            self[epoch]  # raises if it is gone
        return selection

    @property
    def test_accuracy(self) -> float:
        """Top-1 accuracy, in [0, 1], of the last network on the test images.

        Raises:
            UserError: If it was not measured.
        """
        if self.external:
            raise UserError(
                f"{self.source} was trained elsewhere. Measure it with `checkpointkd evaluate --split test`."
            )
        result = self.result()
        if result is None:
            raise UserError(
                f"The run in {self.path} is not finished, so it has no test accuracy. Run its command again to "
                f"finish it."
            )
        if result.test is None:
            raise UserError(
                f"The run in {self.path} is a trial of `tune` or a pilot run, so it has no test accuracy. "
                f"Measure it with "
                "`checkpointkd evaluate --split test`."
            )
        return result.test.accuracy

    def to_plain(self) -> dict[str, Any]:
        """Return the trajectory as values of JSON."""
        return {
            "path": str(self.path),
            "model": self.run.model,
            "epochs": list(self),
            "planned_epochs": self.planned_epochs,
            "complete": self.complete,
            "result": records.plain(self.result()),
        }

    def _listed(self) -> str:
        return ", ".join(map(str, self._checkpoints)) or "none"


def open_trajectory(path: Path | str) -> Trajectory:
    """Open the trajectory in a run directory, or in another trainer's folder that `inspect` or `score` registered.

    Raises:
        UserError: If the folder is missing, empty or neither of these, or if its record is damaged.
    """
    path = Path(path)
    registered = metadata_dir(path)
    try:
        if registered is not None and not (path / "run.json").exists():
            path = registered
        elif not glob.has_magic(str(path)) or path.exists():
            check_exists(path, "run directory")
            if path.is_dir() and not any(path.iterdir()):
                raise UserError(f"The folder {path} is empty. `checkpointkd train --out {path}` fills it.")
        if not (path / "run.json").exists():
            raise _not_registered(path)
    except OSError as error:
        raise UserError(f"Could not list {path}: {error.strerror}") from None
    run = records.read_run(path / "run.json")
    if isinstance(run, ExternalRecord):
        return _open_external(path, run)
    folder = path / "checkpoints"
    matches = [(CHECKPOINT.fullmatch(file.name), file) for file in folder.iterdir()] if folder.exists() else []
    return Trajectory(
        path, run, {int(match[1]): Checkpoint(file, int(match[1]), run) for match, file in matches if match}
    )


def _open_external(path: Path, run: ExternalRecord) -> Trajectory:
    folder = checkpoints_folder(path, run)
    files = {epoch: folder / checkpoint.file for epoch, checkpoint in run.checkpoints.items()}
    for file in files.values():
        place, root = os.path.realpath(file), os.path.realpath(folder)
        if not (place == root or place.startswith(os.path.join(root, ""))):
            raise UserError(
                f"{path / 'run.json'} names {str(file)!r}, which is not in {folder}. Inspect the folder again."
            )
    present = {epoch: Checkpoint(file, epoch, run) for epoch, file in files.items() if os.path.exists(file)}
    if not present:
        raise UserError(
            f"None of the checkpoints that were inspected in {folder} exists any more. "
            "Inspect it again with --model and --data."
        )
    check_trusted(run, remedy=f"checkpointkd inspect {folder} --model {run.model} --data DATA")
    return Trajectory(path, run, present)


def _not_registered(path: Path) -> UserError:
    """Return the error for a folder that is not a run directory: its content, and what to do."""
    try:
        folder = scan_folder(path)
    except UserError as error:
        return UserError(f"{path} is not a run directory: it has no run.json. {error}")
    formats = ", ".join(sorted({file.format for file in folder.checkpoints.values()}))
    return UserError(
        f"{path} holds {pluralize(len(folder.checkpoints), 'checkpoint')} of another trainer ({formats}). Name their "
        f"network once: checkpointkd inspect {path} --model MODEL --data DATA"
    )


def build_from_run(run: AnyRun) -> Network:
    """Return the network that a run trains, as it was at its start.

    Raises:
        UserError: If the network is code that the user has not named on this machine, or if it cannot be built.
    """
    check_trusted(run, remedy=f"checkpointkd inspect RUN --model {run.model}")
    return build_network(
        run.model,
        num_classes=len(run.classes),
        in_channels=len(run.mean),
        mean=run.mean,
        std=run.std,
        seed=run.seed,
        config=run.network_config,
        channel_order=run.channel_order,
    )
