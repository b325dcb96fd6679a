"""Teacher schedules: which teacher is used at which step, live and from the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data
from checkpointkd.distill_config import DistillConfig, scheduled_teacher
from checkpointkd.teachers.cached_batches import CachedTeacherBatches, with_cached_logits
from checkpointkd.teachers.ensemble import open_teacher

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 25, "precision": "fp32"}


def test_a_schedule_gives_each_teacher_an_equal_part_of_the_training():
    rco, progressive = DistillConfig(teacher_schedule="rco"), DistillConfig(teacher_schedule="progressive")
    for settings in (rco, progressive):
        assert [settings.weights_at(p, 3).index(1.0) for p in (0, 0.3, 0.34, 0.66, 0.67, 0.99)] == [0, 0, 1, 1, 2, 2]
    assert rco.tau_at(0.9, 5.0) == 5.0
    assert [progressive.tau_at(p, 5.0) for p in (0.0, 0.5, 1.0)] == [5.0, 3.0, 1.0]


@pytest.mark.parametrize(
    ("epochs", "teachers"), [(4, 2), (3, 2), (2, 5), (7, 3), (10, 10), (20, 7), (44, 22), (90, 45)]
)
def test_the_teachers_of_an_epoch_are_those_that_its_steps_use(epochs: int, teachers: int):
    config, steps = DistillConfig(teacher_schedule="rco"), 79
    for epoch in range(epochs):
        used = set()
        for step in range(steps):
            weights = config.weights_at((epoch + step / steps) / epochs, teachers)
            assert weights is not None
            used.add(weights.index(1.0))
            assert weights.index(1.0) == (epoch * steps + step) * teachers // (epochs * steps)
        active = config.active_teachers(epoch, epochs, teachers)
        assert used <= set(active)
        assert len(active) <= len(used) + 1


def test_the_first_step_of_an_epoch_uses_the_first_teacher_of_the_epoch():
    """Up to 200 epochs and 100 teachers. A float quotient names another teacher in one epoch of about 3,600."""
    disagreements = sum(
        scheduled_teacher(epoch / epochs, teachers) != epoch * teachers // epochs
        for epochs in range(1, 201)
        for teachers in range(1, 101)
        for epoch in range(epochs)
    )
    assert disagreements == 0
    config = DistillConfig(teacher_schedule="progressive")
    assert all(
        config.active_teachers(epoch, epochs, 22)[0] == scheduled_teacher(epoch / epochs, 22)
        for epochs in range(1, 201)
        for epoch in range(epochs)
    )


def test_random_schedule_uses_another_half_in_every_epoch_and_is_repeatable():
    config, epochs, teachers = DistillConfig(teacher_schedule="random"), 40, 5
    drawn = []
    for epoch in range(epochs):
        active = config.active_teachers(epoch, epochs, teachers, seed=3)
        for step in (0, 3, 6):
            weights = config.weights_at((epoch + step / 7) / epochs, teachers, epochs=epochs, seed=3)
            assert weights == tuple((teacher in active) / 3 for teacher in range(teachers))
        drawn.append(tuple(active))
    assert len(set(drawn)) > 5
    assert {teacher for active in drawn for teacher in active} == set(range(teachers))
    assert config.active_teachers(0, epochs, 1) == [0]
    assert [config.active_teachers(e, epochs, teachers, seed=4) for e in range(9)] != [list(d) for d in drawn[:9]]


@pytest.mark.parametrize("method", ["kd", "at"])
def test_random_schedule_gives_the_same_student_after_an_interruption(teacher_run: Path, tmp_path: Path, method: str):
    options = {"teachers": [f"{teacher_run}@{epoch}" for epoch in (1, 2, 4)], "teacher_schedule": "random"}
    whole = ckd.distill("wrn_10_1", method=method, out=tmp_path / "whole", **options, **SHORT)
    joint = ckd.distill("wrn_10_1", method=method, out=tmp_path / "joint", teachers=options["teachers"], **SHORT)
    live = ckd.distill("wrn_10_1", method=method, out=tmp_path / "live", logit_cache_gb=0, **options, **SHORT)
    assert whole.last.sha256 == live.last.sha256 != joint.last.sha256


def test_only_the_active_teachers_logits_are_computed(teacher_run: Path):
    data = load_data(DataConfig(data="digits", train_images=60))
    teacher = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"], device=CPU)
    batches = data.train.batches(batch_size=30, seed=0, device="cpu")
    cached = with_cached_logits(
        batches,
        data.train,
        teacher,
        precision="fp32",
        limit=10**9,
        on_progress=lambda *_: None,
        active_teachers=lambda epoch: [epoch],
    )
    assert isinstance(cached, CachedTeacherBatches)
    for epoch in (0, 1):
        for batch in cached.epoch(epoch):
            assert batch.teacher_TBK is not None
            assert batch.teacher_TBK[1 - epoch].abs().sum() == 0
            torch.testing.assert_close(batch.teacher_TBK[epoch], teacher.logits(batch)[epoch])


@pytest.mark.parametrize("teacher_schedule", ["rco", "progressive"])
def test_a_schedule_trains_another_student_with_and_without_the_cache(
    teacher_run: Path, tmp_path: Path, teacher_schedule: str
):
    def run(name: str, **options) -> str:
        student = ckd.distill(
            "wrn_10_1", teachers=[str(teacher_run)], ensemble="snapshot:2", out=tmp_path / name, **SHORT, **options
        )
        return student.last.sha256

    live, cached = (
        run("live", teacher_schedule=teacher_schedule, logit_cache_gb=0.0),
        run("cached", teacher_schedule=teacher_schedule),
    )
    assert live == cached != run("joint")
