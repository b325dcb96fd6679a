"""Students grouped into variants: runs that differ only in their seed, with labels that tell the variants apart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..analysis.statistics import paired
from ..checkpoints import Trajectory
from ..errors import pluralize
from ..records.base import plain
from ..records.runs import AnyRun, DistillRecord, OwnRunRecord, TrainRecord

# Students of one family can be compared.
FAMILY = ("model", "network_config", "channel_order", "data", "recipe", "precision", "checkpoint_dtype")
FAMILY += ("init_sha256", "batch_norm_processes", "accumulate", "averaged")
# Variants of a family differ in these.
TEACHING = ("method", "kd", "distill_config", "teachers", "label_smoothing", "loss")
BY_PILOT = "chosen by pilot runs"
NAMED_SETTINGS = ("optimizer", "weight_decay", "lr_schedule", "warmup", "clip_norm", "layer_decay", "views")
NAMED_SETTINGS += ("auto_augment", "erasing", "mixup", "cutmix", "ema")  # of a recipe, in labels where they differ


@dataclass(frozen=True)
class Variant:
    """Students that differ only in their seed.

    Attributes:
        student: the student's network.
        label: the teachers and the settings in which this variant differs from others of the same student.
        teachers: the run's name and the epoch of each teacher.
        accuracy: test accuracy in percent, by seed.
        family: what the students have in common with those that they can be compared with, as a key.
        smoothing: label smoothing; above 0, the student learned from the uniform teacher.
        loss: the loss of a student without a teacher.
        distillation: how the teachers taught, where it was not plain KD.
        teacher_accuracy: accuracy of the teachers together on the validation set, in percent.
        chosen: whether `select` chose exactly these teachers, for this student if for one.
    """

    student: str
    label: str
    teachers: tuple[tuple[str, int], ...]
    accuracy: dict[int, float]
    family: str = field(repr=False)
    smoothing: float = 0.0
    loss: str = "cross-entropy"
    distillation: str = ""
    teacher_accuracy: float | None = None
    chosen: bool = False

    @property
    def from_scratch(self) -> bool:
        """Whether the student learned from the labels alone, by cross-entropy."""
        return not self.teachers and self.smoothing == 0 and self.loss == "cross-entropy"

    @property
    def n(self) -> int:
        return len(self.accuracy)

    @property
    def mean(self) -> float:
        return fmean(self.accuracy.values())

    @property
    def sd(self) -> float:
        """The standard deviation over seeds, with n − 1 in the denominator; NaN for one seed."""
        return stdev(self.accuracy.values()) if self.n > 1 else math.nan

    @property
    def text(self) -> str:
        """The accuracy as a table shows it."""
        return f"{self.mean:.2f} ± {self.sd:.2f}" if self.n > 1 else f"{self.mean:.2f}"


@dataclass(frozen=True)
class Difference:
    """The mean difference of two variants in points, paired by seed, with the half-width of its 95% interval.

    The half-width is NaN for one seed and for differences that are all equal.
    """

    n: int
    mean: float
    half_width: float

    @property
    def verdict(self) -> str:
        """Whether the 95% confidence interval includes 0."""
        if self.n < 2:
            return "no CI with one seed"
        if math.isnan(self.half_width):
            return "no CI: equal differences"
        return "95% CI excludes 0" if abs(self.mean) > self.half_width else "95% CI includes 0"

    @property
    def text(self) -> str:
        """The difference and its verdict as a table shows them."""
        if self.n == 0:
            return "no common seed"
        interval = "" if math.isnan(self.half_width) else f" ± {self.half_width:.2f}"
        return f"{self.mean:+.2f}{interval} ({self.verdict})"


def difference(variant: Variant, baseline: Variant) -> Difference:
    """Return how many points a variant is above a baseline, over the seeds that both have.

    >>> variant = Variant("s", "a", (), {0: 91.0, 1: 92.0, 2: 93.0}, family="")
    >>> baseline = Variant("s", "b", (), {0: 90.0, 1: 90.5, 2: 92.5}, family="")
    >>> difference(variant, baseline).text
    '+1.00 ± 1.24 (95% CI includes 0)'
    """
    seeds = sorted(variant.accuracy.keys() & baseline.accuracy.keys())
    test = paired([variant.accuracy[seed] - baseline.accuracy[seed] for seed in seeds])
    return Difference(test.n, test.mean, test.half_width)


def group_variants(runs: Sequence[Trajectory], names: dict[Path, str]) -> tuple[list[Variant], list[str]]:
    """Return the variants of the runs that have a test accuracy, and notes on runs that are there twice.

    A run that only taught other students is not a variant.
    """
    groups: dict[tuple[str, str], list[tuple[Trajectory, float]]] = {}
    for run in runs:
        result = run.result()
        if result is not None and result.test is not None:
            group = (_key(run.run, FAMILY), _key(run.run, TEACHING))
            groups.setdefault(group, []).append((run, 100 * result.test.accuracy))
    sources = {checkpoint.sha256: (run, epoch) for run in runs for epoch, checkpoint in run.items()}
    teacher_hashes = {teacher.sha256 for run in runs for teacher in run.run.teachers}
    families_of_students = {
        family for (family, _), members in groups.items() if members[0][0].run.teachers or _smoothing(members[0][0].run)
    }
    variants, notes = [], []
    for (family, _), members in groups.items():
        first = members[0][0]
        only_taught = not first.run.teachers and all(
            any(checkpoint.sha256 in teacher_hashes for checkpoint in run.values()) for run, _ in members
        )
        if only_taught and family not in families_of_students:
            continue
        accuracy: dict[int, float] = {}
        for run, value in members:
            if run.run.seed in accuracy:
                notes.append(f"Counted once: {names[run.path]} has the settings and the seed of another run")
            accuracy.setdefault(run.run.seed, value)
        teachers, label = _teachers(first.run, sources, names)
        distillation = _distillation(first.run) if isinstance(first.run, DistillRecord) else ""
        selected_by = _selected_by(first, runs)
        by_pilot = selected_by if selected_by == BY_PILOT else ""
        variant = Variant(
            student=first.run.model,
            label=", ".join(part for part in (label, distillation, by_pilot) if part),
            teachers=teachers,
            accuracy=accuracy,
            family=family,
            smoothing=_smoothing(first.run),
            loss=_loss(first.run),
            distillation=distillation,
            teacher_accuracy=_teacher_accuracy(first.run),
            chosen=selected_by != "",
        )
        variants.append((first, variant))
    variants.sort(key=lambda pair: _order(pair[1]))
    return [_distinguished(run, variant, variants) for run, variant in variants], notes


def _order(variant: Variant) -> tuple[Any, ...]:
    teachers = variant.teachers
    return (
        variant.student,
        variant.family,
        variant.smoothing,
        variant.loss,
        len(teachers),
        teachers,
        variant.distillation,
    )


def _key(record: AnyRun, fields: Sequence[str]) -> str:
    """Return some fields of a run as a key. The place of the data is not part of it."""
    part = {name: getattr(record, name) for name in fields if hasattr(record, name)}
    if isinstance(record, OwnRunRecord) and "recipe" in part:  # smoothing belongs to the teaching
        part["recipe"] = replace(record.recipe, label_smoothing=0.0)
    if isinstance(record, DistillRecord) and "method" in part and record.recipe.label_smoothing:
        part["label_smoothing"] = record.recipe.label_smoothing
    if "data" in part:
        part["data"] = record.data.identity
    return json.dumps(part, sort_keys=True, default=plain)


def _teacher_accuracy(record: AnyRun) -> float | None:
    return 100 * record.teachers_measured.ensemble.accuracy if isinstance(record, DistillRecord) else None


def _smoothing(record: AnyRun) -> float:
    return record.label_smoothing if isinstance(record, TrainRecord) else 0.0


def _loss(record: AnyRun) -> str:
    return record.loss if isinstance(record, TrainRecord) else "cross-entropy"


def _teachers(
    record: AnyRun, sources: dict[str, tuple[Trajectory, int]], names: dict[Path, str]
) -> tuple[tuple[tuple[str, int], ...], str]:
    """Return the run's name and the epoch of each teacher, and the label of all of them together."""
    teachers, labels = [], []
    for teacher in record.teachers:
        if teacher.sha256 in sources:
            run, epoch = sources[teacher.sha256]
            teachers.append((names[run.path], epoch))
            labels.append(_epoch_label(run, epoch))
        else:
            teachers.append(("elsewhere", teacher.epoch))
            labels.append(teacher.average or f"epoch {teacher.epoch}")
    smoothing = _smoothing(record)
    without = f"uniform teacher (label smoothing {smoothing:g})" if smoothing else "no teacher"
    if _loss(record) != "cross-entropy":
        without += f", loss {_loss(record)}"
    return tuple(teachers), " and ".join(labels) or without


