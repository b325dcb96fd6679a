"""The settings of everything, as frozen values that check themselves.

No torch here: the command line reads these values to answer `--help`. A check is written so that NaN fails it, as in
`not (x >= 1)`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from platformdirs import user_cache_path

from .errors import UserError, unknown_name

ClassOrder = Literal["auto", "superclass", "similarity", "given"]
CheckpointDtype = Literal["float32", "float16"]
Device = str  # auto, cpu, mps, cuda, or cuda:N; device.py checks it
EstimatorName = Literal["decoder", "ridge"]
INFORMATION_UNITS: dict[str, str] = {  # of I(X;F), by estimator
    "decoder": "negative excess reconstruction loss per pixel (a proxy, not nats)",
    "ridge": "nats per patch (a linear decoder with Gaussian noise)",
}
CORRELATION_KINDS = {"logits": "logits", "softened": "predictions, τ = {tau:g}"}
OptimizerName = Literal["sgd", "adam", "adamw"]
LabelLoss = Literal["cross-entropy", "squared-error"]
AutoAugment = Literal["none", "randaugment", "trivialaugment"]
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]
SelectOn = Literal["val", "test"]
Resize = Literal["crop", "squash"]
Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"]
CropOffset = Literal["round", "floor"]
ChannelOrder = Literal["rgb", "bgr"]
NamedOrder = Literal["names", "timm"]  # of classes
SamplerName = Literal["grid", "tpe"]
LrSchedule = Literal["cosine", "step", "milestones", "constant"]
SplitName = Literal["val", "test"]

LOGIT_CACHE_GB = 20.0  # the default of --logit-cache-gb
TEACHER_FORWARD = "teacher forward"  # the name of the work that fills the logit cache
OnProgress = Callable[[str, int, int], None]  # receives the name of the work, the steps done, and the steps in all


def cache_dir() -> Path:
    """Return the folder of data sets and caches: `CHECKPOINTKD_HOME`, otherwise the user's cache folder."""
    home = os.environ.get("CHECKPOINTKD_HOME")
    try:
        return Path(home) if home else user_cache_path("checkpointkd")
    except RuntimeError:  # a user without a name and without HOME
        raise UserError(
            "There is no home folder for data sets and caches. Set CHECKPOINTKD_HOME to a writable folder."
        ) from None


def check_choice(kind: str, value: str, choices: object) -> None:
    """Check that the value is one of a Literal type's.

    Raises:
        UserError: If the value is not; the message names the nearest choice.
    """
    if value not in get_args(choices):
        raise unknown_name(kind, value, get_args(choices))


def check_estimator(name: str) -> None:
    """Check that an estimator of I(X;F) is known, or is a user's own, `package.module:NAME`.

    Raises:
        UserError: If it is neither; the message names the nearest choice.
    """
    if ":" not in name:
        check_choice("estimator", name, EstimatorName)


