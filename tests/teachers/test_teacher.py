"""A teacher: its networks, logits, measurement and batch statistics, and the record that a student keeps of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.checkpoints import resolve_ensemble
from checkpointkd.config import Recipe
from checkpointkd.data import DataConfig, load_data
from checkpointkd.distill_config import KDConfig
from checkpointkd.errors import UserError
from checkpointkd.losses import METHODS, LogitDistillation
from checkpointkd.models import build_network
from checkpointkd.records.base import TeacherRecord
from checkpointkd.records.runs import EnsembleMeasured, TeacherMeasured, TeachersMeasured
from checkpointkd.teachers.ensemble import Teacher, open_teacher, refuse_at_chance
from checkpointkd.training.loop import fit, start

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 25, "precision": "fp32"}


def test_training_a_student_leaves_the_teacher_unchanged(teacher_run: Path):
    """It stays in evaluation mode, without gradients, with its weights and running statistics."""
    data = load_data(DataConfig(data="digits", train_images=60))
    teacher = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"], device=CPU)
    networks = teacher.networks
    before = [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in networks]
    recipe = Recipe(epochs=2, batch_size=30)
    student = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.37])
    objective = LogitDistillation(METHODS["kd"](), teacher, KDConfig())
    state = start(student, objective, recipe, device=CPU)
    batches = data.train.batches(batch_size=30, seed=0, device=CPU)
    for _ in fit(state, batches, recipe=recipe, seed=0):
        assert not any(module.training for network in networks for module in network.modules())
    for network, tensors in zip(networks, before, strict=True):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
    assert state.objective.state_dict() == {}, "the state of a student does not hold its teachers"


def test_logits_are_in_the_order_of_the_members(teacher_run: Path):
    data = load_data(DataConfig(data="digits", train_images=60))
    (batch,) = data.train.batches(batch_size=60, seed=0, device=CPU).epoch(0)
    both = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"], device=CPU).logits(batch)
    assert both.shape == (2, 60, 10)
    for row, epoch in enumerate((2, 4)):
        network = ckd.open_trajectory(teacher_run)[epoch].network()
        torch.testing.assert_close(both[row], network(batch.images_BCHW).detach(), rtol=2**-11, atol=1e-6)
        assert torch.equal(both[row], both[row].half().float()), "rounded to float16, as in the cache"


def test_the_same_checkpoint_twice_measures_as_once(teacher_run: Path):
    data = load_data(DataConfig(data="digits", train_images=60))
    measured = open_teacher([f"{teacher_run}@4"] * 2, device=CPU).measure(data.val)
    for name in ("accuracy", "nll"):
        assert getattr(measured.ensemble, name) == pytest.approx(getattr(measured.members[0], name), abs=1e-6)


def test_a_teacher_at_chance_is_refused_unless_allowed(tmp_path: Path):
    """A learning rate of nearly 0 leaves a network at chance."""
    ckd.train("wrn_10_1", data="digits", train_images=60, epochs=1, learning_rate=1e-9, out=tmp_path / "t")
    with pytest.raises(UserError, match=r"not clearly above chance \(10\.\d%.*--allow-weak-teacher"):
        ckd.distill("wrn_10_1", teachers=[str(tmp_path / "t")], epochs=1, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    ckd.distill("wrn_10_1", teachers=[str(tmp_path / "t")], epochs=1, allow_weak_teacher=True, out=tmp_path / "s")


def test_chance_is_the_share_of_the_most_frequent_class():

    def measured(accuracy: float) -> TeachersMeasured:
        values = {"accuracy": accuracy, "accuracy_se": 0.0, "nll": 1.0, "calibration_error": 0.0}
        member = TeacherMeasured(ref="t", epoch=1, **values)
        return TeachersMeasured(images=100, members=(member,), ensemble=EnsembleMeasured(disagreement=None, **values))

    refuse_at_chance(measured(0.03), torch.arange(100).repeat(50))
    with pytest.raises(UserError, match=r"above chance \(1\.0%"):
        refuse_at_chance(measured(0.03), torch.arange(100))
    with pytest.raises(UserError, match=r"above chance \(90\.0%"):
        refuse_at_chance(measured(0.9), torch.tensor([0] * 90 + [1] * 10))


def test_a_students_record_names_its_teachers(teacher_run: Path, tmp_path: Path):
    student = ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@2"], epochs=1, out=tmp_path / "s")
    checkpoint = ckd.open_trajectory(teacher_run)[2]
    assert student.run.teachers == (TeacherRecord(epoch=2, sha256=checkpoint.sha256),)
    assert student.run.kd == KDConfig(alpha=0.5, tau=5.0, tau_squared=True, average="probabilities")
    assert student.run.teachers_measured.members[0].accuracy > 0.1


def test_other_teachers_are_another_run(teacher_run: Path, tmp_path: Path):
    ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@2"], epochs=1, out=tmp_path / "s")
    with pytest.raises(UserError, match=r"another run \(teachers 'epoch 2 \(\w{8}\)' stored, 'epoch 4"):
        ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@4"], epochs=1, out=tmp_path / "s")
    with pytest.raises(UserError, match=r"already holds another run \(kd alpha 0\.5 stored, 0\.9 given\)"):
        ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@2"], alpha=0.9, epochs=1, out=tmp_path / "s")


def test_a_teacher_trained_on_another_split_is_warned_about(teacher_run: Path, tmp_path: Path, caplog):
    ckd.distill("wrn_10_1", teachers=[str(teacher_run)], select_on="test", epochs=1, out=tmp_path / "s")
    assert "was trained on another split" not in caplog.text, "no run of this package learns from the test images"
    ckd.distill(
        "wrn_10_1",
        teachers=[str(tmp_path / "s")],
        select_on="val",
        epochs=1,
        allow_weak_teacher=True,
        out=tmp_path / "t",
    )
    assert "was trained on another split" in caplog.text


def test_batch_statistics_leave_the_teacher_unchanged(teacher_run: Path):
    data = load_data(DataConfig(data="digits", train_images=60))
    batch = next(iter(data.train.batches(batch_size=20, seed=0, device="cpu").epoch(0)))
    running, by_batch = (
        Teacher(resolve_ensemble([str(teacher_run)]), device=CPU, batch_norm=mode) for mode in ("eval", "batch")
    )
    network = ckd.open_trajectory(teacher_run).last.network()
    before = {name: tensor.clone() for name, tensor in by_batch.networks[0].state_dict().items()}
    logits_BK = by_batch.logits(batch)[0]
    assert not any(module.training for module in by_batch.networks[0].modules())
    after = by_batch.networks[0].state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if "num_batches" not in name)
    with torch.no_grad():
        expected = network.train()(batch.images_BCHW)
    torch.testing.assert_close(logits_BK, expected.half().float())
    assert not torch.allclose(logits_BK, running.logits(batch)[0], atol=0.1)
    assert by_batch.measure(data.val) == running.measure(data.val), "accuracy is measured with running statistics"


def test_teachers_with_batch_statistics_run_at_every_step(teacher_run: Path, tmp_path: Path, caplog):
    caplog.set_level("INFO")
    runs = {
        mode: ckd.distill(
            "wrn_10_1", teachers=[str(teacher_run)], teacher_batch_norm=mode, out=tmp_path / mode, **SHORT
        )
        for mode in ("eval", "batch")
    }
    assert "with batch statistics, logits depend on the other images" in caplog.text
    assert runs["batch"].run.distill_config.teacher_batch_norm == "batch"
    assert runs["eval"].last.sha256 != runs["batch"].last.sha256


def test_a_teacher_without_batch_norm_is_refused_for_batch_statistics(tmp_path: Path, monkeypatch):
    (tmp_path / "plain.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(16, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    ckd.train("plain:net", data="digits", epochs=5, out=tmp_path / "t")
    with pytest.raises(UserError, match="has no batch norm, so it cannot normalize with batch statistics"):
        ckd.distill("wrn_10_1", teachers=[str(tmp_path / "t")], teacher_batch_norm="batch", out=tmp_path / "s")
