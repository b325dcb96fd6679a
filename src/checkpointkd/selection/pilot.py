"""Pilot search: find the teacher for a given student by training short pilot runs.

A pilot run is a whole distillation with 15% of the epochs (and at least 100 steps): its learning-rate schedule ends.
The first epochs of a long distillation would mislead. At a high learning rate students learn best from under-trained
teachers, and better without a teacher than from converged ones. Candidates are ranked by the student's validation
H(Y) − CE (a bound on I(Y;F)) at its fitted temperature. It uses the whole prediction, and accuracy only the highest
logit. docs/selection.md compares the ranking with that of whole distillations.

The student without a teacher comes first, then checkpoints spread over the trajectory. Candidates near the best follow:
other alphas, the best two checkpoints together, and neighbors. With a larger budget the best two candidates get pilot
runs of twice the length at the end. pilot_plan.py decides all of this. Each pilot run has its own run directory. So a
stopped search continues, and a search with a larger budget uses the stored runs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from .. import storage
from ..checkpoints import CheckpointRef, RunDir, Trajectory, refuse_inside_run
from ..config import PrecisionChoice
from ..data import Images
from ..distill_config import KDConfig
from ..errors import Diverged, UserError, pluralize
from ..information import label_entropy
from ..metrics import fitted_losses, measure, predict
from ..models import build_network
from ..records.base import provenance
from ..records.runs import ExternalRecord
from ..records.selection import DivergedRecord, PilotRecord, PilotResult, PilotSearchRecord
from ..teachers.ensemble import chance_level
from ..training.distillation import DistillSpec, run_distillation
from ..training.run import RunSpec, from_labels, run_training
from .command_line import format_command
from .pilot_plan import (
    NO_TEACHER,
    Candidate,
    PilotOutcome,
    allow_runs,
    best_first,
    next_candidates,
    pilot_batch_size,
    plan_pilot_runs,
    single_checkpoints,
    summarize,
    to_promote,
)
from .pilot_store import DIVERGED, PilotSearch, open_search, pilot_run_path, stored_runs

log = logging.getLogger("checkpointkd")

RESULT = "pilot.json"


def run_pilot_search(search: PilotSearch) -> PilotResult:
    """Train the pilot runs that are not stored yet, choose a teacher, and write pilot.json.

    A search that continues keeps the checkpoints that it started with, though the trajectory may have more by now.

    Raises:
        UserError: If the directory holds another search or other files, or if the budget is too small.
        Diverged: If the pilot run without a teacher diverged, or all pilot runs with one.
    """
    if len(search.trajectory) == 0:
        raise UserError(f"The run in {search.trajectory.source} has saved no checkpoint yet")
    batch_size = pilot_batch_size(search.recipe.batch_size)
    steps_per_epoch = math.ceil(len(search.data.train) / batch_size)
    pilot_epochs, run_count = plan_pilot_runs(search.settings, search.recipe.epochs, steps_per_epoch)
    refuse_inside_run(search.out)
    _check_student(search)
    with storage.locked(search.out):
        record = open_search(search)
        log.info(
            "Training up to %s of %s for %s, with batch size %d. A whole distillation has %s with batch size %d.",
            pluralize(run_count, "pilot run"),
            pluralize(pilot_epochs, "epoch"),
            search.student,
            batch_size,
            pluralize(search.recipe.epochs, "epoch"),
            search.recipe.batch_size,
        )
        pilot_search = replace(search, recipe=replace(search.recipe, batch_size=batch_size))
        result = _Runner(pilot_search, record, pilot_epochs, run_count).run()
        storage.write_json(
            search.out / RESULT,
            PilotRecord(**msgspec.structs.asdict(record), result=result, provenance=provenance()),
        )
        if search.on_progress is not None:
            search.on_progress(str(search.out), run_count, run_count)
    return result


class _Runner:
    """Trains the pilot runs of one search in order. `completed` and `diverged` are the runs of this call so far."""

    def __init__(self, search: PilotSearch, record: PilotSearchRecord, pilot_epochs: int, run_count: int) -> None:
        self.search = search
        self.pilot_epochs, self.run_count = pilot_epochs, run_count
        self.epochs = [teacher.epoch for teacher in record.teachers]
        self.stored = stored_runs(search.out)
        self.completed: list[PilotOutcome] = []
        self.diverged: list[tuple[Candidate, int]] = []

    @property
    def last_epoch(self) -> int:
        return self.epochs[-1]

    def run(self) -> PilotResult:
        """Train the pilot runs and return the result."""
        stored_single = sum(epochs == self.pilot_epochs for _, epochs in self.stored)
        stored_double = sum(epochs == 2 * self.pilot_epochs for _, epochs in self.stored)
        may_double = 2 * self.pilot_epochs <= self.search.recipe.epochs
        allowance = allow_runs(
            self.run_count, stored_single=stored_single, stored_double=stored_double, may_double=may_double
        )
        if stored_single + 2 * stored_double > self.run_count:
            log.info(
                "The search uses stored pilot runs of %s in total, more than this budget covers",
                pluralize((stored_single + 2 * stored_double) * self.pilot_epochs, "epoch"),
            )
        self.train(NO_TEACHER, self.pilot_epochs)
        accuracy_of = _accuracies(self.search, self.epochs)
        skipped = self.skip_inaccurate(accuracy_of)
        teacher_epochs = [epoch for epoch in self.epochs if epoch not in skipped] or [self.last_epoch]
        self.train_single_length(teacher_epochs, allowance.with_teacher, allowance.new)
        if not any(outcome.candidate.epochs for outcome in self.completed):
            raise Diverged(
                f"All pilot runs with a teacher from {self.search.trajectory.source} diverged, so there is nothing to "
                "choose. Use a smaller --learning-rate and another --out."
            )
        if may_double:
            self.promote(skipped, stored_double)
        self.train_stored(2 * self.pilot_epochs)
        tried = {
            epoch for candidate, _ in chain(self.diverged, stored_runs(self.search.out)) for epoch in candidate.epochs
        }
        result = summarize(
            self.completed,
            student=self.search.student,
            student_epochs=self.search.recipe.epochs,
            tau=self.search.settings.tau,
            skipped=skipped,
            last_epoch=self.last_epoch,
            unit=self.search.trajectory.unit,
            diverged=self.diverged,
            untried=[epoch for epoch in teacher_epochs if epoch not in tried],
        )
        return msgspec.structs.replace(result, command=_command(self.search, result, accuracy_of))

    def skip_inaccurate(self, accuracy_of: dict[int, float]) -> list[int]:
        """Return the epochs of checkpoints less accurate than the student of the run without a teacher."""
        baseline = self.completed[0]
        skipped = [epoch for epoch in self.epochs if accuracy_of[epoch] < baseline.accuracy]
        if skipped:
            log.info(
                "Skipping %s %s: less accurate than the student of the pilot run without a teacher (%.1f%%)%s",
                self.search.trajectory.unit,
                ", ".join(map(str, skipped)),
                100 * baseline.accuracy,
                "; the last one is tried for comparison" if skipped == self.epochs else "",
            )
        return skipped

    def train_single_length(self, teacher_epochs: Sequence[int], with_teacher: int, new: int) -> None:
        """Train single checkpoints, then candidates near the best, but at most `new` runs that are not stored."""
        alphas = self.search.settings.alphas
        single = single_checkpoints(teacher_epochs, alphas, with_teacher)
        tried = set()  # includes those that diverged
        for candidate in chain(single, next_candidates(self.completed, teacher_epochs, alphas, self.last_epoch)):
            if candidate in tried:
                continue
            tried.add(candidate)
            if (candidate, self.pilot_epochs) not in self.stored:
                if new == 0:
                    continue
                new -= 1
            self.train(candidate, self.pilot_epochs)
        self.train_stored(self.pilot_epochs)

    def promote(self, skipped: Sequence[int], stored_double: int) -> None:
        """Train the best two candidates for twice as long, if the budget covers both."""
        best = to_promote(self.completed, skipped=skipped, last_epoch=self.last_epoch)
        missing = sum((candidate, 2 * self.pilot_epochs) not in self.stored for candidate in best)
        left = self.run_count - len(self.completed) - len(self.diverged)
        if 2 * (missing + stored_double) <= left:
            for candidate in best:
                self.train(candidate, 2 * self.pilot_epochs)

    def train_stored(self, pilot_epochs: int) -> None:
        """Include all stored runs of one length, which another budget may have covered."""
        for candidate, epochs in self.stored:
            if epochs == pilot_epochs:
                self.train(candidate, epochs)

    def train(self, candidate: Candidate, pilot_epochs: int) -> None:
        """Train one pilot run, or load it if it is stored, and record its outcome. A second call does nothing."""
        seen = [(outcome.candidate, outcome.pilot_epochs) for outcome in self.completed] + self.diverged
        if (candidate, pilot_epochs) in seen:
            return
        out = pilot_run_path(self.search, candidate, pilot_epochs)
        stored = (out / "result.json").exists()
        try:
            run = self.train_or_load(candidate, pilot_epochs, out)
        except Diverged as error:
            if not self.completed:
                raise Diverged(
                    f"{error}. All candidates are compared with this pilot run, which has no teacher. "
                    "Use a smaller --learning-rate and another --out."
                ) from None
            log.warning("The pilot run of %s diverged: %s", candidate.describe(self.search.trajectory.unit), error)
            diverged = DivergedRecord(epochs=candidate.epochs, alpha=candidate.alpha, pilot_epochs=pilot_epochs)
            storage.write_json(out / DIVERGED, diverged)
            self.diverged.append((candidate, pilot_epochs))
            return
        self.completed.append(_outcome(self.search, candidate, pilot_epochs, run))
        self.report(stored)

    def train_or_load(self, candidate: Candidate, pilot_epochs: int, out: Path) -> Trajectory:
        search = self.search
        if (out / DIVERGED).exists():
            raise Diverged("in an earlier call of this search")
        run_spec = RunSpec(
            model=search.student,
            out=out,
            recipe=search.recipe.lasting(pilot_epochs),
            device=search.device,
            save_every=pilot_epochs,
            seed=search.settings.seed,
            precision=self.precision(),
            evaluate_test=False,
            verbose=False,
        )
        if candidate == NO_TEACHER:
            return run_training(run_spec, search.data, from_labels(), on_progress=search.on_progress)
        spec = DistillSpec(
            refs=tuple(
                CheckpointRef(f"{search.trajectory.source}@{epoch}", search.trajectory[epoch])
                for epoch in candidate.epochs
            ),
            kd=KDConfig(alpha=candidate.alpha, tau=search.settings.tau),
            logit_cache_gb=search.logit_cache_gb,
            allow_weak_teacher=True,
        )
        return run_distillation(run_spec, spec, search.data, on_progress=search.on_progress)

    def precision(self) -> PrecisionChoice:
        """Return the precision of all pilot runs. "auto" is resolved by the first run, so that runs are comparable."""
        if self.search.precision != "auto":
            return self.search.precision
        return RunDir(pilot_run_path(self.search, NO_TEACHER, self.pilot_epochs)).precision() or "auto"

    def report(self, stored: bool) -> None:
        """Log the last outcome and report the progress."""
        outcome, unit = self.completed[-1], self.search.trajectory.unit
        if self.search.on_progress is not None:  # complete only when pilot.json is written
            done = min(len(self.completed), self.run_count - 1)
            self.search.on_progress(str(self.search.out), done, self.run_count)
        log.info(
            "Pilot run %d, %s, %s%s: %.3f nats (%.1f%%); best so far: %s",
            len(self.completed),
            outcome.candidate.describe(unit),
            pluralize(outcome.pilot_epochs, "epoch"),
            " (stored)" if stored else "",
            outcome.information,
            100 * outcome.accuracy,
            best_first(self.completed, self.last_epoch)[0].candidate.describe(unit),
        )


def _check_student(search: PilotSearch) -> None:
    """Build the student once, so that an unknown model leaves no directory behind."""
    mean, std = search.data.train.channel_statistics()
    build_network(search.student, num_classes=len(search.data.classes), in_channels=len(mean), mean=mean, std=std)


def _outcome(search: PilotSearch, candidate: Candidate, pilot_epochs: int, run: Trajectory) -> PilotOutcome:
    """Measure the student of a pilot run on the validation set."""
    information, accuracy, loss_N = measure_student(run, search.data.val, search.device)
    return PilotOutcome(candidate, pilot_epochs, information=information, accuracy=accuracy, loss_N=loss_N.numpy())


def measure_student(run: Trajectory, images: Images, device: torch.device) -> tuple[float, float, Tensor]:
    """Return a pilot student's H(Y) − CE in nats, its accuracy as a share, and the CE of each image (N,)."""
    logits_NK = predict(run.last.network(device), images)
    loss_N, _ = fitted_losses(logits_NK, images.labels_N)
    information = label_entropy(images.labels_N) - loss_N.mean().item()
    return information, measure(logits_NK, images.labels_N)["accuracy"], loss_N


