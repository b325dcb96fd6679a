"""Distillation methods that learn from the teachers' features.

Each method object serves one teacher and one student. It is built for the sizes of their features and may own layers,
which train with the student and are not saved in its checkpoints. With several teachers, the objective averages the
terms.

Weights: some papers sum over entries where the field's common benchmark takes the mean (RepDistiller, Tian et al., ICLR
2020). We take the mean, too, with the benchmark's weight.

Letters in names: B batch, C D channels, h w height and width. A name with C is the student's, with D the teacher's.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Batch
from ..errors import UserError

EPS = 1e-12

FeatureKind = Literal["stages", "middle", "last", "vector"]
Size = tuple[int, int, int]  # D, h, w


@dataclass(frozen=True, eq=False)
class FeatureSpec:
    """The features that a method will be called with, and the training images.

    `student` and `teacher` map module paths to feature sizes; the features meet in order. `labels_N` and `index_N` are
    the training images' labels and numbers in the data set. With `channel_adapter`, a method may map the student's
    channels to the teacher's.
    """

    student: dict[str, Size]
    teacher: dict[str, Size]
    labels_N: Tensor
    index_N: Tensor
    channel_adapter: bool = False


class FeatureMethod(nn.Module, ABC):
    """Interface of all feature methods: the defaults, the constructor and the call.

    `alpha` is the default weight of the labels and `weight` that of the method's term, which grows linearly from 0
    over the first `warm_up` of the training. `feature_kind` selects the default features: the maps of all stages, of
    the middle stage, the last map, or the vector before the classifier.
    `uses_labels` says that the term needs one class for each image.
    """

    alpha: ClassVar[float] = 1.0
    warm_up: ClassVar[float] = 0.0
    uses_labels: ClassVar[bool] = False
    weight: ClassVar[float]
    feature_kind: ClassVar[FeatureKind]

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        """Return the method's term, one value per example (B,), from maps (B, D, h, w); a vector has h = w = 1."""


@final
class FitNets(FeatureMethod):
    """FitNets (Romero et al., ICLR 2015, Eq. 3): ½‖u_t − r(v_s)‖², as a mean of squares.

    The regressor r is a 1×1 convolution with batch norm, as in the benchmark. Without batch norm, this weight diverges
    at common learning rates.
    """

    weight: ClassVar = 100.0
    feature_kind: ClassVar = "middle"

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__(spec)
        channels = zip(spec.student.values(), spec.teacher.values(), strict=True)
        self.regressors = nn.ModuleList(Adapter(C, D) for (C, *_), (D, *_) in channels)

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(regressor: nn.Module, student_BChw: Tensor, teacher_BDhw: Tensor) -> Tensor:
            student_BChw, teacher_BDhw = match_spatial_size(student_BChw, teacher_BDhw)
            return (regressor(student_BChw) - teacher_BDhw).square().flatten(1).mean(1)

        return _sum(map(term, self.regressors, student, teacher))


@final
class AT(FeatureMethod):
    """Attention transfer (Zagoruyko and Komodakis, ICLR 2017, Eq. 2): distance of normalized attention maps Σ_c |A_c|².

    Mean of squares over positions, summed over stages.
    """

    weight: ClassVar = 1000.0
    feature_kind: ClassVar = "stages"

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__(spec)
        for path, (_, h, w) in [*spec.student.items(), *spec.teacher.items()]:
            if h * w == 1:
                raise UserError(
                    f"at compares attention maps, but the feature {path!r} has only one position. Name modules that "
                    "output maps with --student-features and --teacher-features."
                )

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(student_BChw: Tensor, teacher_BDhw: Tensor) -> Tensor:
            student_BChw, teacher_BDhw = match_spatial_size(student_BChw, teacher_BDhw)
            return (attention(student_BChw) - attention(teacher_BDhw)).square().mean(1)

        return _sum(map(term, student, teacher))


@final
class SP(FeatureMethod):
    """Similarity-preserving distillation (Tung and Mori, ICCV 2019, Eqs. 1–4): ‖G_T − G_S‖²_F / b².

    G is Q·Qᵀ with normalized rows.
    """

    weight: ClassVar = 3000.0
    feature_kind: ClassVar = "last"

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(student_BChw: Tensor, teacher_BDhw: Tensor) -> Tensor:
            return (similarities(student_BChw) - similarities(teacher_BDhw)).square().mean(1)

        return _sum(map(term, student, teacher))


