"""Presets: the sizes of an experiment and the data set that it runs on. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..config import CheckpointDtype, PrecisionChoice, SelectOn, check_choice
from ..distill_config import KDConfig
from ..errors import UserError, unknown_name

Role = Literal["teacher", "student"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher network and a student network.

    `sweep` holds the fractions of the teacher's training whose checkpoints teach in Figure 2.
    """

    teacher: str
    student: str
    sweep: tuple[float, ...] = (0.3, 0.5, 0.7, 1.0)

    @property
    def name(self) -> str:
        return f"{self.teacher} → {self.student}"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The settings that all experiments of one preset on one data set share, so that they share their runs.

    Attributes:
        seeds: Students per variant.
        train_images: Training images, a class-balanced subset; None is all.
        student_train_images: Training images of students, drawn from the same images; None is `train_images`.
        batch_size: Batch size of all trainings; None is the recipe's.
        student_batch_size: Batch size of students; None is `batch_size`.
        alpha: Weight of the labels in Eq. 1, for all students unless `tune` is true.
        tau: Temperature, likewise.
        smoothing: Label smoothing of the uniform teacher (Figure 6).
        tune: Tune α and τ for each student and its teachers, as the paper did.
        tune_trials: Trials per tuning; None is the whole grid.
        full_ensemble_sizes: The k of Figure 3's Full Ensembles, each of which needs k teachers.
        snapshot_ensemble_sizes: The k of Figure 3's Snapshot Ensembles, which need one teacher.
        compared_recipes: Teacher recipes that `lr-schedule` compares with `teacher_recipe`.
        alphas: Weights of the labels that `selection` compares for `kd`.
        budgets: Budgets of the pilot searches of `selection`, as shares of one distillation.
        compared_teachers: Teacher runs per pair from which `selection` and `teachers` take teachers.
        compared_methods: The methods that `selection` compares.
        further_settings: Methods with which `teachers` also compares checkpoints, beside `kd` with the preset's α. Each
            has its α, or None for the method's default.
        noisy: Whether the preset needs a file of noisy labels, `--train-labels`.
        checkpoint_dtype: With float16, only runs of seed 0 keep more than the last checkpoint.
        decoder_steps: Optimizer steps per decoder fit.
        decoder_seeds: Decoder fits per checkpoint. Two fits hardly show how much fits differ.
        note: A caveat that the results of this preset carry.

    Raises:
        UserError: If a value is out of range.
    """

    name: str
    dataset: str
    pairs: tuple[Pair, ...]
    seeds: int
    teacher_recipe: str
    student_recipe: str
    teacher_epochs: int
    student_epochs: int
    save_every: int
    student_save_every: int
    select_on: SelectOn = "val"
    train_images: int | None = None
    student_train_images: int | None = None
    batch_size: int | None = None
    student_batch_size: int | None = None
    precision: PrecisionChoice = "auto"
    alpha: float = 0.5
    tau: float = 5.0
    smoothing: float = 0.1
    tune: bool = False
    tune_trials: int | None = None
    full_ensemble_sizes: tuple[int, ...] = (1, 2)
    snapshot_ensemble_sizes: tuple[int, ...] = (1, 2, 4, 7, 10)
    compared_recipes: tuple[str, ...] = ()
    method: str = "kd"
    rules: tuple[str, ...] = ()
    rule_estimator: str = "decoder"
    alphas: tuple[float, ...] = (0.5, 0.1)
    budgets: tuple[str, ...] = ("0.5", "1.0", "2.0")
    compared_teachers: int = 2
    compared_methods: tuple[str, ...] = ("kd", "dkd", "dist", "lskd", "wttm", "mlkd-ls")
    further_settings: tuple[tuple[str, float | None], ...] = ()
    noisy: bool = False
    checkpoint_dtype: CheckpointDtype = "float32"
    decoder_steps: int = 300
    decoder_seeds: int = 4
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("select_on", self.select_on, SelectOn)
        KDConfig(alpha=self.alpha, tau=self.tau)
        if not 1 <= self.seeds <= 1000:
            raise UserError(f"--seeds must be from 1 to 1,000, not {self.seeds}")
        for name, value in (("--teacher-epochs", self.teacher_epochs), ("--student-epochs", self.student_epochs)):
            if value < 2:
                raise UserError(f"{name} must be at least 2, so that a run has a midpoint, not {value}")

    def images_of(self, role: Role) -> int | None:
        """Return how many images a teacher or a student trains on; None is all."""
        return self.train_images if role == "teacher" else self.student_train_images or self.train_images

    def batch_size_of(self, role: Role) -> int | None:
        """Return the batch size of a teacher or a student; None is the recipe's."""
        return self.batch_size if role == "teacher" else self.student_batch_size or self.batch_size

    def with_epochs(self, *, teacher_epochs: int | None, student_epochs: int | None) -> Preset:
        """Return the preset with other run lengths; runs save about as many checkpoints as before.

        >>> preset = smoke().with_epochs(teacher_epochs=10, student_epochs=None)
        >>> preset.teacher_epochs, preset.save_every, preset.student_epochs
        (10, 1, 4)
        """
        teacher_epochs = self.teacher_epochs if teacher_epochs is None else teacher_epochs
        student_epochs = self.student_epochs if student_epochs is None else student_epochs
        return replace(
            self,
            teacher_epochs=teacher_epochs,
            student_epochs=student_epochs,
            save_every=max(1, round(self.save_every * teacher_epochs / self.teacher_epochs)),
            student_save_every=max(1, round(self.student_save_every * student_epochs / self.student_epochs)),
        )


