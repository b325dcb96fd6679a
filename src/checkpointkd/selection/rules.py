"""Rules that choose a checkpoint: arrays in, an epoch out, with reasons. They read no file and train nothing.

Letters in names: A checkpoints, N images, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import require, unknown
from ..information import Plane

RESAMPLES = 1000
UNRIPE = 0.8  # a chosen teacher below this share of the last one's accuracy is worth a warning


@dataclass(frozen=True)
class Choice:
    """What a rule chose, and why: `scores` by epoch (larger is better), the runner-up, and how sure the choice is.

    `probability` is each epoch's share of the bootstrap resamples of the images in which the rule chose it; None for
    rules that look at no image.
    """

    rule: str
    epoch: int
    scores: dict[int, float]
    reason: str
    runner_up: int | None = None
    probability: dict[int, float] | None = None
    warnings: tuple[str, ...] = ()
    details: dict[str, dict[int, float]] = field(default_factory=dict)


def normalised(values_A: np.ndarray) -> np.ndarray:
    """Min–max over the checkpoints: 0 the least, 1 the greatest; all 0 when they are equal (§5, our reading).

    >>> normalised(np.array([1.0, 3.0, 2.0])).tolist()
    [0.0, 1.0, 0.5]
    """
    spread = np.ptp(values_A, axis=-1, keepdims=True)
    return np.divide(values_A - values_A.min(-1, keepdims=True), spread, out=np.zeros_like(values_A), where=spread > 0)


def algorithm_1(excess_A: np.ndarray, accuracy_A: np.ndarray) -> np.ndarray:
    """Algorithm 1: normalised I(X;F) + normalised I(Y;F) of each checkpoint (Eq. 11), to be maximised.

    I(X;F) enters as the negative excess reconstruction loss, I(Y;F) as accuracy (§4.2). Takes (A,) or (R, A).

    >>> algorithm_1(np.array([0.3, 0.1, 0.2]), np.array([0.2, 0.5, 0.8])).round(2).tolist()
    [0.0, 1.5, 1.5]
    """
    return normalised(-excess_A) + normalised(accuracy_A)


@dataclass(frozen=True)
class Candidates:
    """What a rule chooses between: the saved epochs, and what is known of them."""

    epochs: list[int]
    planned_epochs: int
    plane: Plane | None = None

    @property
    def scored(self) -> Plane:
        """The plane, for rules that need one."""
        assert self.plane is not None, "choose() checks it"
        return self.plane


def paper(candidates: Candidates) -> Choice:
    """Algorithm 1 (§5): the largest sum of both informations, each normalised over the saved checkpoints."""
    plane = candidates.scored
    excess_A = np.array([point.excess for point in plane.points])
    accuracy_A = np.array([point.accuracy for point in plane.points])
    x_A, y_A, sum_A = normalised(-excess_A), normalised(accuracy_A), algorithm_1(excess_A, accuracy_A)
    excess_RA, accuracy_RA = _resampled(plane)
    chosen = int(sum_A.argmax())
    reason = f"the largest sum, {sum_A[chosen]:.2f} = {x_A[chosen]:.2f} for I(X;F) + {y_A[chosen]:.2f} for I(Y;F)"
    warnings = [
        f"{name} is the same at every checkpoint, so it took no part in the choice"
        for name, values in (("I(X;F)", excess_A), ("I(Y;F)", accuracy_A))
        if len(values) > 1 and np.ptp(values) == 0
    ]
    if accuracy_A[chosen] < UNRIPE * accuracy_A[-1]:
        warnings.append(
            f"the chosen teacher is right on {accuracy_A[chosen]:.1%}, the last on {accuracy_A[-1]:.1%}: on a short "
            "trajectory such a teacher can be worse than none, above all with a small alpha; compare it with a student"
        )
    details = {"I(X;F) normalised": _by_epoch(plane.epochs, x_A), "I(Y;F) normalised": _by_epoch(plane.epochs, y_A)}
    return _choose("paper", candidates, sum_A, reason, algorithm_1(excess_RA, accuracy_RA), warnings, details)


def best_accuracy(candidates: Candidates) -> Choice:
    """The most accurate checkpoint, as common practice has it."""
    plane = candidates.scored
    accuracy_A = np.array([point.accuracy for point in plane.points])
    reason = f"the highest accuracy, {accuracy_A.max():.1%}"
    return _choose("best-accuracy", candidates, accuracy_A, reason, _resampled(plane)[1])


def half(candidates: Candidates) -> Choice:
    """The checkpoint nearest to half-way, the paper's cheap advice (§6)."""
    distance_A = np.abs(np.array(candidates.epochs) - candidates.planned_epochs / 2)
    return _choose("half", candidates, -distance_A, f"the nearest to half of {candidates.planned_epochs} epochs")


