"""The loss functions against closed forms that are independent of their code."""

from __future__ import annotations

import math

import pytest
import torch

from checkpointkd.distill_config import KDConfig
from checkpointkd.errors import UserError
from checkpointkd.losses import kd, label_smoothing, soft_targets

torch.manual_seed(0)
STUDENT, TEACHERS = torch.randn(5, 4).double(), torch.randn(3, 5, 4).double()
LABELS = torch.tensor([0, 1, 2, 3, 0])


def _softmax(row: list[float], tau: float) -> list[float]:
    powers = [math.exp(value / tau) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("tau_squared", [True, False])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_kd_matches_its_equations(tau_squared: bool, average):
    """Eqs. 1 and 2 in plain Python."""
    config = KDConfig(alpha=0.3, tau=2.5, tau_squared=tau_squared, average=average)
    actual = kd(STUDENT, TEACHERS, LABELS, config)
    for b in range(5):
        hard = -math.log(_softmax(STUDENT[b].tolist(), 1)[int(LABELS[b])])
        if average == "probabilities":
            softened = [_softmax(TEACHERS[t, b].tolist(), 2.5) for t in range(3)]
            target = [sum(column) / 3 for column in zip(*softened, strict=True)]
        else:
            target = _softmax([sum(TEACHERS[t, b, k].item() for t in range(3)) / 3 for k in range(4)], 2.5)
        student = _softmax(STUDENT[b].tolist(), 2.5)
        soft = sum(p * math.log(p / q) for p, q in zip(target, student, strict=True))
        expected = 0.3 * hard + 0.7 * soft * (2.5**2 if tau_squared else 1)
        assert actual[b].item() == pytest.approx(expected, rel=1e-12)


def test_kd_at_high_temperature_is_half_the_variance_of_the_logit_gap():
    """τ²·KL → ½·Var_k(z_T − z_S) as τ → ∞ (Hinton et al. 2015, §2.1)."""
    gap = TEACHERS[0] - STUDENT
    expected = 0.5 * gap.var(-1, correction=0)
    actual = kd(STUDENT, TEACHERS[:1], LABELS, KDConfig(alpha=0.0, tau=1e4))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)


def test_kd_of_a_model_with_itself_is_zero_with_zero_gradient():
    student = TEACHERS[0].clone().requires_grad_()
    loss = kd(student, TEACHERS[:1], LABELS, KDConfig(alpha=0.0, tau=3.0))
    torch.testing.assert_close(loss, torch.zeros(5).double())
    loss.sum().backward()
    torch.testing.assert_close(student.grad, torch.zeros(5, 4).double())


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_an_ensemble_of_copies_equals_one_teacher(average):
    config = KDConfig(average=average)
    copies = TEACHERS[:1].repeat(4, 1, 1)
    torch.testing.assert_close(kd(STUDENT, copies, LABELS, config), kd(STUDENT, TEACHERS[:1], LABELS, config))


def test_alpha_one_is_plain_cross_entropy():
    expected = torch.nn.functional.cross_entropy(STUDENT, LABELS, reduction="none")
    torch.testing.assert_close(kd(STUDENT, TEACHERS, LABELS, KDConfig(alpha=1.0)), expected)


def test_label_smoothing_is_kd_from_the_uniform_teacher():
    config = KDConfig(alpha=0.9, tau=1.0, tau_squared=False)
    uniform = torch.zeros(1, 5, 4).double()
    expected = kd(STUDENT, uniform, LABELS, config)
    torch.testing.assert_close(label_smoothing(STUDENT, LABELS, alpha=0.9), expected)


def test_label_smoothing_equals_pytorchs_up_to_a_constant_entropy():
    smoothing = 0.1
    pytorch_loss = torch.nn.functional.cross_entropy(STUDENT, LABELS, reduction="none", label_smoothing=smoothing)
    loss = label_smoothing(STUDENT, LABELS, alpha=1 - smoothing)
    torch.testing.assert_close(pytorch_loss - loss, torch.full((5,), smoothing * math.log(4)).double())


def test_gradients_equal_finite_differences():
    student = STUDENT.clone().requires_grad_()
    for config in (KDConfig(), KDConfig(average="logits", tau_squared=False)):
        assert torch.autograd.gradcheck(lambda z, config=config: kd(z, TEACHERS, LABELS, config), student)
    assert torch.autograd.gradcheck(lambda z: label_smoothing(z, LABELS, alpha=0.8), student)


def test_kd_is_invariant_to_shifts_of_logits():
    shifted = kd(STUDENT + 3, TEACHERS - 7, LABELS, KDConfig())
    torch.testing.assert_close(shifted, kd(STUDENT, TEACHERS, LABELS, KDConfig()))


def test_confident_teachers_give_finite_losses():
    confident = torch.tensor([[[1000.0, 0.0, 0.0, 0.0]]]).double().repeat(1, 5, 1)
    student = STUDENT.clone().requires_grad_()
    loss = kd(student, confident, LABELS, KDConfig(tau=1.0))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_soft_targets_sum_to_one():
    for average in ("probabilities", "logits"):
        torch.testing.assert_close(soft_targets(TEACHERS, tau=4.0, average=average).sum(-1), torch.ones(5).double())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"alpha": 1.01}, r"alpha must lie in \[0, 1\], not 1.01"),
        ({"alpha": -0.1}, "alpha must lie"),
        ({"alpha": float("nan")}, "alpha must lie"),
        ({"tau": 0}, r"tau must be above 0 \(from 0.001 to 10⁶\), not 0"),
        ({"tau": float("inf")}, "tau must be above 0 .*, not inf"),
        ({"average": "median"}, "(?i)unknown average 'median'"),
    ],
)
def test_kd_config_refuses_values_out_of_range(config, message: str):
    with pytest.raises(UserError, match=message):
        KDConfig(**config)
