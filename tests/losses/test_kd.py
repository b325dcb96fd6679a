"""The losses against closed forms that don't come from their code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from checkpointkd.config import KDConfig
from checkpointkd.data import Batch
from checkpointkd.errors import UserError
from checkpointkd.losses import (
    METHODS,
    LogitDistillation,
    Supervised,
    cross_entropy,
    kd,
    label_smoothing,
    soft_targets,
)

torch.manual_seed(0)
STUDENT, TEACHERS = torch.randn(5, 4).double(), torch.randn(3, 5, 4).double()
LABELS = torch.tensor([0, 1, 2, 3, 0])


def _softmax(row: list[float], tau: float) -> list[float]:
    powers = [math.exp(value / tau) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("tau_squared", [True, False])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_kd_by_hand(tau_squared: bool, average):
    """Eq. 1 and Eq. 2 in plain Python."""
    settings = KDConfig(alpha=0.3, tau=2.5, tau_squared=tau_squared, average=average)
    got = kd(STUDENT, TEACHERS, LABELS, settings)
    for b in range(5):
        hard = -math.log(_softmax(STUDENT[b].tolist(), 1)[int(LABELS[b])])
        if average == "probabilities":
            each = [_softmax(TEACHERS[t, b].tolist(), 2.5) for t in range(3)]
            target = [sum(column) / 3 for column in zip(*each, strict=True)]
        else:
            target = _softmax([sum(TEACHERS[t, b, k].item() for t in range(3)) / 3 for k in range(4)], 2.5)
        student = _softmax(STUDENT[b].tolist(), 2.5)
        soft = sum(p * math.log(p / q) for p, q in zip(target, student, strict=True))
        expected = 0.3 * hard + 0.7 * soft * (2.5**2 if tau_squared else 1)
        assert got[b].item() == pytest.approx(expected, rel=1e-12)


def test_kd_at_high_temperature_is_half_the_variance_of_the_logit_gap():
    """τ²·KL → ½·Var_k(z_T − z_S) as τ → ∞ (Hinton et al. 2015, §2.1)."""
    gap = TEACHERS[0] - STUDENT
    expected = 0.5 * gap.var(-1, correction=0)
    got = kd(STUDENT, TEACHERS[:1], LABELS, KDConfig(alpha=0.0, tau=1e4))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


def test_kd_of_a_model_with_itself_is_zero_and_flat():
    student = TEACHERS[0].clone().requires_grad_()
    loss = kd(student, TEACHERS[:1], LABELS, KDConfig(alpha=0.0, tau=3.0))
    torch.testing.assert_close(loss, torch.zeros(5).double())
    loss.sum().backward()
    torch.testing.assert_close(student.grad, torch.zeros(5, 4).double())


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_an_ensemble_of_equal_teachers_is_a_single_teacher(average):
    settings = KDConfig(average=average)
    alike = TEACHERS[:1].repeat(4, 1, 1)
    torch.testing.assert_close(kd(STUDENT, alike, LABELS, settings), kd(STUDENT, TEACHERS[:1], LABELS, settings))


def test_alpha_one_is_plain_cross_entropy():
    expected = torch.nn.functional.cross_entropy(STUDENT, LABELS, reduction="none")
    torch.testing.assert_close(kd(STUDENT, TEACHERS, LABELS, KDConfig(alpha=1.0)), expected)


def test_label_smoothing_is_kd_from_the_uniform_teacher():
    settings = KDConfig(alpha=0.9, tau=1.0, tau_squared=False)
    uniform = torch.zeros(1, 5, 4).double()
    expected = kd(STUDENT, uniform, LABELS, settings)
    torch.testing.assert_close(label_smoothing(STUDENT, LABELS, alpha=0.9), expected)


def test_label_smoothing_is_torchs_up_to_the_constant_entropy():
    smoothing = 0.1
    torchs = torch.nn.functional.cross_entropy(STUDENT, LABELS, reduction="none", label_smoothing=smoothing)
    ours = label_smoothing(STUDENT, LABELS, alpha=1 - smoothing)
    torch.testing.assert_close(torchs - ours, torch.full((5,), smoothing * math.log(4)).double())


def test_supervised_smooths_when_told():
    class Same(torch.nn.Module):
        def forward(self, images):
            return images

    batch = Batch(images_BCHW=STUDENT, labels_B=LABELS, index_B=LABELS, view_B=None)
    plain, _ = Supervised()(Same(), batch, 0.0)
    torch.testing.assert_close(plain, cross_entropy(STUDENT, LABELS))
    smoothed, _ = Supervised(smoothing=0.1)(Same(), batch, 0.0)
    torch.testing.assert_close(smoothed, label_smoothing(STUDENT, LABELS, alpha=0.9))
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="label smoothing must be at least 0 and below 1"):
            Supervised(smoothing=wrong)


def test_gradients_by_finite_differences():
    student = STUDENT.clone().requires_grad_()
    for settings in (KDConfig(), KDConfig(average="logits", tau_squared=False)):
        assert torch.autograd.gradcheck(lambda z, s=settings: kd(z, TEACHERS, LABELS, s), student)
    assert torch.autograd.gradcheck(lambda z: label_smoothing(z, LABELS, alpha=0.8), student)


def test_shifted_logits_say_the_same():
    shifted = kd(STUDENT + 3, TEACHERS - 7, LABELS, KDConfig())
    torch.testing.assert_close(shifted, kd(STUDENT, TEACHERS, LABELS, KDConfig()))


def test_certain_teachers_give_finite_losses():
    certain = torch.tensor([[[1000.0, 0.0, 0.0, 0.0]]]).double().repeat(1, 5, 1)
    student = STUDENT.clone().requires_grad_()
    loss = kd(student, certain, LABELS, KDConfig(tau=1.0))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_softened_predictions_sum_to_one():
    for average in ("probabilities", "logits"):
        torch.testing.assert_close(soft_targets(TEACHERS, tau=4.0, average=average).sum(-1), torch.ones(5).double())


class _Fixed:
    def __len__(self) -> int:
        return len(TEACHERS)

    def logits(self, batch: Batch, members: Sequence[int]) -> Tensor:
        return TEACHERS[list(members)]

    def look(self, member: int, batch: Batch, paths: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        raise AssertionError("a method of predictions looks inside no one")


def test_objectives_give_one_loss_an_example_and_the_logits():
    batch = Batch(torch.zeros(5, 1, 2, 2), LABELS, torch.arange(5), None)
    model = torch.nn.Module()
    model.forward = lambda images: STUDENT  # type: ignore[method-assign]
    kd_of_fixed = LogitDistillation(METHODS["kd"](), _Fixed(), KDConfig())
    for objective in (Supervised(), kd_of_fixed):
        loss, logits = objective(model, batch, 0.0)
        assert loss.shape == (5,)
        assert logits is STUDENT
    expected = kd(STUDENT, TEACHERS, LABELS, KDConfig())
    torch.testing.assert_close(kd_of_fixed(model, batch, 0.5)[0], expected)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"alpha": 1.01}, r"alpha must lie in \[0, 1\], not 1.01"),
        ({"alpha": -0.1}, "alpha must lie"),
        ({"alpha": float("nan")}, "alpha must lie"),
        ({"tau": 0}, r"tau must be above 0 \(from 0.001 to 10⁶\), not 0"),
        ({"tau": float("inf")}, "tau must be above 0 .*, not inf"),
        ({"average": "median"}, "unknown average 'median'"),
    ],
)
def test_settings_out_of_range_are_one_sentence(settings, sentence: str):
    with pytest.raises(UserError, match=sentence):
        KDConfig(**settings)
