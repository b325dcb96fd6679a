"""The same distillation in our loop and in plain PyTorch loops, and the cost of the warm cached batches.

python benchmarks/own_loop.py --data cifar100:PATH --out FOLDER          # real CIFAR-100; minutes on two cores

It prints the mean loss of each epoch in `distill`, in a plain loop over `ckd.cached_logits`, and in a plain loop that
runs `ckd.teacher` on the same images. Then it prints the overhead of the warm cached batches: the processor time of an
epoch over them, compared with the same steps over batches that lie ready in memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import checkpointkd as ckd
from checkpointkd.data import Batch
from checkpointkd.models import build_network

ALPHA, TAU = 0.5, 5.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--model", default="wrn_10_1")
    options = parser.parse_args()
    common: dict[str, Any] = {"epochs": options.epochs, "batch_size": 64, "precision": "fp32", "learning_rate": 0.05}
    ckd.train(options.model, data=options.data, train_images=options.images, out=options.out / "teacher", **common)
    reference = f"{options.out}/teacher@last"
    run = ckd.distill(
        options.model, teachers=[reference], allow_weak_teacher=True, out=options.out / "student", **common
    )
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    batches = ckd.cached_logits(reference, batch_size=64)
    teacher = ckd.teacher(reference, tau=TAU)
    losses = {
        "distill": [row["loss"] for row in rows],
        "cached_logits": plain_loop(run, batches, lambda batch: batch.teacher_TBK[0]),
        "teacher": plain_loop(run, batches, lambda batch: teacher(batch.images_BCHW)),
    }
    for name, values in losses.items():
        differences = [abs(value / first - 1) for value, first in zip(values, losses["distill"], strict=True)]
        print(f"{name:14} loss by epoch {values}, largest relative difference {max(differences):.1e}")
    overhead(run, batches, cached_first=True)  # warms the cache up
    ratios = [overhead(run, batches, cached_first=repeat % 2 == 0) for repeat in range(options.repeats)]
    print(f"overhead of warm cached batches: {statistics.median(ratios) - 1:+.1%} (n = {len(ratios)}; {ratios})")


def loss_of(student: torch.nn.Module, batch: Batch, teacher_BK: Tensor) -> Tensor:
    """Eq. 1 with the factor τ², written out."""
    logits_BK = student(batch.images_BCHW)
    log_p_BK, target_BK = (logits_BK / TAU).log_softmax(-1), (teacher_BK / TAU).softmax(-1)
    soft = TAU**2 * F.kl_div(log_p_BK, target_BK, reduction="batchmean")
    return ALPHA * F.cross_entropy(logits_BK, batch.labels_B) + (1 - ALPHA) * soft


def new_student(run: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    record = run.run
    student = build_network(
        record.model,
        num_classes=len(record.classes),
        in_channels=len(record.mean),
        mean=record.mean,
        std=record.std,
        seed=record.seed,
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings = record.recipe
    optimizer = torch.optim.SGD(
        student.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
    return student.train(), optimizer


def plain_loop(run: Any, batches: Any, teacher_logits: Any) -> list[float]:
    """Train a student as anybody would, and return the mean loss of each epoch."""
    student, optimizer = new_student(run)
    means = []
    for epoch in range(run.run.recipe.epochs):
        total = count = 0.0
        for number, batch in enumerate(batches.epoch(epoch)):
            for group in optimizer.param_groups:
                group["lr"] = run.run.recipe.learning_rate_at(epoch + number / len(batches))
            loss = loss_of(student, batch, teacher_logits(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, count = total + loss.item() * len(batch.labels_B), count + len(batch.labels_B)
        means.append(total / count)
    return means


def overhead(run: Any, batches: Any, *, cached_first: bool) -> float:
    """Return the processor time of an epoch over warm cached batches, divided by that over ready batches."""
    ready = list(batches.epoch(0))
    seconds: dict[bool, float] = {}
    for cached in (cached_first, not cached_first):
        student, optimizer = new_student(run)
        began = time.process_time()  # other processes do not count
        _steps(batches.epoch(0) if cached else ready, student, optimizer)
        seconds[cached] = time.process_time() - began
    return seconds[True] / seconds[False]


def _steps(source: Iterable[Batch], student: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for batch in source:
        assert batch.teacher_TBK is not None
        loss = loss_of(student, batch, batch.teacher_TBK[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
