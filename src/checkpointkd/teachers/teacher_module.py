"""Checkpoints as a teacher in any training loop: one frozen module whose logits are those of Eq. 2.

Letters in names: B batch, C channels, H W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from ..checkpoints import resolve_ensemble
from ..config import check_choice
from ..distill_config import DistillConfig, EnsembleAverage, KDConfig
from ..errors import UserError
from ..losses.distillation_loss import mean_over_teachers, soft_targets
from .ensemble import Teacher

SLACK = 1e-3  # by which images may leave [0, 1], for rounding and interpolation


def teacher(
    *references: str,
    tau: float = 1.0,
    ensemble: str | None = None,
    weights: Sequence[float] | None = None,
    average: EnsembleAverage = "probabilities",
    normalized: tuple[Sequence[float], Sequence[float]] | None = None,
    device: torch.device | str = "cpu",
) -> TeacherModule:
    """Return checkpoints as one frozen module, for a training loop of your own.

    The module takes images (B, C, H, W) and returns logits (B, K) whose softmax at `tau` is Eq. 2: the mean of the
    teachers' softened predictions. Use the same `tau` in your distillation loss. The module always stays in evaluation
    mode, has no trainable parameters, and records no gradients.

    Example:

        teacher = ckd.teacher("runs/teacher@midpoint", "runs/teacher@last", tau=4.0)
        loss = F.kl_div((student(images) / 4).log_softmax(-1), (teacher(images) / 4).softmax(-1), reduction="batchmean")

    Args:
        references: One or more checkpoint references, such as `runs/teacher@last`.
        tau: The temperature of your distillation loss. For a single teacher it has no effect.
        ensemble: `snapshot:K`, `full:K`, `mixed` or `all`, as for `distill`.
        weights: The weight of each teacher, summing to 1. None: equal weights.
        average: `probabilities` (Eq. 2) or `logits`.
        normalized: Mean and standard deviation of each channel, if your images are normalized. None: they are in
            [0, 1].
        device: Where the teachers run.

    Raises:
        UserError: If a reference names no checkpoint, if the teachers' classes differ, or if a value is out of range.
            The module raises it if its first images are not in [0, 1].
    """
    check_choice("average", average, EnsembleAverage)
    KDConfig(tau=tau)
    if not references:
        raise UserError("teacher() needs at least one checkpoint reference, such as 'runs/teacher@last'")
    members = resolve_ensemble(references, ensemble)
    if weights is not None:
        if len(weights) != len(members):
            raise UserError(f"weights has {len(weights)} values for {len(members)} checkpoints")
        DistillConfig(teacher_weights=tuple(weights))
    return TeacherModule(
        Teacher(members, device=torch.device(device)), tau=tau, weights=weights, average=average, normalized=normalized
    )


@final
class TeacherModule(nn.Module):
    """Frozen checkpoints that teach together. See `teacher`.

    Attributes:
        classes: The names of the classes, in the order of the logits.
        references: The checkpoints.
        pretrained_cfg: `mean` and `std` that input images are expected in. timm's distillation task reads them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        members: Teacher,
        *,
        tau: float,
        weights: Sequence[float] | None,
        average: EnsembleAverage,
        normalized: tuple[Sequence[float], Sequence[float]] | None,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(members.networks)
        self.classes, self.num_classes = members.classes, len(members.classes)
        self.references = [member.text for member in members.members]
        self.tau = tau
        self.average: EnsembleAverage = average
        self.weights = None if weights is None else tuple(weights)
        mean, std = normalized or ((0.0,), (1.0,))
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise UserError(f"normalized takes a mean and a positive std of each channel, not {normalized}")
        self.pretrained_cfg = {"mean": _per_channel(mean), "std": _per_channel(std)}
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values, dtype=torch.float32, device=members.device).reshape(1, -1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        self._checked = False
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> TeacherModule:
        """Keep the evaluation mode, also inside a module that trains."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> Tensor:
        images_BCHW = images_BCHW * self.std + self.mean
        if not self._checked:
            _check_range(images_BCHW, normalized=bool((self.mean != 0).any()))
            self._checked = True
        teacher_TBK = torch.stack([network(images_BCHW).float() for network in self.networks])
        if len(teacher_TBK) == 1:
            return teacher_TBK[0]
        if self.average == "logits":
            return mean_over_teachers(teacher_TBK, self.weights)
        target_BK = soft_targets(teacher_TBK, tau=self.tau, average=self.average, weights=self.weights)
        return self.tau * target_BK.clamp_min(torch.finfo(target_BK.dtype).tiny).log()

    def extra_repr(self) -> str:
        return f"{', '.join(self.references)}; tau={self.tau:g}, average={self.average}"


def _per_channel(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(values) * 3 if len(values) == 1 else tuple(values)


def _check_range(images_BCHW: Tensor, *, normalized: bool) -> None:
    low, high = images_BCHW.min().item(), images_BCHW.max().item()
    if low < -SLACK or high > 1 + SLACK:
        given = "with the mean and std of `normalized`" if normalized else "and `normalized` is not given"
        raise UserError(
            f"The teacher takes images in [0, 1], {given}, but these are in [{low:.3g}, {high:.3g}]. If they are "
            "normalized, build the teacher with normalized=(mean, std), with one value per channel."
        )
