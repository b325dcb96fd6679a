"""Objectives: what the loop calls, as `objective(model, batch, progress) -> (loss_B, logits_BK)`, with `progress` the
fraction of training that is done. They may own layers and state, which train and resume with the model and are left out
of its checkpoints.

Letters in names: B batch, K classes, T teachers, D channels, h w height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from ..config import DistillConfig, KDConfig
from ..data import Batch, Images
from ..errors import UserError
from ..models import Network, as_map, capture_activations, last_map_path, stage_paths, vector_path
from ..seeding import derive_seed
from . import features, logits
from .crd import CRD
from .features import FeatureKind, FeatureSpec, Size
from .kd import cross_entropy, label_smoothing, soft_loss

METHODS: dict[str, Any] = {
    "kd": logits.KD,
    "lskd": logits.StandardizedKD,
    "dkd": logits.DKD,
    "dist": logits.DIST,
    "fitnets": features.FitNets,
    "at": features.AT,
    "sp": features.SP,
    "cc": features.CC,
    "vid": features.VID,
    "rkd": features.RKD,
    "fsp": features.FSP,
    "pkt": features.PKT,
    "crd": CRD,
}


class TeacherLike(Protocol):
    """Teachers, as far as losses know them."""

    def __len__(self) -> int: ...

    def logits(self, batch: Batch, members: Sequence[int]) -> Tensor: ...

    def forward_with_features(self, member: int, batch: Batch, paths: Sequence[str]) -> tuple[Tensor, list[Tensor]]: ...


_TOGETHER = DistillConfig()


@final
class Supervised(nn.Module):
    """Learn the labels, no teacher: by cross-entropy, or with label smoothing, from the uniform teacher too (§4.3)."""

    def __init__(self, *, smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise UserError(f"label smoothing must be at least 0 and below 1, not {smoothing}")
        self.smoothing = smoothing

    def forward(self, model: nn.Module, batch: Batch, train_fraction: float) -> tuple[Tensor, Tensor]:
        logits_BK = model(batch.images_BCHW)
        if self.smoothing == 0:
            return cross_entropy(logits_BK, batch.labels_B), logits_BK
        return label_smoothing(logits_BK, batch.labels_B, alpha=1 - self.smoothing), logits_BK


@final
class LogitDistillation(nn.Module):
    """Learn the labels and, by a method, the teachers' predictions on the same views: α·H(y, p_S) + β·method."""

    def __init__(
        self, method: nn.Module, teacher: TeacherLike, settings: KDConfig, distill_config: DistillConfig = _TOGETHER
    ) -> None:
        super().__init__()
        self.method: Any = method
        self.teacher, self.settings, self.distill_config = teacher, settings, distill_config
        self.weight = _weight(self.method, settings, distill_config)

    def forward(self, model: nn.Module, batch: Batch, train_fraction: float) -> tuple[Tensor, Tensor]:
        logits_BK = model(batch.images_BCHW)
        student_BK = _full(logits_BK)  # bfloat16 is too coarse to divide by τ or to standardize in
        settings = _settings_at(train_fraction, self.settings, self.distill_config)
        weights = self.distill_config.weights_at(train_fraction, len(self.teacher))
        asked = [member for member in range(len(self.teacher)) if weights is None or weights[member] > 0]
        if batch.teacher_TBK is None:
            teacher_TBK = self.teacher.logits(batch, asked)
        else:  # an index would be copied to the device at every step
            teacher_TBK = batch.teacher_TBK if len(asked) == len(self.teacher) else batch.teacher_TBK[asked]
        weights = weights and [weights[member] for member in asked]
        weight = (
            self.weight if train_fraction >= self.method.warm_up else self.weight * train_fraction / self.method.warm_up
        )
        hard_B = cross_entropy(student_BK, batch.labels_B)
        soft_B = self.method(student_BK, teacher_TBK, batch.labels_B, settings, weights)
        return settings.alpha * hard_B + weight * soft_B, logits_BK


