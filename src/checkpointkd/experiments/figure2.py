"""Figure 2: students' accuracy against the epoch at which their teacher was taken (§3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from ..analysis.statistics import Claim, claim
from ..reports.charts import Chart, Series, Table
from .presets import Pair, Preset
from .results import Results, Row, by_seed, gaps, gaps_of_the_picked, only, settings_note, spread
from .table1 import best_claims, picked_caveat
from .tasks import Item, students, swept

TITLE = "Figure 2: students against the epoch of their teacher"


def needs(preset: Preset) -> list[Item]:
    return [part for pair in preset.pairs for part in students(preset, pair, swept(pair))]


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    lines = [
        [
            f"{pair.name}, {_word(rows, pair, arm)}",
            spread(list(found.values())),
            str(len(found)),
            spread(gaps(rows, pair, arm, "scratch")),
        ]
        for pair in preset.pairs
        for arm in ["scratch", *swept(pair)]
        if (found := by_seed(rows, pair, arm))
    ]
    columns = ["teacher → student, the teacher's epoch", "accuracy, %", "n", "against no teacher, points"]
    return Results(
        tables=[Table("Students by the epoch of their teacher", columns, lines, settings_note(preset))],
        figures=[_chart(rows, pair) for pair in preset.pairs if any(by_seed(rows, pair, arm) for arm in swept(pair))],
        claims=_claims(preset, rows),
    )


def _claims(preset: Preset, rows: Sequence[Row]) -> list[Claim]:
    claims = []
    for pair in preset.pairs:
        arms = list(swept(pair))
        between = [arm for arm in arms if arm != "last"]
        for text, found in (
            (
                "Even the worst teacher is better than none",
                gaps_of_the_picked(preset, rows, pair, arms, min, "scratch"),
            ),
            (
                "The curve rises from the first teacher to the best intermediate one",
                gaps_of_the_picked(preset, rows, pair, between, max, arms[0]),
            ),
        ):
            claims.append(claim(text, pair.name, found, caveat=picked_caveat(preset)))
    return [*claims, *best_claims(preset, rows)]  # that the peak isn't the last point


def _chart(rows: Sequence[Row], pair: Pair) -> Chart:
    found = {arm: by_seed(rows, pair, arm) for arm in swept(pair)}
    arms = [arm for arm, values in found.items() if values]
    of_arm = {arm: only(rows, kind="network", pair=pair.name, arm=arm) for arm in arms}
    epochs = [of_arm[arm][0]["teachers"][0][2] for arm in arms]
    alone = list(by_seed(rows, pair, "scratch").values())
    series = []
    if alone and epochs:
        series.append(
            Series(
                name="no teacher",
                style="hline",
                x=[min(epochs), max(epochs)],
                y=[fmean(alone)] * 2,
                error=[_sd(alone)] * 2,
                color=3,
            )
        )
    series.append(
        Series(
            name="one checkpoint as teacher",
            x=epochs,
            y=[fmean(found[arm].values()) for arm in arms],
            error=[_sd(list(found[arm].values())) for arm in arms],
            hover=[
                "\n".join(
                    [
                        f"teacher of epoch {epoch}: {spread(list(found[arm].values()))}%",
                        *(f"seed {row['seed']}: {row['accuracy']:.2f}%, {row['run']}" for row in of_arm[arm]),
                    ]
                )
                for arm, epoch in zip(arms, epochs, strict=True)
            ],
            color=0,
        )
    )
    return Chart(
        title=f"{pair.name}: students against the epoch of their teacher",
        x_title="epoch of the teacher",
        y_title="test accuracy of the student, %",
        series=series,
        caption="Bars and band: one standard deviation over seeds, none of one seed.",
        alt=f"Test accuracy of {pair.student} by the epoch of its teacher, beside training without a teacher",
    )


def _word(rows: Sequence[Row], pair: Pair, arm: str) -> str:
    found = only(rows, kind="network", pair=pair.name, arm=arm)
    return "no teacher" if arm == "scratch" else f"epoch {found[0]['teachers'][0][2]}"


def _sd(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
