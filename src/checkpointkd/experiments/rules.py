"""The rules that choose a teacher: how far their students are behind the best, and what choosing costs (SPEC §6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from ..analysis.statistics import Claim, claim, paired
from ..errors import pluralize
from ..reports.charts import Chart, Series, Table
from ..selection import RULES
from .context import Context
from .presets import Pair, Preset
from .results import Results, Row, by_seed, gaps, gaps_on_average, only, settings_note, spread
from .tasks import (
    AdvisedStudent,
    CheckpointChoice,
    DistillTask,
    Item,
    PilotTask,
    TrainTask,
    snapshot,
    swept,
    teacher,
)

TITLE = "The rules that choose a teacher"
NONE = "no teacher"
TWO = "half-way and full together"


def needs(preset: Preset) -> list[Item]:
    parts = []
    for seed in range(preset.seeds):
        for pair in preset.pairs:
            parts.append(Item(pair, "scratch", TrainTask(pair.student, "student", seed)))
            for alpha in preset.alphas:
                arms = {**swept(pair), **{rule: (CheckpointChoice(teacher(pair), rule),) for rule in _ruled()}}
                arms["two"] = snapshot(teacher(pair), 2)
                parts += [
                    Item(pair, f"{arm}, {alpha:g}", DistillTask(pair.student, members, seed, alpha=alpha))
                    for arm, members in arms.items()
                ]
            for budget in preset.budgets:
                probing = PilotTask(pair.student, teacher(pair), budget, seed)
                parts += [Item(pair, "probing", probing), Item(pair, f"auto, {budget}", AdvisedStudent(probing, seed))]
    return parts


def extra_rows(context: Context, parts: Sequence[Item], done: Callable[[Any], bool]) -> list[Row]:
    """What the rules chose, and what the lessons found."""
    rows = []
    for pair in context.preset.pairs:
        for rule in _ruled():
            picked = CheckpointChoice(teacher(pair), rule)
            if all(done(before) for before in picked.after()):
                choice = context.choice(picked)
                rows.append(
                    {
                        "kind": "choice",
                        "pair": pair.name,
                        "rule": rule,
                        "epoch": choice.epoch,
                        "scores": {str(epoch): value for epoch, value in choice.scores.items()},
                    }
                )
    for part in parts:
        if isinstance(part.work, PilotTask) and done(part.work):
            found = context.found(part.work)["result"]
            rows.append(
                {
                    "kind": "pilot",
                    "pair": part.pair.name,
                    "budget": part.work.budget,
                    "seed": part.work.seed,
                    **{
                        name: found[name]
                        for name in ("epochs", "alpha", "pilot_runs", "skipped", "spent_epochs", "student_epochs")
                    },
                }
            )
    return rows


def results(preset: Preset, rows: Sequence[Row]) -> Results:
    found = {arm: regrets(preset, rows, arm) for arm in _arms(preset)}
    found = {arm: several for arm, several in found.items() if several}
    lines = [_line(preset, rows, arm, several) for arm, several in found.items()]
    columns = [
        "rule, weight of the labels",
        "n",
        "regret, points",
        "95% interval",
        "worst case",
        "better than T full",
        "against no teacher, worst case",
        "rank correlation",
        "cost, whole distillations",
    ]
    how = f"α as in each line, τ = {preset.tau:g}"
    who = (
        "the other seeds' students"
        if preset.seeds > 1
        else "the same students, there being one seed only, which flatters"
    )
    note = (
        f"{settings_note(preset, how)} Regret: by how many points the student is behind that of the best teacher, mean "
        f"over {len(preset.pairs)} pairs of teacher and student and {pluralize(preset.seeds, 'seed')}; the best teacher is "
        f"named by {who} on the selection images, among all that were tried, no teacher and two checkpoints together "
        "included, so that a regret can be below 0. The interval takes pairs and seeds for independent, which they are "
        "not quite. Rank correlation (Spearman): of a rule's scores of the checkpoints, or of what the first lessons "
        f"from them say with α = {preset.alphas[0]:g}, with the mean accuracies of their students of the same α; from "
        "three checkpoints on; lessons are held from few of them, so that this column doesn't compare the two. "
        "Better than T full: than its student of the same α, for probing and no teacher of α = "
        f"{preset.alphas[0]:g}, in how many of the cases where it isn't the same student."
    )
    tables = [Table("Regret of the rules", columns, lines, note), _choices(preset, rows)]
    return Results(
        tables=tables,
        figures=[_by_rule(preset, found), _by_cost(preset, rows, found)] if found else [],
        claims=_claims(preset, rows, found),
    )


def regrets(preset: Preset, rows: Sequence[Row], arm: str) -> dict[str, dict[int, float]]:
    """By how many points an arm's student is behind that of the best teacher, for each pair, by seed.

    The best teacher is named by the students of the other seeds, on the selection images; where the scale has but one
    seed by the same. Of several that are equally good there the mean counts.
    """
    found = {}
    for pair in preset.pairs:
        tried = {one: by_seed(rows, pair, one) for one in _tried(rows, pair)}
        selected = {one: by_seed(rows, pair, one, "val_accuracy") for one in tried}
        runs = {one: by_seed(rows, pair, one, "run") for one in tried}
        seeds = sorted(set.intersection(*map(set, tried.values()))) if tried else []
        if len(seeds) < min(2, preset.seeds):
            continue
        mine = by_seed(rows, pair, arm)
        behind = {}
        for seed in seeds:
            others = [one for one in seeds if one != seed] or seeds
            means = {one: round(fmean(selected[one][other] for other in others), 9) for one in tried}
            best = [one for one in tried if means[one] == max(means.values())]
            of_best = {runs[one][seed]: tried[one][seed] for one in best}  # several arms may be one student
            if seed in mine:
                behind[seed] = fmean(of_best.values()) - mine[seed]
        if behind:
            found[pair.name] = behind
    return found


def _all(found: dict[str, dict[int, float]]) -> list[float]:
    return [gap for several in found.values() for gap in several.values()]


def _tried(rows: Sequence[Row], pair: Pair) -> list[str]:
    """The arms that any rule could have named: all with a student, but for those of probing, which are among them or
    differ from seed to seed."""
    arms = dict.fromkeys(row["arm"] for row in only(rows, kind="network", pair=pair.name))
    return [arm for arm in arms if not arm.startswith("auto")]


def _ruled() -> list[str]:
    """Algorithm 1 and its rivals, but for those whose choice the sweep has by name."""
    return [rule for rule in RULES if rule not in ("midpoint", "last")]


def _arms(preset: Preset) -> list[str]:
    names = ["midpoint", "last", *_ruled(), "two"]
    return [
        "scratch",
        *(f"{name}, {alpha:g}" for alpha in preset.alphas for name in names),
        *(f"auto, {budget}" for budget in preset.budgets),
    ]


def _alpha(arm: str) -> str | None:
    """The weight of the labels that an arm's name says; None for no teacher's and probing's."""
    name, _, rest = arm.partition(", ")
    return rest if rest and name != "auto" else None


