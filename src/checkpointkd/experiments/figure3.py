"""Figure 3: ensembles of k teachers, from one run or from k, and what they cost (§3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from ..analysis.statistics import claim
from ..reports.charts import Chart, Series, Table
from .items import Item, snapshot_ensemble, student_items, teacher
from .presets import Pair, Preset
from .results import Results, Row, by_seed, gaps, mean_sd, only, students_note
from .tasks import CheckpointChoice

TITLE = "Figure 3: the size of ensembles, and their cost"
KINDS = {"snapshot": "Snapshot Ensemble", "ensemble": "Full Ensemble"}  # first word of a variant, and its name


def needs(preset: Preset) -> list[Item]:
    pair = preset.pairs[0]
    variants = {f"snapshot {k}": snapshot_ensemble(teacher(pair), k) for k in preset.snapshot_ensemble_sizes}
    variants |= {
        f"ensemble {k}": tuple(CheckpointChoice(teacher(pair, number), "last") for number in range(k))
        for k in preset.full_ensemble_sizes
    }
    return list(student_items(preset, pair, variants, scratch=False))


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    pair = preset.pairs[0]
    all_sizes = {"snapshot": preset.snapshot_ensemble_sizes, "ensemble": preset.full_ensemble_sizes}
    sizes = {kind: [k for k in all_sizes[kind] if by_seed(rows, pair, f"{kind} {k}")] for kind in KINDS}
    lines = []
    for kind, name in KINDS.items():
        for k in sizes[kind]:
            accuracies = list(by_seed(rows, pair, f"{kind} {k}").values())
            epochs, seconds = _cost(rows, pair, f"{kind} {k}")
            lines.append(
                [f"{name}, k = {k}", mean_sd(accuracies), str(len(accuracies)), f"{epochs:,}", f"{seconds:,.0f}"]
            )
    columns = ["teachers", "students' accuracy, %", "n", "epochs of teachers and student", "seconds"]
    note = (
        f"{students_note(preset)} Seconds are the measured times of the runs. They depend on other tasks at the same "
        "time and on teacher logits that were already cached, so small differences are not meaningful."
    )
    left_out = [k for k in preset.snapshot_ensemble_sizes if k not in preset.full_ensemble_sizes]
    notes = []
    if left_out:
        notes.append(
            f"Full Ensembles of k = {', '.join(map(str, left_out))} need k teachers each and are not part of preset "
            f"{preset.name!r}."
        )
    return Results(
        tables=[Table(f"Ensembles of k teachers: {pair.name}", columns, lines, note)],
        figures=[_accuracy_chart(rows, pair, sizes), _cost_chart(rows, pair, sizes)],
        claims=[
            claim(
                f"A Snapshot Ensemble of {k} teaches better than a Full Ensemble of {k}",
                pair.name,
                gaps(rows, pair, f"snapshot {k}", f"ensemble {k}"),
                caveat=f"{k} runs of the teacher; with other runs the difference may vary by more than between seeds",
            )
            for k in preset.full_ensemble_sizes
            if k > 1 and k in preset.snapshot_ensemble_sizes
        ],
        notes=notes,
    )


def _cost(rows: Sequence[Row], pair: Pair, variant: str) -> tuple[int, float]:
    """Return the epochs and the mean seconds of training the teachers, as far as needed, and the student."""
    networks = only(rows, kind="network", pair=pair.name, variant=variant)
    epochs = networks[0]["teachers_epochs"] + networks[0]["epochs"]
    return epochs, fmean(row["teachers_seconds"] + row["seconds"] for row in networks)


def _accuracy_chart(rows: Sequence[Row], pair: Pair, sizes: dict[str, list[int]]) -> Chart:
    series = []
    for color, (kind, name) in enumerate(KINDS.items()):
        accuracies = [list(by_seed(rows, pair, f"{kind} {k}").values()) for k in sizes[kind]]
        series.append(
            Series(
                name=name,
                x=sizes[kind],
                y=[fmean(values) for values in accuracies],
                error=[stdev(values) if len(values) > 1 else 0.0 for values in accuracies],
                hover=_hover(rows, pair, kind, sizes[kind]),
                color=color,
            )
        )
    return Chart(
        title=f"{pair.name}: accuracy by the size of the ensemble",
        x_title="k, teachers",
        y_title="test accuracy of the student, %",
        series=series,
        caption="Bars: one standard deviation over seeds; none for one seed.",
        alt="Accuracy against the number of teachers, for Snapshot and Full Ensembles",
    )


def _cost_chart(rows: Sequence[Row], pair: Pair, sizes: dict[str, list[int]]) -> Chart:
    return Chart(
        title=f"{pair.name}: cost by the size of the ensemble",
        x_title="k, teachers",
        y_title="epochs of training, teachers and student",
        series=[
            Series(
                name=name,
                x=sizes[kind],
                y=[_cost(rows, pair, f"{kind} {k}")[0] for k in sizes[kind]],
                hover=_hover(rows, pair, kind, sizes[kind]),
                color=color,
            )
            for color, (kind, name) in enumerate(KINDS.items())
        ],
        caption="A checkpoint costs its run up to its epoch. Each run is counted once.",
        alt="Cost against the number of teachers, for Snapshot and Full Ensembles",
    )


def _hover(rows: Sequence[Row], pair: Pair, kind: str, sizes: Sequence[int]) -> list[str]:
    hover = []
    for k in sizes:
        accuracies = list(by_seed(rows, pair, f"{kind} {k}").values())
        epochs, seconds = _cost(rows, pair, f"{kind} {k}")
        hover.append(
            f"{KINDS[kind]}, k = {k}\n{mean_sd(accuracies)}%, n = {len(accuracies)}\n{epochs:,} epochs, "
            f"{seconds:,.0f} s"
        )
    return hover
