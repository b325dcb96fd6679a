"""Table 1: full teachers against half-way ones, and against the best intermediate one (§3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ..analysis.statistics import Claim, claim
from ..reports.charts import Table
from .presets import Pair, Preset
from .results import (
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
from .tasks import CheckpointChoice, Item, students, swept, teacher

TITLE = "Table 1: intermediate teachers against full ones"


def needs(preset: Preset) -> list[Item]:
    parts = []
    for pair in preset.pairs:
        parts += students(preset, pair, swept(pair))
        parts += [
            measured(pair, f"teacher, {which}", CheckpointChoice(teacher(pair), which))
            for which in ("last", "midpoint")
        ]
    return parts


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    lines = []
    for pair in preset.pairs:
        arm = in_hindsight(rows, pair)
        lines.append(
            [
                pair.name,
                *(teachers_accuracy(rows, pair, which) for which in ("last", "midpoint")),
                *(cell(preset, rows, pair, one) for one in ("scratch", "last", "midpoint")),
                "—" if arm is None else f"{cell(preset, rows, pair, arm)} ({_epoch(rows, pair, arm)})",
            ]
        )
        if known := published(preset, pair):
            order = ("teacher, last", "teacher, midpoint", "scratch", "last", "midpoint", "best in hindsight")
            lines.append([f"{pair.name}, the paper", *(f"{known[one]:.2f}" if one in known else "" for one in order)])
    columns = [
        "teacher → student",
        "T full",
        "T half-way",
        "S alone",
        "S from T full",
        "S from T half-way",
        "S from the best intermediate T",
    ]
    picked = "; the claim below picks it by the other seeds' students" if preset.seeds > 1 else ""
    note = (
        f"{settings_note(preset)} The best intermediate teacher is the one whose students are best on the selection "
        f"images, which flatters it, as the same students show how good it is{picked}. Of which epochs: "
        f"{_sweeps(preset)}."
    )
    return Results(
        tables=[Table("Students of intermediate and of full teachers", columns, lines, note)],
        claims=[
            *compared(preset, rows, "A half-way teacher teaches better than the full one", "midpoint", "last"),
            *best_claims(preset, rows),
            *own_claims(
                preset,
                rows,
                "The full teacher is itself more accurate than the half-way one",
                "teacher, last",
                "teacher, midpoint",
                paper="{}",
            ),
        ],
    )


def in_hindsight(rows: Sequence[Row], pair: Pair) -> str | None:
    """The intermediate teacher whose students are best on the selection images, as the name of its arm."""
    found = {
        arm: fmean(by_seed(rows, pair, arm, "val_accuracy").values())
        for arm in swept(pair)
        if arm != "last" and by_seed(rows, pair, arm)
    }
    return max(found, key=lambda arm: found[arm], default=None)


def best_claims(preset: Preset, rows: Sequence[Row]) -> list[Claim]:
    """That some intermediate teacher is better than the full one: found with the other seeds' students on the selection
    images, measured with each seed's on the test images."""
    claims = []
    for pair in preset.pairs:
        known = published(preset, pair)
        paper = round(known["best in hindsight"] - known["last"], 2) if "best in hindsight" in known else None
        arms = [arm for arm in swept(pair) if arm != "last"]
        found = gaps_of_the_picked(preset, rows, pair, arms, max, "last")
        text = "The best intermediate teacher teaches better than the full one"
        caveat = picked_caveat(preset)
        if paper is not None:
            caveat += "; the paper's effect is of its best epoch in hindsight, which flatters it"
        claims.append(claim(text, pair.name, found, paper=paper, caveat=caveat))
    return claims


def picked_caveat(preset: Preset) -> str:
    """What to know of an arm that was picked."""
    by = "by the same students that show how good it is, there being one seed only; " if preset.seeds == 1 else ""
    on = "on the images that measure; " if preset.select_on == "test" else ""
    return f"{'picked ' * bool(by or on)}{by}{on}{ONE_RUN}"


def _epoch(rows: Sequence[Row], pair: Pair, arm: str) -> str:
    """Which it is, and of how many, where some have no student yet."""
    epoch = only(rows, kind="network", pair=pair.name, arm=arm)[0]["teachers"][0][2]
    arms = [one for one in swept(pair) if one != "last"]
    there = sum(bool(by_seed(rows, pair, one)) for one in arms)
    return f"epoch {epoch}" + (f", the best of {there}; {len(arms) - there} missing" if there < len(arms) else "")


def _sweeps(preset: Preset) -> str:
    return "; ".join(
        f"{pair.name} at " + ", ".join(f"{part * preset.teacher_epochs:g}" for part in pair.sweep if part < 1)
        for pair in preset.pairs
    )
