"""Measure data sets and networks: parameters, operations, CIFAR-100's channel means, load times.

    python benchmarks/data_and_models.py --cifar100 PATH

Writes benchmarks/results/data-and-models.json. `cold` is the first load with an empty cache folder. `warm` is the
median of the next five loads. Both run in this process, with the libraries imported.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from checkpointkd.data import DataConfig, load_data
from checkpointkd.models import build_network
from common import write_result

PARAMETERS = {  # at 100 classes, from the specification
    "wrn_40_2": 2_255_156,
    "wrn_40_1": 569_780,
    "resnet_110": 1_733_812,
    "resnet_32": 470_004,
    "mobilenetv2_0.75": 1_475_692,
}


def networks() -> dict[str, dict]:
    found = {}
    for name, expected in PARAMETERS.items():
        network = build_network(name, num_classes=100, in_channels=3, mean=[0.5] * 3, std=[0.25] * 3).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 3, 32, 32))
        count = sum(parameter.numel() for parameter in network.parameters())
        found[name] = {
            "parameters": count,
            "as_specified": count == expected,
            "multiply_adds": counter.get_total_flops() // 2,  # the counter counts both
        }
    return found


def loading(path: str) -> dict:
    settings = DataConfig(data=f"cifar100:{path}", select_on="test")
    with tempfile.TemporaryDirectory() as home:
        os.environ["CHECKPOINTKD_HOME"] = home
        seconds = []
        for _ in range(6):
            began = time.perf_counter()
            data = load_data(settings)
            seconds.append(round(time.perf_counter() - began, 3))
        means, deviations = data.train.channel_statistics()
    return {
        "cold_seconds": seconds[0],
        "warm_seconds": statistics.median(seconds[1:]),
        "channel_means": means,
        "channel_means_published": [0.50707516, 0.48654887, 0.44091784],
        "channel_deviations": deviations,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar100", required=True, help="its folder")
    options = parser.parse_args()
    command = "python benchmarks/data_and_models.py --cifar100 PATH"
    write_result("data-and-models", {"command": command, "networks": networks(), "cifar100": loading(options.cifar100)})


if __name__ == "__main__":
    main()