TENTHS = tuple(tenth / 10 for tenth in range(1, 11))


def smoke() -> Preset:
    """Digits in a few minutes, to check that every experiment runs. Its results mean nothing."""
    return Preset(
        name="smoke",
        dataset="digits",
        pairs=(
            Pair(teacher="wrn_16_2", student="wrn_10_1", sweep=TENTHS),
            Pair(teacher="resnet_14", student="resnet_8"),
        ),
        seeds=2,
        teacher_recipe="digits",
        student_recipe="digits",
        teacher_epochs=20,
        student_epochs=4,
        save_every=2,
        student_save_every=2,
        train_images=100,
        precision="fp32",
        tune_trials=3,
        full_ensemble_sizes=(1, 2),
        compared_recipes=("digits", "cifar100-step"),
        alphas=(0.5,),
        budgets=("3.0",),
        compared_teachers=1,
        compared_methods=("kd", "dist"),
        decoder_steps=20,
        decoder_seeds=2,
        note="Preset smoke checks that everything runs. Its runs are tiny, so its results mean nothing.",
    )


def smoke_tiny_imagenet() -> Preset:
    """2,000 images of Tiny-ImageNet, to check that the data set works. Its results mean nothing."""
    return replace(
        smoke(),
        dataset="tiny-imagenet",
        pairs=(Pair(teacher="wrn_10_1", student="resnet_8"),),
        teacher_recipe="tiny-imagenet",
        student_recipe="tiny-imagenet",
        teacher_epochs=4,
        student_epochs=2,
        save_every=1,
        student_save_every=1,
        train_images=2_000,
        compared_recipes=(),
        note="Preset smoke trains for a few epochs on 2,000 images of Tiny-ImageNet. Its results mean nothing.",
    )


def digits() -> Preset:
    """200 images of digits, with long runs and five seeds: enough to tell rules apart, in half an hour."""
    pairs = [(teacher, student) for teacher in ("wrn_16_2", "resnet_14") for student in ("wrn_10_1", "resnet_8")]
    return replace(
        smoke(),
        name="digits",
        pairs=tuple(
            Pair(teacher=teacher, student=student, sweep=(0.2, 0.4, 0.6, 0.8, 1.0)) for teacher, student in pairs
        ),
        seeds=5,
        teacher_epochs=100,
        student_epochs=40,
        save_every=10,
        student_save_every=20,
        train_images=200,
        alphas=Preset.alphas,
        compared_teachers=2,
        decoder_steps=100,
        note="Preset digits trains on 200 images of digits. Its results need not hold for photographs.",
    )


def small() -> Preset:
    """10,000 images of CIFAR-100; about an hour per experiment on two CPU cores."""
    return Preset(
        name="small",
        dataset="cifar100",
        pairs=(
            Pair(teacher="wrn_16_2", student="wrn_10_1", sweep=TENTHS),
            Pair(teacher="resnet_20", student="resnet_8"),
        ),
        seeds=3,
        teacher_recipe="cifar100-small",
        student_recipe="cifar100-small-student",
        teacher_epochs=30,
        student_epochs=20,
        save_every=3,
        student_save_every=4,
        train_images=10_000,
        full_ensemble_sizes=(1, 2, 4),
        compared_recipes=("cifar100-small", "cifar100-step"),
        note="Preset small has a fifth of the paper's images, a seventh of its teacher epochs, and smaller networks. "
        "Its teachers have not converged at the last epoch, so a midpoint checkpoint is under-trained here. "
        "What the paper observes late in training is not testable with this preset.",
    )


def overfit() -> Preset:
    """2,500 images of CIFAR-100, which teachers have memorized at the last epoch, as in the paper."""
    return replace(
        small(),
        name="overfit",
        pairs=(
            Pair(teacher="wrn_16_2", student="wrn_10_1"),
            Pair(teacher="wrn_16_2", student="resnet_8"),
            Pair(teacher="resnet_20", student="resnet_8"),
        ),
        teacher_epochs=120,
        student_epochs=30,
        save_every=12,
        student_save_every=6,
        train_images=2_500,
        note="Preset overfit has a twentieth of the paper's images, so that a teacher of 120 epochs memorizes them. "
        "Its midpoint checkpoints are converged, as in the paper. Its networks are smaller than the paper's.",
    )


