"""Images, labels and teacher logits from the cache, for a training loop of your own.

Letters in names: N training images, B batch, C channels, H W height and width, T teachers, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..checkpoints import resolve_ensemble
from ..config import LOGIT_CACHE_GB, Augmentation, OnProgress, Precision, SelectOn, check_choice
from ..data import Batch, EpochLoader, config_like, load_data
from ..device import usable_device
from ..errors import UserError
from ..losses.top_logits import check_top_k, keep_top_logits
from ..user_data import Data
from .cached_batches import CachedTeacherBatches, with_cached_logits
from .ensemble import Teacher, check_compatible
from .teacher_module import texts_of


def cached_logits(
    *references: Path | str,
    data: str | Data | None = None,
    batch_size: int = 64,
    seed: int = 0,
    augment: bool = True,
    views: int | None = None,
    top_k: int | None = None,
    ensemble: str | None = None,
    train_images: int | None = None,
    select_on: SelectOn | None = None,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
    logit_cache_gb: float = LOGIT_CACHE_GB,
    on_progress: OnProgress | None = None,
) -> CachedLogits:
    """Return training batches with the logits of teachers, for a training loop of your own.

    `distill` with the same data, batch size and seed has the same batches: the same images, order and augmented views.
    The teachers see exactly these views. Logits that are missing in the cache are computed at the start of an epoch.

    Example:

        batches = ckd.cached_logits("runs/teacher@last", batch_size=64)
        for epoch in range(20):
            for batch in batches.epoch(epoch):
                loss = my_loss(student(batch.images_BCHW), batch.labels_B, batch.teacher_TBK.mean(0))

    Args:
        references: One or more checkpoint references, such as `runs/teacher@last`.
        data: The data set, as for `distill`: a name or a `checkpointkd.Data`. None: the data set of the teachers' run.
        batch_size: Images per batch; the last batch of an epoch may be smaller.
        seed: Seed of the order and of the augmentation.
        augment: Whether images are padded, cropped and flipped, as in `distill`.
        views: The number of fixed augmented views of each image, as `--views`. None: a new view in every epoch.
        top_k: The number of the largest logits that are kept for each image, as `--top-k`. Each of the other logits is
            replaced by their mean. None: all logits.
        ensemble: `snapshot:K`, `full:K`, `mixed` or `all`, as for `distill`.
        train_images: Use a class-balanced subset of this many training images. None: the teachers' number.
        select_on: `val` or `test`, as for `distill`. None: as in the teachers' run.
        precision: Precision of the teachers' forward passes: `fp32`, `bf16` or `fp16`.
        device: Device of the images, logits and teachers.
        logit_cache_gb: Largest size of the whole logit cache, in GB.
        on_progress: Called while missing logits are computed.

    Raises:
        UserError: If a reference names no checkpoint, or if the teachers' classes differ from each other or from the
            classes of the data set.
    """
    check_choice("precision", precision, Precision)
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    if not 0 <= logit_cache_gb < 1e9:
        raise UserError(f"logit_cache_gb must be from 0 to 10⁹, not {logit_cache_gb}")
    if views is not None and not (isinstance(views, int) and augment):
        raise UserError(f"views takes a number of augmented views, and needs augment=True, not {views!r}")
    device = usable_device(device)
    members = resolve_ensemble(texts_of(references, "cached_logits()"), ensemble)
    config = config_like(members[0].checkpoint.run.data, data, select_on, train_images)
    loaded = load_data(config, on_progress=on_progress)
    teacher = Teacher(members, device=device, cache_limit=int(logit_cache_gb * 1e9))
    check_compatible(teacher, loaded)
    check_top_k(top_k, len(loaded.classes))
    batches = with_cached_logits(
        loaded.train.batches(
            batch_size=batch_size, seed=seed, device=device, augmentation=Augmentation(views=views) if augment else None
        ),
        loaded.train,
        teacher,
        precision=precision,
        limit=teacher.cache_limit,
        on_progress=on_progress or (lambda task, done, total: None),
        top_k=top_k,
    )
    return CachedLogits(batches, teacher, top_k=top_k)


@final
class CachedLogits:
    """Batches of images, labels and teacher logits. See `cached_logits`.

    Attributes:
        classes: The names of the classes.
        references: The teachers, in the order of the logits.
    """

    def __init__(self, batches: EpochLoader, teacher: Teacher, *, top_k: int | None = None) -> None:
        self._batches, self._teacher, self._top_k = batches, teacher, top_k
        self.classes = teacher.classes
        self.references = [member.text for member in teacher.members]

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Return an iterator over the batches of an epoch, counted from 0.

        A batch has `images_BCHW` in [0, 1], `labels_B`, `teacher_TBK` (the logits in float32), `index_B` (the image's
        number in the official data set) and `view_B`.

        Raises:
            UserError: If `epoch` is not a whole number of at least 0.
        """
        if not (isinstance(epoch, int) and epoch >= 0):
            raise UserError(f"epoch must be a whole number of at least 0, not {epoch!r}")
        return self._epoch(epoch)

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        for batch in self._batches.epoch(epoch):
            if batch.teacher_TBK is None:
                teacher_TBK = self._teacher.logits(batch)
                if self._top_k is not None:
                    teacher_TBK = keep_top_logits(teacher_TBK, self._top_k)
                batch = replace(batch, teacher_TBK=teacher_TBK)
            yield batch

    def dataset(self, epoch: int) -> TensorDataset:
        """Return an epoch as a data set of (image, label, teacher logits (T, K)), in the order of `epoch`.

        Raises:
            UserError: If the logits cannot be cached, as for images that are streamed from files.
        """
        if not isinstance(self._batches, CachedTeacherBatches):
            raise UserError("The logits of these images are not cached. Use `epoch` in place of `dataset`.")
        parts: list[Sequence[Tensor]] = []
        for batch in self.epoch(epoch):
            assert batch.teacher_TBK is not None
            parts.append((batch.images_BCHW, batch.labels_B, batch.teacher_TBK.transpose(0, 1)))
        return TensorDataset(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
