"""Which teacher is best: checkpoints of one run, their ensembles and weight averages, or runs trained differently.

Tables compare every variant with the last checkpoint, for the same student network and seed. The list of claims is
fixed: it does not depend on results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ..analysis.statistics import MIN_PAIRS, Claim, claim, paired
from ..errors import pluralize
from ..reports.charts import Chart, Series, Table
from .items import Item, Teachers, evaluation, of_teacher, snapshot_ensemble, teacher
from .presets import Pair, Preset
from .results import Results, Row, by_seed, mean_sd, mean_sd_n, only, students_note
from .tasks import CheckpointChoice, DistillTask, TrainTask

TITLE = "Which teacher is best"
SCRATCH = "no teacher"
MIDPOINT, LAST, CHOSEN = "midpoint", "last", "T*"
CHECKPOINTS = {"0.3": "0.3", MIDPOINT: "midpoint", "0.7": "0.7", LAST: "last", CHOSEN: "best"}
EARLIER = ("0.3", MIDPOINT, "0.7")
BEST_EARLIER = "the best of 0.3, midpoint and 0.7"
TWO, FOUR = "midpoint + last", "Snapshot Ensemble of 4"
MEAN, DECAY_MEAN = "mean of weights 0.7–1.0", "decaying mean of weights"
SHORTER, SQUARED_ERROR = "half the epochs", "squared error"
FITTED, MATCHED = "fitted τ", "matched τ"
CLAIMS = (
    ("The last checkpoint teaches better than no teacher", LAST, SCRATCH),
    ("The midpoint teaches better than the last checkpoint", MIDPOINT, LAST),
    ("The checkpoint at 0.7 teaches better than the last", "0.7", LAST),
    ("T* teaches better than the last checkpoint", CHOSEN, LAST),
    ("The best earlier checkpoint teaches better than the last", BEST_EARLIER, LAST),
    ("Midpoint and last together teach better than the last alone", TWO, LAST),
    ("A Snapshot Ensemble of 4 teaches better than the last checkpoint", FOUR, LAST),
    ("The mean of the weights teaches better than the last checkpoint", MEAN, LAST),
    ("The decaying mean of the weights teaches better than the last checkpoint", DECAY_MEAN, LAST),
    ("A training of half the epochs teaches better than the midpoint", SHORTER, MIDPOINT),
    ("A teacher trained with squared error teaches better than the last checkpoint", SQUARED_ERROR, LAST),
    ("The midpoint teaches better than the last, each at its fitted τ", f"{MIDPOINT}, {FITTED}", f"{LAST}, {FITTED}"),
    ("The midpoint teaches better than the last, at the same logit scale", f"{MIDPOINT}, {MATCHED}", LAST),
)
CAVEAT_RUNS = "each value is the mean over the students of one teacher run"
CAVEAT_STUDENTS = "too few teacher runs to test; students of one run are not independent, so the interval is too narrow"


def teachers_of(preset: Preset, pair: Pair, number: int) -> dict[str, Teachers]:
    """Return the compared teachers by name. With several runs, two ensembles also have a checkpoint of the next run."""
    run = teacher(pair, number)
    shorter, squared = replace(run, share=0.5), replace(run, loss="squared-error")
    teachers = {name: (CheckpointChoice(run, which),) for name, which in CHECKPOINTS.items()}
    teachers |= {TWO: snapshot_ensemble(run, 2), FOUR: snapshot_ensemble(run, 4)}
    if preset.compared_teachers > 1:
        other = teacher(pair, (number + 1) % preset.compared_teachers)
        for which in (LAST, MIDPOINT):
            teachers[f"{which} of another run + last"] = (
                CheckpointChoice(other, CHECKPOINTS[which]),
                CheckpointChoice(run, "last"),
            )
    teachers |= {
        MEAN: (CheckpointChoice(run, "mean:0.7-1.0"),),
        DECAY_MEAN: (CheckpointChoice(run, "decay-mean:0.9"),),
        SHORTER: (CheckpointChoice(shorter, "last"),),
        SQUARED_ERROR: (CheckpointChoice(squared, "last"),),
    }
    return teachers


def students_of(preset: Preset, pair: Pair, number: int, seed: int) -> dict[str, DistillTask]:
    """Return the students of one teacher run and seed, by variant."""
    teachers = teachers_of(preset, pair, number)
    students = {
        name: DistillTask(pair.student, members, seed, method=preset.method) for name, members in teachers.items()
    }
    for name in (MIDPOINT, LAST):
        students[f"{name}, {FITTED}"] = replace(students[name], teacher_tau="auto")
    students[f"{MIDPOINT}, {MATCHED}"] = replace(students[MIDPOINT], teacher_tau="matched")
    for setting, (method, alpha) in further_settings(preset).items():
        for name in (*EARLIER[1:], LAST, TWO):
            students[f"{name}, {setting}"] = replace(students[name], method=method, alpha=alpha)
    return students


def further_settings(preset: Preset) -> dict[str, tuple[str, float | None]]:
    """Return the preset's `further_settings`, by their names in tables."""
    return {
        method if alpha is None else f"{method} α {alpha:g}": (method, alpha)
        for method, alpha in preset.further_settings
    }