def _rule(arm: str) -> str:
    words = {"scratch": NONE, "algorithm1": "Algorithm 1", "two": TWO, "auto": "probing"}
    name, _, rest = arm.partition(", ")
    return words.get(name, name) + f", budget {rest}" * (name == "auto")


def _label(arm: str) -> str:
    return _rule(arm) + (f", α = {_alpha(arm)}" if _alpha(arm) else "")


def _cost(rows: Sequence[Row], arm: str) -> float:
    """What choosing took, in whole distillations of the student."""
    if not arm.startswith("auto"):
        return 0.0
    found = only(rows, kind="pilot", budget=arm.partition(", ")[2])
    return fmean(row["spent_epochs"] / row["student_epochs"] for row in found) if found else math.nan


def _line(preset: Preset, rows: Sequence[Row], arm: str, found: dict[str, dict[int, float]]) -> list[str]:
    every = _all(found)
    whole = paired(every)
    better = [gap > 0 for pair in found for gap in _against(rows, pair, arm, _full(preset, arm))]
    none = [fmean(several) for pair in found if (several := gaps(rows, pair, arm, "scratch"))]
    correlations = _correlations(preset, rows, arm)
    return [
        _label(arm),
        str(whole.n),
        f"{whole.mean:.2f}",
        "" if math.isnan(whole.half_width) else f"± {whole.half_width:.2f}",
        f"{max(fmean(several.values()) for several in found.values()):.2f}",
        f"{sum(better)} of {len(better)}" if better else "",
        f"{min(none):+.2f}" if arm != "scratch" and none else "",
        spread(correlations) if correlations else "",
        f"{_cost(rows, arm):.2f}",
    ]


