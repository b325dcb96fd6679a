"""`checkpointkd distill`: train a student with one or several checkpoints as teachers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..distill_config import KDConfig
from ..errors import UserError
from ..records.base import selection_set
from ..records.runs import DistillRecord
from ..user_code import name_of
from .checks import warn_if_any_saw_validation_images
from .log_options import LogOptions
from .options import CommonOptions, DataOptions, Model, TeacherOptions, TrainingOptions
from .signature import command

if TYPE_CHECKING:
    from ..checkpoints import Trajectory

log = logging.getLogger("checkpointkd")

FAR_BELOW = 0.6  # share of the teachers' accuracy; `distill` reports a student below it


@dataclass(frozen=True, kw_only=True)
class DistillOptions(TeacherOptions, DataOptions, TrainingOptions, LogOptions, CommonOptions):
    """Options of `distill`."""

    alpha: float | None = None
    """Weight of the cross-entropy with the labels, in [0, 1]. With kd and feature methods, the distillation loss has
    weight 1 − alpha (Eq. 1). Other methods from logits replace this loss with their own term. Default: 0.5 for kd,
    0.1 for lskd, mlkd and mlkd-ls, 1 for all other methods."""

    tau: float | None = None
    """Softmax temperature. Default: the method's own, 5 for kd."""

    method_weight: float | None = None
    """Weight of the method's own term. Default: as in its paper or the field's benchmark."""

    def kd_config(self) -> KDConfig:
        """Return the loss settings, with the method's own α and τ where none are given.

        Raises:
            UserError: For an unknown method, for values out of range, and for a τ that would have no effect.
        """
        from ..losses import defaults, takes_features

        alpha, tau = defaults(self.method)
        alpha = alpha if self.alpha is None else self.alpha
        if self.tau is not None and takes_features(self.method) and alpha == 1:
            raise UserError(f"--tau has no effect on {self.method} at alpha 1. Add --alpha below 1, or remove --tau")
        return KDConfig(
            alpha=alpha,
            tau=tau if self.tau is None else self.tau,
            tau_squared=self.tau_squared,
            average=self.average,
        )


@command(DistillOptions)
def distill(student: Model, /, *, options: DistillOptions) -> Trajectory:
    """Train a student with one or several checkpoints as teachers. Repeat the command to continue an interrupted run.

    The teachers' validation accuracies are logged before the training starts.

    Example:

        checkpointkd distill wrn_10_1 --teachers runs/teacher@midpoint runs/teacher@last --out runs/student

    Args:
        student: The student's network, as for `train`.

    Raises:
        UserError: If a teacher is not better than chance, if its classes differ from the data's, and as `train` does.
    """
    from ..checkpoints import resolve_ensemble
    from ..data import load_data
    from ..trackers import tracked
    from ..training.distillation import DistillSpec, run_distillation

    student = name_of(student)
    kd, tracking = options.kd_config(), options.tracking()
    if not options.teachers:
        raise UserError("distill needs --teachers. To train without a teacher, use `checkpointkd train`")
    refs = resolve_ensemble(options.teacher_list, options.ensemble)
    _warn_if_selected_otherwise(options.teacher_list, student, options.method, kd)
    config = options.distill_config(len(refs), method_weight=options.method_weight)
    data_config = options.config_like(refs[0].checkpoint.run.data, options.train_images)
    data = load_data(data_config, on_progress=options.on_progress)
    warn_if_any_saw_validation_images(refs, data)
    spec = DistillSpec(
        refs=tuple(refs),
        method=options.method,
        kd=kd,
        config=config,
        logit_cache_gb=options.logit_cache_gb,
        allow_weak_teacher=options.allow_weak_teacher,
    )
    run = options.run_spec(student, data, options.torch_device)
    with tracked(run.out, tracking) as on_row:
        trajectory = run_distillation(run, spec, data, on_row=on_row, on_progress=options.on_progress)
    _point_out_if_far_below_the_teacher(trajectory, max(ref.checkpoint.run.data.train_size for ref in refs))
    return trajectory


def _point_out_if_far_below_the_teacher(student: Trajectory, teacher_images: int) -> None:
    """Log the likely reasons if a student's accuracy is far below its teachers'."""
    result, run = student.result(), student.run
    assert isinstance(run, DistillRecord)
    teacher = run.teachers_measured.ensemble.accuracy
    if result is None or result.val.accuracy > FAR_BELOW * teacher:
        return
    rate = f"the learning rate ({run.recipe.learning_rate:g}; --warmup 1 --clip-norm 2 also helps)"
    reasons = [f"too few epochs ({run.recipe.epochs})", rate]
    if run.data.train_size < teacher_images:
        reasons.insert(0, f"fewer training images ({run.data.train_size:,}) than the teacher's ({teacher_images:,})")
    log.info(
        "The student's accuracy on %s, %.1f%%, is far below its teacher's, %.1f%%. Likely reasons: %s, or a network "
        "that is too small. `select --student` shows whether another method or no teacher is better.",
        selection_set(run.data.select_on),
        100 * result.val.accuracy,
        100 * teacher,
        ", ".join(reasons),
    )


def _warn_if_selected_otherwise(teachers: Sequence[str], student: str, method: str, kd: KDConfig) -> None:
    """Warn if a pilot search chose RUN@best for another student, method, α or τ."""
    from ..checkpoints import open_trajectory

    for teacher in teachers:
        run, _, name = teacher.rpartition("@")
        selection = open_trajectory(run).selection() if name == "best" else None
        if selection is None or selection.rule != "pilot":
            continue
        selected, used = [selection.student], [student]
        if selection.method is not None:
            selected.append(f"method {selection.method}")
            used.append(f"method {method}")
        for name in ("alpha", "tau"):
            if method == selection.method and getattr(selection, name) is not None:
                selected.append(f"{name} {float(getattr(selection, name))!r}")
                used.append(f"{name} {float(getattr(kd, name))!r}")
        if selected == used:
            continue
        if selection.student == student:
            advice = f"To use them, add {' '.join(f'--{setting}' for setting in selected[1:])}"
        else:
            advice = f"To choose for this student, run `checkpointkd select {run} --student {student}`"
        log.warning(
            "%s was selected for %s, but is used for %s. %s.",
            teacher,
            ", ".join(map(str, selected)),
            ", ".join(used),
            advice,
        )
