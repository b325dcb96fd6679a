"""Rules that choose a checkpoint from scores: Algorithm 1 and its alternatives.

Rules are pure functions: they read no file and train nothing.

Letters in names: A checkpoints, N images, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UserError, unknown_name
from ..information import LogitScores, Plane
from ..metrics import calibration_error
from ..user_code import import_object

RESAMPLES = 1000
FALL = 3  # warn if the last checkpoint's accuracy is this many standard errors below an earlier one's
UNDERTRAINED = 0.8  # warn if the chosen teacher's accuracy is below this share of the last checkpoint's
SURE = 0.8  # warn if the rule makes the same choice in a smaller share of the resamples
TEST_IT = "To compare candidates with pilot runs, use `select --student`"


@dataclass(frozen=True)
class Choice:
    """The checkpoint that a rule chose, and why.

    `scores` are by epoch, larger is better. `details` holds further numbers by epoch. `probability` is the share of
    bootstrap resamples of the images in which the rule chooses each epoch, None for rules that use no images.
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
        """The epochs of the chosen checkpoints, as in `PilotResult`: here always one."""
        return (self.epoch,)


def normalized(values_A: np.ndarray) -> np.ndarray:
    """Scale values linearly to [0, 1] over the checkpoints; all are 0 if they are equal.

    The paper (§5) does not say how it normalizes. Min–max scaling is our reading.

    >>> normalized(np.array([1.0, 3.0, 2.0])).tolist()
    [0.0, 1.0, 0.5]
    """
    spread = np.ptp(values_A, axis=-1, keepdims=True)
    return np.divide(values_A - values_A.min(-1, keepdims=True), spread, out=np.zeros_like(values_A), where=spread > 0)


def algorithm1_index(information_A: np.ndarray, accuracy_A: np.ndarray) -> np.ndarray:
    """Return normalized I(X;F) + normalized I(Y;F) of each checkpoint (Eq. 11), which Algorithm 1 maximizes.

    Args:
        information_A: Estimates of I(X;F), (A,) or (R, A). The decoder's is the negative excess reconstruction loss.
        accuracy_A: Accuracies, which stand for I(Y;F) (§4.2), of the same shape.

    >>> algorithm1_index(np.array([-0.3, -0.1, -0.2]), np.array([0.2, 0.5, 0.8])).round(2).tolist()
    [0.0, 1.5, 1.5]
    """
    return normalized(information_A) + normalized(accuracy_A)


@dataclass(frozen=True)
class Candidates:
    """The checkpoints that a rule chooses from: the saved epochs, and their plane if they are scored."""

    epochs: list[int]
    planned_epochs: int
    plane: Plane | LogitScores | None = None
    unit: str = "epoch"  # or "step": the unit of `epochs`

    @property
    def scored(self) -> Plane | LogitScores:
        """The scores, for rules that need some; `choose` checks that they are there."""
        assert self.plane is not None
        return self.plane


def algorithm1(candidates: Candidates) -> Choice:
    """Algorithm 1 (§5): the largest sum of I(X;F) and I(Y;F), each normalized over the saved checkpoints."""
    plane = candidates.scored
    assert isinstance(plane, Plane)  # `choose` checks it
    information_A = np.array([point.image_information for point in plane.points])
    accuracy_A = np.array([point.accuracy for point in plane.points])
    x_A, y_A, sum_A = normalized(information_A), normalized(accuracy_A), algorithm1_index(information_A, accuracy_A)
    weight_RN = resamples(plane.images["correct"].shape[1])
    resampled_RA = algorithm1_index(_resampled_information(plane, weight_RN), weight_RN @ plane.images["correct"].T)
    chosen = int(sum_A.argmax())
    reason = f"the largest sum, {sum_A[chosen]:.3f} = {x_A[chosen]:.3f} for I(X;F) + {y_A[chosen]:.3f} for I(Y;F)"
    warnings = [
        f"{name} is the same at every checkpoint, so it does not affect the choice"
        for name, values in (("I(X;F)", information_A), ("I(Y;F)", accuracy_A))
        if len(values) > 1 and np.ptp(values) == 0
    ]
    if accuracy_A[chosen] < UNDERTRAINED * accuracy_A[-1]:
        warnings.append(
            f"The chosen teacher has accuracy {accuracy_A[chosen]:.1%}, the last checkpoint {accuracy_A[-1]:.1%}. "
            f"An under-trained teacher can be worse than no teacher, most of all with a small alpha. {TEST_IT}"
        )
    details = {"I(X;F) normalized": _by_epoch(plane.epochs, x_A), "I(Y;F) normalized": _by_epoch(plane.epochs, y_A)}
    return _highest_score("algorithm1", candidates, sum_A, reason, resampled_RA, warnings, details)


