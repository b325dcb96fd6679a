"""A teacher: one or several checkpoints of any trajectories, asked for logits.

Letters in names: T teachers, B batch, N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .data import Batch, Images
from .errors import UserError, require
from .loop import measure, predict
from .losses import soften
from .settings import Average
from .trajectory import Address, resolve

_FP16_RANGE = (torch.finfo(torch.float16).min, torch.finfo(torch.float16).max)


class Teacher:
    """Frozen networks that answer with logits (T, B, K); always in evaluation mode, never trained.

    Raises UserError when the members' classes or channels differ.
    """

    def __init__(self, members: Sequence[Address], *, device: torch.device) -> None:
        require(len(members) > 0, "a teacher needs at least one checkpoint")
        first = members[0].checkpoint.run
        for member in members[1:]:
            run = member.checkpoint.run
            require(
                run["classes"] == first["classes"] and len(run["mean"]) == len(first["mean"]),
                f"{members[0].text} and {member.text} can't teach together: their classes or channels differ",
            )
        self.members = tuple(members)
        self.classes: list[str] = first["classes"]
        self._networks = [member.checkpoint.network(device).requires_grad_(False) for member in members]

    def logits(self, batch: Batch) -> Tensor:
        """Each member's logits on the batch's images, (T, B, K)."""
        return torch.stack([self.member_logits(member, batch).float() for member in range(len(self.members))])

    @torch.no_grad()
    def member_logits(self, member: int, batch: Batch) -> Tensor:
        """One member's logits, (B, K), in the 16 bits that tables keep: live answers and kept ones are alike."""
        logits_BK = self._networks[member](batch.images_BCHW).float()
        return logits_BK.clamp(*_FP16_RANGE).half()

    def predict(self, images: Images) -> Tensor:
        """Each member's logits on clean images, (T, N, K), float32 on the CPU."""
        answers = []
        for member, network in zip(self.members, self._networks, strict=True):
            logits_NK = predict(network, images)
            require(bool(logits_NK.isfinite().all()), f"the teacher {member.text} answers with no finite numbers")
            answers.append(logits_NK)
        return torch.stack(answers)

    def measure(self, images: Images, *, average: Average = "probabilities") -> dict:
        """Accuracy and NLL of each member and of the ensemble (Eq. 2 at τ = 1) on clean images."""
        logits_TNK = self.predict(images)
        ensemble = soften(logits_TNK, tau=1.0, average=average).clamp_min(1e-30).log()
        return {
            "images": len(images),
            "members": [
                {"address": member.text, "epoch": member.checkpoint.epoch, **measure(logits_NK, images.labels_N)}
                for member, logits_NK in zip(self.members, logits_TNK, strict=True)
            ],
            "ensemble": measure(ensemble, images.labels_N),
        }

    def identities(self) -> list[dict[str, str]]:
        """What a member's answers follow from, besides the images: weights (with normalisation) and network."""
        return [
            {"teacher": member.checkpoint.sha256, "model": member.checkpoint.run["model"]} for member in self.members
        ]

    def manifest(self) -> list[dict]:
        """Who the teachers are, wherever they lie: epoch and content hash of each."""
        return [{"epoch": member.checkpoint.epoch, "sha256": member.checkpoint.sha256} for member in self.members]


def teacher_of(addresses: Sequence[str], *, device: torch.device) -> Teacher:
    """The teacher made of the checkpoints at these addresses."""
    return Teacher([resolve(address) for address in addresses], device=device)


def above_chance(labels_N: Tensor) -> tuple[float, float]:
    """The accuracy of always naming the most frequent class, and the one from which a network surely knows more, by
    three standard errors."""
    chance = labels_N.bincount().max().item() / len(labels_N)
    return chance, chance + 3 * math.sqrt(chance * (1 - chance) / len(labels_N))


def refuse_at_chance(measured: dict, labels_N: Tensor) -> None:
    """Raise UserError for a teacher that is not clearly better than always naming the most frequent class."""
    chance, clearly = above_chance(labels_N)
    for member in measured["members"]:
        if member["accuracy"] < clearly:
            raise UserError(
                f"the teacher {member['address']} is right on {member['accuracy']:.1%} of {len(labels_N):,} images, "
                f"where guessing is on {chance:.1%}, and only from {clearly:.1%} on surely better; if it should know "
                "better, its classes or its preprocessing differ from this data's, or the images are too few to tell; "
                "if it is meant to teach, add --weak-teacher"
            )
