"""Ensembles: their checkpoints, weights, measurement and training cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.checkpoints import resolve_ensemble
from checkpointkd.data import DataConfig, load_data
from checkpointkd.distill_config import DistillConfig, KDConfig
from checkpointkd.errors import UserError
from checkpointkd.losses import METHODS, LogitDistillation, kd, soft_targets
from checkpointkd.models import build_network
from checkpointkd.records.base import plain
from checkpointkd.teachers.cost import training_cost
from checkpointkd.teachers.ensemble import open_teacher

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 25, "precision": "fp32"}


@pytest.fixture
def second_run(teacher_run: Path, tmp_path: Path) -> Path:
    path = tmp_path / "second"
    ckd.train(
        "wrn_10_1", data="digits", train_images=100, epochs=2, batch_size=10, learning_rate=0.03, seed=1, out=path
    )
    return path


@pytest.mark.parametrize(
    ("ensemble", "epochs"),
    [("snapshot:1", [4]), ("snapshot:2", [2, 4]), ("snapshot:4", [1, 2, 3, 4]), ("all", [1, 2, 3, 4]), ("full:1", [4])],
)
def test_ensembles_of_one_run(teacher_run: Path, ensemble: str, epochs: list[int]):
    """§3.1: a Snapshot Ensemble is the last checkpoint and k − 1 equally spaced ones before it."""
    assert [member.checkpoint.epoch for member in resolve_ensemble([str(teacher_run)], ensemble)] == epochs


def test_ensembles_of_two_runs(teacher_run: Path, second_run: Path):
    runs = [str(teacher_run), str(second_run)]
    for ensemble, epochs in (("full:2", [4, 2]), ("mixed", [2, 2])):
        members = resolve_ensemble(runs, ensemble)
        assert [member.checkpoint.epoch for member in members] == epochs
        assert [str(member.checkpoint.path).startswith(run) for member, run in zip(members, runs, strict=True)] == [
            True
        ] * 2


@pytest.mark.parametrize(
    ("ensemble", "message"),
    [
        ("snapshot:5", r"snapshot:5 needs 5 checkpoints, and .* has 4 \(epochs 1, 2, 3, 4\)"),
        ("snapshot:0", r"Unknown ensemble 'snapshot:0'\. Write snapshot:K, where K is at least 1"),
        ("snapshot:two", "Write snapshot:K"),
        ("snapshot", "Write snapshot:K"),
        ("all:3", r"Unknown ensemble 'all:3'\. Write all"),
        ("full:2", "--ensemble full:2 takes 2 runs, not 1"),
        ("mixed", "takes 2 runs, not 1"),
        ("snapshots:2", "Unknown ensemble 'snapshots:2'. Did you mean 'snapshot:K'"),
    ],
)
def test_an_ensemble_that_the_runs_do_not_hold_is_an_error(teacher_run: Path, ensemble: str, message: str):
    with pytest.raises(UserError, match=message):
        resolve_ensemble([str(teacher_run)], ensemble)


def test_an_ensemble_takes_runs_not_checkpoint_references(teacher_run: Path):
    with pytest.raises(UserError, match=r"Name runs without @, not '.*@2'"):
        resolve_ensemble([f"{teacher_run}@2"], "snapshot:2")


def test_snapshot_ensembles_use_the_saved_checkpoints(teacher_run: Path):
    for epoch in (1, 2):
        (teacher_run / "checkpoints" / f"epoch-{epoch:04d}.safetensors").unlink()
    assert [m.checkpoint.epoch for m in resolve_ensemble([str(teacher_run)], "snapshot:2")] == [3, 4]
    shutil.copy(teacher_run / "run.json", teacher_run / "run.json.copy")
    (teacher_run / "checkpoints" / "epoch-0003.safetensors").unlink()
    with pytest.raises(UserError, match="snapshot:2 needs 2 checkpoints"):
        resolve_ensemble([str(teacher_run)], "snapshot:2")


def test_one_checkpoint_is_not_two_members_of_a_snapshot_ensemble(tmp_path: Path):
    run = tmp_path / "run"
    ckd.train("wrn_10_1", data="digits", train_images=50, epochs=9, save_every=3, batch_size=25, out=run)
    (run / "checkpoints" / "epoch-0003.safetensors").rename(run / "checkpoints" / "epoch-0008.safetensors")
    with pytest.raises(
        UserError, match=r"no 3 equally spaced checkpoints\. .* 9 epochs are 6, 6, 9\. Name checkpoints"
    ):
        resolve_ensemble([str(run)], "snapshot:3")


def test_soft_targets_are_weighted_means():
    student, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    teachers = torch.randn(2, 5, 4)
    p = (teachers / 3).softmax(-1)
    torch.testing.assert_close(soft_targets(teachers, tau=3, weights=(0.25, 0.75)), 0.25 * p[0] + 0.75 * p[1])
    z = 0.25 * teachers[0] + 0.75 * teachers[1]
    torch.testing.assert_close(
        soft_targets(teachers, tau=3, average="logits", weights=(0.25, 0.75)), (z / 3).softmax(-1)
    )
    even = DistillConfig(teacher_weights=(0.5, 0.5))
    assert even.weights_at(0.3, 2) == (0.5, 0.5)
    torch.testing.assert_close(
        soft_targets(teachers, tau=3, weights=even.teacher_weights), soft_targets(teachers, tau=3), rtol=1e-5, atol=1e-7
    )
    assert kd(student, teachers, labels, KDConfig()).shape == (5,)


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_an_objective_uses_the_teacher_weights(teacher_run: Path, name: str):
    data = load_data(DataConfig(data="digits", train_images=60))
    batch = next(iter(data.train.batches(batch_size=20, seed=0, device="cpu").epoch(0)))
    student = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.3]).eval()

    def loss(epochs: list[int], *weights: float) -> torch.Tensor:
        teacher = open_teacher([f"{teacher_run}@{epoch}" for epoch in epochs], device=CPU)
        distill_config = DistillConfig(teacher_weights=weights or None)
        return LogitDistillation(METHODS[name](), teacher, KDConfig(), distill_config)(student, batch, 0.5)[0].detach()

    torch.testing.assert_close(loss([2, 4], 0.0, 1.0), loss([4]))
    torch.testing.assert_close(loss([2, 4], 0.5, 0.5), loss([2, 4]))
    torch.testing.assert_close(loss([2, 4], 0.25, 0.75), loss([2, 4, 4, 4]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(loss([2, 4], 0.25, 0.75), loss([2, 4]))


def test_each_teacher_needs_a_weight(teacher_run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--teacher-weights has 3 values for 2 checkpoints"):
        ckd.distill(
            "wrn_10_1",
            teachers=[str(teacher_run)],
            ensemble="snapshot:2",
            teacher_weights=[0.2, 0.3, 0.5],
            out=tmp_path / "s",
        )
    assert not (tmp_path / "s").exists()


def test_the_ensemble_is_measured_as_plain_formulas_say(teacher_run: Path):
    """Disagreement is the share of images for which two members predict different classes."""
    measured = ckd.evaluate(str(teacher_run), ensemble="snapshot:2")
    data = load_data(DataConfig(data="digits", train_images=100))
    z = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"], device=CPU).predict(data.val)
    predicted = z.argmax(-1)
    assert measured["ensemble"]["disagreement"] == pytest.approx((predicted[0] != predicted[1]).double().mean().item())
    p = z.double().softmax(-1).mean(0)
    correct = p.argmax(-1) == data.val.labels_N
    assert measured["ensemble"]["accuracy"] == pytest.approx(correct.double().mean().item())
    order = p.max(-1).values.argsort(stable=True)
    gaps = torch.tensor_split((p.max(-1).values - correct.double())[order], 15)
    expected = sum(abs(gap.sum().item()) for gap in gaps) / len(correct)
    assert measured["ensemble"]["calibration_error"] == pytest.approx(expected, abs=1e-6)
    single = ckd.evaluate(f"{teacher_run}@4")
    assert single["ensemble"]["disagreement"] is None
    assert single["members"][0] == measured["members"][1]
    weighted = plain(open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"]).measure(data.val, weights=[0.0, 1.0]))
    for name in ("accuracy", "nll", "calibration_error"):
        assert weighted["ensemble"][name] == pytest.approx(single["members"][0][name], abs=1e-6)


def test_the_training_cost_counts_each_run_once(teacher_run: Path, second_run: Path, tmp_path: Path):
    """Fig. 3: a run counts once, up to its last checkpoint that teaches."""
    first_seconds = [row.seconds for row in ckd.open_trajectory(teacher_run).rows()]
    second_seconds = [row.seconds for row in ckd.open_trajectory(second_run).rows()]
    for refs, runs, epochs, seconds in (
        ([f"{teacher_run}@2"], 1, 2, sum(first_seconds[:2])),
        ([f"{teacher_run}@2", f"{teacher_run}@1"], 1, 2, sum(first_seconds[:2])),
        ([f"{teacher_run}@4", f"{second_run}@2"], 2, 6, sum(first_seconds) + sum(second_seconds)),
    ):
        cost = training_cost(resolve_ensemble(refs))
        assert (cost.runs, cost.epochs) == (runs, epochs)
        assert cost.seconds == pytest.approx(seconds, abs=2e-3)
    student = ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@2"], out=tmp_path / "s", **SHORT)
    assert student.run.teachers_cost.epochs == 2
    assert ckd.evaluate(f"{teacher_run}@2")["training_cost"]["epochs"] == 2


def _rewrite(run: Path, change) -> None:
    stored = json.loads((run / "run.json").read_text())
    change(stored)
    (run / "run.json").write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda run: run["classes"].reverse(),
            r"their classes differ \(in another order, first at 0: '0' and '9'\)",
        ),
        (
            lambda run: run["classes"].__setitem__(3, "three"),
            r"their classes differ \(10 and 10, '3', 'three' not in both\)",
        ),
        (
            lambda run: run["data"].__setitem__("shape", [1, 16, 16]),
            "their images differ in size, 1 × 8 × 8 and 1 × 16 × 16",
        ),
    ],
)
def test_teachers_that_cannot_teach_together(teacher_run: Path, second_run: Path, tmp_path: Path, change, message):
    _rewrite(second_run, change)
    with pytest.raises(UserError, match=rf"cannot teach together: {message}"):
        ckd.distill("wrn_10_1", teachers=[str(teacher_run), str(second_run)], out=tmp_path / "s")
    assert not (tmp_path / "s").exists()
