"""Measure the gain of every candidate, and the regret of the rules and searches that choose among them.

A reference set has every method with every set of teachers. For each seed, every candidate has a student of full
length and pilot runs. So the experiment can replay any search design on stored pilot runs, with any budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ..analysis.statistics import Claim, claim, paired
from ..errors import pluralize
from ..reports.charts import Table
from ..selection import RULES
from ..selection.candidates import AVERAGE, EARLIER, LAST, NO_TEACHER, SEVERAL, Candidate
from ..selection.pilot_plan import PilotOutcome
from ..selection.prior import FITTED_ON
from .designs import DESIGNS, PRIOR_ALONE
from .items import Item, Teachers, of_teacher, snapshot_ensemble, teacher
from .presets import Pair, Preset
from .results import Results, Row, mean_sd, only, students_note
from .tasks import CheckpointChoice, DistillTask, PilotRunTask, TrainTask

TITLE = "Ways to teach, and how to choose one"
KINDS = {LAST: "last", EARLIER: "0.7", SEVERAL: "midpoint + last", AVERAGE: "mean of weights 0.7–1.0"}
FITTED = "last, fitted temperature"
SEARCH = "effects"  # the design of `select --student`


def teachers_of(pair: Pair, number: int) -> dict[str, Teachers]:
    """Return the compared sets of teachers by kind, all from one run of the pair's teacher."""
    run = teacher(pair, number)
    return {
        LAST: (CheckpointChoice(run, "last"),),
        EARLIER: (CheckpointChoice(run, "0.7"),),
        SEVERAL: snapshot_ensemble(run, 2),
        AVERAGE: (CheckpointChoice(run, "mean:0.7-1.0"),),
    }


def candidates_of(preset: Preset) -> list[Candidate]:
    """Return the candidates of the reference set. Their teachers are named by kind."""
    settings = [
        (method, alpha)
        for method in preset.compared_methods
        for alpha in (preset.alphas if method == "kd" else (None,))
    ]
    taught = [Candidate((kind,), kind, method, alpha) for kind in KINDS for method, alpha in settings]
    return [NO_TEACHER, *taught]


def student(pair: Pair, candidate: Candidate, number: int, seed: int) -> TrainTask | DistillTask:
    """Return the task that trains a candidate's student at full length."""
    if candidate == NO_TEACHER:
        return TrainTask(pair.student, "student", seed)
    teachers = teachers_of(pair, number)[candidate.kind]
    return DistillTask(pair.student, teachers, seed, alpha=candidate.alpha, method=candidate.method)


def needs(preset: Preset) -> list[Item]:
    return [
        Item(pair, of_teacher(number, name), task)
        for pair in preset.pairs
        for part in (_reference_set, _fitted_temperatures, _students_of_rules, _longer_pilot_runs)
        for seed in range(preset.seeds)
        for number in range(preset.compared_teachers)
        for name, task in part(preset, pair, number, seed)
    ]


def _reference_set(
    preset: Preset, pair: Pair, number: int, seed: int
) -> Iterator[tuple[str, TrainTask | DistillTask | PilotRunTask]]:
    for candidate in candidates_of(preset):
        whole = student(pair, candidate, number, seed)
        yield _label(candidate), whole
        yield _label(candidate), PilotRunTask(whole)


def _longer_pilot_runs(preset: Preset, pair: Pair, number: int, seed: int) -> Iterator[tuple[str, PilotRunTask]]:
    for candidate in candidates_of(preset):
        yield _label(candidate), PilotRunTask(student(pair, candidate, number, seed), 2)


def _fitted_temperatures(preset: Preset, pair: Pair, number: int, seed: int) -> Iterator[tuple[str, DistillTask]]:
    """Yield students of the last checkpoint at its fitted temperature. No search compares this temperature."""
    for candidate in candidates_of(preset):
        task = student(pair, candidate, number, seed)
        if isinstance(task, DistillTask) and candidate.kind == LAST:
            yield f"{_settings(candidate)}, {FITTED}", replace(task, teacher_tau="auto")


def _students_of_rules(preset: Preset, pair: Pair, number: int, seed: int) -> Iterator[tuple[str, DistillTask]]:
    for rule in rules(preset):
        teachers = (CheckpointChoice(teacher(pair, number), rule, preset.rule_estimator),)
        yield f"rule {rule}", DistillTask(pair.student, teachers, seed, alpha=preset.alphas[0])


def rules(preset: Preset) -> list[str]:
    """Return the names of the rules, without `random`, and without `last`, whose choice is a candidate."""
    return [rule for rule in (*RULES, *preset.rules) if rule not in ("last", "random")]


