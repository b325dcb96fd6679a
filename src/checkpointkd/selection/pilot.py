"""Which teacher suits this student (SPEC §6): short lessons, compared by what their students then know of the labels.

A lesson is a distillation with 15% of the epochs (at least a hundred steps) to its end: its learning rate falls as the
whole one's does, since the first epochs of whole distillations mislead: at high learning rates students like unripe
teachers best, and labels alone better than ripe ones. What counts of its student is I(Y;F) by the bound H(Y) − CE, in
nats, at the temperature that suits it: of a short lesson's few right answers accuracy takes only the number. How well
that puts teachers in the order in which whole distillations do: docs/selection.md.

First comes the student without a teacher, then checkpoints from all over the trajectory, then what lies near the best:
other weights of the labels, the best two together, its neighbors. With a larger budget the best two have lessons of
twice the length in the end. How many there are, and what follows from them, is lessons.py. A lesson is a run's folder,
so a race that was stopped continues, and one with a larger budget uses what is there.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from .. import storage
from ..checkpoints import (
    CheckpointRef,
    RunDir,
    Trajectory,
    open_trajectory,
    refuse_inside_run,
)
from ..config import (
    KDConfig,
    OnProgress,
    PilotConfig,
    PrecisionChoice,
    Recipe,
    config_differences,
)
from ..data import Data
from ..errors import Diverged, UserError, pluralize
from ..information import fitted_losses, label_entropy
from ..metrics import measure, predict
from ..models import build_network
from ..records import DistillRecord, ExternalRecord, OwnRunRecord, provenance
from ..teachers.ensemble import chance_level
from ..training.distillation import DistillSpec, run_distillation
from ..training.run import RunSpec, from_labels, run_training
from .pilot_plan import (
    CHECKPOINT_SHARE,
    MIN_RUNS_BEFORE_PROMOTION,
    N_PROMOTED,
    NO_TEACHER,
    PILOT_BATCH_FRACTION,
    Candidate,
    PilotOutcome,
    PilotResult,
    best_first,
    evenly_spaced,
    next_candidates,
    plan_pilot_runs,
    summarize,
    to_promote,
)
from .tuning import format_command

log = logging.getLogger("checkpointkd")

RESULT = "pilot.json"
PILOT_RUNS = "lessons"
DIVERGED = "diverged.json"  # in the folder of a lesson that diverged


@dataclass(frozen=True, kw_only=True, eq=False)
class PilotSearch:
    """What all lessons have in common, and where they are kept."""

    student: str
    trajectory: Trajectory
    data: Data
    recipe: Recipe
    settings: PilotConfig
    out: Path
    precision: PrecisionChoice
    logit_cache_gb: float
    device: torch.device
    told: dict[str, Any] = field(default_factory=dict)  # what the user said, for the command that uses what was found
    on_progress: OnProgress | None = None


def run_pilot_search(race: PilotSearch) -> PilotResult:
    """Hold the lessons that are still to be held, and say who teaches best; `pilot.json` has it.

    A race that goes on has the checkpoints that it began with, though the run may have more by now. Raises UserError
    when the folder is another race's, when the budget is too small, and when the student can't learn without a teacher.
    """
    trajectory, settings = race.trajectory, race.settings
    if not len(trajectory) > 0:
        raise UserError(f"the run in {trajectory.source} has saved no checkpoint yet")
    batch = max(1, round(PILOT_BATCH_FRACTION * race.recipe.batch_size))
    steps = math.ceil(len(race.data.train) / batch)
    length, count = plan_pilot_runs(settings, race.recipe.epochs, steps)
    refuse_inside_run(race.out)
    mean, std = race.data.train.channel_statistics()
    build_network(  # an unknown student leaves no folder behind
        race.student, num_classes=len(race.data.classes), in_channels=len(mean), mean=mean, std=std
    )
    with storage.locked(race.out):
        described = _begin(race)
        race = replace(race, recipe=replace(race.recipe, batch_size=batch))
        epochs = [one["epoch"] for one in described["teachers"]]
        there = _there(race)
        short = sum(lesson_epochs == length for _, lesson_epochs in there)
        doubled = sum(lesson_epochs == 2 * length for _, lesson_epochs in there)
        fits = 2 * length <= race.recipe.epochs  # twice as long
        longer = (
            N_PROMOTED if fits and count - 2 * (N_PROMOTED + doubled) >= max(MIN_RUNS_BEFORE_PROMOTION, short) else 0
        )
        held: list[PilotOutcome] = []
        lost: dict[tuple[Candidate, int], None] = {}
        hold = partial(_hold, race, held=held, lost=lost, count=count, last=epochs[-1])
        log.info(
            "up to %s for %s, as a rule of %s with batches of %d; a whole distillation has %d, of %d",
            pluralize(count, "lesson"),
            race.student,
            pluralize(length, "epoch"),
            batch,
            described["recipe"]["epochs"],
            described["recipe"]["batch_size"],
        )
        if (more := short + 2 * doubled) > count:
            log.info(
                "lessons of %s in all are there, and count, though this budget buys fewer",
                pluralize(more * length, "epoch"),
            )
        alone = hold(NO_TEACHER, length)
        assert alone is not None
        left = count - 2 * (longer + doubled) - 1
        room = max(0, left + 1 - max(1, short)) if longer or not doubled else 0  # new ones may need new longer ones
        accuracies = _accuracies(race, epochs)
        skipped = [epoch for epoch in epochs if accuracies[epoch] < alone.accuracy]
        if skipped:
            log.info(
                "%s: %s %s, less accurate than the student after its lesson without a teacher (%.1f%%)",
                "left out" if len(skipped) < len(epochs) else "only the last is tried, for comparison, of",
                trajectory.unit,
                ", ".join(map(str, skipped)),
                100 * alone.accuracy,
            )
        able = [epoch for epoch in epochs if epoch not in skipped] or [epochs[-1]]  # one, to compare with
        many = min(
            round(CHECKPOINT_SHARE * left), left - len(settings.alphas)
        )  # there is room for the weights and for two
        singles = [Candidate((epoch,), settings.alphas[0]) for epoch in evenly_spaced(able, max(min(2, left), many))]
        tried = set()  # a lesson that was lost isn't held
        for candidate in chain(singles, next_candidates(held, able, settings.alphas, epochs[-1])):
            if candidate in tried:
                continue
            tried.add(candidate)
            if (candidate, length) not in there:
                if room == 0:
                    continue
                room -= 1
            hold(candidate, length)
        _hold_what_is_there(hold, there, length)
        if not any(one.candidate.epochs for one in held):
            raise Diverged(
                f"every lesson from {trajectory.source} diverged, so nothing says which checkpoint should teach; give "
                "a smaller --learning-rate, and another --out"
            )
        best = to_promote(held, skipped=skipped, last=epochs[-1])
        missing = sum((candidate, 2 * length) not in there for candidate in best)
        if fits and 2 * (missing + doubled) <= count - len(held) - len(lost):
            for candidate in best:
                hold(candidate, 2 * length)
        _hold_what_is_there(hold, there, 2 * length)
        found = summarize(
            held,
            student=race.student,
            student_epochs=race.recipe.epochs,
            tau=settings.tau,
            skipped=skipped,
            last=epochs[-1],
            unit=trajectory.unit,
            lost=list(lost),
        )
        known = {epoch for candidate, _ in chain(lost, _there(race)) for epoch in candidate.epochs}
        untried = tuple(epoch for epoch in able if epoch not in known)
        found = replace(found, untried=untried, command=_command(race, found, accuracies))
        storage.write_json(race.out / RESULT, {**described, "found": asdict(found), "provenance": provenance()})
        if race.on_progress is not None:
            race.on_progress(str(race.out), count, count)
    return found


def _hold(
    race: PilotSearch,
    candidate: Candidate,
    epochs: int,
    *,
    held: list[PilotOutcome],
    lost: dict[tuple[Candidate, int], None],
    count: int,
    last: int,
) -> PilotOutcome | None:
    """Hold a lesson, or find it held, and add it to the others; one that diverges is lost, but for the first."""
    unit = race.trajectory.unit
    if (candidate, epochs) in {*((one.candidate, one.epochs) for one in held), *lost}:
        return None
    folder = race.out / PILOT_RUNS / f"{candidate.folder}-{epochs}-epochs"
    kept = ", kept from before" if (folder / "result.json").exists() else ""
    recipe = race.recipe.lasting(epochs)
    first = race.out / PILOT_RUNS / f"{NO_TEACHER.folder}-{held[0].epochs if held else epochs}-epochs"
    precision = race.precision
    if precision == "auto":
        precision = RunDir(first).precision() or "auto"  # one for all, or they could not be compared
    run_spec = RunSpec(
        model=race.student,
        out=folder,
        recipe=recipe,
        device=race.device,
        save_every=epochs,
        seed=race.settings.seed,
        precision=precision,
        evaluate_test=False,
        verbose=False,
    )
    try:
        if (folder / DIVERGED).exists():
            raise Diverged("it diverged")
        if not candidate.epochs:
            run = run_training(run_spec, race.data, from_labels(), on_progress=race.on_progress)
        else:
            spec = DistillSpec(
                refs=tuple(
                    CheckpointRef(f"{race.trajectory.source}@{epoch}", race.trajectory[epoch])
                    for epoch in candidate.epochs
                ),
                kd=KDConfig(alpha=candidate.alpha, tau=race.settings.tau),
                logit_cache_gb=race.logit_cache_gb,
                allow_weak_teacher=True,
            )
            run = run_distillation(run_spec, spec, race.data, on_progress=race.on_progress)
    except Diverged as error:
        if not held:
            raise Diverged(
                f"{error}. It was the lesson without a teacher, which all others are compared with: a smaller learning "
                "rate needs another --out, too"
            ) from None
        log.warning("the lesson from %s is lost: %s", candidate.words(unit), error)
        storage.write_json(folder / DIVERGED, {"epochs": candidate.epochs, "alpha": candidate.alpha, "lesson": epochs})
        lost[candidate, epochs] = None
        return None
    labels_N = race.data.val.labels_N
    logits_NK = predict(run.last.network(race.device), race.data.val)
    loss_N, _ = fitted_losses(logits_NK, labels_N)
    information = label_entropy(labels_N) - loss_N.mean().item()
    outcome = PilotOutcome(candidate, epochs, information, measure(logits_NK, labels_N)["accuracy"], loss_N.numpy())
    held.append(outcome)
    if race.on_progress is not None:
        race.on_progress(str(race.out), min(len(held), count - 1), count)  # whole when it is written down
    log.info(
        "lesson %d, %s, %s%s: %.3f nats (%.1f%%); ahead: %s",
        len(held),
        candidate.words(unit),
        pluralize(epochs, "epoch"),
        kept,
        information,
        100 * outcome.accuracy,
        best_first(held, last)[0].candidate.words(unit),
    )
    return outcome


def _there(race: PilotSearch) -> dict[tuple[Candidate, int], None]:
    """The lessons that have been held already, those that were lost included, and their lengths."""
    found: dict[tuple[Candidate, int], None] = {}
    for result in sorted((race.out / PILOT_RUNS).glob("*/result.json")):
        run = open_trajectory(result.parent).run
        assert isinstance(run, OwnRunRecord)
        if isinstance(run, DistillRecord):
            candidate = Candidate(tuple(teacher.epoch for teacher in run.teachers), run.kd.alpha)
        else:
            candidate = NO_TEACHER
        found[candidate, run.recipe.epochs] = None
    for path in sorted((race.out / PILOT_RUNS).glob(f"*/{DIVERGED}")):
        lost = storage.read_json(path)
        try:
            found[Candidate(tuple(lost["epochs"]), lost["alpha"]), lost["lesson"]] = None
        except (KeyError, TypeError):
            raise UserError(f"{path} is damaged; delete {path.parent}, and its lesson is held again") from None
    return found


def _hold_what_is_there(hold: Callable[..., object], there: dict[tuple[Candidate, int], None], length: int) -> None:
    """Count lessons that another budget had room for, too."""
    for candidate, epochs in there:
        if epochs == length:
            hold(candidate, epochs)


def _command(race: PilotSearch, found: PilotResult, accuracies: dict[int, float]) -> str:
    """The command that trains the student as was found."""
    told = race.told
    if found.epochs:
        addresses = [f"{race.trajectory.source}@{epoch}" for epoch in found.epochs]
        words = ["distill", race.student, "--teachers", *addresses]
        _, clearly = chance_level(race.data.val.labels_N)
        weak = min(accuracies[epoch] for epoch in found.epochs) < clearly
        more = {"alpha": found.alpha, "tau": found.tau, "allow_weak_teacher": weak}
    else:
        record = race.data.record
        words = ["train", race.student]
        more = {
            "data": told.get("data") or record.spec,
            "logit_cache_gb": None,
            "select_on": None if record.select_on == "val" else record.select_on,
            **{name: getattr(record, name) for name in ("train_images", "image_size", "flip")},
        }
    precision = None if race.precision == "auto" else race.precision
    return format_command(words, {**told, **more, "precision": precision})


def _accuracies(race: PilotSearch, epochs: Sequence[int]) -> dict[int, float]:
    """Each checkpoint's accuracy on the selection images, as its run noted it, or as measured now."""
    trajectory, data = race.trajectory, race.data
    noted: dict[int, float | None] = {row.epoch: row.val_accuracy for row in trajectory.rows()}
    if isinstance(trajectory.run, ExternalRecord):
        noted = {epoch: checkpoint.accuracy for epoch, checkpoint in trajectory.run.checkpoints.items()}
    if any(getattr(trajectory.run.data, name) != getattr(data.record, name) for name in ("sha256", "select_on")):
        noted = {}
    found = {}
    for epoch in epochs:
        accuracy = noted.get(epoch)
        if accuracy is None:
            logits_NK = predict(trajectory[epoch].network(race.device), data.val)
            accuracy = measure(logits_NK, data.val.labels_N)["accuracy"]
        found[epoch] = accuracy
    return found


