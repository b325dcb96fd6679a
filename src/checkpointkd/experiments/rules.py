"""The rules that choose a teacher: their regret against the best teacher, and the cost of choosing.

Variants are named `RULE, ALPHA`, as in `algorithm1, 0.5`, and `pilot, BUDGET` for the student that a pilot search
advises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from ..analysis.statistics import Claim, Paired, claim, paired
from ..errors import pluralize
from ..reports.charts import Chart, Series, Table
from ..selection import RULES
from .context import Context
from .items import Item, snapshot_ensemble, swept_teachers, teacher
from .presets import Pair, Preset
from .results import Results, Row, by_seed, gaps, mean_gaps, mean_sd, only, students_note
from .tasks import AdvisedTask, CheckpointChoice, DistillTask, PilotTask, Task, TrainTask

Regrets = dict[str, dict[int, float]]  # in points, by pair and seed

TITLE = "The rules that choose a teacher"
PILOT = "pilot"
BOTH = "midpoint and last"  # both checkpoints teach together
LABELS = {"scratch": "no teacher", "algorithm1": "Algorithm 1", PILOT: "pilot search"}
COLUMNS = [
    "rule, weight of the labels",
    "n",
    "regret, points",
    "95% interval",
    "worst pair",
    "better than T last",
    "gain over no teacher, worst pair",
    "rank correlation",
    "cost, distillations",
]


def needs(preset: Preset) -> list[Item]:
    items = []
    for seed in range(preset.seeds):
        for pair in preset.pairs:
            items.append(Item(pair, "scratch", TrainTask(pair.student, "student", seed)))
            variants = {**swept_teachers(pair), **{rule: (CheckpointChoice(teacher(pair), rule),) for rule in rules()}}
            variants[BOTH] = snapshot_ensemble(teacher(pair), 2)
            items += [
                Item(pair, f"{variant}, {alpha:g}", DistillTask(pair.student, teachers, seed, alpha=alpha))
                for alpha in preset.alphas
                for variant, teachers in variants.items()
            ]
            for budget in preset.budgets:
                pilot = PilotTask(pair.student, teacher(pair), budget, seed)
                items += [
                    Item(pair, f"{PILOT}, {budget}", pilot),
                    Item(pair, f"{PILOT}, {budget}", AdvisedTask(pilot, seed)),
                ]
    return items


def extra_rows(context: Context, items: Sequence[Item], done: Callable[[Task], bool]) -> list[Row]:
    """Return what the rules chose."""
    rows = []
    for pair in context.preset.pairs:
        for rule in rules():
            chosen = CheckpointChoice(teacher(pair), rule)
            if all(map(done, chosen.requires())):
                choice = chosen.choice(context)
                scores = {str(epoch): score for epoch, score in choice.scores.items()}
                rows.append(
                    {"kind": "choice", "pair": pair.name, "rule": rule, "epoch": choice.epoch, "scores": scores}
                )
    return rows


def rules() -> list[str]:
    """Return the rules whose choice is not a checkpoint of the sweep by name."""
    return [rule for rule in RULES if rule not in ("midpoint", "last")]


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    by_variant = {variant: regrets(preset, rows, variant) for variant in _variants(preset)}
    by_variant = {variant: regret for variant, regret in by_variant.items() if regret}
    lines = [_line(preset, rows, variant, regret) for variant, regret in by_variant.items()]
    return Results(
        tables=[Table("Regret of the rules", COLUMNS, lines, _note(preset)), _choices_table(preset, rows)],
        figures=[_rules_chart(preset, by_variant), _cost_chart(preset, rows, by_variant)] if by_variant else [],
        claims=_claims(preset, rows, by_variant),
    )


def regrets(preset: Preset, rows: Sequence[Row], variant: str) -> Regrets:
    """Return by how many points a variant's student is behind the best teacher's, for each pair and seed.

    The best teacher is picked by the validation accuracy of the other seeds' students; with one seed, of the same
    student. If several teachers are equally good, their students' mean counts.
    """
    by_pair = {}
    for pair in preset.pairs:
        tried = _tried(rows, pair)
        accuracy = {name: by_seed(rows, pair, name) for name in tried}
        validation = {name: by_seed(rows, pair, name, "val_accuracy") for name in tried}
        runs = {name: by_seed(rows, pair, name, "run") for name in tried}
        seeds = sorted(set.intersection(*map(set, accuracy.values()))) if tried else []
        if len(seeds) < min(2, preset.seeds):
            continue
        variant_accuracy = by_seed(rows, pair, variant)
        regret = {}
        for seed in seeds:
            other_seeds = [other for other in seeds if other != seed] or seeds
            means = {name: round(fmean(validation[name][other] for other in other_seeds), 9) for name in tried}
            best = [name for name in tried if means[name] == max(means.values())]
            best_accuracy = {runs[name][seed]: accuracy[name][seed] for name in best}  # variants may share a run
            if seed in variant_accuracy:
                regret[seed] = fmean(best_accuracy.values()) - variant_accuracy[seed]
        if regret:
            by_pair[pair.name] = regret
    return by_pair


def _tried(rows: Sequence[Row], pair: Pair) -> list[str]:
    """Return the variants that a rule can choose. Those of pilot searches are among them or differ between seeds."""
    variants = dict.fromkeys(row["variant"] for row in only(rows, kind="network", pair=pair.name))
    return [variant for variant in variants if not _is_pilot(variant)]


def _variants(preset: Preset) -> list[str]:
    return [
        "scratch",
        *(f"{name}, {alpha:g}" for alpha in preset.alphas for name in ("midpoint", "last", *rules(), BOTH)),
        *(f"{PILOT}, {budget}" for budget in preset.budgets),
    ]


def _is_pilot(variant: str) -> bool:
    return variant.startswith(f"{PILOT}, ")


def _rule(variant: str) -> str:
    """Return the rule of a variant, without α, as tables show it."""
    name, _, setting = variant.partition(", ")
    return LABELS.get(name, name) + (f", budget {setting}" if name == PILOT else "")


def _alpha(variant: str) -> str | None:
    """Return the α of a variant; None for no teacher and for pilot searches, which choose α."""
    return None if _is_pilot(variant) else variant.partition(", ")[2] or None


def _label(variant: str) -> str:
    return _rule(variant) + (f", α = {_alpha(variant)}" if _alpha(variant) else "")


def _values(regret: Regrets) -> list[float]:
    return [value for by_seed in regret.values() for value in by_seed.values()]


def _cost(rows: Sequence[Row], variant: str) -> float:
    """Return the cost of choosing, in distillations of the student."""
    if not _is_pilot(variant):
        return 0.0
    pilots = only(rows, kind="pilot", variant=variant)
    return fmean(row["spent_epochs"] / row["student_epochs"] for row in pilots) if pilots else math.nan


# Tables


def _line(preset: Preset, rows: Sequence[Row], variant: str, regret: Regrets) -> list[str]:
    test = paired(_values(regret))
    last = f"last, {_alpha(variant) or format(preset.alphas[0], 'g')}"
    wins = [gap > 0 for pair in regret for gap in _gaps_of_other_students(rows, pair, variant, last)]
    gains = [fmean(gain) for pair in regret if (gain := gaps(rows, pair, variant, "scratch"))]
    correlations = _correlations(preset, rows, variant)
    return [
        _label(variant),
        str(test.n),
        f"{test.mean:.2f}",
        "" if math.isnan(test.half_width) else f"± {test.half_width:.2f}",
        f"{max(fmean(by_seed.values()) for by_seed in regret.values()):.2f}",
        f"{sum(wins)} of {len(wins)}" if wins else "",
        f"{min(gains):+.2f}" if variant != "scratch" and gains else "",
        mean_sd(correlations) if correlations else "",
        f"{_cost(rows, variant):.2f}",
    ]


def _note(preset: Preset) -> str:
    best_teacher = (
        "The best teacher has the highest validation accuracy of the other seeds' students"
        if preset.seeds > 1
        else "With one seed, the best teacher has the highest validation accuracy of the same students, which favors it"
    )
    first_alpha = f"α = {preset.alphas[0]:g}"
    return (
        f"{students_note(preset, f'α as in each line, τ = {preset.tau:g}')} Regret: points behind the student of the "
        f"best teacher, mean over {pluralize(len(preset.pairs), 'pair')} of networks and "
        f"{pluralize(preset.seeds, 'seed')}. {best_teacher}. All teachers that were tried count, including no teacher "
        "and two checkpoints together. So regret can be negative. The interval treats pairs and seeds as independent, "
        "although some share runs. Rank correlation: Spearman's correlation of a rule's scores with the mean "
        "accuracies of the checkpoints' students at the same α. For pilot searches, the scores are those of the first "
        f"pilot runs with {first_alpha}. It needs three checkpoints. Pilot searches try few checkpoints, so this "
        "column does not compare them with rules. Better than T last: the number of cases in which the student is "
        f"better than the last checkpoint's student at the same α ({first_alpha} for pilot searches and no teacher). "
        "Cases in which both are the same student are left out."
    )


def _gaps_of_other_students(rows: Sequence[Row], pair: str, variant: str, baseline: str) -> list[float]:
    """Return `gaps`, without the seeds at which both variants are the same student."""
    runs, baseline_runs = by_seed(rows, pair, variant, "run"), by_seed(rows, pair, baseline, "run")
    accuracy, baseline_accuracy = by_seed(rows, pair, variant), by_seed(rows, pair, baseline)
    return [
        accuracy[seed] - baseline_accuracy[seed]
        for seed in runs
        if seed in baseline_runs and runs[seed] != baseline_runs[seed]
    ]


def _correlations(preset: Preset, rows: Sequence[Row], variant: str) -> list[float]:
    """Return the rank correlations of a rule's scores with the accuracies of the checkpoints' students."""
    from scipy.stats import spearmanr

    correlations = []
    for pair in preset.pairs:
        if _is_pilot(variant):
            scorings = [_pilot_scores(row) for row in only(rows, kind="pilot", pair=pair.name, variant=variant)]
        else:
            choices = only(rows, kind="choice", pair=pair.name, rule=variant.partition(", ")[0])
            scorings = [{int(epoch): score for epoch, score in choice["scores"].items()} for choice in choices]
        accuracy = _accuracy_by_epoch(rows, pair, float(_alpha(variant) or preset.alphas[0]))
        for scores in scorings:
            epochs = [epoch for epoch in scores if epoch in accuracy]
            if len(epochs) > 2 and len({scores[epoch] for epoch in epochs}) > 1:
                pairs = [scores[epoch] for epoch in epochs], [accuracy[epoch] for epoch in epochs]
                correlations.append(spearmanr(*pairs).statistic)  # type: ignore[attr-defined]
    return [correlation for correlation in correlations if not math.isnan(correlation)]


def _pilot_scores(row: Row) -> dict[int, float]:
    """Return H(Y) − CE after the first pilot runs of single checkpoints, by epoch."""
    single = [run for run in row["pilot_runs"] if len(run["epochs"]) == 1]
    return {
        run["epochs"][0]: run["information"]
        for run in single
        if (run["pilot_epochs"], run["alpha"]) == (single[0]["pilot_epochs"], single[0]["alpha"])
    }


def _accuracy_by_epoch(rows: Sequence[Row], pair: Pair, alpha: float) -> dict[int, float]:
    """Return the mean accuracy of each checkpoint's students with this α, of checkpoints with a student per seed."""
    accuracy: dict[int, dict[int, float]] = {}
    for variant in _tried(rows, pair):
        for row in only(rows, kind="network", pair=pair.name, variant=variant, alpha=alpha):
            if len(row["teachers"]) == 1:
                accuracy.setdefault(row["teachers"][0][2], {})[row["seed"]] = row["accuracy"]
    seeds = max(map(len, accuracy.values()), default=0)
    return {epoch: fmean(values.values()) for epoch, values in accuracy.items() if len(values) == seeds}