def _epoch_label(run: Trajectory, epoch: int) -> str:
    """Return a teacher's epoch, and why it is a special one of its run."""
    roles = []
    if epoch == run.planned_epochs:
        roles.append("last")
    if (run.complete or 2 * max(run) >= run.planned_epochs) and epoch == run.midpoint.epoch:
        roles.append("midpoint")
    selection = run.selection()
    if selection is not None and selection.rule != "pilot" and epoch in selection.epochs:
        roles.append(f"chosen by {rule_name(selection.rule)}")
    return f"{run.unit} {epoch}" + (f" ({', '.join(roles)})" if roles else "")


def _distillation(run: DistillRecord) -> str:
    """Return how the teachers taught, where it was not plain KD from the mean of their probabilities."""
    config, parts = run.distill_config, []
    if any(teacher.average for teacher in run.teachers):
        parts.append("weights averaged")
    if run.method != "kd":
        parts.append(f"method {run.method}")
    if config.teacher_schedule != "joint":
        parts.append(f"teacher schedule {config.teacher_schedule}")
    if isinstance(config.teacher_weights, str):
        parts.append(f"teacher weights {config.teacher_weights}")
    elif config.teacher_weights is not None:
        parts.append(f"teacher weights {' : '.join(f'{weight:g}' for weight in config.teacher_weights)}")
    if run.kd.average != "probabilities":
        parts.append("mean of logits")
    if config.teacher_tau != "fixed":
        parts.append(f"teacher tau {config.teacher_tau}")
    if config.teacher_batch_norm != "eval":
        parts.append("teacher batch norm by batch")
    if config.top_k is not None:
        parts.append(f"the {config.top_k} largest logits")
    if run.recipe.label_smoothing:
        parts.append(f"label smoothing {run.recipe.label_smoothing:g}")
    for name in ("teacher_features", "student_features"):
        if getattr(config, name) is not None:
            parts.append(f"{name.replace('_', ' ')} {' '.join(getattr(config, name))}")
    return ", ".join(parts)


