"""The options that several commands share. Each is declared once, with its default and its help text below it.

A command's options are a dataclass that inherits the groups it needs. The first line of a group's docstring is its
heading in `--help`. No torch here: the command line reads these classes to answer `--help`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from ..config import (
    LOGIT_CACHE_GB,
    CheckpointDtype,
    DataConfig,
    Device,
    EvalTransform,
    NamedOrder,
    OnProgress,
    PrecisionChoice,
    Resize,
    SelectOn,
)
from ..distill_config import (
    BatchNormMode,
    DistillConfig,
    EnsembleAverage,
    FittedWeights,
    KDConfig,
    TeacherSchedule,
    TeacherTau,
)
from ..errors import UserError, first_line
from ..records.base import read_bytes
from ..user_data import Data as UserData
from .recipe_options import LearningRateOptions

Model = str | Callable[..., Any]  # the name of a network, or a function that builds it

if TYPE_CHECKING:
    import torch

    from ..data import Data
    from ..records.base import DataRecord
    from ..training.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Common options."""

    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:N for GPU number N, mps, or auto for the best device that PyTorch can use.
    Commands that compute nothing ignore this option."""

    on_progress: OnProgress | None = None
    """From Python: a function that receives the name of the task, the number of finished steps and the total."""

    @property
    def torch_device(self) -> torch.device:
        """The device as PyTorch's object. Raises UserError if this machine does not have it."""
        from ..device import pick_device

        return pick_device(self.device)


@dataclass(frozen=True, kw_only=True)
class DataSetOptions:
    """Data."""

    data: str | UserData | None = None
    """The data set: digits, cifar10, cifar100, tiny-imagenet or imagenet. NAME:PATH also gives the place of the data.
    folder:PATH takes your own images, in PATH/train/CLASS and PATH/val/CLASS. hf:NAME takes a data set of the Hugging
    Face Hub. package.module:callable names a function that returns a checkpointkd.Data. Default: the data set of the
    given run or teachers."""

    train_labels: Path | str | None = None
    """A .npy file that replaces the labels of the data set's own training images, for example by noisy labels. It has
    one class number per image, in the order of the data set. Validation images that are a part of the training set
    also get these labels. Test images keep their labels. Default: the labels of the given run or first teacher, or
    those of the data set."""

    def __post_init__(self) -> None:
        if not isinstance(self.data, str | None):
            from ..data.own import data_name

            object.__setattr__(self, "data", data_name(self.data))

    @property
    def labels_file(self) -> str | None:
        """The path of --train-labels."""
        return None if self.train_labels is None else str(self.train_labels)


