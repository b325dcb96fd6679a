"""Figure 2: students' accuracy against the epoch of their teacher (§3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from ..analysis.statistics import Claim, claim
from ..reports.charts import Chart, Series, Table
from .items import Item, student_items, swept_teachers
from .presets import Pair, Preset
from .results import Results, Row, by_seed, gaps, mean_sd, only, picked_gaps, students_note
from .table1 import best_intermediate_claims, intermediate, picked_caveat

TITLE = "Figure 2: students against the epoch of their teacher"


def needs(preset: Preset) -> list[Item]:
    return [item for pair in preset.pairs for item in student_items(preset, pair, swept_teachers(pair))]


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    lines = [
        [
            f"{pair.name}, {_teacher_words(rows, pair, variant)}",
            mean_sd(list(accuracies.values())),
            str(len(accuracies)),
            mean_sd(gaps(rows, pair, variant, "scratch")),
        ]
        for pair in preset.pairs
        for variant in ["scratch", *swept_teachers(pair)]
        if (accuracies := by_seed(rows, pair, variant))
    ]
    columns = ["teacher → student, epoch of the teacher", "accuracy, %", "n", "gain over no teacher, points"]
    return Results(
        tables=[Table("Students by the epoch of their teacher", columns, lines, students_note(preset))],
        figures=[
            _chart(rows, pair)
            for pair in preset.pairs
            if any(by_seed(rows, pair, variant) for variant in swept_teachers(pair))
        ],
        claims=_claims(preset, rows),
    )


def _claims(preset: Preset, rows: Sequence[Row]) -> list[Claim]:
    claims = []
    for pair in preset.pairs:
        variants = list(swept_teachers(pair))
        worst = picked_gaps(preset, rows, pair, variants, min, "scratch")
        rise = picked_gaps(preset, rows, pair, intermediate(pair), max, variants[0])
        for text, differences in (
            ("Even the worst teacher is better than no teacher", worst),
            ("The curve rises from the first teacher to the best intermediate one", rise),
        ):
            claims.append(claim(text, pair.name, differences, caveat=picked_caveat(preset)))
    return [*claims, *best_intermediate_claims(preset, rows)]


def _chart(rows: Sequence[Row], pair: Pair) -> Chart:
    accuracies = {variant: list(by_seed(rows, pair, variant).values()) for variant in swept_teachers(pair)}
    variants = [variant for variant, values in accuracies.items() if values]
    networks = {variant: only(rows, kind="network", pair=pair.name, variant=variant) for variant in variants}
    epochs = [networks[variant][0]["teachers"][0][2] for variant in variants]
    scratch = list(by_seed(rows, pair, "scratch").values())
    series = []
    if scratch and epochs:
        series.append(
            Series(
                name="no teacher",
                style="level",
                x=[min(epochs), max(epochs)],
                y=[fmean(scratch)] * 2,
                error=[_sd(scratch)] * 2,
                color=3,
            )
        )
    series.append(
        Series(
            name="one checkpoint as teacher",
            x=epochs,
            y=[fmean(accuracies[variant]) for variant in variants],
            error=[_sd(accuracies[variant]) for variant in variants],
            hover=[
                "<br>".join(
                    [
                        f"teacher of epoch {epoch}: {mean_sd(accuracies[variant])}%",
                        *(f"seed {row['seed']}: {row['accuracy']:.2f}%, {row['run']}" for row in networks[variant]),
                    ]
                )
                for variant, epoch in zip(variants, epochs, strict=True)
            ],
            color=0,
        )
    )
    return Chart(
        title=f"{pair.name}: students against the epoch of their teacher",
        x_title="epoch of the teacher",
        y_title="test accuracy of the student, %",
        series=series,
        caption="Bars and band: one standard deviation over seeds; none for one seed.",
        alt=f"Test accuracy of {pair.student} by the epoch of its teacher, and without a teacher",
    )


def _teacher_words(rows: Sequence[Row], pair: Pair, variant: str) -> str:
    if variant == "scratch":
        return "no teacher"
    return f"epoch {only(rows, kind='network', pair=pair.name, variant=variant)[0]['teachers'][0][2]}"


def _sd(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