def information_unit(estimator: str) -> str:
    """Return the unit of an estimator's I(X;F)."""
    return INFORMATION_UNITS.get(estimator, "in the unit of this function")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images differ from epoch to epoch, besides crops and flips.

    Attributes:
        views: Each image has this many fixed augmented views, which take turns. None: a new view in every epoch.
        auto_augment: RandAugment (Cubuk et al. 2020) or TrivialAugment (Müller and Hutter 2021), as in torchvision.
        erasing: The probability that a random rectangle of an image is erased (Zhong et al. 2020).
    """

    views: int | None = None
    auto_augment: AutoAugment = "none"
    erasing: float = 0.0

    def __post_init__(self) -> None:
        check_choice("auto-augment", self.auto_augment, AutoAugment)
        if not (self.views is None or 1 <= self.views <= MOST_VIEWS):
            raise UserError(f"--views must be from 1 to {MOST_VIEWS}, not {self.views}")
        if not 0 <= self.erasing <= 1:
            raise UserError(f"--erasing must be from 0 to 1, not {self.erasing}")

    @property
    def changes_pixels(self) -> bool:
        """Whether images are changed after the crop and the flip."""
        return self.auto_augment != "none" or self.erasing > 0


MOST_VIEWS = 1000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is trained.

    The learning rate is a function of the epoch. `cosine` falls to 0 at the end of the training; `step` multiplies it
    by `step_factor` every `step_every` epochs; `milestones` multiplies it by `step_factor` at each of `milestones`,
    which are shares of the training; `constant` keeps it. `warmup` is the number of epochs in which it rises linearly
    from a hundredth. `clip_norm` limits the norm of the gradient. With `decay_all` False, weight decay applies to
    weights of two or more dimensions only: not to biases and normalization. Networks of timm also exempt their class
    tokens and position embeddings. `layer_decay` multiplies the learning rate of each layer by this factor once for
    every layer above it. `source` says where the settings come from.

    `views`, `auto_augment` and `erasing` are those of `Augmentation`. `mixup` and `cutmix` are the parameters α of
    mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019); with both, each batch takes one of them. `label_smoothing`
    is the weight of the uniform distribution in the labels. `ema` is the decay of an exponential moving average of the
    weights, which becomes a second trajectory.

    >>> Recipe(epochs=0)
    Traceback (most recent call last):
    checkpointkd.errors.UserError: epochs must be from 1 to 1,000,000, not 0
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
    milestones: tuple[float, ...] = ()
    warmup: float = 0.0
    clip_norm: float | None = None
    decay_all: bool = True
    layer_decay: float | None = None
    augment: bool = True
    views: int | None = None
    auto_augment: AutoAugment = "none"
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    ema: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.epochs <= 10**6:
            raise UserError(f"epochs must be from 1 to 1,000,000, not {self.epochs}")
        if not 1 <= self.batch_size < 10**9:
            raise UserError(f"The batch size must be from 1 to 10⁹, not {self.batch_size}")
        if not 0 < self.learning_rate <= 1e6:
            raise UserError(f"The learning rate must be above 0 and at most 10⁶, not {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"The momentum must be in [0, 1), not {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"The weight decay must be finite and at least 0, not {self.weight_decay}")
        if not 1 <= self.step_every <= 10**6:
            raise UserError(f"step_every must be from 1 to 1,000,000 epochs, not {self.step_every}")
        if not 0 < self.step_factor <= 1:
            raise UserError(f"step_factor must be above 0 and at most 1, not {self.step_factor}")
        if not all(0 < share < 1 for share in self.milestones):
            raise UserError(f"milestones must be shares of the training, between 0 and 1, not {self.milestones}")
        if not 0 <= self.warmup < self.epochs:
            raise UserError(
                f"--warmup must be at least 0 and below the number of epochs, {self.epochs}, not {self.warmup:g}"
            )
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise UserError(f"--clip-norm must be finite and above 0, not {self.clip_norm}")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < 1e3:
                raise UserError(f"--{name} must be at least 0 and below 1,000, not {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"Label smoothing must be at least 0 and below 1, not {self.label_smoothing}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"--ema must be between 0 and 1, such as 0.999, not {self.ema}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"--layer-decay must be above 0 and at most 1, not {self.layer_decay}")
        _ = self.augmentation  # raises UserError for values out of range
        check_choice("optimizer", self.optimizer, OptimizerName)
        check_choice("learning-rate schedule", self.lr_schedule, LrSchedule)

    @property
    def augmentation(self) -> Augmentation | None:
        """How training images are augmented; None if they are not."""
        settings = Augmentation(views=self.views, auto_augment=self.auto_augment, erasing=self.erasing)
        return settings if self.augment else None

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    def learning_rate_at(self, epoch: float) -> float:
        """Return the learning rate after this many epochs, which may be a fraction."""
        if epoch < self.warmup:
            return self.learning_rate * (WARMUP_START + (1 - WARMUP_START) * epoch / self.warmup)
        if self.lr_schedule == "cosine":
            share = (epoch - self.warmup) / (self.epochs - self.warmup)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        if self.lr_schedule == "milestones":
            return self.learning_rate * self.step_factor ** sum(epoch >= m * self.epochs for m in self.milestones)
        if self.lr_schedule == "step":
            return self.learning_rate * self.step_factor ** (int(epoch) // self.step_every)
        return self.learning_rate

    def lasting(self, epochs: int) -> Recipe:
        """Return the recipe with another number of epochs. Warm-up and steps of the learning rate move in proportion.

        >>> Recipe(epochs=200, lr_schedule="step", step_every=60).lasting(20).step_every
        6
        """
        step_every = self.step_every
        if self.lr_schedule == "step":
            step_every = max(1, round(step_every * epochs / self.epochs))
        return replace(self, epochs=epochs, step_every=step_every, warmup=self.warmup * epochs / self.epochs)


WARMUP_START = 0.01  # share of the learning rate at the first step of a warm-up, as in torchvision's recipes


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """How images in files become squares when they are not augmented.

    `crop` resizes the shorter side to image size / `crop_share`, rounded down; `squash` resizes both sides to it. Then
    the center is cropped. With a `crop_share` above 1, black pixels fill the border. `crop_offset` says what happens to
    a half pixel at the left and at the top: torchvision and timm round it to even, Hugging Face's processors drop it.
    """

    resize: Resize = "crop"
    crop_share: float = 224 / 256
    interpolation: Interpolation = "bilinear"
    crop_offset: CropOffset = "round"

    def __post_init__(self) -> None:
        check_choice("resize", self.resize, Resize)
        check_choice("interpolation", self.interpolation, Interpolation)
        check_choice("crop_offset", self.crop_offset, CropOffset)
        if not 0.1 <= self.crop_share <= 2:
            raise UserError(f"crop_share must be from 0.1 to 2, not {self.crop_share}")

    def resized_by(self, resize: Resize) -> EvalTransform:
        """Return the transform with another way to resize. `squash` crops nothing, unless another share is stated.

        >>> EvalTransform().resized_by("squash").crop_share
        1.0
        """
        whole = resize == "squash" != self.resize and self.crop_share == EvalTransform.crop_share
        return replace(self, resize=resize, crop_share=1.0 if whole else self.crop_share)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images that a run trains on, chooses with and is measured on.

    With `select_on="val"` a stratified `val_fraction` of the official training set is kept out of training as the
    validation set, on which everything is chosen. The test set is used once, at the end. With `select_on="test"` the
    test set takes both roles, as in the paper. The split depends on `split_seed`, never on a run's seed.

    Attributes:
        train_images: Train on a class-balanced subset of this many images.
        image_size: Width and height to which images from folders are resized and cropped.
        flip: Whether horizontal flips preserve the class, and so are used as augmentation.
        eval_transform: How images from folders become squares when they are not augmented.
        val: The validation images: the name of a split, or for image folders also a folder. None: the official
            validation split if there is one beside the test split, otherwise a part of the training images.
        class_order: The class names in the order of the network's logits. `names` sorts the names. `timm` is timm's
            order of folders, which ignores case and sorts numbers by value.
        train_labels: A `.npy` file that replaces the labels of the official training images: integers (N,), in the
            order of the images. Validation images that are a part of the training set also get these labels. Test
            images keep their labels.
    """

    data: str = "digits"
    select_on: SelectOn = "val"
    val_fraction: float | None = None  # None: the data set's default, 0.1 unless it is tiny
    split_seed: int = 0
    train_images: int | None = None
    image_size: int | None = None  # None: the data set's default, 224 for images from folders
    flip: bool | None = None  # None: the data set's default, true except for digits
    eval_transform: EvalTransform = EvalTransform()
    class_order: tuple[str, ...] | NamedOrder | None = None  # None: the data set's
    val: str | None = None
    train_labels: str | None = None

    def __post_init__(self) -> None:
        check_choice("select_on", self.select_on, SelectOn)
        fraction = self.val_fraction
        if not (fraction is None or 0 < fraction < 1):
            raise UserError(f"val_fraction must lie between 0 and 1, not {fraction}")
        if self.val is not None and self.select_on == "test":
            raise UserError(f"--val {self.val} cannot be combined with --select-on test, which chooses on test images")
        if not (self.train_images is None or self.train_images >= 1):
            raise UserError(f"train_images must be at least 1, not {self.train_images}")
        if not (self.image_size is None or 8 <= self.image_size <= 4096):
            raise UserError(f"The image size must be from 8 to 4096 pixels, not {self.image_size}")


