"""What is checked when a run starts, and the errors that its options can cause."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from copy import deepcopy

import torch

from ..config import Recipe
from ..data import Data
from ..data.augmenting import transforms_v2
from ..errors import UserError, first_line
from ..losses import Supervised
from ..models import Network, check_trainable
from ..ranks import Ranks
from .loop import State
from .parameters import parameter_groups


def check_settings(recipe: Recipe, network: Network, data: Data) -> None:
    """Raise UserError if the recipe does not apply to the network or the images, or needs a package that is absent."""
    augmentation = recipe.augmentation
    if augmentation is not None and augmentation.changes_pixels:
        transforms_v2("--auto-augment and --erasing")
    if recipe.mixes:
        transforms_v2("--mixup and --cutmix")
    data.train.subset(torch.arange(1)).batches(batch_size=1, seed=0, device="cpu", augmentation=augmentation)
    if recipe.layer_decay is not None:
        parameter_groups(network, Supervised(), recipe)


def check_global_batch(recipe: Recipe, ranks: Ranks, *, accumulate: int) -> None:
    """Raise UserError if a batch has fewer examples than the parts that it is split into."""
    if recipe.batch_size < ranks.world_size:
        raise UserError(
            f"--batch-size {recipe.batch_size} is smaller than the number of processes, {ranks.world_size}. It is "
            "the global batch size, over all processes. Use a larger batch or fewer processes."
        )
    if recipe.batch_size < ranks.world_size * accumulate:
        raise UserError(
            f"--accumulate {accumulate} is too large: a batch has {recipe.batch_size} images, over all processes. "
            f"Use at most {recipe.batch_size // ranks.world_size}."
        )


def check_single_images(recipe: Recipe, network: Network, data: Data, *, model: str, accumulate: int) -> None:
    """Raise UserError if a batch, or a part of one, has one image, and the network cannot be trained on one image."""
    count, size = len(data.train), recipe.batch_size
    batches = {min(count, size), count % size} - {0}
    if all(images // accumulate > 1 for images in batches):
        return
    image_1CHW = data.train.subset(torch.arange(1)).to_float()
    try:
        check_trainable(deepcopy(network), image_1CHW, classes=len(data.classes), model=model)
    except UserError as error:
        which = f"The last batch of each epoch has one image: {count:,} images in batches of {size}"
        advice = "Give another --batch-size or --train-images"
        if 1 not in batches:
            which = f"--accumulate {accumulate} leaves parts of one image: {count:,} images in batches of {size}"
            advice = "Use a smaller --accumulate, or another --batch-size"
        raise UserError(f"{which}. {advice}. {error}") from None


@contextlib.contextmanager
def compiler_errors() -> Iterator[None]:
    """Raise UserError where torch.compile fails, as it does without a C++ compiler."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        raise UserError(
            f"--compile failed: {first_line(error)[:200]}. Leave --compile out, or install a C++ compiler."
        ) from None


def has_unused_parameters(state: State, data: Data) -> bool:
    """Return whether a step may leave parameters without gradient. DistributedDataParallel needs to know it."""
    config = getattr(state.objective, "distill_config", None)
    if config is not None and any(True for _ in state.objective.parameters()):
        weights = config.teacher_weights if isinstance(config.teacher_weights, tuple) else ()
        if config.teacher_schedule != "joint" or 0 in weights:
            return True  # layers for teachers that are not in use
    network = deepcopy(state.model).train()
    device = next(network.parameters()).device
    network(data.train.subset(torch.arange(2)).to_float().to(device)).sum().backward()
    return any(parameter.grad is None for parameter in network.parameters() if parameter.requires_grad)
