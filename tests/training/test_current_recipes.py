"""EMA, mixing, fp16, layer decay and label smoothing of students; default recipes by the kind of network."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import checkpointkd as ckd
from checkpointkd.config import Recipe
from checkpointkd.data import DataConfig, InMemoryImages, load_data
from checkpointkd.errors import UserError
from checkpointkd.losses import Supervised
from checkpointkd.models import build_network
from checkpointkd.training.loop import fit, start
from checkpointkd.training.parameters import decay_after, update_average

SMALL: dict[str, Any] = {"data": "digits", "train_images": 100, "batch_size": 10, "precision": "fp32"}
EVERYTHING: dict[str, Any] = {
    "auto_augment": "randaugment",
    "erasing": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "ema": 0.9,
}


class NoBatchNorm(nn.Module):
    """A small network with layer norm only."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.norm = nn.GroupNorm(1, 8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(images_BCHW)).relu().mean((2, 3)))


def test_the_average_is_a_trajectory_of_its_own(tmp_path: Path):
    run = ckd.train("wrn_10_1", out=tmp_path / "run", epochs=4, save_every=2, ema=0.9, **SMALL)
    averaged = ckd.open_trajectory(tmp_path / "run" / "ema")
    assert list(averaged) == list(run) == [2, 4]
    assert averaged.last.sha256 != run.last.sha256
    result, rows = averaged.result(), averaged.rows()
    assert result is not None
    assert [row.val_accuracy is not None for row in rows] == [False, True, False, True]
    assert result.val.accuracy == rows[-1].val_accuracy
    measured = ckd.evaluate(f"{tmp_path}/run/ema@last", split="val")
    assert measured["ensemble"]["accuracy"] == pytest.approx(result.val.accuracy)
    student = ckd.distill(
        "wrn_10_1", teachers=[f"{tmp_path}/run/ema@last"], out=tmp_path / "student", epochs=1, allow_weak_teacher=True
    )
    assert student.result() is not None


def test_the_average_is_the_recursion_over_steps():
    """Weights and statistics: average ← d·average + (1 − d)·model after every step, with a growing decay d."""
    data = load_data(DataConfig(data="digits", train_images=60))
    recipe = Recipe(epochs=2, batch_size=20, ema=0.6)
    network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.37])
    state = start(network, Supervised(), recipe, device=torch.device("cpu"))
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    seen = 0

    def on_step(step: int, steps: int) -> None:
        nonlocal seen
        decay, seen = decay_after(seen, 0.6), seen + 1
        for name, tensor in network.state_dict().items():
            moves = tensor.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * tensor if moves else tensor.clone()

    list(fit(state, data.train.batches(batch_size=20, seed=0, device="cpu"), recipe=recipe, seed=0, on_step=on_step))
    assert seen == 6
    assert state.average is not None
    for name, tensor in state.average.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_tied_weights_move_once_per_step():
    layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    layers[1].weight = layers[0].weight
    average = deepcopy(layers)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(1)
    update_average(average, layers, 0.9)
    for before, after in zip(layers.parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.9)


def test_the_average_of_another_run_is_refused(tmp_path: Path):
    class StopError(Exception):
        pass

    def stop_in_the_second_epoch(name: str, done: int, total: int) -> None:
        if done == 15:  # of 10 steps per epoch
            raise StopError

    settings: dict[str, Any] = {**SMALL, "out": tmp_path / "run", "epochs": 2, "ema": 0.9}
    with pytest.raises(StopError):
        ckd.train("wrn_10_1", on_progress=stop_in_the_second_epoch, **settings)
    ckd.train("wrn_10_1", **{**settings, "out": tmp_path / "other", "seed": 1})
    shutil.rmtree(tmp_path / "run" / "ema")
    shutil.copytree(tmp_path / "other" / "ema", tmp_path / "run" / "ema")
    with pytest.raises(UserError, match=r"ema already holds another run \(seed 1 stored, 0 given\)"):
        ckd.train("wrn_10_1", **settings)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_all_together_resume_bit_for_bit(tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHECKPOINTKD_WORKERS", "1")
    settings = {**SMALL, **EVERYTHING, "precision": precision, "epochs": 3, "save_every": 1}
    whole = ckd.train("wrn_10_1", out=tmp_path / "whole", **settings)

    class StopError(Exception):
        pass

    def stop_in_the_second_epoch(name: str, done: int, total: int) -> None:
        if "parts" in name and done == 16:  # of 10 steps per epoch
            raise StopError

    stopped = {**settings, "save_state_every_steps": 3, "out": tmp_path / "parts"}
    with pytest.raises(StopError):
        ckd.train("wrn_10_1", on_progress=stop_in_the_second_epoch, **stopped)
    resumed = ckd.train("wrn_10_1", **stopped)
    assert resumed.last.sha256 == whole.last.sha256
    averages = [ckd.open_trajectory(tmp_path / name / "ema") for name in ("whole", "parts")]
    assert averages[0].last.sha256 == averages[1].last.sha256
    assert [row.val_nll for row in averages[0].rows()] == [row.val_nll for row in averages[1].rows()]


def test_fp16_scales_the_loss_and_learns(tmp_path: Path):
    """The scale is in the state; it halves at an infinite gradient, and that step is left out."""
    run = ckd.train("wrn_10_1", out=tmp_path / "run", epochs=6, clip_norm=5.0, **{**SMALL, "precision": "fp16"})
    result = run.result()
    assert run.run.precision == "fp16"
    assert result is not None
    assert result.val.accuracy > 0.2
    data = load_data(DataConfig(data="digits", train_images=60))
    network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.37])
    recipe = Recipe(epochs=1, batch_size=60)
    state = start(network, Supervised(), recipe, device=torch.device("cpu"), precision="fp16")
    assert state.scaler is not None
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    weights = [parameter.clone() for parameter in network.parameters()]
    batches = data.train.batches(batch_size=60, seed=0, device="cpu")
    list(fit(state, batches, recipe=recipe, seed=0, precision="fp16"))
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True)), "the step is left out"
    assert state.to_dict()["scaler"]["scale"] == pytest.approx(0.5e38)
    fresh = start(deepcopy(network), Supervised(), recipe, device=torch.device("cpu"), precision="fp16")
    fresh.restore(state.to_dict())
    assert fresh.scaler is not None
    assert fresh.scaler.get_scale() == pytest.approx(0.5e38)


