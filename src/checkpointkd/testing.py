"""Exams for methods, rules and estimators of your own. Each raises AssertionError that names what is wrong.

    from checkpointkd.testing import check_method
    check_method(MyMethod)

Letters in names: B batch, K classes, T teachers, A checkpoints, N images, D channels, h w map height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .config import EstimatorConfig
from .data import Batch, InMemoryImages
from .distill_config import KDConfig
from .errors import UserError
from .information import scores_of_logits
from .losses import get_method, takes_features
from .losses.features import FeatureSpec
from .selection import Candidates, choose
from .user_code import name_of

B, K, T = 6, 5, 2


def check_method(method: str | type[nn.Module]) -> None:
    """Check a distillation method: shapes, gradients, extreme and low-precision inputs, and no change of its inputs.

    A method from logits is also checked for its weights of teachers. A feature method is checked with small and large
    batches, with features that are all zero, and with networks of equal and of different sizes.

    Args:
        method: The class, or its name.

    Raises:
        AssertionError: If the method fails the check.
        UserError: If it is no method.

    >>> check_method("dkd")
    >>> check_method("fitnets")
    """
    name = name_of(method)
    method_class = get_method(name)
    assert 0 <= method_class.alpha <= 1, f"alpha must lie in [0, 1], not {method_class.alpha}"
    assert 0 <= method_class.warm_up < 1, f"warm_up must lie in [0, 1), not {method_class.warm_up}"
    _check_feature_method(method_class) if takes_features(name) else _check_logit_method(method_class)


def _check_logit_method(method_class: Any) -> None:
    random = torch.Generator().manual_seed(0)
    student_BK = torch.randn(B, K, generator=random, dtype=torch.float64)
    teacher_TBK = torch.randn(T, B, K, generator=random, dtype=torch.float64)
    labels_B, module = torch.arange(B) % K, method_class().double()
    config = KDConfig(alpha=method_class.alpha, tau=getattr(method_class, "tau", KDConfig.tau))

    def loss(student_BK: torch.Tensor, teacher_TBK: torch.Tensor, weights: Any = None) -> torch.Tensor:
        return module(student_BK, teacher_TBK, labels_B[: len(student_BK)], config, weights)

    for scale in (1.0, 1e-6, 50.0):
        student = (scale * student_BK).requires_grad_()
        teacher = (scale * teacher_TBK).requires_grad_()
        loss_B = loss(student, teacher.detach())
        assert loss_B.shape == (B,), f"the loss must have one value per example, ({B},), not {tuple(loss_B.shape)}"
        assert loss_B.isfinite().all(), f"the loss of logits of about {scale:g} is not finite"
        (gradient_BK,) = torch.autograd.grad(loss_B.sum(), student)
        assert gradient_BK.isfinite().all(), f"the gradient at logits of about {scale:g} is not finite"
        if scale == 1.0:
            assert (gradient_BK != 0).any(), "the student's logits have no gradient"
    assert loss(student_BK.float(), teacher_TBK.float()).dtype == torch.float32, "the loss must keep the type of logits"
    given_BK = student_BK.clone()
    loss(given_BK, teacher_TBK)
    assert torch.equal(student_BK, given_BK), "the method changes the student's logits in place"
    equal_weights = loss(student_BK, teacher_TBK, [1 / T] * T)
    torch.testing.assert_close(equal_weights, loss(student_BK, teacher_TBK), msg="equal weights are not those of None")
    first_only = loss(student_BK, teacher_TBK, [1.0, 0.0])
    torch.testing.assert_close(first_only, loss(student_BK, teacher_TBK[:1]), msg="a teacher of weight 0 has an effect")


# The maps of a student and a teacher, (D, h, w): of equal size, and with other channels in the teacher.
FEATURE_SIZES: dict[str, list[list[tuple[int, int, int]]]] = {
    "stages": [[(4, 8, 8), (6, 4, 4), (8, 2, 2)], [(8, 8, 8), (12, 4, 4), (16, 2, 2)]],
    "middle": [[(6, 4, 4)], [(12, 4, 4)]],
    "last": [[(8, 2, 2)], [(16, 2, 2)]],
    "vector": [[(8, 1, 1)], [(16, 1, 1)]],
}
IMAGES = 40  # in the training set of a feature method


def _check_feature_method(method_class: Any) -> None:
    own, others = FEATURE_SIZES[method_class.feature_kind]
    _check_features(method_class, own, own)
    try:
        _built(method_class, own, others)
    except UserError:  # as fsp, which needs equal channels
        return
    _check_features(method_class, own, others)


def _built(method_class: Any, student: list[tuple[int, int, int]], teacher: list[tuple[int, int, int]]) -> nn.Module:
    """Return a method for features of these sizes."""
    sizes = [{f"stage{number}": size for number, size in enumerate(side)} for side in (student, teacher)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method_class(FeatureSpec(*sizes, labels_N=torch.arange(IMAGES) % K, index_N=torch.arange(IMAGES)))


def _check_features(
    method_class: Any, student: list[tuple[int, int, int]], teacher: list[tuple[int, int, int]]
) -> None:
    random = torch.Generator().manual_seed(0)
    student_maps, teacher_maps = (
        [torch.randn(B, *size, generator=random).relu() for size in side] for side in (student, teacher)
    )

    def loss_of(scale: float, count: int, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the loss of the first step, and the student's maps. Methods may draw random numbers."""
        module = _built(method_class, student, teacher).to(dtype).train()
        ours, theirs = ([scale * maps[:count].to(dtype) for maps in side] for side in (student_maps, teacher_maps))
        before = [maps.clone() for maps in (*ours, *theirs)]
        images_BCHW, index_B = torch.zeros(count, 1, 16, 16), torch.arange(count)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inputs = [maps.requires_grad_() for maps in ours]
            loss_B = module(inputs, theirs, Batch(images_BCHW, index_B % K, index_B, None))
        unchanged = all(torch.equal(now, then) for now, then in zip((*ours, *theirs), before, strict=True))
        assert unchanged, "the method changes its features in place"
        return loss_B, inputs

    sizes = "of equal size" if student == teacher else "of another number of channels"
    for scale in (1.0, 0.0, 1e-4, 30.0):
        for count in (B, 1):
            values = f"features {sizes} that are {'zero' if scale == 0 else f'about {scale:g}'}, {count} in a batch"
            loss_B, inputs = loss_of(scale, count, torch.float64)
            assert loss_B.shape == (count,), (
                f"the loss must have one value per example, ({count},), not {tuple(loss_B.shape)}"
            )
            assert loss_B.isfinite().all(), f"the loss is not finite for {values}"
            if count == B or loss_B.requires_grad:
                assert loss_B.requires_grad, "the student's features have no gradient"
                gradients = torch.autograd.grad(loss_B.sum(), inputs, allow_unused=True)
                known = [gradient for gradient in gradients if gradient is not None]
                assert all(gradient.isfinite().all() for gradient in known), f"the gradient is not finite for {values}"
                if scale == 1.0 and count == B:
                    used = [gradient is not None and bool((gradient != 0).any()) for gradient in gradients]
                    assert all(used), "the student's features have no gradient"
    assert loss_of(1.0, B, torch.float32)[0].dtype == torch.float32, "the loss must keep the type of the features"
    first, second = (loss_of(1.0, B, torch.float64)[0] for _ in range(2))
    assert torch.equal(first, second), "the loss differs with the same seed: draw random numbers from torch's generator"


