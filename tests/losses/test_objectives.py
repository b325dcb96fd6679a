"""The objectives in training: every method learns, resumes bit for bit, and combines several teachers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import checkpointkd as ckd
from checkpointkd.checkpoints import resolve
from checkpointkd.data import Batch, DataConfig, Images, load_data
from checkpointkd.distill_config import DistillConfig, KDConfig
from checkpointkd.errors import UserError
from checkpointkd.losses import (
    METHODS,
    FeatureDistillation,
    LogitDistillation,
    Supervised,
    cross_entropy,
    defaults,
    distillation,
    kd,
    label_smoothing,
)
from checkpointkd.losses.matching import FeaturePaths
from checkpointkd.models import Network, build_network
from checkpointkd.teachers.ensemble import Teacher

from .cases import BATCH, FEATURE_METHODS, LABELS, LOGIT_METHODS, B, K, random

STUDENT, TEACHERS = random(B, K), random(3, B, K, seed=1)


class ConstantModel(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return STUDENT


class ConstantTeachers:
    def __len__(self) -> int:
        return len(TEACHERS)

    def logits(self, batch: Batch, members: Sequence[int]) -> Tensor:
        return TEACHERS[list(members)]

    def forward_with_features(self, member: int, batch: Batch, paths: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        raise AssertionError("A logit method must not ask for features")


def _digits() -> tuple[Images, Batch]:
    images = load_data(DataConfig(data="digits", train_images=60)).train
    return images, next(iter(images.batches(batch_size=20, seed=0, device="cpu").epoch(0)))


def _student() -> Network:
    return build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.3])


def test_supervised_is_cross_entropy_or_label_smoothing():
    plain, _ = Supervised()(ConstantModel(), BATCH, 0.0)
    torch.testing.assert_close(plain, cross_entropy(STUDENT, LABELS))
    smoothed, _ = Supervised(smoothing=0.1)(ConstantModel(), BATCH, 0.0)
    torch.testing.assert_close(smoothed, label_smoothing(STUDENT, LABELS, alpha=0.9))


def test_supervised_by_squared_error():
    """The Brier score of NumPy, for classes and for the probabilities of mixed images."""
    objective = Supervised(loss="squared-error")
    loss_B, logits_BK = objective(ConstantModel(), BATCH, 0.0)
    exponential = np.exp(STUDENT.double().numpy())
    probabilities = exponential / exponential.sum(1, keepdims=True)
    expected = ((probabilities - np.eye(K)[LABELS.numpy()]) ** 2).sum(1)
    np.testing.assert_allclose(loss_B.numpy(), expected, rtol=1e-5)
    assert logits_BK is STUDENT
    mixed = replace(BATCH, soft_labels_BK=0.5 * torch.eye(K)[LABELS] + 0.5 / K)
    expected = ((probabilities - mixed.targets.numpy()) ** 2).sum(1)
    np.testing.assert_allclose(objective(ConstantModel(), mixed, 0.0)[0].numpy(), expected, rtol=1e-5)
    with pytest.raises(UserError, match=r"squared-error does not smooth labels, but label smoothing is 0\.1"):
        Supervised(loss="squared-error", smoothing=0.1)
    with pytest.raises(UserError, match="Unknown loss 'mse'"):
        Supervised(loss="mse")  # type: ignore[arg-type]


def test_a_run_by_squared_error_learns_and_continues(tmp_path: Path):
    settings: dict[str, Any] = {"data": "digits", "train_images": 200, "save_every": 2, "precision": "fp32"}
    settings |= {"epochs": 8, "loss": "squared-error"}
    run = ckd.train("wrn_10_1", out=tmp_path / "run", **settings)
    assert run.run.loss == "squared-error"
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] < 1.0 < np.log(10), "the largest squared error of a uniform prediction is 0.9"
    assert rows[-1]["train_accuracy"] > 0.3
    with pytest.raises(UserError, match="loss 'squared-error' stored, 'cross-entropy' given"):
        ckd.train("wrn_10_1", out=tmp_path / "run", **{**settings, "loss": "cross-entropy"})


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_supervised_refuses_smoothing_out_of_range(smoothing: float):
    with pytest.raises(UserError, match=f"Label smoothing must be at least 0 and below 1, not {smoothing}"):
        Supervised(smoothing=smoothing)


def test_objectives_return_one_loss_per_example_and_the_logits():
    distill = LogitDistillation(METHODS["kd"](), ConstantTeachers(), KDConfig())
    for objective in (Supervised(), distill):
        loss, logits = objective(ConstantModel(), BATCH, 0.0)
        assert loss.shape == (B,)
        assert logits is STUDENT
    expected = kd(STUDENT, TEACHERS, LABELS, KDConfig())
    torch.testing.assert_close(distill(ConstantModel(), BATCH, 0.5)[0], expected)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_distills_digits(name: str, teacher_run: Path, tmp_path: Path):
    """From an ensemble, by the `distill` command, in bf16; the saved checkpoint is a plain student."""
    options = {"channel_adapter": True} if name == "fsp" else {}
    run = ckd.distill(
        "resnet_8",
        teachers=[f"{teacher_run}@2", f"{teacher_run}@4"],
        method=name,
        epochs=2,
        batch_size=25,
        learning_rate=0.01,
        precision="bf16",
        out=tmp_path / "s",
        **options,
    )
    assert all(row.loss > 0 or name == "vid" for row in run.rows())
    network = build_network("resnet_8", num_classes=10, in_channels=1, mean=[0.3], std=[0.3])
    assert run.last.network().state_dict().keys() == network.state_dict().keys()
    assert run.run.method == name
    alpha, tau = defaults(name)
    assert (run.run.kd.alpha, run.run.kd.tau) == (alpha, tau)


@pytest.mark.parametrize("name", list(METHODS))
def test_an_interrupted_run_resumes_bit_for_bit(name: str, teacher_run: Path, tmp_path: Path):
    """The method's layers, memories and random draws resume, too."""

    def interrupt(task: str, done: int, total: int) -> None:
        if task.endswith("/interrupted") and done == 6:  # of 2 × 4 steps, in the second epoch
            raise KeyboardInterrupt

    def run(folder: str, **options: Any) -> ckd.Trajectory:
        return ckd.distill(
            "wrn_10_1",
            teachers=[str(teacher_run)],
            method=name,
            epochs=2,
            batch_size=25,
            precision="fp32",
            channel_adapter=name == "fsp",
            out=tmp_path / folder,
            **options,
        )

    with pytest.raises(KeyboardInterrupt):
        run("interrupted", on_progress=interrupt)
    assert run("interrupted").last.sha256 == run("uninterrupted").last.sha256


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_the_logit_cache_trains_the_same_student_as_live_teachers(name: str, teacher_run: Path, tmp_path: Path):
    runs = [
        ckd.distill(
            "wrn_10_1",
            teachers=[f"{teacher_run}@2", f"{teacher_run}@4"],
            method=name,
            epochs=2,
            batch_size=25,
            precision="fp32",
            logit_cache_gb=limit,
            out=tmp_path / f"{limit}",
        )
        for limit in (0.0, 1.0)
    ]
    assert runs[0].last.sha256 == runs[1].last.sha256


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_several_teachers_give_the_weighted_mean_of_their_terms(name: str, teacher_run: Path):
    images, batch = _digits()
    student = _student().eval()

    def loss(epochs: list[int], weights: tuple[float, ...] | None = None, alpha: float = 0.0) -> Tensor:
        teacher = Teacher(
            [resolve(ref) for ref in [f"{teacher_run}@{epoch}" for epoch in epochs]], device=torch.device("cpu")
        )
        objective = distillation(
            name,
            teacher,
            KDConfig(alpha=alpha),
            DistillConfig(method_weight=1.0, teacher_weights=weights),
            student=student,
            teachers=[(str(epoch), network) for epoch, network in zip(epochs, teacher.networks, strict=True)],
            images=images,
            seed=0,
        )
        for method in objective.methods[1:]:  # equal layers, so that only the teachers differ
            method.load_state_dict(objective.methods[0].state_dict())
        torch.manual_seed(0)
        return objective(student, batch, 0.5)[0].detach()

    difference = loss([4], (1.0,), alpha=1.0) - loss([4], alpha=1.0)
    torch.testing.assert_close(difference, torch.zeros(20), atol=1e-5, rtol=0)
    if name == "crd":
        return  # draws other negatives for each teacher
    first, second = loss([2], alpha=1.0), loss([4], alpha=1.0)
    torch.testing.assert_close(loss([2, 4], alpha=1.0), (first + second) / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        loss([2, 4], (0.25, 0.75), alpha=1.0), 0.25 * first + 0.75 * second, rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(loss([4], alpha=0.5), second), "α < 1 must add the teachers' predictions"


@pytest.mark.parametrize("name", ["dkd", "reviewkd"])
def test_the_weight_grows_over_the_warm_up(name: str, teacher_run: Path):
    images, batch = _digits()
    student, network = _student().eval(), resolve(str(teacher_run)).checkpoint.network()
    teacher = Teacher([resolve(str(teacher_run))], device=torch.device("cpu"))
    objective = distillation(
        name,
        teacher,
        KDConfig(alpha=1.0),
        DistillConfig(),
        student=student,
        teachers=[("t", network)],
        images=images,
        seed=0,
    ).eval()

    def term(train_fraction: float) -> Tensor:
        loss, logits = objective(student, batch, train_fraction)
        return (loss - cross_entropy(logits, batch.labels_B)).detach()

    whole = term(20 / 240)
    assert whole.abs().max() > 1e-3
    for share in (0.0, 0.25, 1.0):
        torch.testing.assert_close(term(share * 20 / 240), share * whole, rtol=1e-4, atol=1e-5)


def test_feature_methods_compute_in_float32_under_autocast(teacher_run: Path):
    """Gram matrices and exponentials lose too much in bfloat16."""
    dtypes = []

    class DtypeSpy(nn.Module):
        alpha, weight, warm_up, feature_kind = 1.0, 1.0, 0.0, "vector"

        def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
            gram = student[0].flatten(1) @ student[0].flatten(1).T
            dtypes.extend([student[0].dtype, teacher[0].dtype, gram.dtype])
            return student[0].mean((1, 2, 3))

    _, batch = _digits()
    teacher = Teacher([resolve(str(teacher_run))], device=torch.device("cpu"))
    pairs = [FeaturePaths(("classifier:input",), ("classifier:input",))]
    objective = FeatureDistillation([DtypeSpy()], teacher, KDConfig(), DistillConfig(), pairs)
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = objective(_student(), batch, 0.0)
    assert logits.dtype == torch.bfloat16
    assert {*dtypes, loss.dtype} == {torch.float32}


def test_an_adapter_takes_a_last_batch_of_one(teacher_run: Path, tmp_path: Path):
    """Vectors of 100 images in batches of 33: the last batch has one value per channel, hence no variance."""
    run = ckd.distill(
        "wrn_10_1",
        teachers=[str(teacher_run)],
        method="fitnets",
        student_features=["classifier:input"],
        teacher_features=["classifier:input"],
        epochs=1,
        batch_size=33,
        out=tmp_path / "s",
    )
    assert run.complete