def _choices_table(preset: Preset, rows: Sequence[Row]) -> Table:
    """Return the table of the epochs that each rule chose, and what pilot searches advised."""
    names = [pair.name for pair in preset.pairs]
    lines = []
    for rule in rules():
        chosen = {row["pair"]: str(row["epoch"]) for row in only(rows, kind="choice", rule=rule)}
        lines.append([_label(rule), *(chosen.get(name, "—") for name in names)])
    for budget in preset.budgets:
        variant = f"{PILOT}, {budget}"
        pilots = [only(rows, kind="pilot", pair=name, variant=variant) for name in names]
        lines.append([_label(variant), *("; ".join(map(_advice, of_pair)) or "—" for of_pair in pilots)])
    note = "Chosen epochs. For pilot searches: the epochs of the teachers and α, for each seed."
    return Table("Choices", ["rule", *names], lines, note)


def _advice(row: Row) -> str:
    return f"{' + '.join(map(str, row['epochs']))}, {row['alpha']:g}" if row["epochs"] else "no teacher"


# Figures


def _rules_chart(preset: Preset, by_variant: dict[str, Regrets]) -> Chart:
    """Return a chart of the mean regret of each rule, the smallest first, by weight of the labels."""
    tests = {variant: paired(_values(regret)) for variant, regret in by_variant.items()}
    ranked = sorted(tests, key=lambda variant: tests[variant].mean)
    names = list(dict.fromkeys(map(_rule, ranked)))
    series = []
    for alpha in [*(f"{alpha:g}" for alpha in preset.alphas), None]:
        variants = [variant for variant in ranked if _alpha(variant) == alpha]
        if variants:
            series.append(
                Series(
                    name="no teacher, and pilot searches, which choose α" if alpha is None else f"α = {alpha}",
                    x=[names.index(_rule(variant)) for variant in variants],
                    y=[tests[variant].mean for variant in variants],
                    error=[_half_width(tests[variant]) for variant in variants],
                    hover=[f"{_label(variant)}: {tests[variant].mean:.2f} points" for variant in variants],
                    style="points",
                    symbol="diamond" if alpha is None else "circle",
                )
            )
    return Chart(
        title="Regret of the rules",
        x_title="rule",
        y_title="points behind the best teacher's student",
        x_names=names,
        series=series,
        caption=_caption(preset),
        alt="Mean regret of each rule, by weight of the labels",
    )


