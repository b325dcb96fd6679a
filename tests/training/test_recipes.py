"""Recipes: learning rates equal PyTorch's schedulers, decayed parameters, clipping, and resuming with AdamW."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import checkpointkd as ckd
from checkpointkd.cli import main
from checkpointkd.config import Recipe
from checkpointkd.data import DataConfig, load_data
from checkpointkd.losses import Supervised
from checkpointkd.models import Network, build_network
from checkpointkd.recipes import RECIPES, recipe
from checkpointkd.training.loop import fit, start, step
from checkpointkd.training.precision import benchmark_precision


def _scheduled(given: Recipe) -> list[float]:
    """Return the learning rate of each epoch by PyTorch's schedulers."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=given.learning_rate)
    warmup, rest = int(given.warmup), given.epochs - int(given.warmup)
    if given.lr_schedule == "cosine":
        after: lr_scheduler.LRScheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=rest)
    elif given.lr_schedule == "milestones":
        epochs = [round(share * given.epochs) - warmup for share in given.milestones]
        after = lr_scheduler.MultiStepLR(optimizer, epochs, gamma=given.step_factor)
    else:
        after = lr_scheduler.StepLR(optimizer, given.step_every, gamma=given.step_factor)
    if warmup:
        rising = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
        after = lr_scheduler.SequentialLR(optimizer, [rising, after], milestones=[warmup])
    rates = []
    for _ in range(given.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        after.step()
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.parametrize("name", ["cifar100", "imagenet", "imagenet-cosine", "vit", "finetune", "repdistiller"])
def test_learning_rates_are_those_of_pytorchs_schedulers(name: str):
    given = recipe(name)
    assert [given.learning_rate_at(epoch) for epoch in range(given.epochs)] == pytest.approx(_scheduled(given))


def test_shorter_trainings_keep_the_shape():
    whole, short = recipe("vit"), recipe("vit", epochs=30)
    assert [short.learning_rate_at(e / 10) for e in range(300)] == pytest.approx(
        [whole.learning_rate_at(e) for e in range(300)]
    )


@pytest.mark.parametrize("lr_schedule", ["step", "milestones"])
@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_can_lower_its_learning_rate_in_steps(name: str, lr_schedule: str):
    for epochs in (None, 20):
        given = recipe(name, lr_schedule=lr_schedule, epochs=epochs)
        assert given.learning_rate_at(given.epochs - 1) < 0.2 * given.learning_rate
        assert given.learning_rate_at(given.epochs / 5) > 0.05 * given.learning_rate


def test_weight_decay_leaves_class_tokens_and_position_embeddings_of_timm_alone():
    """DeiT's training decays neither of them, though they have three dimensions."""

    class Transformer(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(64, 10))
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))

        def no_weight_decay(self) -> set[str]:
            return {"cls_token"}

    body = Transformer()
    state = start(Network(body, mean=[0.3], std=[0.4]), Supervised(), recipe("vit"), device=torch.device("cpu"))
    decayed, others = (set(map(id, group["params"])) for group in state.optimizer.param_groups)
    assert id(body.cls_token) in others
    assert decayed == {id(body[1].weight)}


def test_weight_decay_leaves_biases_and_normalization_alone():
    network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.4])
    state = start(network, Supervised(), recipe("vit"), device=torch.device("cpu"))
    assert isinstance(state.optimizer, torch.optim.AdamW)
    decayed, others = (group["params"] for group in state.optimizer.param_groups)
    assert state.optimizer.param_groups[0]["weight_decay"] == 0.05
    assert state.optimizer.param_groups[1]["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert all(
        isinstance(network.get_submodule(names[id(p)].rpartition(".")[0]), nn.Conv2d | nn.Linear) for p in decayed
    )
    assert len(decayed) + len(others) == len(names), "each parameter is in one group"
    modules = [network.get_submodule(names[id(parameter)].rpartition(".")[0]) for parameter in others]
    assert any(isinstance(module, nn.BatchNorm2d) for module in modules)
    assert all(parameter.dim() == 1 for parameter in others)


