"""Estimate the least cost of the paper's CIFAR-100 experiments on a card, from its data sheet. Nothing is timed.

    python benchmarks/paper_cost.py

Each network's training step runs on the meta device, which computes nothing. Three numbers are counted: floating-point
operations, bytes that operations read and write (16 bits per number, without compiling), and kernel launches. The lower
bound of a step is the longest of three times: operations at the card's peak, bytes at its bandwidth, and launches at
LAUNCH seconds each. Several processes at once can share the time of the launches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from checkpointkd.experiments.catalog import PAPER, PRIORITY, by_priority, get_experiment
from checkpointkd.experiments.context import Context
from checkpointkd.experiments.estimate import estimate_of
from checkpointkd.experiments.presets import paper
from checkpointkd.models import build_network
from checkpointkd.records.experiments import NetworkSpeed
from common import write_result

CARDS = {  # peak in bf16 without sparsity, operations a second; bandwidth, bytes a second; by NVIDIA's data sheets
    "H200": (989e12, 4.8e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.04e12),
}
LAUNCH = 5e-6  # seconds an operation on the processor, without graphs; assumed, not measured
BATCH, CLASSES, IMAGES = 128, 100, 50_000


class Counting(TorchDispatchMode):
    """Counts operations that compute something, and the numbers that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.numbers = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func not in (torch.ops.aten.detach.default, torch.ops.aten.empty_like.default):
            leaves = tree_leaves((args, out))
            self.operations += 1
            self.numbers += sum(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))
        return out


def step_of(model: str) -> dict[str, float]:
    """What a training step of this network takes, in operations, bytes and launches."""
    with torch.device("meta"):
        network = _network(model).train()
        images, labels = torch.empty(BATCH, 3, 32, 32), torch.empty(BATCH, dtype=torch.long)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=True
    )
    with FlopCounterMode(display=False) as flops, Counting() as counted:
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return {"flop": flops.get_total_flops(), "bytes": 2 * counted.numbers, "launches": counted.operations}


def main() -> None:
    preset = paper()
    models = dict.fromkeys(name for pair in preset.pairs for name in (pair.teacher, pair.student))
    steps = {model: step_of(model) for model in models}
    items = {name: get_experiment(name).needs(preset) for name in (*PAPER, "lr-schedule")}
    found: dict[str, Any] = {"steps": steps, "launch_seconds": LAUNCH, "cards": {}}
    for card, (peak, bandwidth) in CARDS.items():
        times = {
            model: {
                "compute": step["flop"] / peak,
                "memory": step["bytes"] / bandwidth,
                "launches": step["launches"] * LAUNCH,
            }
            for model, step in steps.items()
        }
        floors = {}
        for kind, bounds in (
            ("one run at a time", ("compute", "memory", "launches")),
            ("the card full", ("compute", "memory")),
        ):
            speeds = {
                model: NetworkSpeed(
                    precision="bf16",
                    seconds_per_step=max(step_times[bound] for bound in bounds),
                    megabytes=4e-6 * _parameters(model),
                )
                for model, step_times in times.items()
            }
            epoch_steps = -(-IMAGES // BATCH)
            context = Context(
                Path("nowhere"), preset, "cifar100", speeds=speeds, teacher_steps=epoch_steps, student_steps=epoch_steps
            )
            hours, before = {}, 0.0
            for row, names in enumerate(PRIORITY[:3], start=1):  # tasks of earlier rows are not counted again
                needed = {name: items[name] for earlier in PRIORITY[:row] for name in earlier}
                estimate = estimate_of(context, by_priority(preset, needed), lambda task: False)
                hours[", ".join(names)] = round((estimate.seconds - before) / 3600, 1)
                before = estimate.seconds
                runs, gigabytes = estimate.teachers + estimate.students, round(estimate.gigabytes, 1)
            floors[kind] = {"hours": hours, "all hours": round(before / 3600, 1), "runs": runs, "gigabytes": gigabytes}
        found["cards"][card] = {
            "milliseconds per step": {
                model: {bound: round(1e3 * value, 3) for bound, value in step_times.items()}
                for model, step_times in times.items()
            },
            **floors,
        }
    write_result("paper-cost", found)


def _network(model: str) -> torch.nn.Module:
    return build_network(model, num_classes=CLASSES, in_channels=3, mean=[0.5] * 3, std=[0.25] * 3)


def _parameters(model: str) -> int:
    return sum(one.numel() for one in _network(model).parameters())


if __name__ == "__main__":
    main()
