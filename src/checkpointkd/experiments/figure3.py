"""Figure 3: ensembles of k teachers, from one run or from k, and what they cost (§3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from ..analysis.statistics import claim
from ..reports.charts import Chart, Series, Table
from .presets import Pair, Preset
from .results import Results, Row, by_seed, gaps, only, settings_note, spread
from .table2 import TWO_RUNS
from .tasks import CheckpointChoice, Item, snapshot, students, teacher

TITLE = "Figure 3: the size of ensembles, and their cost"
KINDS = {"snapshot": "Snapshot Ensemble", "ensemble": "Full Ensemble"}


def needs(preset: Preset) -> list[Item]:
    pair = preset.pairs[0]
    arms = {f"snapshot {k}": snapshot(teacher(pair), k) for k in preset.snapshot_sizes}
    arms |= {
        f"ensemble {k}": tuple(CheckpointChoice(teacher(pair, n), "last") for n in range(k)) for k in preset.full_sizes
    }
    return list(students(preset, pair, arms, alone=False))


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    pair = preset.pairs[0]
    sizes = {"snapshot": preset.snapshot_sizes, "ensemble": preset.full_sizes}
    there = [(kind, k) for kind in KINDS for k in sizes[kind] if by_seed(rows, pair, f"{kind} {k}")]
    lines = []
    for kind, k in there:
        one, (cost, seconds) = by_seed(rows, pair, f"{kind} {k}"), _cost(rows, pair, f"{kind} {k}")
        lines.append(
            [f"{KINDS[kind]}, k = {k}", spread(list(one.values())), str(len(one)), f"{cost:,}", f"{seconds:,.0f}"]
        )
    columns = ["teachers", "students' accuracy, %", "n", "epochs, teachers and student", "seconds"]
    note = (
        f"{settings_note(preset)} Seconds are those of the runs as they were, beside others where several ran at once, "
        "and with more or less of the teachers' answers kept from runs before: small differences tell nothing."
    )
    notes = []
    left_out = [k for k in preset.snapshot_sizes if k not in preset.full_sizes]
    if left_out:
        notes.append(
            f"Full Ensembles of k = {', '.join(map(str, left_out))} need as many teachers, and are no part of "
            f"the scale {preset.name!r}."
        )
    return Results(
        tables=[Table(f"Ensembles of k teachers: {pair.name}", columns, lines, note)],
        figures=[
            _chart(rows, pair, there, "accuracy", "test accuracy of the student, %"),
            _chart(rows, pair, there, "cost", "epochs of training, teachers and student"),
        ],
        claims=[
            claim(
                f"A Snapshot Ensemble of {k} teaches better than a Full Ensemble of {k}",
                pair.name,
                gaps(rows, pair, f"snapshot {k}", f"ensemble {k}"),
                caveat=TWO_RUNS.replace("two", f"{k}"),
            )
            for k in preset.full_sizes
            if k > 1 and k in preset.snapshot_sizes
        ],
        notes=notes,
    )


def _cost(rows: Sequence[Row], pair: Pair, arm: str) -> tuple[int, float]:
    """Epochs, and seconds, that training the teachers as far as needed and then the student took."""
    found = only(rows, kind="network", pair=pair.name, arm=arm)
    epochs = found[0]["teachers_epochs"] + found[0]["epochs"]
    return epochs, fmean(row["teachers_seconds"] + row["seconds"] for row in found)


def _chart(rows: Sequence[Row], pair: Pair, there: list[tuple[str, int]], what: str, y_title: str) -> Chart:
    series = []
    for number, (kind, name) in enumerate(KINDS.items()):
        sizes = [k for one, k in there if one == kind]
        values = [list(by_seed(rows, pair, f"{kind} {k}").values()) for k in sizes]
        costs = [_cost(rows, pair, f"{kind} {k}") for k in sizes]
        of_accuracy = what == "accuracy"
        series.append(
            Series(
                name=name,
                x=list(sizes),
                y=[fmean(one) for one in values] if of_accuracy else [epochs for epochs, _ in costs],
                error=[stdev(one) if len(one) > 1 else 0.0 for one in values] if of_accuracy else None,
                hover=[
                    f"{name}, k = {k}\n{spread(one)}%, n = {len(one)}\n{epochs:,} epochs, {seconds:,.0f} s"
                    for k, one, (epochs, seconds) in zip(sizes, values, costs, strict=True)
                ],
                color=number,
            )
        )
    return Chart(
        title=f"{pair.name}: {'accuracy' if what == 'accuracy' else 'cost'} by the size of the ensemble",
        x_title="k, teachers",
        y_title=y_title,
        series=series,
        caption="Bars: one standard deviation over seeds, none of one seed."
        if what == "accuracy"
        else "A checkpoint costs its run up to its epoch, a run counted once.",
        alt=f"{what} against the number of teachers, for Snapshot and Full Ensembles",
    )
