"""Every table of results, described once. The console and the HTML page render the same `Table`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..analysis.statistics import Claim, claim_from
from ..config import CORRELATION_KINDS, information_unit
from ..errors import format_bytes, pluralize
from ..records.selection import PilotResult
from ..records.tuning import TuneRecord
from .charts import Table

if TYPE_CHECKING:
    from ..information import LogitScores, Plane
    from ..selection import Choice

SPLITS = {"val": "validation set", "test": "test set"}
SYMBOLS = {"alpha": "α", "tau": "τ"}
SHOWN_CHANCE = 0.05  # least chance of being the best, for which a candidate without a pilot run is listed
CLAIMS_NOTE = (
    "A positive effect agrees with the claim. p is two-sided and corrected for the number of claims in this experiment "
    "(Holm), including claims that have not run yet. Intervals are not corrected. Supported: the effect is positive, "
    "the corrected p is below 0.05, and there are at least three seeds. Not supported: the same with a negative "
    "effect. "
    "Differences between students are paired by seed. Where n counts images, the result holds for these checkpoints, "
    "each from one training run. Not testable: these checkpoints cannot decide the claim, whatever n is."
)
STUDENTS_NOTE = (
    "Test accuracy after the last epoch: mean ± standard deviation over n seeds. Differences are paired by seed, with "
    "95% confidence intervals (CI) that are not corrected for the number of comparisons. The teacher's accuracy is on "
    "the validation set; with `--select-on test`, it is on the test set."
)
ROUNDING = 1e-6  # intervals of two equal checkpoints differ from 0 in their last bits


def setting_name(name: str) -> str:
    """Return the name of a setting as a column or an axis shows it.

    >>> setting_name("alpha"), setting_name("learning_rate")
    ('α', 'learning rate')
    """
    return SYMBOLS.get(name, name.replace("_", " "))


def plane_table(plane: Plane, *, chosen: Sequence[int] = ()) -> Table:
    """Return each checkpoint's accuracy, NLL and estimates of I(Y;F) and I(X;F); the chosen epochs are marked."""
    points, settings = plane.points, plane.settings
    rows = [
        [
            str(point.epoch),
            _plus_minus(100 * point.accuracy, 100 * point.accuracy_se, 1),
            f"{point.nll:.3f}",
            f"{point.label_information:.3f}",
            _plus_minus(point.image_information, point.image_information_se, 4),
            "" if point.image_information_sd is None else f"{point.image_information_sd:.4f}",
            point.sha256[:12],
        ]
        for point in points
    ]
    note = (
        f"Measured on {plane.information_ASN.shape[-1]:,} images of {settings.measured_on}. NLL and H(Y) − CE, a lower "
        f"bound of I(Y;F), are in nats. I(X;F) is by {settings.estimator}: {information_unit(settings.estimator)}. "
        "Its ± is the standard error over images; the next column is the standard deviation over fits of the estimator."
    )
    columns = [settings.unit, "accuracy, %", "NLL", "H(Y) − CE", "I(X;F)", "sd of fits", "sha256"]
    return Table("", columns, rows, note, [row for row, point in enumerate(points) if point.epoch in chosen])


def predictions_table(scores: Plane | LogitScores, *, chosen: Sequence[int] = ()) -> Table:
    """Return the measures of each checkpoint's predictions that need no image; the chosen epochs are marked."""
    rows = [
        [
            str(point.epoch),
            _plus_minus(100 * point.accuracy, 100 * point.accuracy_se, 1),
            f"{point.nll:.3f}",
            f"{point.label_information:.3f}",
            f"{point.temperature:.2f}",
        ]
        for point in scores.points
    ]
    note = "NLL and H(Y) − CE, a lower bound of I(Y;F), are in nats. Temperature: the one that fits these images best."
    columns = ["epoch", "accuracy, %", "NLL", "H(Y) − CE", "temperature"]
    return Table("", columns, rows, note, [row for row, point in enumerate(scores.points) if point.epoch in chosen])


