"""Choose fp32 or bf16 by measuring training steps."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..config import Precision, PrecisionChoice, Recipe
from ..data import Batch, Data, InMemoryImages
from ..losses import Supervised
from ..models import build_network, check_trainable
from .loop import State, start, step

log = logging.getLogger("checkpointkd")

MIN_STEPS_TO_BENCHMARK = 100  # the benchmark itself takes up to twelve steps
LOADING_SECONDS = 5.0  # to time the loader
LOADING_EPOCHS = 20  # at most, of a data set that is read in less time
FEW_IMAGES = 8  # images of a first step, to predict the time of a whole batch
FASTER = 0.7  # of the time in fp32; near 1 the measurement would choose by chance, and equal commands would differ


def benchmark_precision(network: nn.Module, data: Data, recipe: Recipe, device: torch.device) -> Precision:
    """Return bf16 if a training step takes less than 0.7 of the time in fp32, else fp32.

    Steps below 50 ms on a CPU stay in fp32, since their times are mostly noise. The benchmark trains the network: pass
    a copy.
    """
    if not _supports_bf16(device):
        return "fp32"
    log.info("Timing a few training steps in fp32 and in bf16")
    return _faster(_seconds_per_step(network, data, recipe, device, ("fp32", "bf16")), device)


def benchmark_training(
    model: str, data: Data, recipe: Recipe, *, precision: PrecisionChoice, device: torch.device
) -> dict[str, Any]:
    """Measure what training a network takes on a device.

    Returns:
        `precision`, the faster one or the one that is asked for; `seconds_per_step` in it; `steps_per_epoch`; and
        `megabytes` of a checkpoint.
    """
    mean, std = data.train.channel_statistics()
    network = build_network(model, num_classes=len(data.classes), in_channels=len(mean), mean=mean, std=std)
    check_trainable(network, data.train.subset(torch.arange(2)).to_float(), classes=len(data.classes), model=model)
    both: tuple[Precision, ...] = ("fp32", "bf16") if _supports_bf16(device) else ("fp32",)
    seconds = _seconds_per_step(network, data, recipe, device, both if precision == "auto" else (precision,))
    chosen = _faster(seconds, device) if len(seconds) == 2 else next(iter(seconds))
    return {
        "precision": chosen,
        "seconds_per_step": round(seconds[chosen], 6),
        "steps_per_epoch": math.ceil(len(data.train) / recipe.batch_size),
        "megabytes": round(sum(tensor.nbytes for tensor in network.state_dict().values()) / 1e6, 3),
    }


def benchmark_loading(data: Data, recipe: Recipe, device: torch.device) -> float:
    """Return how long the loader takes for a batch, in seconds; 0 for images in memory.

    The real loader reads, decodes and augments real images, with all its workers, for a few seconds.
    """
    if isinstance(data.train, InMemoryImages):
        return 0.0
    settings: Any = {"batch_size": min(recipe.batch_size, len(data.train)), "seed": 0, "device": device}
    batches = data.train.batches(**settings, augmentation=recipe.augmentation)
    counted, began, now = 0, None, 0.0
    for batch in itertools.chain.from_iterable(map(batches.epoch, range(LOADING_EPOCHS))):
        now = time.perf_counter()
        if began is None:
            began = now  # the workers have started
        else:
            counted += len(batch.labels_B)
        if now - began > LOADING_SECONDS:
            break
    return (now - (began or now)) / max(1, counted) * recipe.batch_size


def _supports_bf16(device: torch.device) -> bool:
    return device.type != "mps" and (device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False))


def _seconds_per_step(
    network: nn.Module, data: Data, recipe: Recipe, device: torch.device, precisions: Sequence[Precision]
) -> dict[Precision, float]:
    """Return the shortest time of a training step in each precision, measured in turn.

    If a whole batch would take long, a smaller batch is timed. Its time is scaled to the whole batch.
    """
    whole = min(recipe.batch_size, len(data.train))
    images = _images_to_time(network, data, recipe, device, whole)
    state, batch = _state_and_batch(network, data, replace(recipe, batch_size=images), device)
    seconds: dict[Precision, list[float]] = {precision: [] for precision in precisions}
    for trial in range(6):
        for precision, measured in seconds.items():
            if trial >= 3 and measured[-1] > 2.0:
                continue  # steps this slow need no more trials
            began = time.perf_counter()
            step(state, batch, precision=precision, train_fraction=0.0)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            measured.append(time.perf_counter() - began)
    # the first step loads kernels
    return {precision: min(measured[1:]) * whole / images for precision, measured in seconds.items()}


def _images_to_time(network: nn.Module, data: Data, recipe: Recipe, device: torch.device, whole: int) -> int:
    """Return the size of the batch to time: the whole batch, or a batch that takes about a second per step."""
    if whole <= FEW_IMAGES:
        return whole
    state, batch = _state_and_batch(network, data, replace(recipe, batch_size=FEW_IMAGES), device)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        step(state, batch, precision="fp32", train_fraction=0.0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    affordable = int(FEW_IMAGES / min(seconds))  # images in one second
    return whole if affordable >= whole else max(FEW_IMAGES, affordable)


def _state_and_batch(network: nn.Module, data: Data, recipe: Recipe, device: torch.device) -> tuple[State, Batch]:
    """A state to train, and one batch to train it on repeatedly."""
    rows_B = torch.arange(min(recipe.batch_size, len(data.train)))
    batch = next(iter(data.train.subset(rows_B).batches(batch_size=len(rows_B), seed=0, device=device).epoch(0)))
    return start(network, Supervised(), recipe.lasting(1), device=device), batch


def _faster(seconds: dict[Precision, float], device: torch.device) -> Precision:
    fp32, bf16 = seconds["fp32"], seconds["bf16"]
    long_enough = device.type != "cpu" or fp32 > 0.05
    chosen: Precision = "bf16" if bf16 < FASTER * fp32 and long_enough else "fp32"
    log.info("A step takes %.0f ms in fp32 and %.0f ms in bf16: using %s", 1e3 * fp32, 1e3 * bf16, chosen)
    return chosen
