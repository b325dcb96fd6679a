"""Methods that learn from what the teacher computes inside.

Each is made for one teacher and one student, from the sizes of their features, and may own layers, which train with the
student and are left out of its checkpoints. Each is called with the student's features and the teacher's, lists of maps
(B, D, h, w), vectors being maps of one position, and with the batch, and gives its term, one value per example; with
several teachers the objective takes the mean. `weight` multiplies the term; where a paper sums and the field's common
benchmark (Tian et al., ICLR 2020, "CRD") takes the mean, so do we, with that benchmark's weight. `takes` says what a
method's features are where none are named: all stages' maps, the middle one, the last, or the vector that is
classified.

Letters in names: B batch, C D channels, h w height and width.
"""

from __future__ import annotations

import itertools
import math
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
    """What a method's layers are made for: the sizes of the features, by path, and the images that will be learned."""

    student: dict[str, Size]
    teacher: dict[str, Size]
    labels_N: Tensor  # of the training images
    index_N: Tensor
    channel_adapter: bool = False


@final
class FitNets(nn.Module):
    """Romero et al., ICLR 2015, Eq. 3: ½‖u_t − r(v_s)‖², the regressor r being a 1×1 convolution with batch norm, as in
    the benchmark, without which its weight diverges at common learning rates; mean of squares."""

    alpha: ClassVar = 1.0
    weight: ClassVar = 100.0
    takes: ClassVar[FeatureKind] = "middle"

    def __init__(self, pairing: FeatureSpec) -> None:
        super().__init__()
        self.regressors = nn.ModuleList(
            Adapter(student[0], teacher[0])
            for student, teacher in zip(pairing.student.values(), pairing.teacher.values(), strict=True)
        )

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(regressor: nn.Module, ours: Tensor, theirs: Tensor) -> Tensor:
            ours, theirs = match_spatial_size(ours, theirs)
            return (regressor(ours) - theirs).square().flatten(1).mean(1)

        return _summed(map(term, self.regressors, student, teacher))


@final
class AT(nn.Module):
    """Zagoruyko and Komodakis, ICLR 2017, Eq. 2: the distance of normalized attention maps Σ_c |A_c|²; mean of squares
    over positions, summed over stages."""

    alpha: ClassVar = 1.0
    weight: ClassVar = 1000.0
    takes: ClassVar[FeatureKind] = "stages"

    def __init__(self, pairing: FeatureSpec) -> None:
        super().__init__()
        for path, (_, h, w) in [*pairing.student.items(), *pairing.teacher.items()]:
            if not h * w > 1:
                raise UserError(f"at compares where maps are active, and {path!r} has a single position; name maps")

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(ours: Tensor, theirs: Tensor) -> Tensor:
            ours, theirs = match_spatial_size(ours, theirs)
            return (attention(ours) - attention(theirs)).square().mean(1)

        return _summed(map(term, student, teacher))


@final
class SP(nn.Module):
    """Tung and Mori, ICCV 2019, Eqs. 1–4: ‖G_T − G_S‖²_F / b², G the rows of Q·Qᵀ, each normalized."""

    alpha: ClassVar = 1.0
    weight: ClassVar = 3000.0
    takes: ClassVar[FeatureKind] = "last"

    def __init__(self, pairing: FeatureSpec) -> None:
        super().__init__()

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(ours: Tensor, theirs: Tensor) -> Tensor:
            return (similarities(ours) - similarities(theirs)).square().mean(1)

        return _summed(map(term, student, teacher))


@final
class CC(nn.Module):
    """Peng et al., ICCV 2019, Eqs. 4 and 9: ‖K_T − K_S‖² / n², K the examples' correlation by a Gaussian kernel of
    normalized features, as its Taylor series to order 2 with γ 0.4. The weight, 100, is Knowledge-Distillation-Zoo's;
    the paper doesn't give one that fits this mean."""

    alpha: ClassVar = 1.0
    weight: ClassVar = 100.0
    takes: ClassVar[FeatureKind] = "vector"

    def __init__(self, pairing: FeatureSpec) -> None:
        super().__init__()

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(ours: Tensor, theirs: Tensor) -> Tensor:
            return (correlations(global_avg_pool(ours)) - correlations(global_avg_pool(theirs))).square().mean(1)

        return _summed(map(term, student, teacher))


