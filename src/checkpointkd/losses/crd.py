"""Contrastive representation distillation (Tian, Krishnan and Isola, ICLR 2020).

Letters in names: N training images, B batch, E embedding size, K classes in the label tables, and in pairs the true
one and its negatives.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Batch
from ..errors import UserError
from .features import EPS, FeatureMethod, FeatureSpec, global_avg_pool


@final
class CRD(FeatureMethod):
    """Contrast the student's and the teacher's embedding of an image with those of other classes' images (Eqs. 17–19).

    Both directions are used: student against the teacher's memory, and teacher against the student's. A memory holds
    one embedding of 128 entries per training image and moves halfway to each new embedding. As in the authors' code,
    the probability of a pair is exp(s·t/0.07)/Z, with Z estimated from the first batch. Each example has 16,384
    negatives, drawn with repetition.
    """

    weight: ClassVar = 0.8
    uses_labels: ClassVar = True
    feature_kind: ClassVar = "vector"
    embedding_size: ClassVar = 128
    temperature: ClassVar = 0.07
    momentum: ClassVar = 0.5

    row_of_index: Tensor
    rows_by_label_N: Tensor
    first_row_K: Tensor
    count_K: Tensor
    student_memory_NE: Tensor
    teacher_memory_NE: Tensor
    student_z: Tensor
    teacher_z: Tensor

    def __init__(self, spec: FeatureSpec, *, negatives: int = 16_384) -> None:
        super().__init__(spec)
        if len(spec.student) != 1:
            raise UserError(
                f"crd takes 1 feature, not {len(spec.student)} ({', '.join(spec.student)}). Name one feature with "
                "--student-features and --teacher-features."
            )
        ((C, *_),), ((D, *_),) = spec.student.values(), spec.teacher.values()
        self.student_embedding = nn.Linear(C, self.embedding_size)
        self.teacher_embedding = nn.Linear(D, self.embedding_size)
        self.negatives = negatives
        labels_N, image_count = spec.labels_N.cpu(), len(spec.labels_N)
        row_of_index = torch.full((int(spec.index_N.max()) + 1,), -1)
        row_of_index[spec.index_N.cpu()] = torch.arange(image_count)
        count_K = labels_N.bincount()
        tables = {
            "row_of_index": row_of_index,  # an image's row in the memories, by its number in the data set
            "rows_by_label_N": labels_N.argsort(stable=True),
            "first_row_K": count_K.cumsum(0) - count_K,
            "count_K": count_K,
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        for side in ("student", "teacher"):
            memory_NE = (torch.rand(image_count, self.embedding_size) * 2 - 1) * (3 / self.embedding_size) ** 0.5
            self.register_buffer(f"{side}_memory_NE", memory_NE)
            self.register_buffer(f"{side}_z", torch.zeros(()))  # 0 until estimated

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        student_BE = F.normalize(self.student_embedding(global_avg_pool(student[0])), eps=EPS)
        teacher_BE = F.normalize(self.teacher_embedding(global_avg_pool(teacher[0])), eps=EPS)
        row_B = self.row_of_index[batch.index_B]
        pair_BK = torch.cat([row_B[:, None], self.draw_negatives(batch.labels_B)], 1)
        loss_B = self._contrast(student_BE, self.teacher_memory_NE, pair_BK, self.student_z)
        loss_B = loss_B + self._contrast(teacher_BE, self.student_memory_NE, pair_BK, self.teacher_z)
        if self.training:
            self.student_memory_NE = self._updated(self.student_memory_NE, row_B, student_BE)
            self.teacher_memory_NE = self._updated(self.teacher_memory_NE, row_B, teacher_BE)
        return loss_B

    def draw_negatives(self, labels_B: Tensor) -> Tensor:
        """Draw memory rows of images of other classes, with repetition (B, K)."""
        count_B1, first_row_B1 = self.count_K[labels_B][:, None], self.first_row_K[labels_B][:, None]
        candidates_B1 = (len(self.rows_by_label_N) - count_B1).clamp_min(1)
        draw_BK = (torch.rand(len(labels_B), self.negatives, device=labels_B.device) * candidates_B1).long()
        draw_BK = draw_BK.minimum(candidates_B1 - 1)  # rounding can reach the end
        position_BK = draw_BK + (draw_BK >= first_row_B1) * count_B1  # skip the images of the same class
        return self.rows_by_label_N[position_BK.clamp_max(len(self.rows_by_label_N) - 1)]

    def _contrast(self, anchor_BE: Tensor, memory_NE: Tensor, pair_BK: Tensor, z: Tensor) -> Tensor:
        """Return the noise-contrastive loss of the anchors against a memory (B,); estimate Z on the first batch."""
        # To compute all similarities and gather some costs far less than to gather the embeddings.
        similarity_BK = (anchor_BE @ memory_NE.T / self.temperature).gather(1, pair_BK).exp()
        if self.training:  # `where`, because an `if` on the value of z would synchronize with the device
            z.copy_(torch.where(z == 0, similarity_BK.detach().mean() * len(memory_NE), z))
        return noise_contrastive(similarity_BK / z, images=len(memory_NE))

    @torch.no_grad()
    def _updated(self, memory_NE: Tensor, row_B: Tensor, embedding_BE: Tensor) -> Tensor:
        """Return an updated copy of a memory; the gradients of this step still need the old one."""
        mixed_BE = self.momentum * memory_NE[row_B] + (1 - self.momentum) * embedding_BE
        return memory_NE.index_copy(0, row_B, F.normalize(mixed_BE, eps=EPS).to(memory_NE.dtype))


def noise_contrastive(p_BK: Tensor, *, images: int) -> Tensor:
    """Return −log h − Σ log(1 − h) with h = p/(p + K/N), one value per example (B,) (Eqs. 17–19).

    Args:
        p_BK: The pairs' probabilities; the first column is the true pair, the others are negatives.
        images: N, the number of training images.

    With h = 1/2 for a true pair and one negative, the loss is 2·log 2:

    >>> round(noise_contrastive(torch.tensor([[0.5, 0.5]]), images=2).item(), 4)
    1.3863
    """
    noise = (p_BK.shape[1] - 1) / images
    return -(p_BK[:, 0] / (p_BK[:, 0] + noise)).log() - (noise / (p_BK[:, 1:] + noise)).log().sum(1)
