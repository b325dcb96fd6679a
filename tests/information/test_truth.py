"""Estimators of I(X;F) and I(Y;F) against cases with a known answer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import checkpointkd as ckd
from checkpointkd.config import EstimatorConfig
from checkpointkd.data import DataConfig, load_data
from checkpointkd.data.in_memory import InMemoryImages
from checkpointkd.information import ESTIMATORS, label_measures, per_image, ridge_information
from checkpointkd.information.ridge import _patches
from checkpointkd.metrics import fitted_losses

from .channels import channel, gray_images

RIDGE = EstimatorConfig(estimator="ridge")


@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0, 10.0])
def test_ridge_is_exact_on_linear_gaussian_channels(noise: float):
    estimates = []
    for seed in range(5):
        arguments, truth = channel(fit=1500, measured=1500, noise=noise, seed=seed)
        information, _ = ridge_information(*arguments, settings=RIDGE)
        estimates.append(information.mean().item())
    bias = -16 * 8 / (2 * 1500)  # −Q·P / 2N
    assert np.mean(estimates) == pytest.approx(truth + bias, rel=0.02, abs=0.02)
    assert np.std(estimates) < 0.05 * truth + 0.02


def test_standard_error_equals_the_spread_of_repeated_estimates():
    estimates, errors = [], []
    for seed in range(40):
        arguments, _ = channel(fit=1000, measured=400, noise=0.5, seed=seed)
        information, _ = ridge_information(*arguments, settings=RIDGE)
        estimates.append(information.mean().item())
        errors.append(information[0, 0].std().item() / math.sqrt(400))
    assert np.mean(errors) == pytest.approx(np.std(estimates, ddof=1), rel=0.35)


def test_ridge_underestimates_with_few_images_and_never_overestimates():
    """The estimate is measured on unseen images, so overfitting lowers it."""
    bias = {}
    for fit in (30, 100, 300, 1000, 3000):
        estimates = []
        for seed in range(6):
            arguments, truth = channel(fit=fit, measured=1000, noise=0.5, seed=seed)
            estimates.append(ridge_information(*arguments, settings=RIDGE)[0].mean().item() - truth)
        bias[fit] = np.mean(estimates)
    assert list(bias.values()) == sorted(bias.values())
    assert bias[30] < 0
    for fit in (1000, 3000):
        assert bias[fit] == pytest.approx(-16 * 8 / (2 * fit), rel=0.25, abs=0.04)


def real() -> tuple[InMemoryImages, InMemoryImages, Tensor]:
    data = load_data(DataConfig(data="digits", train_images=500))
    assert isinstance(data.train, InMemoryImages)
    assert isinstance(data.val, InMemoryImages)
    return data.train, data.val, torch.cat([data.train.to_float(), data.val.to_float()]).permute(0, 2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_passes_its_check(estimator: str):
    """An invertible map has the most information, noise and a missing part reduce it, and a constant map has none."""
    torch.manual_seed(0)
    train, val, images = real()
    noise = torch.randn_like(images)
    quarter = images.clone()
    quarter[:, 4:], quarter[:, :, 4:] = 0, 0
    cases = [4 * images, 4 * images + noise, 4 * images + 2 * noise, quarter, torch.full_like(images, 0.3)]
    settings = EstimatorConfig(estimator=estimator, steps=400, batch_size=128, seeds=1)  # type: ignore[arg-type]
    maps = torch.stack(cases)
    information, details = ESTIMATORS[estimator](
        train, maps[:, : len(train)], val, maps[:, len(train) :], settings=settings, on_step=None
    )
    assert information.shape == (5, 1, len(val))
    invertible, little_noise, much_noise, quadrant, constant = information.mean((1, 2)).tolist()
    assert invertible > little_noise > much_noise > constant
    assert invertible > quadrant > constant
    if estimator == "ridge":
        assert constant == pytest.approx(0, abs=0.01)
        assert details["explained_variance"][0] > 0.999
        assert details["explained_variance"][4] == pytest.approx(0, abs=0.01)
    else:
        assert invertible > -0.03, "near the maximum, which is 0"


def test_patches_match_their_positions():
    images = gray_images(torch.arange(64).view(1, 1, 8, 8).repeat(4, 1, 1, 1) / 255)
    patches = (_patches(images, (2, 2)) * 255).round().int()
    assert patches.shape == (4, 2, 2, 16)
    assert patches[0, 0, 1].tolist() == [row * 8 + column for row in range(4) for column in range(4, 8)]
    assert patches[0, 1, 0, 0] == 32
    coarse = gray_images(torch.rand(4, 3, 16, 16))
    assert _patches(coarse, (1, 1)).shape == (4, 1, 1, 48), "a larger patch is averaged down to 4×4"
    torch.testing.assert_close(_patches(coarse, (1, 1))[0, 0, 0, 0], coarse.to_float()[0, 0, :4, :4].mean())


def test_label_information():
    """It is 0 if logits are independent of labels, and H(Y) if they determine them. The temperature does not matter."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 10
    independent = torch.randn(1000, 10, generator=draw)
    assert label_measures(independent, labels)["label_information"] == pytest.approx(0, abs=0.02)
    perfect = 20.0 * torch.nn.functional.one_hot(labels, 10)
    assert label_measures(perfect, labels)["label_information"] == pytest.approx(math.log(10), abs=1e-3)
    noisy = torch.nn.functional.one_hot(torch.where(torch.rand(1000, generator=draw) < 0.3, labels.roll(1), labels), 10)
    calibrated = label_measures(3.0 * noisy, labels)
    overconfident = label_measures(30.0 * noisy, labels)
    assert overconfident["label_information"] == pytest.approx(calibrated["label_information"], abs=1e-3)
    assert overconfident["temperature"] == pytest.approx(10 * calibrated["temperature"], rel=0.01)
    assert overconfident["nll"] > 2 * calibrated["nll"]