def test_layer_decay_lowers_the_rate_of_early_layers():
    name = "timm:vit_tiny_patch16_224?img_size=32&patch_size=8&depth=3"
    network = build_network(name, num_classes=10, in_channels=3, mean=[0.5] * 3, std=[0.2] * 3)
    recipe = Recipe(epochs=1, batch_size=10, optimizer="adamw", learning_rate=1e-3, layer_decay=0.5)
    state = start(network, Supervised(), recipe, device=torch.device("cpu"))
    scale_of = {
        id(parameter): group["lr_scale"] for group in state.optimizer.param_groups for parameter in group["params"]
    }
    body: Any = network.body
    scales = [scale_of[id(block.attn.qkv.weight)] for block in body.blocks]
    assert [scales[1] / scales[0], scales[2] / scales[1]] == [2.0, 2.0]
    assert scale_of[id(body.head.weight)] == 1.0
    assert len(scale_of) == len(list(network.parameters()))
    rates = []

    def on_step(step: int, steps: int) -> None:
        rates.extend((group["lr"], group.get("lr_scale", 1.0)) for group in state.optimizer.param_groups)

    images = InMemoryImages(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10), torch.arange(10))
    batches = images.batches(batch_size=10, seed=0, device="cpu")
    list(fit(state, batches, recipe=recipe, seed=0, on_step=on_step))
    assert rates
    assert all(rate == pytest.approx(1e-3 * scale) for rate, scale in rates), "the loop uses the scale of each group"
    other = build_network("wrn_10_1", num_classes=10, in_channels=3, mean=[0.5] * 3, std=[0.2] * 3)
    with pytest.raises(UserError, match=r"--layer-decay 0.5 needs a network of timm"):
        start(other, Supervised(), recipe, device=torch.device("cpu"))


def test_label_smoothing_of_students(teacher_run: Path, tmp_path: Path):
    """The loss is α·(cross-entropy with smoothed labels) + (1 − α)·KD; with α 1 it is `train --label-smoothing`."""
    settings = {**SMALL, "epochs": 2, "label_smoothing": 0.2}
    labels = ckd.train("wrn_10_1", out=tmp_path / "labels", **settings)
    student = ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@last"], alpha=1.0, out=tmp_path / "kd", **settings)
    assert [row.loss for row in student.rows()] == pytest.approx([row.loss for row in labels.rows()], rel=1e-5)
    plain = ckd.train("wrn_10_1", out=tmp_path / "plain", **{**settings, "label_smoothing": 0.0})
    assert plain.rows()[-1].loss != pytest.approx(labels.rows()[-1].loss, rel=1e-2)


def test_mixed_images_and_methods(teacher_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "checkpointkd")
    settings = {**SMALL, "epochs": 1, "teachers": [f"{teacher_run}@last"], "mixup": 0.8}
    for method in ("dkd", "wsl", "crd"):
        with pytest.raises(UserError, match=f"--mixup and --cutmix do not apply to {method}"):
            ckd.distill("wrn_10_1", method=method, out=tmp_path / method, **settings)
    for method in ("kd", "dist", "fitnets"):
        result = ckd.distill("wrn_10_1", method=method, out=tmp_path / method, **settings).result()
        assert result is not None
    assert "Teachers run at every step: mixup and CutMix make new images" in caplog.text
    with pytest.raises(UserError, match="auto-per-class needs one class for each image"):
        ckd.distill(
            "wrn_10_1",
            out=tmp_path / "weights",
            teacher_weights="auto-per-class",  # type: ignore[arg-type]
            **{**settings, "teachers": [f"{teacher_run}@2", f"{teacher_run}@last"]},
        )


