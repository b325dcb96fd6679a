"""The same tests for all methods: the papers' equations by hand, invariances, gradients and extreme inputs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpointkd.data import Batch
from checkpointkd.distill_config import KDConfig
from checkpointkd.losses import METHODS, takes_features

from . import by_hand
from .cases import BATCH, FEATURE_METHODS, LABELS, LOGIT_METHODS, B, K, build_method, random, random_features

RELATIONAL = ["sp", "cc", "rkd", "pkt"]  # compare examples with each other, so feature sizes may differ


def test_the_exam_covers_both_kinds_of_methods():
    assert LOGIT_METHODS == ["kd", "lskd", "dkd", "dist", "wttm", "wsl", "mlkd", "mlkd-ls"]
    assert len(FEATURE_METHODS) == len(METHODS) - len(LOGIT_METHODS) > 0


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_logit_methods_match_their_equations(name: str):
    student, teachers = random(B, K), random(2, B, K, seed=1)
    actual = METHODS[name]()(student, teachers, LABELS, KDConfig(tau=2.5), None)
    student_rows, teacher_rows = student.tolist(), teachers.transpose(0, 1).tolist()
    if name == "dist":
        expected = by_hand.dist(student_rows, teacher_rows, 2.5)
    elif name.startswith("mlkd"):
        expected = by_hand.mlkd(student_rows, teacher_rows, 2.5, standardized=name == "mlkd-ls")
    elif name in ("dkd", "wsl"):
        of_example = getattr(by_hand, name)
        expected = [of_example(student_rows[b], teacher_rows[b], int(LABELS[b]), 2.5) for b in range(B)]
    else:
        expected = [getattr(by_hand, name)(student_rows[b], teacher_rows[b], 2.5) for b in range(B)]
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def _expected(name: str, method: Any, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Return the terms by hand: one per example, or the mean for methods that compare examples."""
    s, t = [x.tolist() for x in student], [x.tolist() for x in teacher]
    stages = range(len(student))
    if name == "fitnets":
        conv, norm = method.regressors[0].conv, method.regressors[0].norm
        moments = [moment.tolist() for moment in (norm.running_mean, norm.running_var)]
        weight = conv.weight[:, :, 0, 0].tolist()
        return torch.tensor([by_hand.fitnets(s[0][b], t[0][b], weight, *moments) for b in range(B)])
    if name == "at":
        return torch.tensor([sum(by_hand.at(s[n][b], t[n][b]) for n in stages) for b in range(B)])
    if name == "vid":
        weights = [[conv.weight[:, :, 0, 0].tolist() for conv in mean[::2]] for mean in method.means]
        scales = [scale.tolist() for scale in method.scales]
        return torch.tensor(
            [sum(by_hand.vid(s[n][b], t[n][b], weights[n], scales[n]) for n in stages) for b in range(B)]
        )
    if name == "reviewkd":
        return torch.tensor([_reviewkd(method, [s[n][b] for n in stages], [t[n][b] for n in stages]) for b in range(B)])
    if name == "fsp":
        return torch.tensor([by_hand.fsp([s[n][b] for n in stages], [t[n][b] for n in stages]) for b in range(B)])
    if name == "sp":
        return torch.tensor(by_hand.sp(s[0], t[0]))
    student_vectors, teacher_vectors = ([by_hand.pooled(m) for m in maps] for maps in (s[0], t[0]))
    return torch.tensor(getattr(by_hand, name)(student_vectors, teacher_vectors))


def _reviewkd(method: Any, student: list[by_hand.Map], teacher: list[by_hand.Map]) -> float:
    """Return ReviewKD's term of one example."""

    def adapted(adapter: Any, m: by_hand.Map) -> list[list[list[float]]]:
        norm = adapter.norm
        return by_hand.adapter(m, adapter.conv.weight.tolist(), norm.running_mean.tolist(), norm.running_var.tolist())

    last = [[[[value]] for value in by_hand.pooled(maps[-1])] for maps in (student, teacher)]
    total, residual = 0.0, None
    for fusion, m, target in reversed(list(zip(method.fusions, [*student, last[0]], [*teacher, last[1]], strict=True))):
        reduced = adapted(fusion.reduce, m)
        if residual is not None:
            weight, bias = fusion.attention.weight[:, :, 0, 0].tolist(), fusion.attention.bias.tolist()
            reduced = by_hand.fused(reduced, by_hand.nearest(residual, len(m[0])), weight, bias)
        residual = by_hand.nearest(reduced, len(target[0]))
        total += by_hand.hcl(adapted(fusion.expand, residual), target)
    return total


