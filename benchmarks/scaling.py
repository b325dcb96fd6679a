"""The overhead of the training loop over a plain PyTorch loop, in one process or in several.

python benchmarks/scaling.py
torchrun --nproc-per-node 2 benchmarks/scaling.py

Each process computes the same number of images per step, so the global batch grows with the number of processes. Both
loops take the same steps in turn: the same network, the same batches, synchronized batch normalization.
"""

from __future__ import annotations

import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from checkpointkd.config import Recipe
from checkpointkd.data.in_memory import InMemoryImages
from checkpointkd.losses import Supervised
from checkpointkd.models import Network, build_network
from checkpointkd.ranks import joined, synchronize_batch_norm
from checkpointkd.training.loop import fit, start

PER_PROCESS, STEPS, ROUNDS = 64, 12, 15


def build(device: torch.device, *, synchronized: bool) -> Network:
    network = build_network("resnet_8", num_classes=10, in_channels=3, mean=[0.5] * 3, std=[0.3] * 3)
    if synchronized:
        synchronize_batch_norm(network, device=device)
    return network


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with joined(device) as ranks:
        batch_size = PER_PROCESS * ranks.world_size
        images = InMemoryImages(
            torch.randint(0, 256, (batch_size * STEPS, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator()),
            torch.arange(batch_size * STEPS) % 10,
            torch.arange(batch_size * STEPS),
        )
        recipe = Recipe(epochs=ROUNDS, batch_size=batch_size, learning_rate=0.01, lr_schedule="constant")
        batches = images.batches(batch_size=batch_size, seed=0, device=device, augmentation=None, ranks=ranks)
        state = start(build(device, synchronized=ranks.world_size > 1), Supervised(), recipe, device=device)
        ours = fit(state, batches, recipe=recipe, seed=0, ranks=ranks)

        network = build(device, synchronized=ranks.world_size > 1).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        plain: nn.Module = nn.parallel.DistributedDataParallel(network) if ranks.world_size > 1 else network
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

        def plain_epoch(epoch: int) -> None:
            plain.train()
            for batch in batches.epoch(epoch):
                loss = F.cross_entropy(plain(batch.images_BCHW), batch.labels_B)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        for epoch in range(ROUNDS):
            for name, run in (("plain", lambda: plain_epoch(epoch)), ("ours", lambda: next(ours))):  # noqa: B023
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
        ratios = [ours / plain for ours, plain in zip(seconds["ours"], seconds["plain"], strict=True)][1:]
        if ranks.is_main:
            print(
                json.dumps(
                    {
                        "processes": ranks.world_size,
                        "images_per_process": PER_PROCESS,
                        "plain_ms_per_step": round(1000 * statistics.median(seconds["plain"]) / STEPS, 2),
                        "ours_ms_per_step": round(1000 * statistics.median(seconds["ours"]) / STEPS, 2),
                        "ratio": round(statistics.median(ratios), 3),
                        "ratio_quartiles": [round(value, 3) for value in statistics.quantiles(ratios, n=4)[::2]],
                    }
                )
            )


if __name__ == "__main__":
    main()
