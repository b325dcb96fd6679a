"""What experiments read from rows, and the tables and claims that they make of them.

A row is a plain dict: one for each student, checkpoint or measurement. The rows of an experiment are JSON lines in its
folder, and everything that it shows is made from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from ..analysis.statistics import AVERAGE, ROUNDING, Claim, claim, claim_of
from ..errors import pluralize
from ..reports.charts import Figure, Table
from .paper_numbers import BY_DATASET
from .presets import Pair, Preset

Row = dict[str, Any]

LABELS = {
    "scratch": "no teacher",
    "uniform": "u (uniform teacher)",
    "last": "T last",
    "midpoint": "T midpoint",
    "best": "T*",
    "EN1": "EN₁ = T₁ last + T₂ last",
    "EN2": "EN₂ = T₁ midpoint + T₂ last",
    "EN3": "EN₃ = T₁ midpoint + T₁ last",
}
ONE_RUN = "one run of each teacher; with another run the difference may vary by more than between seeds"
OWN = (
    "one run of each teacher, and the interval does not cover other runs; the interval is too wide, because it treats "
    "the images of both measurements as independent"
)


@dataclass(frozen=True)
class Results:
    """What an experiment shows."""

    tables: list[Table]
    figures: list[Figure] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# Reading rows


def only(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Return the rows with these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def by_seed(rows: Sequence[Row], pair: Pair | str, variant: str, name: str = "accuracy") -> dict[int, Any]:
    """Return a value of a variant's networks by seed."""
    pair_name = pair if isinstance(pair, str) else pair.name
    return {row["seed"]: row[name] for row in only(rows, kind="network", pair=pair_name, variant=variant)}


def gaps(rows: Sequence[Row], pair: Pair | str, variant: str, baseline: str) -> list[float]:
    """Return by how many points a variant's students are better than the baseline's, for each common seed.

    >>> row = {"kind": "network", "pair": "p", "seed": 0}
    >>> rows = [{**row, "variant": "a", "accuracy": 3}, {**row, "variant": "b", "accuracy": 1}]
    >>> gaps(rows, "p", "a", "b")
    [2]
    """
    accuracy, baseline_accuracy = by_seed(rows, pair, variant), by_seed(rows, pair, baseline)
    seeds = sorted(accuracy.keys() & baseline_accuracy.keys())
    return [accuracy[seed] - baseline_accuracy[seed] for seed in seeds]


def mean_gaps(rows: Sequence[Row], pairs: Sequence[Pair], variant: str, baseline: str) -> list[float]:
    """Return the mean of `gaps` over pairs, for each seed that all pairs have."""
    accuracies = [(by_seed(rows, pair, variant), by_seed(rows, pair, baseline)) for pair in pairs]
    seeds = set.intersection(*({*accuracy} & {*baseline_accuracy} for accuracy, baseline_accuracy in accuracies))
    return [fmean(accuracy[seed] - base[seed] for accuracy, base in accuracies) for seed in sorted(seeds)]


def picked_gaps(
    preset: Preset, rows: Sequence[Row], pair: Pair, variants: Sequence[str], pick: Callable[..., str], baseline: str
) -> list[float]:
    """Return by how many points a picked variant's students are better than the baseline's, for each seed.

    `pick` is max or min. For each seed it picks a variant by the validation accuracy of the other seeds' students.
    Picking a student by its own accuracy would be biased upward. With one seed this cannot be avoided. Only seeds that
    all variants have are used.
    """
    validation = {variant: by_seed(rows, pair, variant, "val_accuracy") for variant in variants}
    accuracy = {variant: by_seed(rows, pair, variant) for variant in variants}
    baseline_accuracy = by_seed(rows, pair, baseline)
    seeds = sorted(set.intersection(*map(set, validation.values())))
    differences: list[float] = []
    if len(seeds) < min(2, preset.seeds):
        return differences
    for seed in seeds:
        other_seeds = [other_seed for other_seed in seeds if other_seed != seed] or seeds
        means = {name: fmean(values[other_seed] for other_seed in other_seeds) for name, values in validation.items()}
        picked = pick(means, key=means.__getitem__)
        if seed in baseline_accuracy:
            differences.append(accuracy[picked][seed] - baseline_accuracy[seed])
    return differences


