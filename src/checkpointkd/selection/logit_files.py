"""Labels and logits in files of any program: NumPy's npz and npy, and safetensors.

A folder holds an array `labels` (N,) and one array (N, K) for each checkpoint. A file with one array has the file's
name, other arrays have their key. The last number in the name is the epoch.

Letters in names: N images, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from ..errors import UserError, check_exists, first_line
from ..information import LogitScores, scores_of_logits
from ..records.base import open_regular
from .rules import Candidates

LABELS = "labels"
ENDINGS = (".npz", ".npy", ".safetensors")


def candidates_of_logits(folder: Path) -> Candidates:
    """Return the checkpoints whose logits are in a folder, as rules take them.

    Raises:
        UserError: If the labels or the logits are absent, damaged, not finite, or of different images or classes.
    """
    arrays = _read_folder(folder)
    if LABELS not in arrays:
        raise UserError(
            f"{folder} has no labels. Write an array named labels, such as labels.npy. Found: {', '.join(arrays)}"
        )
    labels, where = arrays.pop(LABELS)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0:
        raise UserError(f"{where} must hold whole numbers (N,), not {labels.dtype} of shape {labels.shape}")
    if not arrays:
        raise UserError(
            f"{folder} has labels but no logits. Write one array (N, K) per checkpoint, named by its epoch."
        )
    logits: dict[int, Tensor] = {}
    names: dict[int, str] = {}
    for name, (array, where) in arrays.items():
        epoch = _epoch(name, where)
        if epoch in logits:
            raise UserError(f"{names[epoch]} and {where} are both of epoch {epoch}. Name each by another number.")
        names[epoch] = where
        logits[epoch] = _checked(array, len(labels), where)
    classes = {epoch: tensor.shape[1] for epoch, tensor in logits.items()}
    first = next(iter(classes))
    for epoch, count in classes.items():
        if count != classes[first]:
            raise UserError(f"{names[epoch]} has {count} classes, and {names[first]} has {classes[first]}")
    bad = np.flatnonzero((labels < 0) | (labels >= classes[first]))
    if len(bad):
        raise UserError(
            f"Label {labels[bad[0]]} of image {bad[0]} is not among the {classes[first]} classes, numbered from 0"
        )
    scores: LogitScores = scores_of_logits(logits, torch.from_numpy(labels.astype(np.int64)))
    return Candidates(scores.epochs, max(scores.epochs), scores)


def _read_folder(folder: Path) -> dict[str, tuple[np.ndarray, str]]:
    """Return all arrays in a folder by name, and where each is."""
    check_exists(folder, "folder of logits")
    files = sorted(file for file in folder.iterdir() if file.suffix in ENDINGS) if folder.is_dir() else [folder]
    if not files:
        raise UserError(f"{folder} holds no file with logits ({', '.join(ENDINGS)})")
    arrays: dict[str, tuple[np.ndarray, str]] = {}
    for file in files:
        content = _read_file(file)
        for key, array in content.items():
            name = file.stem if len(content) == 1 and key != LABELS else key
            if name in arrays:
                raise UserError(f"{file} and {arrays[name][1]} both hold {name!r}. Keep one.")
            arrays[name] = array, str(file) if len(content) == 1 else f"{key} in {file}"
    return arrays


def _read_file(file: Path) -> Mapping[str, np.ndarray]:
    try:
        with open_regular(file) as stream:
            if file.suffix == ".safetensors":
                return safetensors.numpy.load(stream.read())
            loaded: Any = np.load(stream, allow_pickle=False)
            return {"": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except UserError:
        raise
    except Exception as error:  # damaged files raise many kinds
        raise UserError(f"{file} is damaged, or is not a file of arrays ({first_line(error)})") from None


def _epoch(name: str, where: str) -> int:
    numbers = re.findall(r"[0-9]{1,9}", name)
    if not numbers:
        raise UserError(f"{where} has no number in its name {name!r}. Name logits by their epoch, such as epoch_10.npz")
    return int(numbers[-1])


def _checked(array: np.ndarray, images: int, where: str) -> Tensor:
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] < 2:
        raise UserError(f"{where} must hold logits (N, K), not {array.dtype} of shape {array.shape}")
    if len(array) != images:
        raise UserError(
            f"{where} has {len(array):,} images, and the labels {images:,}. Give the same images, in order."
        )
    if not np.isfinite(array).all():
        raise UserError(f"{where} has NaN or infinite values")
    return torch.from_numpy(array.astype(np.float32))
