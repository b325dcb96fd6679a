"""Rules that choose a checkpoint: arrays in, an epoch out, with reasons. They read no file and train nothing.

Letters in names: A checkpoints, N images, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import UserError, unknown_name
from ..information import Plane
from ..metrics import calibration_error

RESAMPLES = 1000
UNDERTRAINED = 0.8  # a chosen teacher below this share of the last one's accuracy is worth a warning
SURE = 0.8  # a choice made in a smaller share of the resamples is, too
TRY = "`select` with --student lets a student try"


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
    unit: str = "epoch"

    @property
    def epochs(self) -> tuple[int, ...]:
        """The chosen checkpoints, as `select --student` has them too."""
        return (self.epoch,)


def normalized(values_A: np.ndarray) -> np.ndarray:
    """Min–max over the checkpoints: 0 the least, 1 the greatest; all 0 when they are equal (§5, our reading).

    >>> normalized(np.array([1.0, 3.0, 2.0])).tolist()
    [0.0, 1.0, 0.5]
    """
    spread = np.ptp(values_A, axis=-1, keepdims=True)
    return np.divide(values_A - values_A.min(-1, keepdims=True), spread, out=np.zeros_like(values_A), where=spread > 0)


def algorithm1_index(information_A: np.ndarray, accuracy_A: np.ndarray) -> np.ndarray:
    """Algorithm 1: normalized I(X;F) + normalized I(Y;F) of each checkpoint (Eq. 11), to be maximised.

    I(X;F) enters as its estimate, by the decoder the negative excess reconstruction loss, I(Y;F) as accuracy (§4.2).
    Takes (A,) or (R, A).

    >>> algorithm1_index(np.array([-0.3, -0.1, -0.2]), np.array([0.2, 0.5, 0.8])).round(2).tolist()
    [0.0, 1.5, 1.5]
    """
    return normalized(information_A) + normalized(accuracy_A)


@dataclass(frozen=True)
class Candidates:
    """What a rule chooses between: the saved epochs, and what is known of them."""

    epochs: list[int]
    planned_epochs: int
    plane: Plane | None = None
    unit: str = "epoch"  # or "step": what the numbers of checkpoints count

    @property
    def scored(self) -> Plane:
        """The plane, for rules that need one."""
        assert self.plane is not None, "choose() checks it"
        return self.plane


def algorithm1(candidates: Candidates) -> Choice:
    """Algorithm 1 (§5): the largest sum of both informations, each normalized over the saved checkpoints."""
    plane = candidates.scored
    information_A = np.array([point.image_information for point in plane.points])
    accuracy_A = np.array([point.accuracy for point in plane.points])
    x_A, y_A, sum_A = normalized(information_A), normalized(accuracy_A), algorithm1_index(information_A, accuracy_A)
    weight_RN = resamples(plane.images["right"].shape[1])
    resampled_RA = algorithm1_index(_resampled_information(plane, weight_RN), weight_RN @ plane.images["right"].T)
    chosen = int(sum_A.argmax())
    reason = f"the largest sum, {sum_A[chosen]:.2f} = {x_A[chosen]:.2f} for I(X;F) + {y_A[chosen]:.2f} for I(Y;F)"
    warnings = [
        f"{name} is the same at every checkpoint, so it took no part in the choice"
        for name, values in (("I(X;F)", information_A), ("I(Y;F)", accuracy_A))
        if len(values) > 1 and np.ptp(values) == 0
    ]
    if accuracy_A[chosen] < UNDERTRAINED * accuracy_A[-1]:
        warnings.append(
            f"the chosen teacher is right on {accuracy_A[chosen]:.1%}, the last on {accuracy_A[-1]:.1%}: on a short "
            f"trajectory such a teacher can be worse than none, above all with a small alpha; {TRY}"
        )
    details = {"I(X;F) normalized": _by_epoch(plane.epochs, x_A), "I(Y;F) normalized": _by_epoch(plane.epochs, y_A)}
    return _choose("algorithm1", candidates, sum_A, reason, resampled_RA, warnings, details)


def best_accuracy(candidates: Candidates) -> Choice:
    """The most accurate checkpoint, as common practice has it."""
    accuracy_A = np.array([point.accuracy for point in candidates.scored.points])
    reason = f"the highest accuracy, {accuracy_A.max():.1%}"
    right_AN = candidates.scored.images["right"]
    resampled_RA = resamples(right_AN.shape[1]) @ right_AN.T
    return _choose("best-accuracy", candidates, accuracy_A, reason, resampled_RA)


def lowest_nll(candidates: Candidates) -> Choice:
    """The checkpoint whose predictions cost least, in nats: a proper score of them as probabilities."""
    return _by_mean("lowest-nll", candidates, "nll", -1, "the lowest NLL, {:.3f} nats")


def lowest_brier(candidates: Candidates) -> Choice:
    """The checkpoint whose probabilities are nearest to the truth in squares: a bound on a student's error (Hamidi et
    al., ECCV 2024)."""
    return _by_mean("lowest-brier", candidates, "brier", -1, "the lowest Brier score, {:.3f}")


def conditional_mi(candidates: Candidates) -> Choice:
    """The checkpoint that tells most of an image beyond its class: the conditional mutual information that MCMI
    maximises (Ye et al., ICLR 2024)."""
    return _by_mean("mcmi", candidates, "context", 1, "the largest conditional mutual information, {:.3f} nats")


def wrong_variance(candidates: Candidates) -> Choice:
    """The checkpoint that tells wrong classes apart best: the variance of their probabilities (Li et al., NeurIPS
    2022)."""
    return _by_mean("wrong-class-variance", candidates, "wrong_variance", 1, "the largest variance, {:.2e}")


def lowest_calibration_error(candidates: Candidates) -> Choice:
    """The checkpoint whose confidence is nearest to its accuracy, in fifteen bins of equal size (ACE; Kim et al. 2025
    found it to go with students' accuracy)."""
    plane = candidates.scored
    images = plane.images["right"].shape[1]
    weight_RN = np.vstack([np.full(images, 1 / images), resamples(images)])
    error_RA = np.stack(
        [
            calibration_error(weight_RN, confidence_N, right_N)
            for confidence_N, right_N in zip(plane.images["confidence"], plane.images["right"], strict=True)
        ],
        axis=1,
    )
    reason = f"the lowest calibration error, {error_RA[0].min():.1%}"
    return _choose("lowest-calibration-error", candidates, -error_RA[0], reason, -error_RA[1:])


def random(candidates: Candidates) -> Choice:
    """Any checkpoint, by chance that depends on the epochs alone: what every rule should beat."""
    drawn_A = np.random.default_rng([len(candidates.epochs), *candidates.epochs]).random(len(candidates.epochs))
    return _choose("random", candidates, drawn_A, "chance")


def midpoint(candidates: Candidates) -> Choice:
    """The checkpoint nearest to half-way, the paper's cheap advice (§6)."""
    distance_A = np.abs(np.array(candidates.epochs) - candidates.planned_epochs / 2)
    return _choose(
        "midpoint", candidates, -distance_A, f"the nearest to half of {candidates.planned_epochs} {candidates.unit}s"
    )


def last(candidates: Candidates) -> Choice:
    """The last checkpoint, whatever it is like."""
    last = max(candidates.epochs)
    if last != candidates.planned_epochs:
        raise UserError(f"the run stopped at epoch {last} of {candidates.planned_epochs}: finish it")
    reason = f"the last of {candidates.planned_epochs} {candidates.unit}s"
    return _choose("last", candidates, np.array(candidates.epochs, dtype=float), reason)


Rule = Callable[[Candidates], Choice]
RULES: dict[str, Rule] = {
    "algorithm1": algorithm1,
    "midpoint": midpoint,
    "last": last,
    "random": random,
    "best-accuracy": best_accuracy,
    "lowest-nll": lowest_nll,
    "lowest-brier": lowest_brier,
    "lowest-calibration-error": lowest_calibration_error,
    "mcmi": conditional_mi,
    "wrong-class-variance": wrong_variance,
}
NEED_NO_SCORES = ("midpoint", "last", "random")


def choose(candidates: Candidates, *, rule: str) -> Choice:
    """Apply a rule by name; raises UserError for an unknown rule, or where there is nothing to choose from."""
    if rule not in RULES:
        raise unknown_name("rule", rule, RULES)
    if not len(candidates.epochs) > 0:
        raise UserError("there is no checkpoint to choose from")
    if rule not in NEED_NO_SCORES:
        plane = candidates.plane
        if plane is None:
            raise UserError(f"the rule {rule!r} needs scored checkpoints; score the trajectory first")
        for point in candidates.scored.points:
            values = (point.image_information, point.accuracy, point.nll)
            if not all(map(math.isfinite, values)):
                raise UserError(
                    f"the score of {candidates.unit} {point.epoch} is not a number; is that checkpoint sound?"
                )
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
        warnings.append(f"{candidates.unit}s {epochs[order[0]]} and {epochs[order[1]]} tie; the earlier was taken")
    probability = None
    if resampled_RA is not None:
        share_A = np.bincount(resampled_RA.argmax(1), minlength=len(score_A)) / len(resampled_RA)
        probability = _by_epoch(epochs, share_A)
        if share_A[order[0]] < SURE:
            rival = max(order[1:], key=lambda place: share_A[place])
            warnings.append(
                f"the choice is uncertain: in {100 * share_A[order[0]]:.0f}% of {RESAMPLES:,} resamples it is "
                f"{candidates.unit} {epochs[order[0]]}, in {100 * share_A[rival]:.0f}% {epochs[rival]}; {TRY}"
            )
    return Choice(
        rule=rule,
        epoch=epochs[order[0]],
        scores=_by_epoch(epochs, score_A),
        reason=reason,
        runner_up=epochs[order[1]] if len(order) > 1 else None,
        probability=probability,
        warnings=tuple(warnings),
        details=details or {},
        unit=candidates.unit,
    )


def _by_mean(rule: str, candidates: Candidates, name: str, sign: int, reason: str) -> Choice:
    """The checkpoint with the greatest (sign 1) or least (sign −1) mean over the images of one of their parts."""
    values_AN = candidates.scored.images[name].astype(float)
    best = sign * (sign * values_AN.mean(1)).max()
    resampled_RA = resamples(values_AN.shape[1]) @ values_AN.T
    return _choose(rule, candidates, sign * values_AN.mean(1), reason.format(best), sign * resampled_RA)


def resamples(images: int) -> np.ndarray:
    """How often each image is drawn in each bootstrap resample, (R, N), as a share; the same whenever asked."""
    return np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=RESAMPLES) / images


def _resampled_information(plane: Plane, weight_RN: np.ndarray) -> np.ndarray:
    """Mean I(X;F) over resamples of the images and of the estimator's fits, (R, A); fits of one number began alike at
    all checkpoints, so they are drawn together."""
    fits = plane.information_ASN.shape[1]
    weight_RS = np.random.default_rng(1).multinomial(fits, np.full(fits, 1 / fits), size=len(weight_RN)) / fits
    mean_ASR = plane.information_ASN.astype(float) @ weight_RN.T
    return np.einsum("rs,asr->ra", weight_RS, mean_ASR)


def _by_epoch(epochs: list[int], values_A: np.ndarray) -> dict[int, float]:
    return {epoch: float(value) for epoch, value in zip(epochs, values_A, strict=True)}
