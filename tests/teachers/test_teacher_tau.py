"""Teachers whose logits are scaled before they are softened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data
from checkpointkd.distill_config import DistillConfig, KDConfig
from checkpointkd.losses import METHODS, LogitDistillation, Teaching
from checkpointkd.teachers.ensemble import logit_scales, open_teacher

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 50, "learning_rate": 0.01, "precision": "fp32"}


def test_auto_is_the_temperature_with_the_lowest_loss(teacher_run: Path):
    data = load_data(DataConfig(data="digits", train_images=100))
    teacher = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"])
    scales = logit_scales(teacher, data.val, "auto")
    assert scales is not None
    for scale, logits_NK in zip(scales, teacher.predict(data.val), strict=True):
        losses = [cross_entropy(factor * scale * logits_NK, data.val.labels_N).item() for factor in (0.8, 1.0, 1.25)]
        assert losses[1] == min(losses)


def test_matched_gives_the_logits_the_spread_of_the_last_checkpoints(teacher_run: Path):
    data = load_data(DataConfig(data="digits", train_images=100))
    teacher = open_teacher([f"{teacher_run}@1", f"{teacher_run}@last"])
    scales = logit_scales(teacher, data.val, "matched")
    assert scales is not None
    spread_T = teacher.predict(data.val).std(-1, correction=0).mean(-1)
    first, last = (torch.tensor(scales) * spread_T).tolist()
    assert first == pytest.approx(last, rel=1e-5)
    assert scales[1] == 1.0
    assert scales[0] != pytest.approx(1.0, abs=0.05)
    assert logit_scales(teacher, data.val, "fixed") is None


@pytest.mark.parametrize("cache", [0.0, 20.0])
def test_a_run_learns_from_the_scaled_logits(teacher_run: Path, tmp_path: Path, cache: float):
    runs = {
        mode: ckd.distill(
            "wrn_10_1",
            teachers=[f"{teacher_run}@1"],
            teacher_tau=mode,
            logit_cache_gb=cache,
            out=tmp_path / mode,
            **SHORT,
        )
        for mode in ("fixed", "auto", "matched")
    }
    assert len({run.last.sha256 for run in runs.values()}) == 3
    assert runs["fixed"].run.teacher_scales is None
    (scale,) = runs["auto"].run.teacher_scales
    # The same as a temperature of the teacher of its own, computed without the option.
    assert scale == pytest.approx(logit_scales(open_teacher([f"{teacher_run}@1"]), _val(), "auto")[0])


def _val():
    return load_data(DataConfig(data="digits", train_images=100)).val


def test_active_teachers_have_their_own_factors():
    class Teachers:
        def __len__(self) -> int:
            return 2

        def logits(self, batch: Any, members: Any) -> Tensor:
            return torch.stack([(member + 1) * torch.tensor([[1.0, -1.0]]) for member in members])

    class Student(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[0.3, 0.1]])

    from checkpointkd.data import Batch

    batch = Batch(torch.zeros(1, 1, 2, 2), torch.tensor([0]), torch.tensor([0]), None)
    for schedule, fraction, factors in (("rco", 0.7, [2 * 5.0]), ("joint", 0.0, [3.0, 2 * 5.0])):
        config = DistillConfig(teacher_schedule=schedule)
        objective = LogitDistillation(
            METHODS["kd"](), Teachers(), KDConfig(alpha=0.0), config, teaching=Teaching(scales=[3.0, 5.0])
        )
        scaled = torch.tensor([[1.0, -1.0]]) * torch.tensor(factors)[:, None, None]
        expected = METHODS["kd"]()(torch.tensor([[0.3, 0.1]]), scaled, batch.labels_B, KDConfig(), None)
        torch.testing.assert_close(objective(Student(), batch, fraction)[0], expected)
