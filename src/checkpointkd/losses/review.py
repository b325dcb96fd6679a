"""ReviewKD: knowledge review (Chen et al., CVPR 2021, "Distilling Knowledge via Knowledge Review").

Letters in names: B batch, C D channels, h w height and width. A name with C is the student's, with D the teacher's.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Batch
from .features import Adapter, FeatureMethod, FeatureSpec

MIDDLE_CHANNELS = 512  # at most
LEVELS = (4, 2, 1)  # heights and widths to which `hierarchical_distance` pools


@final
class ReviewKD(FeatureMethod):
    """Knowledge review: the student's later stages, fused with each earlier one, learn that stage of the teacher.

    Attention-based fusion (ABF) goes from the last feature to the first. The last feature is the pooled map of the last
    stage. The term is the sum of hierarchical distances (HCL) over the features. Default: weight 5, of most Wide ResNet
    runs of the authors, whose weights range from 0.6 to 8, and a warm-up of 20 of 240 epochs.
    """

    weight: ClassVar = 5.0
    warm_up: ClassVar = 20 / 240
    feature_kind: ClassVar = "stages"

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__(spec)
        student, teacher = list(spec.student.values()), list(spec.teacher.values())
        channels = [(C, D) for (C, *_), (D, *_) in zip(student, teacher, strict=True)]
        channels.append(channels[-1])  # the pooled map
        middle = min(MIDDLE_CHANNELS, channels[-1][0])
        self.fusions: nn.ModuleList = nn.ModuleList(
            Fusion(C, middle, D, fuses=number < len(channels) - 1) for number, (C, D) in enumerate(channels)
        )

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        student, teacher = ([*maps, maps[-1].mean((2, 3), keepdim=True)] for maps in (student, teacher))
        residual_BMhw: Tensor | None = None
        total_B = student[0].new_zeros(len(student[0]))
        for fusion, map_BChw, target_BDhw in reversed(list(zip(self.fusions, student, teacher, strict=True))):
            output_BDhw, residual_BMhw = fusion(map_BChw, residual_BMhw, target_BDhw.shape[-2:])
            total_B = total_B + hierarchical_distance(output_BDhw, target_BDhw)
        return total_B


@final
class Fusion(nn.Module):
    """Attention-based fusion of one stage with the residual of the later ones (Chen et al. 2021, Fig. 3a)."""

    def __init__(self, channels: int, middle: int, out_channels: int, *, fuses: bool) -> None:
        super().__init__()
        self.reduce = Adapter(channels, middle)
        self.expand = Adapter(middle, out_channels, kernel_size=3)
        self.attention = nn.Conv2d(2 * middle, 2, kernel_size=1) if fuses else None

    def forward(self, map_BChw: Tensor, residual_BMhw: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the output in the teacher's size (B, D, h, w), and the residual for the earlier stage."""
        fused_BMhw = self.reduce(map_BChw)
        if self.attention is not None and residual_BMhw is not None:
            later_BMhw = F.interpolate(residual_BMhw, map_BChw.shape[-2:], mode="nearest")
            share_B2hw = self.attention(torch.cat([fused_BMhw, later_BMhw], 1)).sigmoid()
            fused_BMhw = fused_BMhw * share_B2hw[:, :1] + later_BMhw * share_B2hw[:, 1:]
        if fused_BMhw.shape[-2:] != size:
            fused_BMhw = F.interpolate(fused_BMhw, size, mode="nearest")
        return self.expand(fused_BMhw), fused_BMhw


def hierarchical_distance(student_BDhw: Tensor, teacher_BDhw: Tensor) -> Tensor:
    """Return HCL, one value per example (B,): mean squares of the maps and of their pooled versions.

    The maps count once, and each coarser level half of the finer one. The weights are divided by their sum.
    """
    weight = total = 1.0
    distance_B = _mean_square(student_BDhw, teacher_BDhw)
    for level in LEVELS:
        if level >= student_BDhw.shape[2]:
            continue
        weight /= 2
        total += weight
        pooled = (F.adaptive_avg_pool2d(maps, level) for maps in (student_BDhw, teacher_BDhw))
        distance_B = distance_B + weight * _mean_square(*pooled)
    return distance_B / total


def _mean_square(student_BDhw: Tensor, teacher_BDhw: Tensor) -> Tensor:
    return (student_BDhw - teacher_BDhw).square().flatten(1).mean(1)
