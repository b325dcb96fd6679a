"""The training loop of teachers, students and decoders, which differ only in their objective.

`fit` is a generator that yields one plain row per epoch. Saving, scoring, logging and stopping are ordinary lines of
the caller. Letters in names: N images, B batch, C channels, H W height and width, K classes.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import Precision, Recipe
from ..data import Batch, EpochLoader
from ..device import autocast
from ..errors import Diverged, UserError, first_line
from ..ranks import ALONE, Ranks
from ..seeding import derive_seed
from .parameters import decay_after, parameter_groups, update_average

Row = dict[str, Any]
OnStep = Callable[[int, int], None]  # gets the completed steps of this epoch, and the steps of an epoch


@dataclass(frozen=True)
class Partial:
    """The first steps of an epoch."""

    step: int  # completed steps
    sums: Tensor  # of losses, correct predictions and examples, over all processes
    generators: list[dict[str, dict[str, Tensor]]]  # states of the random generators of each process
    seconds: float


@dataclass
class State:
    """Everything that training changes. With the settings it determines all that follows."""

    model: nn.Module
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # completed epochs
    partial: Partial | None = None  # of the next epoch
    average: nn.Module | None = None  # the exponential moving average of the weights, `Recipe.ema`
    scaler: torch.amp.GradScaler | None = None  # of the loss, in fp16

    def to_dict(self) -> dict[str, Any]:
        """Return what resuming needs, as plain nested values."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "partial": None if self.partial is None else vars(self.partial),
            **({} if self.average is None else {"average": self.average.state_dict()}),
            **({} if self.scaler is None else {"scaler": self.scaler.state_dict()}),
        }

    def restore(self, stored: dict[str, Any]) -> None:
        """Take over what `to_dict` returned. Raises UserError if it belongs to another network."""
        try:
            self.model.load_state_dict(stored["model"])
            self.objective.load_state_dict(stored["objective"])
            self.optimizer.load_state_dict(stored["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(stored["average"])
            if self.scaler is not None:
                self.scaler.load_state_dict(stored["scaler"])
            self.epoch = int(stored["epoch"])
            self.partial = Partial(**stored["partial"]) if stored.get("partial") else None
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"The stored state does not fit this run ({first_line(error)}). Remove the run directory to "
                f"start again."
            ) from None


def start(
    model: nn.Module, objective: nn.Module, recipe: Recipe, *, device: torch.device, precision: Precision = "fp32"
) -> State:
    """Return the state before the first epoch. The objective's own layers train along with the model."""
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective.to(device)
    groups = parameter_groups(model, objective, recipe)
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            groups,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
        )
    else:
        adam = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        optimizer = adam(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    average = None if recipe.ema is None else deepcopy(model).requires_grad_(False).eval()
    scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
    return State(model, objective, optimizer, average=average, scaler=scaler)


def fit(
    state: State,
    batches: EpochLoader,
    *,
    recipe: Recipe,
    seed: int,
    precision: Precision = "fp32",
    on_step: OnStep | None = None,
    ranks: Ranks = ALONE,
    unused: bool = False,
    accumulate: int = 1,
    save_every: int | None = None,
    on_save: Callable[[], None] = lambda: None,
) -> Iterator[Row]:
    """Train from where the state is to the recipe's last epoch. Yield one row after each epoch.

    A row holds `epoch` (completed epochs), `loss` (mean over the epoch's examples), `train_accuracy` (in [0, 1], if the
    objective returns logits), `learning_rate` (of the last step) and `seconds`. Nothing is read back from the device
    within an epoch.

    Each epoch seeds PyTorch's global generators from (seed, epoch), so that dropout, too, resumes bit for bit. The
    caller's generator states are restored before each row.

    With several processes, `batches` must yield the share of `ranks` of each global batch, and all processes must have
    the same state. DistributedDataParallel averages gradients. Set `unused` if some parameters have no gradient in some
    steps. Dropout masks differ between processes.

    Each batch is computed in `accumulate` parts, whose gradients are added. `on_save` is called within epochs, every
    `save_every` steps: training continues from there with the same result.

    Raises:
        Diverged: At the end of an epoch whose loss became NaN or infinite. The state cannot be used any more.

    >>> from checkpointkd.data import DataConfig, load_data
    >>> from checkpointkd.losses import Supervised
    >>> from checkpointkd.models import build_network
    >>> data, recipe = load_data(DataConfig(train_images=100)), Recipe(epochs=2, batch_size=50)
    >>> network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.4])
    >>> state = start(network, Supervised(), recipe, device=torch.device("cpu"))
    >>> batches = data.train.batches(batch_size=50, seed=0, device="cpu")
    >>> [row["epoch"] for row in fit(state, batches, recipe=recipe, seed=0)]
    [1, 2]
    """
    device = next(state.model.parameters()).device
    learner = ranks.wrap(Learner(state.model, state.objective), unused=unused)
    while state.epoch < recipe.epochs:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            own_seed = derive_seed("epoch", seed, state.epoch, ranks.rank)
            if state.partial is None:
                ranks.seed(derive_seed("epoch", seed, state.epoch), own_seed)
            else:
                ranks.restore_generators(state.partial.generators, own_seed=own_seed)
            settings = {"precision": precision, "accumulate": accumulate, "clip_norm": recipe.clip_norm}
            take_step = functools.partial(step, state, learner=learner, **settings)
            hooks = {"on_step": on_step, "save_every": save_every, "on_save": on_save}
            row = _train_epoch(state, batches, recipe, take_step, ranks=ranks, device=device, **hooks)
        yield row


class Learner(nn.Module):
    """A network and its objective as one module, so that gradients of the objective's layers are averaged too."""

    def __init__(self, model: nn.Module, objective: nn.Module) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, train_fraction: float) -> tuple[Tensor, Tensor | None]:
        return self.objective(self.model, batch, train_fraction)