def _selected_by(student: Trajectory, runs: Sequence[Trajectory]) -> str:
    """Name the rule that chose exactly these teachers, or the pilot search for the same student, method and α."""
    hashes = {teacher.sha256 for teacher in student.run.teachers}
    if not isinstance(student.run, DistillRecord):
        return ""
    for run in runs:
        selection = run.selection()
        if selection is None or not (
            _from_averages(student.run, run, selection.names)
            if any(teacher.average for teacher in student.run.teachers)
            else hashes == {run[epoch].sha256 for epoch in selection.epochs}
        ):
            continue
        alpha = student.run.kd.alpha if selection.alpha is None else selection.alpha
        chosen = (selection.student, selection.method or student.run.method, alpha)
        if selection.rule != "pilot" or chosen == (student.run.model, student.run.method, student.run.kd.alpha):
            return f"chosen by {rule_name(selection.rule)}"
    return ""


def _from_averages(student: DistillRecord, run: Trajectory, names: Sequence[str]) -> bool:
    """Return whether a student's teachers are these checkpoints and weight averages of a run, by their references."""
    folders = {Path(ref.rpartition("@")[0]).name for ref in student.teacher_refs}
    return folders == {run.path.name} and [teacher.name for teacher in student.teachers] == list(names)


def rule_name(rule: str) -> str:
    """Return the name of a rule in prose."""
    return {"algorithm1": "Algorithm 1", "pilot": "pilot runs"}.get(rule, f"rule {rule}")


