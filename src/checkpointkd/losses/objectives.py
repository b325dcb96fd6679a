"""Objectives: modules that the training loop calls with `(model, batch, train_fraction)`.

They return the loss of each example (B,) and the student's logits (B, K). `train_fraction` is the share of the training
that is done, in [0, 1). An objective may own layers and state, which train and resume with the model and are not saved
in its checkpoints.

Letters in names: B batch, K classes, T teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, final, get_args

import torch
from torch import Tensor, nn

from ..config import LabelLoss, check_choice
from ..data import Batch, Images
from ..distill_config import DistillConfig, KDConfig
from ..errors import UserError, unknown_name
from ..models import Network, capture_activations
from ..seeding import derive_seed
from ..user_code import import_object
from . import features, logits
from .crd import CRD
from .distillation_loss import Weights, loss_with_labels, soft_loss, squared_error
from .matching import FeaturePaths, channels_first_map, match_features
from .review import ReviewKD
from .top_logits import keep_top_logits

METHODS: dict[str, Any] = {
    "kd": logits.KD,
    "lskd": logits.StandardizedKD,
    "dkd": logits.DKD,
    "dist": logits.DIST,
    "wttm": logits.WTTM,
    "wsl": logits.WSL,
    "mlkd": logits.MLKD,
    "mlkd-ls": logits.StandardizedMLKD,
    "fitnets": features.FitNets,
    "at": features.AT,
    "sp": features.SP,
    "cc": features.CC,
    "vid": features.VID,
    "rkd": features.RKD,
    "fsp": features.FSP,
    "pkt": features.PKT,
    "crd": CRD,
    "reviewkd": ReviewKD,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Teaching:
    """Values that one training adds to `DistillConfig`: fitted factors and weights, its epochs and its seed.

    Attributes:
        scales: Factors of the teachers' logits, one per teacher. None: 1.
        weights: Fitted weights of the teachers, (T,), or for each class of the labels, (T, K). None: not fitted.
        epochs: Epochs of the training. Only the teacher schedule `random` uses them.
        seed: Seed of the training. Only the teacher schedule `random` uses it.
        label_smoothing: Weight of the uniform distribution in the labels.
    """

    scales: Sequence[float] | None = None
    weights: Tensor | None = None
    epochs: int = 1
    seed: int = 0
    label_smoothing: float = 0.0


_DEFAULT_CONFIG, _DEFAULT_TEACHING = DistillConfig(), Teaching()


class TeacherLike(Protocol):
    """What an objective needs of its teachers."""

    def __len__(self) -> int:
        """Return the number of teachers."""
        ...

    def logits(self, batch: Batch, members: Sequence[int]) -> Tensor:
        """Return the logits of these teachers on the batch (T, B, K)."""
        ...

    def forward_with_features(self, member: int, batch: Batch, paths: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        """Return one teacher's logits (B, K) and its activations at these module paths."""
        ...


@final
class Supervised(nn.Module):
    """Learn the labels without a teacher: by cross-entropy, with label smoothing (§4.3), or by the squared error.

    Raises:
        UserError: `smoothing` is not in [0, 1), `loss` is unknown, or `loss` is squared-error with `smoothing` > 0.
    """

    def __init__(self, *, smoothing: float = 0.0, loss: LabelLoss = "cross-entropy") -> None:
        super().__init__()
        check_choice("loss", loss, LabelLoss)
        if not 0 <= smoothing < 1:
            raise UserError(f"Label smoothing must be at least 0 and below 1, not {smoothing}")
        if smoothing and loss == "squared-error":
            raise UserError(
                f"--loss squared-error does not smooth labels, but label smoothing is {smoothing:g}. Add "
                "--label-smoothing 0, or leave out --loss."
            )
        self.smoothing, self.loss = smoothing, loss

    def forward(self, model: nn.Module, batch: Batch, train_fraction: float) -> tuple[Tensor, Tensor]:
        logits_BK = model(batch.images_BCHW)
        if self.loss == "squared-error":
            return squared_error(_at_least_float32(logits_BK), batch.targets), logits_BK
        return loss_with_labels(logits_BK, batch.targets, smoothing=self.smoothing), logits_BK


