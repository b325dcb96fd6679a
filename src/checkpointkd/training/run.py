"""One run, from its settings to a finished folder: what `train` and `distill` have in common."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import RunDir, Trajectory, build_from_run, open_trajectory
from ..config import CheckpointDtype, OnProgress, Precision, PrecisionChoice, Recipe, check_choice
from ..data import Batch, Data, EpochLoader, config_of, load_test
from ..errors import Diverged, UserError, pluralize
from ..losses import Supervised
from ..metrics import measure, predict
from ..models import check_trainable
from ..storage import locked
from .loop import Row, State, fit, start, step

log = logging.getLogger("checkpointkd")

MIN_STEPS_TO_BENCHMARK = 100  # steps; the measurement itself takes up to twelve


def run_training(
    model: str,
    *,
    kind: str,
    out: Path,
    data: Data,
    recipe: Recipe,
    save_every: int | None,
    seed: int,
    precision: PrecisionChoice,
    compile: bool,
    device: torch.device,
    on_progress: OnProgress | None,
    objective: nn.Module,
    wrap_batches: Callable[[EpochLoader, Precision], EpochLoader] = lambda batches, precision: batches,
    best_of_last_ten: bool = False,
    checkpoint_dtype: CheckpointDtype = "float32",
    evaluate_test: bool = True,
    verbose: bool = True,
    on_row: Callable[[Row], None] = lambda row: None,
    more: dict[str, Any] | None = None,
    notes: dict[str, Any] | None = None,
) -> Trajectory:
    """Carry out one run in its folder, from wherever it stands, and measure its last network on the test images.

    `kind` and `more` are part of what the run is, `notes` are kept beside it; `teach` may put batches that know more in
    the place of the run's; `on_row` is told each epoch's row when the epoch is kept, and may stop the run by raising.
    `checkpoint_dtype` rounds checkpoints to 16 bits when they are saved, and measures what was saved; training itself
    goes on unrounded.
    `best_of_last_ten` measures the test images after each of the last ten epochs, too; without `touch_test` they are
    left alone; without `announce` nothing is said of a run that begins.

    Raises UserError when the folder holds something else, when the network can't learn from the images, and when the
    loss stops being a number.
    """
    check_choice("precision", precision, PrecisionChoice)
    if not (not best_of_last_ten or data.identity["select_on"] == "test"):
        raise UserError(
            "the best of the last ten epochs is found on the test images, which --select-on val keeps for one last "
            "measurement; say --select-on test, as the authors did"
        )
    every = max(1, recipe.epochs // 20) if save_every is None else save_every
    if not every >= 1:
        raise UserError(f"a checkpoint every {every} epochs makes no sense; --save-every must be at least 1")
    mean, std = data.train.channel_statistics()
    normalization = {"mean": mean, "std": std}  # follows from the data
    known = {"model": model, "classes": data.classes, "seed": seed, **normalization}
    network = build_from_run(known)  # first of all: an unknown model leaves no folder behind
    check_trainable(network, data.train.subset(torch.arange(2)).to_float(), classes=len(data.classes), model=model)
    network = build_from_run(known)  # untouched by the trial
    steps = recipe.epochs * math.ceil(len(data.train) / recipe.batch_size)
    with locked(out):
        folder = RunDir(out)
        chosen = folder.precision() if precision == "auto" else precision
        if chosen is None:
            long_enough = steps >= MIN_STEPS_TO_BENCHMARK
            chosen = benchmark_precision(build_from_run(known), data, recipe, device) if long_enough else "fp32"
        run = {
            "kind": kind,
            "model": model,
            "classes": data.classes,
            "data": data.identity,
            "recipe": asdict(recipe),
            "save_every": every,
            "seed": seed,
            "precision": chosen,
            "best_of_last_ten": best_of_last_ten,
            "checkpoint_dtype": checkpoint_dtype,
            **(more or {}),
        }
        stored = folder.open(run, notes={**normalization, "device": str(device), **(notes or {})})
        if folder.complete:
            if verbose:
                log.info("%s is complete already (%d epochs); nothing to do", out, recipe.epochs)
            run = open_trajectory(out)
            if evaluate_test and "test" not in (run.result() or {}):
                raise UserError(f"{out} is a trial of a search, which left the test images alone; choose another --out")
            return run
        state = start(network, objective, recipe, device=device)
        if compile:
            network.compile()
        if stored is None and verbose:
            log.info(
                "%s: %s of %s, batch %d, learning rate %g, %s; a checkpoint every %s",
                out,
                pluralize(recipe.epochs, "epoch"),
                pluralize(steps // recipe.epochs, "step"),
                recipe.batch_size,
                recipe.learning_rate,
                recipe.lr_schedule,
                pluralize(every, "epoch"),
            )
        if stored is not None:
            state.restore(stored)
            if not 0 <= state.epoch <= recipe.epochs:
                raise UserError(f"{out / 'state.bin'} is damaged: it is at epoch {state.epoch}")
            log.info("%s continues after epoch %d of %d", out, state.epoch, recipe.epochs)
        rows = folder.rows(up_to=state.epoch)
        batches = data.train.batches(batch_size=recipe.batch_size, seed=seed, device=device, augment=recipe.augment)
        batches = wrap_batches(batches, chosen)
        tell = on_progress or (lambda task, done, total: None)
        total = recipe.epochs * len(batches)
        on_step = lambda step, steps: tell(str(out), state.epoch * steps + step, total)  # noqa: E731
        began = time.perf_counter()
        test = load_test(config_of(data.identity), on_progress=on_progress) if evaluate_test else None
        selected = None  # the last network on the selection images
        for row in fit(state, batches, recipe=recipe, seed=seed, precision=chosen, on_step=on_step):
            if state.epoch % every == 0 or state.epoch == recipe.epochs:
                kept = with_fp16_weights(network) if checkpoint_dtype == "float16" else network
                measured = measure(predict(kept, data.val), data.val.labels_N)
                if not math.isfinite(measured["nll"]):
                    raise Diverged(f"after epoch {state.epoch} the network gives no finite numbers")
                row = {**row, "val_accuracy": measured["accuracy"], "val_nll": measured["nll"]}
                selected = measured if state.epoch == recipe.epochs else None
                folder.save_checkpoint(
                    state.epoch, fp16_state_dict(network) if checkpoint_dtype == "float16" else network.state_dict()
                )
            if best_of_last_ten and test is not None and state.epoch > recipe.epochs - 10:
                kept = with_fp16_weights(network) if checkpoint_dtype == "float16" else network
                row = {**row, "test_accuracy": measure(predict(kept, test), test.labels_N)["accuracy"]}
            rows.append(row)
            folder.save_epoch(rows, state.to_dict())
            on_row(row)
        network = with_fp16_weights(network) if checkpoint_dtype == "float16" else network
        selected = selected or measure(predict(network, data.val), data.val.labels_N)
        tested = {}
        if test is not None:
            same = data.identity["select_on"] == "test"  # which selects on the test images
            found = selected if same else measure(predict(network, test), test.labels_N)
            tested = {"test": found, "test_images": len(test)}
        if best_of_last_ten:
            best = max(rows[-10:], key=lambda row: row["test_accuracy"])
            tested["best_of_last_ten"] = {"epoch": best["epoch"], "accuracy": best["test_accuracy"]}
        folder.finish(
            {
                "epoch": state.epoch,
                "val": selected,
                **tested,
                "seconds": round(sum(row["seconds"] for row in rows), 3),
                "wall_seconds_since_start_or_resume": round(time.perf_counter() - began, 3),
            }
        )
    return open_trajectory(out)


def fp16_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """A network's tensors in 16 bits; but for those that they can't hold, and whole numbers."""
    tensors = {}
    for name, tensor in network.state_dict().items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        tensors[name] = half if bool(half.isfinite().all()) else tensor
    return tensors


def with_fp16_weights(network: nn.Module) -> nn.Module:
    """The network with its weights as `halved` keeps them; the given one stays as it is."""
    copy = deepcopy(network)
    copy.load_state_dict(fp16_state_dict(network))
    return copy


def benchmark_precision(network: nn.Module, data: Data, recipe: Recipe, device: torch.device) -> Precision:
    """bf16 where a training step in it was measured to take less than 0.7 of the time that it takes in fp32, else fp32.

    Near 1, and for steps of milliseconds, the measurement would choose by chance, and runs that should be equal would
    differ; on an idle processor networks for which bf16 is made are far from it. The network is spent.
    """
    if not _computes_in_bf16(device):
        return "fp32"
    log.info("measuring a few steps in fp32 and in bf16")
    seconds = _seconds_a_step(network, data, recipe, device, ("fp32", "bf16"))
    return _faster(seconds, device)


def benchmark_training(
    model: str, data: Data, recipe: Recipe, *, precision: PrecisionChoice, device: torch.device
) -> dict[str, Any]:
    """What training this network on these images takes on this device: the `precision` that suits it, or that is asked
    for, `seconds_a_step` in it, `steps_an_epoch`, and the `megabytes` of a checkpoint."""
    mean, std = data.train.channel_statistics()
    known = {"model": model, "classes": data.classes, "seed": 0, "mean": mean, "std": std}
    network = build_from_run(known)
    check_trainable(network, data.train.subset(torch.arange(2)).to_float(), classes=len(data.classes), model=model)
    both: tuple[Precision, ...] = ("fp32", "bf16") if _computes_in_bf16(device) else ("fp32",)
    seconds = _seconds_a_step(network, data, recipe, device, both if precision == "auto" else (precision,))
    chosen = _faster(seconds, device) if len(seconds) == 2 else next(iter(seconds))
    return {
        "precision": chosen,
        "seconds_a_step": round(seconds[chosen], 6),
        "steps_an_epoch": math.ceil(len(data.train) / recipe.batch_size),
        "megabytes": round(sum(one.nbytes for one in network.state_dict().values()) / 1e6, 3),
    }


def steps_in(
    seconds: float,
    model: str,
    data: Data,
    recipe: Recipe,
    *,
    precision: Precision,
    device: torch.device,
    begin: Callable[[], Any] = lambda: None,
) -> float:
    """How many steps a second a network trains for about so many seconds, which begin when `begin` returns."""
    mean, std = data.train.channel_statistics()
    network = build_from_run({"model": model, "classes": data.classes, "seed": 0, "mean": mean, "std": std})
    state, batch = _begin_steps(network, data, recipe, device)

    def take_step() -> float:
        step(state, batch, precision=precision, train_fraction=0.0)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(3):  # the first prepare kernels
        take_step()
    begin()
    began, ended, steps = time.perf_counter(), 0.0, 0
    while ended - began < seconds:
        ended, steps = take_step(), steps + 1
    return steps / (ended - began)


def _computes_in_bf16(device: torch.device) -> bool:
    return device.type != "mps" and (device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False))


def _seconds_a_step(
    network: nn.Module, data: Data, recipe: Recipe, device: torch.device, precisions: Sequence[Precision]
) -> dict[Precision, float]:
    """How long a training step takes in each precision, measured in turn; the network is spent."""
    state, batch = _begin_steps(network, data, recipe, device)
    seconds: dict[Precision, list[float]] = {precision: [] for precision in precisions}
    for trial in range(6):
        for precision, measured in seconds.items():
            if trial >= 3 and measured[-1] > 2.0:
                continue  # a network so slow that three steps tell
            began = time.perf_counter()
            step(state, batch, precision=precision, train_fraction=0.0)
            if device.type == "cuda":
                torch.cuda.synchronize()
            measured.append(time.perf_counter() - began)
    return {precision: min(measured[1:]) for precision, measured in seconds.items()}  # the first step prepares kernels


def _begin_steps(network: nn.Module, data: Data, recipe: Recipe, device: torch.device) -> tuple[State, Batch]:
    """A network that can be trained, and a batch to do it with again and again."""
    rows_B = torch.arange(min(recipe.batch_size, len(data.train)))
    batch = next(iter(data.train.subset(rows_B).batches(batch_size=len(rows_B), seed=0, device=device).epoch(0)))
    return start(network, Supervised(), replace(recipe, epochs=1), device=device), batch


def _faster(seconds: dict[Precision, float], device: torch.device) -> Precision:
    fp32, bf16 = seconds["fp32"], seconds["bf16"]
    long_enough = device.type != "cpu" or fp32 > 0.05
    chosen: Precision = "bf16" if bf16 < 0.7 * fp32 and long_enough else "fp32"
    log.info(
        "a step takes %.0f ms in fp32, %.0f ms in bf16: computing in %s (bf16 where it takes below 0.7 of the time)",
        1e3 * fp32,
        1e3 * bf16,
        chosen,
    )
    return chosen