@pytest.mark.parametrize("name", [name for name in FEATURE_METHODS if name != "crd"])
def test_feature_methods_match_their_equations(name: str):
    """CRD has a test of its own, because it draws its negatives."""
    student, teacher = random_features(name)
    method = build_method(name, student, teacher)
    method(student, teacher, BATCH)  # updates the running statistics of batch norm
    actual = method.eval()(student, teacher, BATCH)
    assert actual.shape == (B,)
    expected = _expected(name, method, student, teacher).double()
    torch.testing.assert_close(actual.mean() if expected.dim() == 0 else actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_loss_and_gradient_are_zero_for_the_teachers_logits(name: str):
    """In WTTM the student has no temperature, so its logits are those of the teacher over τ."""
    teacher = random(B, K)
    student = (teacher / 3.0 if name == "wttm" else teacher.clone()).requires_grad_()
    loss = METHODS[name]()(student, teacher[None], LABELS, KDConfig(tau=3.0), None)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros(B).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros(B, K).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "name", [name for name in FEATURE_METHODS if name not in ("fitnets", "vid", "crd", "reviewkd")]
)
def test_loss_is_zero_for_the_teachers_features(name: str):
    """The excluded methods put layers of their own between student and teacher."""
    _, teacher = random_features(name)
    student = [x.clone().requires_grad_() for x in teacher]
    loss = build_method(name, student, teacher)(student, teacher, BATCH)
    torch.testing.assert_close(loss, torch.zeros(B).double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_an_ensemble_of_copies_equals_one_teacher(name: str):
    student, teacher = random(B, K), random(1, B, K, seed=1)
    method, config = METHODS[name](), KDConfig(tau=2.0)
    expected = method(student, teacher, LABELS, config, None)
    torch.testing.assert_close(method(student, teacher.repeat(3, 1, 1), LABELS, config, None), expected)
    two_teachers = torch.cat([teacher, random(1, B, K, seed=2)])
    torch.testing.assert_close(method(student, two_teachers, LABELS, config, [1.0, 0.0]), expected)


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_logit_methods_are_invariant_to_shifts(name: str):
    """lskd is invariant to the scale of the logits, too."""
    student, teachers = random(B, K), random(2, B, K, seed=1)
    method, config = METHODS[name](), KDConfig(tau=2.0)
    expected = method(student, teachers, LABELS, config, None)
    torch.testing.assert_close(method(student + 3, teachers - 5, LABELS, config, None), expected)
    scaled = method(3 * student, teachers, LABELS, config, None)
    if name == "lskd":
        torch.testing.assert_close(scaled, expected)
    else:
        assert not torch.allclose(scaled, expected)


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_feature_methods_have_their_invariances(name: str):
    """`at` and the relational methods ignore channel order and scale, the relational ones rotations as well.

    All of them but crd, which draws its negatives by position, follow a permutation of the examples.
    """
    student, teacher = random_features(name)
    method = build_method(name, student, teacher).eval()

    def term(student: list[Tensor], batch: Batch = BATCH, teacher: list[Tensor] = teacher) -> Tensor:
        torch.manual_seed(7)
        return method(student, teacher, batch)

    expected = term(student)
    permuted, scaled = term([x.flip(1) for x in student]), term([3 * x for x in student])
    if name in ("at", *RELATIONAL):
        torch.testing.assert_close(permuted, expected)
        torch.testing.assert_close(scaled, expected)
    else:
        assert not torch.allclose(permuted, expected)
        assert not torch.allclose(scaled, expected)
    if name in RELATIONAL:
        rotation = torch.linalg.qr(random(3, 3, seed=5)).Q
        rotated = [torch.einsum("bchw,cd->bdhw", x, rotation) for x in student]
        torch.testing.assert_close(term(rotated), expected)
    if name != "crd":
        order = torch.tensor([3, 0, 4, 1, 2])
        reordered = Batch(BATCH.images_BCHW, LABELS[order], BATCH.index_B[order], None)
        actual = term([x[order] for x in student], reordered, [x[order] for x in teacher])
        torch.testing.assert_close(actual, expected[order])


def test_weights_of_wsl_have_no_gradient():
    """The gradient is that of KD times the weight of each example."""
    teachers, config = random(2, B, K, seed=1), KDConfig(tau=2.0)
    of_kd, of_wsl = (random(B, K).requires_grad_() for _ in range(2))
    kd_B, wsl_B = (
        METHODS["kd"]()(of_kd, teachers, LABELS, config, None),
        METHODS["wsl"]()(of_wsl, teachers, LABELS, config, None),
    )
    kd_B.sum().backward()
    wsl_B.sum().backward()
    assert of_kd.grad is not None
    torch.testing.assert_close(of_wsl.grad, (wsl_B / kd_B).detach()[:, None] * of_kd.grad)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "wsl"])
def test_gradients_equal_finite_differences(name: str):
    if not takes_features(name):
        method, teachers, config = METHODS[name](), random(2, B, K, seed=1), KDConfig(tau=2.0)
        logits = random(B, K).requires_grad_()
        assert torch.autograd.gradcheck(lambda z: method(z, teachers, LABELS, config, None), logits)
        return
    student, teacher = random_features(name)
    method = build_method(name, student, teacher, **({"negatives": 4} if name == "crd" else {}))
    if name == "crd":
        method(student, teacher, BATCH)  # estimates Z
        method.eval()
    inputs = [x.requires_grad_() for x in student]

    def term(*values: Tensor) -> Tensor:
        torch.manual_seed(1)
        return method(list(values[: len(inputs)]), teacher, BATCH)

    assert torch.autograd.gradcheck(term, (*inputs, *method.parameters()), atol=1e-4)


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_extreme_logits_give_finite_losses_and_gradients(name: str):
    """Constant logits, confident predictions, and a batch of one."""
    for student in (torch.zeros(B, K), 1000.0 * torch.eye(K)[LABELS], torch.zeros(1, K)):
        labels = LABELS[: len(student)]
        student = student.clone().requires_grad_()
        loss = METHODS[name]()(student, 500.0 * torch.eye(K)[labels][None], labels, KDConfig(tau=1.0), None)
        loss.sum().backward()
        assert student.grad is not None
        assert loss.isfinite().all()
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_extreme_features_give_finite_losses_and_gradients(name: str):
    """Zero features, equal features, and a batch of one."""
    for value, rows in itertools.product((0.0, 1.0), (B, 1)):
        student, teacher = (
            [torch.full_like(x[:rows], value).float() for x in features] for features in random_features(name)
        )
        method = build_method(name, student, teacher).float()
        inputs = [x.requires_grad_() for x in student]
        batch = Batch(BATCH.images_BCHW[:rows], LABELS[:rows], BATCH.index_B[:rows], None)
        loss = method(inputs, teacher, batch)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)
