"""Which teacher suits this student (SPEC §6): short lessons, compared by what their students then know of the labels.

A lesson is a distillation with 15 % of the epochs (at least a hundred steps) to its end: its learning rate falls as the
whole one's does, since the first epochs of whole distillations mislead: at high learning rates students like unripe
teachers best, and labels alone better than ripe ones. What counts of its student is I(Y;F) by the bound H(Y) − CE, in
nats, at the temperature that suits it: of a short lesson's few right answers accuracy takes only the number. How well
that puts teachers in the order in which whole distillations do: docs/selection.md.

First comes the student without a teacher, then checkpoints from all over the trajectory, then what lies near the best:
other weights of the labels, the best two together, its neighbours. With a larger budget the best two have lessons of
twice the length in the end. A lesson is a run's folder, so a race that was stopped continues, and one with a larger
budget uses what is there.

Letters in names: N images, R bootstrap resamples, L lessons.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import files
from .data import Data
from .distillation import distil, prepare
from .errors import Diverged, counted, require
from .information import fitted_losses, label_entropy
from .loop import measure, predict
from .losses import Supervised
from .runs import carry_out
from .selection import resamples
from .settings import KDSettings, PrecisionChoice, ProbeSettings, Progress, Recipe, TeachingSettings, differences
from .trajectory import Address, RunFolder, Trajectory, fresh_network, open_trajectory, provenance, refuse_inside_run
from .tuning import command_of

log = logging.getLogger("checkpointkd")

RESULT = "probed.json"
LESSONS = "lessons"
LESSON = 0.15  # of the student's epochs: from a tenth the order of teachers is another (docs/selection.md)
BATCH = 0.5  # of the recipe's batch: twice the steps in the same epochs
STEPS = 100  # in less than that a student learns too little to tell teachers apart
LEAST = 3  # lessons: without a teacher, of the last checkpoint, of another
WHOLE = 8  # lessons that a race has before it spends what is left on longer ones
LONGER = 2  # so many have a lesson of twice the length, in the end
DOUBT = 0.2  # of what teaching gains: leads over the last checkpoint differ by half of it from seed to seed
CHECKPOINTS = 0.7  # of the lessons that are left after the one without a teacher go to checkpoints alone, at most


@dataclass(frozen=True, order=True)
class Candidate:
    """Checkpoints that may teach together, by epoch; none: no teacher. And the weight of the labels."""

    epochs: tuple[int, ...]
    alpha: float

    def words(self, unit: str = "epoch") -> str:
        """As people are told of it.

        >>> Candidate((15, 30), 0.5).words(), Candidate((), 1.0).words()
        ('epochs 15 + 30, alpha 0.5', 'no teacher')
        """
        if not self.epochs:
            return "no teacher"
        several = "s" if len(self.epochs) > 1 else ""
        return f"{unit}{several} {' + '.join(map(str, self.epochs))}, alpha {self.alpha!r}"

    @property
    def folder(self) -> str:
        return f"{'+'.join(map(str, self.epochs))}-alpha-{self.alpha!r}" if self.epochs else "none"


ALONE = Candidate((), 1.0)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a candidate's student knows after a lesson; `loss_N` is each selection image's cross-entropy."""

    candidate: Candidate
    epochs: int
    information: float  # nats
    accuracy: float
    loss_N: np.ndarray


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


@dataclass(frozen=True)
class Probed:
    """Which teacher was found to be best for a student: `epochs` of the checkpoints that teach together, () for none.

    `lessons` is what was tried, in that order, each with its student's `information` in nats, whether it was `chosen`
    and, for those of the greatest length, the share of resamples of the images in which it is best (`probability`, else
    None). `behind` says
    by how many nats the student without a teacher, that of the last checkpoint and the runner-up were behind after
    lessons of one length: `mean`, `low` and `high`, a 95 % interval over images. There is one lesson of each, so that
    another seed's may differ by more, and the best is named on the same images, which flatters it. `skipped` are
    checkpoints less accurate than the student after its lesson alone. `command` uses what was found.
    """

    student: str
    epochs: tuple[int, ...]
    alpha: float
    tau: float
    reason: str
    lessons: list[dict[str, Any]]
    behind: dict[str, dict[str, Any]]
    skipped: list[int]
    spent_epochs: int
    student_epochs: int
    unit: str = "epoch"
    rule: str = "auto"
    command: str = ""
    warnings: tuple[str, ...] = ()


