"""Pilot search: choose a candidate for a student by training short pilot runs.

A pilot run is a complete distillation with 15% of the epochs (and at least 100 steps): its learning-rate schedule ends.
The first epochs of a long distillation would mislead. At a high learning rate students learn best from under-trained
teachers, and better without a teacher than from converged teachers.

pilot_plan.py decides which candidate is next, from the pilot runs before it. Each pilot run has its own run directory.
So a stopped search continues, and a search with a larger budget keeps the runs of a smaller search.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from .. import records, storage
from ..checkpoints import RunDir, Trajectory, refuse_inside_run
from ..config import PrecisionChoice
from ..data import Images
from ..distill_config import KDConfig
from ..errors import Diverged, UserError, pluralize
from ..information import label_entropy
from ..losses import defaults
from ..metrics import fitted_losses, measure, predict
from ..models import build_network
from ..records.base import provenance
from ..records.selection import DivergedRecord, PilotRecord, PilotResult
from ..teachers.ensemble import chance_level
from ..trackers import tracked
from ..training.distillation import DistillSpec, run_distillation
from ..training.run import RunSpec, from_labels, run_training
from .candidates import NO_TEACHER, Candidate, candidates_of, default_candidate, refs_of
from .command_line import format_command
from .pilot_plan import PilotOutcome, decide, next_candidates, pilot_batch_size, plan_pilot_runs
from .pilot_result import summarize, training_call
from .pilot_store import DIVERGED, PilotSearch, open_search, pilot_run_path

log = logging.getLogger("checkpointkd")

RESULT = "pilot.json"


TrainTogether = Callable[[PilotSearch, Sequence[Candidate]], None]


def run_pilot_search(search: PilotSearch, *, jobs: int = 1, train_together: TrainTogether | None = None) -> PilotResult:
    """Train the pilot runs that are not stored yet, choose a candidate, and write pilot.json.

    A search that continues keeps the checkpoints that it started with, though the trajectory may have more by now.

    Args:
        search: The settings.
        jobs: How many candidates to choose at a time. The choice of the second cannot use the outcome of the first.
        train_together: Trains the pilot runs of several candidates in other processes with `train_pilot_run`.

    Raises:
        UserError: If the directory holds another search or other files, or if the budget is too small.
        Diverged: If every pilot run failed.
    """
    if len(search.trajectory) == 0:
        raise UserError(f"The run in {search.trajectory.source} has saved no checkpoint yet")
    batch_size, pilot_epochs, run_count = _plan(search)
    refuse_inside_run(search.out)
    _check_student(search)
    _candidates(search)  # raises UserError before anything is written
    with storage.locked(search.out):
        record = open_search(search)
        search = replace(search, trajectory=search.trajectory.only([teacher.epoch for teacher in record.teachers]))
        candidates = _candidates(search)
        log.info(
            "Comparing %s by up to %s of %s for %s, with batch size %d. A full distillation has %s with batch size %d.",
            pluralize(len(candidates), "candidate"),
            pluralize(run_count, "pilot run"),
            pluralize(pilot_epochs, "epoch"),
            search.student,
            batch_size,
            pluralize(search.recipe.epochs, "epoch"),
            search.recipe.batch_size,
        )
        result = _Runner(search, candidates, jobs, train_together).run()
        storage.write_json(
            search.out / RESULT,
            PilotRecord(**msgspec.structs.asdict(record), result=result, provenance=provenance()),
        )
        if search.on_progress is not None:
            search.on_progress(str(search.out), run_count, run_count)
    return result


def train_pilot_run(search: PilotSearch, candidate: Candidate) -> None:
    """Train one pilot run of a search that another process leads."""
    _Runner(search, _candidates(search)).train(candidate)


def _plan(search: PilotSearch) -> tuple[int, int, int]:
    """Return the batch size of pilot runs, their epochs, and how many runs the budget covers."""
    batch_size = pilot_batch_size(search.recipe.batch_size)
    steps_per_epoch = math.ceil(len(search.data.train) / batch_size)
    return batch_size, *plan_pilot_runs(search.settings, search.recipe.epochs, steps_per_epoch)


def _candidates(search: PilotSearch) -> list[Candidate]:
    """Return the candidates of a search. The default is always one of them."""
    settings, default = search.settings, default_candidate(search.trajectory)
    candidates = candidates_of(
        search.trajectory, methods=settings.methods, alphas=settings.alphas, teachers=settings.teachers
    )
    return candidates if default in candidates else [*candidates, default]


class _Runner:
    """Trains the pilot runs of one search in order. `outcomes` holds the outcomes of this call so far."""

    def __init__(
        self,
        search: PilotSearch,
        candidates: list[Candidate],
        jobs: int = 1,
        train_together: TrainTogether | None = None,
    ) -> None:
        self.search, self.candidates = search, candidates
        self.batch_size, self.pilot_epochs, self.run_count = _plan(search)
        self.jobs, self.train_together = jobs, train_together
        self.default = default_candidate(search.trajectory)
        self.outcomes: list[PilotOutcome] = []

    @property
    def unit(self) -> str:
        return self.search.trajectory.unit

    def run(self) -> PilotResult:
        """Train the pilot runs and return the result. The result also uses stored runs beyond the budget."""
        while following := next_candidates(self.candidates, self.outcomes, self.default, count=self.next_count()):
            new = [candidate for candidate in following if not self.is_stored(candidate)]
            if len(self.outcomes) >= self.run_count and new:
                break
            if self.train_together is not None and new:
                self.train_together(self.search, new)
            for candidate in following:
                self.train(candidate)
                self.report(stored=candidate not in new)
        if not following and len(self.outcomes) < self.run_count:
            log.info("The search stops early: no other pilot run is expected to improve the choice")
        if len(self.outcomes) > self.run_count:
            log.info(
                "%s of a larger budget are used as well", pluralize(len(self.outcomes) - self.run_count, "stored run")
            )
        if all(outcome.diverged for outcome in self.outcomes):
            raise Diverged(
                f"All pilot runs from {self.search.trajectory.source} failed, so there is nothing to choose. Use a "
                "smaller --learning-rate and another --out."
            )
        decision = decide(self.candidates, self.outcomes, self.default)
        result = summarize(
            decision,
            self.candidates,
            self.outcomes,
            default=self.default,
            student=self.search.student,
            tau=self.search.settings.tau,
            pilot_epochs=self.pilot_epochs,
            student_epochs=self.search.recipe.epochs,
            unit=self.unit,
        )
        safe = "" if decision.safe == decision.candidate else self.command(decision.safe)
        return msgspec.structs.replace(result, command=self.command(decision.candidate), safe_command=safe)

    def next_count(self) -> int:
        """Return how many candidates to train at once. The first run alone decides the precision of all."""
        left = self.run_count - len(self.outcomes)
        return 1 if self.precision() == "auto" else max(1, min(self.jobs, left))

    def command(self, candidate: Candidate) -> str:
        """Return the command that trains the student with this candidate."""
        name, options = training_call(self.search, candidate)
        return format_command([name, self.search.student], options)

    def is_stored(self, candidate: Candidate) -> bool:
        out = pilot_run_path(self.search, candidate, self.pilot_epochs)
        return (out / "result.json").exists() or (out / DIVERGED).exists()

    def train(self, candidate: Candidate) -> None:
        """Train one pilot run, or load it if it is stored, and record its outcome."""
        out, name = pilot_run_path(self.search, candidate, self.pilot_epochs), candidate.describe(self.unit)
        try:
            run = self.train_or_load(candidate, out)
        except UserError as error:
            required = candidate in (self.default, NO_TEACHER) or (out / "run.json").exists()
            if required and not isinstance(error, Diverged):
                raise
            log.warning("The pilot run of %s failed: %s", name, error)
            storage.write_json(out / DIVERGED, DivergedRecord(candidate=candidate.folder_name, reason=str(error)))
            self.outcomes.append(PilotOutcome(candidate, math.nan, math.nan, len(self.search.data.val)))
            return
        val = self.search.data.val
        information, accuracy = measure_student(run, val, self.search.device)
        at_chance = accuracy < chance_level(val.labels_N)[1]
        self.outcomes.append(PilotOutcome(candidate, information, accuracy, len(val), at_chance))

    def train_or_load(self, candidate: Candidate, out: Path) -> Trajectory:
        search = self.search
        if (out / DIVERGED).exists():
            stored = records.read(out / DIVERGED, DivergedRecord, remedy=f"Remove {out} to train this pilot run again.")
            raise Diverged(stored.reason)
        run_spec = RunSpec(
            model=search.student,
            out=out,
            recipe=replace(search.recipe.lasting(self.pilot_epochs), batch_size=self.batch_size),
            device=search.device,
            save_every=self.pilot_epochs,
            seed=search.settings.seed,
            precision=self.precision(),
            evaluate_test=False,
            verbose=False,
        )
        if candidate == NO_TEACHER:
            with tracked(out, search.tracking) as on_row:
                return run_training(
                    run_spec,
                    search.data,
                    from_labels(run_spec.recipe.label_smoothing),
                    on_row=on_row,
                    on_progress=search.on_progress,
                )
        alpha, tau = defaults(candidate.method)
        if candidate.alpha is not None:
            alpha, tau = candidate.alpha, search.settings.tau
        spec = DistillSpec(
            refs=refs_of(search.trajectory, candidate),
            method=candidate.method,
            kd=KDConfig(alpha=alpha, tau=tau),
            logit_cache_gb=search.logit_cache_gb,
            allow_weak_teacher=True,
        )
        with tracked(out, search.tracking) as on_row:
            return run_distillation(run_spec, spec, search.data, on_row=on_row, on_progress=search.on_progress)

    def precision(self) -> PrecisionChoice:
        """Return the precision of all pilot runs. "auto" is resolved by the first run, so that runs are comparable."""
        if self.search.precision != "auto":
            return self.search.precision
        return RunDir(pilot_run_path(self.search, self.default, self.pilot_epochs)).precision() or "auto"

    def report(self, *, stored: bool) -> None:
        """Log the last outcome and report the progress."""
        outcome, unit = self.outcomes[-1], self.unit
        if self.search.on_progress is not None:  # complete only when pilot.json is written
            done = min(len(self.outcomes), self.run_count - 1)
            self.search.on_progress(str(self.search.out), done, self.run_count)
        if outcome.diverged:
            return
        best = decide(self.candidates, self.outcomes, self.default)
        log.info(
            "Pilot run %d, %s%s: accuracy %.1f%%. Best so far: %s, expected gain %+.1f points",
            len(self.outcomes),
            outcome.candidate.describe(unit),
            " (stored)" if stored else "",
            100 * outcome.accuracy,
            best.candidate.describe(unit),
            best.gain,
        )


def _check_student(search: PilotSearch) -> None:
    """Build the student once, so that an unknown model leaves no directory behind."""
    mean, std = search.data.train.channel_statistics()
    build_network(search.student, num_classes=len(search.data.classes), in_channels=len(mean), mean=mean, std=std)


def measure_student(run: Trajectory, images: Images, device: torch.device) -> tuple[float, float]:
    """Return a pilot student's H(Y) − CE in nats at a fitted temperature, and its accuracy as a share."""
    logits_NK = predict(run.last.network(device), images)
    loss_N, _ = fitted_losses(logits_NK, images.labels_N)
    information = label_entropy(images.labels_N) - loss_N.mean().item()
    return information, measure(logits_NK, images.labels_N)["accuracy"]


def chosen_candidate(result: PilotResult) -> Candidate:
    """Return the candidate of a result, without its kind."""
    return Candidate(result.teachers, "", result.method or NO_TEACHER.method, result.alpha)
