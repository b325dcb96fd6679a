"""Fixed views, auto-augment, random erasing, mixup and CutMix: functions of (seed, epoch, index)."""

from __future__ import annotations

import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from checkpointkd.config import Augmentation, Recipe
from checkpointkd.data import DataConfig, InMemoryImages, Views, load_data
from checkpointkd.data.augmenting import augmented
from checkpointkd.data.mixing import MixedBatches
from checkpointkd.errors import UserError
from checkpointkd.ranks import ALONE
from checkpointkd.recipes import RECIPES

from .image_files import folder_of_digits

GOLDEN = Path(__file__).parents[1] / "golden" / "augmentation.json"
KINDS = {
    "randaugment": Augmentation(auto_augment="randaugment"),
    "trivialaugment": Augmentation(auto_augment="trivialaugment"),
    "erasing": Augmentation(erasing=1.0),
}


def _colors(count: int = 12) -> InMemoryImages:
    pixels_NCHW = torch.randint(256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return InMemoryImages(
        pixels_NCHW.to(torch.uint8), torch.arange(count) % 4, torch.arange(count) + 100, Views(pad=4, flip=True)
    )


def _images(images: Any, epoch: int = 0, *, start: int = 0, **more: Any) -> torch.Tensor:
    settings = {"batch_size": 5, "seed": 0, "device": "cpu", **more}
    batches = list(images.batches(**settings).epoch(epoch, start=start))
    order = torch.cat([batch.index_B for batch in batches]).argsort()
    return torch.cat([batch.images_BCHW for batch in batches])[order]


def test_augmentations_and_schedules_equal_the_golden_file():
    """UPDATE_GOLDEN=1 writes the file anew, for another version of torchvision or Pillow."""
    pixels_HWC = _colors(1).pixels_NCHW[0].permute(1, 2, 0).contiguous().numpy()
    now: dict[str, Any] = {
        name: [zlib.crc32(augmented(pixels_HWC, kind, 0, epoch, 7).tobytes()) for epoch in range(3)]
        for name, kind in KINDS.items()
    }
    now |= {
        name: [round(recipe().learning_rate_at(share * recipe().epochs), 10) for share in (0, 0.01, 0.3, 0.65, 0.999)]
        for name, recipe in RECIPES.items()
    }
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(now, indent=1) + "\n")
    assert now == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_kind_changes_images_as_a_function_of_seed_epoch_and_index(kind: Augmentation, monkeypatch):
    images = _colors()
    first = _images(images, augmentation=kind)
    assert first.shape == (12, 3, 16, 16)
    assert 0 <= first.min() < first.max() <= 1
    monkeypatch.setenv("CHECKPOINTKD_WORKERS", "2")
    assert torch.equal(_images(images, augmentation=kind, batch_size=3), first), "whatever the batch and the worker"
    assert not torch.equal(_images(images, 1, augmentation=kind), first)
    assert not torch.equal(_images(images, augmentation=kind, seed=1), first)
    crops = _images(images)
    changed_N = (first - crops).abs().amax((1, 2, 3)) > 1 / 255
    assert changed_N.float().mean() > 0.5, "most images differ from their crops"


def test_erased_pixels_are_grey_and_the_others_stay():
    images = _colors()
    erased, crops = _images(images, augmentation=Augmentation(erasing=1.0)), _images(images)
    grey = (erased == 127 / 255).all(1, keepdim=True).expand_as(erased)
    assert 0.02 < grey.float().mean() < 0.34
    assert torch.equal(erased[~grey], crops[~grey])
    assert torch.equal(_images(images, augmentation=Augmentation(erasing=1e-9)), crops)


def test_grey_images_and_levels_other_than_255():
    data = load_data(DataConfig(data="digits", train_images=60))
    images = _images(data.train, augmentation=Augmentation(auto_augment="trivialaugment", erasing=0.5))
    assert images.shape[1:] == (1, 8, 8)
    assert images.max() <= 1
    plain = _images(data.train, augmentation=Augmentation(erasing=1e-9))
    torch.testing.assert_close(plain, _images(data.train), atol=1 / 255, rtol=0)


def test_each_fixed_view_has_its_turn_once(tmp_path: Path):
    """In memory and streamed: K epochs show K views, and then they repeat, for every seed the same K views."""
    streamed = load_data(
        DataConfig(data=f"folder:{folder_of_digits(tmp_path)}", image_size=16, val_fraction=0.25)
    ).train
    for images in (_colors(), streamed):
        shown = [_images(images, epoch, augmentation=Augmentation(views=3)) for epoch in range(6)]
        assert torch.equal(torch.stack(shown[:3]), torch.stack(shown[3:]))
        assert not torch.equal(shown[0], shown[1])
        other_seed = [_images(images, epoch, augmentation=Augmentation(views=3), seed=9) for epoch in range(3)]

        def of_image(epochs: list[torch.Tensor], row: int) -> set[bytes]:
            return {images_NCHW[row].numpy().tobytes() for images_NCHW in epochs}

        assert all(of_image(shown, row) == of_image(other_seed, row) for row in range(len(images)))
        assert not torch.equal(shown[0], other_seed[0]), "another seed begins with other views"
        assert torch.equal(_images(images, 2, augmentation=Augmentation(views=3), batch_size=4), shown[2])


