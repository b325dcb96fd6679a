"""One distillation, from checkpoints' addresses to a finished student: what `distill` and `search` have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .data import Data, Epochs
from .errors import require, unknown
from .loop import Row
from .losses import METHODS, distillation, takes_features
from .models import build_network
from .portable import write_student
from .runs import carry_out
from .settings import KDSettings, Precision, PrecisionChoice, Progress, Recipe, TeachingSettings
from .tables import taught
from .teacher import Teacher, refuse_at_chance, training_cost
from .trajectory import Address, Trajectory

log = logging.getLogger("checkpointkd")


@dataclass(frozen=True, eq=False)
class Lesson:
    """Teachers that were looked at, the data that they teach on, and how they are asked."""

    teacher: Teacher
    measured: dict[str, Any]
    data: Data
    teaching: TeachingSettings
    device: torch.device


def prepare(
    addresses: Sequence[Address],
    data: Data,
    *,
    teaching: TeachingSettings,
    average: Any,
    weak_teacher: bool,
    device: torch.device,
    announce: bool = True,
) -> Lesson:
    """Bring the teachers to life, measure them on the selection images and, with `announce`, say how good they are.

    Raises UserError for teachers that can't teach together or know other classes than the data, and, unless it is
    wanted, for one that knows no more than guessing does.
    """
    teacher = Teacher(addresses, device=device, batch_norm=teaching.batch_norm)
    require(
        teacher.classes == list(data.classes),
        f"the teacher {addresses[0].text} knows {len(teacher.classes)} classes, the data {data.name!r} has "
        f"{len(data.classes)}, or in another order: give the data that the teacher was trained on",
    )
    if teaching.route != "together":
        require(len(addresses) > 1, f"one teacher makes no route: --route {teaching.route} is for several")
        require(average == KDSettings.average, "--average is for teachers that teach together, not one after the other")
    measured = teacher.measure(data.selection, average=average, weights=teaching.weights)
    for member in measured["members"] if announce else []:
        log.info(
            "teacher %s (epoch %d): accuracy %.1f %% on the selection images",
            member["address"], member["epoch"], 100 * member["accuracy"],
        )  # fmt: skip
    if len(addresses) > 1 and teaching.route == "together" and announce:
        log.info("the ensemble of them: accuracy %.1f %%", 100 * measured["ensemble"]["accuracy"])
    if teaching.route != "together":
        log.info("they teach one after the other, each for %.3g %% of the training", 100 / len(addresses))
    if teaching.batch_norm == "batch":
        log.info("as teachers they normalise with each batch's statistics; their accuracies are of what they learned")
    if not weak_teacher:
        refuse_at_chance(measured, data.selection.labels_N)
    return Lesson(teacher, measured, data, teaching, device)


def distil(
    student: str,
    lesson: Lesson,
    *,
    out: Path,
    method: str,
    settings: KDSettings,
    recipe: Recipe,
    save_every: int | None,
    seed: int,
    precision: PrecisionChoice,
    compile: bool,
    table_limit: float,
    best_of_last_ten: bool = False,
    half_checkpoints: bool = False,
    touch_test: bool = True,
    announce: bool = True,
    on_row: Callable[[Row], None] = lambda row: None,
    progress: Progress | None = None,
) -> Trajectory:
    """Carry out one distillation in its folder; raises UserError as `runs.carry_out` does, and for a method's features
    that aren't there or can't be matched."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    require(0 <= table_limit < 1e9, f"the table limit must be from 0 to 10⁹ gigabytes, not {table_limit}")
    require(
        not (compile and takes_features(method)), f"--compile leaves no features to look at, which {method} learns from"
    )
    teacher, data, teaching = lesson.teacher, lesson.data, lesson.teaching
    members = [member.text for member in teacher.members]
    like_student = build_network(
        student, num_classes=len(data.classes), in_channels=data.train.shape[0], mean=[0.5] * data.train.shape[0],
        std=[0.5] * data.train.shape[0],
    )  # fmt: skip
    objective = distillation(
        method,
        teacher,
        settings,
        teaching,
        student=like_student,
        teachers=list(zip(members, teacher.networks, strict=True)),
        images=data.train,
        seed=seed,
    )

    def teach(batches: Epochs, chosen: Precision) -> Epochs:
        if table_limit == 0:
            return batches
        if takes_features(method):
            if announce:
                log.info("the teachers are asked at every step, since %s looks inside them", method)
            return batches
        return taught(
            batches,
            data.train,
            teacher,
            precision=chosen,
            limit=int(table_limit * 1e9),
            tell=progress or (lambda task, done, total: None),
            asked_in=lambda epoch: teaching.asked_in(epoch, recipe.epochs, len(members)),
        )

    run = carry_out(
        student,
        kind="distill",
        out=out,
        data=data,
        recipe=recipe,
        save_every=save_every,
        seed=seed,
        precision=precision,
        compile=compile,
        device=lesson.device,
        progress=progress,
        objective=objective,
        teach=teach,
        best_of_last_ten=best_of_last_ten,
        half_checkpoints=half_checkpoints,
        touch_test=touch_test,
        announce=announce,
        on_row=on_row,
        more={
            "method": method,
            "kd": asdict(settings),
            "teaching": asdict(teaching),
            "teachers": teacher.manifest(),
        },
        notes={
            "teachers_measured": lesson.measured,
            "teacher_addresses": members,
            "teachers_cost": training_cost(teacher.members),
        },
    )
    if touch_test:
        write_student(run)
    return run
