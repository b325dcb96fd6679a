"""scikit-learn's digits: 1,797 real gray images of 8×8 pixels in 17 levels, embedded in the package, no download.

There is no official split; ours keeps a stratified third (599) as the test set. A tenth of the rest would select by 120
images, ±2.7 points at 90%; so a quarter (300) does.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from ..config import DataConfig, OnProgress
from ..errors import UserError
from .cache import Decoded, cached_decode
from .datasets import DataSet
from .images import in_memory
from .splits import complement, stratified
from .views import Views

TEST_IMAGES = 599


def digits(path: str | None, settings: DataConfig, tell: OnProgress) -> DataSet:
    """The data set `digits`; it has no path."""
    if path is not None:
        raise UserError(f"the digits are part of scikit-learn and have no path; say `digits`, not `digits:{path}`")
    pixels_NCHW, labels_N = cached_decode(f"digits of scikit-learn {version('scikit-learn')}", _decode)
    views, classes = Views(pad=1, flip=settings.flip is True), tuple(map(str, range(10)))
    everything = in_memory(pixels_NCHW, labels_N, what="the digits", classes=classes, views=views, white=16)
    test_M = stratified(labels_N, TEST_IMAGES, seed=0, purpose="test")
    return DataSet(
        classes=classes,
        recipe="digits",
        val_fraction=0.25,
        train=lambda: everything.subset(complement(len(labels_N), test_M)),
        test=lambda: everything.subset(test_M),
    )


def _decode() -> Decoded:
    """All 1,797: pixels (1797, 1, 8, 8), uint8 from 0 to 16, and labels."""
    from sklearn.datasets import load_digits  # takes as long to import as PyTorch, hence once

    bunch: Any = load_digits()
    return torch.from_numpy(bunch.images).to(torch.uint8)[:, None], torch.from_numpy(bunch.target).long()