def _begin(race: PilotSearch) -> dict[str, Any]:
    """What all lessons in the folder have in common; raises UserError where another race's are, or something else.

    The budget is no part of it, so that with a larger one a race goes on; nor are checkpoints that came later.
    """
    path = race.out / "pilot_search.json"
    storage.remove_leftovers(race.out)
    described = json.loads(
        json.dumps(
            {
                "student": race.student,
                "teachers": [{"epoch": epoch, "sha256": one.sha256} for epoch, one in race.trajectory.items()],
                "data": race.data.record.identity,
                "recipe": asdict(race.recipe),
                "tau": race.settings.tau,
                "alphas": race.settings.alphas,
                "seed": race.settings.seed,
                "precision": race.precision,
            }
        )
    )
    begun = any((race.out / PILOT_RUNS).glob("*/metrics.jsonl"))
    if not path.exists():
        strangers = [entry.name for entry in race.out.iterdir() if not entry.name.startswith(".lock")]
        shown = ", ".join(sorted(strangers)[:3])
        if strangers:
            raise UserError(f"{race.out} holds something else ({shown}); choose another --out")
    there = storage.read_json(path) if path.exists() and begun else described
    if isinstance(there, dict):
        there.setdefault("precision", race.precision)  # which earlier versions didn't note
    sound = isinstance(there, dict) and there.keys() == described.keys() and isinstance(there["teachers"], list)
    if not sound:
        raise UserError(f"{path} is damaged; remove {race.out}, and the lessons are held anew")
    if all(one in described["teachers"] for one in there["teachers"]) and there["teachers"]:
        if later := len(described["teachers"]) - len(there["teachers"]):
            log.warning(
                "%s that came since the race in %s began %s no part of it; another --out takes all",
                pluralize(later, "checkpoint"),
                race.out,
                "is" if later == 1 else "are",
            )
        described["teachers"] = there["teachers"]
    unlike = config_differences(described, there)
    if unlike:
        raise UserError(f"{race.out} holds another race ({'; '.join(unlike)[:300]}); choose another --out")
    storage.write_json(path, described)
    return described
