"""Features of large images: in 16 bits, in bounded memory, with an estimator that notices when it finds nothing."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

from checkpointkd.config import EstimatorConfig
from checkpointkd.data.in_memory import InMemoryImages
from checkpointkd.errors import UserError
from checkpointkd.information import maps_and_logits, ridge_information
from checkpointkd.information.features import LARGE_SIDE
from checkpointkd.information.ridge import COMPONENTS
from checkpointkd.models import build_network
from checkpointkd.models.network import Network

from .channels import gray_images

PEAK = """
import resource, sys, torch
from checkpointkd.data.in_memory import InMemoryImages
from checkpointkd.information import maps_and_logits
from checkpointkd.models.network import Network
torch.set_num_threads(1)
count = int(sys.argv[1])
pixels = torch.zeros(count, 1, 64, 64, dtype=torch.uint8)
images = InMemoryImages(pixels, torch.zeros(count).long(), torch.arange(count))
body = torch.nn.Sequential(
    torch.nn.Conv2d(1, 64, 3, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 2)
)
maps_and_logits(Network(body, mean=[0.5], std=[0.5]), images.subset(torch.arange(256)), "0")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
maps, _ = maps_and_logits(Network(body, mean=[0.5], std=[0.5]), images, "0")
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, maps.numel())
"""


def _blocks(count: int, side: int, seed: int = 0) -> InMemoryImages:
    """Return gray images of random blocks, each a quarter of the side wide."""
    draw = torch.Generator().manual_seed(seed)
    small = 0.2 + 0.6 * torch.rand(count, 1, 4, 4, generator=draw)
    return gray_images(small.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3))


def test_features_of_large_images_are_kept_in_16_bits_and_of_small_ones_unchanged():
    network = build_network("resnet_8", num_classes=3, in_channels=1, mean=[0.5], std=[0.5]).eval()
    for side, kept_as in ((LARGE_SIDE, torch.float32), (2 * LARGE_SIDE, torch.float16)):
        images = _blocks(5, side)
        maps_NhwD, logits_NK = maps_and_logits(network, images, "stage3")
        with torch.no_grad():
            expected = network.body.stage3(network.body.stage2(network.body.stage1(_stem(network, images))))
        assert maps_NhwD.dtype == kept_as
        assert logits_NK.dtype == torch.float32
        exact = expected.permute(0, 2, 3, 1)
        torch.testing.assert_close(maps_NhwD.float(), exact, rtol=1e-3 if side > LARGE_SIDE else 1e-5, atol=1e-4)


def _stem(network: Network, images: InMemoryImages) -> torch.Tensor:
    captured = []
    handle = network.body.stage1.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))  # type: ignore
    network(images.to_float())
    handle.remove()
    return captured[0]


def test_values_beyond_the_range_of_16_bits_are_cut_with_a_warning(caplog: pytest.LogCaptureFixture):
    body = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    torch.nn.init.constant_(body[0].weight, 1e6)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "checkpointkd"):
        maps_NhwD, _ = maps_and_logits(Network(body, mean=[0.0], std=[1.0]), _blocks(4, 64), "0")
    assert maps_NhwD.isfinite().all()
    assert "'0' has values beyond 65504" in caplog.text


def test_memory_of_features_is_their_16_bit_size():
    """3,000 images of 16×16×64 values take 98 MB in 16 bits; 32 bits and a copy would take 393 MB."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # or freed batches stay in the process
    process = subprocess.run(
        [sys.executable, "-c", PEAK, "3000"], env=environment, capture_output=True, text=True, check=True
    )
    before, peak, values = map(int, process.stdout.split())
    assert (peak - before) * 1024 < 1.25 * 2 * values + 32e6


def test_networks_without_logits_are_refused():
    body = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3))
    with pytest.raises(UserError, match=r"must return logits \(images, classes\), not \[4, 2, 62, 62\]"):
        maps_and_logits(Network(body, mean=[0.0], std=[1.0]), _blocks(4, 64), "0")


def test_ridge_finds_information_in_few_positions_with_many_channels():
    """With one strength for all values of a patch, and all channels, this estimate was 0."""
    draw = torch.Generator().manual_seed(1)
    fitted_on, measured_on = _blocks(400, 64), _blocks(200, 64, seed=1)
    project = torch.randn(4, 512, generator=draw)

    def maps(images: InMemoryImages) -> torch.Tensor:
        cells = torch.nn.functional.adaptive_avg_pool2d(images.to_float(), 4)[:, 0]
        quarters = cells.unflatten(2, (2, 2)).unflatten(1, (2, 2)).permute(0, 1, 3, 2, 4).flatten(3)
        signal = quarters @ project
        return (signal + 0.3 * torch.randn(signal.shape, generator=draw))[None].half()

    settings = EstimatorConfig(estimator="ridge")
    full, _ = ridge_information(fitted_on, maps(fitted_on), measured_on, maps(measured_on), settings=settings)
    noise = torch.randn(1, 600, 2, 2, 512, generator=draw).half()
    empty, _ = ridge_information(fitted_on, noise[:, :400], measured_on, noise[:, 400:], settings=settings)
    assert full.mean() > 4
    assert empty.mean() < 0.1
    assert COMPONENTS < 512
