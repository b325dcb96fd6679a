"""Which teacher suits this student (SPEC §6): short lessons, compared by what their students then know of the labels.

A lesson is a distillation with 15 % of the epochs (at least a hundred steps) to its end: its learning rate falls as the
whole one's does, since the first epochs of whole distillations mislead: at high learning rates students like unripe
teachers best, and labels alone better than ripe ones. What counts of its student is I(Y;F) by the bound H(Y) − CE, in
nats, at the temperature that suits it: of a short lesson's few right answers accuracy takes only the number. How well
that puts teachers in the order in which whole distillations do: docs/selection.md.

First comes the student without a teacher, then checkpoints from all over the trajectory, then what lies near the best:
other weights of the labels, the best two together, its neighbours. With a larger budget the best two have lessons of
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

from . import files
from .data import Data
from .distillation import distil, prepare
from .errors import Diverged, UserError, counted, require
from .information import fitted_losses, label_entropy
from .lessons import (
    ALONE,
    BATCH,
    CHECKPOINTS,
    LONGER,
    WHOLE,
    Candidate,
    Outcome,
    Probed,
    best_first,
    finalists,
    lessons_within,
    near,
    spread,
    verdict,
)
from .loop import measure, predict
from .losses import Supervised
from .runs import carry_out
from .settings import KDSettings, PrecisionChoice, ProbeSettings, Progress, Recipe, TeachingSettings, differences
from .teacher import above_chance
from .trajectory import Address, RunFolder, Trajectory, fresh_network, open_trajectory, provenance, refuse_inside_run
from .tuning import command_of

log = logging.getLogger("checkpointkd")

RESULT = "probed.json"
LESSONS = "lessons"
LOST = "lost.json"  # in the folder of a lesson that diverged


@dataclass(frozen=True, kw_only=True, eq=False)
class Race:
    """What all lessons have in common, and where they are kept."""

    student: str
    trajectory: Trajectory
    data: Data
    recipe: Recipe
    settings: ProbeSettings
    out: Path
    precision: PrecisionChoice
    table_limit: float
    device: torch.device
    told: dict[str, Any] = field(default_factory=dict)  # what the user said, for the command that uses what was found
    progress: Progress | None = None


def probe(race: Race) -> Probed:
    """Hold the lessons that are still to be held, and say who teaches best; `probed.json` has it.

    A race that goes on has the checkpoints that it began with, though the run may have more by now. Raises UserError
    when the folder is another race's, when the budget is too small, and when the student can't learn without a teacher.
    """
    trajectory, settings = race.trajectory, race.settings
    require(len(trajectory) > 0, f"the run in {trajectory.source} has saved no checkpoint yet")
    batch = max(1, round(BATCH * race.recipe.batch_size))
    steps = math.ceil(len(race.data.train) / batch)
    length, count = lessons_within(settings, race.recipe.epochs, steps)
    refuse_inside_run(race.out)
    mean, std = race.data.train.channel_statistics()
    known = {"model": race.student, "classes": race.data.classes, "seed": settings.seed, "mean": mean, "std": std}
    fresh_network(known)  # an unknown student leaves no race behind
    with files.locked(race.out):
        described = _begin(race)
        race = replace(race, recipe=replace(race.recipe, batch_size=batch))
        epochs = [one["epoch"] for one in described["teachers"]]
        there = _there(race)
        short = sum(lesson_epochs == length for _, lesson_epochs in there)
        doubled = sum(lesson_epochs == 2 * length for _, lesson_epochs in there)
        fits = 2 * length <= race.recipe.epochs  # twice as long
        longer = LONGER if fits and count - 2 * (LONGER + doubled) >= max(WHOLE, short) else 0
        held: list[Outcome] = []
        lost: dict[tuple[Candidate, int], None] = {}
        hold = partial(_hold, race, held=held, lost=lost, count=count, last=epochs[-1])
        log.info("up to %s for %s, as a rule of %s with batches of %d; a whole distillation has %d, of %d",
                 counted(count, "lesson"), race.student, counted(length, "epoch"), batch,
                 described["recipe"]["epochs"], described["recipe"]["batch_size"])  # fmt: skip
        if (more := short + 2 * doubled) > count:
            log.info("lessons of %s in all are there, and count, though this budget buys fewer",
                     counted(more * length, "epoch"))  # fmt: skip
        alone = hold(ALONE, length)
        assert alone is not None
        left = count - 2 * (longer + doubled) - 1
        room = max(0, left + 1 - max(1, short)) if longer or not doubled else 0  # new ones may need new longer ones
        accuracies = _accuracies(race, epochs)
        skipped = [epoch for epoch in epochs if accuracies[epoch] < alone.accuracy]
        if skipped:
            log.info(
                "%s: %s %s, less accurate than the student after its lesson without a teacher (%.1f %%)",
                "left out" if len(skipped) < len(epochs) else "only the last is tried, for comparison, of",
                trajectory.unit, ", ".join(map(str, skipped)), 100 * alone.accuracy,
            )  # fmt: skip
        able = [epoch for epoch in epochs if epoch not in skipped] or [epochs[-1]]  # one, to compare with
        many = min(round(CHECKPOINTS * left), left - len(settings.alphas))  # there is room for the weights and for two
        singles = [Candidate((epoch,), settings.alphas[0]) for epoch in spread(able, max(min(2, left), many))]
        tried = set()  # a lesson that was lost isn't held
        for candidate in chain(singles, near(held, able, settings.alphas, epochs[-1])):
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
        best = finalists(held, skipped=skipped, last=epochs[-1])
        missing = sum((candidate, 2 * length) not in there for candidate in best)
        if fits and 2 * (missing + doubled) <= count - len(held) - len(lost):
            for candidate in best:
                hold(candidate, 2 * length)
        _hold_what_is_there(hold, there, 2 * length)
        found = verdict(
            held, student=race.student, student_epochs=race.recipe.epochs, tau=settings.tau, skipped=skipped,
            last=epochs[-1], unit=trajectory.unit, lost=list(lost),
        )  # fmt: skip
        known = {epoch for candidate, _ in chain(lost, _there(race)) for epoch in candidate.epochs}
        untried = tuple(epoch for epoch in able if epoch not in known)
        found = replace(found, untried=untried, command=_command(race, found, accuracies))
        files.write_json(race.out / RESULT, {**described, "found": asdict(found), "provenance": provenance()})
        if race.progress is not None:
            race.progress(str(race.out), count, count)
    return found


def _hold(
    race: Race,
    candidate: Candidate,
    epochs: int,
    *,
    held: list[Outcome],
    lost: dict[tuple[Candidate, int], None],
    count: int,
    last: int,
) -> Outcome | None:
    """Hold a lesson, or find it held, and add it to the others; one that diverges is lost, but for the first."""
    unit = race.trajectory.unit
    if (candidate, epochs) in {*((one.candidate, one.epochs) for one in held), *lost}:
        return None
    folder = race.out / LESSONS / f"{candidate.folder}-{epochs}-epochs"
    kept = ", kept from before" if (folder / "result.json").exists() else ""
    recipe = race.recipe.lasting(epochs)
    first = race.out / LESSONS / f"{ALONE.folder}-{held[0].epochs if held else epochs}-epochs"
    precision = race.precision
    if precision == "auto":
        precision = RunFolder(first).precision() or "auto"  # one for all, or they could not be compared
    common: dict[str, Any] = {
        "out": folder,
        "recipe": recipe,
        "save_every": epochs,
        "seed": race.settings.seed,
        "precision": precision,
        "compile": False,
        "touch_test": False,
        "announce": False,
        "progress": race.progress,
    }
    try:
        if (folder / LOST).exists():
            raise Diverged("it diverged")
        if not candidate.epochs:
            run = carry_out(
                race.student, kind="train", data=race.data, device=race.device, objective=Supervised(), **common
            )
        else:
            addresses = [Address(f"{race.trajectory.source}@{e}", race.trajectory[e]) for e in candidate.epochs]
            taught = prepare(
                addresses, race.data, teaching=TeachingSettings(), average=KDSettings.average, weak_teacher=True,
                device=race.device, announce=False,
            )  # fmt: skip
            settings = KDSettings(alpha=candidate.alpha, tau=race.settings.tau)
            run = distil(race.student, taught, method="kd", settings=settings, table_limit=race.table_limit, **common)
    except Diverged as error:
        if not held:
            raise Diverged(
                f"{error}. It was the lesson without a teacher, which all others are compared with: a smaller learning "
                "rate needs another --out, too"
            ) from None
        log.warning("the lesson from %s is lost: %s", candidate.words(unit), error)
        files.write_json(folder / LOST, {"epochs": candidate.epochs, "alpha": candidate.alpha, "lesson": epochs})
        lost[candidate, epochs] = None
        return None
    labels_N = race.data.selection.labels_N
    logits_NK = predict(run.full.network(race.device), race.data.selection)
    loss_N, _ = fitted_losses(logits_NK, labels_N)
    information = label_entropy(labels_N) - loss_N.mean().item()
    outcome = Outcome(candidate, epochs, information, measure(logits_NK, labels_N)["accuracy"], loss_N.numpy())
    held.append(outcome)
    if race.progress is not None:
        race.progress(str(race.out), min(len(held), count - 1), count)  # whole when it is written down
    log.info(
        "lesson %d, %s, %s%s: %.3f nats (%.1f %%); ahead: %s",
        len(held), candidate.words(unit), counted(epochs, "epoch"), kept, information, 100 * outcome.accuracy,
        best_first(held, last)[0].candidate.words(unit),
    )  # fmt: skip
    return outcome


def _there(race: Race) -> dict[tuple[Candidate, int], None]:
    """The lessons that have been held already, those that were lost included, and their lengths."""
    found: dict[tuple[Candidate, int], None] = {}
    for result in sorted((race.out / LESSONS).glob("*/result.json")):
        run = open_trajectory(result.parent).run
        epochs = tuple(one["epoch"] for one in run.get("teachers", []))
        found[Candidate(epochs, run["kd"]["alpha"]) if epochs else ALONE, run["recipe"]["epochs"]] = None
    for path in sorted((race.out / LESSONS).glob(f"*/{LOST}")):
        lost = files.read_json(path)
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


def _command(race: Race, found: Probed, accuracies: dict[int, float]) -> str:
    """The command that trains the student as was found."""
    told = race.told
    if found.epochs:
        addresses = [f"{race.trajectory.source}@{epoch}" for epoch in found.epochs]
        words = ["distill", race.student, "--teachers", *addresses]
        _, clearly = above_chance(race.data.selection.labels_N)
        weak = min(accuracies[epoch] for epoch in found.epochs) < clearly
        more = {"alpha": found.alpha, "tau": found.tau, "weak_teacher": weak}
    else:
        identity = race.data.identity
        source = f":{identity['source']}" if identity["source"] else ""
        words = ["train", race.student]
        more = {
            "data": told.get("data") or f"{identity['data']}{source}",
            "table_limit": None,
            "protocol": None if identity["protocol"] == "holdout" else identity["protocol"],
            **{name: identity[name] for name in ("train_images", "image_size", "flip")},
        }
    precision = None if race.precision == "auto" else race.precision
    return command_of(words, {**told, **more, "precision": precision})


def _accuracies(race: Race, epochs: Sequence[int]) -> dict[int, float]:
    """Each checkpoint's accuracy on the selection images, as its run noted it, or as measured now."""
    trajectory, data = race.trajectory, race.data
    noted: dict[int, float | None] = {row["epoch"]: row.get("selection_accuracy") for row in trajectory.rows()}
    if trajectory.foreign:
        noted = {int(epoch): note.get("accuracy") for epoch, note in trajectory.run["checkpoints"].items()}
    if any(trajectory.run["data"].get(name) != data.identity[name] for name in ("sha256", "protocol")):
        noted = {}
    found = {}
    for epoch in epochs:
        accuracy = noted.get(epoch)
        if accuracy is None:
            logits_NK = predict(trajectory[epoch].network(race.device), data.selection)
            accuracy = measure(logits_NK, data.selection.labels_N)["accuracy"]
        found[epoch] = accuracy
    return found


