"""The peak memory of `score` on images of 224 pixels, against the size of the 16-bit features.

python benchmarks/plane_memory.py --data folder:PATH --out FOLDER --images 1000 2000 --estimator ridge

The network has the features of a ResNet-50 (2048 channels, 7×7) or with --tokens of a ViT-B (768 channels, 14×14). It
computes almost nothing, so that the memory is that of the features and the estimator. Each measurement is a process of
its own. The median of its repeats counts, since the memory allocator varies. The slope between two numbers of images
leaves out what does not depend on them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import checkpointkd as ckd


class ManyFeatures(nn.Module):
    """A network with a large last feature map."""

    def __init__(self, num_classes: int, in_channels: int, *, channels: int = 2048, side: int = 7) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Conv2d(in_channels, channels, 1), nn.ReLU())
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.head(self.norm(self.features(images_BCHW)).mean((2, 3)))


class ManyTokens(ManyFeatures):
    """The same with the size of a ViT-B's tokens."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels, channels=768, side=14)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 1000])
    parser.add_argument("--estimator", default="ridge")
    parser.add_argument("--tokens", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", type=int, help="for internal use: measure this number of images")
    options = parser.parse_args()
    model = "ManyTokens" if options.tokens else "ManyFeatures"
    run = options.out / model
    if options.measure is not None:
        ckd.score(
            run,
            estimator=options.estimator,
            fit_images=options.measure,
            measure_images=options.measure,
            decoder_seeds=1,
        )
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    if not (run / "result.json").exists():
        ckd.train(
            f"plane_memory:{model}",
            data=options.data,
            epochs=1,
            train_images=max(options.images),
            batch_size=64,
            out=run,
        )
    values = 768 * 14 * 14 if options.tokens else 2048 * 7 * 7
    points = []
    for images in options.images:
        command = [sys.executable, __file__, "--data", options.data, "--out", str(options.out), "--images", "1"]
        command += [
            "--estimator",
            options.estimator,
            "--measure",
            str(images),
            *(["--tokens"] if options.tokens else []),
        ]
        peaks = []
        for _ in range(options.repeats):
            (run / "plane.json").unlink(missing_ok=True)
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peaks.append(int(done.stdout.split()[-1]))
        point = {"images": images, "peaks": sorted(peaks), "features": 2 * 2 * images * values}
        points.append({**point, "peak": statistics.median(peaks)})
        print(json.dumps(points[-1]))
    for first, second in itertools.pairwise(points):
        slope = (second["peak"] - first["peak"]) / (second["features"] - first["features"])
        print(f"{first['images']} to {second['images']} images: {slope:.2f} × the 16-bit features of both sets")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
