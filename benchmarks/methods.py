"""Train a student with every distillation method, at the size of the preset `small` on real CIFAR-100.

    python benchmarks/methods.py --data cifar100:PATH --teacher runs/small/teacher --out runs/methods

The teacher is that of benchmarks/small.py. Writes benchmarks/results/methods.json after each student. Repeat the
command to continue after an interruption. `--only NAME ...` trains some of the students. Every method uses its
defaults.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import checkpointkd as ckd
from checkpointkd.losses import METHODS
from common import RESULTS, write_result

FULL: dict[str, Any] = {"ensemble": "full:1"}
WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    **{name: {**FULL, "method": name} for name in METHODS},
    "fsp": {**FULL, "method": "fsp", "channel_adapter": True},
    "kd, snapshot:2": {"ensemble": "snapshot:2"},
    "kd, snapshot:2, mean of logits": {"ensemble": "snapshot:2", "average": "logits"},
    "kd, snapshot:5": {"ensemble": "snapshot:5"},
    "kd, rco over snapshot:5": {"ensemble": "snapshot:5", "teacher_schedule": "rco"},
    "kd, progressive over all": {"ensemble": "all", "teacher_schedule": "progressive"},
    "kd, batch norm by batch": {**FULL, "teacher_batch_norm": "batch"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--teacher", default="runs/small/teacher")
    parser.add_argument("--out", default="runs/methods")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", default=list(WAYS))
    options = parser.parse_args()
    student = {
        "data": options.data,
        "train_images": 10_000,
        "precision": "bf16",
        "recipe": "cifar100-small-student",
        "save_every": 20,
    }
    for seed in options.seeds:
        for name in options.only:
            out = f"{options.out}/{name.replace(',', '').replace(':', '').replace(' ', '-')}-seed{seed}"
            way, began = WAYS[name], time.perf_counter()
            found: dict[str, Any] = {"seed": seed}
            try:
                if way:
                    run = ckd.distill("wrn_10_1", teachers=[options.teacher], out=out, seed=seed, **way, **student)
                else:
                    run = ckd.train("wrn_10_1", out=out, seed=seed, **student)
                found |= {"accuracy": run.test_accuracy, "seconds": round(sum(row.seconds for row in run.rows()), 1)}
            except ckd.UserError as error:
                found |= {"failed": str(error)}
            print(f"{name}, seed {seed}: {found} ({time.perf_counter() - began:.0f} s)", flush=True)
            _keep(name, found)


def _keep(name: str, found: dict[str, Any]) -> None:
    """Add a student to the result; another process may be adding others."""
    path = RESULTS / "methods.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"students": {}}
    students = [one for one in result["students"].get(name, []) if one["seed"] != found["seed"]]
    result["students"][name] = sorted([*students, found], key=lambda one: one["seed"])
    result["students"] = {way: result["students"][way] for way in WAYS if way in result["students"]}
    write_result(
        "methods",
        {
            "command": "python benchmarks/methods.py --data cifar100:PATH --teacher runs/small/teacher",
            "what": "test accuracy of WRN-10-1, 20 epochs on 10,000 images, taught by the last of WRN-16-2 or as said",
            "students": result["students"],
        },
    )


if __name__ == "__main__":
    main()
