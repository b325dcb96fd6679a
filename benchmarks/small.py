"""Run the whole workflow at the size of the preset `small` on real CIFAR-100: train, score, select, distill.

    python benchmarks/small.py --data cifar100:PATH --out runs/small

Writes benchmarks/results/cifar100-small.json after each part. Repeat the command to continue after an interruption.
"""

from __future__ import annotations

import argparse
from typing import Any

import checkpointkd as ckd
from checkpointkd.records.base import plain
from common import write_result

TEACHERS = {"none": None, "epoch 12": "@12", "midpoint": "@midpoint", "chosen": "@best", "last": "@last"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--out", default="runs/small")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    common = {"data": options.data, "train_images": 10_000, "precision": "bf16"}
    teacher = ckd.train(
        "wrn_16_2", recipe="cifar100-small", save_every=3, out=f"{options.out}/teacher", on_progress=_say, **common
    )
    result: dict[str, Any] = {
        "command": "python benchmarks/small.py --data cifar100:PATH --out runs/small",
        "teacher": {"model": "wrn_16_2", "epochs": accuracies(teacher), "result": teacher.result()},
    }
    write_result("cifar100-small", result)
    plane = ckd.score(teacher.path, on_progress=_say)
    choice = ckd.select(teacher.path)
    result["plane"] = [plain(point) for point in plane.points]
    result |= {"chosen_epoch": choice.epoch, "reason": choice.reason, "students": {"model": "wrn_10_1", "from": {}}}
    student = {"recipe": "cifar100-small-student", "save_every": 20, **common}
    for seed in range(options.seeds):
        for name, address in TEACHERS.items():
            out = f"{options.out}/students/{name.replace(' ', '-')}-seed{seed}"
            if address is None:
                run = ckd.train("wrn_10_1", out=out, seed=seed, on_progress=_say, **student)
            else:
                teachers = [f"{teacher.path}{address}"]
                run = ckd.distill("wrn_10_1", teachers=teachers, out=out, seed=seed, on_progress=_say, **student)
            result["students"]["from"].setdefault(name, []).append(run.test_accuracy)
            write_result("cifar100-small", result)


def accuracies(run: ckd.Trajectory) -> list[dict[str, Any]]:
    """Return the validation accuracy at each saved epoch."""
    rows = [row for row in run.rows() if row.val_accuracy is not None]
    return [{name: getattr(row, name) for name in ("epoch", "val_accuracy", "train_accuracy", "loss")} for row in rows]


def _say(task: str, done: int, total: int) -> None:
    if done == total:
        print(f"{task}: done", flush=True)


if __name__ == "__main__":
    main()