@dataclass(frozen=True, kw_only=True)
class DataOptions(DataSetOptions):
    """Data."""

    select_on: SelectOn | None = None
    """The images for choosing checkpoints and hyperparameters. val: a part of the training set that is kept out of
    training. test: the test set, as in the paper. Default: as in the given run or first teacher, otherwise val."""

    val: str | None = None
    """The validation set, for folder:PATH, imagenet and hf:NAME: a split, or a folder with a folder per class. Default:
    as in the given run, otherwise the data set's own validation split, otherwise a part of the training set."""

    image_size: int | None = None
    """For image folders: resize and crop images to squares of this side in pixels. Default: as in the given run or
    first teacher, otherwise 224."""

    resize: Resize | None = None
    """How images in files are resized when they are not augmented. crop: keep the aspect ratio and take the center
    square. squash: ignore the aspect ratio, and crop nothing unless a checkpoint states a crop. Default: as in the
    given run or first teacher, otherwise crop."""

    class_order: str | None = None
    """The order of classes in the network's logits: a FILE with one class name per line, timm or names. timm: timm's
    order of folders, which ignores case and sorts numbers by value. names: the sorted names. Default: as in the given
    run, first teacher or external checkpoint, otherwise the data set's order."""

    flip: bool | None = None
    """Augment with horizontal flips. Default: as in the given run or first teacher, otherwise yes (no for digits)."""

    def config(self, data: str | UserData, train_images: int | None = None) -> DataConfig:
        """Return the settings of this data set, for a command that follows no run."""
        self._check_resize(str(data))
        return DataConfig(
            data=str(data),  # see __post_init__
            select_on=self.select_on or DataConfig.select_on,
            train_images=train_images,
            image_size=self.image_size,
            flip=self.flip,
            eval_transform=EvalTransform().resized_by(self.resize or "crop"),
            class_order=self._order(),
            val=self.val,
            train_labels=self.labels_file,
        )

    def config_like(self, record: DataRecord, train_images: int | None = None) -> DataConfig:
        """Return the settings of a run's data, with the given options in place of the run's."""
        from ..data import config_like

        self._check_resize(str(self.data or record.name))
        return config_like(
            record,
            self.data,
            self.select_on,
            train_images,
            self.image_size,
            self.flip,
            resize=self.resize,
            class_order=self._order(),
            val=self.val,
            train_labels=self.labels_file,
        )

    def _check_resize(self, data: str) -> None:
        name = data.partition(":")[0]
        if self.resize is not None and name not in ("imagenet", "folder", "hf"):
            raise UserError(
                f"--resize {self.resize} does not apply to {name}: its images keep their size. It applies to imagenet, "
                "folder:PATH and hf:NAME."
            )

    def _order(self) -> tuple[str, ...] | NamedOrder | None:
        if self.class_order is None or self.class_order in get_args(NamedOrder):
            return cast(NamedOrder | None, self.class_order)
        try:
            lines = read_bytes(Path(self.class_order)).decode("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(
                f"--class-order {self.class_order} is neither {' nor '.join(get_args(NamedOrder))}, nor a file that "
                f"can be read ({first_line(error)}). Give a file with one class name per line."
            ) from None
        return tuple(line.strip() for line in lines if line.strip())


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Runs."""

    seed: int = 0
    """Seed for initialization, data order and augmentation."""

    precision: PrecisionChoice = "auto"
    """fp32, bf16 or fp16 (mixed precision), or auto. auto times a few steps in fp32 and bf16, and uses bf16 only if it
    is clearly faster. fp16 scales the loss; it is for GPUs without bf16."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(LearningRateOptions, RunOptions):
    """Training."""

    out: Path | str
    """The run directory. It is created if necessary. If it holds another run, the command stops with an error."""

    save_every: int | None = None
    """Save a checkpoint every this many epochs, and after the last. Default: 20 checkpoints per run."""

    compile: bool = False
    """Compile the network with torch.compile. This takes about a minute, and only some networks on some machines become
    faster."""

    best_of_last_ten: bool = False
    """Also evaluate on the test set after each of the last ten epochs, and report the best accuracy, as the authors'
    code does. The best of ten accuracies is optimistic. Needs --select-on test."""

    local_batch_norm: bool = False
    """With several processes (torchrun): batch normalization uses the statistics of each process, not of the global
    batch. Training is faster, but the result depends on the number of processes."""

    accumulate: int = 1
    """Split each batch into this many parts, computed one after another, to save memory. Batch normalization, and
    losses that compare examples, then see one part at a time."""

    save_state_every_steps: int | None = None
    """Also save the state within epochs, every this many steps. An interrupted run continues from there."""

    checkpoint_dtype: CheckpointDtype = "float32"
    """float16 halves the size of checkpoints. All later commands use the rounded weights."""

    init: str | None = None
    """The initial weights: pretrained, which downloads timm's weights; a checkpoint reference, such as RUN@last; or a
    file of any trainer. A classifier for another number of classes starts from random weights. Default: random
    weights."""

    def run_spec(self, model: str, data: Data, device: torch.device) -> RunSpec:
        """Return the description of the run of this network."""
        from ..training.run import RunSpec

        return RunSpec(
            model=model,
            out=Path(self.out),
            recipe=self.recipe_for(model, data, self.learning_rate, self.init),
            device=device,
            save_every=self.save_every,
            seed=self.seed,
            precision=self.precision,
            compile=self.compile,
            local_batch_norm=self.local_batch_norm,
            accumulate=self.accumulate,
            save_state_every_steps=self.save_state_every_steps,
            best_of_last_ten=self.best_of_last_ten,
            checkpoint_dtype=self.checkpoint_dtype,
            init=self.init,
        )


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions:
    """Teacher ensemble."""

    ensemble: str | None = None
    """The checkpoints of the given runs that form the ensemble. snapshot:K: the last checkpoint of one run and K − 1
    equally spaced earlier ones. full:K: the last checkpoints of K runs. mixed: the midpoint of the first run and the
    last checkpoint of the second. all: every checkpoint of one run. Default: the named checkpoints."""

    average: EnsembleAverage = KDConfig.average
    """What to average over the ensemble: probabilities (Eq. 2), or logits, as the authors' code does."""

    teacher_weights: list[str] | None = None
    """The weight of each checkpoint of the ensemble, in order; weights sum to 1. auto: the weights whose mixture of
    predictions has the lowest NLL on the validation set. auto-per-class: separate weights for each class of the labels.
    Default: equal weights."""

    def weights_of(self, members: int) -> tuple[float, ...] | FittedWeights | None:
        """Return the weights of this many checkpoints, or None for equal weights.

        Raises:
            UserError: If the number of weights differs, if a weight is not a number, or if the weights do not sum to 1.
        """
        given = [self.teacher_weights] if isinstance(self.teacher_weights, str) else self.teacher_weights
        if given is None:
            return None
        if given in (["auto"], ["auto-per-class"]):
            return DistillConfig(teacher_weights=given[0]).teacher_weights  # type: ignore[arg-type]
        try:
            weights = tuple(map(float, given))
        except ValueError:
            raise UserError(
                f"--teacher-weights takes numbers, auto, or auto-per-class, not {' '.join(map(str, given))!r}"
            ) from None
        if len(weights) != members:
            raise UserError(f"--teacher-weights has {len(weights)} values for {members} checkpoints")
        return DistillConfig(teacher_weights=weights).teacher_weights