@final
class FeatureDistillation(nn.Module):
    """Learn the labels and, by a method, what the teachers compute inside, on the same views: α·H(y, p_S) +
    (1 − α)·τ²·KL(p_T^τ ‖ p_S^τ) + β·(the mean over teachers of the method's term)."""

    def __init__(
        self,
        methods: Sequence[nn.Module],
        teacher: TeacherLike,
        settings: KDConfig,
        distill_config: DistillConfig,
        pairs: Sequence[FeaturePaths],
    ) -> None:
        super().__init__()
        self.methods: Any = nn.ModuleList(methods)
        self.teacher, self.settings, self.distill_config, self.pairs = teacher, settings, distill_config, pairs
        self.weight = _weight(self.methods[0], settings, distill_config)
        self.paths = list(dict.fromkeys(path for pair in pairs for path in pair.student))

    def forward(self, model: nn.Module, batch: Batch, train_fraction: float) -> tuple[Tensor, Tensor]:
        assert isinstance(model, Network)
        images_BCHW = batch.images_BCHW
        with capture_activations(model.body, self.paths) as taken:
            logits_BK = model(images_BCHW)
        for path in self.paths:
            if path not in taken:
                raise UserError(f"nothing passes through the student's {path!r} while it learns; name another module")
            if not taken[path].requires_grad:
                raise UserError(f"the student's {path!r} can't learn: it has no gradient; name another")
        settings = _settings_at(train_fraction, self.settings, self.distill_config)
        count = len(self.pairs)
        shares = self.distill_config.weights_at(train_fraction, count) or (1 / count,) * count
        seen = {
            member: self.teacher.forward_with_features(member, batch, self.pairs[member].teacher)
            for member in range(count)
            if shares[member] > 0
        }
        # Norms, Gram matrices and exponentials need more than bfloat16's 8 bits.
        with torch.autocast(images_BCHW.device.type, enabled=False):
            student_BK = _full(logits_BK)
            loss_B = settings.alpha * cross_entropy(student_BK, batch.labels_B)
            if settings.alpha < 1:
                teacher_TBK = torch.stack([answer for answer, _ in seen.values()]).float()
                kept = [shares[member] for member in seen]
                loss_B = loss_B + (1 - settings.alpha) * soft_loss(student_BK, teacher_TBK, settings, kept)
            for member, (_, theirs) in seen.items():
                ours = [as_maps(taken[path], images_BCHW) for path in self.pairs[member].student]
                term_B = self.methods[member](ours, [as_maps(one, images_BCHW) for one in theirs], batch)
                loss_B = loss_B + self.weight * shares[member] * term_B
        return loss_B, logits_BK


@dataclass(frozen=True)
class FeaturePaths:
    """Which features of the student meet which of one teacher's, in order, by path."""

    student: tuple[str, ...]
    teacher: tuple[str, ...]


def distillation(
    method: str,
    teacher: TeacherLike,
    settings: KDConfig,
    distill_config: DistillConfig,
    *,
    student: Network,
    teachers: Sequence[tuple[str, Network]],
    images: Images,
    seed: int,
) -> LogitDistillation | FeatureDistillation:
    """The objective of distilling by this method. `student` is a network like the one that will learn, `teachers` the
    teachers' networks, each by its name; `images` will be learned from. Layers of a method start as the seed says.

    Raises UserError for features that aren't there, and for those that the method cannot match.
    """
    kind = METHODS[method]
    if not (method == "fsp" or not distill_config.channel_adapter):
        raise UserError(f"--channel-adapter means nothing to {method}; it is for fsp")
    named = {
        "--teacher-features": distill_config.teacher_features,
        "--student-features": distill_config.student_features,
    }
    if not takes_features(method):
        for option, given in named.items():
            if given is not None:
                raise UserError(f"{option} means nothing to {method}, which learns from predictions alone")
        return LogitDistillation(kind(), teacher, settings, distill_config)
    trial_BCHW = images.subset(torch.arange(2)).to_float()
    methods, pairs = [], []
    for number, (name, network) in enumerate(teachers):
        paths = _paths(kind.takes, student, network, trial_BCHW, distill_config, who=f"the teacher {name}")
        ours, theirs = paths.student, paths.teacher
        pairing = FeatureSpec(
            student=_sizes(student, paths.student, trial_BCHW, who="the student"),
            teacher=_sizes(network, paths.teacher, trial_BCHW, who=f"the teacher {name}"),
            labels_N=images.labels_N,
            index_N=images.index_N,
            channel_adapter=distill_config.channel_adapter,
        )
        if len(ours) != len(theirs):
            raise UserError(
                f"each of the student's features meets one of the teacher's, and there are {len(ours)} ({', '.join(ours)}) "
                f"and, of {name}, {len(theirs)} ({', '.join(theirs)}): name as many with --student-features and "
                "--teacher-features"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("method", method, seed, number))
            methods.append(kind(pairing))
        pairs.append(paths)
    return FeatureDistillation(methods, teacher, settings, distill_config, pairs)


