from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import checkpointkd as ckd
from checkpointkd.config import KDConfig, Recipe
from checkpointkd.data import DataConfig, load_data
from checkpointkd.errors import UserError
from checkpointkd.losses import METHODS, LogitDistillation
from checkpointkd.models import build_network
from checkpointkd.records import TeacherRecord
from checkpointkd.teachers.ensemble import Teacher, open_teacher, refuse_at_chance
from checkpointkd.training.loop import fit, start

CPU = torch.device("cpu")


def test_a_teacher_stays_as_it_is_while_a_student_learns(teacher_run: Path):
    """In evaluation mode, its batch-norm statistics and weights untouched, and without gradients."""
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
    for network, was in zip(networks, before, strict=True):
        assert all(torch.equal(tensor, was[name]) for name, tensor in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
    assert state.objective.state_dict() == {}, "a student's state must not carry its teachers"


def test_logits_are_the_members_in_order(teacher_run: Path):
    data = load_data(DataConfig(data="digits", train_images=60))
    (batch,) = data.train.batches(batch_size=60, seed=0, device=CPU).epoch(0)
    both = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"], device=CPU).logits(batch)
    assert both.shape == (2, 60, 10)
    for row, epoch in enumerate((2, 4)):
        network = ckd.open_trajectory(teacher_run)[epoch].network()
        torch.testing.assert_close(both[row], network(batch.images_BCHW).detach(), rtol=2**-11, atol=1e-6)
        assert torch.equal(both[row], both[row].half().float()), "in 16 bits, as a table has them"


def test_an_ensemble_of_one_checkpoint_twice_measures_as_the_checkpoint(teacher_run: Path):
    data = load_data(DataConfig(data="digits", train_images=60))
    measured = open_teacher([f"{teacher_run}@4"] * 2, device=CPU).measure(data.val)
    for name in ("accuracy", "nll"):
        assert measured["ensemble"][name] == pytest.approx(measured["members"][0][name], abs=1e-6)


def test_a_teacher_at_chance_is_refused_unless_wanted(tmp_path: Path):
    """One step at a learning rate of nearly nothing leaves a network that guesses."""
    ckd.train("wrn_10_1", data="digits", train_images=60, epochs=1, learning_rate=1e-9, out=tmp_path / "t")
    with pytest.raises(UserError, match=r"where guessing is on 10\.\d%.*--allow-weak-teacher"):
        ckd.distill("wrn_10_1", teachers=[str(tmp_path / "t")], epochs=1, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    ckd.distill("wrn_10_1", teachers=[str(tmp_path / "t")], epochs=1, allow_weak_teacher=True, out=tmp_path / "s")


def test_chance_is_the_most_frequent_class_and_its_noise():
    measured = {"members": [{"ref": "t", "accuracy": 0.03}]}
    refuse_at_chance(measured, torch.arange(100).repeat(50))
    with pytest.raises(UserError, match=r"guessing is on 1\.0%"):
        refuse_at_chance(measured, torch.arange(100))
    with pytest.raises(UserError, match=r"guessing is on 90\.0%"):
        refuse_at_chance({"members": [{"ref": "t", "accuracy": 0.9}]}, torch.tensor([0] * 90 + [1] * 10))


def test_the_students_manifest_names_its_teachers(teacher_run: Path, tmp_path: Path):
    student = ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@2"], epochs=1, out=tmp_path / "s")
    checkpoint = ckd.open_trajectory(teacher_run)[2]
    assert student.run.teachers == (TeacherRecord(epoch=2, sha256=checkpoint.sha256),)
    assert student.run.kd == KDConfig(alpha=0.5, tau=5.0, tau_squared=True, average="probabilities")
    assert student.run.teachers_measured.members[0].accuracy > 0.1


def test_teachers_are_measured_once(teacher_run: Path, tmp_path: Path, monkeypatch):
    """Not again for a second student, another ensemble or a run that has moved; but where what was kept is damaged."""
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home"))
    asked: list[str] = []
    real = Teacher._compute_clean

    def ask(teacher: Teacher, member: int, images: Any) -> torch.Tensor:
        asked.append(teacher.members[member].text)
        return real(teacher, member, images)

    monkeypatch.setattr(Teacher, "_compute_clean", ask)

    def taught(name: str, *teachers: str, **more: Any) -> dict[str, Any]:
        run = ckd.distill(
            "wrn_10_1",
            teachers=list(teachers),
            data="digits",
            out=tmp_path / name,
            epochs=1,
            batch_size=50,
            train_images=100,
            **more,
        )
        return json.loads((run.path / "run.json").read_text())["teachers_measured"]

    first = taught("one", f"{teacher_run}@last")
    assert asked == [f"{teacher_run}@last"]
    assert first["members"][0]["accuracy"] == pytest.approx(0.56, abs=0.01)
    moved = teacher_run.rename(tmp_path / "moved")
    both = taught("two", f"{moved}@last", f"{moved}@midpoint", seed=1)
    assert asked[1:] == [f"{moved}@midpoint"]
    assert both["members"][0] == {**first["members"][0], "ref": f"{moved}@last"}
    assert both["members"][1]["accuracy"] == pytest.approx(0.33, abs=0.01)
    kept = list((tmp_path / "home" / "logits").glob("*/*.safetensors"))
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(path.read_bytes()[:-3])
    assert taught("three", f"{moved}@last")["members"] == both["members"][:1]
    assert len(asked) == 3
    assert ckd.evaluate(f"{moved}@last")["ensemble"]["accuracy"] == first["ensemble"]["accuracy"]
    assert len(asked) == 3


def test_answers_are_kept_where_they_can_be(teacher_run: Path, tmp_path: Path, monkeypatch):
    """Nowhere to write costs time only, and another's answers are not taken for these."""
    home = tmp_path / "home"
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(home))
    full, half = (ckd.evaluate(f"{teacher_run}@{which}", split="test") for which in ("last", "midpoint"))
    assert full["ensemble"]["accuracy"] != half["ensemble"]["accuracy"]
    one, other = (home / "logits").glob("*/*.safetensors")
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert ckd.evaluate(f"{teacher_run}@last", split="test")["ensemble"] == full["ensemble"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "file" / "home"))
    assert ckd.evaluate(f"{teacher_run}@midpoint", split="test")["ensemble"] == half["ensemble"]


