"""The training loop: golden numbers, resuming bit for bit after kills, and a loss that becomes NaN or infinite."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs
from torch import nn

import checkpointkd as ckd
from checkpointkd import metrics
from checkpointkd.config import Recipe
from checkpointkd.data import Batch, DataConfig, EpochLoader, load_data
from checkpointkd.errors import UserError
from checkpointkd.losses import Supervised
from checkpointkd.metrics import measure, predict
from checkpointkd.models import Network, build_network
from checkpointkd.ranks import Ranks
from checkpointkd.training.loop import State, fit, start

GOLDEN = Path(__file__).parents[1] / "golden" / "training.json"


def _state(recipe: Recipe, objective: nn.Module | None = None) -> tuple[State, EpochLoader]:
    data = load_data(DataConfig(data="digits", train_images=60))
    network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.37])
    state = start(network, objective or Supervised(), recipe, device=torch.device("cpu"))
    return state, data.train.batches(batch_size=recipe.batch_size, seed=0, device="cpu")


def test_numbers_equal_the_golden_file(teacher_run: Path, tmp_path: Path):
    """In fp32 on one thread. UPDATE_GOLDEN=1 writes the file anew, for a change that is meant to change numbers."""
    student = ckd.distill(
        "wrn_10_1",
        teachers=[f"{teacher_run}@2", f"{teacher_run}@4"],
        epochs=4,
        save_every=2,
        precision="fp32",
        out=tmp_path / "student",
    )
    plane = ckd.score(teacher_run, decoder_steps=8, decoder_seeds=2)
    now = {
        "teacher": [row.loss for row in ckd.open_trajectory(teacher_run).rows()],
        "student": [row.loss for row in student.rows()],
        "information": [point.image_information for point in plane.points],
        "nll": [point.nll for point in plane.points],
    }
    if os.environ.get("UPDATE_GOLDEN"):
        rounded = {name: [round(value, 6) for value in values] for name, values in now.items()}
        GOLDEN.write_text(json.dumps(rounded, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert now.keys() == golden.keys()
    for name, values in golden.items():
        # On a processor that sums in another order, eight decoder steps moved the information by 0.0015 nats.
        assert now[name] == pytest.approx(values, rel=2e-3, abs=5e-3 if name == "information" else None), name


def test_training_learns():
    recipe = Recipe(epochs=25, batch_size=10, learning_rate=0.03)
    state, batches = _state(recipe)
    rows = list(fit(state, batches, recipe=recipe, seed=0))
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert rows[-1]["train_accuracy"] > 0.8
    assert [row["epoch"] for row in rows] == list(range(1, 26))


class DropoutNet(nn.Module):
    """A network that draws from PyTorch's global generator while it trains."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, 32), nn.Dropout(0.5), nn.ReLU())
        self.head = nn.Linear(32, num_classes)

    def forward(self, images):
        return self.head(self.layers(images))


