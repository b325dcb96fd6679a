"""A trajectory: the checkpoints that one run left behind, by epoch. An epoch is a number of completed epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..errors import NoSuchEpoch, UserError, existing, require
from ..models import Network, build_network
from ..settings import Recipe
from .run_folder import CHECKPOINT


@dataclass(frozen=True)
class Checkpoint:
    """One saved network of a run: the file, its epoch, and how to bring it to life."""

    path: Path
    epoch: int
    run: dict[str, Any] = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """The content hash of the weights, as the file states it (`network` verifies it)."""
        metadata = files.read_metadata(self.path)
        self._check_epoch(metadata)
        return str(metadata.get("sha256", ""))

    def _check_epoch(self, metadata: dict[str, str]) -> None:
        if metadata.get("epoch") != str(self.epoch):
            raise UserError(f"{self.path} is of epoch {metadata.get('epoch')}, not {self.epoch}: was it renamed?")

    def network(self, device: torch.device | str = "cpu") -> Network:
        """The network with these weights, in evaluation mode; raises UserError when the file is damaged or doesn't
        fit."""
        tensors, metadata = files.load_tensors(self.path)
        self._check_epoch(metadata)
        network = fresh_network(self.run)
        wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        unlike = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
        if unlike:
            raise UserError(
                f"{self.path} does not fit {self.run['model']}: {len(unlike)} tensors are missing, unexpected or "
                f"misshapen, the first being {unlike[0]} ({_shape(found, unlike[0])} in the file, "
                f"{_shape(wanted, unlike[0])} in the model)"
            )
        network.load_state_dict(tensors)
        return network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


class Trajectory(Mapping[int, Checkpoint]):
    """The checkpoints of one run, by epoch, in order. `trajectory[160]`, `trajectory.at(0.5)`, `.half`, `.full`.

    Raises NoSuchEpoch, which lists the saved epochs, for an epoch that isn't there.
    """

    def __init__(self, path: Path, run: dict[str, Any], checkpoints: dict[int, Checkpoint]) -> None:
        self.path, self.run = path, run
        self._checkpoints = dict(sorted(checkpoints.items()))

    def __getitem__(self, epoch: int) -> Checkpoint:
        if epoch not in self._checkpoints:
            raise NoSuchEpoch(f"no checkpoint of epoch {epoch} in {self.path} (saved epochs: {self._listed()})")
        return self._checkpoints[epoch]

    def __iter__(self) -> Iterator[int]:
        return iter(self._checkpoints)

    def __len__(self) -> int:
        return len(self._checkpoints)

    def __repr__(self) -> str:
        return f"Trajectory({str(self.path)!r}, epochs {self._listed()} of {self.planned_epochs})"

    @property
    def planned_epochs(self) -> int:
        """How many epochs the run was to have."""
        return int(self.run["recipe"]["epochs"])

    @property
    def complete(self) -> bool:
        return (self.path / "result.json").exists()

    @property
    def full(self) -> Checkpoint:
        """The last planned epoch's; raises NoSuchEpoch while the run is unfinished."""
        if self.planned_epochs not in self._checkpoints and self.complete:
            raise NoSuchEpoch(
                f"the last checkpoint, of epoch {self.planned_epochs}, is gone from {self.path} (still there: "
                f"{self._listed()}); restore it, or train anew in another folder"
            )
        if self.planned_epochs not in self._checkpoints:
            raise NoSuchEpoch(
                f"the run in {self.path} is not finished (planned epochs: {self.planned_epochs}, saved: "
                f"{self._listed()}); give the same `train` or `distill` command again to finish it, or name an epoch"
            )
        return self._checkpoints[self.planned_epochs]

    @property
    def half(self) -> Checkpoint:
        """The checkpoint nearest to half-way."""
        return self.at(0.5)

    def at(self, fraction: float) -> Checkpoint:
        """The checkpoint whose epoch is nearest to this fraction, in (0, 1], of the planned epochs; of two, the
        earlier."""
        require(0 < fraction <= 1, f"a fraction of the training must lie in (0, 1], not {fraction}")
        require(len(self) > 0, f"the run in {self.path} has saved no checkpoint yet")
        wanted = fraction * self.planned_epochs
        require(
            self.complete or max(self._checkpoints) >= wanted,
            f"the run in {self.path} has not come as far as {fraction:g} of its {self.planned_epochs} epochs (saved: "
            f"{self._listed()}); give its command again to finish it, or name an epoch",
        )
        return self._checkpoints[min(self._checkpoints, key=lambda epoch: (abs(epoch - wanted), epoch))]

    def rows(self) -> list[dict]:
        """What each epoch left in metrics.jsonl."""
        return files.read_rows(self.path / "metrics.jsonl")

    def result(self) -> dict[str, Any] | None:
        """The final measurement, or None while the run is unfinished."""
        if not self.complete:
            return None
        path = self.path / "result.json"
        result = files.read_json(path)
        try:
            sound = all(0 <= result[split]["accuracy"] <= 1 for split in ("selection", "test"))
        except (KeyError, TypeError):
            sound = False
        require(sound, f"{path} is damaged: it is no run's result")
        return result

    def selection(self) -> dict[str, Any] | None:
        """What `select` chose last, or None; raises UserError when that is damaged or its checkpoint gone."""
        path = self.path / "selection.json"
        if not path.exists():
            return None
        selection = files.read_json(path)
        sound = isinstance(selection, dict) and {"rule", "reason", "epoch"} <= selection.keys()
        require(sound and type(selection["epoch"]) is int, f"{path} is damaged; run `checkpointkd select` again")
        self[selection["epoch"]]  # raises if it is gone
        return selection

    @property
    def test_accuracy(self) -> float:
        """Top-1 accuracy in [0, 1] of the last network on the test images; raises UserError while the run is
        unfinished."""
        result = self.result()
        if result is None:
            raise UserError(f"the run in {self.path} is not finished, so it has not been tested")
        return result["test"]["accuracy"]

    def to_plain(self) -> dict[str, Any]:
        """The trajectory as JSON's values."""
        return {
            "path": str(self.path),
            "model": self.run["model"],
            "epochs": list(self),
            "planned_epochs": self.planned_epochs,
            "complete": self.complete,
            "result": self.result(),
        }

    def _listed(self) -> str:
        return ", ".join(map(str, self._checkpoints)) or "none"