def lessons_within(settings: ProbeSettings, student_epochs: int, steps_an_epoch: int) -> tuple[int, int]:
    """How long a lesson is, in epochs, and how many of them the budget buys; raises UserError for too few.

    In an epoch of a lesson there are so many steps.

    >>> lessons_within(ProbeSettings(), 200, 704)
    (30, 6)
    """
    length = min(student_epochs, max(1, round(LESSON * student_epochs), math.ceil(STEPS / steps_an_epoch)))
    budget = settings.epochs(student_epochs)
    count = budget // length
    why = f" (a lesson takes {STEPS} steps or more)" if length > max(1, round(LESSON * student_epochs)) else ""
    require(
        count >= LEAST,
        f"a budget of {counted(budget, 'epoch')} buys {counted(count, 'lesson')} of {counted(length, 'epoch')}{why}, "
        f"and at least {LEAST} are needed: without a teacher, of the last checkpoint, and of another or with another "
        f"alpha; give --budget {LEAST * length} or more, in epochs"
        f"{', or a share of one whole distillation, as in 1.0' * settings.in_epochs}",
    )
    return length, count


def probe(race: Race) -> Probed:
    """Hold the lessons that are still to be held, and say who teaches best; `probed.json` has it.

    A race that goes on has the checkpoints that it began with, though the run may have more by now. Raises UserError
    when the folder is another race's, when the budget is too small, and when the student can't learn without a teacher.
    """
    trajectory, settings = race.trajectory, race.settings
    require(len(trajectory) > 0, f"the run in {trajectory.source} has saved no checkpoint yet")
    race = replace(race, recipe=replace(race.recipe, batch_size=max(1, round(BATCH * race.recipe.batch_size))))
    steps = math.ceil(len(race.data.train) / race.recipe.batch_size)
    length, count = lessons_within(settings, race.recipe.epochs, steps)
    refuse_inside_run(race.out)
    mean, std = race.data.train.channel_statistics()
    known = {"model": race.student, "classes": race.data.classes, "seed": settings.seed, "mean": mean, "std": std}
    fresh_network(known)  # an unknown student leaves no race behind
    with files.locked(race.out):
        described = _begin(race)
        epochs = [one["epoch"] for one in described["teachers"]]
        there = _there(race)
        short = sum(lesson_epochs == length for _, lesson_epochs in there)
        doubled = sum(lesson_epochs == 2 * length for _, lesson_epochs in there)
        fits = 2 * length <= race.recipe.epochs  # twice as long
        longer = LONGER if fits and count - 2 * (LONGER + doubled) >= max(WHOLE, short) else 0
        held: list[Outcome] = []
        log.info("up to %s for %s; %s each", counted(count, "lesson"), race.student, counted(length, "epoch"))
        alone = _hold(race, ALONE, length, held, count)
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
        for candidate in chain(singles, near(held, able, settings.alphas)):
            if candidate in tried:
                continue
            tried.add(candidate)
            if (candidate, length) not in there:
                if room == 0:
                    continue
                room -= 1
            _hold(race, candidate, length, held, count)
        _hold_what_is_there(race, there, length, held, count)
        best = [outcome.candidate for outcome in _best(held)[:LONGER]]
        missing = sum((candidate, 2 * length) not in there for candidate in best)
        if fits and 2 * (missing + doubled) <= count - len(held):
            for candidate in best:
                _hold(race, candidate, 2 * length, held, count)
        _hold_what_is_there(race, there, 2 * length, held, count)
        found = _found(race, held, skipped, epochs)
        found = replace(found, command=_command(race, found))
        files.write_json(race.out / RESULT, {**described, "found": asdict(found), "provenance": provenance()})
        if race.progress is not None:
            race.progress(str(race.out), count, count)
    return found


def spread(epochs: Sequence[int], count: int) -> list[int]:
    """So many of the epochs, all over the training: the last, the middle one, and what halves what is between them, the
    later first, so that a greater number has those of a smaller one.

    >>> spread([3, 6, 9, 12, 15, 18, 21, 24], 4), spread([3, 6], 5), spread([3, 6], 1)
    ([24, 12, 18, 6], [6, 3], [6])
    """
    found: dict[int, None] = {}
    parts = 1
    while len(found) < min(count, len(epochs)):
        for number in range(parts, 0, -1):
            found[epochs[max(1, round(number * len(epochs) / parts)) - 1]] = None
        parts *= 2
    return list(found)[:count]


