"""Table 1: full teachers against half-way ones, and against the best intermediate one (§3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ..charts import Table
from ..comparisons import Claim, claim
from .rows import (
    ONE_RUN,
    Results,
    Row,
    by_seed,
    cell,
    compared,
    gaps_of_the_picked,
    measured,
    only,
    own_claims,
    published,
    settings_note,
    teachers_accuracy,
)
from .scales import Pair, Scale
from .work import Part, Picked, students, swept, teacher

TITLE = "Table 1: intermediate teachers against full ones"


def needs(scale: Scale) -> list[Part]:
    parts = []
    for pair in scale.pairs:
        parts += students(scale, pair, swept(pair))
        parts += [measured(pair, f"teacher, {which}", Picked(teacher(pair), which)) for which in ("full", "half")]
    return parts


def results(scale: Scale, rows: Sequence[Row]) -> Results:
    lines = []
    for pair in scale.pairs:
        arm = in_hindsight(rows, pair)
        lines.append([
            pair.name,
            *(teachers_accuracy(rows, pair, which) for which in ("full", "half")),
            *(cell(scale, rows, pair, one) for one in ("alone", "full", "half")),
            "—" if arm is None else f"{cell(scale, rows, pair, arm)} ({_epoch(rows, pair, arm)})",
        ])  # fmt: skip
        if known := published(scale, pair):
            order = ("teacher, full", "teacher, half", "alone", "full", "half", "best in hindsight")
            lines.append([f"{pair.name}, the paper", *(f"{known[one]:.2f}" if one in known else "" for one in order)])
    columns = ["teacher → student", "T full", "T half-way", "S alone", "S from T full", "S from T half-way",
               "S from the best intermediate T"]  # fmt: skip
    picked = "; the claim below picks it by the other seeds' students" if scale.seeds > 1 else ""
    note = (
        f"{settings_note(scale)} The best intermediate teacher is the one whose students are best on the selection "
        f"images, which flatters it, as the same students show how good it is{picked}. Of which epochs: "
        f"{_sweeps(scale)}."
    )
    return Results(
        tables=[Table("Students of intermediate and of full teachers", columns, lines, note)],
        claims=[
            *compared(scale, rows, "A half-way teacher teaches better than the full one", "half", "full"),
            *best_claims(scale, rows),
            *own_claims(
                scale,
                rows,
                "The full teacher is itself more accurate than the half-way one",
                "teacher, full",
                "teacher, half",
                paper="{}",
            ),
        ],
    )


def in_hindsight(rows: Sequence[Row], pair: Pair) -> str | None:
    """The intermediate teacher whose students are best on the selection images, as the name of its arm."""
    found = {
        arm: fmean(by_seed(rows, pair, arm, "selection_accuracy").values())
        for arm in swept(pair)
        if arm != "full" and by_seed(rows, pair, arm)
    }
    return max(found, key=lambda arm: found[arm], default=None)


def best_claims(scale: Scale, rows: Sequence[Row]) -> list[Claim]:
    """That some intermediate teacher is better than the full one: found with the other seeds' students on the selection
    images, measured with each seed's on the test images."""
    claims = []
    for pair in scale.pairs:
        known = published(scale, pair)
        paper = round(known["best in hindsight"] - known["full"], 2) if "best in hindsight" in known else None
        arms = [arm for arm in swept(pair) if arm != "full"]
        found = gaps_of_the_picked(scale, rows, pair, arms, max, "full")
        text = "The best intermediate teacher teaches better than the full one"
        caveat = picked_caveat(scale)
        if paper is not None:
            caveat += "; the paper's effect is of its best epoch in hindsight, which flatters it"
        claims.append(claim(text, pair.name, found, paper=paper, caveat=caveat))
    return claims


def picked_caveat(scale: Scale) -> str:
    """What to know of an arm that was picked."""
    by = "by the same students that show how good it is, there being one seed only; " if scale.seeds == 1 else ""
    on = "on the images that measure; " if scale.protocol == "paper" else ""
    return f"{'picked ' * bool(by or on)}{by}{on}{ONE_RUN}"


def _epoch(rows: Sequence[Row], pair: Pair, arm: str) -> str:
    """Which it is, and of how many, where some have no student yet."""
    epoch = only(rows, kind="network", pair=pair.name, arm=arm)[0]["teachers"][0][2]
    arms = [one for one in swept(pair) if one != "full"]
    there = sum(bool(by_seed(rows, pair, one)) for one in arms)
    return f"epoch {epoch}" + (f", the best of {there}; {len(arms) - there} missing" if there < len(arms) else "")


def _sweeps(scale: Scale) -> str:
    return "; ".join(
        f"{pair.name} at " + ", ".join(f"{part * scale.teacher_epochs:g}" for part in pair.sweep if part < 1)
        for pair in scale.pairs
    )