def test_answers_to_pictures_that_may_change_are_not_kept(tmp_path: Path, monkeypatch):
    """Pictures of the same names somewhere else are other pictures."""
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home"))
    noise = np.random.default_rng(0)
    for root in ("clean", "noisy"):
        for split, name in itertools.product(("train", "val"), ("a", "b")):
            (tmp_path / root / split / name).mkdir(parents=True)
            for number in range(12):
                level = {"a": 40, "b": 200}[name] if root == "clean" else 120
                pixels = np.clip(noise.normal(level, 10, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / root / split / name / f"{number}.png")
    run = ckd.train(
        "wrn_10_1",
        data=f"folder:{tmp_path / 'clean'}",
        image_size=8,
        epochs=6,
        batch_size=6,
        select_on="test",
        precision="fp32",
        out=tmp_path / "run",
    )
    clean = ckd.evaluate(str(run.path), split="test")["ensemble"]
    noisy = ckd.evaluate(str(run.path), split="test", data=f"folder:{tmp_path / 'noisy'}")["ensemble"]
    assert noisy["nll"] > clean["nll"] + 0.1


def test_other_teachers_are_another_run(teacher_run: Path, tmp_path: Path):
    ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@2"], epochs=1, out=tmp_path / "s")
    with pytest.raises(UserError, match=r"already holds another run \(taught_by"):
        ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@4"], epochs=1, out=tmp_path / "s")
    with pytest.raises(UserError, match=r"already holds another run \(kd alpha 0\.5 there, 0\.9 here\)"):
        ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@2"], alpha=0.9, epochs=1, out=tmp_path / "s")


def test_a_teacher_of_another_split_is_pointed_out(teacher_run: Path, tmp_path: Path, caplog):
    ckd.distill("wrn_10_1", teachers=[str(teacher_run)], select_on="test", epochs=1, out=tmp_path / "s")
    assert "was trained on another split" not in caplog.text, "nothing of ours learns from the test images"
    ckd.distill(
        "wrn_10_1",
        teachers=[str(tmp_path / "s")],
        select_on="val",
        epochs=1,
        allow_weak_teacher=True,
        out=tmp_path / "t",
    )
    assert "was trained on another split" in caplog.text