def near(held: Sequence[Outcome], able: Sequence[int], alphas: Sequence[float]) -> Iterator[Candidate]:
    """What to try when the checkpoints are known: with the best of them the other weights of the labels; with the
    weight that is best then, the two best together, and its neighbours, as long as there are any."""
    single = [one for one in _best(held) if one.candidate.epochs]
    if not single:  # all were lost
        return
    best = single[0].candidate
    for alpha in alphas[1:]:
        yield replace(best, alpha=alpha)
    alpha = next(one.candidate for one in _best(held) if one.candidate.epochs == best.epochs).alpha
    if len(single) > 1:
        yield Candidate(tuple(sorted(best.epochs + single[1].candidate.epochs)), alpha)
    tried = {one.candidate.epochs for one in held}
    where = able.index(best.epochs[0])
    for neighbour in sorted(able, key=lambda epoch: abs(able.index(epoch) - where)):
        if (neighbour,) not in tried:
            yield Candidate((neighbour,), alpha)


def _hold(race: Race, candidate: Candidate, epochs: int, held: list[Outcome], count: int) -> Outcome | None:
    """Hold a lesson, or find it held, and add it to the others; one that diverges with a teacher is lost."""
    unit = race.trajectory.unit
    folder = race.out / LESSONS / f"{candidate.folder}-{epochs}-epochs"
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
        try:
            run = distil(race.student, taught, method="kd", settings=settings, table_limit=race.table_limit, **common)
        except Diverged as error:
            log.warning("the lesson from %s is lost: %s", candidate.words(unit), error)
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
        "lesson %d, %s, %s: %.3f nats (%.1f %%); ahead: %s",
        len(held), candidate.words(unit), counted(epochs, "epoch"), information, 100 * outcome.accuracy,
        _best(held)[0].candidate.words(unit),
    )  # fmt: skip
    return outcome


def _there(race: Race) -> dict[tuple[Candidate, int], None]:
    """The lessons that have been held already, and their lengths."""
    found: dict[tuple[Candidate, int], None] = {}
    for result in sorted((race.out / LESSONS).glob("*/result.json")):
        run = open_trajectory(result.parent).run
        epochs = tuple(one["epoch"] for one in run.get("teachers", []))
        found[Candidate(epochs, run["kd"]["alpha"]) if epochs else ALONE, run["recipe"]["epochs"]] = None
    return found


def _hold_what_is_there(
    race: Race, there: dict[tuple[Candidate, int], None], length: int, held: list[Outcome], count: int
) -> None:
    """Count lessons that another budget had room for, too."""
    known = {(one.candidate, one.epochs) for one in held}
    for candidate, epochs in there:
        if epochs == length and (candidate, epochs) not in known:
            _hold(race, candidate, epochs, held, count)


def _best(held: Sequence[Outcome]) -> list[Outcome]:
    """The lessons of the greatest length that two or more have, the best first, then the others.

    The last checkpoint alone comes before other teachers that are ahead of it by less than chance may be (`DOUBT`):
    short lessons favour softer teachers, which are earlier ones and several together.
    """
    lengths = Counter(one.epochs for one in held)
    decides = max((length for length, several in lengths.items() if several > 1), default=max(lengths))
    ranked = sorted(held, key=lambda one: (one.epochs != decides, -one.information))
    taught = [one for one in ranked if one.epochs == decides and one.candidate.epochs]
    last = max((max(one.candidate.epochs) for one in held if one.candidate.epochs), default=None)
    plain = next((one for one in taught if one.candidate.epochs == (last,)), None)
    if plain is not None and 0 < taught[0].information - plain.information < DOUBT * _gain(held):
        ranked.remove(plain)
        ranked.insert(ranked.index(taught[0]), plain)
    return ranked


def _gain(held: Sequence[Outcome]) -> float:
    """By how many nats the best student is ahead of the one without a teacher, after lessons as long as its."""
    alone = next(one for one in held if one.candidate == ALONE)
    return max(one.information for one in held if one.epochs == alone.epochs) - alone.information


