"""Figure 4: teachers, students and distilled students on the information plane, and the four observations (§4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from ..charts import Table
from ..comparisons import Claim, claim, claim_of
from ..reports.figures import curves_chart
from .figure7 import curve_pairs
from .lab import Lab
from .rows import ARMS, ONE_RUN, Results, Row, only, spread
from .scales import Pair, Scale
from .work import Part, Scoring, Training, single, students, teacher

TITLE = "Figure 4: information planes of teachers and students"
UNIT = "nats a pixel"


def needs(scale: Scale) -> list[Part]:
    return [part for pair in curve_pairs(scale) for part in curves(scale, pair, smoothed=False)]


def curves(scale: Scale, pair: Pair, *, smoothed: bool) -> list[Part]:
    """A pair's teacher and its students from nobody, from its end and from half-way, and their scores."""
    networks = list(students(scale, pair, single(pair, "full", "half"), smoothed=smoothed))
    scores = [Part(pair, part.arm, Scoring(part.work)) for part in networks]  # type: ignore[arg-type]
    return [Part(pair, "teacher", Scoring(teacher(pair))), *networks, *scores]


def extra_rows(lab: Lab, parts: Sequence[Part], done: Callable[[Any], bool]) -> list[Row]:
    """What is compared image by image."""
    found = []
    for pair in curve_pairs(lab.scale):
        works = [
            part.work for part in parts if part.pair == pair and isinstance(part.work, Scoring) and done(part.work)
        ]
        of_teacher = next((work for work in works if work == Scoring(teacher(pair))), None)
        if of_teacher is None:
            continue
        plane = lab.plane(of_teacher)
        assert plane is not None
        run = lab.run(of_teacher.run)
        information_AN, right_AN = plane.information_ASN.mean(1), 100.0 * plane.images["right"]
        half, last = plane.epochs.index(run.half.epoch), len(plane.epochs) - 1
        # The peak is looked for on every other image, and compared on the rest: where noise made it, it is gone there.
        peak = int(information_AN[:, ::2].mean(1).argmax())
        before = int(right_AN[:-1, ::2].mean(1).argmax())
        gaps = {
            "peak over first": information_AN[peak, 1::2] - information_AN[0, 1::2],
            "peak over last": information_AN[peak, 1::2] - information_AN[last, 1::2],
            "accuracy, last over best earlier": right_AN[last, 1::2] - right_AN[before, 1::2],
            "half over full": information_AN[half] - information_AN[last],
        }
        alone = Scoring(Training(pair.student, "student", 0))
        student = lab.plane(alone) if alone in works else None
        if student is not None:
            gaps["teacher over student"] = information_AN[last] - student.information_ASN[-1].mean(0)
        for what, gap_N in gaps.items():
            error = float(np.std(gap_N, ddof=1) / np.sqrt(len(gap_N)))
            found.append({"kind": "gap", "pair": pair.name, "arm": what, "mean": float(gap_N.mean()), "error": error,
                          "n": len(gap_N), "peak_epoch": plane.epochs[peak]})  # fmt: skip
    return found


def results(scale: Scale, rows: Sequence[Row]) -> Results:
    claims = []
    for pair in curve_pairs(scale):
        claims += _observations(rows, pair)
    return Results(tables=[last_points(scale, rows)], figures=charts(scale, rows), claims=claims)


def _observations(rows: Sequence[Row], pair: Pair) -> list[Claim]:
    teachers = [
        ("1. I(X;F) first goes up", "peak over first", UNIT),
        ("1. I(X;F) then goes down", "peak over last", UNIT),
        ("1. I(Y;F) goes up to the end", "accuracy, last over best earlier", "points"),
        ("2. The larger teacher lies to the right of the student", "teacher over student", UNIT),
        ("3. The full teacher compresses more than the half-way one", "half over full", UNIT),
    ]
    claims = []
    for text, arm, unit in teachers:
        found = only(rows, kind="gap", pair=pair.name, arm=arm)
        one = found[0] if found else {"mean": float("nan"), "error": float("nan"), "n": 0}
        claims.append(claim_of(text, pair.name, one["mean"], one["error"], one["n"], unit=unit, units="image",
                               caveat="of one run: another run's curve may differ by more than images do"))  # fmt: skip
    pairs = [
        ("4. Students of the full teacher compress more than students without one", "alone", "full"),
        ("4. Students of the half-way teacher keep more I(X;F) than those of the full one", "half", "full"),
    ]
    return claims + [claim(text, pair.name, information_gaps(rows, pair, one, other), unit=UNIT, caveat=ONE_RUN)
                     for text, one, other in pairs]  # fmt: skip


def last_information(rows: Sequence[Row], pair: Pair, arm: str, what: str = "information") -> dict[int, float]:
    """I(X;F), or another number, of each student's last checkpoint, by seed."""
    return {row["seed"]: row[what] for row in only(rows, kind="point", pair=pair.name, arm=arm)
            if row["epoch"] == row["epochs"]}  # fmt: skip


def information_gaps(rows: Sequence[Row], pair: Pair, arm: str, other: str) -> list[float]:
    """By how much students of one arm keep more I(X;F) than another's, seed by seed."""
    one, two = last_information(rows, pair, arm), last_information(rows, pair, other)
    return [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]


def last_points(scale: Scale, rows: Sequence[Row]) -> Table:
    """Where students end on the plane, and how far from their teacher (Eq. 5)."""
    lines = []
    for pair in curve_pairs(scale):
        points = only(rows, kind="point", pair=pair.name, arm="teacher")
        arms = dict.fromkeys(row["arm"] for row in rows if row["kind"] == "point" and row["pair"] == pair.name)
        for arm in arms:
            accuracy = spread(list(last_information(rows, pair, arm, "accuracy").values()))
            information = list(last_information(rows, pair, arm).values())
            distance = _distance(rows, pair, arm, points) if arm in ("full", "half") else None
            lines.append([f"{pair.name}: {'teacher' if arm == 'teacher' else ARMS[arm]}",
                          f"{fmean(information):.4f}" if information else "—", accuracy,
                          "" if distance is None else f"{distance:.2f}"])  # fmt: skip
    note = (
        "I(X;F) is minus the decoder's excess loss, in nats a pixel, and I(Y;F) the accuracy, on the selection images. "
        "The distance to its teacher is that of Eq. 5, each information scaled to the range that the teacher's "
        "trajectory spans."
    )
    columns = ["last checkpoint of", "I(X;F)", "I(Y;F), %", "distance to its teacher"]
    return Table("Where networks end on the plane", columns, lines, note)


def _distance(rows: Sequence[Row], pair: Pair, arm: str, points: list[Row]) -> float | None:
    """|I(X;F_t) − I(X;F_s)| + |I(Y;F_t) − I(Y;F_s)|, the mean over students."""
    if len(points) < 2:
        return None
    planned = points[0]["epochs"]
    target = planned if arm == "full" else planned / 2
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


def charts(scale: Scale, rows: Sequence[Row]) -> list:
    """The curves of each pair on one plane: those of the first seed."""
    found = []
    for pair in curve_pairs(scale):
        named = {}
        for arm in dict.fromkeys(row["arm"] for row in rows if row["kind"] == "point" and row["pair"] == pair.name):
            points = only(rows, kind="point", pair=pair.name, arm=arm, seed=0)
            name = f"{pair.teacher}, the teacher" if arm == "teacher" else f"{pair.student}: {ARMS[arm]}"
            if points:
                named[name] = points
        if named:
            found.append(curves_chart(f"{pair.name} on the information plane", named))
    return found