def check_rule(rule: str | Callable[[Candidates], Any]) -> None:
    """Check a rule: it chooses an epoch among the candidates, the same one each time, also of a single checkpoint.

    >>> check_rule("lowest-nll")
    """
    name = name_of(rule)
    labels_N = torch.arange(60) % K
    truth_NK = nn.functional.one_hot(labels_N, K).float()
    noise_NK = torch.randn(60, K, generator=torch.Generator().manual_seed(0))
    logits = {epoch: truth_NK * epoch / 10 + noise_NK for epoch in (10, 20, 40)}
    for epochs in ((10, 20, 40), (20,)):
        scores = scores_of_logits({epoch: logits[epoch] for epoch in epochs}, labels_N)
        candidates = Candidates(list(epochs), max(epochs), scores)
        first, second = choose(candidates, rule=name), choose(candidates, rule=name)
        assert first.epoch in epochs, f"{name} chose epoch {first.epoch}, which is not among {epochs}"
        assert (first.epoch, first.scores) == (second.epoch, second.scores), f"{name} chose otherwise the second time"
        assert list(candidates.epochs) == list(epochs), f"{name} changed its candidates"


def check_estimator(estimator: str | Callable[..., Any], *, images: int = 200) -> None:
    """Check an estimator of I(X;F): shape, finite values, and that a map of the image beats a map of noise.

    >>> check_estimator("ridge")
    """
    from .information import get_estimator

    random = torch.Generator().manual_seed(0)
    pixels_NCHW = torch.randint(0, 256, (2 * images, 1, 8, 8), generator=random, dtype=torch.uint8)
    pixels_NCHW = nn.functional.avg_pool2d(pixels_NCHW.float(), 3, 1, 1).to(torch.uint8)
    every = InMemoryImages(pixels_NCHW, torch.zeros(2 * images).long(), torch.arange(2 * images))
    fitted_on, measured_on = every.subset(torch.arange(images)), every.subset(torch.arange(images, 2 * images))
    cells_NhwD = nn.functional.unfold(every.to_float(), 2, stride=2).unflatten(2, (4, 4)).permute(0, 2, 3, 1)
    noise_NhwD = torch.randn(cells_NhwD.shape, generator=random)
    maps_ANhwD = torch.stack([noise_NhwD, cells_NhwD])
    values_ASN, details = get_estimator(name_of(estimator))(
        fitted_on,
        [maps_NhwD[:images].contiguous() for maps_NhwD in maps_ANhwD],
        measured_on,
        [maps_NhwD[images:].contiguous() for maps_NhwD in maps_ANhwD],
        settings=EstimatorConfig(steps=60, seeds=1),
        on_step=None,
        device=torch.device("cpu"),
    )
    assert values_ASN.ndim == 3, f"the values must be (A, S, N), not {tuple(values_ASN.shape)}"
    assert (values_ASN.shape[0], values_ASN.shape[2]) == (2, images), "one value per checkpoint and measured image"
    assert values_ASN.isfinite().all(), "a value is not finite"
    assert all(len(values) == 2 for values in details.values()), "details need one number per checkpoint"
    noise, image = values_ASN.mean((1, 2)).tolist()
    assert image > noise, f"a map that holds the image ({image:.3g}) must be above a map of noise ({noise:.3g})"
