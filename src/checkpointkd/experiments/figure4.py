"""Figure 4: teachers, students and distilled students on the information plane, and the four observations (§4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, variance
from typing import Any

import numpy as np

from ..analysis.statistics import Claim, claim, claim_of
from ..reports.charts import Table
from ..reports.figures import curves_chart
from .context import Context
from .figure7 import curve_pairs
from .presets import Pair, Preset
from .results import ARMS, ONE_RUN, Results, Row, counted_spread, images_note, only
from .tasks import Item, ScoreTask, single, students, teacher

TITLE = "Figure 4: information planes of teachers and students"
UNIT = "of loss a pixel"  # the decoder's, a proxy of I(X;F)
COLORS = {
    "teacher": 1,
    "scratch": 3,
    "last": 0,
    "midpoint": 4,
    "uniform": 6,
}  # as in the paper: red, gray, blues, yellow


def needs(preset: Preset) -> list[Item]:
    return [part for pair in curve_pairs(preset) for part in curves(preset, pair, smoothed=False)]


def curves(preset: Preset, pair: Pair, *, smoothed: bool) -> list[Item]:
    """A pair's teacher and its students from nobody, from its end and from half-way, and their scores."""
    networks = list(students(preset, pair, single(pair, "last", "midpoint"), smoothed=smoothed))
    scores = [Item(pair, part.arm, ScoreTask(part.work)) for part in networks]  # type: ignore[arg-type]
    return [Item(pair, "teacher", ScoreTask(teacher(pair))), *networks, *scores]


def extra_rows(context: Context, parts: Sequence[Item], done: Callable[[Any], bool]) -> list[Row]:
    """What is compared image by image."""
    found = []
    for pair in curve_pairs(context.preset):
        works = [
            part.work for part in parts if part.pair == pair and isinstance(part.work, ScoreTask) and done(part.work)
        ]
        of_teacher = next((work for work in works if work == ScoreTask(teacher(pair))), None)
        if of_teacher is None:
            continue
        plane = context.plane(of_teacher)
        assert plane is not None
        run = context.run(of_teacher.run)
        information_ASN, right_ASN = plane.information_ASN, 100.0 * plane.images["correct"][:, None]
        half, last = plane.epochs.index(run.midpoint.epoch), len(plane.epochs) - 1
        below_SN, at = _peak(right_ASN[:last], right_ASN[last])
        gaps = {
            "peak over first": (*_peak(information_ASN[1:], information_ASN[0], 1), 0),
            "peak over last": (*_peak(information_ASN[:last], information_ASN[last]), last),
            "accuracy, last over best earlier": (-below_SN, at, last),
            "half over full": (information_ASN[half] - information_ASN[last], [half], last),
            "accuracy, full over half": (right_ASN[last] - right_ASN[half], [half], last),
        }
        for what, (gap_SN, at, other) in gaps.items():
            error, degrees = _error(gap_SN)
            found.append(
                {
                    "kind": "gap",
                    "pair": pair.name,
                    "arm": what,
                    "mean": float(gap_SN.mean()),
                    "error": error,
                    "degrees": degrees,
                    "n": gap_SN.shape[1],
                    "fits": gap_SN.shape[0],
                    "epochs": [plane.epochs[one] for one in at],
                    "against": plane.epochs[other],
                }
            )
    return found


def _peak(among_ASN: np.ndarray, other_SN: np.ndarray, begin: int = 0) -> tuple[np.ndarray, list[int]]:
    """By how much the highest of some checkpoints is above another one, and which these are, counted from `begin`.

    For each fit it is looked for by the other fits, on every other image, and compared on the rest: noise that made it
    the highest has no part in how high it is.
    """
    fits = range(among_ASN.shape[1])
    others = [[one for one in fits if one != fit] or [fit] for fit in fits]
    peaks = [int(among_ASN[:, several, ::2].mean((1, 2)).argmax()) for several in others]
    gap_SN = np.stack([among_ASN[peak, fit, 1::2] - other_SN[fit, 1::2] for fit, peak in zip(fits, peaks, strict=True)])
    return gap_SN, sorted({begin + peak for peak in peaks})


