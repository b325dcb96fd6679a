"""The demo: the whole story on scikit-learn's digits, in under three minutes on two cores.

    checkpointkd demo --out runs/demo

A teacher with its trajectory, its checkpoints on the information plane, Algorithm 1's choice, and students taught by
nobody, by single checkpoints and by a Snapshot Ensemble of two, five seeds each.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import commands
from ..config import TEACHER_FORWARD, Device, OnProgress
from .quiet import quiet

log = logging.getLogger("checkpointkd")

TEACHER, STUDENT = "wrn_16_2", "wrn_10_1"
# No teacher; the columns of the paper's Table 3; the Snapshot Ensemble of its Table 2.
ARMS = [[], ["0.3"], ["midpoint"], ["0.7"], ["last"], ["best"], ["midpoint", "last"]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the demo is. So few training images leave a student something to learn from a teacher; the teacher
    trains long enough that its half-way checkpoint is ripe, as the paper's are."""

    train_images: int = 200
    teacher_epochs: int = 100
    save_every: int = 10
    student_epochs: int = 30
    decoder_steps: int = 400
    decoder_seeds: int = 3
    seeds: int = 5

    # Costs in rough milliseconds on two cores, for the time left that the overall bar shows.
    @property
    def teacher_cost(self) -> float:
        return 0.6 * self.train_images * self.teacher_epochs

    @property
    def score_cost(self) -> float:
        return 2.5 * self.decoder_steps * self.decoder_seeds * self.teacher_epochs / self.save_every

    @property
    def student_cost(self) -> float:
        return 0.25 * self.train_images * self.student_epochs + 150


def demo(
    *,
    out: Path | str = "runs/demo",
    device: Device = "auto",
    on_progress: OnProgress | None = None,
    _sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Show it all on real digits: a teacher, its checkpoints on the information plane, the choice, students, a report.

    The same command again reuses what is finished and continues what is not.

    Example:

        checkpointkd demo --out runs/demo

    Parameters
    ----------
    out
        The folder for the runs and the report.
    device
        Where to compute.
    """
    from ..checkpoints import find_checkpoint, open_trajectory
    from ..reports import collect, conclusions, student_rows, write_report

    sizes, out = _sizes or Sizes(), Path(out)
    teacher = out / "teacher"
    overall = _Overall(sizes, on_progress)

    log.info(
        "1. A teacher, %s, trained on %d digits; a checkpoint every %d epochs",
        TEACHER,
        sizes.train_images,
        sizes.save_every,
    )
    commands.train(
        TEACHER,
        data="digits",
        out=teacher,
        epochs=sizes.teacher_epochs,
        save_every=sizes.save_every,
        train_images=sizes.train_images,
        precision="fp32",
        device=device,
        on_progress=overall.part(sizes.teacher_cost),
    )
    log.info("2. Each checkpoint on the information plane")
    commands.score(
        teacher,
        decoder_steps=sizes.decoder_steps,
        decoder_seeds=sizes.decoder_seeds,
        device=device,
        on_progress=overall.part(sizes.score_cost),
    )
    chosen = commands.select(teacher)
    log.info(
        "3. Algorithm 1 chooses epoch %d: %s; the runner-up is epoch %s", chosen.epoch, chosen.reason, chosen.runner_up
    )

    log.info("4. Students, %s, %d seeds each", STUDENT, sizes.seeds)
    trajectory = open_trajectory(teacher)
    for teachers in _distinct([[find_checkpoint(trajectory, which).epoch for which in arm] for arm in ARMS]):
        name = "-".join(["epoch", *map(str, teachers)]) if teachers else "no-teacher"
        for seed in range(sizes.seeds):
            common: dict[str, Any] = {
                "out": out / "students" / f"{name}-seed{seed}",
                "epochs": sizes.student_epochs,
                "seed": seed,
                "save_every": sizes.student_epochs,
                "precision": "fp32",  # no choice by measuring: the demo gives the same numbers every time
                "device": device,
                "on_progress": overall.part(sizes.student_cost),
            }
            done = (common["out"] / "result.json").exists()
            with quiet(seed > 0 or done):  # the teachers' accuracies are worth saying once
                if teachers:
                    addresses = [f"{teacher}@{epoch}" for epoch in teachers]
                    commands.distill(STUDENT, teachers=addresses, allow_weak_teacher=True, **common)
                else:
                    commands.train(STUDENT, data="digits", train_images=sizes.train_images, **common)

    page = write_report(out, out=out / "report.html")
    collected = collect(out)
    return {
        "headline": f"Algorithm 1 chose epoch {chosen.epoch} of {sizes.teacher_epochs}",
        "chosen_epoch": chosen.epoch,
        "students": student_rows(collected),
        "notes": [*chosen.warnings, *conclusions(collected)],
        "report": str(page),
    }


def _distinct(arms: list[list[int]]) -> list[list[int]]:
    """Each set of teachers once: the chosen checkpoint may be the half-way one."""
    return [arm for number, arm in enumerate(arms) if arm not in arms[:number]]


class _Overall:
    """One bar over all parts, weighted by their cost."""

    def __init__(self, sizes: Sizes, on_progress: OnProgress | None) -> None:
        self._progress, self._done = on_progress, 0.0
        self._total = sizes.teacher_cost + sizes.score_cost + len(ARMS) * sizes.seeds * sizes.student_cost

    def part(self, cost: float) -> OnProgress:
        """The progress of the next part, which begins when all parts before it are done."""
        before, self._done = self._done, self._done + cost

        def tell(task: str, done: int, total: int) -> None:
            if self._progress is not None:
                if task != TEACHER_FORWARD:  # a part of a part
                    self._progress("the whole demo", round(before + cost * done / total), round(self._total))
                self._progress(task, done, total)

        return tell
