"""A teacher: one or several checkpoints of any trajectories, asked for logits.

Letters in names: T teachers, B batch, N images, K classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoints import CheckpointRef, names_code, resolve_ensemble
from ..config import BatchNormMode, EnsembleAverage
from ..data import Batch, Data, Images, InMemoryImages, eval_batch_size
from ..errors import UserError
from ..losses import soft_targets
from ..metrics import calibration_error, measure, predict
from ..models import capture_activations
from .logit_cache import DEFAULT_LIMIT, clean_logits, manifests_of

_FP16_RANGE = (torch.finfo(torch.float16).min, torch.finfo(torch.float16).max)


class Teacher:
    """Frozen networks that answer with logits (T, B, K); never trained. They normalize with what they learned (`eval`),
    or with each batch's own statistics (`batch`), in which case an answer depends on its company.

    Raises UserError when the members' classes, their order, or the sizes of their images differ.
    """

    def __init__(
        self,
        members: Sequence[CheckpointRef],
        *,
        device: torch.device,
        batch_norm: BatchNormMode = "eval",
        cache_limit: int = DEFAULT_LIMIT,
    ) -> None:
        if not len(members) > 0:
            raise UserError("a teacher needs at least one checkpoint")
        for member in members[1:]:
            _require_alike(members[0], member)
        self.members = tuple(members)
        self.device = device
        self.classes = list(members[0].checkpoint.run.classes)
        self.batch_norm = batch_norm
        self.cache_limit = cache_limit
        self.networks = [member.checkpoint.network(device).requires_grad_(False) for member in members]
        if batch_norm == "batch":
            for member, network in zip(members, self.networks, strict=True):
                norms = _norms(network)
                if not norms:
                    raise UserError(f"{member.text} has no batch norm, so it can't normalize with a batch's statistics")
                for norm in norms:
                    norm.momentum = 0.0  # what it learned stays as it is

    def __len__(self) -> int:
        return len(self.members)

    def logits(self, batch: Batch, members: Sequence[int] | None = None) -> Tensor:
        """Some members' logits on the batch's images, or all members', (T, B, K)."""
        asked = range(len(self)) if members is None else members
        return torch.stack([self.member_logits(member, batch).float() for member in asked])

    def member_logits(self, member: int, batch: Batch) -> Tensor:
        """One member's logits, (B, K), in the 16 bits that tables keep: live answers and kept ones are alike."""
        return self.forward_with_features(member, batch, [])[0]

    @torch.no_grad()
    def forward_with_features(self, member: int, batch: Batch, paths: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        """One member's logits, as `member_logits`, and what it computes at these paths on the way."""
        network = self.networks[member]
        norms = _norms(network) if self.batch_norm == "batch" else []
        for norm in norms:
            norm.train()
        with capture_activations(network.body, list(paths)) as taken:
            logits_BK = network(batch.images_BCHW).float()
        for norm in norms:
            norm.eval()
        return logits_BK.clamp(*_FP16_RANGE).half(), [taken[path] for path in paths]

    def predict(self, images: Images) -> Tensor:
        """Return each member's logits on clean images, float32 (T, N, K) on the CPU.

        They come from the logit cache where they can: one teacher has many students and is part of many ensembles.
        Streamed images may change, and so may the code of a user's network. Their logits are computed each time.
        """
        if not isinstance(images, InMemoryImages):
            return torch.stack([self._compute_clean(member, images) for member in range(len(self))])
        manifests = manifests_of(
            self.members,
            images,
            views=None,
            precision="fp32",
            device=self.device,
            batch_size=eval_batch_size(images, self.device),
        )
        return torch.stack(
            [
                self._compute_clean(member, images)
                if names_code(manifest.model)
                else clean_logits(manifest, partial(self._compute_clean, member, images), limit=self.cache_limit)
                for member, manifest in enumerate(manifests)
            ]
        )

    def _compute_clean(self, member: int, images: Images) -> Tensor:
        logits_NK = predict(self.networks[member], images)
        if not logits_NK.isfinite().all():
            raise UserError(f"The logits of the teacher {self.members[member].text} are not finite")
        return logits_NK

    def measure(
        self,
        images: Images,
        *,
        average: EnsembleAverage = "probabilities",
        weights: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """Accuracy, NLL and calibration error, on clean images and as learned, of each member and of the ensemble
        (Eq. 2 at τ = 1); and the ensemble's `disagreement`, the share of images that two members name differently,
        mean over pairs."""
        logits_TNK = self.predict(images)
        ensemble = soft_targets(logits_TNK, tau=1.0, average=average, weights=weights).clamp_min(1e-30).log()
        named_TN = logits_TNK.argmax(-1)
        pairs = list(itertools.combinations(range(len(named_TN)), 2))
        unlike = [(named_TN[one] != named_TN[other]).double().mean().item() for one, other in pairs]
        return {
            "images": len(images),
            "members": [
                {"ref": member.text, "epoch": member.checkpoint.epoch, **_measure(logits_NK, images.labels_N)}
                for member, logits_NK in zip(self.members, logits_TNK, strict=True)
            ],
            "ensemble": {
                **_measure(ensemble, images.labels_N),
                "disagreement": sum(unlike) / len(unlike) if unlike else None,
            },
        }


def _measure(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """What `measure` says, and how far confidence is from accuracy."""
    confidence_N, named_N = logits_NK.double().softmax(-1).max(-1)
    uniform_1N = np.full((1, len(labels_N)), 1 / len(labels_N))
    error = calibration_error(uniform_1N, confidence_N.numpy(), (named_N == labels_N).numpy())
    return {**measure(logits_NK, labels_N), "calibration_error": float(error[0])}


def _require_alike(first: CheckpointRef, other: CheckpointRef) -> None:
    """Raise UserError, saying what differs, unless two checkpoints can teach together."""
    run, other_run = first.checkpoint.run, other.checkpoint.run
    both = f"{first.text} and {other.text} cannot teach together"
    if run.classes != other_run.classes:
        if sorted(run.classes) == sorted(other_run.classes):
            pairs = zip(run.classes, other_run.classes, strict=True)
            place, (name, other_name) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
            how = f"in another order, first at {place}: {name!r} and {other_name!r}"
        else:
            not_shared = sorted(set(run.classes) ^ set(other_run.classes))[:3]
            how = f"{len(run.classes)} and {len(other_run.classes)}, {', '.join(map(repr, not_shared))} not in both"
        raise UserError(f"{both}: they know different classes ({how})")
    if run.data.shape != other_run.data.shape:
        raise UserError(
            f"{both}: their images differ in size, {_shape(run.data.shape)} and {_shape(other_run.data.shape)}"
        )


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def open_teacher(
    refs: Sequence[str], *, device: torch.device | str = "cpu", batch_norm: BatchNormMode = "eval"
) -> Teacher:
    """Load the checkpoints that these references name, such as `runs/teacher@last`, as one teacher."""
    return Teacher(resolve_ensemble(refs), device=torch.device(device), batch_norm=batch_norm)


def chance_level(labels_N: Tensor) -> tuple[float, float]:
    """The accuracy of always naming the most frequent class, and the one from which a network surely knows more, by
    three standard errors."""
    chance = labels_N.bincount().max().item() / len(labels_N)
    return chance, chance + 3 * math.sqrt(chance * (1 - chance) / len(labels_N))


def check_compatible(teacher: Teacher, data: Data) -> None:
    """Raise UserError unless the teachers know the data's classes, in the same order."""
    if teacher.classes != list(data.classes):
        raise UserError(
            f"the teacher {teacher.members[0].text} knows {len(teacher.classes)} classes, the data {data.name!r} have "
            f"{len(data.classes)}, or in another order. Give the data that the teacher was trained on."
        )


def refuse_at_chance(measured: dict, labels_N: Tensor) -> None:
    """Raise UserError for a teacher that is not clearly better than always naming the most frequent class."""
    chance, clearly = chance_level(labels_N)
    for member in measured["members"]:
        if member["accuracy"] < clearly:
            raise UserError(
                f"the teacher {member['ref']} is right on {member['accuracy']:.1%} of {len(labels_N):,} images, "
                f"where guessing is on {chance:.1%}, and only from {clearly:.1%} on surely better; if it should know "
                "better, its classes or its preprocessing differ from this data's, or the images are too few to tell; "
                "if it is meant to teach, add --allow-weak-teacher"
            )