def needs(preset: Preset) -> list[Item]:
    items = []
    for seed in range(preset.seeds):
        for pair in preset.pairs:
            items.append(Item(pair, SCRATCH, TrainTask(pair.student, "student", seed)))
            for number in range(preset.compared_teachers):
                students = students_of(preset, pair, number, seed)
                items += [Item(pair, of_teacher(number, name), task) for name, task in students.items()]
    for pair in preset.pairs:
        for number in range(preset.compared_teachers):
            items += [
                evaluation(pair, of_teacher(number, f"accuracy of {name}"), *members)
                for name, members in teachers_of(preset, pair, number).items()
            ]
    return items


# Reading rows


@dataclass(frozen=True)
class Students:
    """The students of one pair and one teacher run: test and validation accuracy in %, by variant and seed."""

    accuracy: dict[str, dict[int, float]]
    validation: dict[str, dict[int, float]]

    def gaps(self, variant: str, baseline: str) -> list[float]:
        """Return the gain of a variant over the baseline for each seed that has both."""
        first, second = self.accuracy.get(variant, {}), self.accuracy.get(baseline, {})
        return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def read_students(preset: Preset, rows: Sequence[Row], pair: Pair, number: int) -> Students:
    """Return the students in `rows` of one teacher run, and those without a teacher."""
    names = {name: of_teacher(number, name) for name in students_of(preset, pair, number, 0)} | {SCRATCH: SCRATCH}
    return Students(
        {name: by_seed(rows, pair, variant) for name, variant in names.items()},
        {name: by_seed(rows, pair, variant, "val_accuracy") for name, variant in names.items()},
    )


def best_earlier_gaps(by_teacher: Sequence[Students]) -> list[list[float]]:
    """Return the gains of the best earlier checkpoint over the last one, for one pair, by teacher run.

    The best earlier checkpoint has the highest mean validation accuracy of the other runs' students. If no other run
    has such students, students of the other seeds decide. So no student takes part in its own choice.
    """
    gains: list[list[float]] = []
    for students in by_teacher:
        gains.append([])
        other_runs = [
            other for other in by_teacher if other is not students and all(other.validation[name] for name in EARLIER)
        ]
        baseline = students.accuracy[LAST]
        for seed in sorted(set.intersection(*(set(students.accuracy[name]) for name in EARLIER)) & baseline.keys()):
            others = {
                name: [
                    value
                    for other in other_runs or [students]
                    for other_seed, value in other.validation[name].items()
                    if other_runs or other_seed != seed
                ]
                for name in EARLIER
            }
            if all(others.values()):
                best = max(EARLIER, key=lambda name, others=others: fmean(others[name]))
                gains[-1].append(students.accuracy[best][seed] - baseline[seed])
    return gains


# Tables


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    students = {
        pair: [read_students(preset, rows, pair, number) for number in range(preset.compared_teachers)]
        for pair in preset.pairs
    }
    figures = [_figure(preset, pair, by_teacher) for pair, by_teacher in students.items()]
    return Results(
        tables=[_table(preset, rows, pair, by_teacher) for pair, by_teacher in students.items()],
        figures=[figure for figure in figures if figure.series],
        claims=[_claim(students, *texts) for texts in CLAIMS],
    )


def _gaps(by_teacher: Sequence[Students], variant: str, baseline: str) -> list[list[float]]:
    """Return the gains of a variant over the baseline for one pair, by teacher run."""
    if variant == BEST_EARLIER:
        return best_earlier_gaps(by_teacher)
    return [students.gaps(variant, baseline) for students in by_teacher]


