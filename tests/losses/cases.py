"""Inputs that the tests of several methods share: small random features and logits in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from checkpointkd.data import Batch
from checkpointkd.losses import METHODS, takes_features
from checkpointkd.losses.features import FeatureSpec

B, K, N = 5, 4, 12
LOGIT_METHODS = [name for name in METHODS if not takes_features(name)]
FEATURE_METHODS = [name for name in METHODS if takes_features(name)]
LABELS = torch.tensor([0, 1, 2, 3, 1])
BATCH = Batch(torch.zeros(B, 1, 8, 8), LABELS, torch.tensor([4, 0, 7, 3, 9]), None)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_features(name: str, *, seed: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """Return the student's and the teacher's features of a batch, in sizes that suit the method."""
    if METHODS[name].feature_kind == "stages":
        channels = [(2, 3), (3, 4)] if name != "fsp" else [(3, 3), (4, 4)]
    else:
        channels = [(3, 5)]
    side = 1 if METHODS[name].feature_kind == "vector" else 2
    student = [random(B, C, side, side, seed=seed + n) for n, (C, _) in enumerate(channels)]
    teacher = [random(B, D, side, side, seed=seed + 10 + n) for n, (_, D) in enumerate(channels)]
    return student, teacher


def feature_spec(student: list[Tensor], teacher: list[Tensor]) -> FeatureSpec:
    def sizes(features: list[Tensor]) -> dict[str, tuple[int, int, int]]:
        return {f"layer{n}": (x.shape[1], x.shape[2], x.shape[3]) for n, x in enumerate(features)}

    labels = torch.arange(N) % K
    labels[BATCH.index_B] = LABELS
    return FeatureSpec(sizes(student), sizes(teacher), labels, torch.arange(N))


def build_method(name: str, student: list[Tensor], teacher: list[Tensor], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return METHODS[name](feature_spec(student, teacher), **options).double()