def _found(race: Race, held: list[Outcome], skipped: list[int], epochs: Sequence[int]) -> Probed:
    """What the lessons amount to; `epochs` are the race's."""
    unit, last = race.trajectory.unit, max(epochs)
    ranked = _best(held)
    best = ranked[0]
    reason = f"after lessons of {counted(best.epochs, 'epoch')} its student knew more of the labels than the others'"
    able = [one for one in ranked if one.candidate.epochs and not {*one.candidate.epochs} & {*skipped}]
    if best.candidate == ALONE and able and able[0].epochs == best.epochs and _behind(best, able[0], unit)["low"] <= 0:
        reason = (
            f"of those with a teacher its student knew the most of the labels after lessons of "
            f"{counted(best.epochs, 'epoch')}; without one it did not surely know more, which short lessons favour"
        )
        best = able[0]
    ahead = max((one for one in able if one.epochs == best.epochs), key=lambda one: one.information, default=best)
    doubted = ahead.candidate.words(unit) if best.candidate.epochs and ahead.information > best.information else ""
    if doubted:
        reason = (
            f"after lessons of {counted(best.epochs, 'epoch')} the student of {doubted} was ahead by less "
            f"than {100 * DOUBT:.0f} % of what teaching gains, which may be chance; the last checkpoint's knew"
        )
    longest = [one for one in held if one.epochs == best.epochs]
    wins_R = (resamples(len(best.loss_N)) @ np.stack([one.loss_N for one in longest]).T).argmin(1)
    share = {one.candidate: float((wins_R == number).mean()) for number, one in enumerate(longest)}
    mine = {one.epochs: one for one in held if one.candidate == best.candidate}
    others = [one for one in ranked if one.candidate != best.candidate and one.epochs in mine]
    rivals = {
        "no teacher": [one for one in others if one.candidate == ALONE],
        "the last checkpoint": [one for one in others if one.candidate.epochs == (last,) != best.candidate.epochs],
        "the runner-up": others,
    }
    behind = {name: _behind(mine[several[0].epochs], several[0], unit) for name, several in rivals.items() if several}
    warnings = [
        f"{best.candidate.words(unit)} is not surely better than {one['who']}: the gap of {one['mean']:.3f} nats "
        "is within the noise of the images"
        for name, one in behind.items()
        if one["low"] <= 0 and name != "the last checkpoint" and one["who"] != doubted
    ]
    return Probed(
        student=race.student,
        epochs=best.candidate.epochs,
        alpha=best.candidate.alpha,
        tau=race.settings.tau,
        reason=f"{reason}: {best.information:.3f} nats",
        lessons=[
            {
                "epochs": list(one.candidate.epochs),
                "alpha": one.candidate.alpha,
                "lesson_epochs": one.epochs,
                "information": one.information,
                "accuracy": one.accuracy,
                "chosen": one.candidate == best.candidate,
                "probability": share[one.candidate] if one.epochs == best.epochs else None,
            }
            for one in held
        ],
        behind=behind,
        skipped=skipped,
        spent_epochs=sum(one.epochs for one in held),
        student_epochs=race.recipe.epochs,
        unit=unit,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _command(race: Race, found: Probed) -> str:
    """The command that trains the student as was found."""
    told = race.told
    if found.epochs:
        addresses = [f"{race.trajectory.source}@{epoch}" for epoch in found.epochs]
        words = ["distill", race.student, "--teachers", *addresses]
        weak = bool({*found.epochs} & {*found.skipped})  # which may mean: right no more often than by guessing
        more = {"alpha": found.alpha, "tau": found.tau, "weak_teacher": weak}
    else:
        identity = race.data.identity
        source = f":{identity['source']}" if identity["source"] else ""
        words = ["train", race.student]
        more = {
            "data": told.get("data") or f"{identity['data']}{source}",
            "protocol": None if identity["protocol"] == "holdout" else identity["protocol"],
            **{name: identity[name] for name in ("train_images", "image_size", "flip")},
        }
    precision = None if race.precision == "auto" else race.precision
    return command_of(words, {**told, **more, "precision": precision})


def _behind(best: Outcome, other: Outcome, unit: str) -> dict[str, Any]:
    """By how many nats another lesson's student is behind, with a 95 % interval over the images."""
    gap_N = other.loss_N - best.loss_N
    mean, error = float(gap_N.mean()), float(gap_N.std() / len(gap_N) ** 0.5)
    return {
        "who": other.candidate.words(unit),
        "lesson_epochs": other.epochs,
        "mean": mean,
        "low": mean - 1.96 * error,
        "high": mean + 1.96 * error,
    }


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
