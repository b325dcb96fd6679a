"""Checkpoints that other trainers wrote: recognised by content, read without running any code in them.

Whatever the trainer, a file is seen as a flat list of named tensors (`state_dict.model.conv1.weight`), and a network's
weights are where all of its names are found behind one prefix (`state_dict.model.`). So a format here is no more than a
name and a way to tell the epoch.
"""

from __future__ import annotations

import argparse
import collections
import glob
import json
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .. import files
from ..errors import UserError, existing, require

ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".tar", ".bin")
SHARDS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
NO_NETWORK = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state.*)\.(pt|pth|bin)")  # Hugging Face's
_SCALAR = np.float64(0).__reduce__()[0]
# What trainers store beside weights and can't run code: settings (timm, torchvision), paths, NumPy's numbers. Functions
# go by the names that the versions of their libraries gave them.
HARMLESS: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    (pathlib.PosixPath, "pathlib._local.PosixPath"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
]


@dataclass(frozen=True)
class Found:
    """One checkpoint of another trainer: where it lies, who wrote it, and how far its training was."""

    path: Path  # the file, or Hugging Face's folder
    format: str
    number: int | None  # completed epochs; None where nothing tells
    number_from: str
    stated: str  # the same as its writer counts
    exact: bool  # whether `number` counts completed epochs; it may count from 0 otherwise
    step: int | None = None
    within: bool = False  # whether it was saved within an epoch, which makes its steps the better count

    @property
    def bytes(self) -> int:
        return size(self.path)


@dataclass(frozen=True)
class Folder:
    """What a folder, a pattern or a file holds: checkpoints in order of epoch, and what was left out, and why."""

    path: Path
    checkpoints: dict[int, Found]
    left_out: list[str]
    unit: str  # "epoch", or "step" where checkpoints were saved within epochs


def look(path: Path | str) -> Folder:
    """The checkpoints in a folder (or a pattern, or a file) of another trainer.

    An epoch is a number of completed epochs. Raises UserError, naming the file, for one that can't be read, for two of
    one epoch, and when there is none.
    """
    root, paths = _candidates(str(path))
    left_out: list[str] = []
    found = []
    for candidate in paths:
        checkpoint = _recognise(candidate)
        if checkpoint is None:
            left_out.append(f"{candidate.name}: there are no weights in it")
        else:
            found.append(checkpoint)
    if not found:
        elsewhere = sorted({file.parent for file in root.rglob("*") if file.suffix in ENDINGS}) if root.is_dir() else []
        hint = f"; there are some in {', '.join(map(str, elsewhere[:3]))}" if elsewhere and not left_out else ""
        why = f" ({'; '.join(left_out[:3])})" if left_out else ""
        raise UserError(f"there are no checkpoints in {path}{why}{hint}")
    found, unit = _in_one_unit(found)
    numbered = [checkpoint for checkpoint in found if checkpoint.number is not None]
    if numbered:
        left_out += [f"{one.path.name}: nothing tells its epoch" for one in found if one.number is None]
    else:
        ordered = sorted(found, key=lambda one: _natural(one.path.name))
        numbered = [replace(one, number=n + 1, number_from="the order of names") for n, one in enumerate(ordered)]
    by_epoch: dict[int, Found] = {}
    for one in sorted(numbered, key=lambda one: (one.number, not re.search(r"\d", one.path.stem), one.path.name)):
        assert one.number is not None
        other = by_epoch.setdefault(one.number, one)
        if other is one:
            continue
        if re.search(r"\d", one.path.stem) and "best" not in one.path.stem:
            raise UserError(
                f"{other.path.name} and {one.path.name} in {root} are both of {unit} {one.number}; if there are "
                f"several runs in it, name one's files by a pattern, such as '{root}/run1_*'"
            )
        left_out.append(f"{one.path.name}: of the same {unit} as {other.path.name}")
    return Folder(root, dict(sorted(by_epoch.items())), left_out, unit)


