"""Students of early and of late checkpoints of a teacher that memorized wrong labels, on scikit-learn's digits.

python benchmarks/wrong_labels.py --out FOLDER                        # about 20 minutes on one core

For each seed, a share of the training labels is replaced by wrong ones. The teacher and its students train on the same
images and the same labels. Test labels are right. Rows go to FOLDER/wrong_labels.jsonl. A repeated command continues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import checkpointkd as ckd
from checkpointkd.experiments.demo import wrong_labels

STUDENTS = {
    "no teacher": None,
    "last": ["last"],
    "0.2": ["0.2"],
    "0.3": ["0.3"],
    "midpoint + last": ["midpoint", "last"],
    "Algorithm 1": ["best"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--teachers", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "wrong_labels.jsonl"
    written = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["teacher"], row["variant"], row["seed"]) for row in written}
    for number in range(options.teachers):
        labels = wrong_labels(options.out / f"labels-{number}.npy", share=options.share, seed=number)
        common: dict[str, Any] = {"train_labels": labels, "precision": "fp32"}
        teacher = ckd.train(
            "wrn_16_2",
            data="digits",
            train_images=400,
            epochs=60,
            save_every=6,
            seed=number,
            out=options.out / f"teacher-{number}",
            **common,
        )
        ckd.score(teacher.path, decoder_steps=200, decoder_seeds=2)
        chosen = ckd.select(teacher.path).epoch
        last = teacher.rows()[-1]
        for variant, references in STUDENTS.items():
            for seed in range(options.seeds):
                if (number, variant, seed) in done:
                    continue
                common |= {
                    "epochs": 60,
                    "save_every": 60,
                    "seed": seed,
                    "out": options.out / f"{number}-{variant}-{seed}",
                }
                if references is None:
                    student = ckd.train("wrn_10_1", data="digits", train_images=400, **common)
                else:
                    teachers = [f"{teacher.path}@{reference}" for reference in references]
                    student = ckd.distill("wrn_10_1", teachers=teachers, allow_weak_teacher=True, **common)
                row = {"teacher": number, "variant": variant, "seed": seed, "test": student.test_accuracy}
                row |= {"chosen_epoch": chosen, "teacher_test": teacher.test_accuracy}
                row |= {"teacher_train": last.train_accuracy, "share": options.share}
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