@final
class LogitDistillation(nn.Module):
    """Learn the labels and, by a method of `logits`, the teachers' predictions: α·H(y, p_S) + β·method.

    The teachers see the same augmented images as the student. `Teaching` describes how the teachers are used.
    """

    def __init__(
        self,
        method: nn.Module,
        teacher: TeacherLike,
        kd_config: KDConfig,
        distill_config: DistillConfig = _DEFAULT_CONFIG,
        *,
        teaching: Teaching = _DEFAULT_TEACHING,
    ) -> None:
        super().__init__()
        self.teaching = teaching
        self.method: Any = method
        self.teacher, self.kd_config, self.distill_config = teacher, kd_config, distill_config
        self.weight = _method_weight(self.method, kd_config, distill_config)

    def forward(self, model: nn.Module, batch: Batch, train_fraction: float) -> tuple[Tensor, Tensor]:
        logits_BK = model(batch.images_BCHW)
        student_BK = _at_least_float32(logits_BK)  # bfloat16 is too coarse to divide by τ or to standardize
        kd_config = _config_at(train_fraction, self.kd_config, self.distill_config)
        active, weights = _in_use(self, train_fraction, batch.labels_B)
        if batch.teacher_TBK is None:
            teacher_TBK = self.teacher.logits(batch, active)
            if self.distill_config.top_k is not None:
                teacher_TBK = keep_top_logits(teacher_TBK, self.distill_config.top_k)
        elif len(active) == len(self.teacher):  # indexing would copy the index to the device at every step
            teacher_TBK = batch.teacher_TBK
        else:
            teacher_TBK = batch.teacher_TBK[active]
        teacher_TBK = _scaled(teacher_TBK, self.teaching.scales, active)
        weight = _weight_at(train_fraction, self.weight, self.method.warm_up)
        hard_B = loss_with_labels(student_BK, batch.targets, smoothing=self.teaching.label_smoothing)
        soft_B = self._soft(student_BK, teacher_TBK, batch, kd_config, weights)
        return kd_config.alpha * hard_B + weight * soft_B, logits_BK

    def _soft(
        self, student_BK: Tensor, teacher_TBK: Tensor, batch: Batch, kd_config: KDConfig, weights: Weights
    ) -> Tensor:
        """Return the method's term (B,), computed from the logits of the global batch: it may compare examples."""
        ranks = batch.ranks
        if ranks.world_size > 1:
            teacher_TBK = ranks.gather(teacher_TBK.transpose(0, 1).contiguous()).transpose(0, 1)
            if isinstance(weights, Tensor):
                weights = ranks.gather(weights.T.contiguous()).T
        soft_G = self.method(ranks.together(student_BK), teacher_TBK, ranks.gather(batch.labels_B), kd_config, weights)
        return ranks.own(soft_G, len(student_BK))


