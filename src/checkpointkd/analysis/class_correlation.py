"""Class correlation: the similarity of each pair of classes to a network (§4.2 and Fig. 5 of the paper).

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
MAX_NUMBERS = 2e7  # in the class vectors of the resamples that are computed together
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """A bias-corrected number and its 95% interval, by the basic bootstrap over images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Correlation:
    """The class similarity of M checkpoints and the numbers that summarize it.

    Attributes:
        similarity_MKK: Eq. 8 for each checkpoint.
        numbers: each of `NUMBERS` for each checkpoint.
        differences: each number of the first checkpoint minus the second's; empty unless there are two checkpoints.
    """

    similarity_MKK: Tensor
    numbers: dict[str, list[Interval]]
    differences: dict[str, Interval]


def class_similarity(vectors_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return A_ij = cosine(V_i, V_j), where V_i is the mean vector of class i (Eq. 8).

    Args:
        vectors_NK: logits or softened probabilities, one vector per image.
        labels_N: the class of each image.

    Returns:
        The similarities, (K, K) in [−1, 1].

    Raises:
        UserError: a class has no image.

    >>> vectors_NK = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    >>> class_similarity(vectors_NK, torch.tensor([0, 0, 1]))[0].round(decimals=3)
    tensor([1.0000, 0.7070])
    """
    counts_K = labels_N.bincount(minlength=vectors_NK.shape[1])
    empty = (counts_K == 0).nonzero().flatten().tolist()
    if empty:
        raise UserError(
            f"{len(empty)} of {len(counts_K)} classes have no image in this split, such as class {empty[0]}; "
            "use more images"
        )
    sums_KK = torch.zeros(len(counts_K), vectors_NK.shape[1]).index_add_(0, labels_N, vectors_NK)
    return _cosines(sums_KK / counts_K[:, None])


def mean_similarity(similarity_KK: Tensor) -> Tensor:
    """Return the mean similarity of two different classes, (...,) from (..., K, K): the brightness of Fig. 5.

    >>> mean_similarity(torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.0]])).round(decimals=3)
    tensor(0.3000)
    """
    return _off_diagonal(similarity_KK).mean(-1)


def diversity(similarity_KK: Tensor) -> Tensor:
    """Return the standard deviation of the similarities of two different classes, (...,) from (..., K, K).

    It is 0 for a network to which all pairs of classes are equally similar.

    >>> diversity(torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.0]])).round(decimals=3)
    tensor(0.1630)
    """
    return _off_diagonal(similarity_KK).std(-1, correction=0)


NUMBERS = {"mean_similarity": mean_similarity, "diversity": diversity}


def class_correlation(vectors_MNK: Tensor, labels_N: Tensor) -> Correlation:
    """Return the class correlation of M checkpoints, with bootstrap intervals over the images.

    Images are resampled within each class, the same for all checkpoints. Noise in the images makes classes look more
    diverse and less similar, and twice as much in a resample. The basic bootstrap removes that bias. Where images
    differ from their class mean as much as classes differ, coverage falls from 95% to about 85%.

    Args:
        vectors_MNK: logits or softened probabilities of M checkpoints, one vector per image.
        labels_N: the class of each image.
    """
    similarity_MKK = torch.stack([class_similarity(vectors_NK, labels_N) for vectors_NK in vectors_MNK])
    parts = list(_resampled(vectors_MNK, labels_N))
    numbers, differences = {}, {}
    for name, number in NUMBERS.items():
        value_M, resampled_MR = number(similarity_MKK), torch.cat([part[name] for part in parts], 1)
        numbers[name] = [_interval(*pair) for pair in zip(value_M, resampled_MR, strict=True)]
        if len(value_M) == 2:
            differences[name] = _interval(value_M[0] - value_M[1], resampled_MR[0] - resampled_MR[1])
    return Correlation(similarity_MKK, numbers, differences)


def by_similarity(similarity_KK: Tensor) -> list[int]:
    """Return the classes in an order in which similar classes are neighbors (average-linkage clustering)."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance_KK = (1 - similarity_KK.double()).clamp_min(0).numpy()
    np.fill_diagonal(distance_KK, 0)
    tree = linkage(squareform((distance_KK + distance_KK.T) / 2), "average", optimal_ordering=len(distance_KK) <= 200)
    return leaves_list(tree).tolist()


def _resampled(vectors_MNK: Tensor, labels_N: Tensor) -> Iterator[dict[str, Tensor]]:
    """Yield each number of each checkpoint in resamples of the images, (M, R) in chunks."""
    count, _, classes = vectors_MNK.shape
    rng = generator("class correlation")
    chunk = max(1, min(RESAMPLES, int(MAX_NUMBERS // (count * classes**2))))
    members = [(labels_N == label).nonzero().flatten() for label in range(classes)]
    for begin in range(0, RESAMPLES, chunk):
        size = min(chunk, RESAMPLES - begin)
        sums_MRKK = torch.empty(count, size, classes, classes)
        for label, rows in enumerate(members):
            drawn_RN = torch.randint(len(rows), (size, len(rows)), generator=rng)
            weight_RN = torch.zeros(size, len(rows)).scatter_add_(1, drawn_RN, torch.ones(size, len(rows)))
            sums_MRKK[:, :, label] = weight_RN @ vectors_MNK[:, rows]
        similarity_MRKK = _cosines(sums_MRKK)
        yield {name: number(similarity_MRKK) for name, number in NUMBERS.items()}


def _off_diagonal(similarity_KK: Tensor) -> Tensor:
    """Return the cells off the diagonal."""
    return similarity_KK[..., ~torch.eye(similarity_KK.shape[-1], dtype=torch.bool)]


def _cosines(vectors_KK: Tensor) -> Tensor:
    unit_KK = torch.nn.functional.normalize(vectors_KK, dim=-1)
    return (unit_KK @ unit_KK.mT).clamp(-1, 1)


def _interval(value: Tensor, resampled_R: Tensor) -> Interval:
    low, high = resampled_R.double().quantile(torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
    plain = value.item()
    assert math.isfinite(plain)
    return Interval(2 * plain - resampled_R.double().mean().item(), 2 * plain - high, 2 * plain - low)


def grouped(groups: Sequence[str]) -> list[int]:
    """Return the classes in an order in which those of one group are neighbors.

    >>> grouped(["fish", "trees", "fish"])
    [0, 2, 1]
    """
    return sorted(range(len(groups)), key=lambda number: groups[number])
