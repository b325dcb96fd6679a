"""Class correlation: how alike a network finds each pair of classes (§4.2 and Fig. 5 of the paper).

Letters in names: M checkpoints, N images, K classes, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..seeding import generator

RESAMPLES = 400
AT_ONCE = 2e7  # numbers, at most, in the class vectors of resamples that are computed together
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """A number, less its bias from noise in the images, and its 95% interval, by the basic bootstrap over images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Correlation:
    """Eq. 8 for M checkpoints, `similarity_MKK`; each of `NUMBERS` for each checkpoint; and, for two checkpoints, of
    each number the first's less the second's."""

    similarity_MKK: Tensor
    numbers: dict[str, list[Interval]]
    differences: dict[str, Interval]


def class_similarity(vectors_NK: Tensor, labels_N: Tensor) -> Tensor:
    """A_ij = cosine(V_i, V_j), V_i the mean of class i's vectors: logits, or softened probabilities (Eq. 8).

    Takes one vector an image (N, K) and the labels (N,), gives (K, K) in [−1, 1]. Raises UserError for a class without
    images.

    >>> vectors_NK = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    >>> class_similarity(vectors_NK, torch.tensor([0, 0, 1]))[0].round(decimals=3)
    tensor([1.0000, 0.7070])
    """
    counts_K = labels_N.bincount(minlength=vectors_NK.shape[1])
    without = (counts_K == 0).nonzero().flatten().tolist()
    if without:
        raise UserError(
            f"{len(without)} classes have no image here to know them by, the first being class {without[:1]}"
        )
    sums_KK = torch.zeros(len(counts_K), vectors_NK.shape[1]).index_add_(0, labels_N, vectors_NK)
    return _cosines(sums_KK / counts_K[:, None])


def mean_similarity(similarity_KK: Tensor) -> Tensor:
    """How alike different classes are on average: how bright the heatmap is beside its diagonal; (...,) from
    (..., K, K). The paper reads its Fig. 5 so.

    >>> mean_similarity(torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.0]])).round(decimals=3)
    tensor(0.3000)
    """
    return _beside(similarity_KK).mean(-1)


def diversity(similarity_KK: Tensor) -> Tensor:
    """How widely pairs of different classes differ in their similarity: the standard deviation of A's cells beside the
    diagonal, (...,) from (..., K, K). 0 for a network to which all other classes are alike, however bright.

    >>> diversity(torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.0]])).round(decimals=3)
    tensor(0.1630)
    """
    return _beside(similarity_KK).std(-1, correction=0)


NUMBERS = {"mean_similarity": mean_similarity, "diversity": diversity}


def class_correlation(vectors_MNK: Tensor, labels_N: Tensor) -> Correlation:
    """The class correlation of M checkpoints from one vector an image of each, with bootstrap intervals.

    Images are drawn anew within each class, the same for all checkpoints. Their noise alone makes classes look diverse
    and unlike, in a resample twice as much: so much is taken off the numbers, and their intervals are basic ones. Where
    an image strays from its class as far as classes lie apart, they hold the truth in some 85% of cases, not 95 %.
    """
    similarity_MKK = torch.stack([class_similarity(vectors_NK, labels_N) for vectors_NK in vectors_MNK])
    parts = list(_resampled(vectors_MNK, labels_N))
    numbers, differences = {}, {}
    for name, number in NUMBERS.items():
        found_M, resampled_MR = number(similarity_MKK), torch.cat([part[name] for part in parts], 1)
        pairs = list(zip(found_M, resampled_MR, strict=True))
        numbers[name] = [_interval(found, resampled_R) for found, resampled_R in pairs]
        if len(pairs) == 2:
            differences[name] = _interval(found_M[0] - found_M[1], resampled_MR[0] - resampled_MR[1])
    return Correlation(similarity_MKK, numbers, differences)


def by_similarity(similarity_KK: Tensor) -> list[int]:
    """The classes so ordered that similar ones are neighbors: the leaves of average-linkage clustering."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance_KK = (1 - similarity_KK.double()).clamp_min(0).numpy()
    np.fill_diagonal(distance_KK, 0)
    tree = linkage(squareform((distance_KK + distance_KK.T) / 2), "average", optimal_ordering=len(distance_KK) <= 200)
    return leaves_list(tree).tolist()


def _resampled(vectors_MNK: Tensor, labels_N: Tensor) -> Iterator[dict[str, Tensor]]:
    """Each number of each checkpoint in resamples of the images, (M, R) in parts."""
    count, _, classes = vectors_MNK.shape
    chances = generator("class correlation")
    at_once = max(1, min(RESAMPLES, int(AT_ONCE // (count * classes**2))))
    members = [(labels_N == label).nonzero().flatten() for label in range(classes)]
    for begin in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - begin)
        sums_MRKK = torch.empty(count, size, classes, classes)
        for label, rows in enumerate(members):
            drawn_RN = torch.randint(len(rows), (size, len(rows)), generator=chances)
            weight_RN = torch.zeros(size, len(rows)).scatter_add_(1, drawn_RN, torch.ones(size, len(rows)))
            sums_MRKK[:, :, label] = weight_RN @ vectors_MNK[:, rows]
        similarity_MRKK = _cosines(sums_MRKK)
        yield {name: number(similarity_MRKK) for name, number in NUMBERS.items()}


def _beside(similarity_KK: Tensor) -> Tensor:
    """The cells beside the diagonal."""
    return similarity_KK[..., ~torch.eye(similarity_KK.shape[-1], dtype=torch.bool)]


def _cosines(vectors_KK: Tensor) -> Tensor:
    unit_KK = torch.nn.functional.normalize(vectors_KK, dim=-1)
    return (unit_KK @ unit_KK.mT).clamp(-1, 1)


def _interval(found: Tensor, resampled_R: Tensor) -> Interval:
    low, high = resampled_R.double().quantile(torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
    plain = found.item()
    assert math.isfinite(plain)
    return Interval(2 * plain - resampled_R.double().mean().item(), 2 * plain - high, 2 * plain - low)


def grouped(groups: Sequence[str]) -> list[int]:
    """The classes so ordered that those of one group are neighbors.

    >>> grouped(["fish", "trees", "fish"])
    [0, 2, 1]
    """
    return sorted(range(len(groups)), key=lambda number: groups[number])
