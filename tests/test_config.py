"""Settings check themselves when they are made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from checkpointkd.config import Augmentation, DataConfig, EstimatorConfig, Recipe
from checkpointkd.distill_config import DistillConfig, KDConfig, PilotConfig
from checkpointkd.errors import UserError
from checkpointkd.recipes import RECIPES, recipe

NUMBERS = [  # every field that holds a number, apart from seeds
    *((Recipe, name) for name in ("epochs", "batch_size", "learning_rate", "momentum", "weight_decay")),
    *((Recipe, name) for name in ("step_every", "step_factor", "warmup", "clip_norm", "layer_decay", "views")),
    *((Recipe, name) for name in ("erasing", "mixup", "cutmix", "label_smoothing", "ema")),
    *((Augmentation, name) for name in ("views", "erasing")),
    *((DataConfig, name) for name in ("val_fraction", "train_images", "image_size")),
    *((KDConfig, name) for name in ("alpha", "tau")),
    *((DistillConfig, name) for name in ("method_weight", "top_k")),
    *((EstimatorConfig, name) for name in ("fit_images", "measure_images", "steps", "batch_size")),
    *((EstimatorConfig, name) for name in ("learning_rate", "seeds")),
    *((PilotConfig, name) for name in ("budget", "tau")),
]
NOT_CHECKED = {"seed", "split_seed"}


@pytest.mark.parametrize(("config", "name"), NUMBERS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("value", [math.nan, -1, -math.inf])
def test_a_number_out_of_range_is_refused(config: Any, name: str, value: float):
    with pytest.raises(UserError, match="must"):
        config(**{name: value})


def test_no_number_is_left_out_above():
    configs = {config for config, _ in NUMBERS}
    names = {
        (config, field.name)
        for config in configs
        for field in dataclasses.fields(config)
        if any(kind in str(field.type) for kind in ("int", "float")) and "tuple" not in str(field.type)
    }
    assert {(config, name) for config, name in names if name not in NOT_CHECKED} == set(NUMBERS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe(step_factor=0.0), "step_factor must be above 0 and at most 1, not 0.0"),
        (lambda: Recipe(step_factor=1.5), "step_factor must be above 0 and at most 1, not 1.5"),
        (lambda: DistillConfig(teacher_weights=(math.nan, 1.0)), "--teacher-weights must lie in"),
        (lambda: PilotConfig(alphas=(0.5, math.nan)), "alpha must lie in"),
        (lambda: PilotConfig(alphas=(0.5, 0.5)), r"The values of --alpha must differ, not 0\.5 0\.5"),
        (lambda: Recipe(lr_schedule="linear"), "Unknown learning-rate schedule 'linear'"),  # type: ignore[arg-type]
        (lambda: recipe("cifar"), "Unknown recipe 'cifar'. Did you mean 'cifar100'"),
        (lambda: recipe("digits", learning_rate=math.nan), "The learning rate must be above 0"),
    ],
)
def test_wrong_settings_are_refused_with_their_value(make: Any, message: str):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_other_values(name: str):
    changed = recipe(name, epochs=3, batch_size=7, learning_rate=0.5)
    assert (changed.epochs, changed.batch_size, changed.learning_rate) == (3, 7, 0.5)
    assert dataclasses.replace(recipe(name, epochs=3), batch_size=7, learning_rate=0.5) == changed