def fall_of_accuracy(plane: Plane, unit: str = "epoch") -> str | None:
    """Say that the last checkpoint is clearly less accurate than an earlier one: by more than three standard errors.

    The standard error is that of the difference on the same images.
    """
    accuracies = [point.accuracy for point in plane.points]
    chosen, final = int(np.argmax(accuracies)), int(np.argmax(plane.epochs))
    best, last = plane.points[chosen], plane.points[final]
    correct_AN = plane.images["correct"].astype(float)
    difference_N = correct_AN[chosen] - correct_AN[final]
    if difference_N.mean() <= FALL * difference_N.std() / math.sqrt(len(difference_N)):
        return None
    return (
        f"The accuracy falls from {best.accuracy:.1%} at {unit} {best.epoch} to {last.accuracy:.1%} at the last "
        f"checkpoint, {unit} {last.epoch}. So the last checkpoint is not a safe choice: the network may have memorized "
        f"wrong labels, or the end of the training was unstable. Compare students of both, with `select --student` or "
        f"`distill`."
    )


def best_accuracy(candidates: Candidates) -> Choice:
    """The checkpoint with the highest accuracy, as is common practice."""
    accuracy_A = np.array([point.accuracy for point in candidates.scored.points])
    reason = f"the highest accuracy, {accuracy_A.max():.1%}"
    correct_AN = candidates.scored.images["correct"]
    resampled_RA = resamples(correct_AN.shape[1]) @ correct_AN.T
    return _highest_score("best-accuracy", candidates, accuracy_A, reason, resampled_RA)


def transition(candidates: Candidates) -> Choice:
    """The checkpoint after the steepest rise of I(Y;F), the phase transition of the training.

    Panigrahi et al. (ICLR 2025) distill from a checkpoint inside this phase, then from the last one. Accuracy stands
    for I(Y;F), as in Algorithm 1. The rise before the first saved checkpoint is not known and counts as 0.
    """
    accuracy_A = np.array([point.accuracy for point in candidates.scored.points])
    correct_AN = candidates.scored.images["correct"]
    resampled_RA = resamples(correct_AN.shape[1]) @ correct_AN.T
    gap_A = np.diff(candidates.epochs, prepend=candidates.epochs[0] - 1)

    def rise(accuracy_A: np.ndarray) -> np.ndarray:
        return np.diff(accuracy_A, axis=-1, prepend=accuracy_A[..., :1]) / gap_A

    reason = f"the steepest rise of accuracy, {rise(accuracy_A).max():.2%} per {candidates.unit}"
    return _highest_score("transition", candidates, rise(accuracy_A), reason, rise(resampled_RA))


def lowest_nll(candidates: Candidates) -> Choice:
    """The checkpoint with the lowest negative log-likelihood, a proper score of the predicted probabilities."""
    return _best_mean("lowest-nll", candidates, "nll", -1, "the lowest NLL, {:.3f} nats")


def lowest_brier(candidates: Candidates) -> Choice:
    """The checkpoint with the lowest Brier score, which bounds the student's error (Hamidi et al., ECCV 2024)."""
    return _best_mean("lowest-brier", candidates, "brier", -1, "the lowest Brier score, {:.3f}")


def conditional_mi(candidates: Candidates) -> Choice:
    """The checkpoint with the largest conditional mutual information of image and prediction, given the class.

    This is the information about an image beyond its class, which MCMI maximizes (Ye et al., ICLR 2024).
    """
    return _best_mean(
        "mcmi", candidates, "conditional_mi", 1, "the largest conditional mutual information, {:.3f} nats"
    )


def wrong_variance(candidates: Candidates) -> Choice:
    """The checkpoint with the largest variance of the wrong classes' probabilities (Li et al., NeurIPS 2022)."""
    return _best_mean("wrong-class-variance", candidates, "wrong_variance", 1, "the largest variance, {:.2e}")