def test_a_pilot_search_leaves_out_methods_that_do_not_suit_mixing(teacher_run: Path, tmp_path: Path):
    settings: dict[str, Any] = {**SMALL, "epochs": 10, "budget": "20", "student": "wrn_10_1", "cutmix": 1.0}
    del settings["data"]
    with pytest.raises(UserError, match="--mixup and --cutmix do not apply to dkd"):
        ckd.select(teacher_run, out=tmp_path / "given", methods=["kd", "dkd"], **settings)
    assert not (tmp_path / "given").exists()
    result = ckd.select(teacher_run, out=tmp_path / "pilot", **settings)
    assert not [row.candidate for row in result.candidates if "dkd" in row.candidate]


def test_the_default_recipe_follows_from_network_and_data(tmp_path: Path):
    from checkpointkd.commands.recipe_options import RecipeOptions

    data = load_data(DataConfig(data="digits", train_images=60))
    photographs, imagenet = replace(data, recipe="adamw"), replace(data, recipe="imagenet")
    own = f"{__name__}:NoBatchNorm"

    def optimizer(model: str, images: Any, **options: Any) -> tuple[str, int]:
        chosen = RecipeOptions(**options).recipe_for(model, images)
        return chosen.optimizer, chosen.epochs

    assert optimizer("wrn_10_1", data) == ("sgd", 40)
    assert optimizer(own, data) == ("adamw", 100)
    assert optimizer("wrn_10_1", photographs) == ("adamw", 100)
    assert optimizer("wrn_10_1", imagenet) == ("sgd", 120)
    assert optimizer(own, imagenet) == ("adamw", 300)
    assert optimizer(own, data, recipe="cifar100") == ("sgd", 200)


def test_the_default_recipe_takes_no_memory_for_weights(monkeypatch: pytest.MonkeyPatch):
    from checkpointkd import models
    from checkpointkd.commands.recipe_options import default_recipe_for

    built: list[nn.Module] = []

    def build(model: str, **settings: Any) -> nn.Module:
        built.append(build_network(model, **settings))
        return built[-1]

    monkeypatch.setattr(models, "build_network", build)
    data = load_data(DataConfig(data="digits", train_images=60))
    tiny = "timm:vit_tiny_patch16_224?img_size=8&patch_size=4&depth=1"
    assert [default_recipe_for(model, data) for model in ("wrn_10_1", tiny)] == ["digits", "adamw"]
    assert all(parameter.is_meta for network in built for parameter in network.parameters())
    assert default_recipe_for(f"{__name__}:NoBatchNorm", data) == "adamw"


def test_the_options_are_in_the_record(tmp_path: Path):
    run = ckd.train("wrn_10_1", out=tmp_path / "run", epochs=1, views=4, ema=0.5, label_smoothing=0.1, **SMALL)
    recipe = json.loads((run.path / "run.json").read_text())["recipe"]
    assert (recipe["views"], recipe["ema"], recipe["label_smoothing"]) == (4, 0.5, 0.1)
    with pytest.raises(UserError, match="recipe views 4 stored, 5 given"):
        ckd.train("wrn_10_1", out=tmp_path / "run", epochs=1, views=5, ema=0.5, label_smoothing=0.1, **SMALL)


def test_settings_that_do_not_apply_are_refused_before_the_run_starts(tmp_path: Path):
    for options, message in (
        ({"views": 200}, "--views 200 is more than the"),
        ({"layer_decay": 0.5}, "--layer-decay 0.5 needs a network of timm"),
    ):
        with pytest.raises(UserError, match=message):
            ckd.train("wrn_10_1", out=tmp_path / "run", epochs=1, **SMALL, **options)
        assert not (tmp_path / "run").exists()


def test_an_average_that_was_removed_is_written_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    settings = {**SMALL, "epochs": 3, "save_every": 1, "ema": 0.9, "out": tmp_path / "run"}

    def stop(name: str, done: int, total: int) -> None:
        if done == 25:  # of 10 steps per epoch
            raise StopError

    class StopError(Exception):
        pass

    with pytest.raises(StopError):
        ckd.train("wrn_10_1", on_progress=stop, **settings)
    shutil.rmtree(tmp_path / "run" / "ema")
    ckd.train("wrn_10_1", **settings)
    assert "was removed. It is written again from epoch 3 on" in caplog.text
    averaged = ckd.open_trajectory(tmp_path / "run" / "ema")
    assert list(averaged) == [3]
    assert len(averaged.rows()) == 3
    with pytest.raises(UserError, match="holds the moving average of the weights of"):
        ckd.train("wrn_10_1", **{**settings, "out": tmp_path / "run" / "ema"})


def test_an_average_costs_no_training_of_its_own(tmp_path: Path):
    ckd.train("wrn_10_1", out=tmp_path / "run", epochs=2, save_every=1, ema=0.9, **SMALL)
    measured = ckd.evaluate(f"{tmp_path}/run@last", f"{tmp_path}/run/ema@last", split="val")
    assert measured["training_cost"]["runs"] == 1
    assert measured["training_cost"]["epochs"] == 2
