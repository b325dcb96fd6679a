"""Figure 4: teachers, students and distilled students on the information plane, and four observations (§4.2).

Letters in array names: A checkpoints, S fits of the estimator, N images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, variance
from typing import Any

import numpy as np

from ..analysis.statistics import Claim, claim, claim_of
from ..reports.charts import Figure, Table
from ..reports.figures import curves_chart
from .context import Context
from .figure7 import curve_pairs
from .items import Item, single_teachers, student_items, teacher
from .presets import Pair, Preset
from .results import LABELS, ONE_RUN, Results, Row, images_note, mean_sd_n, only
from .tasks import DistillTask, ScoreTask, Task, TrainTask

TITLE = "Figure 4: information planes of teachers and students"
UNIT = "of loss per pixel"  # the unit of the decoder's I(X;F)
COLORS = {"teacher": 1, "scratch": 3, "last": 0, "midpoint": 4, "uniform": 6}  # as in the paper
TEACHER_CLAIMS = (  # text, variant of the gap, unit
    ("1. The teacher's I(X;F) first rises", "peak over first", UNIT),
    ("1. The teacher's I(X;F) then falls", "peak over last", UNIT),
    ("1. The teacher's I(Y;F) rises to the end", "accuracy, last over best earlier", "points"),
    ("3. T last has less I(X;F) than T midpoint", "midpoint over last", UNIT),
    ("3. T last has more I(Y;F) than T midpoint", "accuracy, last over midpoint", "points"),
)
STUDENT_CLAIMS = (
    ("4. Students of T last have less I(X;F) than students without a teacher", "scratch", "last"),
    ("4. Students of T midpoint have more I(X;F) than students of T last", "midpoint", "last"),
)


def needs(preset: Preset) -> list[Item]:
    return [item for pair in curve_pairs(preset) for item in curve_items(preset, pair, smoothed=False)]


def curve_items(preset: Preset, pair: Pair, *, smoothed: bool) -> list[Item]:
    """Return a pair's teacher, its students without a teacher and from T last and T midpoint, and all their scores."""
    variants = single_teachers(pair, "last", "midpoint")
    students = list(student_items(preset, pair, variants, smoothed=smoothed))
    scores = [
        Item(pair, item.variant, ScoreTask(item.task))
        for item in students
        if isinstance(item.task, TrainTask | DistillTask)
    ]
    return [Item(pair, "teacher", ScoreTask(teacher(pair))), *students, *scores]


def extra_rows(context: Context, items: Sequence[Item], done: Callable[[Task], bool]) -> list[Row]:
    """Return the differences between checkpoints of each teacher, which are taken image by image."""
    rows = []
    for pair in curve_pairs(context.preset):
        task = ScoreTask(teacher(pair))
        plane = task.plane(context) if done(task) else None
        if plane is None:
            continue
        trajectory = task.training.trajectory(context)
        information_ASN, correct_ASN = plane.information_ASN, 100.0 * plane.images["correct"][:, None]
        midpoint, last = plane.epochs.index(trajectory.midpoint.epoch), len(plane.epochs) - 1
        below_SN, best_earlier = _peak(correct_ASN[:last], correct_ASN[last])
        gaps = {
            "peak over first": (*_peak(information_ASN[1:], information_ASN[0], 1), 0),
            "peak over last": (*_peak(information_ASN[:last], information_ASN[last]), last),
            "accuracy, last over best earlier": (-below_SN, best_earlier, last),
            "midpoint over last": (information_ASN[midpoint] - information_ASN[last], [midpoint], last),
            "accuracy, last over midpoint": (correct_ASN[last] - correct_ASN[midpoint], [midpoint], last),
        }
        for variant, (gap_SN, picked, baseline) in gaps.items():
            error, degrees = _error(gap_SN)
            rows.append(
                {
                    "kind": "gap",
                    "pair": pair.name,
                    "variant": variant,
                    "mean": float(gap_SN.mean()),
                    "error": error,
                    "degrees": degrees,
                    "n": gap_SN.shape[1],
                    "fits": gap_SN.shape[0],
                    "epochs": [plane.epochs[checkpoint] for checkpoint in picked],
                    "against": plane.epochs[baseline],
                }
            )
    return rows


