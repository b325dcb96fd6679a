"""Train in several processes, as torchrun starts them: `python several_processes.py FOLDER METHOD …`.

Each process writes the final weights and rows of each method to FOLDER/METHOD-WORLD-RANK.pt.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from checkpointkd.config import Recipe
from checkpointkd.data import Batch
from checkpointkd.data.in_memory import InMemoryImages
from checkpointkd.data.views import Views
from checkpointkd.distill_config import DistillConfig, KDConfig
from checkpointkd.losses import Supervised, defaults, distillation, takes_features
from checkpointkd.models import Network, build_network
from checkpointkd.ranks import joined, synchronize_batch_norm, world_size
from checkpointkd.training.loop import fit, start

EXAMPLES, BATCH, CLASSES = 11, 4, 3  # the last batch has three examples: one rank of four has none


class Teacher:
    """One network in double precision, as objectives call teachers."""

    def __init__(self, network: Network) -> None:
        self.network = network.eval().requires_grad_(False)

    def __len__(self) -> int:
        return 1

    def logits(self, batch: Batch, members: object) -> torch.Tensor:
        return self.network(batch.images_BCHW)[None]

    def forward_with_features(self, member: int, batch: Batch, paths: list[str]):
        from checkpointkd.models import capture_activations

        with capture_activations(self.network.body, paths) as activations:
            logits_BK = self.network(batch.images_BCHW)
        return logits_BK, [activations[path] for path in paths]


def images() -> InMemoryImages:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (EXAMPLES, 3, 16, 16), generator=random, dtype=torch.uint8)
    labels = torch.arange(EXAMPLES) % CLASSES
    return InMemoryImages(pixels, labels, torch.arange(EXAMPLES), Views(pad=1, flip=True))


def network(model: str, seed: int) -> Network:
    return build_network(model, num_classes=CLASSES, in_channels=3, mean=[0.5] * 3, std=[0.3] * 3, seed=seed).double()


class Doubles:
    """The batches of a loader with images in double precision."""

    def __init__(self, batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, *, start: int = 0):
        for batch in self.batches.epoch(epoch, start=start):
            yield replace(batch, images_BCHW=batch.images_BCHW.double())


def train(method: str, model: str = "resnet_8") -> dict:
    device, data = torch.device("cpu"), images()
    student = network(model, seed=1)
    recipe = Recipe(epochs=2, batch_size=BATCH, learning_rate=0.01)
    if method == "labels":
        objective = Supervised()
    else:
        teacher, (alpha, tau) = network("resnet_8", seed=2), defaults(method)
        objective = distillation(
            method,
            Teacher(teacher),
            KDConfig(alpha=alpha, tau=tau),
            # the published weights of pkt and others would make these steps diverge
            DistillConfig(method_weight=1.0 if takes_features(method) else None),
            student=network(model, seed=1).float(),
            teachers=[("teacher", network("resnet_8", seed=2).float())],
            images=data,
            seed=0,
        ).double()
    with joined(device) as ranks:
        if ranks.world_size > 1:
            synchronize_batch_norm(student, device=device)
        state = start(student, objective, recipe, device=device)
        batches = Doubles(data.batches(batch_size=BATCH, seed=3, device=device, ranks=ranks))
        rows = list(fit(state, batches, recipe=recipe, seed=5, ranks=ranks))
    return {
        "weights": {**student.state_dict(), **{f"objective.{k}": v for k, v in objective.state_dict().items()}},
        "loss": [row["loss"] for row in rows],
        "train_accuracy": [row["train_accuracy"] for row in rows],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        torch.save(train(name), folder / f"{name}-{world_size()}-{os.environ.get('RANK', 0)}.pt")
