"""Other labels for the training images of a data set, from a file: noisy or corrected ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError, first_line
from .images import Images

EXPECTED = "Give a .npy file with one class number per official training image, in their order."


def relabeled(official: Images, file: Path, *, classes: int) -> Images:
    """Return the official training images with the labels of a `.npy` file: integers from 0 to classes − 1, (N,).

    Raises:
        UserError: If the file cannot be read, or does not hold one class number per image.
    """
    try:
        array: Any = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--train-labels {file} cannot be read ({first_line(error)}). {EXPECTED}") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"--train-labels {file} holds several arrays. {EXPECTED}")
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
    return replace(official, labels_N=torch.from_numpy(array.astype(np.int64)))  # type: ignore[type-var]