@final
class CC(FeatureMethod):
    """Correlation congruence (Peng et al., ICCV 2019, Eqs. 4 and 9): ‖K_T − K_S‖² / n².

    K is the examples' correlation by a Gaussian kernel of normalized features (γ 0.4), as a Taylor series of order 2.
    The paper gives no weight that fits this mean; 100 is Knowledge-Distillation-Zoo's.
    """

    weight: ClassVar = 100.0
    feature_kind: ClassVar = "vector"

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(student_BChw: Tensor, teacher_BDhw: Tensor) -> Tensor:
            student_BC, teacher_BD = global_avg_pool(student_BChw), global_avg_pool(teacher_BDhw)
            return (correlations(student_BC) - correlations(teacher_BD)).square().mean(1)

        return _sum(map(term, student, teacher))


@final
class VID(FeatureMethod):
    """Variational information distillation (Ahn et al., CVPR 2019, Eqs. 5 and 6): −log q(t | s).

    q is a Gaussian with learned mean μ(s) and one variance per channel, σ² = softplus(a) + ε. μ is three 1×1
    convolutions with ReLU. Mean over entries, summed over stages.
    """

    weight: ClassVar = 1.0
    feature_kind: ClassVar = "stages"
    initial_variance: ClassVar = 5.0  # as in the authors' code
    min_variance: ClassVar = 1e-5

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__(spec)
        self.means, self.scales = nn.ModuleList(), nn.ParameterList()
        initial_scale = math.log(math.expm1(self.initial_variance - self.min_variance))
        for (C, *_), (D, *_) in zip(spec.student.values(), spec.teacher.values(), strict=True):
            conv = [nn.Conv2d(in_channels, D, 1, bias=False) for in_channels in (C, D, D)]
            self.means.append(nn.Sequential(conv[0], nn.ReLU(), conv[1], nn.ReLU(), conv[2]))
            self.scales.append(nn.Parameter(torch.full((D,), initial_scale)))

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(mean: nn.Module, scale_D: Tensor, student_BChw: Tensor, teacher_BDhw: Tensor) -> Tensor:
            student_BChw, teacher_BDhw = match_spatial_size(student_BChw, teacher_BDhw)
            variance_D11 = (F.softplus(scale_D) + self.min_variance)[:, None, None]
            square_BDhw = (mean(student_BChw) - teacher_BDhw).square()
            return (0.5 * (square_BDhw / variance_D11 + variance_D11.log())).flatten(1).mean(1)

        return _sum(map(term, self.means, self.scales, student, teacher))


@final
class RKD(FeatureMethod):
    """Relational knowledge distillation (Park et al., CVPR 2019, Eqs. 5–10).

    Huber loss of the examples' pairwise distances, over their mean, times 25, and of the angles of their triplets
    times 50.
    """

    weight: ClassVar = 1.0
    feature_kind: ClassVar = "vector"
    distance_weight: ClassVar = 25.0
    angle_weight: ClassVar = 50.0

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(student_BChw: Tensor, teacher_BDhw: Tensor) -> Tensor:
            student_BC, teacher_BD = global_avg_pool(student_BChw), global_avg_pool(teacher_BDhw)
            distance_BB = F.smooth_l1_loss(distances(student_BC), distances(teacher_BD), reduction="none")
            angle_BBB = F.smooth_l1_loss(angles(student_BC), angles(teacher_BD), reduction="none")
            return self.distance_weight * distance_BB.mean(1) + self.angle_weight * angle_BBB.mean((1, 2))

        return _sum(map(term, student, teacher))


@final
class FSP(FeatureMethod):
    """Flow of the solution procedure (Yim et al., CVPR 2017, Eqs. 1 and 2): ‖G_T − G_S‖².

    G = F₁ᵀF₂ / (h·w) is the flow matrix from one stage to the next. Mean of squares over entries, summed over pairs of
    stages. The student learns the matrices along with the labels; in the paper and the benchmark it learns them first.
    Along with the labels, the benchmark's weight of 50 diverges; 1 is Knowledge-Distillation-Zoo's.
    """

    weight: ClassVar = 1.0
    feature_kind: ClassVar = "stages"

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__(spec)
        if len(spec.student) < 2:
            raise UserError(
                f"fsp compares the flow between stages and needs at least 2 features, not "
                f"1 ({', '.join(spec.student)}). Name more with --student-features and --teacher-features."
            )
        self.adapters = nn.ModuleList()
        pairs = zip(spec.student.items(), spec.teacher.items(), strict=True)
        for (student_path, (C, *_)), (teacher_path, (D, *_)) in pairs:
            if C != D and not spec.channel_adapter:
                raise UserError(
                    f"fsp needs equal channels, but the student's {student_path!r} has {C} and the teacher's "
                    f"{teacher_path!r} has {D}. Add --channel-adapter to train a 1×1 convolution from {C} to {D} "
                    "channels, or name other features."
                )
            self.adapters.append(nn.Identity() if C == D else Adapter(C, D))

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        adapted = [adapter(student_BChw) for adapter, student_BChw in zip(self.adapters, student, strict=True)]
        stage_pairs = zip(itertools.pairwise(adapted), itertools.pairwise(teacher), strict=True)
        return _sum(
            (flow(*student_pair) - flow(*teacher_pair)).square().flatten(1).mean(1)
            for student_pair, teacher_pair in stage_pairs
        )