def full(candidates: Candidates) -> Choice:
    """The last checkpoint, whatever it is like."""
    last = max(candidates.epochs)
    require(
        last == candidates.planned_epochs, f"the run stopped at epoch {last} of {candidates.planned_epochs}: finish it"
    )
    reason = f"the last of {candidates.planned_epochs} epochs"
    return _choose("full", candidates, np.array(candidates.epochs, dtype=float), reason)


Rule = Callable[[Candidates], Choice]
RULES: dict[str, Rule] = {"paper": paper, "half": half, "full": full, "best-accuracy": best_accuracy}
NEED_NO_SCORES = ("half", "full")


def choose(candidates: Candidates, *, rule: str) -> Choice:
    """Apply a rule by name; raises UserError for an unknown rule, or where there is nothing to choose from."""
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    require(len(candidates.epochs) > 0, "there is no checkpoint to choose from")
    if rule not in NEED_NO_SCORES:
        plane = candidates.plane
        require(plane is not None, f"the rule {rule!r} needs scored checkpoints; score the trajectory first")
        for point in candidates.scored.points:
            finite = math.isfinite(point.excess) and math.isfinite(point.accuracy)
            require(finite, f"the score of epoch {point.epoch} is not a number; is that checkpoint sound?")
    return RULES[rule](candidates)


def _choose(
    rule: str,
    candidates: Candidates,
    score_A: np.ndarray,
    reason: str,
    resampled_RA: np.ndarray | None = None,
    warnings: Sequence[str] = (),
    details: dict[str, dict[int, float]] | None = None,
) -> Choice:
    epochs = candidates.epochs
    order = np.argsort(-score_A, kind="stable")  # stable: ties go to the earlier checkpoint
    warnings = list(warnings)
    if len(score_A) == 1:
        warnings.append("there is only one checkpoint, so there was nothing to choose between")
    elif score_A[order[0]] == score_A[order[1]]:
        warnings.append(f"epochs {epochs[order[0]]} and {epochs[order[1]]} tie; the earlier was taken")
    probability = None
    if resampled_RA is not None:
        share_A = np.bincount(resampled_RA.argmax(1), minlength=len(score_A)) / len(resampled_RA)
        probability = _by_epoch(epochs, share_A)
    return Choice(
        rule=rule,
        epoch=epochs[order[0]],
        scores=_by_epoch(epochs, score_A),
        reason=reason,
        runner_up=epochs[order[1]] if len(order) > 1 else None,
        probability=probability,
        warnings=tuple(warnings),
        details=details or {},
    )


def _resampled(plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    """Mean excess and accuracy (R, A) over bootstrap resamples of the images, the same images for all checkpoints."""
    images = plane.excess_AN.shape[1]
    weight_RN = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=RESAMPLES) / images
    return weight_RN @ plane.excess_AN.T.astype(float), weight_RN @ plane.right_AN.T.astype(float)


def _by_epoch(epochs: list[int], values_A: np.ndarray) -> dict[int, float]:
    return {epoch: float(value) for epoch, value in zip(epochs, values_A, strict=True)}
