"""The demo: all steps on scikit-learn's digits, in under three minutes on two CPU cores.

40% of the training labels are wrong on purpose, so that the teacher has memorized wrong labels at its end. The demo
trains a teacher, puts its checkpoints on the information plane, and chooses one by Algorithm 1. Then it trains students
without a teacher, from single checkpoints, and from a Snapshot Ensemble of two, with three seeds each.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..commands import distill, score, select, train
from ..config import TEACHER_FORWARD, DataConfig, Device, OnProgress
from ..errors import UserError

log = logging.getLogger("checkpointkd")

TEACHER, STUDENT = "wrn_16_2", "wrn_10_1"
WHOLE_DEMO = "the whole demo"  # the label of the overall progress
# no teacher, the usual teacher, the paper's midpoint, Algorithm 1's choice, the Snapshot Ensemble of Table 2
VARIANTS = [[], ["last"], ["midpoint"], ["best"], ["midpoint", "last"]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The size of the demo.

    The teacher trains long enough to memorize its images, with their wrong labels. `docs/regimes.md` has the results of
    five such teachers.
    """

    train_images: int = 400
    wrong_share: float = 0.4
    teacher_epochs: int = 60
    save_every: int = 6
    student_epochs: int = 60
    decoder_steps: int = 200
    decoder_seeds: int = 2
    seeds: int = 3

    # costs in rough milliseconds on two CPU cores, for the overall progress
    @property
    def teacher_cost(self) -> float:
        return 0.6 * self.train_images * self.teacher_epochs

    @property
    def score_cost(self) -> float:
        return 2.5 * self.decoder_steps * self.decoder_seeds * self.teacher_epochs / self.save_every

    @property
    def student_cost(self) -> float:
        return 0.25 * self.train_images * self.student_epochs + 150


def wrong_labels(file: Path, *, share: float, seed: int) -> Path:
    """Write labels of the digits' training images to a `.npy` file, a share of them replaced by another class.

    Raises:
        UserError: If the file exists with another content.
    """
    import numpy as np

    from ..data import load_data
    from ..storage import atomic_write_bytes

    right_N = load_data(DataConfig(data="digits", select_on="test")).train.labels_N.numpy()
    draw = np.random.default_rng(seed)
    is_wrong_N = draw.random(len(right_N)) < share
    label_N = np.where(is_wrong_N, (right_N + draw.integers(1, 10, len(right_N))) % 10, right_N).astype(np.int64)
    content = io.BytesIO()
    np.save(content, label_N)
    if not file.exists():
        atomic_write_bytes(file, content.getvalue())
    elif file.read_bytes() != content.getvalue():
        raise UserError(f"{file} already holds other labels. Choose another --out, or remove that file.")
    return file