def test_the_norm_of_the_gradient_is_limited():
    """With plain SGD, the length of a step is the learning rate times the norm of the gradient."""
    given = Recipe(epochs=1, batch_size=30, learning_rate=0.5, momentum=0.0, weight_decay=0.0, clip_norm=0.01)
    data = load_data(DataConfig(data="digits", train_images=30))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    state = start(network, Supervised(), given, device=torch.device("cpu"))
    (batch,) = data.train.batches(batch_size=30, seed=0, device="cpu").epoch(0)
    before = nn.utils.parameters_to_vector(network.parameters()).detach()
    (row,) = fit(state, _Once(batch), recipe=given, seed=0)
    moved = (nn.utils.parameters_to_vector(network.parameters()) - before).norm().item()
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-4)
    step(state, batch, precision="fp32", train_fraction=0.0)  # without a limit
    assert (nn.utils.parameters_to_vector(network.parameters()) - before).norm().item() > 10 * moved
    assert row["loss"] > 0


class _Once:
    def __init__(self, batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def epoch(self, epoch: int, *, start: int = 0):
        return iter([self.batch])


def test_a_training_with_adamw_continues_bit_for_bit(tmp_path: Path):
    options: dict = {"data": "digits", "train_images": 60, "epochs": 4, "batch_size": 20, "recipe": "vit"}
    options |= {"precision": "fp32", "save_every": 1, "save_state_every_steps": 2}
    whole = ckd.train("wrn_10_1", out=tmp_path / "whole", **options)
    steps = itertools.count()

    def interrupt(task: str, done: int, total: int) -> None:
        if total == 12 and next(steps) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ckd.train("wrn_10_1", out=tmp_path / "stopped", on_progress=interrupt, **options)
    resumed = ckd.train("wrn_10_1", out=tmp_path / "stopped", **options)
    assert resumed.last.path.read_bytes() == whole.last.path.read_bytes()
    stored = whole.run.recipe
    assert (stored.optimizer, stored.weight_decay, stored.decay_all, stored.clip_norm) == ("adamw", 0.05, False, 5.0)
    assert stored.warmup == pytest.approx(5 * 4 / 300)


def test_options_take_the_place_of_the_recipes_values(tmp_path: Path):
    run = ckd.train(
        "wrn_10_1",
        data="digits",
        train_images=60,
        epochs=3,
        optimizer="adamw",
        learning_rate=0.002,
        weight_decay=0.1,
        lr_schedule="constant",
        warmup=1.5,
        clip_norm=2.0,
        precision="fp32",
        out=tmp_path / "run",
    )
    used = run.run.recipe
    assert (used.optimizer, used.learning_rate, used.weight_decay) == ("adamw", 0.002, 0.1)
    assert (used.lr_schedule, used.warmup, used.clip_norm) == ("constant", 1.5, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--optimizer", "adamv"), "adamw"),
        (("--warmup", "5", "--epochs", "3"), "--warmup must be at least 0 and below the number of epochs, 3, not 5"),
        (("--warmup", "-1"), "--warmup must be at least 0 and below the number of epochs, 40, not -1"),
        (("--clip-norm", "0"), "--clip-norm must be finite and above 0, not 0.0"),
        (("--weight-decay", "-1"), "The weight decay must be finite and at least 0, not -1.0"),
        (("--lr-schedule", "linear"), "linear"),
        (("--recipe", "vitt"), "Did you mean 'vit'"),
    ],
)
def test_wrong_values_are_named(options: tuple[str, ...], message: str, tmp_path: Path, capsys):
    words = ("train", "wrn_10_1", "--data", "digits", "--out", str(tmp_path / "run"), *options)
    assert main(list(words)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_the_precision_can_be_measured_with_each_recipe(name: str):
    data = load_data(DataConfig(train_images=20))
    network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.4])
    assert benchmark_precision(network, data, recipe(name), torch.device("cpu")) in ("fp32", "bf16")
