"""A teacher: one or several checkpoints of any trajectories that return logits.

Letters in names: T teachers, B batch, N images, K classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoints import CheckpointRef, last_of, resolve_ensemble
from ..data import Batch, Data, Images, InMemoryImages, eval_batch_size
from ..distill_config import BatchNormMode, EnsembleAverage, FittedWeights, TeacherTau
from ..errors import UserError
from ..losses.distillation_loss import Weights, soft_targets
from ..metrics import calibration_error, fitted_losses, measure, predict
from ..models import capture_activations, names_code
from ..records.runs import EnsembleMeasured, TeacherMeasured, TeachersMeasured
from .logit_cache import DEFAULT_LIMIT, clean_logits, manifests_of

EM_STEPS = 200
CLASS_PRIOR = 10.0  # number of images of a class that the weights of all images count as
_FP16_RANGE = (torch.finfo(torch.float16).min, torch.finfo(torch.float16).max)


class Teacher:
    """Frozen networks that teach together.

    Args:
        members: The checkpoints.
        batch_norm: `eval` normalizes with running statistics. `batch` normalizes with each batch's own statistics, so
            that logits depend on the other images of the batch.
        cache_limit: What the logit cache may take up, in bytes.

    Raises:
        UserError: If the members' classes, their order or their image sizes differ.
    """

    def __init__(
        self,
        members: Sequence[CheckpointRef],
        *,
        device: torch.device,
        batch_norm: BatchNormMode = "eval",
        cache_limit: int = DEFAULT_LIMIT,
    ) -> None:
        if not members:
            raise UserError("A teacher needs at least one checkpoint")
        for member in members[1:]:
            _check_alike(members[0], member)
        self.members = tuple(members)
        self.device = device
        self.classes = list(members[0].checkpoint.run.classes)
        self.batch_norm = batch_norm
        self.cache_limit = cache_limit
        self.networks = [member.checkpoint.network(device).requires_grad_(False) for member in members]
        if batch_norm == "batch":
            for member, network in zip(members, self.networks, strict=True):
                norms = _batch_norms(network)
                if not norms:
                    raise UserError(f"{member.text} has no batch norm, so it cannot normalize with batch statistics")
                for norm in norms:
                    norm.momentum = 0.0  # the running statistics stay as they are

    def __len__(self) -> int:
        return len(self.members)

    def logits(self, batch: Batch, members: Sequence[int] | None = None) -> Tensor:
        """Return the logits of these members, by default of all, on a batch: float32 (T, B, K)."""
        members = range(len(self)) if members is None else members
        return torch.stack([self.member_logits(member, batch).float() for member in members])

    def member_logits(self, member: int, batch: Batch) -> Tensor:
        """Return one member's logits, float16 (B, K): live logits are rounded as cached ones are."""
        return self.forward_with_features(member, batch, [])[0]

    @torch.no_grad()
    def forward_with_features(self, member: int, batch: Batch, paths: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        """Return one member's logits, float16 (B, K), and its activations at these module paths."""
        network = self.networks[member]
        norms = _batch_norms(network) if self.batch_norm == "batch" else []
        for norm in norms:
            norm.train()
        with capture_activations(network.body, list(paths)) as activations:
            logits_BK = network(batch.images_BCHW).float()
        for norm in norms:
            norm.eval()
        return logits_BK.clamp(*_FP16_RANGE).half(), [activations[path] for path in paths]

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
        weights: Weights = None,
    ) -> TeachersMeasured:
        """Measure each member and the ensemble (Eq. 2 at τ = 1) on clean images, with running statistics.

        The ensemble's `disagreement` is the share of images for which two members predict different classes, as the
        mean over pairs of members.
        """
        logits_TNK = self.predict(images)
        ensemble_NK = soft_targets(logits_TNK, tau=1.0, average=average, weights=weights).clamp_min(1e-30).log()
        predicted_TN = logits_TNK.argmax(-1)
        disagreements = [
            (first_N != second_N).double().mean().item()
            for first_N, second_N in itertools.combinations(predicted_TN, 2)
        ]
        return TeachersMeasured(
            images=len(images),
            members=tuple(
                TeacherMeasured(
                    ref=member.text, epoch=member.checkpoint.epoch, **_measure_calibrated(logits_NK, images.labels_N)
                )
                for member, logits_NK in zip(self.members, logits_TNK, strict=True)
            ),
            ensemble=EnsembleMeasured(
                disagreement=sum(disagreements) / len(disagreements) if disagreements else None,
                **_measure_calibrated(ensemble_NK, images.labels_N),
            ),
        )


def open_teacher(
    refs: Sequence[str], *, device: torch.device | str = "cpu", batch_norm: BatchNormMode = "eval"
) -> Teacher:
    """Load the checkpoints that these references name, such as `runs/teacher@last`, as one teacher."""
    return Teacher(resolve_ensemble(refs), device=torch.device(device), batch_norm=batch_norm)


def check_compatible(teacher: Teacher, data: Data) -> None:
    """Raise UserError unless the teachers have the data's classes, in the same order."""
    if teacher.classes != list(data.classes):
        raise UserError(
            f"The teacher {teacher.members[0].text} has {len(teacher.classes)} classes. The data {data.name!r} have "
            f"{len(data.classes)}, or another order. Give the data that the teacher was trained on."
        )