@final
class VID(nn.Module):
    """Ahn et al., CVPR 2019, Eqs. 5 and 6: −log q(t | s), q a Gaussian of learned mean μ(s) and deviation σ_c per
    channel, σ² = softplus(a) + ε; mean over entries, summed over stages. μ is three 1×1 convolutions with ReLU."""

    alpha: ClassVar = 1.0
    weight: ClassVar = 1.0
    takes: ClassVar[FeatureKind] = "stages"
    first_variance: ClassVar = 5.0  # its code's
    least_variance: ClassVar = 1e-5

    def __init__(self, pairing: FeatureSpec) -> None:
        super().__init__()
        self.means, self.scales = nn.ModuleList(), nn.ParameterList()
        first_scale = math.log(math.expm1(self.first_variance - self.least_variance))
        for (C, *_), (D, *_) in zip(pairing.student.values(), pairing.teacher.values(), strict=True):
            conv = [nn.Conv2d(before, D, 1, bias=False) for before in (C, D, D)]
            self.means.append(nn.Sequential(conv[0], nn.ReLU(), conv[1], nn.ReLU(), conv[2]))
            self.scales.append(nn.Parameter(torch.full((D,), first_scale)))

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(mean: nn.Module, scale_D: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
            ours, theirs = match_spatial_size(ours, theirs)
            variance_D11 = (F.softplus(scale_D) + self.least_variance)[:, None, None]
            return (0.5 * ((mean(ours) - theirs).square() / variance_D11 + variance_D11.log())).flatten(1).mean(1)

        return _summed(map(term, self.means, self.scales, student, teacher))


@final
class RKD(nn.Module):
    """Park et al., CVPR 2019, Eqs. 5–10: Huber loss of the examples' pairwise distances (over their mean) times 25, and
    of the angles of their triplets times 50."""

    alpha: ClassVar = 1.0
    weight: ClassVar = 1.0
    takes: ClassVar[FeatureKind] = "vector"
    distance_weight: ClassVar = 25.0
    angle_weight: ClassVar = 50.0

    def __init__(self, pairing: FeatureSpec) -> None:
        super().__init__()

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(ours: Tensor, theirs: Tensor) -> Tensor:
            ours_BD, theirs_BD = global_avg_pool(ours), global_avg_pool(theirs)
            distance_B = F.smooth_l1_loss(distances(ours_BD), distances(theirs_BD), reduction="none").mean(1)
            angle_B = F.smooth_l1_loss(angles(ours_BD), angles(theirs_BD), reduction="none").mean((1, 2))
            return self.distance_weight * distance_B + self.angle_weight * angle_B

        return _summed(map(term, student, teacher))


@final
class FSP(nn.Module):
    """Yim et al., CVPR 2017, Eqs. 1 and 2: ‖G_T − G_S‖² of the flow matrices G = F₁ᵀF₂ / (h·w) between a stage and the
    next; mean of squares over entries, summed over pairs of stages. Learned along with the labels, not before them as
    in the paper and the benchmark, whose weight of 50 then diverges; 1 is Knowledge-Distillation-Zoo's. Raises
    UserError where the teacher's matrices have other sizes and nothing adapts them."""

    alpha: ClassVar = 1.0
    weight: ClassVar = 1.0
    takes: ClassVar[FeatureKind] = "stages"

    def __init__(self, pairing: FeatureSpec) -> None:
        super().__init__()
        if not len(pairing.student) >= 2:
            raise UserError(
                f"fsp compares the flow from one stage to the next, and there is only one, {', '.join(pairing.student)}: "
                "name two or more with --student-features and --teacher-features"
            )
        self.adapters = nn.ModuleList()
        for (ours, (C, *_)), (theirs, (D, *_)) in zip(pairing.student.items(), pairing.teacher.items(), strict=True):
            if not (C == D or pairing.channel_adapter):
                raise UserError(
                    f"fsp compares matrices of channels by channels, and the student's {ours!r} has {C} where the "
                    f"teacher's {theirs!r} has {D}: --channel-adapter puts a trained 1×1 convolution from {C} to {D} channels behind "
                    "it, or name features with as many"
                )
            self.adapters.append(nn.Identity() if C == D else Adapter(C, D))

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        ours = [channel_adapter(features) for channel_adapter, features in zip(self.adapters, student, strict=True)]
        theirs = itertools.pairwise(teacher)
        return _summed(
            (flow(*of_student) - flow(*of_teacher)).square().flatten(1).mean(1)
            for of_student, of_teacher in zip(itertools.pairwise(ours), theirs, strict=True)
        )


@final
class PKT(nn.Module):
    """Passalis and Tefas, ECCV 2018, Eqs. 4–8: KL of the probabilities that examples are neighbors, by cosine
    similarity ½(cos + 1); mean over pairs, with the benchmark's weight 30,000."""

    alpha: ClassVar = 1.0
    weight: ClassVar = 30_000.0
    takes: ClassVar[FeatureKind] = "vector"

    def __init__(self, pairing: FeatureSpec) -> None:
        super().__init__()

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        def term(ours: Tensor, theirs: Tensor) -> Tensor:
            p_BB, q_BB = neighbors(global_avg_pool(theirs)), neighbors(global_avg_pool(ours))
            return (p_BB * (p_BB.clamp_min(EPS) / q_BB.clamp_min(EPS)).log()).mean(1)

        return _summed(map(term, student, teacher))


def _summed(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)


class Adapter(nn.Module):
    """A trained map from C channels to D: a 1×1 convolution and batch norm, which normalizes with what it learned where
    there is a single value of each channel."""

    def __init__(self, C: int, D: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, D, 1, bias=False), nn.BatchNorm2d(D)

    def forward(self, map_BChw: Tensor) -> Tensor:
        map_BDhw = self.conv(map_BChw)
        norm = self.norm
        if norm.training and map_BDhw.numel() == map_BDhw.shape[1]:
            return F.batch_norm(map_BDhw, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return norm(map_BDhw)


def global_avg_pool(map_BDhw: Tensor) -> Tensor:
    """A map's mean over positions, (B, D)."""
    return map_BDhw.mean((2, 3))


def match_spatial_size(a_BChw: Tensor, b_BDhw: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps with as many positions as the smaller has, the other pooled by averages."""
    size = (min(a_BChw.shape[2], b_BDhw.shape[2]), min(a_BChw.shape[3], b_BDhw.shape[3]))
    pooled = [x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a_BChw, b_BDhw)]
    return pooled[0], pooled[1]


def attention(map_BDhw: Tensor) -> Tensor:
    """Where a map's activations are large: squares summed over channels, of norm 1, (B, h·w).

    >>> attention(torch.tensor([3.0, 4.0]).sqrt().reshape(1, 1, 1, 2)).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    return F.normalize(map_BDhw.square().sum(1).flatten(1), eps=EPS)


def similarities(map_BDhw: Tensor) -> Tensor:
    """How alike a batch's maps are, (B, B): inner products, each row of norm 1."""
    flat = map_BDhw.flatten(1)
    return F.normalize(flat @ flat.T, eps=EPS)


def correlations(features_BD: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """e^(−2γ) Σ_p (2γ)^p/p! · (x·y)^p of normalized features, (B, B): a Gaussian kernel's Taylor series."""
    unit_BD = F.normalize(features_BD, eps=EPS)
    cosine_BB = unit_BD @ unit_BD.T
    powers = [(2 * gamma) ** p / math.factorial(p) * cosine_BB**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * _summed(powers)


def distances(features_BD: Tensor) -> Tensor:
    """Distances of all pairs over the mean of those that aren't 0, (B, B)."""
    distance_BB = torch.cdist(features_BD, features_BD, compute_mode="donot_use_mm_for_euclid_dist")
    return distance_BB / (distance_BB.sum() / (distance_BB > 0).sum().clamp_min(1)).clamp_min(EPS)


def angles(features_BD: Tensor) -> Tensor:
    """cos ∠ijk for all triplets, at [j, i, k], (B, B, B)."""
    unit_BBD = F.normalize(features_BD[None] - features_BD[:, None], dim=-1, eps=1e-6)
    return unit_BBD @ unit_BBD.transpose(1, 2)


def flow(first_BChw: Tensor, second_BDhw: Tensor) -> Tensor:
    """The inner products of two stages' channels over positions, (B, C, D), the larger map pooled by maxima."""
    size = (min(first_BChw.shape[2], second_BDhw.shape[2]), min(first_BChw.shape[3], second_BDhw.shape[3]))
    first, second = (
        (x if x.shape[2:] == size else F.adaptive_max_pool2d(x, size)).flatten(2) for x in (first_BChw, second_BDhw)
    )
    return first @ second.transpose(1, 2) / first.shape[-1]


def neighbors(features_BD: Tensor) -> Tensor:
    """How probable each example is as a neighbor of another, (B, B), rows summing to 1."""
    unit_BD = F.normalize(features_BD, eps=EPS)
    affinity_BB = (unit_BD @ unit_BD.T + 1) / 2
    return affinity_BB / affinity_BB.sum(1, keepdim=True).clamp_min(EPS)
