"""Results as rows, one for each student, checkpoint or measurement, and what several studies read from them.

Everything that a study shows is made from its rows, which lie in its folder as JSON lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from ..analysis.statistics import AVERAGE, ROUNDING, Claim, claim, claim_of
from ..config import CORRELATION_KINDS
from ..errors import pluralize
from ..records import DistillRecord
from ..reports.charts import Figure, Table
from .context import Context
from .paper_numbers import BY_DATASET
from .presets import Pair, Preset
from .tasks import (
    AdvisedStudent,
    CorrelateTask,
    DistillTask,
    EvaluateTask,
    Item,
    ScoreTask,
    TrainTask,
)

Row = dict[str, Any]

ARMS = {
    "scratch": "no teacher",
    "uniform": "u, the uniform teacher",
    "last": "T full",
    "midpoint": "T half-way",
    "best": "T*",
    "EN1": "EN₁ = T₁ full + T₂ full",
    "EN2": "EN₂ = T₁ half-way + T₂ full",
    "EN3": "EN₃ = T₁ half-way + T₁ full",
}
ONE_RUN = "rests on one run of each teacher: another run's students may differ by more than seeds do"
OWN = (
    "rests on these very runs, and on errors over images as if both were measured on different ones, which makes the "
    "interval too wide; other runs may differ by more"
)


@dataclass(frozen=True)
class Results:
    """What a study shows."""

    tables: list[Table]
    figures: list[Figure] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def rows_of(context: Context, parts: Sequence[Item], done: Callable[[Any], bool]) -> list[Row]:
    """The rows of all parts that are done."""
    found = []
    for part in parts:
        if done(part.work):
            found += [{"pair": part.pair.name, "arm": part.arm, **row} for row in _rows(context, part)]
    return found


def _rows(context: Context, part: Item) -> list[Row]:
    work = context.advised(part.work) if isinstance(part.work, AdvisedStudent) else part.work
    if isinstance(work, TrainTask | DistillTask):
        return [_network(context, work)]
    if isinstance(work, ScoreTask):
        return _points(context, part, work)
    if isinstance(work, EvaluateTask):
        found = context.found(work)
        return [
            {
                "kind": "measured",
                "members": [[one.run.model, one.run.seed, context.epoch(one)] for one in work.members],
                "accuracies": [100 * member["accuracy"] for member in found["members"]],
                "accuracy": 100 * found["ensemble"]["accuracy"],
                "accuracy_se": 100 * found["ensemble"]["accuracy_se"],
                "disagreement": None if len(work.members) == 1 else 100 * found["ensemble"]["disagreement"],
                "calibration_error": 100 * found["ensemble"]["calibration_error"],
                "images": found["images"],
            }
        ]
    if isinstance(work, CorrelateTask):
        return [_correlation(context.found(work))]
    return []


def _correlation(found: dict[str, Any]) -> Row:
    """What `correlate` found, its maps in four digits: a hundred classes have ten thousand pairs."""

    def rounded(map_KK: list[list[float]]) -> list[list[float]]:
        return [[round(cell, 4) for cell in line] for line in map_KK]

    kinds = {
        kind: {
            **found[kind],
            "similarity": [*map(rounded, found[kind]["similarity"])],
            "difference": rounded(found[kind]["difference"]),
        }
        for kind in CORRELATION_KINDS
    }
    return {"kind": "correlation", **found, **kinds}


def _network(context: Context, work: TrainTask | DistillTask) -> Row:
    run = context.run(work)
    result = run.result()
    assert result is not None
    assert result.test is not None
    row: Row = {
        "kind": "network",
        "model": work.model,
        "seed": work.seed,
        "accuracy": 100 * result.test.accuracy,
        "val_accuracy": 100 * result.val.accuracy,
        "epochs": run.planned_epochs,
        "seconds": result.seconds,
        "run": run.path.name,
    }
    if isinstance(work, DistillTask):
        alpha, tau = context.alpha_tau(work)
        assert isinstance(run.run, DistillRecord)
        cost = run.run.teachers_cost
        row |= {
            "teachers": [[one.run.model, one.run.seed, context.epoch(one)] for one in work.teachers],
            "alpha": alpha,
            "tau": tau,
            "teachers_epochs": cost.epochs,
            "teachers_seconds": cost.seconds,
        }
    return row


def _points(context: Context, part: Item, work: ScoreTask) -> list[Row]:
    plane, run = context.plane(work), context.run(work.run)
    assert plane is not None
    chosen = context.chosen(work.run) if work.estimator == "decoder" else None
    return [
        {
            "kind": "point",
            "model": work.run.model,
            "seed": work.run.seed,
            "epoch": point.epoch,
            "epochs": run.planned_epochs,
            "accuracy": 100 * point.accuracy,
            "accuracy_se": 100 * point.accuracy_se,
            "label_information": point.label_information,
            "information": point.image_information,
            "information_se": point.image_information_se,
            "information_sd": point.image_information_sd,
            "fits": len(plane.information_ASN[0]),
            "images": plane.images["correct"].shape[-1],
            "chosen": point.epoch == chosen,
            "file": f"{run.path.name}/{run[point.epoch].path.name}",
        }
        for point in plane.points
    ]


def only(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def by_seed(rows: Sequence[Row], pair: Pair | str, arm: str, what: str = "accuracy") -> dict[int, Any]:
    """Something of an arm's networks, by seed."""
    name = pair if isinstance(pair, str) else pair.name
    return {row["seed"]: row[what] for row in only(rows, kind="network", pair=name, arm=arm)}