def medium() -> Preset:
    """All 45,000 training images of CIFAR-100; about a day on two CPU cores with bf16, twice that with fp32."""
    return replace(
        small(),
        name="medium",
        teacher_recipe="cifar100",
        student_recipe="cifar100",
        teacher_epochs=60,
        student_epochs=30,
        save_every=3,
        student_save_every=30,
        train_images=None,
        full_ensemble_sizes=(1, 2),
        snapshot_ensemble_sizes=(1, 2, 4),
        compared_recipes=(),
        precision="fp32",
        note="Preset medium has the paper's images, but 60 teacher epochs in place of 200, and smaller networks.",
    )


def few_images() -> Preset:
    """Teachers on 20,000 images of CIFAR-100, students on 2,250 of these; about 20 hours on one CPU core."""
    return replace(
        medium(),
        name="few-images",
        teacher_epochs=40,
        student_epochs=40,
        save_every=2,
        student_save_every=40,
        train_images=20_000,
        student_train_images=2_250,
        further_settings=(("kd", 0.1), ("wttm", None), ("dist", None)),
        note="Preset few-images trains teachers on 20,000 images and students on 2,250 of these. "
        "Its networks are smaller than the paper's.",
    )


def noisy_labels() -> Preset:
    """2,500 images of CIFAR-100 with CIFAR-100N's noisy labels, which teachers memorize; as `overfit` otherwise."""
    return replace(
        overfit(),
        name="noisy-labels",
        noisy=True,
        further_settings=few_images().further_settings,
        note="Preset noisy-labels uses noisy labels for training and validation; test labels are clean. It has a "
        "twentieth of the paper's images, so that a teacher of 120 epochs memorizes wrong labels too.",
    )


def paper() -> Preset:
    """The paper's settings on CIFAR-100 (§3.2)."""
    networks = (
        ("wrn_40_2", "wrn_40_1"),
        ("wrn_40_2", "mobilenetv2_0.75"),
        ("resnet_110", "resnet_32"),
        ("resnet_110", "mobilenetv2_0.75"),
    )
    return Preset(
        name="paper",
        dataset="cifar100",
        pairs=tuple(Pair(teacher=teacher, student=student, sweep=TENTHS) for teacher, student in networks),
        seeds=5,
        teacher_recipe="cifar100",
        student_recipe="cifar100",
        teacher_epochs=200,
        student_epochs=200,
        save_every=10,
        student_save_every=20,
        select_on="test",
        full_ensemble_sizes=(1, 2, 4, 7, 10),
        compared_recipes=("cifar100", "cifar100-step"),
        checkpoint_dtype="float16",
    )


def paper_tiny_imagenet() -> Preset:
    """The paper's settings on Tiny-ImageNet (Table 2)."""
    return replace(
        paper(),
        dataset="tiny-imagenet",
        pairs=tuple(Pair(teacher="wrn_40_2", student=student) for student in ("wrn_40_1", "mobilenetv2_0.75")),
        compared_recipes=(),
        teacher_recipe="tiny-imagenet",
        student_recipe="tiny-imagenet",
        teacher_epochs=150,
        student_epochs=150,
        save_every=15,
        student_save_every=15,
    )


def paper_imagenet() -> Preset:
    """The paper's settings on ImageNet (Table 1), where the paper shows one run per network.

    The paper does not give the width of its MobileNetV2. Without a teacher it reaches 64.18%, which fits a
    width of 0.5 better than 1.0: --pairs timm:resnet50,timm:mobilenetv2_050.
    """
    return replace(
        paper(),
        dataset="imagenet",
        pairs=(
            Pair(teacher="timm:resnet34", student="timm:resnet18"),
            Pair(teacher="timm:resnet50", student="timm:mobilenetv2_100"),
        ),
        seeds=1,
        compared_recipes=("imagenet", "imagenet-cosine"),
        teacher_recipe="imagenet",
        student_recipe="imagenet",
        teacher_epochs=120,
        student_epochs=120,
        save_every=12,
        student_save_every=12,
    )


PRESETS = {
    "smoke": {"digits": smoke, "tiny-imagenet": smoke_tiny_imagenet},
    "digits": {"digits": digits},
    "small": {"cifar100": small},
    "overfit": {"cifar100": overfit},
    "medium": {"cifar100": medium},
    "few-images": {"cifar100": few_images},
    "noisy-labels": {"cifar100": noisy_labels},
    "paper": {"cifar100": paper, "tiny-imagenet": paper_tiny_imagenet, "imagenet": paper_imagenet},
}


def get_preset(name: str, data: str | None) -> Preset:
    """Return the preset of this name on this data set; by default on the first that it has.

    >>> get_preset("paper", "tiny-imagenet:somewhere").teacher_epochs
    150
    >>> get_preset("small", "digits")
    Traceback (most recent call last):
    checkpointkd.errors.UserError: Preset 'small' runs on cifar100, not on 'digits'
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    by_dataset = PRESETS[name]
    dataset = next(iter(by_dataset)) if data is None else data.partition(":")[0]
    if dataset not in by_dataset:
        raise UserError(f"Preset {name!r} runs on {', '.join(by_dataset)}, not on {dataset!r}")
    return by_dataset[dataset]()