def _label(candidate: Candidate) -> str:
    """Return the name of a candidate in tables."""
    return candidate.method if candidate == NO_TEACHER else f"{_settings(candidate)}, {KINDS[candidate.kind]}"


def _settings(candidate: Candidate) -> str:
    return candidate.method if candidate.alpha is None else f"{candidate.method} α {candidate.alpha:g}"


# Reading rows


@dataclass(frozen=True)
class Reference:
    """The students and pilot runs of one pair with one teacher.

    `accuracy` and `validation` map the label of a candidate or rule, then a seed, to a value in %. `pilots` maps a seed
    to its pilot runs.
    """

    accuracy: dict[str, dict[int, float]]
    validation: dict[str, dict[int, float]]
    pilots: dict[int, dict[tuple[Candidate, int], PilotOutcome]]
    runs_per_distillation: float
    labels: dict[Candidate, str]

    def seeds(self) -> list[int]:
        """Return the seeds at which every candidate has a student."""
        return sorted(set.intersection(*(set(self.accuracy.get(label, {})) for label in self.labels.values())))

    def best(self, seed: int) -> float:
        """Return the best candidate's accuracy at a seed. The other seeds' validation accuracies say which is best."""
        others = [other for other in self.seeds() if other != seed] or [seed]
        means = {label: fmean(self.validation[label][other] for other in others) for label in self.labels.values()}
        return self.accuracy[max(means, key=means.__getitem__)][seed]

    def searched(self, design: str, budget: float, default: Candidate, seed: int) -> str | None:
        """Return the candidate that a design chooses from a seed's pilot runs, or None if a pilot run is missing."""
        pilots = self.pilots.get(seed, {})
        try:
            chosen = DESIGNS[design](list(self.labels), default, pilots, budget * self.runs_per_distillation)
        except KeyError:
            return None
        return self.labels[chosen]


def reference_of(preset: Preset, rows: Sequence[Row], pair: Pair, number: int) -> Reference:
    """Return the completed part of the reference set of one pair with one teacher."""
    labels = {candidate: _label(candidate) for candidate in candidates_of(preset)}
    accuracy: dict[str, dict[int, float]] = {}
    validation: dict[str, dict[int, float]] = {}
    prefix = of_teacher(number, "")
    own = [row for row in only(rows, pair=pair.name) if row["variant"].startswith(prefix)]
    for row in only(own, kind="network"):
        name = row["variant"].removeprefix(prefix)
        accuracy.setdefault(name, {})[row["seed"]] = row["accuracy"]
        validation.setdefault(name, {})[row["seed"]] = row["val_accuracy"]
    by_label = {label: candidate for candidate, label in labels.items()}
    pilots: dict[int, dict[tuple[Candidate, int], PilotOutcome]] = {}
    runs = 0.0
    for row in only(own, kind="pilot run"):
        candidate = by_label[row["variant"].removeprefix(prefix)]
        outcome = PilotOutcome(candidate, row["information"], row["val_accuracy"] / 100, row["images"])
        pilots.setdefault(row["seed"], {})[candidate, row["lengths"]] = outcome
        runs = row["student_epochs"] * row["lengths"] / row["epochs"]
    return Reference(accuracy, validation, pilots, runs, labels)


# Tables


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    references = {
        (pair.name, number): reference_of(preset, rows, pair, number)
        for pair in preset.pairs
        for number in range(preset.compared_teachers)
    }
    tables = [_regret_table(preset, references, [number]) for number in reversed(range(preset.compared_teachers))]
    tables = [table for table in tables if table.rows] or tables[:1]
    tables += [
        _accuracy_table(preset, reference, *key)
        for key, reference in references.items()
        if reference.accuracy.keys() - {NO_TEACHER.method}
    ]
    return Results(tables=tables, claims=_claims(preset, references))


def choices(preset: Preset) -> dict[str, tuple[float, Callable[[Reference, int], str | None]]]:
    """Return the cost of each way to choose, in distillations, and a function from reference and seed to the choice."""
    default = default_of(preset)
    fixed = [candidate for candidate in candidates_of(preset) if candidate.kind in (LAST, "none")]
    ways: dict[str, tuple[float, Callable[[Reference, int], str | None]]] = {
        _label(candidate): (0.0, lambda _, __, candidate=candidate: _label(candidate)) for candidate in fixed
    }
    ways |= {f"rule {rule}": (0.0, lambda _, __, rule=rule: f"rule {rule}") for rule in rules(preset)}
    ways[PRIOR_ALONE] = (0.0, lambda reference, seed: reference.searched(PRIOR_ALONE, 0.0, default, seed))
    for budget in map(float, preset.budgets):
        for design in [design for design in DESIGNS if design != PRIOR_ALONE]:
            name = f"{design}, budget {budget:g}"
            ways[name] = (
                budget,
                lambda reference, seed, design=design, budget=budget: reference.searched(design, budget, default, seed),
            )
    return ways