def paper_numbers(preset: Preset, pair: Pair) -> dict[str, float]:
    """Return the paper's numbers for a pair; none for a pair that the paper does not have."""
    return BY_DATASET.get(preset.dataset, {}).get((pair.teacher, pair.student), {})


def paper_effect(preset: Preset, pair: Pair, name: str, baseline: str) -> float | None:
    """Return the difference of two of the paper's numbers, None if the paper lacks one."""
    numbers = paper_numbers(preset, pair)
    return round(numbers[name] - numbers[baseline], 2) if name in numbers and baseline in numbers else None


# Claims


def compare(
    preset: Preset, rows: Sequence[Row], text: str, variant: str, baseline: str, *, caveat: str = ONE_RUN
) -> list[Claim]:
    """Return the claim that a variant's students are better than the baseline's, for each pair and on average."""
    claims, same = [], []
    for pair in preset.pairs:
        runs = by_seed(rows, pair, variant, "run")
        if runs and runs == by_seed(rows, pair, baseline, "run"):
            same.append(pair.name)
        effect = paper_effect(preset, pair, variant, baseline)
        for_pair = claim(text, pair.name, gaps(rows, pair, variant, baseline), paper=effect, caveat=caveat)
        claims.append(replace(for_pair, same=pair.name in same))
    if len(preset.pairs) > 1:
        effects = [for_pair.paper for for_pair in claims if for_pair.paper is not None]
        effect = round(fmean(effects), 2) if len(effects) == len(claims) else None
        differences = mean_gaps(rows, preset.pairs, variant, baseline)
        if same:
            caveat = f"{caveat}; both variants are the same students for {', '.join(same)}"
        average = claim(text, AVERAGE, differences, paper=effect, caveat=caveat)
        claims.append(replace(average, same=len(same) == len(preset.pairs)))
    return claims


def compare_teachers(
    preset: Preset, rows: Sequence[Row], text: str, variant: str, baseline: str, *, paper: str
) -> list[Claim]:
    """Return the claim that one measurement of teachers is more accurate than another, for each teacher network.

    `paper` is a template of the names that the paper's numbers have for both.
    """
    claims: dict[str, Claim] = {}
    for pair in preset.pairs:
        measured = [only(rows, kind="measured", pair=pair.name, variant=name) for name in (variant, baseline)]
        effect, error, images = math.nan, math.nan, 0
        if all(measured):
            first, second = measured[0][0], measured[1][0]
            effect, images = first["accuracy"] - second["accuracy"], first["images"]
            error = math.hypot(first["accuracy_se"], second["accuracy_se"])
        in_paper = paper_effect(preset, pair, paper.format(variant), paper.format(baseline))
        for_teacher = claim_of(text, pair.teacher, effect, error, images, units="image", paper=in_paper, caveat=OWN)
        claims.setdefault(pair.teacher, for_teacher)
    return list(claims.values())


# Tables and notes


def label(variant: str) -> str:
    """Return the name of a variant in tables."""
    return LABELS.get(variant, f"T at {variant}")


def mean_sd(values: Sequence[float], digits: int = 2) -> str:
    """Return mean ± standard deviation, as far as there are values.

    >>> mean_sd([1.0, 2.0, 3.0]), mean_sd([1.0]), mean_sd([]), mean_sd([33.82, 33.87])
    ('2.00 ± 1.00', '1.00', '—', '33.85 ± 0.04')
    """
    if not values:
        return "—"
    # the mean of two seeds often ends in a 5, which binary floats may hold a little below
    mean = f"{fmean(values) + ROUNDING:.{digits}f}"
    return mean + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def mean_sd_n(preset: Preset, values: Sequence[float], digits: int = 2) -> str:
    """Return mean ± standard deviation over seeds, with n where seeds are missing."""
    n = f" (n = {len(values)})" if 0 < len(values) < preset.seeds else ""
    return mean_sd(values, digits) + n