def demo(
    *,
    out: Path | str = "runs/demo",
    device: Device = "auto",
    on_progress: OnProgress | None = None,
    _sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Train a teacher on real digits, score its checkpoints, choose one, distill students, and write a report.

    40% of the training labels are wrong on purpose, so that the last checkpoint is a bad teacher. With right labels, it
    is usually as good as an earlier one.

    Repeat the command to continue after an interruption.

    Example:

        checkpointkd demo --out runs/demo

    Args:
        out: The folder for the runs and the report.
        device: Where to compute: cpu, cuda, mps, or auto for the best device that PyTorch can use.
        on_progress: From Python: a function that receives the name of the task, the number of finished steps and the
            total.

    Raises:
        UserError: If `out` holds other runs or other labels.
    """
    from ..checkpoints import find_checkpoint, open_trajectory
    from ..reports.build import conclusions, student_rows, write_report
    from ..reports.collect import collect

    sizes, out = _sizes or Sizes(), Path(out)
    teacher = out / "teacher"
    progress = _Progress(sizes, on_progress)
    out.mkdir(parents=True, exist_ok=True)
    labels = wrong_labels(out / "labels.npy", share=sizes.wrong_share, seed=0)
    log.info(
        "1. Train a teacher, %s, on %d images of digits, of which %.0f%% have wrong labels; save a checkpoint every %d "
        "epochs",
        TEACHER,
        sizes.train_images,
        100 * sizes.wrong_share,
        sizes.save_every,
    )
    train(
        TEACHER,
        data="digits",
        out=teacher,
        epochs=sizes.teacher_epochs,
        save_every=sizes.save_every,
        train_images=sizes.train_images,
        train_labels=labels,
        precision="fp32",
        device=device,
        on_progress=progress.part(sizes.teacher_cost),
    )
    log.info("2. Put each checkpoint on the information plane")
    score(
        teacher,
        decoder_steps=sizes.decoder_steps,
        decoder_seeds=sizes.decoder_seeds,
        device=device,
        on_progress=progress.part(sizes.score_cost),
    )
    chosen = select(teacher)
    log.info(
        "3. Algorithm 1 chooses epoch %d: %s. The runner-up is epoch %s", chosen.epoch, chosen.reason, chosen.runner_up
    )
    log.info("4. Train students, %s, with %d seeds each", STUDENT, sizes.seeds)
    trajectory = open_trajectory(teacher)
    for epochs in _distinct([[find_checkpoint(trajectory, which).epoch for which in names] for names in VARIANTS]):
        for seed in range(sizes.seeds):
            _train_student(out, teacher, epochs, seed, sizes, device, progress.part(sizes.student_cost))

    page = write_report(out, out=out / "report.html")
    collected = collect(out)
    students = student_rows(collected)
    return {
        "headline": _headline(chosen.epoch, sizes, students),
        "chosen_epoch": chosen.epoch,
        "students": students,
        "notes": [*chosen.warnings, *conclusions(collected)],
        "report": str(page),
    }


def _headline(chosen_epoch: int, sizes: Sizes, students: list[dict[str, Any]]) -> str:
    """Say how the students of Algorithm 1's choice, of the last checkpoint and of no teacher differ."""
    mean = {
        name: next(row["mean"] for row in students if match(row))
        for name, match in {
            "chosen": lambda row: row["chosen"],
            "last": lambda row: "last" in row["label"] and " and " not in row["label"],
            "none": lambda row: row["label"] == "no teacher",
        }.items()
    }
    return (
        f"Algorithm 1 chose epoch {chosen_epoch} of {sizes.teacher_epochs}. Test accuracy of its students: "
        f"{mean['chosen']:.1f}%; of the last checkpoint's: {mean['last']:.1f}%; without a teacher: {mean['none']:.1f}%."
        f" In this demo {sizes.wrong_share:.0%} of the training labels are wrong on purpose. With right labels, the "
        "last checkpoint is usually as good."
    )


def _train_student(
    out: Path, teacher: Path, epochs: list[int], seed: int, sizes: Sizes, device: Device, on_progress: OnProgress
) -> None:
    """Train a student from the teacher's checkpoints of these epochs, or without a teacher."""
    from .scheduler import warnings_only

    name = "-".join(["epoch", *map(str, epochs)]) if epochs else "no-teacher"
    folder = out / "students" / f"{name}-seed{seed}"
    common: dict[str, Any] = {
        "out": folder,
        "epochs": sizes.student_epochs,
        "seed": seed,
        "save_every": sizes.student_epochs,
        "precision": "fp32",  # a measured precision could give other numbers next time
        "device": device,
        "on_progress": on_progress,
    }
    with warnings_only(seed > 0 or (folder / "result.json").exists()):  # the teachers' accuracies are logged once
        if epochs:
            references = [f"{teacher}@{epoch}" for epoch in epochs]
            distill(STUDENT, teachers=references, allow_weak_teacher=True, **common)
        else:
            labels = out / "labels.npy"
            train(STUDENT, data="digits", train_images=sizes.train_images, train_labels=labels, **common)


def _distinct(variants: list[list[int]]) -> list[list[int]]:
    """Return each set of teachers once: the chosen checkpoint may be the midpoint."""
    return [epochs for position, epochs in enumerate(variants) if epochs not in variants[:position]]


class _Progress:
    """The progress of all parts as one, weighted by their cost."""

    def __init__(self, sizes: Sizes, on_progress: OnProgress | None) -> None:
        self._on_progress, self._done = on_progress, 0.0
        self._total = sizes.teacher_cost + sizes.score_cost + len(VARIANTS) * sizes.seeds * sizes.student_cost

    def part(self, cost: float) -> OnProgress:
        """Return the callback for the next part, which starts when all parts before it are done."""
        before, self._done = self._done, self._done + cost

        def on_progress(label: str, done: int, total: int) -> None:
            if self._on_progress is not None:
                if label != TEACHER_FORWARD:  # a part of a part
                    self._on_progress(WHOLE_DEMO, round(before + cost * done / total), round(self._total))
                self._on_progress(label, done, total)

        return on_progress