def lowest_calibration_error(candidates: Candidates) -> Choice:
    """The checkpoint with the lowest adaptive calibration error, in 15 bins with equally many images.

    Kim et al. (2025) report that it correlates with the accuracy of students.
    """
    plane = candidates.scored
    images = plane.images["correct"].shape[1]
    weight_RN = np.vstack([np.full(images, 1 / images), resamples(images)])
    error_RA = np.stack(
        [
            calibration_error(weight_RN, confidence_N, correct_N)
            for confidence_N, correct_N in zip(plane.images["confidence"], plane.images["correct"], strict=True)
        ],
        axis=1,
    )
    reason = f"the lowest calibration error, {error_RA[0].min():.1%}"
    return _highest_score("lowest-calibration-error", candidates, -error_RA[0], reason, -error_RA[1:])


def nuclear_norm(candidates: Candidates) -> Choice:
    """The checkpoint whose predictions have the largest nuclear norm, without labels (Deng et al., ICML 2023)."""
    norms = [point.nuclear_norm for point in candidates.scored.points]
    if None in norms:
        raise UserError(
            "The scores are from a version that did not measure the nuclear norm. Remove plane.json from the run, and "
            "run `checkpointkd score` again."
        )
    norm_A = np.array(norms, dtype=float)
    return _highest_score("nuclear-norm", candidates, norm_A, f"the largest nuclear norm, {norm_A.max():.3f}")


def random(candidates: Candidates) -> Choice:
    """A checkpoint drawn at random, with a seed that depends on the epochs alone: every rule should beat it."""
    drawn_A = np.random.default_rng([len(candidates.epochs), *candidates.epochs]).random(len(candidates.epochs))
    return _highest_score("random", candidates, drawn_A, "chance")


def midpoint(candidates: Candidates) -> Choice:
    """The checkpoint nearest to the middle of the training, the paper's advice without scores (§6)."""
    distance_A = np.abs(np.array(candidates.epochs) - candidates.planned_epochs / 2)
    reason = f"the nearest to the middle of {candidates.planned_epochs} {candidates.unit}s"
    return _highest_score("midpoint", candidates, -distance_A, reason)


def last(candidates: Candidates) -> Choice:
    """The last checkpoint of a finished run."""
    last_epoch = max(candidates.epochs)
    if last_epoch != candidates.planned_epochs:
        raise UserError(
            f"The run stopped at {candidates.unit} {last_epoch} of {candidates.planned_epochs}. Run its command again "
            "to finish it, or use another rule."
        )
    reason = f"the last of {candidates.planned_epochs} {candidates.unit}s"
    return _highest_score("last", candidates, np.array(candidates.epochs, dtype=float), reason)


Rule = Callable[[Candidates], Choice]
RULES: dict[str, Rule] = {
    "algorithm1": algorithm1,
    "midpoint": midpoint,
    "last": last,
    "random": random,
    "best-accuracy": best_accuracy,
    "transition": transition,
    "lowest-nll": lowest_nll,
    "lowest-brier": lowest_brier,
    "lowest-calibration-error": lowest_calibration_error,
    "mcmi": conditional_mi,
    "wrong-class-variance": wrong_variance,
    "nuclear-norm": nuclear_norm,
}
NEED_NO_SCORES = ("midpoint", "last", "random")
NEED_IMAGES = ("algorithm1",)  # I(X;F) cannot be estimated from logits


def get_rule(name: str) -> Callable[[Candidates], Any]:
    """Return a rule: one of `RULES`, or a user's own as `package.module:function`. Raises UserError if unknown."""
    if name in RULES:
        return RULES[name]
    if ":" not in name:
        raise unknown_name("rule", name, (*RULES, "package.module:function"))
    return import_object(name, kind="Rule")


def needs_scores(name: str) -> bool:
    """Return whether a rule needs scored checkpoints. A user's rule needs them unless `needs_scores` is False."""
    return name not in NEED_NO_SCORES and (name in RULES or getattr(get_rule(name), "needs_scores", True))