def _peak(candidates_ASN: np.ndarray, baseline_SN: np.ndarray, begin: int = 0) -> tuple[np.ndarray, list[int]]:
    """Return by how much the highest of several checkpoints is above another, and which it is, counted from `begin`.

    For each fit the highest is picked by the other fits on every second image, and compared on the remaining images.
    So the noise that made a checkpoint the highest does not count for it.
    """
    fits = range(candidates_ASN.shape[1])
    other_fits = [[other for other in fits if other != fit] or [fit] for fit in fits]
    peaks = [int(candidates_ASN[:, others, ::2].mean((1, 2)).argmax()) for others in other_fits]
    gap_SN = np.stack(
        [candidates_ASN[peak, fit, 1::2] - baseline_SN[fit, 1::2] for fit, peak in zip(fits, peaks, strict=True)]
    )
    return gap_SN, sorted({begin + peak for peak in peaks})


def _error(gap_SN: np.ndarray) -> tuple[float, float]:
    """Return the standard error of a mean over images and fits, and its degrees of freedom."""
    fits, images = gap_SN.shape
    image_variance = gap_SN.mean(0).var(ddof=1) / images
    fit_variance = gap_SN.mean(1).var(ddof=1) / fits if fits > 1 else 0.0
    return _combined_error([(image_variance, images - 1), (fit_variance, fits - 1)])


def _combined_error(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the standard error and the degrees of freedom of independent parts (Satterthwaite, Biometrics 1946).

    Args:
        parts: The variance of each part, and its degrees of freedom.
    """
    total = float(sum(part for part, _ in parts))
    spent = float(sum(part**2 / degrees for part, degrees in parts if part > 0))
    return math.sqrt(total), total**2 / spent if spent > 0 else max(degrees for _, degrees in parts)


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    claims = [each for pair in curve_pairs(preset) for each in _claims(rows, pair)]
    return Results(tables=[last_points_table(preset, rows)], figures=charts(preset, rows), claims=claims)


def _claims(rows: Sequence[Row], pair: Pair) -> list[Claim]:
    teachers = [_teacher_claim(rows, pair, *each) for each in TEACHER_CLAIMS]
    students = [
        claim(text, pair.name, information_gaps(rows, pair, variant, baseline), unit=UNIT, caveat=ONE_RUN)
        for text, variant, baseline in STUDENT_CLAIMS
    ]
    return [*teachers[:3], _size_claim(rows, pair), *teachers[3:], *students]


def _teacher_claim(rows: Sequence[Row], pair: Pair, text: str, variant: str, unit: str) -> Claim:
    found = only(rows, kind="gap", pair=pair.name, variant=variant)
    row: Row = found[0] if found else {"mean": math.nan, "error": math.nan, "degrees": 1.0, "n": 0}
    caveat = "one run of the teacher; another run's curve may differ by more than the interval, which is over images"
    if found and variant not in ("midpoint over last", "accuracy, last over midpoint"):
        first = ", the first saved epoch: an earlier rise is not testable" if variant == "peak over first" else ""
        epochs = f"epoch{'s' * (len(row['epochs']) > 1)} {' or '.join(map(str, row['epochs']))}"
        caveat = f"{epochs}, picked on other images, against epoch {row['against']}{first}; {caveat}"
    result = claim_of(
        text,
        pair.name,
        row["mean"],
        row["error"],
        row["n"],
        unit=unit,
        units="image",
        degrees=row["degrees"],
        caveat=caveat,
    )
    # I(X;F) may have been lower before the first checkpoint: a fall after it does not refute a rise
    return replace(result, p=None) if variant == "peak over first" and row["mean"] < 0 else result


def _size_claim(rows: Sequence[Row], pair: Pair) -> Claim:
    """Return the claim that the teacher's last checkpoint has more I(X;F) than the students'.

    Its error is that of the students over seeds, and that of the one teacher over images and over fits.
    """
    scratch = list(last_values(rows, pair, "scratch").values())
    text = "2. The larger teacher has more I(X;F) than the student at the end of training"
    teachers = only(rows, kind="point", pair=pair.name, variant="teacher")
    last = next((row for row in teachers if row["epoch"] == row["epochs"]), None)
    if len(scratch) < 2 or last is None:
        return claim_of(text, pair.name, math.nan, math.nan, 0, unit=UNIT, units="seed")
    fits = last["fits"]
    fit_variance = (last["information_sd"] or 0.0) ** 2 / fits
    error, degrees = _combined_error(
        [
            (variance(scratch) / len(scratch), len(scratch) - 1),
            (fit_variance, fits - 1),
            (last["information_se"] ** 2, math.inf),
        ]
    )
    return claim_of(
        text,
        pair.name,
        last["information"] - fmean(scratch),
        error,
        len(scratch),
        unit=UNIT,
        units="seed",
        degrees=degrees,
        caveat="one run of the teacher; another run may differ by more",
    )


def last_values(rows: Sequence[Row], pair: Pair, variant: str, name: str = "information") -> dict[int, Any]:
    """Return I(X;F), or another value, of each network's last checkpoint, by seed."""
    points = only(rows, kind="point", pair=pair.name, variant=variant)
    return {row["seed"]: row[name] for row in points if row["epoch"] == row["epochs"]}


def information_gaps(rows: Sequence[Row], pair: Pair, variant: str, baseline: str) -> list[float]:
    """Return by how much I(X;F) of a variant's students is above the baseline's, for each common seed."""
    information, baseline_information = last_values(rows, pair, variant), last_values(rows, pair, baseline)
    seeds = sorted(information.keys() & baseline_information.keys())
    return [information[seed] - baseline_information[seed] for seed in seeds]


def last_points_table(preset: Preset, rows: Sequence[Row]) -> Table:
    """Return the table of where networks end on the plane, and how far from their teacher (Eq. 5)."""
    lines = []
    for pair in curve_pairs(preset):
        for variant in _variants(rows, pair):
            is_teacher = variant == "teacher"
            expected = replace(preset, seeds=1) if is_teacher else preset
            distance = _distance(rows, pair, variant) if variant in ("last", "midpoint") else None
            lines.append(
                [
                    f"{pair.name}: {'teacher' if is_teacher else LABELS[variant]}",
                    mean_sd_n(expected, list(last_values(rows, pair, variant).values()), digits=4),
                    mean_sd_n(expected, list(last_values(rows, pair, variant, "accuracy").values())),
                    "" if distance is None else f"{distance:.2f}",
                ]
            )
    note = (
        "I(X;F) is the negative excess loss of the decoder per pixel, a proxy. I(Y;F) is the validation accuracy. The "
        "distance to the teacher is that of Eq. 5, with both estimates scaled to the range of the teacher's "
        f"trajectory. {images_note(preset, 'val')}"
    )
    columns = ["last checkpoint of", "I(X;F)", "I(Y;F), %", "distance to its teacher"]
    return Table("Where networks end on the information plane", columns, lines, note)


def _variants(rows: Sequence[Row], pair: Pair) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in only(rows, kind="point", pair=pair.name)))


