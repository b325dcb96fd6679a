"""scikit-learn's digits: 1,797 gray images of 8×8 pixels with 17 gray levels, which need no download.

There is no official split. A stratified third (599 images) is the test set here. A quarter of the rest (300 images)
validates, because a tenth would measure an accuracy of 90% only to ±2.7 points.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from ..config import DataConfig, OnProgress
from ..errors import UserError
from .cache import Decoded, cached_decode
from .datasets import DataSet
from .in_memory import in_memory
from .splits import complement, stratified
from .views import Views

TEST_IMAGES = 599


def digits(path: str | None, settings: DataConfig, on_progress: OnProgress) -> DataSet:
    """Return the data set `digits`; it has no path."""
    if path is not None:
        raise UserError(f"The digits come with scikit-learn and have no path. Give `digits`, not `digits:{path}`.")
    pixels_NCHW, labels_N = cached_decode(f"digits of scikit-learn {version('scikit-learn')}", _decode)
    views, classes = Views(pad=1, flip=settings.flip is True), tuple(map(str, range(10)))
    images = in_memory(pixels_NCHW, labels_N, source="the digits", classes=classes, views=views, max_value=16)
    test_M = stratified(labels_N, TEST_IMAGES, seed=0, purpose="test")
    return DataSet(
        classes=classes,
        recipe="digits",
        val_fraction=0.25,
        train=lambda: images.subset(complement(len(labels_N), test_M)),
        test=lambda: images.subset(test_M),
    )


def _decode() -> Decoded:
    """Return all images: pixels (1797, 1, 8, 8), uint8 from 0 to 16, and labels."""
    from sklearn.datasets import load_digits  # takes as long to import as PyTorch, so the result is cached

    bunch: Any = load_digits()
    return torch.from_numpy(bunch.images).to(torch.uint8)[:, None], torch.from_numpy(bunch.target).long()
