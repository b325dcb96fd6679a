"""The settings of a distillation and of a pilot search: the loss, and how teachers are used. No torch here."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from typing import Literal

from .config import check_choice
from .errors import UserError

EnsembleAverage = Literal["probabilities", "logits"]
BatchNormMode = Literal["eval", "batch"]
TeacherSchedule = Literal["joint", "rco", "progressive", "random"]
FittedWeights = Literal["auto", "auto-per-class"]
TeacherTau = Literal["fixed", "auto", "matched"]


@dataclass(frozen=True, kw_only=True)
class KDConfig:
    """The loss of Eq. 1 and Eq. 2: weight α for the labels, 1 − α for the teachers' predictions at temperature τ.

    The defaults are those of the authors' code. `tau_squared` multiplies the distillation loss by τ² (Hinton et al.
    2015). The paper's formula leaves it out; its code and other work have it. `average` says whether an ensemble's
    probabilities or logits are averaged.

    >>> KDConfig(alpha=1.5)
    Traceback (most recent call last):
    checkpointkd.errors.UserError: alpha must lie in [0, 1], not 1.5
    """

    alpha: float = 0.5
    tau: float = 5.0
    tau_squared: bool = True
    average: EnsembleAverage = "probabilities"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha must lie in [0, 1], not {self.alpha}")
        if not 1e-3 <= self.tau <= 1e6:
            raise UserError(f"tau must be above 0 (from 0.001 to 10⁶), not {self.tau}")
        check_choice("average", self.average, EnsembleAverage)

    @property
    def soft_loss_factor(self) -> float:
        """The factor of the distillation loss that makes its gradients about as large as the labels'."""
        return self.tau**2 if self.tau_squared else 1.0


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How teachers are used, and what a method needs besides their logits.

    Attributes:
        method_weight: Weight of the method's own term. None: the method's default.
        teacher_weights: Weight of each teacher, in [0, 1], with sum 1. `auto`: the weights whose mixture of predictions
            has the lowest NLL on the validation set. `auto-per-class`: separate weights for each class of the
            labels. None: equal weights.
        teacher_schedule: `joint` uses all teachers throughout. `rco` uses one after the other, each for an equal part
            of the training (route-constrained optimization, Jin et al., ICCV 2019, with equal intervals).
            `progressive` does the same with a temperature that falls linearly from τ to 1 (after Pro-KD,
            Rezagholizadeh et al., COLING 2022). `random` uses a random half of the teachers, new in every epoch.
        teacher_tau: `fixed` softens all teachers with τ. `auto` first divides each teacher's logits by the temperature
            that fits the validation set best. `matched` first scales each teacher's logits to the standard deviation
            of those of its run's last checkpoint. So a comparison of checkpoints is not one of logit scales.
        teacher_batch_norm: Teachers normalize with running statistics (`eval`), or with the statistics of each batch
            (`batch`), as the authors' code does for most of the training.
        teacher_features: The teacher's modules that a feature method reads, by path. None: the method's default.
        student_features: The student's modules, in the same order.
        top_k: Use this many of the largest teacher logits of each image, and the mean of the others. None: all logits.
        channel_adapter: Add a trained 1×1 convolution to the student's features where a method needs equal channels.

    >>> DistillConfig(teacher_weights=(0.5, 0.6))
    Traceback (most recent call last):
    checkpointkd.errors.UserError: --teacher-weights must lie in [0, 1] and sum to 1, not 0.5 0.6
    """

    method_weight: float | None = None
    teacher_weights: tuple[float, ...] | FittedWeights | None = None
    teacher_schedule: TeacherSchedule = "joint"
    teacher_tau: TeacherTau = "fixed"
    teacher_batch_norm: BatchNormMode = "eval"
    teacher_features: tuple[str, ...] | None = None
    student_features: tuple[str, ...] | None = None
    channel_adapter: bool = False
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not (self.top_k is None or self.top_k >= 1):
            raise UserError(f"--top-k must be at least 1, not {self.top_k}")
        if not (self.method_weight is None or 0 <= self.method_weight < math.inf):
            raise UserError(f"The method weight must be finite and at least 0, not {self.method_weight}")
        check_choice("teacher schedule", self.teacher_schedule, TeacherSchedule)
        check_choice("teacher tau", self.teacher_tau, TeacherTau)
        check_choice("teacher batch norm", self.teacher_batch_norm, BatchNormMode)
        if isinstance(self.teacher_weights, str):
            check_choice("teacher weights", self.teacher_weights, FittedWeights)
        elif self.teacher_weights is not None:
            total = sum(self.teacher_weights)
            if not (all(0 <= weight <= 1 for weight in self.teacher_weights) and abs(total - 1) < 1e-6):
                written = " ".join(f"{weight:g}" for weight in self.teacher_weights)
                raise UserError(f"--teacher-weights must lie in [0, 1] and sum to 1, not {written}")
        if self.teacher_weights is not None and self.teacher_schedule != "joint":
            raise UserError(
                f"--teacher-weights cannot be combined with --teacher-schedule {self.teacher_schedule}, which sets the "
                "weights itself"
            )
        for features in (self.teacher_features, self.student_features):
            if not (features is None or len(features) > 0):
                raise UserError("--teacher-features and --student-features need at least one module each")

    def weights_at(
        self, train_fraction: float, teachers: int, *, epochs: int = 1, seed: int = 0
    ) -> tuple[float, ...] | None:
        """Return each teacher's weight when this fraction of the training, in [0, 1), is done; None for equal weights.

        `epochs` and `seed` are those of the training. Only the teacher schedule `random` needs them. This function does
        not know fitted weights.

        >>> DistillConfig(teacher_schedule="rco").weights_at(0.5, 2)
        (0.0, 1.0)
        """
        if self.teacher_schedule == "joint":
            return None if isinstance(self.teacher_weights, str) else self.teacher_weights
        if self.teacher_schedule == "random":
            drawn = random_teachers(teachers, epoch=scheduled_teacher(train_fraction, epochs), seed=seed)
            return tuple((teacher in drawn) / len(drawn) for teacher in range(teachers))
        active = scheduled_teacher(train_fraction, teachers)
        return tuple(float(teacher == active) for teacher in range(teachers))

    def active_teachers(self, epoch: int, epochs: int, teachers: int, *, seed: int = 0) -> list[int]:
        """Return the teachers that are used in the epoch that follows `epoch` completed ones.

        >>> DistillConfig(teacher_schedule="rco").active_teachers(1, 3, 2)
        [0, 1]
        """
        if self.teacher_schedule == "joint":
            weights = self.weights_at(0.0, teachers)
            return [teacher for teacher in range(teachers) if weights is None or weights[teacher] > 0]
        if self.teacher_schedule == "random":
            return random_teachers(teachers, epoch=epoch, seed=seed)
        # The steps of the epoch lie in [epoch / epochs, (epoch + 1) / epochs).
        first, last = epoch * teachers // epochs, ((epoch + 1) * teachers - 1) // epochs
        return list(range(first, last + 1))

    def tau_at(self, train_fraction: float, tau: float) -> float:
        """Return the temperature when this fraction of the training is done."""
        return tau + train_fraction * (1 - tau) if self.teacher_schedule == "progressive" else tau


def scheduled_teacher(train_fraction: float, teachers: int) -> int:
    """Return the teacher that a schedule uses when this fraction of the training is done.

    It is the integer quotient of step · teachers by the number of steps. A float near an integer is that integer: with
    fewer than 10⁸ steps every other quotient is at least 10⁻⁸ away from the integer above it.

    >>> 30 / 44 * 22, scheduled_teacher(30 / 44, 22)
    (14.999999999999998, 15)
    """
    return min(int(train_fraction * teachers + 1e-9), teachers - 1)


def random_teachers(teachers: int, *, epoch: int, seed: int) -> list[int]:
    """Return a random half of the teachers, at least one, for the epoch after `epoch` completed epochs.

    >>> [random_teachers(4, epoch=epoch, seed=0) for epoch in range(3)]
    [[1, 2], [1, 2], [1, 3]]
    """
    return sorted(random.Random(f"{seed} {epoch}").sample(range(teachers), math.ceil(teachers / 2)))


@dataclass(frozen=True, kw_only=True)
class PilotConfig:
    """How a pilot search compares candidates for a student.

    Attributes:
        budget: The cost of all pilot runs. Without a decimal point, a number of the student's epochs; with one, a
            fraction of one full distillation.
        alphas: The weights of the labels that are compared for `kd`.
        tau: The temperature of `kd`.
        methods: The methods that are compared.
        teachers: The sets of teachers that are compared. A set is written like the part of a reference after the @: a
            checkpoint, a weight average, or an ensemble of these, joined by +.

    >>> [PilotConfig(budget=budget).epochs(200) for budget in ("0.5", 0.5, 60)]
    [100, 100, 60]
    >>> PilotConfig(budget=1 / 3).budget
    '0.333333333'
    """

    budget: str | float = "1.0"
    alphas: tuple[float, ...] = (0.5, 0.1)
    tau: float = 5.0
    methods: tuple[str, ...] = ("kd", "dkd", "dist", "lskd", "wttm", "mlkd-ls")
    teachers: tuple[str, ...] = ("last", "0.7", "midpoint+last", "mean:0.7-1.0")
    seed: int = 0

    def __post_init__(self) -> None:
        for option, values in (("--methods", self.methods), ("--teachers-from", self.teachers)):
            if not values:
                raise UserError(f"{option} needs at least one value")
        written = f"{self.budget:.9f}" if isinstance(self.budget, float) else str(self.budget)
        object.__setattr__(self, "budget", written)
        if not (re.fullmatch(r"[0-9]{1,9}|[0-9]{0,5}\.[0-9]{1,9}", written) and float(written) > 0):
            raise UserError(
                f"The budget must be a number of epochs (60) or a decimal fraction of one full distillation (1.0), not "
                f"{written!r}"
            )
        if not len(self.alphas) > 0:
            raise UserError("--alpha needs at least one value")
        for alpha in self.alphas:
            KDConfig(alpha=alpha, tau=self.tau)
            if not alpha < 1:
                raise UserError(
                    "--alpha 1 gives the teacher no weight. Leave it out: training without a teacher is always tried."
                )
        if len(set(self.alphas)) != len(self.alphas):
            raise UserError(f"The values of --alpha must differ, not {' '.join(f'{alpha:g}' for alpha in self.alphas)}")

    def epochs(self, student_epochs: int) -> int:
        """Return the budget in epochs of a student that trains for this many."""
        return int(self.budget) if self.in_epochs else math.floor(float(self.budget) * student_epochs + 1e-6)

    @property
    def in_epochs(self) -> bool:
        """Whether the budget is a number of epochs."""
        return str(self.budget).isdecimal()