def choice_table(choice: Choice) -> Table:
    """Return the score of each checkpoint by a rule; the chosen one is marked."""
    rows = [
        [
            str(epoch),
            *(f"{values[epoch]:.2f}" for values in choice.details.values()),
            f"{score + 0.0:.4g}",
            *([f"{100 * choice.probability[epoch]:.0f}"] if choice.probability else []),
        ]
        for epoch, score in choice.scores.items()
    ]
    note = ""
    if choice.probability:
        resampled = "images and of the estimator's fits" if choice.rule == "algorithm1" else "images"
        note = f"Chosen in: share of 1,000 bootstrap resamples of the {resampled}."
    columns = [choice.unit, *choice.details, "score", *(["chosen in, %"] if choice.probability else [])]
    return Table("", columns, rows, note, [list(choice.scores).index(choice.epoch)])


def pilot_table(result: PilotResult) -> Table:
    """Return the candidates of a pilot search, the highest expected gain first; the chosen one is marked.

    A candidate without a pilot run is listed if its chance of being the best is at least `SHOWN_CHANCE`.
    """
    shown = [
        row
        for row in result.candidates
        if row.accuracy is not None or row.failed or row.chosen or row.chance >= SHOWN_CHANCE
    ]
    rows = [
        [
            row.candidate,
            *(
                ["failed", "", "", ""]
                if row.failed
                else [
                    "" if row.accuracy is None else f"{100 * row.accuracy:.1f}",
                    f"{'≤ ' * row.below}{row.gain:+.1f}",
                    "" if row.below else f"{row.low:+.1f} to {row.high:+.1f}",
                    f"{100 * row.chance:.0f}",
                ]
            ),
        ]
        for row in shown
    ]
    left_out = len(result.candidates) - len(shown)
    note = (
        f"{pluralize(result.spent_epochs // result.pilot_epochs, 'pilot run')} of {result.student} over "
        f"{pluralize(result.pilot_epochs, 'epoch')}, measured on the validation set. A full distillation has "
        f"{pluralize(result.student_epochs, 'epoch')}. The gain is that of a full distillation over kd from the last "
        "checkpoint. A model estimates it from all pilot runs and from earlier experiments."
        + (
            f" Left out: {pluralize(left_out, 'candidate')} without a pilot run and with little chance to be the best."
            if left_out
            else ""
        )
    )
    columns = ["candidate", "accuracy, %", "expected gain, points", "95% interval", "best, %"]
    return Table("", columns, rows, note, [number for number, row in enumerate(shown) if row.chosen])


def pilot_sentences(result: PilotResult) -> list[str]:
    """Return the outcome of a pilot search in sentences: the verdict, then the cost."""
    share = result.spent_epochs / result.student_epochs
    cost = pluralize(result.spent_epochs, "epoch")
    return [
        f"For {result.student}: {result.reason}.",
        f"The pilot runs took {cost}, {100 * share:.0f}% of a full distillation.",
    ]


def tune_table(result: TuneRecord) -> Table:
    """Return the trials of a tune search, the best first; the best is marked."""
    best = result.best
    trials = sorted(result.trials, key=lambda trial: (trial.accuracy is None, -(trial.accuracy or 0)))
    rows = [
        [
            *(f"{trial.values[name]:g}" for name in result.space),
            "" if trial.accuracy is None else f"{100 * trial.accuracy:.2f}",
            trial.stopped or "",
        ]
        for trial in trials
    ]
    note = f"Accuracy on the {SPLITS[result.data.select_on]}, {result.images:,} images. "
    if best is None:
        note += "No trial has finished yet."
    else:
        note += (
            f"Best trial: {_plus_minus(100 * best.accuracy, 100 * best.accuracy_se, 1)}%. For "
            f"{pluralize(best.comparable, 'other trial')} the 95% CI of the difference over images includes 0."
        )
    columns = [*map(setting_name, result.space), "accuracy, %", "stopped"]
    marked = [row for row, trial in enumerate(trials) if best is not None and trial.trial == best.trial]
    return Table("", columns, rows, note, marked)