def weights(path: Path, wanted: Mapping[str, Tensor], *, where: str | None, model: str) -> dict[str, Tensor]:
    """The tensors of a network with these names and shapes, from a checkpoint; every one of them, or UserError.

    `where` says which of several there are (`state_dict_ema`, `state_dict.student`). Names may have a prefix that all
    share, as DataParallel, torch.compile and Lightning give; counters of batch norm may be missing.
    """
    flat = read(path)
    if where is not None and not any(name.startswith(f"{where}.") for name in flat):
        there = sorted({name.partition(".")[0] for name in flat})
        raise UserError(f"{path} has nothing at {where!r} (at its top: {', '.join(there[:8])})")
    needed = [name for name in wanted if not name.endswith("num_batches_tracked")]
    fitting: collections.Counter[str] = collections.Counter()  # how many tensors of the network fit, behind each prefix
    for name, tensor in flat.items():
        parts = name.split(".")
        for ending in (".".join(parts[start:]) for start in range(len(parts))):
            if ending in wanted and tensor.shape == wanted[ending].shape:
                fitting[name.removesuffix(ending)] += not ending.endswith("num_batches_tracked")
    if where is not None:
        fitting = collections.Counter({p: n for p, n in fitting.items() if p.startswith(f"{where}.")})
    # A set that is there by more than half is meant to be whole: another one must not take its place.
    sets = [prefix for prefix, count in fitting.items() if count > len(needed) / 2]
    if where is None:
        sets = [prefix for prefix in sets if "ema" not in prefix.lower()] or sets
    if len(sets) > 1:
        said = ", ".join(prefix.rstrip(".") or "(top)" for prefix in sets)
        raise UserError(f"{path} holds the weights of {model} more than once ({said}); say which with --weights")
    prefix = sets[0] if sets else max(fitting, key=fitting.__getitem__, default=f"{where}." if where else "")
    inside = {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    there = {name: tuple(tensor.shape) for name, tensor in inside.items()}
    optional = wanted.keys() - set(needed)
    unlike = [
        name
        for name in [*shapes, *(there.keys() - shapes.keys())]
        if shapes.get(name) != there.get(name) and not (name in optional and name not in there)
    ]
    if unlike:
        raise UserError(
            f"{path} does not fit {model}: {len(unlike)} tensors are missing, unexpected or misshapen, the first being "
            f"{unlike[0]} ({_shape(there, unlike[0])} in the file, {_shape(shapes, unlike[0])} in the model)"
        )
    taken = {name: inside[name] for name in wanted if name in inside}
    for name, tensor in taken.items():
        if tensor.is_floating_point() != wanted[name].is_floating_point() or tensor.layout != torch.strided:
            raise UserError(f"{path} does not fit {model}: {name} is of type {tensor.dtype}")
        require(bool(tensor.isfinite().all()), f"{path} is spoiled: {name} in it holds NaN or infinite numbers")
    return taken


def size(path: Path) -> int:
    """The bytes of the files with a checkpoint's weights."""
    return sum(file.stat().st_size for file in _parts(path))


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor in a checkpoint, by dotted name, with what torch.compile adds to names taken away.

    Raises UserError when the file is damaged, or needs more than weights to be read.
    """
    flat: dict[str, Tensor] = {}
    for file in _parts(path):
        if file.suffix == ".safetensors":
            try:
                content: Any = safetensors.torch.load(file.read_bytes())
                metadata = files.read_metadata(file)
            except (OSError, ValueError, safetensors.SafetensorError) as error:
                raise _damaged(file, error) from None
            if "sha256" in metadata:  # one of our own writers'
                content, _ = files.load_tensors(file)
        else:
            _check_archive(file, whole=True)
            content = _unpickled(file)
        _flatten(content, "", flat)
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in flat.items()}


def _candidates(path: str) -> tuple[Path, list[Path]]:
    """The folder that a path or a pattern is about, and the files (or Hugging Face's folders) to look into."""
    if not os.path.exists(path) and glob.has_magic(path):
        paths = sorted(map(Path, glob.glob(path)))
        require(bool(paths), f"no file fits the pattern {path}")
        return paths[0].parent, [_inside(one, paths[0].parent) for one in paths]
    root = existing(Path(path), "file or folder")
    if root.is_file():
        require(root.name.endswith(ENDINGS), f"{root} is no file of weights, which end in {', '.join(ENDINGS)}")
        return root.parent, [root]
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise UserError(f"could not look into {root}: {error.strerror}") from None
    steps = [entry for entry in entries if re.fullmatch(r"checkpoint-\d+", entry.name) and entry.is_dir()]
    if steps or any((root / name).exists() for name in (*WHOLE, *SHARDS)):
        return root, [_inside(step, root) for step in steps] or [root]
    return root, [
        _inside(entry, root)
        for entry in entries
        if entry.name.endswith(ENDINGS) and not NO_NETWORK.fullmatch(entry.name) and not entry.name.startswith(".")
    ]


def _inside(path: Path, root: Path) -> Path:
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{path} is a link that leads out of {root}; put the file itself there, or name its own folder")
    return path


def _parts(path: Path) -> list[Path]:
    """The files in which a checkpoint's weights are."""
    if path.is_file():
        return [path]
    for name in WHOLE:
        if (path / name).exists():
            return [_inside(path / name, path)]
    for name in SHARDS:
        if (path / name).exists():
            index = files.read_json(path / name)
            shards = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise UserError(f"{path / name} is damaged: it has no weight_map")
            for shard in shards.values():
                if Path(shard).name != shard or not shard.endswith(ENDINGS):
                    raise UserError(f"{path / name} names {shard!r}, which is no file of weights in its own folder")
            return [_inside(existing(path / shard, "shard"), path) for shard in dict.fromkeys(shards.values())]
    raise UserError(f"there are no weights in {path}: neither {' nor '.join((*WHOLE, *SHARDS))}")


def _recognise(path: Path) -> Found | None:
    """Who wrote a checkpoint and how far its training was; None for a file without weights."""
    if path.is_dir():
        return _hugging_face(path)
    if path.suffix == ".safetensors":
        metadata = files.read_metadata(path)
        if "epoch" in metadata and metadata["epoch"].isdigit():
            epoch = int(metadata["epoch"])
            return Found(path, "safetensors, checkpointkd's writer", epoch, "the file", f"epoch {epoch}", True)
        return _by_name(path, "safetensors")
    _check_archive(path, whole=False)
    content = _unpickled(path)
    flat: dict[str, Tensor] = {}
    _flatten(content, "", flat)
    if not any(tensor.is_floating_point() for tensor in flat.values()):
        return None
    if not isinstance(content, dict) or all(isinstance(value, Tensor) for value in content.values()):
        return _by_name(path, "state dict")
    epoch = _whole_number(content.get("epoch"))
    if epoch is None:
        return _by_name(path, "dict of weights")
    for name, (keys, from_zero) in FORMATS.items():
        if keys <= content.keys():
            stated = f"epoch {epoch}{' counted from 0' if from_zero else ''}"
            found = Found(path, name, epoch + from_zero, "the file", stated, True)
            return _lightnings(found, content) if name == "Lightning" else found
    return Found(path, "dict of weights", epoch, "the file", f"epoch {epoch}", False)


# Who writes files with these entries, and whether they count epochs from 0.
FORMATS: dict[str, tuple[set[str], bool]] = {
    "Lightning": ({"pytorch-lightning_version", "state_dict"}, True),
    "timm": ({"state_dict", "arch", "version", "epoch"}, True),
    "torchvision reference": ({"model", "optimizer", "lr_scheduler", "epoch", "args"}, True),
    "CheckpointKD authors": ({"model_state", "optim_state", "epoch"}, False),
    "PyTorch ImageNet example": ({"state_dict", "arch", "best_acc1", "epoch"}, False),
}


def _lightnings(found: Found, content: dict) -> Found:
    """Lightning stores how many epochs' batches are done, which tells a save within an epoch."""
    step = _whole_number(content.get("global_step"))
    try:
        done = _whole_number(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (KeyError, TypeError):
        done = None
    within = done is not None and done != found.number
    return replace(found, step=step, within=within, stated=f"{found.stated}, step {step}")


def _hugging_face(path: Path) -> Found:
    _parts(path)  # raises for what can't be read
    state_path = path / "trainer_state.json"
    if not state_path.exists():
        return _by_name(path, "Hugging Face")
    state = files.read_json(state_path)
    step, epoch = (state.get("global_step"), state.get("epoch")) if isinstance(state, dict) else (None, None)
    if _whole_number(step) is None or not isinstance(epoch, float | int) or not 0 <= epoch < 1e9:
        raise UserError(f"{state_path} is damaged: it tells no step and epoch")
    stated = f"step {step}, epoch {epoch:.3f}"
    within = abs(epoch - round(epoch)) > 1e-3
    return Found(path, "Hugging Face", int(epoch), "the file", stated, True, step=step, within=within)


def _by_name(path: Path, format: str) -> Found:
    stem = path.name.split(".")[0] if path.is_file() else path.name
    named = re.search(r"ep(?:och)?s?[=_-]?(\d{1,9})", path.name, re.IGNORECASE)
    numbers = re.findall(r"\d{1,9}", stem)
    number = int(named[1]) if named else int(numbers[-1]) if numbers else None
    return Found(path, format, number, "the file's name", path.name, False)


def _in_one_unit(found: list[Found]) -> tuple[list[Found], str]:
    """The checkpoints with completed epochs as numbers; with steps, if some were saved within an epoch."""
    if any(one.within for one in found) and all(one.step is not None for one in found):
        return [replace(one, number=one.step, exact=True) for one in found], "step"
    unsure = [one.number for one in found if one.number is not None and not one.exact]
    if unsure and min(unsure) == 0:
        found = [
            one
            if one.number is None or one.exact
            else replace(one, number=one.number + 1, stated=f"{one.stated}, counted from 0 as the first is 0")
            for one in found
        ]
    return found, "epoch"


def _check_archive(path: Path, *, whole: bool) -> None:
    """Raise UserError for an archive that is damaged or would unpack to more than it is; `whole` reads all of it."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return  # what torch.save wrote before 2020: without checksums
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(f"{path} is refused: it unpacks to more than it is, which no file of torch.save does")
            if len(set(names)) < len(names):
                raise UserError(f"{path} is refused: it holds two entries of one name")
            spoiled = archive.testzip() if whole else None
            require(spoiled is None, f"{path} is damaged: the checksum of {spoiled} in it does not match its content")
    except UserError:
        raise
    except Exception as error:  # zipfile has no one error for broken archives
        raise _damaged(path, error) from None


def _unpickled(path: Path) -> Any:
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)|`?([\w.]+)`? was not an allowed global", str(error))
        what = next((name for name in (asked.groups() if asked else ()) if name), None)
        raise UserError(
            f"{path} is refused: to read it, {what} would have to run, and weights must not run code; save its state "
            "dict alone"
            if what
            else f"{path} is damaged or holds more than weights ({_short(error)}); save its state dict alone"
        ) from None
    except Exception as error:  # whatever a damaged file makes of the reader
        raise _damaged(path, error) from None


def _flatten(value: Any, name: str, flat: dict[str, Tensor], depth: int = 0) -> None:
    if isinstance(value, Tensor):
        flat[name or "(tensor)"] = value.detach()
    elif isinstance(value, Mapping) and depth < 8:
        for key, part in value.items():
            _flatten(part, f"{name}.{key}" if name else str(key), flat, depth + 1)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged, or no checkpoint ({_short(error)})")


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _whole_number(value: Any) -> int | None:
    if isinstance(value, np.integer):
        value = int(value)
    return value if type(value) is int and 0 <= value < 10**9 else None


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return json.dumps(list(shapes[name])) if name in shapes else "absent"
