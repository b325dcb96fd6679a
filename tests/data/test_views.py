"""Views are numbered, and each is a crop of the zero-padded image, possibly flipped."""

from __future__ import annotations

import pytest
import torch

from checkpointkd.data import Views


@pytest.mark.parametrize("views", [Views(pad=4, flip=True), Views(pad=1, flip=False), Views(pad=0, flip=False)])
def test_every_view_is_a_crop_of_the_padded_image_possibly_flipped(views: Views):
    images = torch.randint(1, 256, (2, 3, 8, 6), dtype=torch.uint8)
    padded = torch.nn.functional.pad(images, (views.pad,) * 4)
    seen = []
    for dy in range(2 * views.pad + 1):
        for dx in range(2 * views.pad + 1):
            for flip in (0, 1) if views.flip else (0,):
                number = len(seen)
                crop = padded[:, :, dy : dy + 8, dx : dx + 6]
                seen.append(crop.flip(-1) if flip else crop)
                assert [part.item() for part in views.offsets(torch.tensor([number]))] == [dy, dx, flip]
    assert len(seen) == len(views)
    view = torch.arange(len(views)).repeat_interleave(2)
    row = torch.arange(2).repeat(len(views))
    assert torch.equal(views.cut(views.padded(images), row, view), torch.cat(seen))
    assert torch.equal(seen[views.clean_view], images)


def test_cut_is_channels_last():
    views = Views(pad=1, flip=True)
    cut = views.cut(views.padded(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)), torch.arange(4), torch.arange(4))
    assert cut.is_contiguous(memory_format=torch.channels_last)


def test_all_views_are_equally_likely():
    views = Views(pad=1, flip=True)
    drawn = views.draw(torch.arange(18_000), seed=0, epoch=0).bincount(minlength=len(views))
    assert len(drawn) == 18
    assert drawn.min() > 850
    assert drawn.max() < 1150


def test_all_162_views_equal_torchvision():
    """RandomCrop(32, padding=4) at these offsets, then RandomHorizontalFlip."""
    from torchvision.transforms import functional

    views = Views(pad=4, flip=True)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for row in range(2):
        ours = views.cut(views.padded(images), torch.full((162,), row), torch.arange(162))
        for number in range(162):
            dy, dx, flip = (int(part) for part in views.offsets(torch.tensor(number)))
            crop = functional.crop(functional.pad(images[row], [4]), dy, dx, 32, 32)
            assert torch.equal(ours[number], functional.hflip(crop) if flip else crop)