@final
class PKT(FeatureMethod):
    """Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018, Eqs. 4–8).

    KL divergence of the probabilities that examples are neighbors, by the cosine similarity ½(cos + 1). Mean over
    pairs, with the benchmark's weight of 30,000.
    """

    weight: ClassVar = 30_000.0
    feature_kind: ClassVar = "vector"

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(student_BChw: Tensor, teacher_BDhw: Tensor) -> Tensor:
            p_BB = neighbor_probabilities(global_avg_pool(teacher_BDhw))
            q_BB = neighbor_probabilities(global_avg_pool(student_BChw))
            return (p_BB * (p_BB.clamp_min(EPS) / q_BB.clamp_min(EPS)).log()).mean(1)

        return _sum(map(term, student, teacher))


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)


class Adapter(nn.Module):
    """A trained map from C channels to D: a convolution, by default 1×1, and batch norm.

    A batch with a single value per channel has no variance, so the running statistics normalize it.
    """

    def __init__(self, C: int, D: int, *, kernel_size: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, D, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(D)

    def forward(self, map_BChw: Tensor) -> Tensor:
        map_BDhw = self.conv(map_BChw)
        norm = self.norm
        if norm.training and map_BDhw.numel() == map_BDhw.shape[1]:
            return F.batch_norm(map_BDhw, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return norm(map_BDhw)


def global_avg_pool(map_BDhw: Tensor) -> Tensor:
    """Return a map's mean over positions (B, D)."""
    return map_BDhw.mean((2, 3))


def match_spatial_size(a_BChw: Tensor, b_BDhw: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger map to the height and width of the smaller."""
    size = (min(a_BChw.shape[2], b_BDhw.shape[2]), min(a_BChw.shape[3], b_BDhw.shape[3]))
    pooled = [x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a_BChw, b_BDhw)]
    return pooled[0], pooled[1]


def attention(map_BDhw: Tensor) -> Tensor:
    """Return the attention map (B, h·w): squared activations summed over channels, with norm 1.

    >>> attention(torch.tensor([3.0, 4.0]).sqrt().reshape(1, 1, 1, 2)).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    return F.normalize(map_BDhw.square().sum(1).flatten(1), eps=EPS)


def similarities(map_BDhw: Tensor) -> Tensor:
    """Return the inner products of a batch's maps (B, B), each row with norm 1."""
    flat = map_BDhw.flatten(1)
    return F.normalize(flat @ flat.T, eps=EPS)


def correlations(features_BD: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Return e^(−2γ) Σ_p (2γ)^p/p! · (x·y)^p of normalized features (B, B), the Taylor series of a Gaussian kernel."""
    unit_BD = F.normalize(features_BD, eps=EPS)
    cosine_BB = unit_BD @ unit_BD.T
    powers = [(2 * gamma) ** p / math.factorial(p) * cosine_BB**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * _sum(powers)


def distances(features_BD: Tensor) -> Tensor:
    """Return the distances of all pairs over the mean nonzero distance (B, B)."""
    distance_BB = torch.cdist(features_BD, features_BD, compute_mode="donot_use_mm_for_euclid_dist")
    return distance_BB / (distance_BB.sum() / (distance_BB > 0).sum().clamp_min(1)).clamp_min(EPS)


def angles(features_BD: Tensor) -> Tensor:
    """Return cos ∠ijk of all triplets (B, B, B), indexed [j, i, k]."""
    unit_BBD = F.normalize(features_BD[None] - features_BD[:, None], dim=-1, eps=1e-6)
    return unit_BBD @ unit_BBD.transpose(1, 2)


def flow(first_BChw: Tensor, second_BDhw: Tensor) -> Tensor:
    """Return the inner products of two stages' channels over positions (B, C, D), after max-pooling the larger map."""
    size = (min(first_BChw.shape[2], second_BDhw.shape[2]), min(first_BChw.shape[3], second_BDhw.shape[3]))
    first, second = (
        (x if x.shape[2:] == size else F.adaptive_max_pool2d(x, size)).flatten(2) for x in (first_BChw, second_BDhw)
    )
    return first @ second.transpose(1, 2) / first.shape[-1]


def neighbor_probabilities(features_BD: Tensor) -> Tensor:
    """Return the probability of each example as a neighbor of another (B, B); rows sum to 1."""
    unit_BD = F.normalize(features_BD, eps=EPS)
    affinity_BB = (unit_BD @ unit_BD.T + 1) / 2
    return affinity_BB / affinity_BB.sum(1, keepdim=True).clamp_min(EPS)