@final
class FeatureDistillation(nn.Module):
    """Learn the labels and, by a method of `features`, the teachers' features on the same augmented images.

    The loss is α·H(y, p_S) + (1 − α)·τ²·KL(p_T^τ ‖ p_S^τ) + β·(the weighted mean of the method's terms).

    Args:
        methods: One method object per teacher.
        teacher: The teachers.
        kd_config: α, τ and the ensemble average.
        distill_config: Weights and teacher schedule.
        pairs: The features that meet, one entry per teacher.
        teaching: How the teachers are used.
    """

    def __init__(
        self,
        methods: Sequence[nn.Module],
        teacher: TeacherLike,
        kd_config: KDConfig,
        distill_config: DistillConfig,
        pairs: Sequence[FeaturePaths],
        *,
        teaching: Teaching = _DEFAULT_TEACHING,
    ) -> None:
        super().__init__()
        self.teaching = teaching
        self.methods: Any = nn.ModuleList(methods)
        self.teacher, self.kd_config, self.distill_config, self.pairs = teacher, kd_config, distill_config, pairs
        self.weight = _method_weight(self.methods[0], kd_config, distill_config)
        self.student_paths = list(dict.fromkeys(path for pair in pairs for path in pair.student))

    def forward(self, model: nn.Module, batch: Batch, train_fraction: float) -> tuple[Tensor, Tensor]:
        assert isinstance(model, Network)
        images_BCHW = batch.images_BCHW
        with capture_activations(model.body, self.student_paths) as activations:
            logits_BK = model(images_BCHW)
        for path in self.student_paths:
            if path not in activations:
                raise UserError(f"The student does not call {path!r} in training. Name another module.")
            if not activations[path].requires_grad:
                raise UserError(f"The student's {path!r} has no gradient and cannot learn. Name another module.")
        kd_config = _config_at(train_fraction, self.kd_config, self.distill_config)
        weight = _weight_at(train_fraction, self.weight, self.methods[0].warm_up)
        active, weights = _in_use(self, train_fraction, batch.labels_B)
        outputs = [self.teacher.forward_with_features(member, batch, self.pairs[member].teacher) for member in active]
        # Norms, Gram matrices and exponentials need more than bfloat16's 8 bits.
        with torch.autocast(images_BCHW.device.type, enabled=False):
            student_BK = _at_least_float32(logits_BK)
            hard_B = loss_with_labels(student_BK, batch.targets, smoothing=self.teaching.label_smoothing)
            loss_B = kd_config.alpha * hard_B
            if kd_config.alpha < 1:
                teacher_TBK = _at_least_float32(torch.stack([teacher_BK for teacher_BK, _ in outputs]))
                teacher_TBK = _scaled(teacher_TBK, self.teaching.scales, active)
                loss_B = loss_B + (1 - kd_config.alpha) * soft_loss(student_BK, teacher_TBK, kd_config, weights)
            shares = (1 / len(active),) * len(active) if weights is None else weights
            for member, share, (_, teacher_features) in zip(active, shares, outputs, strict=True):
                student_maps = [
                    channels_first_map(activations[path], images_BCHW) for path in self.pairs[member].student
                ]
                teacher_maps = [channels_first_map(feature, images_BCHW) for feature in teacher_features]
                term_B = self._term(member, student_maps, teacher_maps, batch)
                loss_B = loss_B + weight * share * term_B
        return loss_B, logits_BK

    def _term(self, member: int, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        """Return a method's term (B,), computed from the features of the global batch: it may compare examples."""
        ranks, count = batch.ranks, len(batch.labels_B)
        if ranks.world_size == 1:
            return self.methods[member](student, teacher, batch)
        whole = Batch(
            images_BCHW=batch.images_BCHW[:0],  # no method reads them
            labels_B=ranks.gather(batch.labels_B),
            index_B=ranks.gather(batch.index_B),
            view_B=None,
        )
        student, teacher = [ranks.together(maps) for maps in student], [ranks.gather(maps) for maps in teacher]
        with ranks.same_draws():
            term_G = self.methods[member](student, teacher, whole)
        return ranks.own(term_G, count)


def distillation(
    method: str,
    teacher: TeacherLike,
    kd_config: KDConfig,
    distill_config: DistillConfig,
    *,
    student: Network,
    teachers: Sequence[tuple[str, Network]],
    images: Images,
    seed: int,
    teaching: Teaching = _DEFAULT_TEACHING,
) -> LogitDistillation | FeatureDistillation:
    """Build the objective of one distillation.

    Args:
        method: A key of `METHODS`.
        teacher: The teachers that the objective calls.
        kd_config: α, τ and the ensemble average.
        distill_config: The method's weight and features, the teachers' weights and schedule.
        student: A network like the student.
        teachers: Name and network of each teacher.
        images: The training images.
        seed: Seed of the initial weights of the method's layers.
        teaching: How the teachers are used.

    Raises:
        UserError: An option does not apply to the method, a feature does not exist, or the method cannot match the
            features.
    """
    method_class = get_method(method)
    if distill_config.channel_adapter and method != "fsp":
        raise UserError(f"--channel-adapter does not apply to {method}, only to fsp")
    if not takes_features(method):
        for option, paths in (
            ("--teacher-features", distill_config.teacher_features),
            ("--student-features", distill_config.student_features),
        ):
            if paths is not None:
                raise UserError(f"{option} does not apply to {method}, which uses only logits")
        return LogitDistillation(method_class(), teacher, kd_config, distill_config, teaching=teaching)
    methods, pairs = [], []
    for member, (name, network) in enumerate(teachers):
        spec = match_features(method_class.feature_kind, student, network, images, distill_config, teacher_name=name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("method", method, seed, member))
            methods.append(method_class(spec))
        pairs.append(FeaturePaths(tuple(spec.student), tuple(spec.teacher)))
    return FeatureDistillation(methods, teacher, kd_config, distill_config, pairs, teaching=teaching)


def takes_features(method: str) -> bool:
    """Return whether a method uses the teachers' features, so that the logit cache cannot serve it."""
    return hasattr(get_method(method), "feature_kind")


def suits_mixing(method: str) -> bool:
    """Return whether a method works with mixed images, which have no single label."""
    return not getattr(get_method(method), "uses_labels", True)


def check_mixing(method: str) -> None:
    """Raise UserError if a method needs one label for each image, so that mixed images do not suit it."""
    if not suits_mixing(method):
        raise UserError(
            f"--mixup and --cutmix do not apply to {method}, whose loss needs one class for each image. Leave them "
            "out, or use another method, such as kd. (A method of your own that ignores labels: uses_labels = False.)"
        )


def defaults(method: str) -> tuple[float, float]:
    """Return a method's default α and τ."""
    method_class = get_method(method)
    return method_class.alpha, getattr(method_class, "tau", KDConfig.tau)


def get_method(name: str) -> Any:
    """Return the class of a method: one of `METHODS`, or a user's own as `package.module:Class`.

    Raises:
        UserError: For an unknown name, and for a class that lacks an attribute that every method needs.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise unknown_name("method", name, (*METHODS, "package.module:Class"))
    method_class = import_object(name, kind="Method")
    if not (isinstance(method_class, type) and issubclass(method_class, nn.Module)):
        raise UserError(f"Method {name!r} must be a class that inherits from torch.nn.Module")
    if missing := [attribute for attribute in ("alpha", "weight", "warm_up") if not hasattr(method_class, attribute)]:
        raise UserError(
            f"Method {name!r} has no {' and no '.join(missing)}. docs/methods.md shows what a method of your own needs."
        )
    kind = getattr(method_class, "feature_kind", None)
    if kind not in (None, *get_args(features.FeatureKind)):
        raise UserError(
            f"Method {name!r} has feature_kind {kind!r}. Known: {', '.join(get_args(features.FeatureKind))}."
        )
    return method_class


def _in_use(
    objective: LogitDistillation | FeatureDistillation, train_fraction: float, labels_B: Tensor
) -> tuple[list[int], Weights]:
    """Return the active teachers and their weights. Fitted weights by class differ between examples (T, B)."""
    teaching, count = objective.teaching, len(objective.teacher)
    if teaching.weights is not None:
        fitted = teaching.weights.to(labels_B.device)
        return list(range(count)), fitted[:, labels_B] if fitted.ndim == 2 else fitted.tolist()
    weights = objective.distill_config.weights_at(train_fraction, count, epochs=teaching.epochs, seed=teaching.seed)
    active = [member for member in range(count) if weights is None or weights[member] > 0]
    return active, None if weights is None else [weights[member] for member in active]


def _scaled(teacher_TBK: Tensor, scales: Sequence[float] | None, active: Sequence[int]) -> Tensor:
    """Return the active teachers' logits times their factors."""
    if scales is None:
        return teacher_TBK
    return torch.stack([scales[member] * logits_BK for member, logits_BK in zip(active, teacher_TBK, strict=True)])


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _method_weight(method: Any, kd_config: KDConfig, distill_config: DistillConfig) -> float:
    if distill_config.method_weight is not None:
        return distill_config.method_weight
    return method.weight if method.weight is not None else 1 - kd_config.alpha


def _weight_at(train_fraction: float, weight: float, warm_up: float) -> float:
    """Return the weight of the method's term, which grows linearly from 0 while this share of the training warms up."""
    return weight if train_fraction >= warm_up else weight * train_fraction / warm_up


def _config_at(train_fraction: float, kd_config: KDConfig, distill_config: DistillConfig) -> KDConfig:
    """Return the configuration with the temperature that the teacher schedule sets at this point of the training."""
    return replace(kd_config, tau=distill_config.tau_at(train_fraction, kd_config.tau))