TRAINER = """
import sys, time, torch
torch.set_num_threads(1)
import checkpointkd as ckd
from checkpointkd import metrics
model, out = sys.argv[1:3]
def on_progress(task, done, total):
    print(done, flush=True)
    time.sleep(0.01)
options = {"data": "digits", "recipe": "digits", "train_images": 60, "epochs": 12, "save_every": 3}
ckd.train(model, out=out, on_progress=on_progress, **options)
"""


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path):
    """Kills between and within epochs change nothing of a network with dropout. test_faults.py kills other runs."""
    model = "tests.training.test_loop:DropoutNet"
    undisturbed = ckd.train(
        model, data="digits", recipe="digits", train_images=60, epochs=12, save_every=3, out=tmp_path / "whole"
    )
    draw = random.Random(0)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, model, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(draw.randint(4, 10)):  # steps; an epoch has two
            process.stdout.readline()
        time.sleep(draw.random() * 0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        if (tmp_path / "killed" / "result.json").exists():
            break
    resumed = ckd.train(
        model, data="digits", recipe="digits", train_images=60, epochs=12, save_every=3, out=tmp_path / "killed"
    )
    assert kills >= 3, "the run was hardly killed at all"
    for epoch in undisturbed:
        assert resumed[epoch].path.read_bytes() == undisturbed[epoch].path.read_bytes(), f"epoch {epoch}"
    without_times = [[structs.replace(row, seconds=0.0) for row in run.rows()] for run in (resumed, undisturbed)]
    assert without_times[0] == without_times[1]
    assert resumed.result().test == undisturbed.result().test  # type: ignore[index]
    assert list(resumed) == [3, 6, 9, 12]


def test_a_run_continues_within_an_epoch_bit_for_bit(tmp_path: Path, caplog):
    """An epoch has five steps. The state is saved after every second one."""
    caplog.set_level("INFO")
    options: dict = {"data": "digits", "train_images": 60, "batch_size": 12, "epochs": 3, "save_every": 1}
    options |= {"precision": "fp32", "save_state_every_steps": 2}
    model = "tests.training.test_loop:DropoutNet"
    whole = ckd.train(model, out=tmp_path / "whole", **options | {"save_state_every_steps": None})
    for stop in (3, 10, 13):

        def interrupt(task: str, done: int, total: int, stop: int = stop) -> None:
            if total == 15 and done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ckd.train(model, out=tmp_path / "stopped", on_progress=interrupt, **options)
    resumed = ckd.train(model, out=tmp_path / "stopped", **options)
    continued = [message for message in caplog.messages if "continues after" in message]
    assert [message.partition("continues after ")[2] for message in continued] == [
        "epoch 0 of 3 and 2 steps",
        "epoch 1 of 3 and 4 steps",
        "epoch 2 of 3 and 2 steps",
    ]
    for epoch in whole:
        assert resumed[epoch].path.read_bytes() == whole[epoch].path.read_bytes(), f"epoch {epoch}"
    without_times = [[structs.replace(row, seconds=0.0) for row in run.rows()] for run in (resumed, whole)]
    assert without_times[0] == without_times[1]


@pytest.mark.parametrize("parts", [2, 5, 40])
def test_the_parts_of_a_batch_have_the_gradient_of_the_batch(parts: int):
    """In float64, without batch normalization. The last batch is short; with 40 parts, each has one example."""
    recipe = Recipe(epochs=2, batch_size=40, learning_rate=0.05)
    data = load_data(DataConfig(data="digits", train_images=70))

    def train(accumulate: int) -> tuple[list[dict], torch.Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
        state = start(network, Supervised(), recipe, device=torch.device("cpu"))
        batches = _Doubles(data.train.batches(batch_size=40, seed=0, device="cpu"))
        rows = list(fit(state, batches, recipe=recipe, seed=0, accumulate=accumulate))
        return rows, nn.utils.parameters_to_vector(network.parameters())

    (rows, weights), (expected_rows, expected) = train(parts), train(1)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected_rows], rel=1e-6)
    assert [row["train_accuracy"] for row in rows] == [row["train_accuracy"] for row in expected_rows]


@pytest.mark.parametrize(
    ("world", "total", "parts", "sizes"), [(1, 3, 5, [1, 1, 1]), (2, 2, 3, [1]), (2, 5, 2, [2, 1])]
)
def test_a_small_batch_has_fewer_parts(world: int, total: int, parts: int, sizes: list[int]):
    """No part is empty in all processes, whose batch statistics would be NaN."""
    rows = Ranks(0, world).part(torch.arange(total))
    batch = Batch(torch.zeros(len(rows), 1, 2, 2), rows, rows, None, ranks=Ranks(0, world), total=total)
    assert [len(part.labels_B) for part in batch.split(parts)] == sizes
    assert all(part.total == total for part in batch.split(parts))


def test_parts_of_one_image_are_refused_if_the_network_needs_more(tmp_path: Path):
    options: dict = {"data": "digits", "train_images": 60, "epochs": 1, "precision": "fp32"}
    with pytest.raises(UserError, match="--accumulate 10 leaves parts of one image: 60 images in batches of 15"):
        ckd.train("mobilenetv2_0.5", out=tmp_path / "run", batch_size=15, accumulate=10, **options)
    with pytest.raises(UserError, match="The last batch of each epoch has one image: 60 images in batches of 59"):
        ckd.train("mobilenetv2_0.5", out=tmp_path / "run", batch_size=59, accumulate=10, **options)
    assert not (tmp_path / "run").exists()


class _Doubles:
    """The batches of a loader with images in double precision."""

    def __init__(self, batches: EpochLoader) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, *, start: int = 0):
        for batch in self.batches.epoch(epoch, start=start):
            yield replace(batch, images_BCHW=batch.images_BCHW.double())


