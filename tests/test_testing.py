"""The exams that a third party's methods, rules and estimators can sit: ours pass, broken ones fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import checkpointkd as ckd
from checkpointkd.data import Batch
from checkpointkd.information import ESTIMATORS, ridge_information
from checkpointkd.losses import METHODS, soft_loss
from checkpointkd.losses.features import FeatureSpec
from checkpointkd.selection import RULES
from checkpointkd.testing import check_estimator, check_method, check_rule


@pytest.mark.parametrize("name", METHODS)
def test_our_methods_pass(name: str):
    check_method(name)


@pytest.mark.parametrize("name", [name for name in RULES if name != "algorithm1"])
def test_our_rules_pass(name: str):
    check_rule(name)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_our_estimators_pass(name: str):
    check_estimator(name)


def _method(loss: Any) -> str:
    class Own(nn.Module):
        alpha, tau, weight, warm_up = 0.5, 4.0, 1.0, 0.0

        def forward(self, student_BK: Any, teacher_TBK: Any, labels_B: Any, kd_config: Any, weights: Any) -> Any:
            return loss(student_BK, teacher_TBK, kd_config, weights)

    return ckd.named(Own, "Own")


BROKEN = {
    "one value per example": lambda s, t, c, w: soft_loss(s, t, c, w).mean(),
    "have no gradient": lambda s, t, c, w: 0 * s.sum(1),
    "is not finite": lambda s, t, c, w: soft_loss(s, t, c, w) + (-s.pow(2).sum(1)).exp().log(),
    "a teacher of weight 0 has an effect": lambda s, t, c, w: soft_loss(s, t, c, None),
    "in place": lambda s, t, c, w: soft_loss(s if s.requires_grad else s.mul_(1.5), t, c, w),
    "keep the type": lambda s, t, c, w: soft_loss(s, t, c, w).double(),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_methods_fail(reason: str):
    with pytest.raises(AssertionError, match=reason):
        check_method(_method(BROKEN[reason]))


def _feature_method(loss: Any, kind: str = "last") -> str:
    class OwnFeatures(nn.Module):
        alpha, weight, warm_up, feature_kind = 1.0, 1.0, 0.0, kind

        def __init__(self, spec: FeatureSpec) -> None:
            super().__init__()
            (channels, *_), (others, *_) = next(iter(spec.student.values())), next(iter(spec.teacher.values()))
            self.adapter = nn.Conv2d(channels, others, 1)

        def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
            return loss(self.adapter, student[0], teacher[0])

    return ckd.named(OwnFeatures, "OwnFeatures")


def _squares(adapter: Any, s: Tensor, t: Tensor) -> Tensor:
    return (adapter(s) - t).square().mean((1, 2, 3))


BROKEN_FEATURES = {
    "one value per example": lambda a, s, t: _squares(a, s, t).mean(),
    "have no gradient": lambda a, s, t: _squares(a, s.detach(), t),
    "loss is not finite for features of equal size that are zero": lambda a, s, t: (
        _squares(a, s, t) / s.square().sum((1, 2, 3))
    ),
    "gradient is not finite for": lambda a, s, t: _squares(a, s, t) + s.square().sum((1, 2, 3)).sqrt(),
    "about 1, 1 in a batch": lambda a, s, t: _squares(a, s, t) + a(s).mean((1, 2, 3)).std(),
    "in place": lambda a, s, t: _squares(a, s, t.mul_(2)),
    "keep the type": lambda a, s, t: _squares(a, s, t).double(),
    "differs with the same seed": lambda a, s, t: _squares(a, s, t) * next(DRAWS),
}
DRAWS = iter(torch.linspace(1, 2, 1000).tolist())


@pytest.mark.filterwarnings("ignore:std")  # of a batch of one
@pytest.mark.parametrize("reason", BROKEN_FEATURES)
def test_broken_feature_methods_fail(reason: str):
    check_method(_feature_method(_squares))
    with pytest.raises(AssertionError, match=reason):
        check_method(_feature_method(BROKEN_FEATURES[reason]))


def test_feature_method_that_leaves_out_a_stage_fails():
    with pytest.raises(AssertionError, match="have no gradient"):
        check_method(_feature_method(_squares, "stages"))


def test_broken_rules_and_estimators_fail():
    draws = iter(torch.rand(100).tolist())
    with pytest.raises(AssertionError, match="chose otherwise the second time"):
        check_rule(ckd.named(lambda candidates: [next(draws) for _ in candidates.epochs], "random draws"))

    def negative(*arguments: Any, **settings: Any) -> Any:
        values, details = ridge_information(*arguments, **settings)
        return -values, details

    with pytest.raises(AssertionError, match="must be above a map of noise"):
        check_estimator(ckd.named(negative, "negative"))