def open_trajectory(path: Path | str) -> Trajectory:
    """The trajectory in a run's folder; raises UserError when the folder is missing, empty or no run."""
    path = existing(Path(path), "run folder")
    require(path.is_dir(), f"{path} is a file, not a run's folder")
    require(any(path.iterdir()), f"the folder {path} is empty; `checkpointkd train` fills one")
    require((path / "run.json").exists(), f"{path} is not a run's folder: it has no run.json")
    run = files.read_json(path / "run.json")
    _check_run(run, path / "run.json")
    folder = path / "checkpoints"
    named = [(CHECKPOINT.fullmatch(file.name), file) for file in folder.iterdir()] if folder.exists() else []
    checkpoints = {int(match[1]): Checkpoint(file, int(match[1]), run) for match, file in named if match}
    return Trajectory(path, run, checkpoints)


_RUN = {"kind": str, "model": str, "classes": list, "mean": list, "std": list, "seed": int, "precision": str}
_DATA = ("data", "source", "sha256", "protocol", "selection_fraction", "split_seed", "train_images", "train_size")


def _check_run(run: Any, path: Path) -> None:
    """Raise UserError unless this can be what run.json says of a run."""
    try:
        for name, kind in _RUN.items():
            require(type(run[name]) is kind, f"its {name} is no {kind.__name__}")
        require(len(run["classes"]) > 0 and all(isinstance(name, str) for name in run["classes"]), "its classes")
        numbers = [*run["mean"], *run["std"]]
        require(
            len(run["mean"]) == len(run["std"]) > 0 and all(isinstance(n, float | int) for n in numbers), "its mean"
        )
        require(min(run["std"]) > 0, "its std is not positive")
        require(set(_DATA) <= run["data"].keys(), "its data are not described")
        require(isinstance(run["provenance"], dict), "it has no provenance")
        Recipe(**run["recipe"])
    except (UserError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged or not one of ours ({error})") from None


def fresh_network(run: dict[str, Any]) -> Network:
    """The network that a run trains, as it was at its start."""
    return build_network(
        run["model"],
        num_classes=len(run["classes"]),
        in_channels=len(run["mean"]),
        mean=run["mean"],
        std=run["std"],
        seed=run["seed"],
    )


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "absent"
