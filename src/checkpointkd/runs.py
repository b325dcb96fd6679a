"""One run, from its settings to a finished folder: what `train` and `distill` have in common."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .data import Data, load_test, settings_of
from .errors import require
from .files import locked
from .loop import fit, measure, predict, start
from .models import try_out
from .settings import Precision, Progress, Recipe, one_of
from .trajectory import RunFolder, Trajectory, fresh_network, open_trajectory

log = logging.getLogger("checkpointkd")


def carry_out(
    model: str,
    *,
    kind: str,
    out: Path,
    data: Data,
    recipe: Recipe,
    save_every: int | None,
    seed: int,
    precision: Precision,
    device: torch.device,
    progress: Progress | None,
    objective: nn.Module,
    more: dict[str, Any] | None = None,
    notes: dict[str, Any] | None = None,
) -> Trajectory:
    """Carry out one run in its folder, from wherever it stands, and measure its last network on the test images.

    `kind` and `more` are part of what the run is, `notes` are kept beside it. Raises UserError when the folder holds
    something else, when the network can't learn from the images, and when the loss stops being a number.
    """
    one_of("precision", precision, Precision)
    every = max(1, recipe.epochs // 20) if save_every is None else save_every
    require(every >= 1, f"a checkpoint every {every} epochs makes no sense; --save-every must be at least 1")
    mean, std = data.train.channel_statistics()
    run = {
        "kind": kind,
        "model": model,
        "classes": data.classes,
        "data": data.identity,
        "recipe": asdict(recipe),
        "save_every": every,
        "seed": seed,
        "precision": precision,
        **(more or {}),
    }
    normalisation = {"mean": mean, "std": std}  # follows from the data
    network = fresh_network({**run, **normalisation})  # first of all: an unknown model leaves no folder behind
    try_out(network, data.train.take(torch.arange(2)).clean(), classes=len(data.classes), model=model)
    network = fresh_network({**run, **normalisation})  # untouched by the trial
    with locked(out):
        folder = RunFolder(out)
        stored = folder.open(run, notes={**normalisation, "device": str(device), **(notes or {})})
        if folder.complete:
            log.info("%s is complete already (%d epochs); nothing to do", out, recipe.epochs)
            return open_trajectory(out)
        state = start(network, objective, recipe, device=device)
        if stored is not None:
            state.restore(stored)
            require(0 <= state.epoch <= recipe.epochs, f"{out / 'state.bin'} is damaged: it is at epoch {state.epoch}")
            log.info("%s continues after epoch %d of %d", out, state.epoch, recipe.epochs)
        rows = folder.rows(up_to=state.epoch)
        batches = data.train.batches(batch_size=recipe.batch_size, seed=seed, device=device, augment=recipe.augment)
        tell = progress or (lambda task, done, total: None)
        total = recipe.epochs * len(batches)
        on_step = lambda step, steps: tell(str(out), state.epoch * steps + step, total)  # noqa: E731
        began = time.perf_counter()
        for row in fit(state, batches, recipe=recipe, seed=seed, precision=precision, on_step=on_step):
            if state.epoch % every == 0 or state.epoch == recipe.epochs:
                measured = measure(predict(network, data.selection), data.selection.labels_N)
                require(
                    math.isfinite(measured["nll"]), f"after epoch {state.epoch} the network gives no finite numbers"
                )
                row = {**row, "selection_accuracy": measured["accuracy"], "selection_nll": measured["nll"]}
                folder.save_checkpoint(state.epoch, network.state_dict())
            rows.append(row)
            folder.save_epoch(rows, state.to_dict())
        test = load_test(settings_of(data.identity), progress=progress)
        folder.finish(
            {
                "epoch": state.epoch,
                "selection": measure(predict(network, data.selection), data.selection.labels_N),
                "test": measure(predict(network, test), test.labels_N),
                "test_images": len(test),
                "seconds": round(sum(row["seconds"] for row in rows), 3),
                "wall_seconds_since_start_or_resume": round(time.perf_counter() - began, 3),
            }
        )
    return open_trajectory(out)
