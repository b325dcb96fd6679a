"""Checkpoints as a teacher in any training loop: one frozen module whose softmax is Eq. 2.

Letters in names: B batch, C channels, H W height and width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ..checkpoints import resolve_ensemble
from ..config import check_choice
from ..data.images import SLACK, check_channels, mean_and_std
from ..device import usable_device
from ..distill_config import EnsembleAverage, KDConfig
from ..errors import UserError, first_line
from ..losses.distillation_loss import mean_over_teachers, soft_targets
from .ensemble import Teacher


def teacher(
    *references: Path | str,
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
        normalized: Mean and standard deviation of each channel, if your images are normalized. None: the images are
            in [0, 1].
        device: Device of the teachers.

    Raises:
        UserError: If a reference names no checkpoint, if the teachers' classes differ, or if a value is out of range.
            The module raises UserError if its first images are not in [0, 1].
    """
    check_choice("average", average, EnsembleAverage)
    (tau,) = _numbers("tau", [tau])
    KDConfig(tau=tau)
    members = resolve_ensemble(texts_of(references, "teacher()"), ensemble)
    shares = None if weights is None else _numbers("weights", weights)
    if shares is not None:
        if len(shares) != len(members):
            raise UserError(f"weights has {len(shares)} values for {len(members)} checkpoints")
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise UserError(f"weights must be at least 0 and sum to 1, not {shares}")
    module = TeacherModule(
        Teacher(members, device=torch.device("cpu")), tau=tau, weights=shares, average=average, normalized=normalized
    )
    return module.to(usable_device(device))


def texts_of(references: Sequence[Path | str], caller: str) -> list[str]:
    """Return references as strings. Raise UserError if there is none, or if one is not a string or a path."""
    if not references:
        raise UserError(f"{caller} needs at least one checkpoint reference, such as 'runs/teacher@last'")
    for reference in references:
        if not isinstance(reference, str | Path):
            raise UserError(
                f"{caller} takes references one by one, such as 'runs/teacher@last', not a {type(reference).__name__}"
            )
    return [str(reference) for reference in references]


def _numbers(name: str, values: Any) -> list[float]:
    """Return finite numbers of a sequence, an array or a tensor."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise UserError(f"{name} takes finite numbers, not {values!r}")
    return numbers


@final
class TeacherModule(nn.Module):
    """Frozen checkpoints that teach together. See `teacher`.

    Attributes:
        classes: The names of the classes, in the order of the logits.
        references: The checkpoints.
        pretrained_cfg: `mean` and `std` with which input images are normalized. timm's distillation task reads them.
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
        self._normalized = normalized is not None
        mean, std = mean_and_std(normalized)
        self.pretrained_cfg = {"mean": _per_channel(mean), "std": _per_channel(std)}
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values, dtype=torch.float32, device=members.device).reshape(1, -1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        self._checked = False
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> TeacherModule:
        """Stay in evaluation mode, also inside a module that trains."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> Tensor:
        if not isinstance(images_BCHW, Tensor):
            raise UserError(f"The teacher takes a tensor of images (B, C, H, W), not {type(images_BCHW).__name__}")
        if images_BCHW.ndim != 4 or not images_BCHW.is_floating_point():
            raise UserError(
                "The teacher takes images (B, C, H, W) of floating-point numbers, not shape "
                f"{tuple(images_BCHW.shape)} of {str(images_BCHW.dtype).removeprefix('torch.')}"
            )
        if images_BCHW.dtype == torch.float64:
            images_BCHW = images_BCHW.float()
        check_channels(self.mean.flatten(), images_BCHW.shape[1])
        images_BCHW = images_BCHW * self.std.to(images_BCHW.dtype) + self.mean.to(images_BCHW.dtype)
        if not self._checked and len(images_BCHW):
            _check_range(images_BCHW, normalized=self._normalized)
            self._checked = True
        try:
            teacher_TBK = torch.stack([network(images_BCHW).float() for network in self.networks])
        except (RuntimeError, AssertionError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(
                f"The teacher cannot take images of shape {tuple(images_BCHW.shape)}: {first_line(error)}"
            ) from error
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
    if not (low >= -SLACK and high <= 1 + SLACK):  # NaN too
        given = "computed with the mean and std of `normalized`" if normalized else "and `normalized` is not given"
        raise UserError(
            f"The teacher takes images in [0, 1], but these images are in [{low:.3g}, {high:.3g}], {given}. If your "
            "images are normalized, build the teacher with normalized=(mean, std), with one value per channel."
        )