def gaps(rows: Sequence[Row], pair: Pair | str, arm: str, other: str) -> list[float]:
    """By how many points one arm's students are better than another's, seed by seed.

    >>> both = {"kind": "network", "pair": "p", "seed": 0}
    >>> rows = [{**both, "arm": "a", "accuracy": 3}, {**both, "arm": "b", "accuracy": 1}]
    >>> gaps(rows, "p", "a", "b")
    [2]
    """
    one, two = by_seed(rows, pair, arm), by_seed(rows, pair, other)
    return [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]


def gaps_on_average(rows: Sequence[Row], pairs: Sequence[Pair], arm: str, other: str) -> list[float]:
    """The same on average over pairs, for seeds that all of them have."""
    found = [(by_seed(rows, pair, arm), by_seed(rows, pair, other)) for pair in pairs]
    seeds = set.intersection(*({*one} & {*two} for one, two in found))
    return [fmean(one[seed] - two[seed] for one, two in found) for seed in sorted(seeds)]


def gaps_of_the_picked(
    preset: Preset, rows: Sequence[Row], pair: Pair, arms: Sequence[str], pick: Callable[..., str], other: str
) -> list[float]:
    """By how many points the picked arm's student is better than another's, seed by seed; of seeds that all arms have.

    The arm is picked by what the students of the other seeds reach on the selection images: picked by the same student,
    its luck would count twice. Only where the scale has one seed, it is.
    """
    selected = {arm: by_seed(rows, pair, arm, "val_accuracy") for arm in arms}
    measured, against = {arm: by_seed(rows, pair, arm) for arm in selected}, by_seed(rows, pair, other)
    seeds = sorted(set.intersection(*map(set, selected.values())))
    gaps: list[float] = []
    if len(seeds) < min(2, preset.seeds):
        return gaps
    for seed in seeds:
        others = [one for one in seeds if one != seed] or seeds
        means = {arm: fmean(found[one] for one in others) for arm, found in selected.items()}
        picked = pick(means, key=lambda arm, means=means: means[arm])
        if seed in against:
            gaps.append(measured[picked][seed] - against[seed])
    return gaps


def compared(
    preset: Preset, rows: Sequence[Row], text: str, arm: str, other: str, *, caveat: str = ONE_RUN
) -> list[Claim]:
    """The claim that one arm's students are better than another's: for each pair of networks, and on average."""
    claims, same = [], []
    for pair in preset.pairs:
        known = published(preset, pair)
        effect = round(known[arm] - known[other], 2) if arm in known and other in known else None
        runs = by_seed(rows, pair, arm, "run")
        if runs and runs == by_seed(rows, pair, other, "run"):
            same.append(pair.name)
        one = claim(text, pair.name, gaps(rows, pair, arm, other), paper=effect, caveat=caveat)
        claims.append(replace(one, same=pair.name in same))
    if len(preset.pairs) > 1:
        effects = [one.paper for one in claims]
        average = round(fmean(effects), 2) if None not in effects else None  # type: ignore[arg-type]
        found = gaps_on_average(rows, preset.pairs, arm, other)
        partly = f"{caveat}; of {', '.join(same)} both are the same students" if same else caveat
        one = claim(text, AVERAGE, found, paper=average, caveat=partly)
        claims.append(replace(one, same=len(same) == len(preset.pairs)))
    return claims


def own_claims(preset: Preset, rows: Sequence[Row], text: str, arm: str, other: str, *, paper: str) -> list[Claim]:
    """That one measurement of teachers is more accurate than another, for each teacher; the paper has them as `paper`
    of both arms."""
    claims = {}
    for pair in preset.pairs:
        found = [only(rows, kind="measured", pair=pair.name, arm=name) for name in (arm, other)]
        known = published(preset, pair)
        names = [paper.format(name) for name in (arm, other)]
        effect = round(known[names[0]] - known[names[1]], 2) if all(name in known for name in names) else None
        gap, error, images = math.nan, math.nan, 0
        if all(found):
            one, two = found[0][0], found[1][0]
            gap, images = one["accuracy"] - two["accuracy"], one["images"]
            error = math.hypot(one["accuracy_se"], two["accuracy_se"])
        claims.setdefault(
            pair.teacher,
            claim_of(text, pair.teacher, gap, error, images, units="image", paper=effect, caveat=OWN),
        )
    return list(claims.values())


