"""The exams that a third party's methods, rules and estimators can sit: ours pass, broken ones fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import checkpointkd as ckd
from checkpointkd.information import ESTIMATORS, ridge_information
from checkpointkd.losses import METHODS, soft_loss, takes_features
from checkpointkd.selection import RULES
from checkpointkd.testing import check_estimator, check_method, check_rule


@pytest.mark.parametrize("name", [name for name in METHODS if not takes_features(name)])
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


def test_broken_rules_and_estimators_fail():
    draws = iter(torch.rand(100).tolist())
    with pytest.raises(AssertionError, match="chose otherwise the second time"):
        check_rule(ckd.named(lambda candidates: [next(draws) for _ in candidates.epochs], "random draws"))

    def negative(*arguments: Any, **settings: Any) -> Any:
        values, details = ridge_information(*arguments, **settings)
        return -values, details

    with pytest.raises(AssertionError, match="must be above a map of noise"):
        check_estimator(ckd.named(negative, "negative"))