def _distinguished(run: Trajectory, variant: Variant, variants: Sequence[tuple[Trajectory, Variant]]) -> Variant:
    """Return the variant with the teachers and settings in its label that differ among variants of its student."""
    peers = [(peer_run, peer) for peer_run, peer in variants if peer.student == variant.student]
    taught = [(peer_run, peer) for peer_run, peer in peers if peer.teachers]
    alike = [peer_run for peer_run, peer in taught if peer.distillation == variant.distillation]

    def differs(value: Callable[[Any], Any], values_of: Sequence[Any]) -> bool:
        return len({value(each) for each in values_of}) > 1

    record, parts, peer_runs = run.run, [], [peer_run for peer_run, _ in peers]
    names = list(dict.fromkeys(name for name, _ in variant.teachers))
    if len(names) > 1 or (names and differs(lambda pair: pair[1].teachers[0][0], taught)):
        parts.append(f"from {', '.join(names)}")
    if isinstance(record, DistillRecord):
        if differs(lambda peer: (peer.run.kd.alpha, peer.run.kd.tau), alike):
            parts.append(f"α {record.kd.alpha:g}, τ {record.kd.tau:g}")
        if differs(lambda peer: peer.run.distill_config.method_weight, alike):
            weight = record.distill_config.method_weight
            parts.append("default method weight" if weight is None else f"method weight {weight:g}")
    if differs(lambda peer: peer.planned_epochs, peer_runs):
        parts.append(pluralize(run.planned_epochs, "epoch"))
    if differs(lambda peer: (peer.run.data.train_size, peer.run.data.sha256), peer_runs):
        parts.append(f"{record.data.train_size:,} images of {record.data.name}")
        if record.data.train_labels is not None:
            parts.append(f"labels of {Path(record.data.train_labels).name}")
    if differs(lambda peer: peer.run.precision, peer_runs):
        parts.append(record.precision)
    if isinstance(record, OwnRunRecord) and differs(lambda peer: peer.run.checkpoint_dtype, peer_runs):
        parts.append(f"{record.checkpoint_dtype} checkpoints")
    if isinstance(record, OwnRunRecord) and differs(lambda peer: peer.run.init_sha256, peer_runs):
        parts.append(f"from weights of {record.init}" if record.init else "from random weights")
    if isinstance(record, OwnRunRecord) and differs(lambda peer: peer.run.batch_norm_processes, peer_runs):
        parts.append(f"batch statistics of {record.batch_norm_processes} processes")
    if isinstance(record, OwnRunRecord) and record.averaged:
        parts.append("moving average of the weights")
    if isinstance(record, OwnRunRecord) and differs(lambda peer: peer.run.accumulate, peer_runs):
        parts.append(f"batches in {pluralize(record.accumulate, 'part')}")
    same_label = [peer for _, peer in peers if peer is not variant and peer.label == variant.label]
    same_family = [peer for peer in same_label if peer.family == variant.family]
    if same_label and not parts and not same_family and isinstance(record, OwnRunRecord):
        parts.append(f"batch {record.recipe.batch_size}, learning rate {record.recipe.learning_rate:g}")
        same_runs = [run.run for run, peer in peers if peer in same_label]
        for name in NAMED_SETTINGS:
            value = getattr(record.recipe, name)
            if any(isinstance(peer, OwnRunRecord) and getattr(peer.recipe, name) != value for peer in same_runs):
                parts.append(f"{name.replace('_', ' ')} {'none' if value is None else value}")
    return replace(variant, label=f"{variant.label}; {', '.join(parts)}") if parts else variant
