"""Features without information about large images: `score` says so at the first checkpoint, with the way out."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import checkpointkd as ckd

from ..data.image_files import digit


class Blind(nn.Module):
    """One layer sees the image; another has the same shape and sees nothing."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.seeing = nn.Conv2d(3, 6, 8, stride=8)
        self.blind = nn.Identity()
        self.head = nn.Linear(6, num_classes)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        maps_BChw = self.seeing(images_BCHW)
        return self.head((maps_BChw + self.blind(torch.zeros_like(maps_BChw))).mean((2, 3)))


@pytest.mark.parametrize("estimator", ["ridge", "decoder"])
def test_features_without_information_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture, estimator: str):
    folder = tmp_path / "images"
    for number in range(40):
        for label in range(8):
            path = folder / ("train" if number % 2 else "val") / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            digit(label, number, size=(48, 48)).save(path)
    network = ckd.named(Blind, "blind-network")
    common = {"select_on": "test", "image_size": 48, "epochs": 2, "save_every": 1, "batch_size": 15}
    run = ckd.train(network, data=f"folder:{folder}", out=tmp_path / "run", precision="fp32", **common)
    steps = {} if estimator == "ridge" else {"decoder_steps": 300, "decoder_seeds": 1}
    for layer, empty in (("blind", True), ("seeing", False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "checkpointkd"):
            ckd.score(run.path, feature_layer=layer, estimator=estimator, **steps)
        assert caplog.text.count("found no information about the images") == empty, layer
        assert ("name an earlier layer with --feature-layer" in caplog.text) == empty