def logit_scales(teacher: Teacher, images: Images, teacher_tau: TeacherTau) -> tuple[float, ...] | None:
    """Return the factor of each teacher's logits before they are softened; None if it is 1 for all.

    Args:
        teacher: The teachers.
        images: The validation set.
        teacher_tau: See `DistillConfig`.
    """
    if teacher_tau == "fixed":
        return None
    logits_TNK = teacher.predict(images)
    if teacher_tau == "auto":
        return tuple(1 / fitted_losses(logits_NK, images.labels_N)[1] for logits_NK in logits_TNK)
    last = Teacher([last_of(member) for member in teacher.members], device=teacher.device)
    ratio_T = _spread(last.predict(images)) / _spread(logits_TNK).clamp_min(1e-12)
    return tuple(ratio_T.tolist())


def fitted_weights(
    teacher: Teacher, images: Images, weights: tuple[float, ...] | FittedWeights | None
) -> Tensor | None:
    """Return weights that are fitted on the validation set, or None if `weights` is not the name of a fit.

    `auto` gives one weight per teacher, (T,). `auto-per-class` gives one weight per teacher and class of the labels,
    (T, K).
    """
    if not isinstance(weights, str):
        return None
    logits_TNK = teacher.predict(images)
    return mixture_weights(logits_TNK, images.labels_N, per_class=weights == "auto-per-class")


def mixture_weights(logits_TNK: Tensor, labels_N: Tensor, *, per_class: bool = False) -> Tensor:
    """Return the weights whose mixture of predictions has the lowest NLL, by expectation maximization.

    The weights of a class are shrunk toward the weights of all images, as if by `CLASS_PRIOR` more images of the class.

    Returns:
        Weights of the teachers, (T,), or for each class, (T, K). They sum to 1 over teachers.

    >>> import torch
    >>> logits = torch.tensor([[[9.0, 0.0], [9.0, 0.0]], [[0.0, 9.0], [0.0, 9.0]]])
    >>> mixture_weights(logits, torch.tensor([0, 0])).round(decimals=2).tolist()
    [1.0, 0.0]
    """
    labels_1N1 = labels_N[None, :, None].expand(len(logits_TNK), -1, 1)
    p_TN = logits_TNK.double().softmax(-1).gather(-1, labels_1N1)[..., 0].clamp_min(1e-300)
    weights_T = p_TN.new_full((len(p_TN),), 1 / len(p_TN))
    for _ in range(EM_STEPS):
        weights_T = _shares(weights_T[:, None] * p_TN).mean(1)
    if not per_class:
        return weights_T.float()
    classes = logits_TNK.shape[-1]
    of_class_NK = torch.nn.functional.one_hot(labels_N, classes).double()
    weights_TK = weights_T[:, None].expand(-1, classes)
    for _ in range(EM_STEPS):
        total_TK = _shares(weights_TK[:, labels_N] * p_TN) @ of_class_NK
        weights_TK = (total_TK + CLASS_PRIOR * weights_T[:, None]) / (of_class_NK.sum(0) + CLASS_PRIOR)
    return weights_TK.float()


def _shares(values_TN: Tensor) -> Tensor:
    return values_TN / values_TN.sum(0)


def _spread(logits_TNK: Tensor) -> Tensor:
    """Return the standard deviation of each teacher's logits over classes, as the mean over images (T,)."""
    return logits_TNK.double().std(-1, correction=0).mean(-1)


def chance_level(labels_N: Tensor) -> tuple[float, float]:
    """Return the accuracy of always predicting the most frequent class, and that accuracy plus 3 standard errors."""
    chance = labels_N.bincount().max().item() / len(labels_N)
    return chance, chance + 3 * math.sqrt(chance * (1 - chance) / len(labels_N))


def refuse_at_chance(measured: TeachersMeasured, labels_N: Tensor) -> None:
    """Raise UserError for a teacher whose accuracy is not clearly above chance."""
    chance, threshold = chance_level(labels_N)
    for member in measured.members:
        if member.accuracy < threshold:
            raise UserError(
                f"The teacher {member.ref} has accuracy {member.accuracy:.1%} on {len(labels_N):,} images, not clearly "
                f"above chance ({chance:.1%}; threshold {threshold:.1%}). Choose a later checkpoint, check the class "
                "order and the preprocessing, or add --allow-weak-teacher."
            )


def _measure_calibrated(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """What `metrics.measure` returns, and the calibration error."""
    confidence_N, predicted_N = logits_NK.double().softmax(-1).max(-1)
    uniform_1N = np.full((1, len(labels_N)), 1 / len(labels_N))
    error = calibration_error(uniform_1N, confidence_N.numpy(), (predicted_N == labels_N).numpy())
    return {**measure(logits_NK, labels_N), "calibration_error": float(error[0])}


def _check_alike(first: CheckpointRef, second: CheckpointRef) -> None:
    """Raise UserError that names the difference, unless two checkpoints can teach together."""
    runs = first.checkpoint.run, second.checkpoint.run
    classes = runs[0].classes, runs[1].classes
    subject = f"{first.text} and {second.text} cannot teach together"
    if classes[0] != classes[1]:
        if sorted(classes[0]) == sorted(classes[1]):
            index, names = next((n, pair) for n, pair in enumerate(zip(*classes, strict=True)) if pair[0] != pair[1])
            difference = f"in another order, first at {index}: {names[0]!r} and {names[1]!r}"
        else:
            not_shared = ", ".join(map(repr, sorted(set(classes[0]) ^ set(classes[1]))[:3]))
            difference = f"{len(classes[0])} and {len(classes[1])}, {not_shared} not in both"
        raise UserError(f"{subject}: their classes differ ({difference})")
    if runs[0].data.shape != runs[1].data.shape:
        sizes = [" × ".join(map(str, run.data.shape)) for run in runs]
        raise UserError(f"{subject}: their images differ in size, {sizes[0]} and {sizes[1]}")


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