def accuracy_cell(preset: Preset, rows: Sequence[Row], pair: Pair, variant: str) -> str:
    """Return mean ± standard deviation of a variant's accuracies."""
    return mean_sd_n(preset, list(by_seed(rows, pair, variant).values()))


def teacher_accuracy(rows: Sequence[Row], pair: Pair, which: str) -> str:
    """Return the test accuracy of a teacher's checkpoint."""
    measured = only(rows, kind="measured", pair=pair.name, variant=f"teacher, {which}")
    return f"{measured[0]['accuracy']:.2f}" if measured else "—"


def paper_cells(preset: Preset, pair: Pair, names: Sequence[str]) -> list[str]:
    """Return the paper's numbers, empty texts for those that it lacks."""
    numbers = paper_numbers(preset, pair)
    return [f"{numbers[name]:.2f}" if name in numbers else "" for name in names]


def students_table(preset: Preset, rows: Sequence[Row], variants: Sequence[str], title: str, note: str) -> Table:
    """Return a table of students' accuracies: pairs down, variants across, the paper's numbers below ours."""
    lines = []
    for pair in preset.pairs:
        lines.append([pair.name, *(accuracy_cell(preset, rows, pair, variant) for variant in variants)])
        if paper_numbers(preset, pair):
            lines.append([f"{pair.name}, paper", *paper_cells(preset, pair, variants)])
    if len(preset.pairs) > 1:
        averages, paper_averages = [], []
        for variant in variants:
            accuracies = [by_seed(rows, pair, variant).values() for pair in preset.pairs]
            complete = all(len(values) == preset.seeds for values in accuracies)
            averages.append(mean_sd([fmean(map(fmean, accuracies))]) if complete else "—")
            numbers = [paper_numbers(preset, pair).get(variant, math.nan) for pair in preset.pairs]
            paper_averages.append("" if any(map(math.isnan, numbers)) else mean_sd([fmean(numbers)]))
        lines.append(["average of the pairs", *averages])
        if any(paper_averages):
            lines.append(["average of these pairs, paper", *paper_averages])
    return Table(title, ["teacher → student", *map(label, variants)], lines, note)


def tuned_table(rows: Sequence[Row]) -> Table:
    """Return a table of the tuned α and τ."""
    tuned = dict.fromkeys((row["pair"], row["variant"], row["alpha"], row["tau"]) for row in rows if "alpha" in row)
    lines = [[f"{pair}: {label(variant)}", f"{alpha:g}", f"{tau:g}"] for pair, variant, alpha, tau in tuned]
    return Table("α and τ, tuned on the validation set", ["teacher → student", "α", "τ"], lines)


def students_note(preset: Preset, distillation: str = "") -> str:
    """Return the note on students' accuracies; `distillation` replaces the preset's α and τ."""
    choosing = (
        "Choices use the validation set; the test set is used once."
        if preset.select_on == "val"
        else "Choices use the test set, as in the paper."
    )
    fixed = f"α = {preset.alpha:g}, τ = {preset.tau:g}"
    distillation = distillation or ("α and τ tuned for each student and its teachers" if preset.tune else fixed)
    return (
        f"Test accuracy after the last epoch in %, mean ± standard deviation over {pluralize(preset.seeds, 'seed')}; "
        f"{distillation}. {choosing}"
    )


def images_note(preset: Preset, split: str) -> str:
    """Return the note on the images that something other than students was measured on."""
    if preset.select_on == "test":
        return "Measured on the test set, which is also used for choices."
    return (
        "Measured on the validation set."
        if split == "val"
        else "Measured on the test set, which is not used for choices."
    )
