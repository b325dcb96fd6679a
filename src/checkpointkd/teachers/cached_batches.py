"""Batches that carry the teachers' logits, from the logit cache.

For images in memory, (seed, epoch) determines which view of each image an epoch uses. So missing logits are computed
before the epoch begins. The epoch's logits are on the device, and no step waits for a teacher. `loaded_batches` does
the same for images that workers load, at each step.

Letters in names: N training images, T teachers, B batch, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config import TEACHER_FORWARD, OnProgress, Precision
from ..data import Batch, EpochLoader, InMemoryBatches
from ..data.loading import LoadedBatches
from ..data.own import OwnImages
from ..device import autocast
from ..errors import UserError, first_line, format_bytes
from . import loaded_batches
from .ensemble import Teacher
from .logit_cache import LogitFile, manifests_of, size_of, user_code_in, view_logits

log = logging.getLogger("checkpointkd")

FILL_BATCH = 250  # images in every forward pass that fills the cache: logits never depend on how many were missing


class CachedTeacherBatches:
    """An epoch loader whose batches carry the teachers' logits, from one `LogitFile` per teacher."""

    def __init__(
        self,
        batches: InMemoryBatches,
        teacher: Teacher,
        files: list[LogitFile],
        *,
        precision: Precision,
        on_progress: OnProgress,
        active_teachers: Callable[[int], Collection[int]] | None = None,
    ) -> None:
        self.batches, self.teacher, self.files = batches, teacher, files
        self.precision: Precision = precision
        self.on_progress = on_progress
        self.active_teachers = active_teachers or (lambda epoch: range(len(files)))

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of the epoch that follows `epoch` completed ones, with `teacher_TBK` in float32."""
        view_N = self.batches.view_N(epoch)
        logits_TNK = self.logits(view_N, self.active_teachers(epoch))
        for row_G in self.batches.rows(epoch)[start:]:
            row_B = self.batches.ranks.part(row_G)
            batch = self.batches.batch(row_B, view_N[row_B])
            yield replace(batch, teacher_TBK=logits_TNK[:, row_B].float(), total=len(row_G))

    def logits(self, view_N: Tensor, members: Collection[int] | None = None) -> Tensor:
        """Return the teachers' logits of one view of each image, and store those that were missing.

        With several processes, image i belongs to process i mod their number. Each process looks up and computes its
        own images. Then all processes share the logits, once per epoch.

        Args:
            view_N: The number of the view of each image.
            members: The teachers that are needed; None for all. The others' logits are zeros.

        Returns:
            Logits (T, N, K) in float16, on the device of the batches.
        """
        ranks = self.batches.ranks
        own_N = torch.arange(ranks.rank, len(view_N), ranks.world_size)
        row_N = own_N * len(self.batches.views) + view_N.cpu()[own_N]
        stored, missing = [], []
        for member, file in enumerate(self.files):
            if members is not None and member not in members:
                stored.append(torch.zeros(len(row_N), file.classes, dtype=torch.float16))
                missing.append(row_N[:0])
                continue
            logits_NK, valid_N = file.read(row_N)
            stored.append(logits_NK)
            missing.append((~valid_N).nonzero().flatten())
        total, done = sum(map(len, missing)), 0
        for member, (file, logits_NK, missing_M) in enumerate(zip(self.files, stored, missing, strict=True)):
            for start in range(0, len(missing_M), FILL_BATCH):
                image_B = missing_M[start : start + FILL_BATCH]
                logits_BK = self._compute(member, own_N[image_B], view_N)
                file.write(row_N[image_B], logits_BK)
                logits_NK[image_B] = file.as_read(logits_BK)
                done += len(image_B)
                if total > 10 * FILL_BATCH:  # a progress bar for less would only flicker
                    self.on_progress(TEACHER_FORWARD, done, total)
        logits_NTK = ranks.gather(torch.stack(stored, 1).to(self.batches.device))
        if ranks.world_size > 1:
            owners = [torch.arange(rank, len(view_N), ranks.world_size) for rank in range(ranks.world_size)]
            logits_NTK = logits_NTK[torch.cat(owners).argsort()]
        return logits_NTK.transpose(0, 1)

    def _compute(self, member: int, image_B: Tensor, view_N: Tensor) -> Tensor:
        """One teacher's logits (B, K) on the CPU, by a forward pass of FILL_BATCH images, some of them repeated."""
        filled_B = image_B.repeat(-(-FILL_BATCH // len(image_B)))[:FILL_BATCH].to(self.batches.device)
        batch = self.batches.batch(filled_B, view_N[filled_B])
        with autocast(self.batches.device, self.precision):
            return self.teacher.member_logits(member, batch)[: len(image_B)].cpu()


def with_cached_logits(
    batches: EpochLoader,
    images: Any,
    teacher: Teacher,
    *,
    precision: Precision,
    limit: int,
    on_progress: OnProgress,
    top_k: int | None = None,
    active_teachers: Callable[[int], Collection[int]] | None = None,
) -> EpochLoader:
    """Return the batches with the teachers' logits from the logit cache.

    Where logits cannot be cached, return the batches as they are, and log why. Teachers then run at every step.

    Args:
        limit: What the whole cache may take up, in bytes.
        top_k: How many of the largest logits are stored; None for all.
        active_teachers: The teachers that are used in the epoch that follows so many completed ones. By default all.
    """
    if (reason := _cannot_cache(batches, images, teacher)) is not None:
        log.info("Teachers run at every step: %s", reason)
        return batches
    assert isinstance(batches, InMemoryBatches | LoadedBatches)
    in_memory = isinstance(batches, InMemoryBatches)
    manifests = manifests_of(
        teacher.members,
        images,
        views=batches.views if isinstance(batches, InMemoryBatches) else batches.augmentation,
        precision=precision,
        device=batches.device,
        batch_size=FILL_BATCH if in_memory else loaded_batches.FILL_BATCH,
        top_k=top_k,
    )
    files, problem = None, ""
    try:
        files = view_logits(manifests, limit=limit)
    except (UserError, OSError, RuntimeError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    failed = torch.tensor(float(files is None), device=batches.device)
    if float(batches.ranks.max(failed)) or files is None:  # all processes go on alike
        log.warning(
            "Teachers run at every step, because their logits (%s each) cannot be cached: %s",
            format_bytes(size_of(manifests[0].rows, manifests[0].classes, top_k)),
            problem or "another process has no room for them",
        )
        return batches
    if isinstance(batches, LoadedBatches):
        return loaded_batches.LoadedTeacherBatches(
            batches, teacher, files, precision=precision, active_teachers=active_teachers
        )
    return CachedTeacherBatches(
        batches, teacher, files, precision=precision, active_teachers=active_teachers, on_progress=on_progress
    )


def _cannot_cache(batches: EpochLoader, images: Any, teacher: Teacher) -> str | None:
    """Return why the teachers' logits cannot be cached, or None."""
    if teacher.batch_norm == "batch":
        return "with batch statistics, logits depend on the other images of a batch"
    if (model := user_code_in(teacher.members)) is not None:
        return f"the code of {model} may change, so its logits are not cached"
    if not isinstance(batches, InMemoryBatches | LoadedBatches) or isinstance(images, OwnImages):
        return "your own data may change, so their logits are not cached"
    if isinstance(batches, LoadedBatches) and batches.views is None:
        return "the views of these images are new in every epoch. With --views, such as --views 8, logits are cached"
    return None
