"""Measure whether the fast path costs accuracy, on 10,000 images of real CIFAR-100.

    python benchmarks/accuracy.py --data cifar100:PATH --small runs/small

Compares students of one teacher: the fast path (bf16, cached logits) and the plain path (fp32, live teacher). The
teacher and the first students are those of benchmarks/small.py.
"""

from __future__ import annotations

import argparse
import math
from statistics import fmean, stdev

import checkpointkd as ckd
from common import write_result

PATHS = {"full": {"precision": "bf16"}, "full-plain": {"precision": "fp32", "logit_cache_gb": 0.0}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--small", default="runs/small")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    accuracy: dict[str, list[float]] = {name: [] for name in PATHS}
    for seed in range(options.seeds):
        for name, settings in PATHS.items():
            student = ckd.distill(
                "wrn_10_1",
                teachers=[f"{options.small}/teacher@last"],
                data=options.data,
                train_images=10_000,
                recipe="cifar100-small-student",
                save_every=20,
                seed=seed,
                out=f"{options.small}/students/{name}-seed{seed}",
                **settings,
            )
            accuracy[name].append(round(100 * student.test_accuracy, 2))
        gaps = [fast - plain for fast, plain in zip(*accuracy.values(), strict=True)]
        error = stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None
        write_result(
            "accuracy",
            {
                "command": "python benchmarks/accuracy.py --data cifar100:PATH",
                "test_accuracy": dict(zip(("fast", "plain"), accuracy.values(), strict=True)),
                "fast_minus_plain": {"mean": round(fmean(gaps), 2), "standard_error": error and round(error, 2)},
            },
        )


if __name__ == "__main__":
    main()
