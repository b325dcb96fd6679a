"""Contrastive representation distillation (Tian, Krishnan and Isola, ICLR 2020).

Letters in names: N training images, B batch, E size of an embedding, K negatives.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Batch
from ..errors import UserError
from .features import EPS, FeatureKind, FeatureSpec, global_avg_pool


@final
class CRD(nn.Module):
    """Tell the pair of the student's and the teacher's view of an image from pairs with images of other classes: the
    paper's Eqs. 17–19, with memories of both embeddings of all images, both ways round.

    The probability of a pair is exp(s·t/0.07)/Z, as in the authors' code, Z estimated on the first batch. 16,384
    negatives are drawn, with repetition; embeddings have 128 entries, memories change by half at each sight.
    """

    alpha: ClassVar = 1.0
    weight: ClassVar = 0.8
    takes: ClassVar[FeatureKind] = "vector"
    size: ClassVar = 128
    temperature: ClassVar = 0.07
    momentum: ClassVar = 0.5

    row_of: Tensor
    by_label_N: Tensor
    first_K: Tensor
    count_K: Tensor
    memory_ours_NE: Tensor
    memory_theirs_NE: Tensor
    scale_ours: Tensor
    scale_theirs: Tensor

    def __init__(self, pairing: FeatureSpec, *, negatives: int = 16_384) -> None:
        super().__init__()
        if len(pairing.student) != 1:
            raise UserError(f"crd contrasts one feature, not {len(pairing.student)} ({', '.join(pairing.student)})")
        (student,), (teacher,) = pairing.student.values(), pairing.teacher.values()
        self.embed_ours = nn.Linear(student[0], self.size)
        self.embed_theirs = nn.Linear(teacher[0], self.size)
        self.negatives = negatives
        labels_N, count = pairing.labels_N.cpu(), len(pairing.labels_N)
        row_of = torch.full((int(pairing.index_N.max()) + 1,), -1)
        row_of[pairing.index_N.cpu()] = torch.arange(count)
        count_K = labels_N.bincount()
        for name, value in (
            ("row_of", row_of),  # an image's row, by its number in the official data set
            ("by_label_N", labels_N.argsort(stable=True)),
            ("first_K", count_K.cumsum(0) - count_K),
            ("count_K", count_K),
        ):
            self.register_buffer(name, value, persistent=False)
        for whose in ("ours", "theirs"):
            memory_NE = (torch.rand(count, self.size) * 2 - 1) * (3 / self.size) ** 0.5
            self.register_buffer(f"memory_{whose}_NE", memory_NE)
            self.register_buffer(f"scale_{whose}", torch.zeros(()))  # Z, 0 until it is known

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        ours_BE = F.normalize(self.embed_ours(global_avg_pool(student[0])), eps=EPS)
        theirs_BE = F.normalize(self.embed_theirs(global_avg_pool(teacher[0])), eps=EPS)
        row_B = self.row_of[batch.index_B]
        pair_BK = torch.cat([row_B[:, None], self.others(batch.labels_B)], 1)
        loss_B = self._contrast(ours_BE, self.memory_theirs_NE, pair_BK, self.scale_ours)
        loss_B = loss_B + self._contrast(theirs_BE, self.memory_ours_NE, pair_BK, self.scale_theirs)
        if self.training:
            self.memory_ours_NE = self._remember(self.memory_ours_NE, row_B, ours_BE)
            self.memory_theirs_NE = self._remember(self.memory_theirs_NE, row_B, theirs_BE)
        return loss_B

    def others(self, labels_B: Tensor) -> Tensor:
        """Rows of images of other classes, drawn with repetition, (B, K)."""
        count_B1, first_B1 = self.count_K[labels_B][:, None], self.first_K[labels_B][:, None]
        many_B1 = (len(self.by_label_N) - count_B1).clamp_min(1)
        drawn_BK = (torch.rand(len(labels_B), self.negatives, device=labels_B.device) * many_B1).long()
        drawn_BK = drawn_BK.minimum(many_B1 - 1)  # rounding can reach the end
        place_BK = drawn_BK + (drawn_BK >= first_B1) * count_B1
        return self.by_label_N[place_BK.clamp_max(len(self.by_label_N) - 1)]

    def _contrast(self, anchor_BE: Tensor, memory_NE: Tensor, pair_BK: Tensor, scale: Tensor) -> Tensor:
        """−log h of the pair less Σ log(1 − h) over the negatives, (B,)."""
        # all images' similarities, then those that are wanted: far less than to gather the vectors themselves
        likeness_BK = (anchor_BE @ memory_NE.T / self.temperature).gather(1, pair_BK).exp()
        if self.training:  # without a look at the number, which would wait for the device
            scale.copy_(torch.where(scale == 0, likeness_BK.detach().mean() * len(memory_NE), scale))
        return noise_contrastive(likeness_BK / scale, images=len(memory_NE))

    @torch.no_grad()
    def _remember(self, memory_NE: Tensor, row_B: Tensor, seen_BE: Tensor) -> Tensor:
        """The memory with what was seen; another tensor, since gradients of this step need the one that was."""
        kept_BE = self.momentum * memory_NE[row_B] + (1 - self.momentum) * seen_BE
        return memory_NE.index_copy(0, row_B, F.normalize(kept_BE, eps=EPS).to(memory_NE.dtype))


def noise_contrastive(p_BK: Tensor, *, images: int) -> Tensor:
    """−log h − Σ log(1 − h) with h = p/(p + K/N), the first column being the true pair, (B,): Eqs. 17–19.

    With h = 1/2 for both it is twice log 2.

    >>> round(noise_contrastive(torch.tensor([[0.5, 0.5]]), images=2).item(), 4)
    1.3863
    """
    noise = (p_BK.shape[1] - 1) / images
    return -(p_BK[:, 0] / (p_BK[:, 0] + noise)).log() - (noise / (p_BK[:, 1:] + noise)).log().sum(1)
