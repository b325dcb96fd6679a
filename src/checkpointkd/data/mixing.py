"""Mixup and CutMix: images of a batch are mixed with each other, and so are their labels, by torchvision.

Letters in names: B batch, K classes, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..ranks import Ranks
from ..seeding import seeded
from .augmenting import transforms_v2
from .images import Batch, EpochLoader


class MixedBatches:
    """An epoch loader whose images are mixed, each batch by mixup or CutMix, as a function of (seed, epoch, step).

    Each process mixes the images of its own share of a batch.

    Args:
        batches: The batches to mix.
        mixup: The parameter α of mixup; 0 for no mixup.
        cutmix: The parameter α of CutMix; 0 for no CutMix. With both, each batch takes one at random.
        classes: The number of classes.
        seed: The seed of the draws.
        ranks: The processes that share each batch.

    Raises:
        UserError: If torchvision is absent.
    """

    def __init__(
        self, batches: EpochLoader, *, mixup: float, cutmix: float, classes: int, seed: int, ranks: Ranks
    ) -> None:
        v2 = transforms_v2("--mixup and --cutmix")
        self.batches, self.seed, self.ranks = batches, seed, ranks
        self._mixers = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup > 0 else []
        self._mixers += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix > 0 else []

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the mixed batches of the epoch that follows `epoch` completed ones, without the first `start`."""
        for step, batch in enumerate(self.batches.epoch(epoch, start=start), start):
            if not len(batch.labels_B):
                yield batch
                continue
            with seeded("mix", self.seed, epoch, step, self.ranks.rank):
                mix = self._mixers[int(torch.randint(len(self._mixers), ()))]
                images_BCHW, soft_labels_BK = mix(batch.images_BCHW, batch.labels_B)
            yield replace(
                batch,
                images_BCHW=images_BCHW.contiguous(memory_format=torch.channels_last),
                labels_B=soft_labels_BK.argmax(-1),
                soft_labels_BK=soft_labels_BK,
                view_B=None,
            )
