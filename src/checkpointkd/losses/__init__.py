"""What a network can learn: losses as the papers write them, and the objectives that bring them to the loop.

An objective is an `nn.Module` called as `objective(model, batch, progress) -> (loss_B, logits_BK)`, with `progress` the
fraction of training that is done. It may own layers and state, which train and resume with the model and are left out
of its checkpoints.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ..data import Batch
from ..errors import require
from ..settings import KDSettings
from .kd import cross_entropy, kd, kl_divergence, label_smoothing, soften

__all__ = ["KD", "METHODS", "Supervised", "cross_entropy", "kd", "kl_divergence", "label_smoothing", "soften"]


class GivesLogits(Protocol):
    """A teacher, as far as losses know one."""

    def logits(self, batch: Batch) -> Tensor: ...


class Supervised(nn.Module):
    """Learn the labels, no teacher: by cross-entropy, or with label smoothing, from the uniform teacher too (§4.3)."""

    def __init__(self, *, smoothing: float = 0.0) -> None:
        super().__init__()
        require(0 <= smoothing < 1, f"label smoothing must be at least 0 and below 1, not {smoothing}")
        self.smoothing = smoothing

    def forward(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Tensor]:
        logits_BK = model(batch.images_BCHW)
        if self.smoothing == 0:
            return cross_entropy(logits_BK, batch.labels_B), logits_BK
        return label_smoothing(logits_BK, batch.labels_B, alpha=1 - self.smoothing), logits_BK


class KD(nn.Module):
    """Learn the labels and the teachers' softened predictions on the same views: Eq. 1 and Eq. 2."""

    def __init__(self, teacher: GivesLogits, settings: KDSettings) -> None:
        super().__init__()
        self.teacher, self.settings = teacher, settings

    def forward(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Tensor]:
        logits_BK = model(batch.images_BCHW)
        teacher_TBK = self.teacher.logits(batch) if batch.teacher_TBK is None else batch.teacher_TBK
        return kd(logits_BK, teacher_TBK, batch.labels_B, self.settings), logits_BK


METHODS: dict[str, type[KD]] = {"kd": KD}
