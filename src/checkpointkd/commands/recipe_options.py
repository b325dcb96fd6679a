"""The options of a training: a recipe by name, and values in place of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import LrSchedule, OptimizerName, Recipe
from ..recipes import recipe

if TYPE_CHECKING:
    from ..data import Data

RECIPE_OPTIONS = ("batch_size", "optimizer", "weight_decay", "lr_schedule", "warmup", "clip_norm")


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Training."""

    recipe: str | None = None
    """Named training settings: digits, cifar100, cifar100-step, cifar100-small, cifar100-small-student, repdistiller,
    tiny-imagenet, imagenet, imagenet-cosine, vit or finetune. Default: finetune for a network that starts from given
    weights, otherwise the recipe of the data set."""

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

    def recipe_for(self, data: Data, learning_rate: float | None = None, init: str | None = None) -> Recipe:
        """Return the chosen recipe, or the default, with the options in place of its own settings."""
        return recipe(
            self.recipe or (data.recipe if init is None else "finetune"),
            epochs=self.epochs,
            learning_rate=learning_rate,
            **{name: getattr(self, name) for name in RECIPE_OPTIONS},
        )


@dataclass(frozen=True, kw_only=True)
class LearningRateOptions(RecipeOptions):
    """Training."""

    learning_rate: float | None = None
    """The highest value of the learning-rate schedule. Default: the recipe's."""
