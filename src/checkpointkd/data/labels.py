"""Replace the labels of a data set's training images by labels from a file, such as noisy or corrected labels."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError, first_line
from ..records.base import open_regular
from .images import Images

log = logging.getLogger("checkpointkd")

MAGIC = b"\x93NUMPY"  # the first bytes of a .npy file

EXPECTED = "Give a .npy file with one class number per official training image, in the order of the images."


def relabeled(official: Images, file: Path, *, classes: int) -> Images:
    """Return the official training images with the labels of a `.npy` file.

    Args:
        official: The official training images.
        file: A `.npy` file with integers from 0 to classes − 1, (N,).
        classes: The number of classes.

    Raises:
        UserError: If the file cannot be read, does not hold one class number per image, or lacks a class.
    """
    array = _read(file)
    if array.dtype.kind not in "iu":
        raise UserError(f"--train-labels {file} holds values of type {array.dtype}, not integers. {EXPECTED}")
    if array.shape != (len(official),):
        raise UserError(
            f"--train-labels {file} has the shape {array.shape}, but there are {len(official):,} official training "
            f"images. {EXPECTED}"
        )
    wrong = np.flatnonzero((array < 0) | (array >= classes))
    if len(wrong):
        raise UserError(
            f"--train-labels {file} has the label {array[wrong[0]]} at position {wrong[0]}. The {classes} classes are "
            f"numbered from 0 to {classes - 1}."
        )
    missing = np.setdiff1d(np.arange(classes), array)
    if len(missing):
        raise UserError(
            f"--train-labels {file} has no image of class {missing[0]}. Give labels with each of the {classes} classes."
        )
    differing = 100 * float(np.mean(array != official.labels_N.numpy()))
    log.info("Labels of the training images: %s; %.1f%% differ from the data set's", file, differing)
    return replace(official, labels_N=torch.from_numpy(array.astype(np.int64)))  # type: ignore[type-var]


def _read(file: Path) -> Any:
    """Return the array of a `.npy` file."""
    try:
        with open_regular(file) as opened:
            if opened.read(len(MAGIC)) != MAGIC:
                raise UserError(f"--train-labels {file} is not a .npy file. {EXPECTED}")
            opened.seek(0)
            return np.load(opened, allow_pickle=False)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--train-labels {file} cannot be read ({error.strerror or error}). {EXPECTED}") from None
    except Exception as error:  # a damaged header raises errors of many types
        raise UserError(f"--train-labels {file} cannot be read ({first_line(error)}). {EXPECTED}") from None