def test_temperature_is_fitted_on_the_other_half():
    """Even and odd images need different temperatures, so the temperature of the other half is wrong for both."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (1000,), generator=draw)
    logits = torch.nn.functional.one_hot(labels, 10) + torch.randn(1000, 10, generator=draw)
    alike, _ = fitted_losses(logits, labels)
    scale = torch.where(torch.arange(1000) % 2 == 0, 1.0, 5.0)
    mixed, _ = fitted_losses(scale[:, None] * logits, labels)
    assert mixed[0::2].mean() > alike[0::2].mean() + 0.1
    assert mixed[1::2].mean() > alike[1::2].mean() + 0.1


def test_per_image_measures_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4], [0.2, 0.6, 0.2]])
    labels = torch.tensor([0, 0, 1])
    parts = {name: each.tolist() for name, each in per_image(p.log() + 3, labels).items()}
    assert parts["correct"] == [1, 1, 1]
    assert parts["nll"] == pytest.approx([-math.log(0.7), -math.log(0.5), -math.log(0.6)])
    assert parts["brier"] == pytest.approx([0.09 + 0.04 + 0.01, 0.25 + 0.01 + 0.16, 0.04 + 0.16 + 0.04])
    assert parts["confidence"] == pytest.approx([0.7, 0.5, 0.6])
    mean = [0.6, 0.15, 0.25]
    kl = sum(a * math.log(a / b) for a, b in zip([0.7, 0.2, 0.1], mean, strict=True))
    assert parts["conditional_mi"][0] == pytest.approx(kl, rel=1e-5)
    assert parts["conditional_mi"][2] == pytest.approx(0, abs=1e-6), "the only image of its class is its own mean"
    assert parts["wrong_variance"] == pytest.approx([0.05**2, 0.15**2, 0.0], abs=1e-7)


def test_deeper_layers_have_less_information(teacher_run: Path):
    """Data-processing inequality: each layer is a function of the one before.

    Maps of different sizes have patches of different sizes, so shares of explained variance are compared, not nats.
    """
    explained = [
        ckd.score(teacher_run, estimator="ridge", feature_layer=path).points[-1].details["explained_variance"]
        for path in ("stage1", "stage2", "stage3")
    ]
    assert explained == sorted(explained, reverse=True)
    assert explained[0] > 0.9
    assert explained[2] < 0.95
