"""One run, from its settings to a complete run directory: what training and distillation have in common."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import records
from ..checkpoints import RunDir, Trajectory, initial_network, open_trajectory
from ..config import (
    CheckpointDtype,
    LabelLoss,
    OnProgress,
    Precision,
    PrecisionChoice,
    Recipe,
    check_choice,
)
from ..data import Data, EpochLoader, config_of, load_test
from ..data.mixing import MixedBatches
from ..errors import Diverged, UserError, pluralize
from ..losses import Supervised
from ..models import Network, build_network, check_trainable, read_config
from ..ranks import Ranks, joined, synchronize_batch_norm, world_size
from ..records.base import Measured
from ..records.runs import BestEpoch, DistillRecord, OwnRunRecord, RunResult, TrainRecord, run_differences
from .averaged_run import AveragedRun
from .checks import (
    check_global_batch,
    check_settings,
    check_single_images,
    compiler_errors,
    has_unused_parameters,
)
from .loop import Row, State, fit, start
from .precision import MIN_STEPS_TO_BENCHMARK, benchmark_precision
from .saved import as_saved, measured_on, tensors_to_save

log = logging.getLogger("checkpointkd")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """The settings of one run, whatever it learns from.

    `save_every` is None for a twentieth of the run. `checkpoint_dtype` rounds checkpoints when they are saved and
    measures what was saved; training itself goes on unrounded. `best_of_last_ten` also measures the test images after
    each of the last ten epochs. Without `evaluate_test` the test images are left alone. Without `verbose` the start of
    a run is not logged. `init` names the weights that the network starts from, see `initial_network`. `accumulate` is
    the number of parts into which each batch is split. `save_state_every_steps` also saves the state within epochs.
    """

    model: str
    out: Path
    recipe: Recipe
    device: torch.device
    save_every: int | None = None
    seed: int = 0
    precision: PrecisionChoice = "auto"
    compile: bool = False
    local_batch_norm: bool = False
    accumulate: int = 1
    save_state_every_steps: int | None = None
    best_of_last_ten: bool = False
    checkpoint_dtype: CheckpointDtype = "float32"
    evaluate_test: bool = True
    verbose: bool = True
    init: str | None = None

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PrecisionChoice)
        check_choice("checkpoint dtype", self.checkpoint_dtype, CheckpointDtype)
        if self.interval < 1:
            raise UserError(f"--save-every must be at least 1, not {self.save_every}")
        if self.accumulate < 1:
            raise UserError(f"--accumulate must be at least 1, not {self.accumulate}")
        if self.save_state_every_steps is not None and self.save_state_every_steps < 1:
            raise UserError(f"--save-state-every-steps must be at least 1, not {self.save_state_every_steps}")

    @property
    def interval(self) -> int:
        """Epochs from one checkpoint to the next."""
        return max(1, self.recipe.epochs // 20) if self.save_every is None else self.save_every


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a run learns from, and how its record says so.

    `identity` holds the record's fields that must match when the run continues. `metadata` returns those that need not;
    it and `objective`, which takes the network, are called only for a run that is not complete. `wrap_batches` may
    attach teacher logits to the batches.
    """

    record: type[TrainRecord] | type[DistillRecord]
    identity: dict[str, Any]
    objective: Callable[[Network], nn.Module]
    metadata: Callable[[], dict[str, Any]] = dict
    wrap_batches: Callable[[EpochLoader, Precision], EpochLoader] = lambda batches, precision: batches


def from_labels(smoothing: float = 0.0, loss: LabelLoss = "cross-entropy") -> Method:
    """Return the method of a run without a teacher. Raises UserError for settings that `Supervised` refuses."""
    objective = Supervised(smoothing=smoothing, loss=loss)
    identity = {"label_smoothing": smoothing, "loss": loss}
    return Method(record=TrainRecord, identity=identity, objective=lambda network: objective)