@dataclass(frozen=True, kw_only=True)
class EstimatorConfig:
    """How I(X;F) is estimated (§4.2): the estimator, the images it is fitted on, and the images it is measured on.

    By default the decoder is fitted on a tenth of the training images, at least 1,000, and measured on the validation
    set. At most 10,000 images of each are used, and at most 2,000 of images of more than 32 pixels per side. Ridge uses
    1,000 of each, which separate checkpoints as well. `steps`, `batch_size`, `learning_rate` and `seeds` apply to the
    decoder. The paper and its code give no learning-rate schedule. Adam with a cosine schedule needs a few hundred
    small steps. SGD in InfoPro's recipe needs many epochs.
    """

    estimator: str = "decoder"  # an EstimatorName, or a user's own
    fit_images: int | None = None
    measure_images: int | None = None
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 1e-2
    seeds: int = 2

    def __post_init__(self) -> None:
        check_estimator(self.estimator)
        limits = {"steps": 10**6, "seeds": 100, "batch_size": 10**5}
        for name in (*limits, "fit_images", "measure_images"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= limits.get(name, math.inf):
                largest = f" and at most {limits[name]:,}" if name in limits else ""
                raise UserError(f"The estimator's {name} must be at least 1{largest}, not {value}")
        if not 0 < self.learning_rate <= 1e3:
            raise UserError(f"The decoder's learning rate must be above 0 and at most 1,000, not {self.learning_rate}")

    def images(self, train: int, val: int, *, large: bool = False) -> tuple[int, int]:
        """Return how many images to fit on and to measure on, given the sizes of the training and validation sets.

        Of images of more than 32 pixels per side the decoder uses at most 2,000 of each.

        >>> EstimatorConfig().images(45_000, 5_000), EstimatorConfig(estimator="ridge").images(45_000, 5_000)
        ((4500, 5000), (1000, 1000))
        """
        decoder = self.estimator == "decoder"
        most = 2_000 if large else 10_000
        fit = self.fit_images or (min(most, max(1_000, train // 10)) if decoder else 1_000)
        return min(train, fit), min(val, self.measure_images or (most if decoder else 1_000))
