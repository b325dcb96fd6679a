"""One distillation, from checkpoint references to a complete student."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..checkpoints import CheckpointRef, Trajectory
from ..config import LOGIT_CACHE_GB, OnProgress, Precision, SelectOn
from ..data import Data, EpochLoader
from ..distill_config import DistillConfig, KDConfig
from ..errors import UserError
from ..exporting import write_student
from ..losses import Teaching, check_mixing, distillation, takes_features
from ..losses.top_logits import check_top_k
from ..models import Network
from ..ranks import is_secondary, world_size
from ..records.runs import DistillRecord, TeachersMeasured
from ..teachers.cached_batches import CachedTeacherBatches, with_cached_logits
from ..teachers.cost import training_cost
from ..teachers.ensemble import Teacher, check_compatible, fitted_weights, logit_scales, refuse_at_chance
from ..teachers.loaded_batches import LoadedTeacherBatches
from ..teachers.logit_cache import LogitFile
from .loop import Row
from .run import Method, RunSpec, run_training

log = logging.getLogger("checkpointkd")


@dataclass(frozen=True, eq=False)
class PreparedTeachers:
    """Loaded teachers, with their measurement, factors and weights from the validation set.

    `scales` are factors of the teachers' logits; None means 1. `weights` are fitted weights, (T,) or (T, K), or None.
    """

    teacher: Teacher
    measured: TeachersMeasured
    scales: tuple[float, ...] | None
    weights: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class DistillSpec:
    """Who teaches, how, and with which settings.

    `refs` are the checkpoints that teach together. With `logit_cache_gb` 0 the teachers run at every step, which
    gives the same student more slowly. `allow_weak_teacher` accepts a teacher no better than chance.
    """

    refs: tuple[CheckpointRef, ...]
    method: str = "kd"
    kd: KDConfig = field(default_factory=KDConfig)
    config: DistillConfig = field(default_factory=DistillConfig)
    logit_cache_gb: float = LOGIT_CACHE_GB
    allow_weak_teacher: bool = False

    def __post_init__(self) -> None:
        if takes_features(self.method) and self.config.top_k is not None:  # raises UserError for an unknown method
            raise UserError(f"--top-k does not apply to {self.method}, which uses the teachers' features")
        if not 0 <= self.logit_cache_gb < 1e9:
            raise UserError(f"--logit-cache-gb must be from 0 to 10⁹, not {self.logit_cache_gb}")
        if isinstance(self.config.teacher_weights, str) and len(self.refs) == 1:
            raise UserError(
                f"--teacher-weights {self.config.teacher_weights} needs several teachers, but only one is given. Add "
                "--teachers or --ensemble."
            )
        if self.config.teacher_schedule != "joint":
            if len(self.refs) == 1:
                raise UserError(
                    f"--teacher-schedule {self.config.teacher_schedule} needs several teachers, but only one is given. "
                    "Add --teachers or --ensemble."
                )
            if self.kd.average != KDConfig.average:
                raise UserError(
                    f"--average does not apply to --teacher-schedule {self.config.teacher_schedule}. Leave "
                    f"--average out."
                )

    @property
    def cache_limit(self) -> int:
        """What the logit cache may take up, in bytes."""
        return int(self.logit_cache_gb * 1e9)


def prepare_teachers(spec: DistillSpec, data: Data, *, device: torch.device, verbose: bool = True) -> PreparedTeachers:
    """Load the teachers and measure them on the validation set.

    Raises:
        UserError: If the teachers cannot teach together, or if their classes differ from the data's. Also if a teacher
            is not better than chance, unless `allow_weak_teacher` is true.
    """
    teacher = Teacher(spec.refs, device=device, batch_norm=spec.config.teacher_batch_norm, cache_limit=spec.cache_limit)
    check_compatible(teacher, data)
    check_top_k(spec.config.top_k, len(data.classes))
    given = spec.config.teacher_weights
    weights = fitted_weights(teacher, data.val, given)
    # Weights by class depend on the label, so they give no prediction that could be measured.
    used = None if weights is None or weights.ndim == 2 else weights.tolist()
    measured = teacher.measure(data.val, average=spec.kd.average, weights=used if isinstance(given, str) else given)
    if verbose:
        _log_teachers(spec, measured, data.record.select_on)
    if not spec.allow_weak_teacher:
        refuse_at_chance(measured, data.val.labels_N)
    scales = logit_scales(teacher, data.val, spec.config.teacher_tau)
    return PreparedTeachers(teacher, measured, scales, weights)


def run_distillation(
    run: RunSpec,
    spec: DistillSpec,
    data: Data,
    *,
    prepared: PreparedTeachers | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    on_progress: OnProgress | None = None,
) -> Trajectory:
    """Carry out one distillation in its directory. Teachers are loaded only if the run is not complete.

    Raises:
        UserError: As `run_training` and `prepare_teachers` do, and if a method's features are absent or do not match.
    """
    if run.compile and takes_features(spec.method):
        raise UserError(f"--compile hides the features that {spec.method} learns from. Leave --compile out.")
    if spec.config.teacher_batch_norm == "batch" and world_size() > 1:
        raise UserError(
            f"--teacher-batch-norm batch does not apply to {world_size()} processes: each would normalize its own part "
            "of a batch. Leave it out, or use one process."
        )
    if run.recipe.mixes:
        check_mixing(spec.method)
        if spec.config.teacher_weights == "auto-per-class":
            raise UserError(
                "--teacher-weights auto-per-class needs one class for each image. Leave out --mixup and --cutmix."
            )
    teachers = _LazyTeachers(run, spec, data, prepared)
    files: list[LogitFile] = []

    def wrap_batches(batches: EpochLoader, precision: Precision) -> EpochLoader:
        if run.recipe.mixes:
            if run.verbose:
                without = "" if run.recipe.views is None else ", so --views saves no teacher passes"
                log.info("Teachers run at every step: mixup and CutMix make new images%s", without)
            return batches
        if spec.logit_cache_gb == 0:
            return batches
        if takes_features(spec.method):
            if run.verbose:
                log.info("%s uses the teachers' features, so the teachers run at every step", spec.method)
            return batches
        cached = with_cached_logits(
            batches,
            data.train,
            teachers.prepared.teacher,
            precision=precision,
            limit=spec.cache_limit,
            top_k=spec.config.top_k,
            on_progress=on_progress or (lambda task, done, total: None),
            active_teachers=lambda epoch: spec.config.active_teachers(
                epoch, run.recipe.epochs, len(spec.refs), seed=run.seed
            ),
        )
        if isinstance(cached, CachedTeacherBatches | LoadedTeacherBatches):
            files.extend(cached.files)
        return cached

    method = Method(
        record=DistillRecord,
        identity={
            "method": spec.method,
            "kd": spec.kd,
            "distill_config": spec.config,
            "taught_by": tuple(ref.checkpoint.record for ref in spec.refs),
        },
        metadata=lambda: {
            "teacher_refs": tuple(ref.text for ref in spec.refs),
            "teachers_measured": teachers.prepared.measured,
            "teachers_cost": training_cost(spec.refs),
            "teacher_scales": teachers.prepared.scales,
            "fitted_weights": _plain_weights(teachers.prepared.weights),
        },
        objective=teachers.objective,
        wrap_batches=wrap_batches,
    )
    trajectory = run_training(run, data, method, on_row=on_row, on_progress=on_progress)
    if files and run.verbose:
        computed, found = sum(file.computed for file in files), sum(file.found for file in files)
        log.info("Logits of teachers: %s computed, %s read from the logit cache", f"{computed:,}", f"{found:,}")
    if run.evaluate_test and not is_secondary():
        write_student(trajectory)
    return trajectory


class _LazyTeachers:
    """Teachers that are prepared on first use."""

    def __init__(self, run: RunSpec, spec: DistillSpec, data: Data, prepared: PreparedTeachers | None) -> None:
        self._run, self._spec, self._data, self._prepared = run, spec, data, prepared

    @property
    def prepared(self) -> PreparedTeachers:
        if self._prepared is None:
            self._prepared = prepare_teachers(
                self._spec, self._data, device=self._run.device, verbose=self._run.verbose
            )
        return self._prepared

    def objective(self, student: Network) -> nn.Module:
        teacher = self.prepared.teacher
        return distillation(
            self._spec.method,
            teacher,
            self._spec.kd,
            self._spec.config,
            student=student,
            teachers=[(ref.text, network) for ref, network in zip(self._spec.refs, teacher.networks, strict=True)],
            images=self._data.train,
            seed=self._run.seed,
            teaching=Teaching(
                scales=self.prepared.scales,
                weights=self.prepared.weights,
                epochs=self._run.recipe.epochs,
                seed=self._run.seed,
                label_smoothing=self._run.recipe.label_smoothing,
            ),
        )


def _plain_weights(weights: Tensor | None) -> tuple[tuple[float, ...], ...] | None:
    """Return fitted weights for run.json: for each teacher one weight, or one weight for each class."""
    return None if weights is None else tuple(map(tuple, weights.reshape(len(weights), -1).tolist()))


def _log_teachers(spec: DistillSpec, measured: TeachersMeasured, select_on: SelectOn) -> None:
    split = "test" if select_on == "test" else "validation"
    for member in measured.members:
        log.info("Teacher %s (epoch %d): %s accuracy %.1f%%", member.ref, member.epoch, split, 100 * member.accuracy)
    if len(spec.refs) > 1 and spec.config.teacher_schedule == "joint":
        equal = ", with equal weights" if spec.config.teacher_weights == "auto-per-class" else ""
        log.info("Ensemble%s: %s accuracy %.1f%%", equal, split, 100 * measured.ensemble.accuracy)
    if spec.config.teacher_schedule == "random":
        log.info("A random half of the %d teachers is used in each epoch", len(spec.refs))
    elif spec.config.teacher_schedule != "joint":
        log.info("The teachers are used one after the other, each for %.3g%% of the training", 100 / len(spec.refs))
    if spec.config.teacher_batch_norm == "batch":
        log.info(
            "The teachers use batch statistics in training. The accuracies above are measured with running statistics."
        )