def _begin(race: Race) -> dict[str, Any]:
    """What all lessons in the folder have in common; raises UserError where another race's are, or something else.

    The budget is no part of it, so that with a larger one a race goes on; nor are checkpoints that came later.
    """
    path = race.out / "race.json"
    files.remove_leftovers(race.out)
    described = json.loads(
        json.dumps(
            {
                "student": race.student,
                "teachers": [{"epoch": epoch, "sha256": one.sha256} for epoch, one in race.trajectory.items()],
                "data": {name: value for name, value in race.data.identity.items() if name != "source"},
                "recipe": asdict(race.recipe),
                "tau": race.settings.tau,
                "alphas": race.settings.alphas,
                "seed": race.settings.seed,
                "precision": race.precision,
            }
        )
    )
    begun = any((race.out / LESSONS).glob("*/metrics.jsonl"))
    if not path.exists():
        strangers = [entry.name for entry in race.out.iterdir() if not entry.name.startswith(".lock")]
        shown = ", ".join(sorted(strangers)[:3])
        require(not strangers, f"{race.out} holds something else ({shown}); choose another --out")
    there = files.read_json(path) if path.exists() and begun else described
    if isinstance(there, dict):
        there.setdefault("precision", race.precision)  # which earlier versions didn't note
    sound = isinstance(there, dict) and there.keys() == described.keys() and isinstance(there["teachers"], list)
    require(sound, f"{path} is damaged; remove {race.out}, and the lessons are held anew")
    if all(one in described["teachers"] for one in there["teachers"]) and there["teachers"]:
        if later := len(described["teachers"]) - len(there["teachers"]):
            log.warning("%s that came since the race in %s began %s no part of it; another --out takes all",
                        counted(later, "checkpoint"), race.out, "is" if later == 1 else "are")  # fmt: skip
        described["teachers"] = there["teachers"]
    unlike = differences(described, there)
    require(not unlike, f"{race.out} holds another race ({'; '.join(unlike)[:300]}); choose another --out")
    files.write_json(path, described)
    return described
