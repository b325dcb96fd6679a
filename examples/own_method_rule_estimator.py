"""A distillation method, a rule and an estimator of one's own; each sits our exam first.

python examples/own_method_rule_estimator.py          # under a minute on two cores; scikit-learn's digits, no download
"""

import torch
from torch import nn
from torch.nn import functional as F

import checkpointkd as ckd
from checkpointkd.testing import check_estimator, check_method, check_rule


class CosineLoss(nn.Module):
    """1 − the cosine of the student's logits and the teachers' mean logits, plus the labels' loss (alpha)."""

    alpha, tau, weight, warm_up = 1.0, 4.0, 2.0, 0.0

    def forward(self, student_BK, teacher_TBK, labels_B, kd_config, weights):
        shares = teacher_TBK.new_tensor(weights or [1 / len(teacher_TBK)] * len(teacher_TBK))
        return 1 - F.cosine_similarity(student_BK, (shares[:, None, None] * teacher_TBK).sum(0))


def surely_right(candidates):
    return (candidates.scored.images["confidence"] * candidates.scored.images["correct"]).mean(1)


def variance_explained(fitted_on, fitted_maps, measured_on, measured_maps, *, settings, on_step, device):
    """How well a linear map from the mean feature to the mean color of an image works, as a share of its variance."""
    values = []
    target, wanted = (images.to_float().flatten(1) for images in (fitted_on, measured_on))
    for fitted, measured in zip(fitted_maps, measured_maps, strict=True):
        x, z = (torch.cat([m.flatten(1), torch.ones(len(m), 1)], 1) for m in (fitted, measured))
        gram = x.T @ x + 1e-2 * len(x) * torch.eye(x.shape[1])
        error = (z @ torch.linalg.solve(gram, x.T @ target) - wanted).square().mean(1)
        values.append(1 - error / wanted.var(0).mean())
    return torch.stack(values)[:, None], {}


method, rule, estimator = (
    ckd.named(own, name)
    for own, name in ((CosineLoss, "cosine"), (surely_right, "surely right"), (variance_explained, "variance"))
)
check_method(method)
check_rule(rule)
check_estimator(estimator)
ckd.train("wrn_10_1", data="digits", train_images=200, epochs=10, out="runs/mine/teacher")
ckd.score("runs/mine/teacher", estimator=estimator)
print(ckd.select("runs/mine/teacher", rule=rule, estimator=estimator).reason)
student = ckd.distill("wrn_10_1", teachers=["runs/mine/teacher@best"], method=method, epochs=5, out="runs/mine/student")
print(f"{method}: {student.test_accuracy:.1%}")
