"""How large a study is, and on which data: the settings of every study, by scale and data set. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import CheckpointDtype, KDConfig, PrecisionChoice, SelectOn, check_choice
from ..errors import UserError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher's network, a student's, and the parts of the teacher's training whose checkpoints teach in Figure 2."""

    teacher: str
    student: str
    sweep: tuple[float, ...] = (0.3, 0.5, 0.7, 1.0)

    @property
    def name(self) -> str:
        return f"{self.teacher} → {self.student}"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What all studies of one scale on one data set have in common, so that they share their runs.

    `seeds` are students an arm. The k of Figure 3 are `full_sizes`, each of which needs k teachers, and
    `snapshot_sizes`, which need one. α and τ are fixed unless `search` finds them for each pair of student and
    teachers. `batch_size` None is the recipe's. Decoders are fitted for `decoder_steps`, from `decoder_seeds` starts.
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
    batch_size: int | None = None
    precision: PrecisionChoice = "auto"
    alpha: float = 0.5
    tau: float = 5.0
    smoothing: float = 0.1
    search: bool = False
    search_trials: int | None = None  # None: the whole grid
    full_sizes: tuple[int, ...] = (1, 2)
    snapshot_sizes: tuple[int, ...] = (1, 2, 4, 7, 10)
    schedules: tuple[str, ...] = ()  # recipes beside the teachers' own, of the study of schedules
    alphas: tuple[float, ...] = (0.5, 0.1)  # of the study of rules
    budgets: tuple[str, ...] = ("1.0",)  # of its probings, in whole distillations
    checkpoint_dtype: CheckpointDtype = (
        "float32"  # rounded to 16 bits when saved, and few, so that they can be carried about
    )
    decoder_steps: int = 300
    decoder_seeds: int = 4  # with two, how much fits differ is hardly known
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("select_on", self.select_on, SelectOn)
        KDConfig(alpha=self.alpha, tau=self.tau)
        if not 1 <= self.seeds <= 1000:
            raise UserError(f"a study needs from 1 to 1,000 seeds, not {self.seeds}")
        for name, value in (("--teacher-epochs", self.teacher_epochs), ("--student-epochs", self.student_epochs)):
            if not value >= 2:
                raise UserError(f"{name} must be at least 2, or there is nothing half-way, not {value}")

    def shortened(self, *, teacher_epochs: int | None, student_epochs: int | None) -> Preset:
        """The scale with shorter runs, which leave about as many checkpoints where they have as many epochs.

        >>> scale = smoke().shortened(teacher_epochs=10, student_epochs=None)
        >>> scale.teacher_epochs, scale.save_every, scale.student_epochs
        (10, 1, 4)
        """
        teachers = self.teacher_epochs if teacher_epochs is None else teacher_epochs
        students = self.student_epochs if student_epochs is None else student_epochs
        return replace(
            self,
            teacher_epochs=teachers,
            student_epochs=students,
            save_every=max(1, round(self.save_every * teachers / self.teacher_epochs)),
            student_save_every=max(1, round(self.student_save_every * students / self.student_epochs)),
        )


TENTHS = tuple(part / 10 for part in range(1, 11))


def smoke() -> Preset:
    """All nine studies on digits in a few minutes: does everything run? Nothing can be learned from it."""
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
        search_trials=3,
        full_sizes=(1, 2),
        schedules=("digits", "cifar100-step"),
        alphas=(0.5,),
        budgets=("3.0",),
        decoder_steps=20,
        decoder_seeds=2,
        note="The scale smoke shows that everything runs. Its networks and runs are tiny: nothing follows from them.",
    )


def digits() -> Preset:
    """Digits again, 200 of them, with whole runs and more seeds: enough for rules to be told apart, in half an hour."""
    pairs = [(one, other) for one in ("wrn_16_2", "resnet_14") for other in ("wrn_10_1", "resnet_8")]
    return replace(
        smoke(),
        name="digits",
        pairs=tuple(Pair(teacher=one, student=other, sweep=(0.2, 0.4, 0.6, 0.8, 1.0)) for one, other in pairs),
        seeds=5,
        teacher_epochs=100,
        student_epochs=40,
        save_every=10,
        student_save_every=20,
        train_images=200,
        alphas=Preset.alphas,
        budgets=("0.6", "1.0", "2.0"),
        decoder_steps=100,
        note="The scale digits has 200 images of digits: what holds for them need not hold for photographs.",
    )


def small() -> Preset:
    """Real CIFAR-100, 10,000 images of it, about an hour a study on two cores."""
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
        full_sizes=(1, 2, 4),
        schedules=("cifar100-small", "cifar100-step"),
        note="The scale small has a fifth of the images, a seventh of the teachers' epochs and smaller networks than "
        "the paper. Its teachers are far from converged at their end, so that a checkpoint from the middle is unripe "
        "where the paper's is mature: what the paper observes late in training can't show here.",
    )


def overfit() -> Preset:
    """Real CIFAR-100, 2,500 images of it, which teachers know by heart in the end, as the paper's do."""
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
        budgets=("0.5", "1.0", "2.0"),
        note="The scale ripe has a twentieth of the images, so that a teacher of 120 epochs knows them by heart and "
        "its checkpoints from the middle are mature, as the paper's are; its networks are smaller than the paper's.",
    )


def paper() -> Preset:
    """The paper's own settings on CIFAR-100 (§3.2)."""
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
        full_sizes=(1, 2, 4, 7, 10),
        schedules=("cifar100", "cifar100-step"),
        checkpoint_dtype="float16",
    )


def paper_tiny_imagenet() -> Preset:
    """The paper's settings on Tiny-ImageNet (Table 2)."""
    return replace(
        paper(),
        dataset="tiny-imagenet",
        pairs=tuple(Pair(teacher="wrn_40_2", student=student) for student in ("wrn_40_1", "mobilenetv2_0.75")),
        schedules=(),
        teacher_recipe="tiny-imagenet",
        student_recipe="tiny-imagenet",
        teacher_epochs=150,
        student_epochs=150,
        save_every=15,
        student_save_every=15,
    )


def paper_imagenet() -> Preset:
    """The paper's settings on ImageNet (Table 1), where it shows one run of each."""
    return replace(
        paper(),
        dataset="imagenet",
        pairs=(
            Pair(teacher="timm:resnet34", student="timm:resnet18"),
            Pair(teacher="timm:resnet50", student="timm:mobilenetv2_100"),
        ),
        schedules=(),
        teacher_recipe="imagenet",
        student_recipe="imagenet",
        teacher_epochs=120,
        student_epochs=120,
        save_every=12,
        student_save_every=12,
    )


SCALES = {
    "smoke": {"digits": smoke},
    "digits": {"digits": digits},
    "small": {"cifar100": small},
    "overfit": {"cifar100": overfit},
    "paper": {"cifar100": paper, "tiny-imagenet": paper_tiny_imagenet, "imagenet": paper_imagenet},
}


def get_preset(name: str, data: str | None) -> Preset:
    """The settings of this scale on this data set, by default the first that it has.

    >>> scale_of("paper", "tiny-imagenet:somewhere").teacher_epochs
    150
    >>> scale_of("small", "digits")
    Traceback (most recent call last):
    checkpointkd.errors.UserError: the scale 'small' is for cifar100, not for 'digits'
    """
    if name not in SCALES:
        raise unknown_name("scale", name, SCALES)
    known = SCALES[name]
    dataset = next(iter(known)) if data is None else data.partition(":")[0]
    if dataset not in known:
        raise UserError(f"the scale {name!r} is for {', '.join(known)}, not for {dataset!r}")
    return known[dataset]()
