"""The decoders against plain PyTorch and cases with a known answer; the plane that is stored."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import checkpointkd as ckd
from checkpointkd import storage
from checkpointkd.config import EstimatorConfig
from checkpointkd.data import DataConfig, InMemoryImages, load_data
from checkpointkd.errors import UserError
from checkpointkd.information import (
    Decoders,
    LargeDecoders,
    decoder_information,
    load_plane,
    load_planes,
    pixel_entropy,
    reconstruction_loss,
    score_trajectory,
)
from checkpointkd.information.decoder import upsampled_convolution

DATA = load_data(DataConfig(data="digits", train_images=300))


def plain_decoder(channels: int, image_channels: int, size: tuple[int, int]) -> nn.Sequential:
    """InfoPro's `Decoder`, layer by layer."""
    return nn.Sequential(
        nn.Upsample(size=size, mode="bilinear", align_corners=True),
        nn.Conv2d(channels, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, image_channels, 3, padding=1),
        nn.Sigmoid(),
    )


@pytest.mark.parametrize(("maps", "size"), [((4, 4), (16, 16)), ((2, 3), (8, 12)), ((1, 1), (8, 8)), ((8, 8), (8, 8))])
def test_upsampled_convolution_equals_upsampling_then_convolution(maps, size):
    torch.manual_seed(0)
    features, weights = torch.randn(2, 5, *maps, 6), torch.randn(2, 4, 6, 3, 3)
    actual = upsampled_convolution(features, weights, size)
    for a in range(2):
        large = nn.functional.interpolate(
            features[a].permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=True
        )
        expected = nn.functional.conv2d(large, weights[a], padding=1)
        torch.testing.assert_close(actual[:, 4 * a : 4 * a + 4], expected, rtol=1e-4, atol=1e-4)


def test_joint_decoders_equal_separate_plain_ones():
    """Losses and gradients of two decoders for each of three checkpoints equal those of six plain decoders."""
    torch.manual_seed(0)
    decoders = Decoders(checkpoints=3, seeds=[0, 1], channels=5, image_channels=2, size=(8, 8))
    features, images = torch.randn(3, 4, 3, 3, 5), torch.rand(4, 2, 8, 8)
    loss_BG = reconstruction_loss(decoders(features), images)
    loss_BG.mean(0).sum().backward()
    assert decoders.conv2.weight.grad is not None
    assert decoders.weight1.grad is not None
    for a in range(3):
        for s in range(2):
            g = 2 * a + s
            plain = plain_decoder(5, 2, (8, 8))
            first, second = plain[1], plain[4]
            assert isinstance(first, nn.Conv2d)
            assert isinstance(second, nn.Conv2d)
            with torch.no_grad():
                first.weight.copy_(decoders.weight1[12 * g : 12 * g + 12])
                second.weight.copy_(decoders.conv2.weight[2 * g : 2 * g + 2])
                for layer in (first, second):
                    assert layer.bias is not None
                    layer.bias.zero_()
            loss = nn.functional.binary_cross_entropy(plain(features[a].permute(0, 3, 1, 2)), images)
            loss.backward()
            torch.testing.assert_close(loss_BG[:, g].mean(), loss)
            pairs = ((decoders.weight1.grad[12 * g :][:12], first), (decoders.conv2.weight.grad[2 * g :][:2], second))
            for gradient, layer in pairs:
                assert layer.weight.grad is not None
                torch.testing.assert_close(gradient, layer.weight.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("channels", "image_channels", "count"), [(128, 3, 14_187), (64, 3, 7_275)])
def test_parameter_counts_equal_infopros(channels: int, image_channels: int, count: int):
    decoders = Decoders(checkpoints=2, seeds=[0, 1], channels=channels, image_channels=image_channels, size=(32, 32))
    assert sum(parameter.numel() for parameter in decoders.parameters()) == 4 * count