def _distance(rows: Sequence[Row], pair: Pair, variant: str) -> float | None:
    """Return |I(X;F_t) − I(X;F_s)| + |I(Y;F_t) − I(Y;F_s)| (Eq. 5), the mean over students."""
    points = only(rows, kind="point", pair=pair.name, variant="teacher")
    if len(points) < 2:
        return None
    planned = points[0]["epochs"]
    epoch = planned if variant == "last" else planned / 2
    teacher_point = min(points, key=lambda point: abs(point["epoch"] - epoch))
    total = 0.0
    for name in ("information", "accuracy"):
        teacher_values = [point[name] for point in points]
        students = last_values(rows, pair, variant, name).values()
        span = max(teacher_values) - min(teacher_values)
        if not students or span == 0:
            return None
        total += fmean(abs(teacher_point[name] - student) for student in students) / span
    return total


def charts(preset: Preset, rows: Sequence[Row]) -> list[Figure]:
    """Return a chart per pair with the curves of its teacher and of the students of seed 0."""
    figures: list[Figure] = []
    for pair in curve_pairs(preset):
        curves, colors = {}, []
        for variant in _variants(rows, pair):
            is_teacher = variant == "teacher"
            name = f"{pair.teacher}, the teacher" if is_teacher else f"{pair.student}: {LABELS[variant]}, seed 0"
            if points := only(rows, kind="point", pair=pair.name, variant=variant, seed=0):
                curves[name] = points
                colors.append(COLORS[variant])
        if curves:
            figures.append(curves_chart(f"{pair.name} on the information plane", curves, colors=colors))
    return figures