def run_training(
    spec: RunSpec,
    data: Data,
    method: Method,
    *,
    on_row: Callable[[Row], None] = lambda row: None,
    on_progress: OnProgress | None = None,
) -> Trajectory:
    """Carry out one run in its directory, from wherever it stands, and measure its last network on the test images.

    A complete run is returned as it is: no teacher is loaded, nothing is trained. `on_row` gets each epoch's row once
    the epoch is saved, and may stop the run by raising.

    Raises:
        UserError: If the directory holds another run or anything else, if the network cannot learn from the images, or
            if the options contradict each other.
        Diverged: If the loss becomes NaN or infinite.
    """
    if spec.best_of_last_ten and data.record.select_on != "test":
        raise UserError(
            "--best-of-last-ten measures the test images ten times, but --select-on val allows one measurement. "
            "Add --select-on test, as the authors did."
        )
    with joined(spec.device) as ranks:  # the main process decides: the others may see the folder late
        complete = ranks.from_main(lambda: _complete_run(spec, data, method) is not None)
    if complete:
        return open_trajectory(spec.out)
    network, init_sha256 = _build(spec, data)
    images_BCHW = data.train.subset(torch.arange(2)).to_float()
    check_trainable(deepcopy(network), images_BCHW, classes=len(data.classes), model=spec.model)
    check_single_images(spec.recipe, network, data, model=spec.model, accumulate=spec.accumulate)
    check_settings(spec.recipe, network, data)
    metadata = method.metadata()
    objective = method.objective(network)
    with joined(spec.device) as ranks, ranks.locked(spec.out):
        folder = RunDir(spec.out)

        def opened() -> tuple[Precision, Any]:
            precision = folder.precision() if spec.precision == "auto" else spec.precision
            if precision is None:
                long_enough = spec.recipe.epochs * _steps_per_epoch(spec, data) >= MIN_STEPS_TO_BENCHMARK
                share = math.ceil(spec.recipe.batch_size / ranks.world_size)
                recipe = replace(spec.recipe, batch_size=share)
                precision = benchmark_precision(deepcopy(network), data, recipe, spec.device) if long_enough else "fp32"
            fields = {**_common_fields(spec, data, precision, init_sha256), **method.identity, **metadata}
            return precision, folder.open(method.record(**fields))

        precision, stored = ranks.from_main(opened)
        ranks.check_sees(spec.out / "run.json")
        if ranks.from_main(lambda: folder.complete):  # by another process, meanwhile
            return open_trajectory(spec.out)
        if stored is None and spec.verbose:
            _log_start(spec, data)
        with ranks.alike():
            check_global_batch(spec.recipe, ranks, accumulate=spec.accumulate)
            if ranks.world_size > 1 and not spec.local_batch_norm:
                synchronize_batch_norm(network, device=spec.device)
        state = start(network, objective, spec.recipe, device=spec.device, precision=precision)
        if spec.compile:
            network.compile()
        if stored is not None:
            with ranks.alike():
                state.restore(stored)
            if not 0 <= state.epoch <= spec.recipe.epochs:
                raise UserError(f"{spec.out / 'state.bin'} is damaged: it is of epoch {state.epoch}")
            done = "" if state.partial is None else f" and {pluralize(state.partial.step, 'step')}"
            log.info("%s continues after epoch %d of %d%s", spec.out, state.epoch, spec.recipe.epochs, done)
        batches = data.train.batches(
            batch_size=spec.recipe.batch_size,
            seed=spec.seed,
            device=spec.device,
            augmentation=spec.recipe.augmentation,
            ranks=ranks,
        )
        batches = method.wrap_batches(batches, precision)
        if spec.recipe.mixes:
            mixing = {"mixup": spec.recipe.mixup, "cutmix": spec.recipe.cutmix, "classes": len(data.classes)}
            batches = MixedBatches(batches, seed=spec.seed, ranks=ranks, **mixing)
        with compiler_errors() if spec.compile else contextlib.nullcontext():
            _train(spec, data, folder, state, batches, precision, ranks, on_row=on_row, on_progress=on_progress)
    return open_trajectory(spec.out)


