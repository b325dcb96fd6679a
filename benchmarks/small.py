"""The `small` scale on real CIFAR-100, top to bottom: a teacher with its trajectory, its plane, the choice, students.

    python benchmarks/small.py --data cifar100:PATH --out runs/small

Writes benchmarks/results/cifar100-small.json. Stopped, it continues. About forty minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics

import checkpointkd as ckd
from common import write_result

TEACHERS = {"none": None, "epoch 12": "@12", "half": "@half", "chosen": "@best", "full": "@full"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--out", default="runs/small")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    common = {"data": options.data, "train_images": 10_000, "precision": "bf16"}
    teacher = ckd.train(
        "wrn_16_2", recipe="cifar100-small", save_every=3, out=f"{options.out}/teacher", progress=_say, **common
    )
    plane = ckd.score(teacher.path, decoder_seeds=1, decoder_steps=300, progress=_say)
    choice = ckd.select(teacher.path)
    students = {}
    student = {"recipe": "cifar100-small-student", "save_every": 20, **common}
    for name, address in TEACHERS.items():
        runs = []
        for seed in range(options.seeds):
            out = f"{options.out}/students/{name.replace(' ', '-')}-seed{seed}"
            if address is None:
                run = ckd.train("wrn_10_1", out=out, seed=seed, progress=_say, **student)
            else:
                teachers = [f"{teacher.path}{address}"]
                run = ckd.distill("wrn_10_1", teachers=teachers, out=out, seed=seed, progress=_say, **student)
            runs.append(run)
        accuracies = [run.test_accuracy for run in runs]
        students[name] = {
            "test_accuracy": accuracies,
            "mean": statistics.mean(accuracies),
            "sd": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            "training_seconds": [run.result()["seconds"] for run in runs],
        }
    points = {point.epoch: point for point in plane.points}
    epochs = [
        {
            "epoch": row["epoch"],
            "selection_accuracy": row["selection_accuracy"],
            "excess": points[row["epoch"]].excess,
            "excess_se": points[row["epoch"]].excess_se,
        }
        for row in teacher.rows()
        if "selection_accuracy" in row
    ]
    write_result(
        "cifar100-small",
        {
            "command": "python benchmarks/small.py --data cifar100:PATH --out runs/small",
            "teacher": {"model": "wrn_16_2", "epochs": epochs, "result": teacher.result()},
            "chosen_epoch": choice.epoch,
            "reason": choice.reason,
            "students": {"model": "wrn_10_1", "alpha": 0.5, "tau": 5.0, "from": students},
        },
    )


def _say(task: str, done: int, total: int) -> None:
    if done == total:
        print(f"{task}: done", flush=True)


if __name__ == "__main__":
    main()
