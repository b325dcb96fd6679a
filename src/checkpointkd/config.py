"""What a user can set, as frozen values that check themselves. No torch here: the command line must answer at once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from .errors import UserError, unknown_name

EnsembleAverage = Literal["probabilities", "logits"]
BatchNormMode = Literal["eval", "batch"]
ClassOrder = Literal["auto", "superclass", "similarity", "given"]
CheckpointDtype = Literal["float32", "float16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
EstimatorName = Literal["decoder", "ridge"]
INFORMATION_UNITS: dict[str, str] = {  # of I(X;F), by estimator
    "decoder": "minus the excess reconstruction loss a pixel: a proxy, no estimate in nats",
    "ridge": "nats a patch, by the Gaussian reading of a linear decoder",
}
CORRELATION_KINDS = {"logits": "logits", "softened": "predictions, τ = {tau:g}"}
OptimizerName = Literal["sgd", "adam"]
Precision = Literal["fp32", "bf16"]
PrecisionChoice = Literal["auto", "fp32", "bf16"]
SelectOn = Literal["val", "test"]
TeacherSchedule = Literal["joint", "rco", "progressive"]
SamplerName = Literal["grid", "tpe"]
LrSchedule = Literal["cosine", "step", "constant"]
SplitName = Literal["val", "test"]

TEACHER_FORWARD = "teacher forward"  # the progress task of computing teacher logits
OnProgress = Callable[[str, int, int], None]  # told the task, how many of its parts are done, how many it has


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is trained. `source` says where the settings come from.

    The learning rate is a function of progress: `cosine` falls to 0 at the end of training, `step` is multiplied by
    `step_factor` every `step_every` epochs, `constant` stays.

    >>> Recipe(epochs=0)
    Traceback (most recent call last):
    checkpointkd.errors.UserError: epochs must be at least 1, not 0
    """

    epochs: int = 200
    batch_size: int = 128
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    lr_schedule: LrSchedule = "cosine"
    step_every: int = 60
    step_factor: float = 0.1
    augment: bool = True
    source: str = ""

    def __post_init__(self) -> None:
        if not self.epochs >= 1:
            raise UserError(f"epochs must be at least 1, not {self.epochs}")
        if not 1 <= self.batch_size < 10**9:
            raise UserError(f"the batch size must be from 1 to 10⁹, not {self.batch_size}")
        if not 0 < self.learning_rate <= 1e6:
            raise UserError(f"the learning rate must be above 0 and at most 10⁶, not {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"the momentum must be in [0, 1), not {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"the weight decay must be at least 0, not {self.weight_decay}")
        if not self.step_every >= 1:
            raise UserError(f"step_every must be at least 1 epoch, not {self.step_every}")
        check_choice("optimizer", self.optimizer, OptimizerName)
        check_choice("schedule", self.lr_schedule, LrSchedule)

    def learning_rate_at(self, epoch: float) -> float:
        """The learning rate when `epoch` epochs (a fraction counts) are done."""
        if self.lr_schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        if self.lr_schedule == "step":
            return self.learning_rate * self.step_factor ** (int(epoch) // self.step_every)
        return self.learning_rate

    def lasting(self, epochs: int) -> Recipe:
        """The same with another number of epochs; the steps of the learning rate move with it, as the cosine does.

        >>> Recipe(epochs=200, schedule="step", step_every=60).lasting(20).step_every
        6
        """
        moved = max(1, round(self.step_every * epochs / self.epochs)) if self.lr_schedule == "step" else self.step_every
        return replace(self, epochs=epochs, step_every=moved)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images a run may learn from, select with, and be measured on.

    `holdout` keeps a stratified `val_fraction` of the official training set out of training; everything that is
    chosen is chosen on it, and the test set is touched once, at the end. `paper` does as the paper did: the test set
    measures, selects and tunes. The split depends on `split_seed` alone, never on a run's seed. `train_images` keeps
    that many of the remaining training images, class by class. `image_size` is the side to which images from folders
    are cut; `flip` says whether an image's mirror image is as good a picture of its class.
    """

    data: str = "digits"
    select_on: SelectOn = "val"
    val_fraction: float | None = None  # None: the data set's own, 0.1 unless it is tiny
    split_seed: int = 0
    train_images: int | None = None
    image_size: int | None = None  # None: the data set's own, 224 for images from folders
    flip: bool | None = None  # None: the data set's own, true but for digits

    def __post_init__(self) -> None:
        check_choice("select_on", self.select_on, SelectOn)
        fraction = self.val_fraction
        if not (fraction is None or 0 < fraction < 1):
            raise UserError(f"the selection fraction must lie between 0 and 1, not {fraction}")
        if not (self.train_images is None or self.train_images >= 1):
            raise UserError(f"train_images must be at least 1, not {self.train_images}")
        if not (self.image_size is None or 8 <= self.image_size <= 4096):
            raise UserError(f"the image size must be from 8 to 4096 pixels, not {self.image_size}")


@dataclass(frozen=True, kw_only=True)
class KDConfig:
    """Eq. 1 and Eq. 2 of the paper: α weighs the labels, 1 − α the teachers, softened at temperature τ.

    The defaults are the authors' code's. `tau_squared` multiplies the teachers' term by τ² (Hinton et al. 2015), which
    the paper doesn't print but its code and the field do. `average` says of what several teachers' mean is taken.

    >>> KDSettings(alpha=1.5)
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
        """What multiplies a term of softened predictions, so that its gradients are as large as the labels'."""
        return self.tau**2 if self.tau_squared else 1.0


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How the teachers are asked, and what a method takes besides their predictions.

    `method_weight` multiplies the method's term (None: the method's own). `teacher_weights`, one a teacher, say how much each counts
    (None: all alike). `teacher_schedule` says when each does: `joint` throughout; `rco`, one after the other, each for an equal
    part of training (route constrained optimization, Jin et al., ICCV 2019, with equal intervals); `progressive`, the
    same with a temperature that falls evenly from τ to 1 (after Pro-KD, Rezagholizadeh et al., COLING 2022).
    `batch_norm` says whether the teachers normalize with what they learned (`eval`) or with each batch's own statistics
    (`batch`, as the authors' code does for most of training). The features are modules by path, None for the method's
    usual; `channel_adapter` puts a trained 1×1 convolution behind the student's where a method needs the teacher's channels.

    >>> DistillConfig(teacher_weights=(0.5, 0.6))
    Traceback (most recent call last):
    checkpointkd.errors.UserError: the teachers' weights lie in [0, 1] and sum to 1, which 0.5 0.6 don't
    """

    method_weight: float | None = None
    teacher_weights: tuple[float, ...] | None = None
    teacher_schedule: TeacherSchedule = "joint"
    batch_norm: BatchNormMode = "eval"
    teacher_features: tuple[str, ...] | None = None
    student_features: tuple[str, ...] | None = None
    channel_adapter: bool = False

    def __post_init__(self) -> None:
        if not (self.method_weight is None or 0 <= self.method_weight < math.inf):
            raise UserError(f"the weight of the method's term must be at least 0, not {self.method_weight}")
        check_choice("teacher_schedule", self.teacher_schedule, TeacherSchedule)
        check_choice("teachers' batch norm", self.batch_norm, BatchNormMode)
        if self.teacher_weights is not None:
            written = " ".join(f"{weight:g}" for weight in self.teacher_weights)
            total = sum(self.teacher_weights)
            if not (all(0 <= weight <= 1 for weight in self.teacher_weights) and abs(total - 1) < 1e-6):
                raise UserError(f"the teachers' weights lie in [0, 1] and sum to 1, which {written} don't")
            if self.teacher_schedule != "joint":
                raise UserError("--teacher-weights are for teachers that teach together, not one after the other")
        for features in (self.teacher_features, self.student_features):
            if not (features is None or len(features) > 0):
                raise UserError("no features are named")

    def weights_at(self, train_fraction: float, teachers: int) -> tuple[float, ...] | None:
        """Return each teacher's weight when this fraction of the training, in [0, 1), is done; None for equal weights.

        >>> DistillConfig(teacher_schedule="rco").weights_at(0.5, 2)
        (0.0, 1.0)
        """
        if self.teacher_schedule == "joint":
            return self.teacher_weights
        active = scheduled_teacher(train_fraction, teachers)
        return tuple(float(teacher == active) for teacher in range(teachers))

    def active_teachers(self, epoch: int, epochs: int, teachers: int) -> list[int]:
        """Return the teachers that are used in the epoch that follows `epoch` completed ones.

        >>> DistillConfig(teacher_schedule="rco").active_teachers(1, 3, 2)
        [0, 1]
        """
        if self.teacher_schedule == "joint":
            return [
                teacher
                for teacher in range(teachers)
                if self.teacher_weights is None or self.teacher_weights[teacher] > 0
            ]
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


@dataclass(frozen=True, kw_only=True)
class EstimatorConfig:
    """How I(X;F) is estimated (§4.2): by what, fitted on how many training images, measured on how many others.

    By default the decoder is fitted on a tenth of the training images (1,000 at least) and measured on the selection
    images, 10,000 of either at most; ridge takes 1,000 of both, which tell checkpoints apart as well. `steps`,
    `batch_size`, `learning_rate` and `seeds` are the decoder's. Neither the paper nor its code gives a schedule; Adam
    at a rate that falls as a cosine reaches in a few hundred small steps what the InfoPro recipe's SGD needs many
    epochs for.
    """

    estimator: EstimatorName = "decoder"
    fit_images: int | None = None
    measure_images: int | None = None
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 1e-2
    seeds: int = 2

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, EstimatorName)
        for name in ("fit_images", "measure_images", "steps", "batch_size", "seeds"):
            value = getattr(self, name)
            if not (value is None or value >= 1):
                raise UserError(f"the estimator's {name.replace('_', ' ')} must be at least 1, not {value}")
        for name, most in (("steps", 10**6), ("seeds", 100), ("batch_size", 10**5)):
            value = getattr(self, name)
            if not value <= most:
                raise UserError(f"the estimator's {name.replace('_', ' ')} must be at most {most:,}, not {value}")
        if not 0 < self.learning_rate <= 1e3:
            raise UserError(f"the decoder's learning rate can't be {self.learning_rate}")

    def images(self, train: int, selection: int) -> tuple[int, int]:
        """On how many images to fit and to measure where there are so many.

        >>> EstimatorConfig().images(45_000, 5_000), EstimatorConfig(estimator="ridge").images(45_000, 5_000)
        ((4500, 5000), (1000, 1000))
        """
        decoder = self.estimator == "decoder"
        fit = self.fit_images or (min(10_000, max(1_000, train // 10)) if decoder else 1_000)
        return min(train, fit), min(selection, self.measure_images or (10_000 if decoder else 1_000))


@dataclass(frozen=True, kw_only=True)
class PilotConfig:
    """How a teacher is sought for a student by short lessons (SPEC §6).

    `budget` is what they may cost in all: a whole number of the student's epochs, or a decimal share of one whole
    distillation, as in addresses. `alphas` are weights of the labels; the first is tried with every checkpoint, the
    others with the best.

    >>> [PilotConfig(budget=budget).epochs(200) for budget in ("0.5", 0.5, 60)]
    [100, 100, 60]
    >>> PilotConfig(budget=1 / 3).budget
    '0.333333333'
    """

    budget: str | float = "1.0"
    alphas: tuple[float, ...] = (0.5, 0.1)
    tau: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        written = f"{self.budget:.9f}" if isinstance(self.budget, float) else str(self.budget)
        object.__setattr__(self, "budget", written)
        if not (
            re.fullmatch(r"[0-9]{1,9}|[0-9]{0,5}\.[0-9]{1,9}", str(self.budget)) is not None and float(self.budget) > 0
        ):
            raise UserError(
                "a budget is a number of epochs (60) or a decimal share of one whole distillation (1.0), not "
                f"{self.budget!r}"
            )
        if not len(self.alphas) > 0:
            raise UserError("no alpha is given")
        for alpha in self.alphas:
            KDConfig(alpha=alpha, tau=self.tau)
            if not alpha < 1:
                raise UserError("with an alpha of 1 a teacher has no weight; no teacher is tried in any case")
        if len(set(self.alphas)) != len(self.alphas):
            raise UserError("an alpha is given twice")

    def epochs(self, student_epochs: int) -> int:
        """The budget in epochs of a student that has so many."""
        return int(self.budget) if self.in_epochs else math.floor(float(self.budget) * student_epochs + 1e-6)

    @property
    def in_epochs(self) -> bool:
        """Whether the budget is a number of epochs."""
        return str(self.budget).isdecimal()


def check_choice(what: str, value: str, kinds: object) -> None:
    """Raise UserError, naming the nearest, unless the value is among those of a Literal type."""
    if value not in get_args(kinds):
        raise unknown_name(what, value, get_args(kinds))


def config_differences(asked: dict, there: dict) -> list[str]:
    """How settings that are asked for differ from those stored, as `name 3 there, 5 here`.

    Where the data lie (`source`) may differ; what they are may not.

    >>> differences({"seed": 1, "recipe": {"epochs": 3}}, {"seed": 1, "recipe": {"epochs": 5}})
    ['recipe epochs 5 there, 3 here']
    """
    found: list[str] = []
    for name, value in asked.items():
        stored = there.get(name)
        if isinstance(value, dict) and isinstance(stored, dict):
            found += [f"{name} {difference}" for difference in config_differences(value, stored)]
        elif name != "source" and stored != value:
            found.append(f"{name} {stored!r} there, {value!r} here")
    return found
