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
from .rows import ARMS, ONE_RUN, Results, Row, images_note, only, spread
from .scales import Pair, Scale
from .work import Part, Scoring, single, students, teacher

TITLE = "Figure 4: information planes of teachers and students"
UNIT = "nats a pixel"
COLOURS = {"teacher": 1, "alone": 3, "full": 0, "half": 4, "uniform": 6}  # as in the paper: red, grey, blues, yellow


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
        information_ASN, right_AN = plane.information_ASN, 100.0 * plane.images["right"]
        half, last = plane.epochs.index(run.half.epoch), len(plane.epochs) - 1
        # The peak is looked for on every other image, and compared on the rest, where the images' noise had no part.
        seen_A, right_A = information_ASN[:, :, ::2].mean((1, 2)), right_AN[:, ::2].mean(1)
        later, earlier, before = 1 + int(seen_A[1:].argmax()), int(seen_A[:-1].argmax()), int(right_A[:-1].argmax())
        apart_SN = information_ASN[:, :, 1::2]
        gaps = {
            "peak over first": (apart_SN[later] - apart_SN[0], later),
            "peak over last": (apart_SN[earlier] - apart_SN[last], earlier),
            "accuracy, last over best earlier": (right_AN[None, last, 1::2] - right_AN[None, before, 1::2], before),
            "half over full": (information_ASN[half] - information_ASN[last], half),
            "accuracy, full over half": (right_AN[None, last] - right_AN[None, half], half),
        }
        for what, (gap_SN, at) in gaps.items():
            error, degrees = _error(gap_SN)
            found.append({"kind": "gap", "pair": pair.name, "arm": what, "mean": float(gap_SN.mean()), "error": error,
                          "degrees": degrees, "n": gap_SN.shape[1], "epoch": plane.epochs[at]})  # fmt: skip
    return found


def _error(gap_SN: np.ndarray) -> tuple[float, float]:
    """The standard error of a mean over images and over the estimator's fits, and its degrees of freedom
    (Satterthwaite, Biometrics 1946)."""
    fits, images = gap_SN.shape
    of_images = gap_SN.mean(0).var(ddof=1) / images
    of_fits = gap_SN.mean(1).var(ddof=1) / fits if fits > 1 else 0.0
    both = of_images + of_fits
    spent = of_images**2 / (images - 1) + (of_fits**2 / (fits - 1) if fits > 1 else 0.0)
    return float(np.sqrt(both)), float(both**2 / spent) if spent > 0 else float(images - 1)


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
        ("3. The full teacher keeps less of the image than the half-way one", "half over full", UNIT),
        ("3. The full teacher knows more of the label than the half-way one", "accuracy, full over half", "points"),
    ]
    claims = []
    for text, arm, unit in teachers:
        found = only(rows, kind="gap", pair=pair.name, arm=arm)
        one = found[0] if found else {"mean": float("nan"), "error": float("nan"), "degrees": 1.0, "n": 0, "epoch": 0}
        caveat = "of one run: another run's curve may differ by more than images do"
        if "over first" in arm or "over last" in arm or "best earlier" in arm:
            caveat = f"against epoch {one['epoch']}, picked on other images; {caveat}"
        claims.append(claim_of(text, pair.name, one["mean"], one["error"], one["n"], unit=unit, units="image",
                               degrees=one["degrees"],
                               caveat=caveat))  # fmt: skip
    last = last_information(rows, pair, "teacher").values()
    wider = [mine - alone for mine in last for alone in last_information(rows, pair, "alone").values()]
    larger = claim("2. The larger teacher keeps more of the image than the student", pair.name, wider, unit=UNIT,
                   caveat=ONE_RUN)  # fmt: skip
    pairs = [
        ("4. Students of the full teacher keep less of the image than students without one", "alone", "full"),
        ("4. Students of the half-way teacher keep more of the image than those of the full one", "half", "full"),
    ]
    of_students = [
        claim(text, pair.name, information_gaps(rows, pair, one, other), unit=UNIT, caveat=ONE_RUN)
        for text, one, other in pairs
    ]
    return [*claims[:3], larger, *claims[3:], *of_students]


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
                          spread(information, digits=4), accuracy,
                          "" if distance is None else f"{distance:.2f}"])  # fmt: skip
    note = (
        "I(X;F) is minus the decoder's excess loss, in nats a pixel, and I(Y;F) the accuracy, on the selection images. "
        "The distance to its teacher is that of Eq. 5, each information scaled to the range that the teacher's "
        f"trajectory spans. {images_note(scale, 'selection')}"
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
        named, colours = {}, []
        for arm in dict.fromkeys(row["arm"] for row in rows if row["kind"] == "point" and row["pair"] == pair.name):
            points = only(rows, kind="point", pair=pair.name, arm=arm, seed=0)
            name = f"{pair.teacher}, the teacher" if arm == "teacher" else f"{pair.student}: {ARMS[arm]}"
            if points:
                named[name] = points
                colours.append(COLOURS[arm])
        if named:
            found.append(curves_chart(f"{pair.name} on the information plane", named, colours=colours))
    return found