def _train(
    spec: RunSpec,
    data: Data,
    folder: RunDir,
    state: State,
    batches: EpochLoader,
    precision: Precision,
    ranks: Ranks,
    *,
    on_row: Callable[[Row], None],
    on_progress: OnProgress | None,
) -> None:
    """Train to the last epoch, saving each, then measure and finish."""
    began = time.perf_counter()
    rows = ranks.from_main(lambda: folder.rows(up_to=state.epoch))
    total = spec.recipe.epochs * len(batches)

    def on_step(step: int, steps: int) -> None:
        if on_progress is not None and ranks.is_main:
            on_progress(str(spec.out), state.epoch * steps + step, total)

    test = load_test(config_of(data.record), on_progress=on_progress) if spec.evaluate_test else None
    averaged = None
    if state.average is not None:
        averaged = AveragedRun(folder, state.average, ranks, dtype=spec.checkpoint_dtype, up_to=state.epoch)
    val: Measured | None = None  # of the last network
    training = fit(
        state,
        batches,
        recipe=spec.recipe,
        seed=spec.seed,
        precision=precision,
        on_step=on_step,
        ranks=ranks,
        accumulate=spec.accumulate,
        save_every=spec.save_state_every_steps,
        on_save=lambda: ranks.from_main(lambda: folder.save_state(state.to_dict())),
        unused=ranks.world_size > 1 and has_unused_parameters(state, data),
    )
    for row in training:
        if state.epoch % spec.interval == 0 or state.epoch == spec.recipe.epochs:
            saved = as_saved(state.model, spec.checkpoint_dtype)
            measured = measured_on(saved, data.val, ranks)
            if not math.isfinite(measured.nll):
                with ranks.alike():
                    raise Diverged(f"The network's logits are not finite after epoch {state.epoch}")
            row = {**row, "val_accuracy": measured.accuracy, "val_nll": measured.nll}
            val = measured if state.epoch == spec.recipe.epochs else None
            tensors = tensors_to_save(saved, spec.checkpoint_dtype)
            ranks.from_main(lambda: folder.save_checkpoint(state.epoch, tensors))  # noqa: B023 - called at once
        if spec.best_of_last_ten and test is not None and state.epoch > spec.recipe.epochs - 10:
            row = {
                **row,
                "test_accuracy": measured_on(as_saved(state.model, spec.checkpoint_dtype), test, ranks).accuracy,
            }
        rows.append(row)
        if averaged is not None:
            averaged.save_epoch(row, data.val, checkpoint="val_accuracy" in row)
        ranks.from_main(lambda: folder.save_epoch(rows, state.to_dict()))
        on_row(row)
    network = as_saved(state.model, spec.checkpoint_dtype)
    val = val or measured_on(network, data.val, ranks)
    tested = None
    if test is not None:
        tested = val if data.record.select_on == "test" else measured_on(network, test, ranks)
    best = max(rows[-10:], key=lambda row: row["test_accuracy"]) if spec.best_of_last_ten else None
    result = RunResult(
        epoch=state.epoch,
        val=val,
        test=tested,
        test_images=None if test is None else len(test),
        best_of_last_ten=None if best is None else BestEpoch(epoch=best["epoch"], accuracy=best["test_accuracy"]),
        seconds=round(sum(row["seconds"] for row in rows), 3),
        wall_seconds_since_start_or_resume=round(time.perf_counter() - began, 3),
    )
    if averaged is not None:
        averaged.finish(result, data, test)
    ranks.from_main(lambda: folder.finish(result))