def evaluation_table(result: Mapping[str, Any]) -> Table:
    """Return accuracy, NLL and calibration error of checkpoints and of their ensemble."""
    measured = [(member["ref"], str(member["epoch"]), member) for member in result["members"]]
    split = SPLITS["test" if "test" in (result["split"], result["select_on"]) else "val"]
    note = f"{result['data']}, {split}: {result['images']:,} images."
    if len(measured) > 1:
        weights = result["weights"] and f", weights {' '.join(f'{weight:g}' for weight in result['weights'])}"
        measured.append((f"ensemble (mean of {result['average']}{weights or ''})", "", result["ensemble"]))
        disagreement = 100 * result["ensemble"]["disagreement"]
        note += f" Two members disagree on {disagreement:.1f}% of the images, on average over pairs."
    rows = [
        [
            name,
            epoch,
            _plus_minus(100 * values["accuracy"], 100 * values["accuracy_se"], 1),
            f"{values['nll']:.3f}",
            f"{100 * values['calibration_error']:.1f}",
        ]
        for name, epoch, values in measured
    ]
    return Table("", ["checkpoint", "epoch", "accuracy, %", "NLL, nats", "calibration error, %"], rows, note)


def correlation_table(result: Mapping[str, Any]) -> Table:
    """Return mean similarity and diversity of the classes for each checkpoint, and for the difference of two."""
    rows = []
    for kind, name in CORRELATION_KINDS.items():
        numbers = zip(result["checkpoints"], *result[kind]["numbers"].values(), strict=True)
        for checkpoint, *intervals in numbers:
            accuracy = _plus_minus(100 * checkpoint["accuracy"], 100 * checkpoint["accuracy_se"], 1)
            rows.append([checkpoint["ref"], accuracy, name.format(**result), *map(_interval, intervals)])
        if "differences" in result[kind]:
            differences = map(_interval, result[kind]["differences"].values())
            rows.append(["first minus second", "", name.format(**result), *differences])
    note = (
        f"{result['data']}, {SPLITS[result['split']]}: {result['images']:,} images. In parentheses: 95% confidence "
        "intervals over images."
    )
    return Table("", ["checkpoint", "accuracy, %", "class vectors", "mean similarity", "diversity"], rows, note)


def correlation_sentences(result: Mapping[str, Any]) -> list[str]:
    """Return how the class similarities of two checkpoints differ, one sentence for each kind."""
    sentences = []
    for kind, name in CORRELATION_KINDS.items() if len(result["checkpoints"]) == 2 else ():
        parts = []
        for number in ("mean_similarity", "diversity"):
            gap = result[kind]["differences"][number]
            includes_0 = gap["low"] <= ROUNDING and gap["high"] >= -ROUNDING
            direction = "higher" if gap["value"] > 0 else "lower"
            parts.append(
                f"{number.replace('_', ' ')} does not differ (95% CI includes 0)"
                if includes_0
                else f"{number.replace('_', ' ')} is {direction} (95% CI excludes 0)"
            )
        sentences.append(f"{name.format(**result).capitalize()}, first against second: {'; '.join(parts)}.")
    return sentences


def students_table(students: Sequence[Mapping[str, Any]]) -> Table:
    """Return the test accuracy of students by their teacher, from `student_rows`; chosen teachers are marked."""
    rows = [
        [
            student["label"],
            student["student"],
            "" if student["teacher"] is None else f"{student['teacher']:.1f}",
            f"{student['mean']:.2f}" if student["sd"] is None else _plus_minus(student["mean"], student["sd"], 2),
            str(student["n"]),
            student["against"],
        ]
        for student in students
    ]
    columns = ["teacher", "student", "the teacher's, %", "accuracy, %", "n", "minus no teacher, points"]
    return Table("", columns, rows, STUDENTS_NOTE, [row for row, student in enumerate(students) if student["chosen"]])