def choose(candidates: Candidates, *, rule: str) -> Choice:
    """Apply a rule by name.

    A user's own rule takes the candidates, and returns a `Choice` or a score for each checkpoint, larger is better.

    Raises:
        UserError: If the rule is unknown, if there is no checkpoint, or if the rule needs scores that are missing or
            not finite.
    """
    function = get_rule(rule)
    if not candidates.epochs:
        raise UserError("The run has no checkpoint to choose from")
    if needs_scores(rule):
        if candidates.plane is None:
            raise UserError(f"The rule {rule!r} needs scored checkpoints. Run `checkpointkd score` first.")
        from_logits = isinstance(candidates.plane, LogitScores)
        if rule in NEED_IMAGES and from_logits:
            usable = ", ".join(name for name in RULES if name not in NEED_IMAGES)
            raise UserError(f"The rule {rule} needs images, not only logits. Rules without images: {usable}")
        for point in candidates.plane.points:
            information = 0.0 if from_logits else point.image_information
            if not all(map(math.isfinite, (information, point.accuracy, point.nll))):
                raise UserError(
                    f"The scores of {candidates.unit} {point.epoch} are NaN or infinite. The checkpoint may be damaged."
                )
    result = function(candidates)
    return result if isinstance(result, Choice) else _by_own_scores(rule, candidates, result)


def _by_own_scores(rule: str, candidates: Candidates, scores: Any) -> Choice:
    """Choose by the scores that a user's rule returned."""
    try:
        score_A = np.asarray(scores, dtype=float)
    except (TypeError, ValueError):
        score_A = np.zeros(0)
    if score_A.shape != (len(candidates.epochs),) or not np.isfinite(score_A).all():
        raise UserError(
            f"The rule {rule} must return a Choice, or one finite number for each of the {len(candidates.epochs)} "
            f"checkpoints, not {scores!r}"
        )
    return _highest_score(rule, candidates, score_A, f"the highest score, {score_A.max():.4g}")


def resamples(images: int) -> np.ndarray:
    """Return the weight of each image in each bootstrap resample, (R, N), rows sum to 1. The seed is fixed."""
    return np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=RESAMPLES) / images


def _highest_score(
    rule: str,
    candidates: Candidates,
    score_A: np.ndarray,
    reason: str,
    resampled_RA: np.ndarray | None = None,
    warnings: Sequence[str] = (),
    details: dict[str, dict[int, float]] | None = None,
) -> Choice:
    """Choose the checkpoint with the highest score, the earlier of several, and warn if the choice is uncertain."""
    epochs, unit = candidates.epochs, candidates.unit
    order = np.argsort(-score_A, kind="stable")  # stable: the earlier of equal scores comes first
    warnings = list(warnings)
    if len(score_A) == 1:
        warnings.append("The run has only one checkpoint")
    elif score_A[order[0]] == score_A[order[1]]:
        warnings.append(f"{unit}s {epochs[order[0]]} and {epochs[order[1]]} have the same score; the earlier is chosen")
    probability = None
    if resampled_RA is not None:
        share_A = np.bincount(resampled_RA.argmax(1), minlength=len(score_A)) / len(resampled_RA)
        probability = _by_epoch(epochs, share_A)
        if share_A[order[0]] < SURE:
            rival = max(order[1:], key=lambda index: share_A[index])
            warnings.append(
                f"The choice is uncertain: {unit} {epochs[order[0]]} is chosen in {100 * share_A[order[0]]:.0f}% of "
                f"{RESAMPLES:,} resamples of the images, {unit} {epochs[rival]} in {100 * share_A[rival]:.0f}%. "
                f"{TEST_IT}"
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
        unit=unit,
    )


def _best_mean(rule: str, candidates: Candidates, name: str, sign: int, reason: str) -> Choice:
    """Choose the checkpoint with the highest (sign 1) or lowest (sign −1) mean over images of a `per_image` measure."""
    values_AN = candidates.scored.images[name].astype(float)
    best = sign * (sign * values_AN.mean(1)).max()
    resampled_RA = resamples(values_AN.shape[1]) @ values_AN.T
    return _highest_score(rule, candidates, sign * values_AN.mean(1), reason.format(best), sign * resampled_RA)


def _resampled_information(plane: Plane, weight_RN: np.ndarray) -> np.ndarray:
    """Return the mean I(X;F) in resamples of the images and of the estimator's fits, (R, A).

    Fits with the same seed start from the same weights at all checkpoints, so they are resampled together.
    """
    fits = plane.information_ASN.shape[1]
    weight_RS = np.random.default_rng(1).multinomial(fits, np.full(fits, 1 / fits), size=len(weight_RN)) / fits
    mean_ASR = plane.information_ASN.astype(float) @ weight_RN.T
    return np.einsum("rs,asr->ra", weight_RS, mean_ASR)


def _by_epoch(epochs: list[int], values_A: np.ndarray) -> dict[int, float]:
    return {epoch: float(value) for epoch, value in zip(epochs, values_A, strict=True)}