def test_more_views_than_there_are():
    with pytest.raises(UserError, match="--views 200 is more than the 162 views that these images have"):
        _colors().batches(batch_size=4, seed=0, device="cpu", augmentation=Augmentation(views=200))
    with pytest.raises(UserError, match="--views must be from 1 to 1000, not 0"):
        Augmentation(views=0)
    all_of_them = Views(pad=1, flip=True).fixed(torch.arange(5), 18)
    assert all(sorted(row) == list(range(18)) for row in all_of_them.tolist())


def _mixed(epoch: int = 0, *, start: int = 0, **more: Any) -> list[Any]:
    batches = _colors().batches(batch_size=5, seed=0, device="cpu")
    settings = {"mixup": 0.8, "cutmix": 0.0, "classes": 4, "seed": 0, "ranks": ALONE, **more}
    return list(MixedBatches(batches, **settings).epoch(epoch, start=start))


def test_mixup_mixes_images_and_labels_alike():
    plain = list(_colors().batches(batch_size=5, seed=0, device="cpu").epoch(0))
    for batch, before in zip(_mixed(), plain, strict=True):
        one_hot = torch.nn.functional.one_hot(before.labels_B, 4).float()
        # the share, from the labels: soft = share · own + (1 − share) · the previous image's
        differ = before.labels_B != before.labels_B.roll(1)
        share = batch.soft_labels_BK[differ][0, before.labels_B[differ][0]] if differ.any() else torch.tensor(1.0)
        expected = share * before.images_BCHW + (1 - share) * before.images_BCHW.roll(1, 0)
        torch.testing.assert_close(batch.images_BCHW, expected)
        torch.testing.assert_close(batch.soft_labels_BK, share * one_hot + (1 - share) * one_hot.roll(1, 0))
        assert torch.equal(batch.labels_B, batch.soft_labels_BK.argmax(1))


def test_each_step_mixes_by_its_own_share():
    """With two classes in turn, the soft label of a step's mixed pair tells its share."""
    shares = [batch.soft_labels_BK[batch.soft_labels_BK < 1].max().item() for batch in _mixed()[:2]]
    assert shares[0] != pytest.approx(shares[1], abs=1e-6)


def test_cutmix_pastes_a_rectangle_and_resumes_in_the_middle_of_an_epoch():
    (first, second, _), plain = (
        _mixed(mixup=0.0, cutmix=1.0),
        list(_colors().batches(batch_size=5, seed=0, device="cpu").epoch(0)),
    )
    pasted = (first.images_BCHW != plain[0].images_BCHW).any(1)
    from_other = plain[0].images_BCHW.roll(1, 0)
    assert torch.equal(first.images_BCHW.movedim(1, -1)[pasted], from_other.movedim(1, -1)[pasted])
    rest = _mixed(mixup=0.0, cutmix=1.0, start=1)
    assert torch.equal(rest[0].images_BCHW, second.images_BCHW)
    assert not torch.equal(_mixed(1, mixup=0.0, cutmix=1.0)[0].soft_labels_BK, first.soft_labels_BK)


def test_mixed_losses_are_those_of_pytorch():
    from checkpointkd.losses.distillation_loss import loss_with_labels

    logits_BK, generator = torch.randn(6, 4, dtype=torch.float64), torch.Generator().manual_seed(0)
    soft_BK = torch.rand(6, 4, generator=generator, dtype=torch.float64).softmax(1)
    expected = -((0.9 * soft_BK + 0.1 / 4) * logits_BK.log_softmax(1)).sum(1)
    torch.testing.assert_close(loss_with_labels(logits_BK, soft_BK, smoothing=0.1), expected)
    labels_B = torch.tensor([0, 1, 2, 3, 0, 1])
    one_hot = torch.nn.functional.one_hot(labels_B, 4).double()
    for smoothing in (0.0, 0.2):  # §4.3 leaves out a constant of the loss, which PyTorch includes
        constant = smoothing * math.log(4)
        torch.testing.assert_close(
            loss_with_labels(logits_BK, labels_B, smoothing=smoothing) + constant,
            loss_with_labels(logits_BK, one_hot, smoothing=smoothing),
        )


def test_torchvision_does_the_work(monkeypatch: pytest.MonkeyPatch):
    """RandAugment of torchvision, seeded like ours, gives the same image."""
    from PIL import Image

    from checkpointkd.seeding import seeded

    pixels_HWC = _colors(1).pixels_NCHW[0].permute(1, 2, 0).contiguous().numpy()
    with seeded("augment", 3, 1, 7):
        expected = v2.RandAugment()(Image.fromarray(pixels_HWC))
    ours = augmented(pixels_HWC, KINDS["randaugment"], 3, 1, 7)
    assert Image.fromarray(ours).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"auto_augment": "randaugmnt"}, "Unknown auto-augment 'randaugmnt'"),
        ({"erasing": 1.5}, "--erasing must be from 0 to 1, not 1.5"),
        ({"mixup": -1.0}, "--mixup must be at least 0 and below 1,000, not -1.0"),
        ({"cutmix": float("nan")}, "--cutmix must be at least 0"),
        ({"ema": 1.0}, "--ema must be between 0 and 1, such as 0.999, not 1.0"),
        ({"label_smoothing": 1.0}, "Label smoothing must be at least 0 and below 1, not 1.0"),
        ({"layer_decay": 0.0}, "--layer-decay must be above 0 and at most 1, not 0.0"),
        ({"views": 5000}, "--views must be from 1 to 1000, not 5000"),
    ],
)
def test_settings_out_of_range(setting: dict[str, Any], error: str):
    with pytest.raises(UserError, match=error):
        Recipe(**setting)