def _train_epoch(
    state: State,
    batches: EpochLoader,
    recipe: Recipe,
    take_step: Callable[..., tuple[Tensor, Tensor | None]],
    *,
    ranks: Ranks,
    device: torch.device,
    on_step: OnStep | None,
    save_every: int | None,
    on_save: Callable[[], None],
) -> Row:
    began, steps, first = time.perf_counter(), len(batches), 0
    state.model.train()
    state.objective.train()
    sums = torch.zeros(3, device=device)  # of losses, correct predictions and examples
    first_bad_step = torch.full((), -1, device=device)
    learning_rate = recipe.learning_rate
    if state.partial is not None:
        began, first = began - state.partial.seconds, state.partial.step
        sums = state.partial.sums.to(device) if ranks.is_main else sums
    for number, batch in enumerate(batches.epoch(state.epoch, start=first), first):
        train_fraction = (state.epoch + number / steps) / recipe.epochs
        learning_rate = recipe.learning_rate_at(state.epoch + number / steps)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        loss, logits_BK = take_step(batch, train_fraction=train_fraction)
        if state.average is not None and recipe.ema is not None:
            update_average(state.average, state.model, decay_after(state.epoch * steps + number, recipe.ema))
        with torch.no_grad():
            count = len(batch.labels_B)
            correct = (logits_BK.argmax(-1) == batch.labels_B).sum() if logits_BK is not None else loss.new_zeros(())
            sums += torch.stack([loss.float() * count, correct.float(), loss.new_full((), count).float()])
            first_bad_step = torch.where((first_bad_step < 0) & ~loss.isfinite(), number, first_bad_step)
        if on_step is not None:
            on_step(number + 1, steps)
        if save_every is not None and (number + 1) % save_every == 0 and number + 1 < steps:
            ranks.share_buffers(state.model)
            if _first_of_all(int(first_bad_step), steps, ranks, device) < 0 and _all_finite(state.model):
                seconds, all_sums = time.perf_counter() - began, ranks.sum(sums.clone())
                state.partial = Partial(number + 1, all_sums, ranks.generators(), seconds)
                on_save()
    total_loss, total_correct, examples = ranks.sum(sums).tolist()
    bad = _first_of_all(int(first_bad_step), steps, ranks, device)
    ranks.share_buffers(state.model)
    if bad < 0 and not _all_finite(state.model):  # the last step's update is in no loss of this epoch
        bad = steps - 1
    if bad >= 0:
        rate = recipe.learning_rate_at(state.epoch + bad / steps)
        with ranks.alike():
            raise Diverged(
                f"The loss became NaN or infinite in epoch {state.epoch + 1}, step {bad + 1} of {steps}, at learning "
                f"rate {rate:.4g}. The checkpoints up to epoch {state.epoch} are intact. Try a smaller learning rate."
            )
    state.epoch, state.partial = state.epoch + 1, None
    row: Row = {"epoch": state.epoch, "loss": total_loss / examples}
    if logits_BK is not None:
        row["train_accuracy"] = total_correct / examples
    return {**row, "learning_rate": learning_rate, "seconds": round(time.perf_counter() - began, 3)}


def step(
    state: State,
    batch: Batch,
    *,
    precision: Precision,
    train_fraction: float,
    learner: nn.Module | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Do one training step: forward, loss, backward, update. The batch may be computed in `accumulate` parts.

    Returns:
        The mean loss of this process's examples, and their logits if there are any.
    """
    ranks, parts = batch.ranks, batch.split(accumulate)
    whole = accumulate == 1 and ranks.world_size == 1
    losses, logits = [], []
    state.optimizer.zero_grad(set_to_none=True)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with (
            contextlib.nullcontext() if last or not isinstance(learner, DistributedDataParallel) else learner.no_sync()
        ):
            with autocast(part.images_BCHW.device, precision):
                if learner is None:
                    loss_B, logits_BK = state.objective(state.model, part, train_fraction)
                else:
                    loss_B, logits_BK = learner(part, train_fraction)
                # DDP averages gradients over processes, but their shares of the batch may differ in size
                loss = loss_B.mean() if whole else loss_B.sum() * (ranks.world_size / (part.total or 1))
            (loss if state.scaler is None else state.scaler.scale(loss)).backward()
        losses.append(loss_B.detach())
        logits.append(logits_BK)
    if clip_norm is not None:
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
        parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    if state.scaler is None:
        state.optimizer.step()
    else:  # leaves the step out, and lowers the scale, if a gradient is infinite
        state.scaler.step(state.optimizer)
        state.scaler.update()
    if whole:
        return loss.detach(), logits[0]
    loss_B = torch.cat(losses)
    return loss_B.sum() / max(1, len(loss_B)), None if logits[0] is None else torch.cat(logits)


def _first_of_all(bad: int, steps: int, ranks: Ranks, device: torch.device) -> int:
    """Return the first step with a non-finite loss in any process, or -1."""
    if ranks.world_size == 1:
        return bad
    latest = int(ranks.max(torch.tensor(-bad if bad >= 0 else -steps, device=device)))
    return -1 if latest == -steps else -latest


def _all_finite(model: nn.Module) -> bool:
    return bool(torch.stack([tensor.isfinite().all() for tensor in model.state_dict().values()]).all())