def _error(gap_SN: np.ndarray) -> tuple[float, float]:
    """The standard error of a mean over images and over the estimator's fits, and its degrees of freedom
    (Satterthwaite, Biometrics 1946)."""
    fits, images = gap_SN.shape
    of_images = gap_SN.mean(0).var(ddof=1) / images
    of_fits = gap_SN.mean(1).var(ddof=1) / fits if fits > 1 else 0.0
    return _together([(of_images, images - 1), (of_fits, fits - 1)])


def _together(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The standard error of independent parts, given as variances with their degrees of freedom, and its own."""
    whole = float(sum(variance for variance, _ in parts))
    spent = float(sum(variance**2 / degrees for variance, degrees in parts if variance > 0))
    return math.sqrt(whole), whole**2 / spent if spent > 0 else max(degrees for _, degrees in parts)


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    claims = []
    for pair in curve_pairs(preset):
        claims += _observations(rows, pair)
    return Results(tables=[last_points(preset, rows)], figures=charts(preset, rows), claims=claims)


def _observations(rows: Sequence[Row], pair: Pair) -> list[Claim]:
    teachers = [
        ("1. The teacher's I(X;F) first goes up", "peak over first", UNIT),
        ("1. The teacher's I(X;F) then goes down", "peak over last", UNIT),
        ("1. The teacher's I(Y;F) goes up to the end", "accuracy, last over best earlier", "points"),
        ("3. The full teacher keeps less of the image than the half-way one", "half over full", UNIT),
        ("3. The full teacher knows more of the label than the half-way one", "accuracy, full over half", "points"),
    ]
    claims = []
    for text, arm, unit in teachers:
        found = only(rows, kind="gap", pair=pair.name, arm=arm)
        one = found[0] if found else {"mean": math.nan, "error": math.nan, "degrees": 1.0, "n": 0}
        caveat = "rests on one run: another run's curve may differ by more than the interval, which is over images"
        if found and ("over first" in arm or "over last" in arm or "best earlier" in arm):
            first = ", the first that was saved: an earlier rise can't show" if "over first" in arm else ""
            picked = f"{'s' * (len(one['epochs']) > 1)} {' or '.join(map(str, one['epochs']))}"
            caveat = f"epoch{picked}, picked on other images, against epoch {one['against']}{first}; {caveat}"
        made = claim_of(
            text,
            pair.name,
            one["mean"],
            one["error"],
            one["n"],
            unit=unit,
            units="image",
            degrees=one["degrees"],
            caveat=caveat,
        )
        # what came before the first checkpoint may have been lower: no fall after it refutes a rise
        claims.append(replace(made, p=None) if "over first" in arm and one["mean"] < 0 else made)
    pairs = [
        ("4. Students of the full teacher keep less of the image than students without one", "scratch", "last"),
        ("4. Students of the half-way teacher keep more of the image than those of the full one", "midpoint", "last"),
    ]
    of_students = [
        claim(text, pair.name, information_gaps(rows, pair, one, other), unit=UNIT, caveat=ONE_RUN)
        for text, one, other in pairs
    ]
    return [*claims[:3], _larger(rows, pair), *claims[3:], *of_students]


def _larger(rows: Sequence[Row], pair: Pair) -> Claim:
    """That the teacher's last checkpoint keeps more than the students' last ones, by the spread of students and the
    errors of the one teacher, over images and over fits."""
    alone = list(last_information(rows, pair, "scratch").values())
    text = "2. The larger teacher keeps more of the image than the student, at the end of training"
    of_teacher = [
        row for row in only(rows, kind="point", pair=pair.name, arm="teacher") if row["epoch"] == row["epochs"]
    ]
    if len(alone) < 2 or not of_teacher:
        return claim_of(text, pair.name, math.nan, math.nan, 0, unit=UNIT, units="seed")
    (row,) = of_teacher
    fits = row["fits"]
    of_fits = (row["information_sd"] or 0.0) ** 2 / fits
    parts = [
        (variance(alone) / len(alone), len(alone) - 1),
        (of_fits, fits - 1),
        (row["information_se"] ** 2, math.inf),
    ]
    error, degrees = _together(parts)
    return claim_of(
        text,
        pair.name,
        row["information"] - fmean(alone),
        error,
        len(alone),
        unit=UNIT,
        units="seed",
        degrees=degrees,
        caveat="rests on one teacher run: another may differ by more",
    )


def last_information(rows: Sequence[Row], pair: Pair, arm: str, what: str = "information") -> dict[int, float]:
    """I(X;F), or another number, of each student's last checkpoint, by seed."""
    return {
        row["seed"]: row[what]
        for row in only(rows, kind="point", pair=pair.name, arm=arm)
        if row["epoch"] == row["epochs"]
    }


def information_gaps(rows: Sequence[Row], pair: Pair, arm: str, other: str) -> list[float]:
    """By how much students of one arm keep more I(X;F) than another's, seed by seed."""
    one, two = last_information(rows, pair, arm), last_information(rows, pair, other)
    return [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]


def last_points(preset: Preset, rows: Sequence[Row]) -> Table:
    """Where students end on the plane, and how far from their teacher (Eq. 5)."""
    lines = []
    for pair in curve_pairs(preset):
        points = only(rows, kind="point", pair=pair.name, arm="teacher")
        arms = dict.fromkeys(row["arm"] for row in rows if row["kind"] == "point" and row["pair"] == pair.name)
        for arm in arms:
            accuracy = list(last_information(rows, pair, arm, "accuracy").values())
            information = list(last_information(rows, pair, arm).values())
            of = replace(preset, seeds=1) if arm == "teacher" else preset
            distance = _distance(rows, pair, arm, points) if arm in ("last", "midpoint") else None
            lines.append(
                [
                    f"{pair.name}: {'teacher' if arm == 'teacher' else ARMS[arm]}",
                    counted_spread(of, information, digits=4),
                    counted_spread(of, accuracy),
                    "" if distance is None else f"{distance:.2f}",
                ]
            )
    note = (
        "I(X;F) is minus the decoder's excess loss a pixel, a proxy, and I(Y;F) the accuracy, on the selection images. "
        "The distance to its teacher is that of Eq. 5, each information scaled to the range that the teacher's "
        f"trajectory spans. {images_note(preset, 'val')}"
    )
    columns = ["last checkpoint of", "I(X;F)", "I(Y;F), %", "distance to its teacher"]
    return Table("Where networks end on the plane", columns, lines, note)


def _distance(rows: Sequence[Row], pair: Pair, arm: str, points: list[Row]) -> float | None:
    """|I(X;F_t) − I(X;F_s)| + |I(Y;F_t) − I(Y;F_s)|, the mean over students."""
    if len(points) < 2:
        return None
    planned = points[0]["epochs"]
    target = planned if arm == "last" else planned / 2
    of_teacher = min(points, key=lambda point: abs(point["epoch"] - target))
    total = 0.0
    for what in ("information", "accuracy"):
        values = [point[what] for point in points]
        found = last_information(rows, pair, arm, what).values()
        reach = max(values) - min(values)
        if not found or reach == 0:
            return None
        total += fmean(abs(of_teacher[what] - one) for one in found) / reach
    return total


def charts(preset: Preset, rows: Sequence[Row]) -> list:
    """The curves of each pair on one plane: those of the first seed."""
    found = []
    for pair in curve_pairs(preset):
        named, colors = {}, []
        for arm in dict.fromkeys(row["arm"] for row in rows if row["kind"] == "point" and row["pair"] == pair.name):
            points = only(rows, kind="point", pair=pair.name, arm=arm, seed=0)
            name = f"{pair.teacher}, the teacher" if arm == "teacher" else f"{pair.student}: {ARMS[arm]}"
            if points:
                named[name if arm == "teacher" else f"{name}, seed 0"] = points
                colors.append(COLORS[arm])
        if named:
            found.append(curves_chart(f"{pair.name} on the information plane", named, colors=colors))
    return found
