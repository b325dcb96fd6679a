"""A network that takes one channel is registered, scored and distilled with images in three channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.errors import UserError

from ..data.image_files import folder_of_digits


class Gray(torch.nn.Module):
    """A network for images with one channel."""

    def __init__(self, num_classes: int, in_channels: int = 1) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, 4, 3)
        self.head = torch.nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("arguments", [("num_classes",), ("num_classes", "in_channels")])
def test_a_network_with_one_channel_works_on_images_in_three(arguments: tuple[str, ...], tmp_path: Path, monkeypatch):
    factory = (lambda num_classes: Gray(num_classes)) if len(arguments) == 1 else Gray
    monkeypatch.setitem(globals(), "gray", factory)
    net, run = Gray(3), tmp_path / "run"
    run.mkdir()
    torch.save(net.state_dict(), run / "epoch_1.pt")
    images_at = folder_of_digits(tmp_path / "images")
    options = {
        "model": f"{__name__}:gray",
        "data": f"folder:{images_at}",
        "image_size": 16,
        "select_on": "test",
    }
    with pytest.raises(UserError, match=r"give `checkpointkd inspect` --mean M --std S with one number each"):
        ckd.inspect(run, **options)
    with pytest.raises(UserError, match="gets the images in gray if each option has one number"):
        ckd.inspect(run, **options, mean=[0.5, 0.5], std=[0.2, 0.2])
    ckd.inspect(run, **options, mean=[0.5], std=[0.2])
    images = torch.rand(3, 1, 16, 16)
    loaded = ckd.load(f"{run}@last", model=options["model"])
    assert torch.allclose(loaded(images.expand(3, 3, 16, 16)), net((images - 0.5) / 0.2), atol=1e-5)
    assert ckd.score(run, estimator="ridge").points
    options = {"method": "fitnets", "epochs": 1, "allow_weak_teacher": True, "precision": "fp32"}
    assert ckd.distill("wrn_10_1", teachers=[str(run)], out=tmp_path / "student", **options).complete
