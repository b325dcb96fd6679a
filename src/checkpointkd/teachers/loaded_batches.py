"""Batches of images that workers load, with the teachers' logits of their fixed views from the logit cache.

Missing logits are computed at the step that trains on the images, which are decoded only once. So the first student
costs one teacher pass per view, and later students cost none.

Letters in names: N training images, T teachers, B batch, M some images of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..config import Precision
from ..data import Batch
from ..data.loading import LoadedBatches
from ..device import autocast
from .ensemble import Teacher
from .logit_cache import LogitFile

FILL_BATCH = 32  # images in every forward pass that fills the cache: logits never depend on how many were missing


class LoadedTeacherBatches:
    """An epoch loader of fixed views whose batches carry the teachers' logits, from one `LogitFile` per teacher."""

    def __init__(
        self,
        batches: LoadedBatches,
        teacher: Teacher,
        files: list[LogitFile],
        *,
        precision: Precision,
        active_teachers: Callable[[int], Collection[int]] | None = None,
    ) -> None:
        assert batches.views is not None
        self.batches, self.teacher, self.files, self.views = batches, teacher, files, batches.views
        self.precision: Precision = precision
        self.active_teachers = active_teachers or (lambda epoch: range(len(files)))

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of the epoch that follows `epoch` completed ones, with `teacher_TBK` in float32.

        The logits of teachers that are not used in this epoch are zeros.
        """
        active, view_N = self.active_teachers(epoch), self.batches.view_N(epoch)
        for row_B, batch in self.batches.rows_and_batches(epoch, start=start):
            place_B = row_B * self.views + view_N[row_B]
            logits_TBK = torch.stack(
                [
                    self._logits(member, place_B, batch)
                    if member in active
                    else torch.zeros(len(row_B), file.classes, dtype=torch.float16)
                    for member, file in enumerate(self.files)
                ]
            )
            yield replace(batch, teacher_TBK=logits_TBK.to(self.batches.device, non_blocking=True).float())

    def _logits(self, member: int, place_B: Tensor, batch: Batch) -> Tensor:
        """Return one teacher's logits (B, K) on the CPU, and store those that were missing."""
        file = self.files[member]
        logits_BK, valid_B = file.read(place_B)
        missing_M = (~valid_B).nonzero().flatten()
        for start in range(0, len(missing_M), FILL_BATCH):
            some_M = missing_M[start : start + FILL_BATCH]
            filled = some_M.repeat(-(-FILL_BATCH // len(some_M)))[:FILL_BATCH].to(batch.images_BCHW.device)
            images_BCHW = batch.images_BCHW[filled].contiguous(memory_format=torch.channels_last)
            with autocast(images_BCHW.device, self.precision):
                computed = self.teacher.member_logits(member, replace(batch, images_BCHW=images_BCHW))
            computed_MK = computed[: len(some_M)].cpu()
            file.write(place_B[some_M], computed_MK)
            logits_BK[some_M] = file.as_read(computed_MK)
        return logits_BK