def checkpoints_table(result: Mapping[str, Any]) -> Table:
    """Return what is in a folder of checkpoints: epoch, file, size, validation accuracy, hash."""
    external, zero = result["kind"] == "external", " counted from 0"
    sources = list(dict.fromkeys(checkpoint["epoch_from"] for checkpoint in result["checkpoints"]))
    several = len(sources) > 1
    rows = [
        [
            str(checkpoint["epoch"]),
            checkpoint["file"],
            checkpoint["stated"].replace(zero, "").rstrip(",") + f" ({checkpoint['epoch_from']})" * several
            if external
            else checkpoint["epoch_from"],
            f"{checkpoint['bytes'] / 1000:,.0f}",
            "" if checkpoint["val_accuracy"] is None else f"{100 * checkpoint['val_accuracy']:.1f}",
            (checkpoint["sha256"] or "")[:12],
        ]
        for checkpoint in result["checkpoints"]
    ]
    unit, split = result.get("unit", "epoch"), result.get("select_on", "val")
    columns = [unit, "file", f"{unit} read from", "kB", f"{split} accuracy, %", "sha256"]
    stated = [checkpoint["stated_accuracy"] for checkpoint in result["checkpoints"]]
    if any(accuracy is not None for accuracy in stated):
        columns.insert(5, "stated, %")
        for row, accuracy in zip(rows, stated, strict=True):
            row.insert(5, "" if accuracy is None else f"{100 * accuracy:.1f}")
    notes = [f"The {unit}s are read from {sources[0]}."] if external and not several else []
    if any(zero in (checkpoint["stated"] or "") for checkpoint in result["checkpoints"]):
        notes.append(f"The files count {unit}s from 0; the table counts from 1.")
    return Table("", columns, rows, " ".join(notes))


def cache_table(result: Mapping[str, Any]) -> Table:
    """Return the entries of each kind in the cache: how many, their size, and the day of the last use."""
    kinds = sorted({entry["kind"] for entry in result["entries"]})
    by_kind = {kind: [entry for entry in result["entries"] if entry["kind"] == kind] for kind in kinds}
    rows = [
        [
            kind,
            result["kinds"][kind],
            f"{len(entries):,}",
            format_bytes(sum(entry["bytes"] for entry in entries)),
            max(entry["last_used"] for entry in entries)[:10],
        ]
        for kind, entries in by_kind.items()
    ]
    return Table("", ["kind", "content", "items", "size", "last used"], rows)


def caveats(claims: Sequence[Claim]) -> list[str]:
    """Return the caveats of the claims that have run, each once. `claims_table` refers to them by number."""
    return list(dict.fromkeys(claim.caveat for claim in claims if claim.caveat and claim.n))


def claims_table(claims: Sequence[Claim]) -> Table:
    """Return the claims of an experiment with their evidence; a number in brackets refers to `caveats`."""
    numbers = {caveat: f" [{number}]" for number, caveat in enumerate(caveats(claims), 1)}
    rows = [
        [
            f"{claim.text} ({claim.where})" + (numbers[claim.caveat] if claim.caveat and claim.n else ""),
            claim.effect_text,
            claim.n_text,
            "" if claim.paper is None else f"{claim.paper:+.2f}",
            "" if claim.p_corrected is None else "< 0.001" if claim.p_corrected < 0.001 else f"{claim.p_corrected:.3f}",
            str(claim.verdict),
        ]
        for claim in claims
    ]
    columns = ["claim", "effect, 95% CI", "n", "paper", "p", "verdict"]
    if all(claim.paper is None for claim in claims):
        columns, rows = [*columns[:3], *columns[4:]], [[*row[:3], *row[4:]] for row in rows]
    return Table("Claims and evidence", columns, rows)


def experiments_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Return how far each experiment is: tasks that are missing, and how many claims have which verdict."""
    rows = []
    for result in results:
        verdicts = Counter(str(claim_from(stored).verdict) for stored in result["claims"])
        counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        rows.append([result["title"], str(result["missing"]), counts])
    return Table("", ["experiment", "missing tasks", "claims"], rows)


def _plus_minus(value: float, error: float, digits: int) -> str:
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _interval(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