def _full(preset: Preset, arm: str) -> str:
    """The last checkpoint's student of the same α."""
    return f"full, {_alpha(arm) or format(preset.alphas[0], 'g')}"


def _against(rows: Sequence[Row], pair: str, arm: str, other: str) -> list[float]:
    """By how many points one arm's students are better than another's, where they aren't the same."""
    one, two = ({row["seed"]: row for row in only(rows, kind="network", pair=pair, arm=name)} for name in (arm, other))
    both = [(one[seed], two[seed]) for seed in one if seed in two]
    return [mine["accuracy"] - theirs["accuracy"] for mine, theirs in both if mine["run"] != theirs["run"]]


def _correlations(preset: Preset, rows: Sequence[Row], arm: str) -> list[float]:
    """Of a rule's scores with the accuracies of the checkpoints' students, for each pair."""
    from scipy.stats import spearmanr

    name, _, rest = arm.partition(", ")
    found = []
    for pair in preset.pairs:
        if name == "auto":
            several = [_of_lessons(row) for row in only(rows, kind="pilot", pair=pair.name, budget=rest)]
        else:
            choices = only(rows, kind="choice", pair=pair.name, rule=name)
            several = [{int(epoch): score for epoch, score in choice["scores"].items()} for choice in choices]
        truth = _by_epoch(rows, pair, float(_alpha(arm) or preset.alphas[0]))
        for scores in several:
            both = [key for key in scores if key in truth]
            if len(both) > 2 and len({scores[key] for key in both}) > 1:
                found.append(spearmanr([scores[key] for key in both], [truth[key] for key in both]).statistic)  # type: ignore[attr-defined]
    return [one for one in found if not math.isnan(one)]


def _of_lessons(row: Row) -> dict[int, float]:
    """What the first lessons of single checkpoints say, by epoch."""
    single = [one for one in row["pilot_runs"] if len(one["epochs"]) == 1]
    return {
        one["epochs"][0]: one["information"]
        for one in single
        if (one["pilot_epochs"], one["alpha"]) == (single[0]["pilot_epochs"], single[0]["alpha"])
    }


def _by_epoch(rows: Sequence[Row], pair: Pair, alpha: float) -> dict[int, float]:
    """The mean accuracy of the students of each checkpoint with this α; of those that probing advised some seeds only
    may have one, so these don't count."""
    found: dict[int, dict[int, float]] = {}
    for arm in _tried(rows, pair):
        for row in only(rows, kind="network", pair=pair.name, arm=arm, alpha=alpha):
            if len(row["teachers"]) == 1:
                found.setdefault(row["teachers"][0][2], {})[row["seed"]] = row["accuracy"]
    most = max(map(len, found.values()), default=0)
    return {epoch: fmean(by_seed.values()) for epoch, by_seed in found.items() if len(by_seed) == most}


def _choices(preset: Preset, rows: Sequence[Row]) -> Table:
    """Which epoch each rule chose of each teacher, and what the lessons advised for each student."""
    names = [pair.name for pair in preset.pairs]
    lines = []
    for rule in _ruled():
        chosen = {row["pair"]: str(row["epoch"]) for row in only(rows, kind="choice", rule=rule)}
        lines.append([_label(rule), *(chosen.get(name, "—") for name in names)])
    for budget in preset.budgets:
        line = [_label(f"auto, {budget}")]
        for name in names:
            advised = only(rows, kind="pilot", pair=name, budget=budget)
            line.append("; ".join(_advice(row) for row in advised) or "—")
        lines.append(line)
    note = "Epochs. By probing: for each seed of the lessons, the epochs that teach together, and α."
    return Table("What was chosen", ["rule", *names], lines, note)