def takes_features(method: str) -> bool:
    """Whether a method looks inside its teachers, so that no table of their predictions serves it."""
    return hasattr(METHODS[method], "takes")


def defaults(method: str) -> tuple[float, float]:
    """A method's own α and τ."""
    kind = METHODS[method]
    return kind.alpha, getattr(kind, "tau", KDConfig.tau)


def as_maps(taken: Tensor, images_BCHW: Tensor) -> Tensor:
    """Features of whatever shape as maps (B, D, h, w) in float32; vectors are maps of one position."""
    if not (taken.is_floating_point() and taken.dim() > 1 and len(taken) == len(images_BCHW)):
        raise UserError(
            f"features of shape {tuple(taken.shape)}, {str(taken.dtype).removeprefix('torch.')}, are not one map or vector "
            f"of each of {len(images_BCHW)} images"
        )
    taken = taken.float()
    if taken.dim() == 2:
        return taken[:, :, None, None]
    if taken.dim() == 4 and taken.shape[2:] == (1, 1):
        return taken
    found = as_map(taken, (images_BCHW.shape[2], images_BCHW.shape[3]))
    if found is None:
        raise UserError(f"features of shape {tuple(taken.shape)} are no maps, tokens or vectors of the images")
    assert found is not None
    return found.permute(0, 3, 1, 2)


def _paths(
    takes: FeatureKind,
    student: Network,
    teacher: Network,
    trial_BCHW: Tensor,
    distill_config: DistillConfig,
    *,
    who: str,
) -> FeaturePaths:
    """Which features meet: those that are named, else what the method usually takes."""
    ours, theirs = (
        list(given) if given is not None else _usual(takes, network, trial_BCHW, who=whose)
        for given, network, whose in (
            (distill_config.student_features, student, "the student"),
            (distill_config.teacher_features, teacher, who),
        )
    )
    if (
        takes in ("stages", "middle")
        and distill_config.student_features is None
        and distill_config.teacher_features is None
    ):
        sizes = [_sizes(n, p, trial_BCHW, who=who) for n, p in ((student, ours), (teacher, theirs))]
        by_extent = [{size[1:]: path for path, size in each.items()} for each in sizes]
        common = [extent for extent in by_extent[0] if extent in by_extent[1]]
        least = min(len(ours), len(theirs))
        ours, theirs = ours[-least:], theirs[-least:]
        if common:  # stages of equal size say the same places
            ours, theirs = ([each[extent] for extent in common] for each in by_extent)
    if takes == "middle" and distill_config.student_features is None and distill_config.teacher_features is None:
        ours, theirs = ([each[len(each) // 2]] for each in (ours, theirs))
    return FeaturePaths(tuple(ours), tuple(theirs))


def _usual(takes: FeatureKind, network: Network, trial_BCHW: Tensor, *, who: str) -> list[str]:
    try:
        if takes == "vector":
            return [vector_path(network.body, trial_BCHW)]
        if takes == "last":
            return [last_map_path(network.body, trial_BCHW)]
        return stage_paths(network.body, trial_BCHW)
    except UserError as error:
        reason = str(error).partition(";")[0]
        raise UserError(
            f"of {who}: {reason}; name modules to learn from with --student-features and --teacher-features"
        ) from None


def _sizes(network: Network, paths: Sequence[str], trial_BCHW: Tensor, *, who: str) -> dict[str, Size]:
    """How large the features at these paths are."""
    was_training = network.training
    device = next(network.parameters()).device
    trial_BCHW = trial_BCHW.to(device)
    try:
        with torch.no_grad(), capture_activations(network.eval().body, list(paths)) as taken:
            network(trial_BCHW)
        sizes = {}
        for path in paths:
            if path not in taken:
                raise UserError(f"nothing passes through {path!r}")
            _, D, h, w = as_maps(taken[path], trial_BCHW).shape
            sizes[path] = (D, h, w)
        return sizes
    except UserError as error:
        raise UserError(f"of {who}: {error}") from None
    finally:
        network.train(was_training)


def _full(values: Tensor) -> Tensor:
    """In 32 bits at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _weight(method: Any, settings: KDConfig, distill_config: DistillConfig) -> float:
    own = method.weight if method.weight is not None else 1 - settings.alpha
    return own if distill_config.method_weight is None else distill_config.method_weight


def _settings_at(train_fraction: float, settings: KDConfig, distill_config: DistillConfig) -> KDConfig:
    return replace(settings, tau=distill_config.tau_at(train_fraction, settings.tau))