@dataclass(frozen=True, kw_only=True)
class LogitCacheOptions:
    """Logit cache."""

    logit_cache_gb: float = LOGIT_CACHE_GB
    """Upper limit of the logit cache in gigabytes. The least recently used entries are removed first. With 0 the
    teachers run at every step: the student is the same, but training is slower."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(EnsembleOptions, LogitCacheOptions):
    """Teachers and method."""

    teachers: list[str]
    """One or more checkpoint references: RUN@160 (epoch 160), RUN@0.5 (half of the training), RUN@midpoint, RUN@last
    or RUN@best. RUN alone is its last checkpoint. RUN@mean:0.7-1.0 averages the weights of the checkpoints from 0.7 to
    1.0 of the training. RUN@decay-mean:0.9 averages the weights of all checkpoints, with decay."""

    method: str = "kd"
    """The distillation method. From the teachers' logits: kd, lskd (standardized logits), dkd, dist, wttm, wsl, mlkd
    (several levels), mlkd-ls (with standardized logits). From their features: fitnets, at, sp, cc, vid, rkd, fsp, pkt,
    crd, reviewkd. A method of your own: package.module:Class."""

    tau_squared: bool = KDConfig.tau_squared
    """Multiply the distillation loss by the squared temperature, as is common and as the authors' code does. The
    paper's formula does not."""

    teacher_schedule: TeacherSchedule = "joint"
    """When each of several teachers is used. joint: all teachers, in the whole training. rco: one teacher after the
    other, each for an equal part of the training. progressive: like rco, with a temperature that falls to 1. random: a
    random half of the teachers, new in every epoch."""

    teacher_tau: TeacherTau = "fixed"
    """The temperature of the teachers. fixed: τ for all. auto: τ times the temperature that fits each teacher best on
    the validation set. matched: τ times the standard deviation of each teacher's logits over that of its run's last
    checkpoint."""

    teacher_batch_norm: BatchNormMode = "eval"
    """Batch normalization of the teachers. eval: the running statistics. batch: the statistics of each batch, as the
    authors' code does in most of the training."""

    teacher_features: list[str] | None = None
    """For feature methods: the teacher's modules, by their paths in the model. Default: the method's usual features."""

    student_features: list[str] | None = None
    """The student's modules, in the order of --teacher-features."""

    channel_adapter: bool = False
    """For fsp: add a trained 1×1 convolution to the student's features where their number of channels differs."""

    top_k: int | None = None
    """Use only this many of the largest teacher logits of each image, and replace the others by their mean. This makes
    the logit cache smaller, but costs accuracy: 3 points with 10 of 100 logits in our comparison. Default: all
    logits."""

    allow_weak_teacher: bool = False
    """Accept teachers whose accuracy is not above chance."""

    @property
    def teacher_list(self) -> list[str]:
        """The references. From Python, one reference may be a string instead of a list."""
        return [self.teachers] if isinstance(self.teachers, str) else self.teachers

    def distill_config(self, members: int, *, method_weight: float | None = None) -> DistillConfig:
        """Return how this many teachers are used."""
        return DistillConfig(
            method_weight=method_weight,
            teacher_weights=self.weights_of(members),
            teacher_schedule=self.teacher_schedule,
            teacher_tau=self.teacher_tau,
            teacher_batch_norm=self.teacher_batch_norm,
            teacher_features=None if self.teacher_features is None else tuple(self.teacher_features),
            student_features=None if self.student_features is None else tuple(self.student_features),
            channel_adapter=self.channel_adapter,
            top_k=self.top_k,
        )