def published(preset: Preset, pair: Pair) -> dict[str, float]:
    """The paper's numbers for this pair; none where it has no such pair."""
    return BY_DATASET.get(preset.dataset, {}).get((pair.teacher, pair.student), {})


def cell(preset: Preset, rows: Sequence[Row], pair: Pair, arm: str) -> str:
    """Mean ± standard deviation of an arm's accuracies, and of how many, where some are missing."""
    return counted_spread(preset, list(by_seed(rows, pair, arm).values()))


def counted_spread(preset: Preset, values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds, and of how many, where some are missing."""
    return spread(values, digits) + (f" (n = {len(values)})" if 0 < len(values) < preset.seeds else "")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation, as far as there are values.

    >>> spread([1.0, 2.0, 3.0]), spread([1.0]), spread([]), spread([33.82, 33.87])
    ('2.00 ± 1.00', '1.00', '—', '33.85 ± 0.04')
    """
    if not values:
        return "—"
    # halves up, though they be a little less in binary: of two seeds they are common
    return f"{fmean(values) + ROUNDING:.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def teachers_accuracy(rows: Sequence[Row], pair: Pair, which: str) -> str:
    """The accuracy of a teacher's checkpoint on the test images."""
    found = only(rows, kind="measured", pair=pair.name, arm=f"teacher, {which}")
    return f"{found[0]['accuracy']:.2f}" if found else "—"


def with_paper(rows: Sequence[Row], preset: Preset, arms: Sequence[str], title: str, note: str) -> Table:
    """A table of students' accuracies: pairs down, arms across, the paper's number below ours where it has one."""
    lines = []
    for pair in preset.pairs:
        lines.append([pair.name, *(cell(preset, rows, pair, arm) for arm in arms)])
        known = published(preset, pair)
        if known:
            lines.append([f"{pair.name}, the paper", *(f"{known[arm]:.2f}" if arm in known else "" for arm in arms)])
    if len(preset.pairs) > 1:
        found = [[by_seed(rows, pair, arm).values() for pair in preset.pairs] for arm in arms]
        whole = [all(len(one) == preset.seeds for one in each) for each in found]
        means = [spread([fmean(map(fmean, each))]) if there else "—" for each, there in zip(found, whole, strict=True)]
        lines.append(["average of the pairs", *means])
        theirs = [[published(preset, pair).get(arm) for pair in preset.pairs] for arm in arms]
        if any(None not in each for each in theirs):
            shown = ["" if None in each else spread([fmean(each)]) for each in theirs]  # type: ignore[arg-type]
            lines.append(["average of these pairs, the paper", *shown])
    return Table(title, ["teacher → student", *(ARMS.get(arm, f"T at {arm}") for arm in arms)], lines, note)


def settings_note(preset: Preset, how: str = "") -> str:
    """What a reader must know of all students' accuracies; `how` they were taught, where it isn't as the scale says."""
    selected = (
        "a part of the training images selects, the test images measure once"
        if preset.select_on == "val"
        else "the test images select and measure, as in the paper"
    )
    how = how or ("α and τ are searched for each" if preset.search else f"α = {preset.alpha:g}, τ = {preset.tau:g}")
    return (
        f"Test accuracy after the last epoch, %, mean ± standard deviation over {pluralize(preset.seeds, 'seed')}; {how}; "
        f"protocol {preset.select_on}: {selected}."
    )


def searched(rows: Sequence[Row]) -> Table:
    """With which α and τ students were taught, where these were searched."""
    found = dict.fromkeys((row["pair"], row["arm"], row["alpha"], row["tau"]) for row in rows if "alpha" in row)
    lines = [[f"{pair}: {ARMS.get(arm, f'T at {arm}')}", f"{alpha:g}", f"{tau:g}"] for pair, arm, alpha, tau in found]
    return Table("What the searches found, on the selection images", ["teacher → student", "α", "τ"], lines)


def images_note(preset: Preset, split: str) -> str:
    """On which images something other than students was measured."""
    if preset.select_on == "test":
        return "On the test images, which also select (protocol paper)."
    which = "a part of the training images" if split == "val" else "which nothing is chosen by"
    return f"On the {split} images, {which} (protocol holdout)."


def measured(pair: Pair, name: str, *members: Any) -> Item:
    """The measurement of checkpoints together."""
    return Item(pair, name, EvaluateTask(tuple(members)))