def _advice(row: Row) -> str:
    return f"{' + '.join(map(str, row['epochs']))}, {row['alpha']:g}" if row["epochs"] else "none"


def _by_rule(preset: Preset, found: dict[str, dict[str, dict[int, float]]]) -> Chart:
    """Mean regret of each rule, the least first, with each weight of the labels."""
    every = {arm: paired(_all(several)) for arm, several in found.items()}
    ordered = sorted(every, key=lambda arm: every[arm].mean)
    names = list(dict.fromkeys(_rule(arm) for arm in ordered))
    series = []
    for alpha in [*(f"{alpha:g}" for alpha in preset.alphas), None]:  # None: no rule's own
        arms = [arm for arm in ordered if _alpha(arm) == alpha]
        series.append(
            Series(
                name="no teacher, and probing, which finds α" if alpha is None else f"α = {alpha}",
                x=[names.index(_rule(arm)) for arm in arms],
                y=[every[arm].mean for arm in arms],
                error=[0.0 if math.isnan(every[arm].half_width) else every[arm].half_width for arm in arms],
                hover=[f"{_label(arm)}: {every[arm].mean:.2f} points" for arm in arms],
                style="points",
                symbol="diamond" if alpha is None else "circle",
            )
        )
    return Chart(
        title="Regret of the rules",
        x_title="rule",
        y_title="points behind the best teacher's student",
        x_names=names,
        series=[one for one in series if one.x],
        caption=_whose(preset),
        alt="Mean regret of each rule, with each weight of the labels",
    )


def _whose(preset: Preset) -> str:
    return f"Bars: 95% intervals over {len(preset.pairs)} pairs and {pluralize(preset.seeds, 'seed')}."


def _by_cost(preset: Preset, rows: Sequence[Row], found: dict[str, dict[str, dict[int, float]]]) -> Chart:
    """Mean regret against cost; rules that look at the teacher alone cost no distillation."""
    series = []
    for name, prefix in (("rules that look at the teacher", ""), ("probing", "auto")):
        arms = [arm for arm in found if arm.startswith("auto") == bool(prefix)]
        every = [paired(_all(found[arm])) for arm in arms]
        series.append(
            Series(
                name=name,
                x=[_cost(rows, arm) for arm in arms],
                y=[one.mean for one in every],
                error=[0.0 if math.isnan(one.half_width) else one.half_width for one in every],
                hover=[f"{_label(arm)}: {one.mean:.2f} points" for arm, one in zip(arms, every, strict=True)],
                style="points" if not prefix else "line",
                color=1 if prefix else 0,
            )
        )
    return Chart(
        title="Regret against cost",
        x_title="cost of choosing, whole distillations",
        y_title="points behind the best teacher's student",
        series=[one for one in series if one.x],
        caption=_whose(preset),
        alt="Mean regret of each rule by what choosing costs",
    )


def _claims(preset: Preset, rows: Sequence[Row], found: dict[str, dict[str, dict[int, float]]]) -> list[Claim]:
    """Probing against the best rule that looks at the teacher, named in hindsight, and against no teacher."""
    claims = []
    where = f"the average of {len(preset.pairs)} pairs of teacher and student"
    mean = {arm: fmean(_all(several)) for arm, several in found.items() if len(several) == len(preset.pairs)}
    rules = [arm for arm in mean if not arm.startswith("auto") and arm.partition(",")[0] not in ("scratch", "two")]
    best = min(rules, key=lambda arm: mean[arm], default=None)
    hindsight = "the best of the other rules, named in hindsight" + (f" ({_label(best)})" if best else "")
    for arm in [f"auto, {budget}" for budget in preset.budgets]:
        for other, words in ((best, hindsight), ("scratch", NONE)):
            better = gaps_on_average(rows, preset.pairs, arm, other) if other else []
            text = f"Students that {_label(arm)} advises are better than those of {words}"
            claims.append(claim(text, where, better, caveat="teachers are of one run each"))
    return claims
