"""Fit the prior of the pilot search, and compare search designs with it over several experiments.

    checkpointkd reproduce selection --preset PRESET --seeds 2 --data cifar100:PATH --out EXPERIMENTS
    python benchmarks/search_prior.py EXPERIMENTS...

The prior is fitted on the first teacher of each experiment. Prints the means and spreads, which selection/prior.py has
rounded, then the mean gain over the default and the mean regret of each choice, for each teacher.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from checkpointkd.experiments.presets import get_preset
from checkpointkd.experiments.selection import Reference, choices, default_of, gaps_of, reference_of
from checkpointkd.selection.candidates import NO_TEACHER, Candidate

FITTED_ON = 0  # the number of the teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", type=Path, nargs="+")
    options = parser.parse_args()
    references = {}
    for folder in options.experiments:
        rows = [json.loads(line) for line in (folder / "selection" / "rows.jsonl").read_text().splitlines()]
        stored = json.loads((folder / "selection" / "experiment.json").read_text())["preset"]
        preset = get_preset(stored["name"], stored["dataset"])
        for pair in preset.pairs:
            for number in range(preset.compared_teachers):
                reference = reference_of(preset, rows, pair, number)
                if all(label in reference.accuracy for label in reference.labels.values()) and reference.pilots:
                    references[preset.name, pair.name, number] = (preset, reference)
    fitted = [reference for (_, _, number), (_, reference) in references.items() if number == FITTED_ON]
    print(json.dumps(fit(fitted), indent=1, ensure_ascii=False))
    for numbers in ((FITTED_ON,), (1,)):
        print(f"teachers {numbers}")
        compare({key: value for key, value in references.items() if key[2] in numbers})


def fit(references: Sequence[Reference]) -> dict[str, Any]:
    """Return means and spreads of effects on gains and on the errors of pilot runs, in points."""
    gains = [_effects(_gains(reference)) for reference in references]
    slope = _slope(references)
    errors = [_effects(_errors(reference, slope)) for reference in references]
    return {
        "slope": round(slope, 2),
        "gain": _pooled(gains),
        "bias": _pooled(errors),
        "noise": float(np.sqrt(fmean(_noise(reference) for reference in references))),
        "student_noise": float(np.sqrt(fmean(_student_noise(reference) for reference in references))),
    }


def _gains(reference: Reference) -> dict[Candidate, float]:
    """Return each candidate's accuracy over seeds."""
    return {
        candidate: fmean(reference.accuracy[label][seed] for seed in reference.seeds())
        for candidate, label in reference.labels.items()
    }


def _scores(reference: Reference) -> dict[Candidate, float]:
    """Return the mean score of each candidate's pilot runs."""
    return {
        candidate: fmean(pilots[candidate, 1].score for pilots in reference.pilots.values() if (candidate, 1) in pilots)
        for candidate in reference.labels
    }


def _slope(references: Sequence[Reference]) -> float:
    """Return how much a pilot run shows for each point of gain: the regression over candidates with a teacher."""
    pairs = []
    for reference in references:
        gains, scores = _gains(reference), _scores(reference)
        taught = [candidate for candidate in gains if candidate != NO_TEACHER]
        pairs += [
            (gains[candidate] - fmean(gains[c] for c in taught), scores[candidate] - fmean(scores[c] for c in taught))
            for candidate in taught
        ]
    gain, score = np.array(pairs).T
    return float(gain @ score / (gain @ gain))


def _errors(reference: Reference, slope: float) -> dict[Candidate, float]:
    """Return by how much pilot runs show more than their share of the gain, without the level."""
    gains, scores = _gains(reference), _scores(reference)
    return {candidate: scores[candidate] - slope * gains[candidate] for candidate in gains}


def _effects(values: dict[Candidate, float]) -> dict[str, dict[str, float]]:
    """Return additive effects relative to `kd` with the first α from the last checkpoint, and the residuals."""
    taught = {candidate: value for candidate, value in values.items() if candidate != NO_TEACHER}
    methods = list(dict.fromkeys(_setting(candidate) for candidate in taught))
    kinds = list(dict.fromkeys(candidate.kind for candidate in taught))
    method = {name: fmean(v for c, v in taught.items() if _setting(c) == name) for name in methods}
    kind = {name: fmean(v for c, v in taught.items() if c.kind == name) for name in kinds}
    level = fmean(taught.values())
    rest = {str(c): v - method[_setting(c)] - kind[c.kind] + level for c, v in taught.items()}
    default = method[methods[0]] + kind[kinds[0]] - level
    method_effect = {name: value - method[methods[0]] for name, value in method.items()}
    method_effect[NO_TEACHER.method] = values[NO_TEACHER] - default
    return {
        "method": method_effect,
        "teachers": {name: value - kind[kinds[0]] for name, value in kind.items()},
        "rest": rest,
    }


def _setting(candidate: Candidate) -> str:
    """Return the method as the prior names it."""
    return candidate.method if candidate.alpha in (None, 0.5) else f"{candidate.method}, α {candidate.alpha:g}"


def _pooled(effects: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return the mean effect of each level over references, and the spread around these means."""
    result: dict[str, Any] = {}
    for part in ("method", "teachers"):
        means = {name: fmean(each[part][name] for each in effects) for name in effects[0][part]}
        spread = [
            each[part][name] - mean for each in effects for name, mean in means.items() if mean or each[part][name]
        ]
        result[part] = {name: round(mean, 2) for name, mean in means.items()}
        result[f"{part}_sd"] = float(np.sqrt(np.mean(np.square(spread)) / 2)) if spread else 0.0
    rest = [value for each in effects for value in each["rest"].values()]
    result["rest_sd"] = float(np.std(rest))
    return result


def _noise(reference: Reference) -> float:
    """Return the variance of a pilot run between seeds."""
    seeds = list(reference.pilots)
    if len(seeds) < 2:
        return 0.0
    differences = [
        reference.pilots[seeds[0]][candidate, 1].score - reference.pilots[seeds[1]][candidate, 1].score
        for candidate in reference.labels
    ]
    return float(np.var(differences) / 2)


def _student_noise(reference: Reference) -> float:
    seeds = reference.seeds()
    if len(seeds) < 2:
        return 0.0
    of = reference.accuracy
    return float(np.var([of[label][seeds[0]] - of[label][seeds[1]] for label in reference.labels.values()]) / 2)


def compare(references: dict[tuple[str, str, int], Any]) -> None:
    """Print the mean gain over the default and the mean regret of each choice."""
    if not references:
        return
    lines: dict[str, list[tuple[float, float]]] = {}
    for preset, reference in references.values():
        default = reference.labels[default_of(preset)]
        for name, (_, choose) in choices(preset).items():
            gains, regrets = gaps_of([reference], choose, default), gaps_of([reference], choose, None)
            if regrets:
                lines.setdefault(name, []).append((fmean(gains), -fmean(regrets)))
    for name, values in lines.items():
        if len(values) == len(references):
            means = [f"{fmean(gain for gain, _ in values):+6.2f}", f"{fmean(regret for _, regret in values):6.2f}"]
            print(f"{name:40}", *means, "  ", *(f"{gain:+.2f}" for gain, _ in values))


if __name__ == "__main__":
    main()