def _cost_chart(preset: Preset, rows: Sequence[Row], by_variant: dict[str, Regrets]) -> Chart:
    """Return a chart of mean regret against cost. Rules that use the teacher alone cost no distillation."""
    series = []
    for color, (name, is_pilot) in enumerate([("rules that use the teacher alone", False), ("pilot search", True)]):
        variants = [variant for variant in by_variant if _is_pilot(variant) == is_pilot]
        tests = [paired(_values(by_variant[variant])) for variant in variants]
        if variants:
            series.append(
                Series(
                    name=name,
                    x=[_cost(rows, variant) for variant in variants],
                    y=[test.mean for test in tests],
                    error=[_half_width(test) for test in tests],
                    hover=[
                        f"{_label(name)}: {test.mean:.2f} points" for name, test in zip(variants, tests, strict=True)
                    ],
                    style="line" if is_pilot else "points",
                    color=color,
                )
            )
    return Chart(
        title="Regret against cost",
        x_title="cost of choosing, distillations",
        y_title="points behind the best teacher's student",
        series=series,
        caption=_caption(preset),
        alt="Mean regret of each rule against the cost of choosing",
    )


def _half_width(test: Paired) -> float:
    return 0.0 if math.isnan(test.half_width) else test.half_width


def _caption(preset: Preset) -> str:
    pairs, seeds = pluralize(len(preset.pairs), "pair"), pluralize(preset.seeds, "seed")
    return f"Bars: 95% intervals over {pairs} and {seeds}."


# Claims


def _claims(preset: Preset, rows: Sequence[Row], by_variant: dict[str, Regrets]) -> list[Claim]:
    """Return the claims that pilot searches beat the best rule in hindsight, and no teacher."""
    where = f"the average of {pluralize(len(preset.pairs), 'pair')} of networks"
    mean = {
        variant: fmean(_values(regret))
        for variant, regret in by_variant.items()
        if len(regret) == len(preset.pairs) and not _is_pilot(variant)
    }
    candidates = [variant for variant in mean if variant.partition(", ")[0] not in ("scratch", BOTH)]
    best = min(candidates, key=mean.__getitem__, default=None)
    best_label = "the best rule in hindsight" + (f" ({_label(best)})" if best else "")
    claims = []
    for variant in [f"{PILOT}, {budget}" for budget in preset.budgets]:
        for baseline, name in ((best, best_label), ("scratch", LABELS["scratch"])):
            differences = mean_gaps(rows, preset.pairs, variant, baseline) if baseline else []
            text = f"Students advised by {_label(variant)} are better than those of {name}"
            claims.append(claim(text, where, differences, caveat="one run of each teacher"))
    return claims
