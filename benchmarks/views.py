"""The accuracy of students and the cost of teachers against the number K of fixed augmented views, `--views K`.

python benchmarks/views.py --data cifar100:PATH --out FOLDER                        # an hour on one core
python benchmarks/views.py --data folder:PATH --image-size 64 --teacher timm:resnet18 --student resnet_20 --out FOLDER

A teacher trains with all views. For each seed and each K, a student distills with K fixed views; 0 stands for all
views. `--top-k N` uses the N largest logits; 0 stands for all logits. Rows go to FOLDER/views.jsonl. A repeated command
continues.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import checkpointkd as ckd


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--views", type=int, nargs="+", default=[0, 2, 4, 8, 16, 1])
    parser.add_argument("--top-k", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["kd"])
    parser.add_argument("--teacher", default="wrn_16_2")
    parser.add_argument("--student", default="wrn_10_1")
    parser.add_argument("--teacher-images", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--teacher-epochs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--recipe", default="cifar100-small")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    common: dict[str, Any] = {"recipe": options.recipe, "precision": options.precision}
    ckd.train(
        options.teacher,
        data=options.data,
        image_size=options.image_size,
        train_images=options.teacher_images,
        epochs=options.teacher_epochs,
        save_every=options.teacher_epochs,
        out=options.out / "teacher",
        **common,
    )
    path = options.out / "views.jsonl"
    written = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = [(row["seed"], row["method"], row["views"], row.get("top_k", 0)) for row in written]
    settings: Any = product(range(options.seeds), options.methods, options.views, options.top_k)
    for seed, method, views, top_k in settings:
        if (seed, method, views, top_k) in done:
            continue
        student = ckd.distill(
            options.student,
            teachers=[f"{options.out}/teacher@last"],
            method=method,
            views=views or None,
            top_k=top_k or None,
            epochs=options.epochs,
            save_every=options.epochs,
            train_images=options.images,
            seed=seed,
            out=options.out / f"{method}-{views}{f'-top{top_k}' if top_k else ''}-seed{seed}",
            **common,
        )
        result = student.result()
        assert result is not None
        assert result.test is not None
        row = {"teacher": options.teacher, "student": options.student, "method": method, "seed": seed}
        row |= {"views": views, "top_k": top_k, "epochs": options.epochs, "images": options.images}
        row |= {"val": result.val.accuracy, "test": result.test.accuracy}
        row |= {"seconds": result.seconds, "wall_seconds": result.wall_seconds_since_start_or_resume}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