def test_training_leaves_the_callers_random_state_alone():
    """Dropout draws in each epoch. The caller's draws before, between and after rows are those without training."""

    def draws(train: bool) -> list[float]:
        recipe = Recipe(epochs=2, batch_size=30)
        _, batches = _state(recipe)
        state = start(
            Network(DropoutNet(num_classes=10, in_channels=1), mean=[0.3], std=[0.37]),
            Supervised(),
            recipe,
            device=torch.device("cpu"),
        )
        torch.manual_seed(5)
        rows = fit(state, batches, recipe=recipe, seed=0) if train else iter([{}, {}])
        return [torch.rand(()).item() for _ in (None, *rows)]

    assert draws(train=True) == draws(train=False)


class BreaksAt(nn.Module):
    """An objective whose loss is NaN from one step on."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.count = step, 0

    def forward(self, model, batch, train_fraction):
        self.count += 1
        loss, logits = Supervised()(model, batch, train_fraction)
        return (loss * float("nan") if self.count >= self.step else loss), logits


def test_a_nan_loss_stops_training_and_names_the_step():
    recipe = Recipe(epochs=4, batch_size=20, lr_schedule="constant", learning_rate=0.05)
    state, batches = _state(recipe, BreaksAt(5))
    rows = fit(state, batches, recipe=recipe, seed=0)
    assert next(rows)["epoch"] == 1
    with pytest.raises(
        UserError, match=r"in epoch 2, step 2 of 3, at learning rate 0\.05\. The checkpoints up to epoch 1 are intact"
    ):
        next(rows)
    assert state.epoch == 1


class Explodes(DropoutNet):
    """A network whose logits are infinite after six training steps."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images):
        self.count += self.training
        return super().forward(images) * torch.where(self.count > 6, torch.inf, 1.0)


def test_a_diverged_run_keeps_its_finite_checkpoints(tmp_path: Path):
    out, model = tmp_path / "run", "tests.training.test_loop:Explodes"
    with pytest.raises(UserError, match="The loss became NaN or infinite in epoch 4"):
        ckd.train(model, data="digits", recipe="digits", train_images=60, epochs=40, save_every=1, out=out)
    trajectory = ckd.open_trajectory(out)
    assert not trajectory.complete
    assert list(trajectory) == [1, 2, 3]
    for checkpoint in trajectory.values():
        assert all(tensor.isfinite().all() for tensor in checkpoint.network().state_dict().values())


class RootOfZero(DropoutNet):
    """A network whose loss is finite and whose gradient is not."""

    def forward(self, images):
        return super().forward(images) + (self.head.weight.sum() * 0).sqrt()


def test_weights_that_diverge_in_the_last_step_of_an_epoch_are_not_saved(tmp_path: Path):
    out, model = tmp_path / "run", "tests.training.test_loop:RootOfZero"
    with pytest.raises(UserError, match="The loss became NaN or infinite in epoch 1, step 1 of 1"):
        ckd.train(model, data="digits", train_images=60, batch_size=60, epochs=3, save_every=1, out=out)
    assert len(ckd.open_trajectory(out)) == 0


@pytest.mark.parametrize("lr_schedule", ["cosine", "step", "constant"])
def test_the_learning_rate_is_a_function_of_the_epoch(lr_schedule):
    recipe = Recipe(lr_schedule=lr_schedule)  # the paper's 200 epochs
    rates = [recipe.learning_rate_at(epoch) for epoch in (0, 59.9, 60, 100, 120, 199.9)]
    expected = {
        "cosine": [0.1, 0.0794, 0.0794, 0.05, 0.0345, 0.0],
        "step": [0.1, 0.1, 0.01, 0.01, 0.001, 0.0001],
        "constant": [0.1] * 6,
    }[lr_schedule]
    assert rates == pytest.approx(expected, abs=2e-4)


def test_predict_uses_evaluation_mode_and_measure_agrees_with_plain_python(monkeypatch):
    data = load_data(DataConfig(data="digits", train_images=60))
    network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.37]).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    monkeypatch.setattr(metrics, "eval_batch_size", lambda images, device: 7)
    logits = predict(network, data.val)
    monkeypatch.undo()
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    torch.testing.assert_close(predict(network, data.val), logits)
    correct = sum(int(row.argmax()) == int(label) for row, label in zip(logits, data.val.labels_N, strict=True))
    measured = measure(logits, data.val.labels_N)
    assert measured["accuracy"] == pytest.approx(correct / 300)
    assert measured["accuracy_se"] == pytest.approx((correct / 300 * (1 - correct / 300) / 300) ** 0.5)