def default_of(preset: Preset) -> Candidate:
    """Return `kd` from the last checkpoint with the first α."""
    return Candidate((LAST,), LAST, "kd", preset.alphas[0])


def gaps_of(
    references: Sequence[Reference], choose: Callable[[Reference, int], str | None], baseline: str | None
) -> list[float]:
    """Return the gains of a choice's students over the baseline's in points; None compares with the best candidate."""
    gaps = []
    for reference in references:
        for seed in reference.seeds():
            accuracy = reference.accuracy.get(choose(reference, seed) or "", {}).get(seed)
            other = reference.best(seed) if baseline is None else reference.accuracy.get(baseline, {}).get(seed)
            if accuracy is not None and other is not None:
                gaps.append(accuracy - other)
    return gaps


def _regret_table(preset: Preset, references: dict[tuple[str, int], Reference], numbers: Sequence[int]) -> Table:
    chosen = [reference for (_, number), reference in references.items() if number in numbers]
    default = _label(default_of(preset))
    lines = []
    for name, (cost, choose) in choices(preset).items():
        gain, regret = gaps_of(chosen, choose, default), gaps_of(chosen, choose, None)
        if regret:
            over_none = min(gaps_of(chosen, choose, NO_TEACHER.method), default=math.nan)
            lines.append(
                [
                    name,
                    str(len(gain)),
                    _interval(gain),
                    f"{-fmean(regret) + 0.0:.2f}",
                    f"{-min(regret) + 0.0:.2f}",
                    f"{over_none:+.2f}",
                    f"{cost:g}",
                ]
            )
    which = " and ".join(str(number + 1) for number in numbers)
    fitted = preset.name in FITTED_ON and 0 in numbers
    role = "; the prior was fitted on it" if fitted else ""
    columns = [
        "choice",
        "n",
        f"gain over {default}, points",
        "regret, points",
        "largest regret",
        "smallest gain over no teacher",
        "cost, distillations",
    ]
    note = (
        f"{students_note(preset, f'τ = {preset.tau:g} for kd')} n is the number of students: pairs times seeds, with "
        f"teacher {which}. Regret: accuracy of the best candidate minus that of the choice, in points. The other "
        "seeds' validation accuracies determine the best candidate, so regret can be negative. Intervals: 95%, "
        "Student's t. Searches are replayed on stored pilot runs."
    )
    return Table(f"Ways to choose, with teacher {which}{role}", columns, lines, note)


def _interval(values: Sequence[float]) -> str:
    test = paired(values)
    return f"{test.mean:+.2f}" + ("" if math.isnan(test.half_width) else f" ± {test.half_width:.2f}")


def _accuracy_table(preset: Preset, reference: Reference, pair: str, number: int) -> Table:
    """Return the accuracy of every method with every set of teachers."""
    kinds = [*KINDS.values(), FITTED]
    settings = dict.fromkeys(_settings(c) for c in reference.labels if c != NO_TEACHER)
    lines = [
        [
            setting,
            *(mean_sd(list(reference.accuracy.get(f"{setting}, {kind}", {}).values())) for kind in kinds),
        ]
        for setting in settings
    ]
    alone = mean_sd(list(reference.accuracy.get(NO_TEACHER.method, {}).values()))
    note = f"{students_note(preset, 'each method with its own defaults')} No teacher: {alone}."
    return Table(f"{pair}, teacher {number + 1}: students by method and teachers", ["method", *kinds], lines, note)


def _claims(preset: Preset, references: dict[tuple[str, int], Reference]) -> list[Claim]:
    """Return the claims that the search is better than choices without a cost, for the last run of each teacher."""
    number = preset.compared_teachers - 1
    reported = [reference for (_, own), reference in references.items() if own == number]
    where = f"teacher {number + 1}, {pluralize(len(reported), 'pair')}"
    ways = choices(preset)
    default = default_of(preset)
    fixed = [_label(candidate) for candidate in candidates_of(preset) if candidate.kind == LAST]
    means = {name: fmean(gaps) for name in fixed if (gaps := gaps_of(reported, ways[name][1], _label(default)))}
    baselines = dict.fromkeys([_label(default), *fixed[1:2], *([max(means, key=means.__getitem__)] if means else [])])
    return [
        claim(
            f"The search with budget {budget} is better than {baseline}",
            where,
            gaps_of(reported, ways[f"{SEARCH}, budget {float(budget):g}"][1], baseline),
            units="student",
            caveat="one run of each teacher",
        )
        for budget in preset.budgets
        for baseline in [*baselines, NO_TEACHER.method]
    ]