def _command(search: PilotSearch, result: PilotResult, accuracy_of: dict[int, float]) -> str:
    """Return the command that trains the student with the chosen teacher, or without one."""
    if result.epochs:
        refs = [f"{search.trajectory.source}@{epoch}" for epoch in result.epochs]
        arguments = ["distill", search.student, "--teachers", *refs]
        _, threshold = chance_level(search.data.val.labels_N)
        weak = min(accuracy_of[epoch] for epoch in result.epochs) < threshold
        options = {"alpha": result.alpha, "tau": result.tau, "allow_weak_teacher": weak}
    else:
        data = search.data.record
        arguments = ["train", search.student]
        options = {
            "data": search.command_options.get("data") or data.spec,
            "logit_cache_gb": None,
            "select_on": None if data.select_on == "val" else data.select_on,
            "train_images": data.train_images,
            "image_size": data.image_size,
            "flip": data.flip,
        }
    return format_command(arguments, {**search.command_options, **options, "precision": search.precision})


def _accuracies(search: PilotSearch, epochs: Sequence[int]) -> dict[int, float]:
    """Return each checkpoint's validation accuracy, from its run's records where they are on the same images."""
    trajectory, data = search.trajectory, search.data
    recorded: dict[int, float | None] = {row.epoch: row.val_accuracy for row in trajectory.rows()}
    if isinstance(trajectory.run, ExternalRecord):
        recorded = {epoch: checkpoint.accuracy for epoch, checkpoint in trajectory.run.checkpoints.items()}
    if any(getattr(trajectory.run.data, name) != getattr(data.record, name) for name in ("sha256", "select_on")):
        recorded = {}
    accuracy_of = {}
    for epoch in epochs:
        accuracy = recorded.get(epoch)
        if accuracy is None:
            logits_NK = predict(trajectory[epoch].network(search.device), data.val)
            accuracy = measure(logits_NK, data.val.labels_N)["accuracy"]
        accuracy_of[epoch] = accuracy
    return accuracy_of