def _claim(students: dict[Pair, list[Students]], text: str, variant: str, baseline: str) -> Claim:
    """Return a claim over the means of teacher runs, or over students if there are too few runs to test."""
    by_run: dict[tuple[str, int], list[float]] = {}
    for pair, by_teacher in students.items():
        for number, gaps in enumerate(_gaps(by_teacher, variant, baseline)):
            by_run.setdefault((pair.teacher, number), []).extend(gaps)  # pairs share the runs of their teacher
    runs = [gaps for gaps in by_run.values() if gaps]
    where = pluralize(max(len(runs), 1), "teacher run")
    if len(runs) >= MIN_PAIRS:
        return claim(text, where, [fmean(gaps) for gaps in runs], units="teacher run", caveat=CAVEAT_RUNS)
    return claim(text, where, [gap for gaps in runs for gap in gaps], units="student", caveat=CAVEAT_STUDENTS)


def _table(preset: Preset, rows: Sequence[Row], pair: Pair, by_teacher: Sequence[Students]) -> Table:
    scratch = mean_sd_n(preset, list(by_teacher[0].accuracy[SCRATCH].values()))
    lines = [[SCRATCH, "", *[scratch] * len(by_teacher), _gain(by_teacher, SCRATCH)]]
    for name in (*students_of(preset, pair, 0, 0), BEST_EARLIER):
        accuracies = [mean_sd_n(preset, list(students.accuracy.get(name, {}).values())) for students in by_teacher]
        of_teachers = [
            f"{measured[0]['accuracy']:.1f}"
            for number in range(len(by_teacher))
            if (measured := only(rows, kind="measured", pair=pair.name, variant=_accuracy_of(number, name)))
        ]
        if any(accuracy != "—" for accuracy in accuracies) or (
            name == BEST_EARLIER and any(_gaps(by_teacher, name, LAST))
        ):
            cells = [""] * len(by_teacher) if name == BEST_EARLIER else accuracies
            lines.append([name, " and ".join(of_teachers), *cells, _gain(by_teacher, name)])
    columns = [
        "teacher",
        "its accuracy, %",
        *(f"students of run {number + 1}, %" for number in range(len(by_teacher))),
        "gain over last, points",
    ]
    settings = f"α = {preset.alpha:g} and τ = {preset.tau:g}" if preset.method == "kd" else "its default α and τ"
    note = (
        f"{students_note(preset, f'{preset.method}, {settings} unless stated')} Accuracies of "
        f"teachers are test accuracies. Gains: mean over students with a 95% interval (Student's t), n "
        "students. Other runs' students, or seeds, choose the best of 0.3, midpoint and 0.7."
    )
    return Table(f"{pair.name}: teachers", columns, lines, note)


def _accuracy_of(number: int, name: str) -> str:
    return of_teacher(number, f"accuracy of {name.partition(', ')[0]}")


def _gain(by_teacher: Sequence[Students], name: str) -> str:
    gaps = [] if name == LAST else [gap for of_run in _gaps(by_teacher, name, LAST) for gap in of_run]
    if not gaps:
        return "" if name == LAST else "—"
    test = paired(gaps)
    interval = "" if math.isnan(test.half_width) else f" ± {test.half_width:.2f}"
    return f"{test.mean:+.2f}{interval} (n = {test.n})"


def _figure(preset: Preset, pair: Pair, by_teacher: Sequence[Students]) -> Chart:
    """Return the accuracy of students by the fraction of the teacher's training."""
    fractions = {"0.3": 0.3, MIDPOINT: 0.5, "0.7": 0.7, LAST: 1.0}
    series = []
    for number, students in enumerate(by_teacher):
        values = {name: list(students.accuracy[name].values()) for name in fractions if students.accuracy[name]}
        if values:
            series.append(
                Series(
                    name=f"run {number + 1} of the teacher",
                    x=[fractions[name] for name in values],
                    y=[fmean(accuracies) for accuracies in values.values()],
                    hover=[f"{name}: {mean_sd(accuracies)}%" for name, accuracies in values.items()],
                )
            )
    scratch = list(by_teacher[0].accuracy[SCRATCH].values())
    if series and scratch:
        series.append(Series(name=SCRATCH, x=[0.3, 1.0], y=[fmean(scratch)] * 2, style="hline"))
    return Chart(
        title=f"{pair.name}: students by the age of the teacher",
        x_title="fraction of the teacher's training",
        y_title="test accuracy of the student, %",
        series=series,
        caption=students_note(preset),
        alt="Accuracy of students against the fraction of the teacher's training, for each run of the teacher",
    )
