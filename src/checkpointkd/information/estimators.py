"""What an estimator of I(X;F) is, and those that there are.

Letters in names: A checkpoints, S fits of an estimator, N images, D channels, h w map height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import EstimatorConfig
from ..data import Images
from ..models import Network
from ..training.loop import OnStep
from ..user_code import import_object
from .decoder import decoder_information
from .ridge import ridge_information


class ImageInformationEstimator(Protocol):
    """An estimator of I(X;F), from clean images and the maps (N, h, w, D) that each of A checkpoints makes of them.

    The maps are float32, or float16 for large images. They may lie on another device than the one to compute on.

    It fits on some images and measures on others. It returns each measured image's contribution (A, S, N), whose mean
    is the estimate, larger for more information. It also returns further numbers, one per checkpoint, by name.
    """

    def __call__(
        self,
        fitted_on: Images,
        fitted_maps_ANhwD: Sequence[Tensor] | Tensor,
        measured_on: Images,
        measured_maps_ANhwD: Sequence[Tensor] | Tensor,
        *,
        settings: EstimatorConfig,
        on_step: OnStep | None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, dict[str, list[float]]]: ...


ESTIMATORS: dict[str, ImageInformationEstimator] = {"decoder": decoder_information, "ridge": ridge_information}


def get_estimator(name: str) -> ImageInformationEstimator:
    """Return an estimator: one of `ESTIMATORS`, or a user's own as `package.module:function`."""
    return ESTIMATORS[name] if name in ESTIMATORS else import_object(name, kind="Estimator")


class ScoredCheckpoint(Protocol):
    """What scoring needs of a checkpoint."""

    @property
    def epoch(self) -> int: ...
    @property
    def sha256(self) -> Any: ...
    @property
    def path(self) -> Path: ...
    def network(self, device: torch.device | str = ..., /) -> Network: ...