def _complete_run(spec: RunSpec, data: Data, method: Method) -> Trajectory | None:
    """The run in the directory, if it is complete. Raises UserError if it is another one, or a trial of a search."""
    folder = RunDir(spec.out)
    stored = folder.record() if folder.complete else None
    if stored is None:
        return None
    if isinstance(stored, OwnRunRecord) and stored.averaged:
        raise UserError(
            f"{spec.out} holds the moving average of the weights of {spec.out.parent}. Choose another --out."
        )
    precision = stored.precision if spec.precision == "auto" else spec.precision
    init_sha256 = None if spec.init is None else _build(spec, data)[1]
    asked = {**_common_fields(spec, data, precision, init_sha256), **method.identity}
    kind = method.record.__struct_config__.tag
    identity = {"kind": kind} | {name: value for name, value in asked.items() if name not in records.METADATA}
    folder.refuse_another(run_differences(records.plain(identity), records.identity_of(stored)))
    with contextlib.suppress(OSError):  # killed between the last two steps of `RunDir.finish`
        (spec.out / "state.bin").unlink(missing_ok=True)
    run = open_trajectory(spec.out)
    result = run.result()
    if spec.evaluate_test and (result is None or result.test is None):
        raise UserError(f"{spec.out} is a trial or a pilot run, which has no test accuracy. Choose another --out.")
    if spec.verbose:
        log.info("%s is already complete (%s): nothing to do", spec.out, pluralize(spec.recipe.epochs, "epoch"))
    return run


def _common_fields(spec: RunSpec, data: Data, precision: Precision, init_sha256: str | None) -> dict[str, Any]:
    """The record's fields that all methods share."""
    mean, std = data.train.channel_statistics()
    return {
        "model": spec.model,
        "classes": tuple(data.classes),
        "data": data.record,
        "mean": tuple(mean),
        "std": tuple(std),
        "seed": spec.seed,
        "precision": precision,
        "provenance": records.provenance(),
        "network_config": read_config(spec.model),
        "recipe": spec.recipe,
        "save_every": spec.interval,
        "best_of_last_ten": spec.best_of_last_ten,
        "checkpoint_dtype": spec.checkpoint_dtype,
        "device": str(spec.device),
        "batch_norm_processes": world_size() if spec.local_batch_norm else 1,
        "accumulate": spec.accumulate,
        "init": spec.init,
        "init_sha256": init_sha256,
    }


def _build(spec: RunSpec, data: Data) -> tuple[Network, str | None]:
    """Return the network before its training, and the hash of the weights that it starts from; None if random."""
    mean, std = data.train.channel_statistics()

    def build(classes: int, pretrained: bool) -> Network:
        options: Any = {"mean": mean, "std": std, "seed": spec.seed, "pretrained": pretrained}
        return build_network(spec.model, num_classes=classes, in_channels=len(mean), **options)

    return initial_network(spec.init, build, classes=len(data.classes), model=spec.model)


def _steps_per_epoch(spec: RunSpec, data: Data) -> int:
    return math.ceil(len(data.train) / spec.recipe.batch_size)


def _log_start(spec: RunSpec, data: Data) -> None:
    log.info(
        "%s: %s of %s, batch size %d, learning rate %g (%s), %sa checkpoint every %s",
        spec.out,
        pluralize(spec.recipe.epochs, "epoch"),
        pluralize(_steps_per_epoch(spec, data), "step"),
        spec.recipe.batch_size,
        spec.recipe.learning_rate,
        spec.recipe.lr_schedule,
        "".join(f"{part}, " for part in _special(spec.recipe)),
        pluralize(spec.interval, "epoch"),
    )
    if spec.recipe.batch_size > 2 * len(data.train):
        log.warning(
            "The batch size %d is larger than the %d training images, so an epoch is one step. "
            "Give a smaller --batch-size.",
            spec.recipe.batch_size,
            len(data.train),
        )


def _special(recipe: Recipe) -> list[str]:
    """Return the settings of a recipe that are not those of plain SGD."""
    named = {
        "warm-up": recipe.warmup,
        "clip norm": recipe.clip_norm,
        "layer decay": recipe.layer_decay,
        "label smoothing": recipe.label_smoothing,
        "mixup": recipe.mixup,
        "CutMix": recipe.cutmix,
        "erasing": recipe.erasing,
        "EMA": recipe.ema,
    }
    augment = recipe.auto_augment
    return [
        *([] if recipe.optimizer == "sgd" else [recipe.optimizer]),
        *([] if augment == "none" else [augment]),
        *(f"{name} {value:g}" for name, value in named.items() if value),
    ]
