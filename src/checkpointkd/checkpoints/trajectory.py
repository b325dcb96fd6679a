"""A trajectory: the checkpoints that one run left behind, by epoch. An epoch is a number of completed epochs."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .. import storage
from ..config import DistillConfig, KDConfig, Recipe
from ..data import cache_dir
from ..errors import NoSuchEpoch, UserError, check_exists
from ..models import Network, build_network
from .formats import candidate_files, scan_folder
from .run_dir import CHECKPOINT, add_later_options
from .weights import size, weights

METADATA_DIR = "checkpointkd"  # the folder, in one that another trainer left, in which we note what is in it


@dataclass(frozen=True)
class Checkpoint:
    """One saved network of a run: the file, its epoch, and how to bring it to life."""

    path: Path
    epoch: int
    run: dict[str, Any] = field(repr=False)

    @property
    def bytes(self) -> int:
        """How large it is on disk."""
        return size(self.path)

    @cached_property
    def sha256(self) -> str:
        """The content hash of the weights, as the file states it (`network` verifies it)."""
        if self._noted is not None:
            return self._noted["sha256"]
        metadata = storage.read_metadata(self.path)
        self._check_epoch(metadata)
        return str(metadata.get("sha256", ""))

    @property
    def _noted(self) -> dict[str, str] | None:
        """What we noted of a checkpoint that another trainer wrote; None for ours."""
        return self.run["checkpoints"][str(self.epoch)] if self.run["kind"] == "external" else None

    def _check_epoch(self, metadata: dict[str, str]) -> None:
        if metadata.get("epoch") != str(self.epoch):
            raise UserError(f"{self.path} is of epoch {metadata.get('epoch')}, not {self.epoch}: was it renamed?")

    def network(self, device: torch.device | str = "cpu") -> Network:
        """The network with these weights, in evaluation mode; raises UserError when the file is damaged or doesn't
        fit."""
        network = build_from_run(self.run)
        if self._noted is None:
            self._load_ours(network)
        else:
            body = network.body
            found, _ = weights(self.path, body.state_dict(), where=self.run["state_dict_key"], model=self.run["model"])
            body.load_state_dict(found, strict=False)
            if storage.content_hash(network.state_dict()) != self.sha256:
                path = os.path.normpath(self.path)
                raise UserError(f"{path} has changed since it was looked at; run `checkpointkd inspect` again")
        return network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def _load_ours(self, network: Network) -> None:
        tensors, metadata = storage.load_tensors(self.path)
        self._check_epoch(metadata)
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


class Trajectory(Mapping[int, Checkpoint]):
    """The checkpoints of one run, by epoch, in order. `trajectory[160]`, `trajectory.at(0.5)`, `.midpoint`, `.full`.

    Raises NoSuchEpoch, which lists the saved epochs, for an epoch that isn't there.
    """

    def __init__(self, path: Path, run: dict[str, Any], checkpoints: dict[int, Checkpoint]) -> None:
        self.path, self.run = path, run
        self._checkpoints = dict(sorted(checkpoints.items()))

    def __getitem__(self, epoch: int) -> Checkpoint:
        if epoch not in self._checkpoints:
            raise NoSuchEpoch(
                f"no checkpoint of {self.unit} {epoch} in {self.source} (saved {self.unit}s: {self._listed()})"
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
        """How many epochs the run was to have; of one that another trainer left, the last that is there."""
        return max(self) if self.external else int(self.run["recipe"]["epochs"])

    @property
    def source(self) -> Path:
        """The folder, pattern or file that a user names for it; `path` is where what we know of it lies."""
        if not self.external:
            return self.path
        return _folder_of(self.path, self.run) / (self.run["pattern"] or "")

    def new_files(self) -> list[str]:
        """The files of another trainer's that are new, or another size or time, since they were looked at."""
        if not self.external:
            return []
        metadata_dir = {note["file"]: note["stamp"] for note in self.run["checkpoints"].values()}
        known = metadata_dir.keys() | set(self.run["passed_over"])
        try:
            folder = _folder_of(self.path, self.run)
            new = [name for name in candidate_files(self.source) if name not in known]
            return new + [
                name for name in metadata_dir if file_fingerprint(folder / name) not in (metadata_dir[name], None)
            ]
        except UserError:
            return []

    @property
    def unit(self) -> str:
        """What its numbers count: epochs; or steps, of another trainer's checkpoints that were saved within epochs."""
        return self.run["unit"] if self.external else "epoch"

    @property
    def measured(self) -> bool:
        """Whether the accuracy of all of another trainer's checkpoints is noted."""
        return all(note["accuracy"] is not None for note in self.run["checkpoints"].values())

    @property
    def external(self) -> bool:
        """Whether another trainer left it."""
        return self.run["kind"] == "external"

    @property
    def complete(self) -> bool:
        return self.external or (self.path / "result.json").exists()

    @property
    def last(self) -> Checkpoint:
        """The last planned epoch's; raises NoSuchEpoch while the run is unfinished."""
        if self.planned_epochs not in self._checkpoints and self.complete:
            raise NoSuchEpoch(
                f"the last checkpoint, of epoch {self.planned_epochs}, is gone from {self.source} (still there: "
                f"{self._listed()}); restore it, or train anew in another folder"
            )
        if self.planned_epochs not in self._checkpoints:
            raise NoSuchEpoch(
                f"the run in {self.source} is not finished (planned epochs: {self.planned_epochs}, saved: "
                f"{self._listed()}); give the same `train` or `distill` command again to finish it, or name an epoch"
            )
        return self._checkpoints[self.planned_epochs]

    @property
    def midpoint(self) -> Checkpoint:
        """The checkpoint nearest to half-way."""
        return self.at(0.5)

    def at(self, fraction: float) -> Checkpoint:
        """The checkpoint whose epoch is nearest to this fraction, in (0, 1], of the planned epochs; of two, the
        earlier."""
        if not 0 < fraction <= 1:
            raise UserError(f"a fraction of the training must lie in (0, 1], not {fraction}")
        if not len(self) > 0:
            raise UserError(f"the run in {self.source} has saved no checkpoint yet")
        wanted = fraction * self.planned_epochs
        if not (self.complete or max(self._checkpoints) >= wanted):
            raise UserError(
                f"the run in {self.source} has not come as far as {fraction:g} of its {self.planned_epochs} epochs (saved: "
                f"{self._listed()}); give its command again to finish it, or name an epoch"
            )
        return self._checkpoints[min(self._checkpoints, key=lambda epoch: (abs(epoch - wanted), epoch))]

    def rows(self) -> list[dict]:
        """What each epoch left in metrics.jsonl."""
        return storage.read_jsonl(self.path / "metrics.jsonl")

    def result(self) -> dict[str, Any] | None:
        """The final measurement, or None while the run is unfinished or if it isn't ours."""
        path = self.path / "result.json"
        if not path.exists():
            return None
        result = storage.read_json(path)
        try:
            measured = ["val", *({"test"} & result.keys())]  # a search's trials leave the test images alone
            sound = all(0 <= result[split]["accuracy"] <= 1 for split in measured)
        except (KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise UserError(f"{path} is damaged: it is no run's result")
        return result

    def selection(self) -> dict[str, Any] | None:
        """What `select` chose last, or None; raises UserError when that is damaged or a checkpoint of it gone.

        It has `epochs` in any case: one that a rule chose; of what was chosen for a student, any number, also none.
        """
        path = self.path / "selection.json"
        if not path.exists():
            return None
        selection = storage.read_json(path)
        sound = isinstance(selection, dict) and {"rule", "reason"} <= selection.keys()
        sound = sound and isinstance(selection.get("made_with"), dict | None)
        epochs = selection.get("epochs", [selection.get("epoch")]) if sound else None
        sound = sound and isinstance(epochs, list) and all(type(epoch) is int for epoch in epochs)
        if not sound:
            raise UserError(f"{path} is damaged; run `checkpointkd select` again")
        assert epochs is not None
        for epoch in epochs:
            self[epoch]  # raises if it is gone
        return {**selection, "epochs": epochs}

    @property
    def test_accuracy(self) -> float:
        """Top-1 accuracy in [0, 1] of the last network on the test images; raises UserError while the run is
        unfinished."""
        result = self.result()
        if self.external:
            raise UserError(f"{self.source} was trained elsewhere; `checkpointkd evaluate --split test` measures it")
        if result is None:
            raise UserError(f"the run in {self.path} is not finished, so it has not been tested")
        if "test" not in result:
            raise UserError(f"the run in {self.path} is a trial of a search, which leaves the test images alone")
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
    """The trajectory in a run's folder, or in what another trainer left, once `inspect` or `score` was told what it is;
    raises UserError when the folder is missing, empty or neither."""
    path = Path(path)
    notes = metadata_dir(path)
    try:
        if notes is not None and not (path / "run.json").exists():
            path = notes
        elif not glob.has_magic(str(path)) or path.exists():
            check_exists(path, "run folder")
            if not (path.is_file() or any(path.iterdir())):
                raise UserError(f"the folder {path} is empty; `checkpointkd train` fills one")
        if not (path / "run.json").exists():
            raise _unknown(path)
    except OSError as error:
        raise UserError(f"could not look into {path}: {error.strerror}") from None
    run = storage.read_json(path / "run.json")
    _check_run(run, path / "run.json")
    if run["kind"] == "external":
        folder = _folder_of(path, run)
        noted_files = {int(epoch): folder / note["file"] for epoch, note in run["checkpoints"].items()}
        for file in noted_files.values():
            inside = os.path.realpath(file).startswith(os.path.join(os.path.realpath(folder), ""))
            if not inside:
                raise UserError(f"{path / 'run.json'} names {str(file)!r}, which lies outside of {folder}")
        there = {n: Checkpoint(file, n, run) for n, file in noted_files.items() if os.path.exists(file)}
        if not there:
            raise UserError(
                f"none of the checkpoints that were looked at in {folder} is there any more; inspect it anew, with --model "
                "and --data"
            )
        if not (not names_code(run["model"]) or os.path.exists(trust_marker(run))):
            raise UserError(_unvouched(path, run))
        return Trajectory(path, run, there)
    folder = path / "checkpoints"
    named = [(CHECKPOINT.fullmatch(file.name), file) for file in folder.iterdir()] if folder.exists() else []
    checkpoints = {int(match[1]): Checkpoint(file, int(match[1]), run) for match, file in named if match}
    add_later_options(run)
    return Trajectory(path, run, checkpoints)


def metadata_dirs(path: Path | str) -> list[Path]:
    """Where what we note on another trainer's folder, pattern or file may lie: beside it, or else in our own folder."""
    path = Path(path)
    name = re.sub(r"[^\w.-]", "_", path.name)
    here = hashlib.sha256(str(path.absolute()).encode(errors="surrogateescape")).hexdigest()[:12]
    beside = path / METADATA_DIR if os.path.isdir(path) else path.parent / METADATA_DIR / f"{name}-{here}"
    return [beside, cache_dir() / "external" / f"{name}-{here}"]


def metadata_dir(path: Path | str) -> Path | None:
    """The folder with our notes on what another trainer left here, if there are any; of two the newer."""
    there = [notes / "run.json" for notes in metadata_dirs(path) if os.path.exists(notes / "run.json")]
    return max(there, key=os.path.getmtime).parent if there else None


def _folder_of(notes: Path, run: dict[str, Any]) -> Path:
    """Where another trainer's checkpoints lie: around the notes, or, for notes in our own folder, where these say."""
    if os.path.realpath(notes).startswith(os.path.join(os.path.realpath(cache_dir()), "")):
        return Path(run["folder"])
    return notes.parent if notes.name == METADATA_DIR else notes.parent.parent


def file_fingerprint(path: Path) -> list[int] | None:
    """Size and time of change of a checkpoint's files, which tell that it is another one; None if it is gone."""
    try:
        files_of = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
        return [number for file in files_of for number in (file.stat().st_size, file.stat().st_mtime_ns)]
    except OSError:
        return None


def names_code(model: str) -> bool:
    """Whether a network's name is that of someone's own code."""
    return ":" in model and not model.startswith("timm:")


def trust_marker(run: dict[str, Any]) -> Path:
    """The file that says that this user told us that these checkpoints are of this network. Notes that came along with
    checkpoints from elsewhere may name any code; only what a user has said here is imported."""
    said = [
        run["model"],
        run["state_dict_key"],
        run["mean"],
        run["std"],
        [n["sha256"] for n in run["checkpoints"].values()],
    ]
    return cache_dir() / "vouched" / hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _unvouched(path: Path, run: dict[str, Any]) -> str:
    return (
        f"the notes in {path} name code, {run['model']!r}, and were not made by you here; if it is yours, say so: "
        f"checkpointkd inspect {_folder_of(path, run)} --model {run['model']} --data DATA"
    )


def _unknown(path: Path) -> UserError:
    """The error for a folder that is no run of ours: what is in it, and what to do."""
    try:
        found = scan_folder(path)
    except UserError as error:
        return UserError(f"{path} is not a run's folder: it has no run.json, and {error}")
    formats = ", ".join(sorted({one.format for one in found.checkpoints.values()}))
    return UserError(
        f"{path} holds {len(found.checkpoints)} checkpoints of another trainer ({formats}); say once which network they"
        f" are of: checkpointkd inspect {path} --model MODEL --data DATA"
    )


_RUN = {"kind": str, "model": str, "classes": list, "mean": list, "std": list, "seed": int, "precision": str}
_DATA = ("data", "source", "sha256", "select_on", "val_fraction", "split_seed", "train_images", "train_size")


def _check_run(run: Any, path: Path) -> None:
    """Raise UserError unless this can be what run.json says of a run."""
    try:
        for name, kind in _RUN.items():
            if type(run[name]) is not kind:
                raise UserError(f"its {name} is no {kind.__name__}")
        if not (len(run["classes"]) > 0 and all(isinstance(name, str) for name in run["classes"])):
            raise UserError("its classes")
        numbers = [*run["mean"], *run["std"]]
        if not all(isinstance(n, int | float) and abs(n) < 1e6 for n in numbers):
            raise UserError("its mean")
        if not (len(run["mean"]) == len(run["std"]) > 0 and all(isinstance(n, float | int) for n in numbers)):
            raise UserError("its mean")
        if not min(run["std"]) > 0:
            raise UserError("its std is not positive")
        if not set(_DATA) <= run["data"].keys():
            raise UserError("its data are not described")
        if not isinstance(run["provenance"], dict):
            raise UserError("it has no provenance")
        if run["kind"] == "external":
            _check_notes(run)
        else:
            Recipe(**run["recipe"])
        if run["kind"] == "distill":
            KDConfig(**run["kd"])
            DistillConfig(**run.get("distill_config", {}))
            if not isinstance(run["method"], str):
                raise UserError("its method")
        if not all(isinstance(run["data"][name], str) for name in ("data", "sha256", "select_on")):
            raise UserError("its data")
        if not all(type(run["data"][name]) is int for name in ("train_size", "val_size")):
            raise UserError("its data's sizes")
    except (UserError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged or not one of ours ({error})") from None


def _check_notes(run: dict[str, Any]) -> None:
    """Raise UserError unless these can be our notes on another trainer's checkpoints."""
    for name in ("folder", "normalized_as", "unit", "weights_at"):
        if type(run[name]) is not str:
            raise UserError(f"its {name} is no str")
    if run["unit"] not in ("epoch", "step"):
        raise UserError("its unit")
    for name in ("state_dict_key", "pattern"):
        if not (run[name] is None or (type(run[name]) is str and Path(run[name]).name == run[name])):
            raise UserError(f"its {name}")
    for name in ("left_out", "passed_over"):
        if not all(type(one) is str for one in run[name]):
            raise UserError(f"its {name}")
    if not len(run["checkpoints"]) > 0:
        raise UserError("it names no checkpoints")
    for epoch, metadata_dir in run["checkpoints"].items():
        if re.fullmatch(r"[0-9]{1,9}", epoch) is None:
            raise UserError(f"its checkpoint {epoch[:20]!r}")
        for name in ("file", "format", "epoch_from", "stated", "sha256"):
            if not (type(metadata_dir[name]) is str and len(metadata_dir[name]) < 1000):
                raise UserError(f"its checkpoint {epoch} has no {name}")
        if not ("\0" not in metadata_dir["file"] and isinstance(metadata_dir["stamp"], list)):
            raise UserError(f"its checkpoint {epoch}")
        accuracy = metadata_dir["accuracy"]
        if not (accuracy is None or (type(accuracy) is float and 0 <= accuracy <= 1)):
            raise UserError(f"its checkpoint {epoch}")


def build_from_run(run: dict[str, Any]) -> Network:
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
