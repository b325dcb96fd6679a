"""The options of a training: a recipe by name, and values in place of its own."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import AutoAugment, LrSchedule, OptimizerName, Recipe
from ..recipes import default_recipe, recipe

if TYPE_CHECKING:
    from ..data import Data

RECIPE_OPTIONS = ("batch_size", "optimizer", "weight_decay", "lr_schedule", "warmup", "clip_norm", "layer_decay")
RECIPE_OPTIONS += ("views", "auto_augment", "erasing", "mixup", "cutmix", "label_smoothing", "ema")


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Training."""

    recipe: str | None = None
    """Named training settings: digits, cifar100, cifar100-step, cifar100-small, cifar100-small-student, repdistiller,
    tiny-imagenet, imagenet, imagenet-cosine, vit, deit, adamw or finetune. Default: finetune for a network that starts
    from given weights; adamw for one without batch norm (on ImageNet vit); otherwise the recipe of the data set."""

    epochs: int | None = None
    """Number of epochs. Default: the recipe's."""

    batch_size: int | None = None
    """Images per step. Default: the recipe's."""

    train_images: int | None = None
    """Train on a class-balanced subset of this many images. Default: as in the given run or first teacher, otherwise
    all training images."""

    optimizer: OptimizerName | None = None
    """sgd (with momentum 0.9), adam or adamw. Default: the recipe's."""

    weight_decay: float | None = None
    """Weight decay. Default: the recipe's."""

    lr_schedule: LrSchedule | None = None
    """cosine; step, ×0.1 every so many epochs; milestones, ×0.1 at shares of the training; or constant. Default: the
    recipe's."""

    warmup: float | None = None
    """Epochs in which the learning rate rises linearly. Default: the recipe's."""

    clip_norm: float | None = None
    """The largest norm of the gradient. Default: the recipe's."""

    layer_decay: float | None = None
    """For networks of timm: multiply the learning rate of each layer by this factor once for every layer above it.
    Default: the recipe's."""

    views: int | None = None
    """Give each image this many fixed augmented views, which take turns. Teachers' logits of fixed views are cached,
    for streamed images too. Default: the recipe's, otherwise a new view in every epoch."""

    auto_augment: AutoAugment | None = None
    """Augment with randaugment or trivialaugment, after the crop and the flip. Needs torchvision. Default: the
    recipe's."""

    erasing: float | None = None
    """The probability that a random rectangle of an image is erased. Needs torchvision. Default: the recipe's."""

    mixup: float | None = None
    """The α of mixup, such as 0.8. Teachers then run at every step. Needs torchvision. Default: the recipe's."""

    cutmix: float | None = None
    """The α of CutMix, such as 1.0. With mixup too, each batch takes one of them. Default: the recipe's."""

    label_smoothing: float | None = None
    """Weight of the uniform distribution in the labels, in [0, 1). Label smoothing is distillation from a uniform
    teacher (§4.3). Default: the recipe's."""

    ema: float | None = None
    """Also keep an exponential moving average of the weights with this decay, such as 0.999. Its checkpoints are a
    second trajectory, RUN/ema. Default: the recipe's."""

    def recipe_for(self, model: str, data: Data, learning_rate: float | None = None, init: str | None = None) -> Recipe:
        """Return the chosen recipe, or the default of this network, with the options in place of its own settings."""
        return recipe(
            self.recipe or default_recipe_for(model, data, initialized=init is not None),
            epochs=self.epochs,
            learning_rate=learning_rate,
            **{name: getattr(self, name) for name in RECIPE_OPTIONS},
        )


def default_recipe_for(model: str, data: Data, *, initialized: bool = False) -> str:
    """Return the name of the default recipe of a network on a data set."""
    batch_norm = initialized or _has_batch_norm(model, data)
    return default_recipe(data.recipe, initialized=initialized, batch_norm=batch_norm)


def _has_batch_norm(model: str, data: Data) -> bool:
    """Return whether a network has batch normalization. Where possible it is built without memory for its weights."""
    import torch

    from ..models import build_network, has_batch_norm, names_code

    channels = [0.5] * data.train.shape[0]  # normalization does not matter here
    settings: Any = {"num_classes": len(data.classes), "in_channels": len(channels), "mean": channels, "std": channels}
    if not names_code(model):
        with contextlib.suppress(Exception), torch.device("meta"):  # some networks compute with their weights
            return has_batch_norm(build_network(model, **settings))
    return has_batch_norm(build_network(model, **settings))


@dataclass(frozen=True, kw_only=True)
class LearningRateOptions(RecipeOptions):
    """Training."""

    learning_rate: float | None = None
    """The highest value of the learning-rate schedule. Default: the recipe's."""
