"""One distillation, from checkpoints' addresses to a finished student: what `distill` and `search` have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import CheckpointRef, Trajectory
from ..config import CheckpointDtype, DistillConfig, KDConfig, OnProgress, Precision, PrecisionChoice, Recipe
from ..data import Data, EpochLoader
from ..errors import UserError, unknown_name
from ..exporting import write_student
from ..losses import METHODS, distillation, takes_features
from ..models import build_network
from ..teachers.ensemble import Teacher, refuse_at_chance, training_cost
from ..teachers.logit_cache import with_cached_logits
from .loop import Row
from .run import run_training

log = logging.getLogger("checkpointkd")


@dataclass(frozen=True, eq=False)
class PreparedTeachers:
    """Teachers that were looked at, the data that they teach on, and how they are asked."""

    teacher: Teacher
    measured: dict[str, Any]
    data: Data
    distill_config: DistillConfig
    device: torch.device


def prepare_teachers(
    addresses: Sequence[CheckpointRef],
    data: Data,
    *,
    distill_config: DistillConfig,
    average: Any,
    allow_weak_teacher: bool,
    device: torch.device,
    verbose: bool = True,
) -> PreparedTeachers:
    """Bring the teachers to life, measure them on the selection images and, with `announce`, say how good they are.

    Raises UserError for teachers that can't teach together or know other classes than the data, and, unless it is
    wanted, for one that knows no more than guessing does.
    """
    teacher = Teacher(addresses, device=device, batch_norm=distill_config.batch_norm)
    if teacher.classes != list(data.classes):
        raise UserError(
            f"the teacher {addresses[0].text} knows {len(teacher.classes)} classes, the data {data.name!r} has "
            f"{len(data.classes)}, or in another order: give the data that the teacher was trained on"
        )
    if distill_config.teacher_schedule != "joint":
        if not len(addresses) > 1:
            raise UserError(
                f"one teacher makes no route: --teacher-schedule {distill_config.teacher_schedule} is for several"
            )
        if average != KDConfig.average:
            raise UserError("--average is for teachers that teach together, not one after the other")
    measured = teacher.measure(data.val, average=average, weights=distill_config.teacher_weights)
    for member in measured["members"] if verbose else []:
        log.info(
            "teacher %s (epoch %d): accuracy %.1f%% on the selection images",
            member["address"],
            member["epoch"],
            100 * member["accuracy"],
        )
    if len(addresses) > 1 and distill_config.teacher_schedule == "joint" and verbose:
        log.info("the ensemble of them: accuracy %.1f%%", 100 * measured["ensemble"]["accuracy"])
    if distill_config.teacher_schedule != "joint":
        log.info("they teach one after the other, each for %.3g %% of the training", 100 / len(addresses))
    if distill_config.batch_norm == "batch":
        log.info("as teachers they normalize with each batch's statistics; their accuracies are of what they learned")
    if not allow_weak_teacher:
        refuse_at_chance(measured, data.val.labels_N)
    return PreparedTeachers(teacher, measured, data, distill_config, device)


def run_distillation(
    student: str,
    lesson: PreparedTeachers,
    *,
    out: Path,
    method: str,
    settings: KDConfig,
    recipe: Recipe,
    save_every: int | None,
    seed: int,
    precision: PrecisionChoice,
    compile: bool,
    logit_cache_gb: float,
    best_of_last_ten: bool = False,
    checkpoint_dtype: CheckpointDtype = "float32",
    evaluate_test: bool = True,
    verbose: bool = True,
    on_row: Callable[[Row], None] = lambda row: None,
    on_progress: OnProgress | None = None,
) -> Trajectory:
    """Carry out one distillation in its folder; raises UserError as `runs.carry_out` does, and for a method's features
    that aren't there or can't be matched."""
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if not 0 <= logit_cache_gb < 1e9:
        raise UserError(f"the table limit must be from 0 to 10⁹ gigabytes, not {logit_cache_gb}")
    if compile and takes_features(method):
        raise UserError(f"--compile leaves no features to look at, which {method} learns from")
    teacher, data, distill_config = lesson.teacher, lesson.data, lesson.distill_config
    members = [member.text for member in teacher.members]
    like_student = build_network(
        student,
        num_classes=len(data.classes),
        in_channels=data.train.shape[0],
        mean=[0.5] * data.train.shape[0],
        std=[0.5] * data.train.shape[0],
    )
    objective = distillation(
        method,
        teacher,
        settings,
        distill_config,
        student=like_student,
        teachers=list(zip(members, teacher.networks, strict=True)),
        images=data.train,
        seed=seed,
    )

    def wrap_batches(batches: EpochLoader, chosen: Precision) -> EpochLoader:
        if logit_cache_gb == 0:
            return batches
        if takes_features(method):
            if verbose:
                log.info("the teachers are asked at every step, since %s looks inside them", method)
            return batches
        return with_cached_logits(
            batches,
            data.train,
            teacher,
            precision=chosen,
            limit=int(logit_cache_gb * 1e9),
            tell=on_progress or (lambda task, done, total: None),
            active_teachers=lambda epoch: distill_config.active_teachers(epoch, recipe.epochs, len(members)),
        )

    run = run_training(
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
        on_progress=on_progress,
        objective=objective,
        wrap_batches=wrap_batches,
        best_of_last_ten=best_of_last_ten,
        checkpoint_dtype=checkpoint_dtype,
        evaluate_test=evaluate_test,
        verbose=verbose,
        on_row=on_row,
        more={
            "method": method,
            "kd": asdict(settings),
            "distill_config": asdict(distill_config),
            "teachers": teacher.manifest(),
        },
        notes={
            "teachers_measured": lesson.measured,
            "teacher_addresses": members,
            "teachers_cost": training_cost(teacher.members),
        },
    )
    if evaluate_test:
        write_student(run)
    return run
