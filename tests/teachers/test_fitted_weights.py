"""Weights of an ensemble that are fitted on the validation set, for all classes or for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import nll_loss

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data
from checkpointkd.distill_config import KDConfig
from checkpointkd.errors import UserError
from checkpointkd.losses import METHODS, LogitDistillation, Teaching, soft_targets
from checkpointkd.teachers.ensemble import CLASS_PRIOR, mixture_weights, open_teacher

SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 50, "precision": "fp32"}


def _nll(logits_TNK: Tensor, labels_N: Tensor, weights: Any) -> float:
    return nll_loss(soft_targets(logits_TNK, tau=1.0, weights=weights).log(), labels_N).item()


def test_weights_have_the_lowest_nll(teacher_run: Path):
    """Against a scalar search over the weight of the first of two teachers."""
    data = load_data(DataConfig(data="digits", train_images=100))
    logits_TNK = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"]).predict(data.val)
    weights = mixture_weights(logits_TNK, data.val.labels_N).tolist()
    assert sum(weights) == pytest.approx(1)
    best = minimize_scalar(lambda w: _nll(logits_TNK, data.val.labels_N, (w, 1 - w)), bounds=(0, 1), method="bounded")
    assert _nll(logits_TNK, data.val.labels_N, weights) == pytest.approx(best.fun, abs=1e-4)
    assert _nll(logits_TNK, data.val.labels_N, weights) <= _nll(logits_TNK, data.val.labels_N, None)


def test_class_has_the_weight_of_the_teacher_that_knows_it():
    """The first teacher knows class 0, the second class 1. Class 2 has no images: it has the weights of all."""
    sure = torch.tensor([[6.0, 0.0, 0.0], [0.0, 6.0, 0.0]])
    labels_N = torch.tensor([0, 1]).repeat(200)
    first = torch.stack([sure[0] if label == 0 else -sure[1] for label in labels_N])
    second = torch.stack([sure[1] if label == 1 else -sure[0] for label in labels_N])
    logits_TNK = torch.stack([first, second])
    weights_TK = mixture_weights(logits_TNK, labels_N, per_class=True)
    assert weights_TK.sum(0).tolist() == pytest.approx([1, 1, 1])
    share = 200 / (200 + CLASS_PRIOR)
    assert weights_TK[0, 0].item() == pytest.approx(share + 0.5 * (1 - share), abs=0.01)
    assert weights_TK[1, 1].item() == pytest.approx(share + 0.5 * (1 - share), abs=0.01)
    assert weights_TK[:, 2].tolist() == pytest.approx([0.5, 0.5], abs=1e-3)


@pytest.mark.parametrize("name", ["kd", "dkd", "mlkd"])
def test_objective_weights_each_example_by_its_class(name: str):
    teacher_TBK = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    labels_B = torch.tensor([0, 1, 2, 0, 1, 2])
    weights_TK = torch.tensor([[1.0, 0.0, 0.25], [0.0, 1.0, 0.75]])
    method = METHODS[name]()
    student_BK = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    got = method(student_BK, teacher_TBK, labels_B, KDConfig(), weights_TK[:, labels_B])
    mixed = (weights_TK[:, labels_B, None] * (teacher_TBK / 5.0).softmax(-1)).sum(0)
    if name == "kd":
        torch.testing.assert_close(got, method(student_BK, 5.0 * mixed.log()[None], labels_B, KDConfig(), None))
    else:
        assert got.isfinite().all()
    same = method(student_BK, teacher_TBK, labels_B, KDConfig(), torch.full((2, 6), 0.5))
    torch.testing.assert_close(same, method(student_BK, teacher_TBK, labels_B, KDConfig(), None))


@pytest.mark.parametrize("method", ["kd", "at"])
def test_run_learns_with_the_fitted_weights_and_records_them(teacher_run: Path, tmp_path: Path, method: str):
    options = {"teachers": [f"{teacher_run}@3", f"{teacher_run}@4"], "method": method, "allow_weak_teacher": True}
    runs = {
        weights: ckd.distill("wrn_10_1", teacher_weights=[weights], out=tmp_path / weights, **options, **SHORT)
        for weights in ("auto", "auto-per-class")
    }
    equal = ckd.distill("wrn_10_1", out=tmp_path / "equal", **options, **SHORT)
    assert len({run.last.sha256 for run in [*runs.values(), equal]}) == 3
    fitted = runs["auto"].run.fitted_weights
    assert [len(weights) for weights in fitted] == [1, 1]
    assert fitted[1][0] > fitted[0][0], "epoch 4 knows more than epoch 3"
    assert [len(weights) for weights in runs["auto-per-class"].run.fitted_weights] == [10, 10]
    by_hand = ckd.distill(
        "wrn_10_1", teacher_weights=[w for (w,) in fitted], out=tmp_path / "by-hand", **options, **SHORT
    )
    assert by_hand.last.sha256 == runs["auto"].last.sha256
    assert equal.run.fitted_weights is None
    again = ckd.distill("wrn_10_1", teacher_weights="auto", out=tmp_path / "auto", **options, **SHORT)
    assert again.last.sha256 == runs["auto"].last.sha256
    live = ckd.distill(
        "wrn_10_1", teacher_weights=["auto-per-class"], logit_cache_gb=0, out=tmp_path / "live", **options, **SHORT
    )
    assert live.last.sha256 == runs["auto-per-class"].last.sha256


def test_objective_uses_all_teachers_with_fitted_weights(teacher_run: Path):
    data = load_data(DataConfig(data="digits", train_images=60))
    batch = next(iter(data.train.batches(batch_size=20, seed=0, device="cpu").epoch(0)))
    student = ckd.open_trajectory(teacher_run).last.network()
    teacher = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"])

    def loss(weights: Tensor | None) -> Tensor:
        teaching = Teaching(weights=weights)
        objective = LogitDistillation(METHODS["kd"](), teacher, KDConfig(), teaching=teaching)
        return objective(student, batch, 0.5)[0].detach()

    torch.testing.assert_close(loss(torch.full((2, 10), 0.5)), loss(None))
    torch.testing.assert_close(loss(torch.tensor([0.5, 0.5])), loss(None))
    assert not torch.allclose(loss(torch.tensor([0.9, 0.1])), loss(None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_weights": ["auto"]}, "--teacher-weights auto needs several teachers, but only one is given"),
        ({"teacher_weights": ["best"]}, "takes numbers, auto, or auto-per-class, not 'best'"),
        ({"teacher_weights": ["0.5", "x"]}, "not '0.5 x'"),
        ({"teacher_weights": ["auto"], "teacher_schedule": "rco"}, "cannot be combined with --teacher-schedule rco"),
    ],
)
def test_wrong_weights_are_refused(teacher_run: Path, tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        ckd.distill("wrn_10_1", teachers=[str(teacher_run)], out=tmp_path / "s", **options, **SHORT)
    assert not (tmp_path / "s").exists()
    with pytest.raises(UserError, match="is fitted when a student is trained"):
        ckd.evaluate(str(teacher_run), teacher_weights=["auto"])