def plain_large_decoder(channels: int, size: int) -> nn.Sequential:
    """InfoPro's decoder for ImageNet, layer by layer, without the sigmoid, which would saturate in fp32."""

    def up(side: int) -> nn.Upsample:
        return nn.Upsample(size=side, mode="bilinear", align_corners=True)

    return nn.Sequential(
        nn.Conv2d(channels, 128, 1),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        up(size // 4),
        nn.Conv2d(128, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        up(size // 2),
        nn.Conv2d(32, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        up(size),
        nn.Conv2d(12, 3, 3, padding=1),
    )


def test_joint_large_decoders_equal_separate_plain_ones():
    torch.manual_seed(0)
    decoders = LargeDecoders(checkpoints=2, seeds=[0, 1], channels=5, image_channels=3, size=(112, 112))
    features, images = torch.randn(2, 3, 4, 4, 5), torch.rand(3, 3, 112, 112)
    loss_BG = reconstruction_loss(decoders(features), images)
    loss_BG.mean(0).sum().backward()
    for g in range(4):
        plain = plain_large_decoder(5, 112)
        layers = [layer for layer in plain if isinstance(layer, nn.Conv2d)]
        with torch.no_grad():
            for layer, weight in zip(layers, decoders.weights, strict=True):
                layer.weight.copy_(weight.unflatten(0, (4, -1))[g])
                assert layer.bias is not None
                layer.bias.zero_()
        loss = nn.functional.binary_cross_entropy_with_logits(plain(features[g // 2].permute(0, 3, 1, 2)), images)
        loss.backward()
        torch.testing.assert_close(loss_BG[:, g].mean(), loss)
        for layer, weight in zip(layers, decoders.weights, strict=True):
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad.unflatten(0, (4, -1))[g], layer.weight.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_large_images_use_the_large_decoder(monkeypatch: pytest.MonkeyPatch):
    """It learns: a map that holds the image has a lower loss than an empty map."""
    from checkpointkd.information import decoder as module

    monkeypatch.setattr(module, "LARGE", 7)  # digits have 8 pixels per side
    built = []
    real = module.LargeDecoders.__init__
    monkeypatch.setattr(
        module.LargeDecoders, "__init__", lambda self, **size: (built.append(size), real(self, **size))[1]
    )
    images = _images()
    excess = _reconstruct(images * 4, torch.zeros_like(images))
    assert len(built) == 1
    assert excess[0] < 0.5 * excess[1]


def _reconstruct(*features_ANhwD: torch.Tensor, steps: int = 60) -> torch.Tensor:
    """Return each map's mean excess loss; a map has the features of all training and then all validation images."""
    stacked = torch.stack(list(features_ANhwD))
    count = len(DATA.train)
    settings = EstimatorConfig(steps=steps, seeds=1, batch_size=128)
    information_ASN, details = decoder_information(
        DATA.train, stacked[:, :count], DATA.val, stacked[:, count:], settings=settings
    )
    floor = pixel_entropy(DATA.val.to_float().double()).mean().item()
    excess_A = -information_ASN.mean((1, 2))
    assert details["reconstruction_loss"] == pytest.approx((excess_A + floor).tolist(), rel=1e-5)
    return excess_A


def _images() -> torch.Tensor:
    return torch.cat([DATA.train.to_float(), DATA.val.to_float()]).permute(0, 2, 3, 1)


@pytest.mark.slow
def test_excess_loss_is_near_zero_for_the_image_and_grows_with_noise():
    """The map is the image, the image with more and more noise, and zero."""
    torch.manual_seed(0)
    images = _images()
    noise = torch.randn_like(images)
    excess = _reconstruct(images * 4, images * 4 + noise, images * 4 + 4 * noise, torch.zeros_like(images), steps=800)
    assert excess[0] < 0.02, "a decoder given the image itself comes near the lowest possible loss"
    assert excess.tolist() == sorted(excess.tolist()), "noise removes information"
    assert excess[3] > 10 * excess[0]


def test_no_prediction_has_a_loss_below_the_pixel_entropy():
    images = DATA.val.to_float().double()
    best = torch.logit(images.clamp(1e-12, 1 - 1e-12))
    loss = reconstruction_loss(best[:, None], images)[:, 0]
    torch.testing.assert_close(loss, pixel_entropy(images), atol=1e-9, rtol=1e-9)
    worse = reconstruction_loss((best + 0.3 * torch.randn_like(best))[:, None], images)[:, 0]
    assert (worse > pixel_entropy(images)).all()


def test_decoders_trained_jointly_end_as_if_trained_alone():
    torch.manual_seed(0)
    images = _images()
    other = torch.randn(len(images), 2, 2, 1).repeat(1, 4, 4, 1)
    together = _reconstruct(images, other)
    torch.testing.assert_close(_reconstruct(images), together[:1], rtol=1e-3, atol=1e-5)


def test_only_new_checkpoints_are_scored(teacher_run: Path, monkeypatch):
    whole = ckd.score(teacher_run, decoder_steps=4, decoder_seeds=2)
    assert whole.epochs == [1, 2, 3, 4]
    content = (teacher_run / "checkpoints" / "epoch-0003.safetensors").read_bytes()
    (teacher_run / "checkpoints" / "epoch-0003.safetensors").unlink()
    fewer = ckd.score(teacher_run, decoder_steps=4, decoder_seeds=2)
    assert fewer.epochs == [1, 2, 4]
    (teacher_run / "checkpoints" / "epoch-0003.safetensors").write_bytes(content)
    scored = []
    from checkpointkd.information import ESTIMATORS

    real = ESTIMATORS["decoder"]
    counting = lambda *a, **k: scored.append(len(a[1])) or real(*a, **k)  # noqa: E731
    monkeypatch.setitem(ESTIMATORS, "decoder", counting)
    again = ckd.score(teacher_run, decoder_steps=4, decoder_seeds=2)
    assert scored == [1]
    assert again.epochs == whole.epochs
    np.testing.assert_array_equal(again.information_ASN, whole.information_ASN)  # a CPU scores one checkpoint at a time
    ckd.score(teacher_run, decoder_steps=5, decoder_seeds=2)
    assert scored == [1, 1, 1, 1, 1], "other settings need new scores"
    assert len(list(teacher_run.glob("plane-*.safetensors"))) == 1


def test_scores_are_replaced_only_when_all_new_ones_are_made(teacher_run: Path):
    old = ckd.score(teacher_run, decoder_steps=4, decoder_seeds=1)
    damaged = teacher_run / "checkpoints" / "epoch-0003.safetensors"
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(UserError, match=r"epoch-0003"):
        ckd.score(teacher_run, decoder_steps=5, decoder_seeds=1)
    damaged.write_bytes(sound)
    kept = load_plane(ckd.open_trajectory(teacher_run))
    assert kept.settings == old.settings
    np.testing.assert_array_equal(kept.information_ASN, old.information_ASN)
    ckd.select(teacher_run)
    unfinished = load_planes(ckd.open_trajectory(teacher_run), unfinished=True)["decoder-unfinished"]
    assert unfinished.epochs == [1, 2]
    new = ckd.score(teacher_run, decoder_steps=5, decoder_seeds=1)
    np.testing.assert_array_equal(new.information_ASN[:2], unfinished.information_ASN)
    shutil.copytree(teacher_run, teacher_run.parent / "afresh")
    for file in (teacher_run.parent / "afresh").glob("plane*"):
        file.unlink()
    afresh = ckd.score(teacher_run.parent / "afresh", decoder_steps=5, decoder_seeds=1)
    np.testing.assert_array_equal(new.information_ASN, afresh.information_ASN)
    assert len(list(teacher_run.glob("plane-*.safetensors"))) == 1


def test_infinite_features_are_refused(teacher_run: Path, monkeypatch: pytest.MonkeyPatch):
    from checkpointkd.information import features as module

    monkeypatch.setattr(module, "as_map", lambda features, size: features.permute(0, 2, 3, 1) * float("inf"))
    with pytest.raises(UserError, match="has NaN or infinite values"):
        ckd.score(teacher_run, estimator="ridge")


def test_point_agrees_with_the_network_and_the_stored_arrays(teacher_run: Path):
    plane = ckd.score(teacher_run, decoder_steps=4, decoder_seeds=2)
    trajectory = ckd.open_trajectory(teacher_run)
    for row, point in enumerate(plane.points):
        logits = trajectory[point.epoch].network()(DATA.val.to_float()).detach()
        accuracy = (logits.argmax(-1) == DATA.val.labels_N).double().mean().item()
        assert point.accuracy == pytest.approx(accuracy)
        assert point.sha256 == trajectory[point.epoch].sha256
        part_SN = plane.information_ASN[row]
        assert part_SN.shape == (2, 300)
        assert point.image_information == pytest.approx(float(part_SN.mean()), rel=1e-4)
        assert point.image_information_sd == pytest.approx(float(part_SN.mean(1).std(ddof=1)), rel=1e-3)
        assert point.image_information_se == pytest.approx(float(part_SN.mean(0).std()) / 300**0.5, rel=1e-4)
        assert plane.images["correct"][row].mean() == pytest.approx(accuracy)
        assert plane.images["nll"][row].mean() == pytest.approx(point.nll, rel=1e-4)
        assert np.log(10) - point.nll - 0.02 < point.label_information < np.log(10), (
            "at the fitted temperature it is about as good or better"
        )
    assert plane.settings.measured_on == "the validation set"
    assert plane.settings.feature_layer == "pool:input"


def test_damaged_arrays_are_refused(teacher_run: Path):
    ckd.score(teacher_run, decoder_steps=4, decoder_seeds=1)
    (arrays,) = teacher_run.glob("plane-*.safetensors")
    content = bytearray(arrays.read_bytes())
    content[-1] ^= 1
    arrays.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_plane(ckd.open_trajectory(teacher_run))


def _unknown_estimator(record: dict[str, Any]) -> None:
    record["settings"]["estimator_config"]["estimator"] = "oracle"


def _no_points(record: dict[str, Any]) -> None:
    record["points"] = []


def _accuracy_in_percent(record: dict[str, Any]) -> None:
    record["points"][0]["accuracy"] = 45.0


def _arrays_elsewhere(record: dict[str, Any]) -> None:
    record["arrays"] = "../plane.safetensors"


def _one_point_less(record: dict[str, Any]) -> None:
    record["points"].pop()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_unknown_estimator, "plane.json is damaged: .*oracle"),
        (_no_points, r"plane.json is damaged: .*points"),
        (_accuracy_in_percent, r"plane.json is damaged: .*accuracy"),
        (_arrays_elsewhere, r"plane.json is damaged: .*arrays"),
        (_one_point_less, "does not belong to"),
    ],
)
def test_damaged_plane_is_refused(teacher_run: Path, damage: Callable[[dict[str, Any]], None], message: str):
    ckd.score(teacher_run, estimator="ridge")
    path = teacher_run / "plane.json"
    stored = json.loads(path.read_text())
    damage(stored["ridge"])
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=f"{message}.*Remove .*plane.json, and run `checkpointkd score` again"):
        load_planes(ckd.open_trajectory(teacher_run))


def test_missing_plane_names_the_command_and_the_other_estimator(teacher_run: Path):
    ckd.score(teacher_run, estimator="ridge")
    with pytest.raises(UserError, match=r"not been scored with the decoder .*`checkpointkd score .*` first.* ridge"):
        load_plane(ckd.open_trajectory(teacher_run))


def test_features_that_are_no_map_are_refused(teacher_run: Path):
    with pytest.raises(UserError, match=r"neither a feature map nor a sequence of tokens.* shape \[10\] per image"):
        ckd.score(teacher_run, feature_layer="classifier", decoder_steps=1)
    with pytest.raises(UserError, match="stage7"):
        ckd.score(teacher_run, feature_layer="stage7", decoder_steps=1)


def test_too_few_images_and_images_out_of_range_are_refused(teacher_run: Path):
    with pytest.raises(UserError, match="2 images to fit on and 2 to measure on, not 1 and 300"):
        ckd.score(teacher_run, decoder_steps=1, fit_images=1)
    with pytest.raises(UserError, match="30 images are too few to measure on with the ridge estimator"):
        ckd.score(teacher_run, estimator="ridge", measure_images=30)
    data = load_data(DataConfig(data="digits", train_images=100))
    assert isinstance(data.train, InMemoryImages)
    bright = dataclasses.replace(data, train=dataclasses.replace(data.train, max_value=8))
    with pytest.raises(UserError, match=r"Images must be in \[0, 1\], but these are in \[0, 2\]"):
        score_trajectory(
            ckd.open_trajectory(teacher_run), bright, settings=EstimatorConfig(steps=1), device=torch.device("cpu")
        )


def test_replaced_checkpoint_needs_a_new_score(teacher_run: Path, tmp_path: Path):
    """`select` refuses the old score, `score` replaces it."""
    ckd.score(teacher_run, decoder_steps=4, decoder_seeds=1)
    other = ckd.train(
        "wrn_10_1",
        data="digits",
        train_images=100,
        epochs=4,
        save_every=1,
        batch_size=10,
        seed=9,
        out=tmp_path / "other",
    )
    (teacher_run / "checkpoints" / "epoch-0002.safetensors").write_bytes(other[2].path.read_bytes())
    with pytest.raises(UserError, match=r"scored .*epochs? 2.*`checkpointkd score"):
        ckd.select(teacher_run)
    again = ckd.score(teacher_run, decoder_steps=4, decoder_seeds=1)
    assert again.points[1].sha256 == other[2].sha256
    ckd.select(teacher_run)


def test_renamed_checkpoint_is_refused(teacher_run: Path):
    folder = teacher_run / "checkpoints"
    (folder / "epoch-0002.safetensors").write_bytes((folder / "epoch-0003.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"epoch-0002\.safetensors .*epoch 3, not 2"):
        ckd.evaluate(f"{teacher_run}@2")


SIGN = 1


def scaled_pool(num_classes: int, in_channels: int) -> nn.Module:
    """A network of the user, whose code the test edits."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(in_channels, 8, 3), nn.Linear(8, num_classes)

        def forward(self, x):
            return SIGN * self.head(self.conv(x).relu().mean((2, 3)))

    return Net()


def test_edited_code_of_a_network_is_scored_again(tmp_path: Path, monkeypatch):
    run = tmp_path / "run"
    ckd.train(f"{__name__}:scaled_pool", data="digits", train_images=200, epochs=2, precision="fp32", out=run)
    before = ckd.score(run, estimator="ridge")
    monkeypatch.setattr(f"{__name__}.SIGN", -1)
    after = ckd.score(run, estimator="ridge")
    assert [point.nll for point in before.points] != [point.nll for point in after.points]
    assert load_planes(ckd.open_trajectory(run)).keys() == {"ridge"}


def test_plane_is_read_again_if_it_is_replaced_meanwhile(teacher_run: Path, monkeypatch):
    """Another process replaces the arrays that the reader is about to open."""
    ckd.score(teacher_run, decoder_steps=4)
    real, opened = storage.load_tensors, []

    def load(path: Path, **options: Any) -> Any:
        if path.name.startswith("plane-") and not opened:
            opened.append(path)
            monkeypatch.setattr(storage, "load_tensors", real)
            ckd.score(teacher_run, decoder_steps=5)
        return real(path, **options)

    monkeypatch.setattr(storage, "load_tensors", load)
    planes = load_planes(ckd.open_trajectory(teacher_run))
    assert opened
    assert not opened[0].exists()
    assert planes["decoder"].settings.estimator_config.steps == 5
