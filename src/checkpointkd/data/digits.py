"""scikit-learn's digits: 1,797 real grey images of 8×8 pixels in 17 levels, embedded in the package, no download.

There is no official split; ours keeps a stratified third (599) as the test set. A tenth of the rest would select by 120
images, ±2.7 points at 90 %; so a quarter (300) does.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import require
from ..settings import DataSettings, Progress
from .images import resident
from .sets import DataSet
from .splits import stratified, without
from .views import Views

TEST_IMAGES = 599


def digits(path: str | None, settings: DataSettings, tell: Progress) -> DataSet:
    """The data set `digits`; it has no path."""
    require(path is None, f"the digits are part of scikit-learn and have no path; say `digits`, not `digits:{path}`")
    from sklearn.datasets import load_digits  # takes as long to import as PyTorch, and other data need none of it

    bunch: Any = load_digits()
    pixels_NCHW = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    labels_N = torch.from_numpy(bunch.target).long()
    views, classes = Views(pad=1, flip=settings.flip is True), tuple(str(name) for name in bunch.target_names)
    everything = resident(pixels_NCHW, labels_N, what="the digits", classes=classes, views=views, white=16)
    test_M = stratified(labels_N, TEST_IMAGES, seed=0, purpose="test")
    return DataSet(
        classes=classes,
        recipe="digits",
        selection_fraction=0.25,
        train=lambda: everything.take(without(len(labels_N), test_M)),
        test=lambda: everything.take(test_M),
    )
