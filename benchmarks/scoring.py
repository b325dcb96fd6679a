"""Measure the cost of scoring as a share of training the teacher, and the growth of its memory, on real CIFAR-100.

    python benchmarks/scoring.py --cifar100 PATH

Writes benchmarks/results/scoring.json. All checkpoints cost the same, so they are copies of one network after a short
epoch. The teacher's training time is the median time of a step, times the number of steps.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

import checkpointkd as ckd
from checkpointkd.checkpoints import RunDir
from checkpointkd.config import EstimatorConfig, EstimatorName, Precision
from checkpointkd.data import DataConfig, load_data
from checkpointkd.device import pick_device
from checkpointkd.information import score_trajectory
from checkpointkd.losses import Supervised
from checkpointkd.recipes import recipe
from checkpointkd.training.loop import start, step
from common import write_result

CHECKPOINTS = 20
SCALES: dict[str, dict[str, Any]] = {  # as many checkpoints as are scored stand for twenty
    "small": {"model": "wrn_16_2", "images": 10_000, "recipe": "cifar100-small", "scored": 6},
    "paper": {"model": "wrn_40_2", "images": None, "recipe": "cifar100", "scored": 2},
}
TARGETS = {"small": {"decoder": 0.30, "ridge": 0.10}, "paper": {"decoder": 0.05, "ridge": 0.01}}


def trajectory(model: str, count: int, *, data: str, out: Path, precision: Precision) -> ckd.Trajectory:
    """A run with so many checkpoints."""
    run = ckd.train(model, data=data, train_images=500, epochs=1, precision=precision, out=out)
    tensors = run[1].network().state_dict()
    for epoch in range(2, count + 1):
        RunDir(out).save_checkpoint(epoch, tensors)
    return ckd.open_trajectory(out)


def cost(name: str, data: str, folder: Path) -> dict[str, Any]:
    """Seconds of training and of scoring, and their ratio."""
    scale = SCALES[name]
    loaded = load_data(DataConfig(data=data, train_images=scale["images"]))
    chosen = recipe(scale["recipe"])
    device = pick_device("auto")
    run = trajectory(scale["model"], scale["scored"], data=data, out=folder / name, precision="bf16")
    state = start(run[1].network(device), Supervised(), replace(chosen, epochs=1), device=device)
    state.model.train()
    batch = next(iter(loaded.train.batches(batch_size=chosen.batch_size, seed=0, device=device).epoch(0)))
    steps = chosen.epochs * math.ceil(len(loaded.train) / chosen.batch_size)
    seconds = []

    def train_some() -> None:
        for _ in range(8):
            began = time.perf_counter()
            step(state, batch, precision="bf16", train_fraction=0.0)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)

    result: dict[str, Any] = {"model": scale["model"], "checkpoints": CHECKPOINTS, "scored": scale["scored"]}
    scoring = {}
    for estimator in get_args(EstimatorName):
        train_some()  # around each scoring: the machine's speed drifts
        began = time.perf_counter()
        settings = EstimatorConfig(estimator=estimator)
        score_trajectory(run, loaded, settings=settings, device=device)
        scoring[estimator] = (time.perf_counter() - began) * CHECKPOINTS / scale["scored"]
        train_some()
    result["training_seconds"] = round(statistics.median(seconds[1:]) * steps)
    for estimator, spent in scoring.items():
        share = spent / result["training_seconds"]
        result[estimator] = {
            "seconds": round(spent, 1),
            "share_of_training": round(share, 4),
            "target": TARGETS[name][estimator],
            "met": share <= TARGETS[name][estimator],
        }
    return result


def memory(data: str, folder: Path) -> dict[str, Any]:
    """The greatest resident memory of `score`, in MB, by the number of checkpoints."""
    found: dict[str, Any] = {"fit_images": 500, "measure_images": 1000, "megabytes": {}}
    for count in (10, 100):
        run = trajectory("wrn_16_2", count, data=data, out=folder / f"memory-{count}", precision="bf16")
        for estimator in ("decoder", "ridge"):
            code = (
                "import resource, sys; from checkpointkd.cli import main; code = main(sys.argv[1:]); "
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
            )
            command = [sys.executable, "-c", code, "score", str(run.path), "--estimator", estimator, "--json"]
            command += ["--fit-images", "500", "--measure-images", "1000", "--decoder-steps", "20"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            kilobytes = int(done.stderr.strip().splitlines()[-1])
            found["megabytes"].setdefault(estimator, {})[count] = round(kilobytes / 1024)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar100", required=True, help="its folder")
    parser.add_argument("--parts", nargs="+", default=["small", "paper", "memory"])
    options = parser.parse_args()
    data = f"cifar100:{options.cifar100}"
    result: dict[str, Any] = {"command": "python benchmarks/scoring.py --cifar100 PATH"}
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            result[part] = memory(data, Path(folder)) if part == "memory" else cost(part, data, Path(folder))
            write_result("scoring", result)


if __name__ == "__main__":
    main()
