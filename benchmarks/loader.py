"""Images per second of the loader of streamed images, beside timm's, on the same files with as many processes.

python benchmarks/loader.py --tiny-imagenet FOLDER --out FOLDER     # a few minutes; no network is trained

Each loader reads JPEG files, takes random resized crops of 224 pixels, flips them, and returns normalized float batches
in the main process. timm's loader runs in both of its modes, with and without its prefetcher; the table has both.
Runs of the loaders alternate. The files are images of Tiny-ImageNet: as they are, 64×64, and enlarged to 500×375, the
usual size of ImageNet's files.

The second table has the processor time of the training process, without the workers: to receive a batch, and to train
ResNet-18 on it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from checkpointkd.data import DataConfig, load_data
from checkpointkd.models import build_network
from common import write_result

BATCH, SIZE = 64, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny-imagenet", type=Path, required=True, help="the folder tiny-imagenet-200")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ["CHECKPOINTKD_WORKERS"] = str(options.workers)
    torch.set_num_threads(1)
    files = sorted(options.tiny_imagenet.glob("train/*/images/*.JPEG"))
    files = files[:: max(1, len(files) // options.images)][: options.images]
    throughput = {}
    for kind, size in (("64×64", None), ("500×375", (500, 375))):
        folder = options.out / kind
        write_folder(files, folder, size)
        throughput[kind] = compare(folder, workers=options.workers, repeats=options.repeats)
    cost = step_cost(options.out / "500×375", repeats=options.repeats)
    write_result(
        "loader",
        {"processes": options.workers, "images": len(files), "images per second": throughput, "training process": cost},
    )


def write_folder(files: list[Path], folder: Path, size: tuple[int, int] | None) -> None:
    for file in files:
        target = folder / "train" / file.parts[-3] / file.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            if size is None:
                target.write_bytes(file.read_bytes())
            else:
                Image.open(file).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, quality=90)
    for class_folder in (folder / "train").iterdir():  # the loader wants test images too
        test = folder / "val" / class_folder.name
        test.mkdir(parents=True, exist_ok=True)
        (test / "a.JPEG").write_bytes(next(class_folder.iterdir()).read_bytes())


def compare(folder: Path, *, workers: int, repeats: int) -> dict[str, Any]:
    ours = load_data(DataConfig(data=f"folder:{folder}", select_on="test", image_size=SIZE)).train
    batches = ours.batches(batch_size=BATCH, seed=0, device="cpu")
    mean_1CHW, std_1CHW = (  # of whole images: broadcasting is slow where channels are last
        torch.tensor(values).expand(1, SIZE, SIZE, 3).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        for values in (MEAN, STD)
    )

    def our_epoch(epoch: int) -> int:
        return count(batch.images_BCHW.sub_(mean_1CHW).div_(std_1CHW) for batch in batches.epoch(epoch))

    loaders: dict[str, Callable[[int], int]] = {"checkpointkd": our_epoch}
    for name, prefetch in (("timm", False), ("timm, prefetcher", True)):
        loader = timm_loader(folder, workers=workers, prefetch=prefetch)
        loaders[name] = lambda epoch, loader=loader: count(images_BCHW for images_BCHW, _ in loader)
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for repeat in range(repeats + 1):
        for name, epoch in loaders.items():
            began = time.perf_counter()
            images = epoch(repeat)
            if repeat:  # the first starts the workers
                rates[name].append(round(images / (time.perf_counter() - began), 1))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(value for name, value in medians.items() if name != "checkpointkd")
    return {"rates": rates, "medians": medians, "ratio to timm's faster mode": round(medians["checkpointkd"] / best, 3)}


def timm_loader(folder: Path, *, workers: int, prefetch: bool) -> Any:
    from timm import data

    timm_data: Any = data
    return timm_data.create_loader(
        timm_data.create_dataset("", root=str(folder / "train"), is_training=True),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        no_aug=False,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        use_prefetcher=prefetch,
        device=torch.device("cpu"),
        persistent_workers=True,
        pin_memory=False,
    )


def count(batches: Iterable[torch.Tensor]) -> int:
    return sum(len(images_BCHW) for images_BCHW in batches)


def step_cost(folder: Path, *, repeats: int) -> dict[str, Any]:
    """Processor time of the training process for a batch: to receive it from the workers, and to train on it."""
    images = load_data(DataConfig(data=f"folder:{folder}", select_on="test", image_size=SIZE)).train
    batches = images.batches(batch_size=BATCH, seed=0, device="cpu")
    network = build_network("timm:resnet18", num_classes=200, in_channels=3, mean=list(MEAN), std=list(STD))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    batch = next(batches.epoch(0))
    receiving, stepping = [], []
    for epoch in range(repeats):
        began = time.process_time()
        received = sum(1 for _ in batches.epoch(epoch))
        receiving.append((time.process_time() - began) / received)
        began = time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(network(batch.images_BCHW), batch.labels_B).backward()
        optimizer.step()
        stepping.append(time.process_time() - began)
    receive, step = statistics.median(receiving), statistics.median(stepping)
    return {
        "batch size": BATCH,
        "milliseconds to receive": round(1e3 * receive, 1),
        "milliseconds of a resnet18 step": round(1e3 * step, 1),
        "bare step / step with loader": round(step / (step + receive), 3),
    }


if __name__ == "__main__":
    main()
