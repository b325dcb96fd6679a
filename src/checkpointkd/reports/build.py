"""The pages: a report on runs, a report on experiments, and the class correlation of checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..analysis.statistics import AVERAGE, Claim, Verdict
from ..config import CORRELATION_KINDS
from ..errors import pluralize
from ..records.base import plain, provenance
from ..records.experiments import ExperimentRecord, PresetRecord
from ..records.selection import PilotRecord, teachers_in_words
from ..selection import Candidates, Choice
from .charts import Figure
from .collect import Collected, Scored, collect
from .figures import correlation_heatmaps, curves_charts, plane_chart, points_of, students_charts, tune_chart
from .page import Page, Section, write_page
from .tables import (
    CLAIMS_NOTE,
    SPLITS,
    choice_table,
    correlation_sentences,
    correlation_table,
    pilot_sentences,
    pilot_table,
    plane_table,
    predictions_table,
    students_table,
    tune_table,
)
from .variants import difference, rule_name

log = logging.getLogger("checkpointkd")

ABOUT = (
    "Which checkpoint of a network's training is the best teacher for a smaller network? Each checkpoint has two "
    "mutual-information estimates. I(Y;F) is the information about the label in its features, measured by accuracy. "
    "I(X;F) is the information about the image, measured by the reconstruction loss of a small decoder. Algorithm 1 of "
    "Wang et al. (NeurIPS 2022) chooses the checkpoint with the largest sum of both."
)
ABOUT_EXPERIMENTS = (
    "Wang et al. (NeurIPS 2022) report three results. A checkpoint from the middle of a teacher's training often "
    "teaches a small network better than the last checkpoint. Two checkpoints of one run can beat an ensemble of "
    "independent runs. An information-theoretic score can choose the checkpoint. This page repeats their experiments."
)
ABOUT_CORRELATION = (
    "Class correlation is the similarity of each pair of classes to a network (Eq. 8 of Wang et al., NeurIPS 2022). It "
    "is the cosine of the classes' mean logits, or of their mean predictions softened at temperature {tau:g}. Mean "
    "similarity and diversity are the mean and the standard deviation of the cells off the diagonal. Both have 95% "
    "bootstrap intervals over the images."
)


def write_report(folder: Path, *, out: Path) -> Path:
    """Write the report on every run, or on every experiment, below a folder.

    The report is one HTML file that needs no network. Its figures and tables are also files in a folder beside it.

    Raises:
        UserError: there is nothing to report on, or `out` exists and is not a report.
    """
    collected = collect(folder)
    for note in collected.notes:
        if note.startswith("Left out"):
            log.warning("%s", note)
    page = _experiments_page(collected) if collected.experiments else _runs_page(collected)
    return write_page(page, out=out)


def write_correlation(result: Mapping[str, Any], *, out: Path) -> Path:
    """Write the result of `correlate` as one HTML file; raises UserError if `out` exists and is not a report."""
    heatmaps = [correlation_heatmaps(result, kind) for kind in CORRELATION_KINDS]
    page = Page(
        title="Class correlation: " + " and ".join(checkpoint["ref"] for checkpoint in result["checkpoints"]),
        about=ABOUT_CORRELATION.format(**result),
        summary=correlation_sentences(result),
        sections=[
            Section(title="Similarity of classes", tables=[correlation_table(result)]),
            *(Section(title=figure.title, figures=[figure]) for figure in heatmaps),
        ],
        provenance={
            "data": result["data"],
            "select on": result["select_on"],
            "images": f"{result['images']:,} of the {SPLITS[result['split']]}",
            "weights": ", ".join(checkpoint["sha256"][:12] for checkpoint in result["checkpoints"]),
            **result["provenance"],
        },
    )
    return write_page(page, out=out)


def write_choice(choice: Choice, candidates: Candidates, *, out: Path) -> Path:
    """Write a rule's choice among checkpoints as one HTML file; raises UserError if `out` is not a report."""
    return write_page(
        Page(
            title=f"Choice by the rule {choice.rule}",
            about="Measures of each checkpoint's predictions on the same images, and the checkpoint that a rule chose.",
            summary=[f"Selected: {choice.unit} {choice.epoch}. Reason: {choice.reason}.", *choice.warnings],
            sections=[
                Section(title="Scores by the rule", tables=[choice_table(choice)]),
                Section(title="Predictions", tables=[predictions_table(candidates.scored, chosen=choice.epochs)]),
            ],
            provenance={"images": f"{candidates.scored.images['correct'].shape[1]:,}", **plain(provenance())},
        ),
        out=out,
    )


def _runs_page(collected: Collected) -> Page:
    planes = [scored for scored in collected.scored if len(scored.plane.points) > 1]
    figures: list[Figure] = [
        plane_chart(scored.name, points_of(scored), chosen=scored.chosen, unit=scored.trajectory.unit)
        for scored in planes
    ]
    figures += [*curves_charts(collected), *students_charts(collected)]
    figures += [tune_chart(name, result) for name, result in collected.tunings.items()]
    sections = []
    if collected.variants:
        title = "Students" if any(variant.teachers for variant in collected.variants) else "Networks"
        sections.append(Section(title=title, tables=[students_table(student_rows(collected))]))
    sections += [Section(title=figure.title, figures=[figure]) for figure in figures]
    sections += [
        Section(title=f"Trials of {name}", tables=[tune_table(result)]) for name, result in collected.tunings.items()
    ]
    sections += [_pilot_section(name, record) for name, record in collected.pilots.items()]
    sections += [
        Section(
            title=f"Checkpoints of {scored.name}",
            tables=[plane_table(scored.plane, chosen=scored.chosen)],
        )
        for scored in collected.scored
    ]
    return Page(
        title=f"Checkpoints as teachers: {collected.folder.resolve().name}",
        about=ABOUT,
        summary=[
            *(_verdict(name, record) for name, record in collected.pilots.items()),
            *conclusions(collected),
            *(_choice_sentence(scored) for scored in planes if not _chosen_by_search(scored)),
        ],
        notes=collected.notes,
        sections=sections,
        provenance=collected.provenance,
    )


def _pilot_section(name: str, record: PilotRecord) -> Section:
    result = record.result
    return Section(
        title=f"Pilot search for {result.student}: {name}",
        paragraphs=[*pilot_sentences(result), f"Seed of the pilot runs: {record.seed}. To train the student:"],
        command=result.command,
        notes=result.warnings,
        tables=[pilot_table(result)],
    )


def _experiments_page(collected: Collected) -> Page:
    results = [experiment.record for experiment in collected.experiments]
    shared = shared_notes(results)
    return Page(
        title=f"Experiments on checkpoints as teachers: {collected.folder.resolve().name}",
        about=ABOUT_EXPERIMENTS,
        summary=list(dict.fromkeys(preset_sentence(result.preset) for result in results)),
        findings=_findings([claim for experiment in collected.experiments for claim in experiment.claims]),
        notes=[*shared, *collected.notes],
        sections=[
            Section(
                title=experiment.record.title,
                notes=[note for note in experiment.record.notes if note not in shared],
                tables=experiment.tables,
                claims=experiment.claims,
                figures=experiment.figures,
            )
            for experiment in collected.experiments
        ],
        provenance=collected.provenance,
    )


def shared_notes(results: Sequence[ExperimentRecord]) -> list[str]:
    """Return the notes that every experiment has, which a page shows once."""
    notes = [note for result in results for note in result.notes]
    return [note for note in dict.fromkeys(notes) if notes.count(note) == len(results)]


def preset_sentence(preset: PresetRecord) -> str:
    """Return the preset of an experiment in one line."""
    images = f", {preset.train_images:,} training images" if preset.train_images else ""
    pairs = ", ".join(f"{pair.teacher} → {pair.student}" for pair in preset.pairs)
    return (
        f"Preset {preset.name}: {preset.dataset}{images}; teacher → student: {pairs}; "
        f"{preset.teacher_epochs} epochs for teachers and {preset.student_epochs} for students; "
        f"{pluralize(preset.seeds, 'seed')}; selection on {preset.select_on}."
    )


def _findings(claims: Sequence[Claim]) -> dict[str, list[str]]:
    """Return the claims on average over pairs, the other decided claims and the number of undecided ones, by heading.

    Two experiments may test the same claim, each among other claims: the one with the larger corrected p is reported.
    """
    weakest: dict[tuple[str, str], Claim] = {}
    for claim in claims:
        held = weakest.setdefault((claim.text, claim.where), claim)
        if held.p_corrected is not None and (claim.p_corrected is None or claim.p_corrected > held.p_corrected):
            weakest[claim.text, claim.where] = claim
    claims = list(weakest.values())
    main = [claim for claim in claims if claim.where == AVERAGE]
    findings: dict[str, list[str]] = {}
    if main:
        findings["Main claims, on average over the pairs of networks"] = [
            f"{claim.text}: {claim.verdict}{f' ({claim.effect_text}, {claim.n_text})' if claim.n else ''}."
            for claim in main
        ]
    decided = (Verdict.SUPPORTED, Verdict.NOT_SUPPORTED)
    for verdict in decided:
        lines = [
            f"{claim.text} ({claim.where}): {claim.effect_text}, {claim.n_text}."
            for claim in claims
            if claim not in main and claim.verdict == verdict
        ]
        if lines:
            findings[f"Also {verdict}"] = lines
    cautions = dict.fromkeys(
        claim.caveat for claim in claims if claim.caveat and (claim in main or claim.verdict in decided)
    )
    if cautions:
        findings["Caveats"] = [
            *(f"{caveat[0].upper()}{caveat[1:]}." for caveat in cautions),
            "p is corrected for the number of claims in each experiment, not in all experiments together.",
        ]
    open_verdicts = (Verdict.UNDECIDED, Verdict.NOT_TESTABLE)
    for heading, verdicts, line in (
        ("Undecided", open_verdicts, "See the tables of claims below."),
        ("Not run yet", (Verdict.NOT_RUN,), "Each experiment below lists what is missing."),
    ):
        count = sum(claim.verdict in verdicts for claim in claims)
        if count:
            findings[f"{heading}: {count} of {pluralize(len(claims), 'claim')}"] = [line]
    if claims:
        findings["How to read the claims"] = [CLAIMS_NOTE]
    return findings


def student_rows(collected: Collected) -> list[dict[str, Any]]:
    """Return each variant of the students as a plain dict: label, accuracy in percent, difference to no teacher."""
    rows = []
    for variant in collected.variants:
        baseline = collected.baseline(variant)
        rows.append(
            {
                "label": variant.label,
                "student": variant.student,
                "teacher": variant.teacher_accuracy,
                "n": variant.n,
                "mean": variant.mean,
                "sd": variant.sd if variant.n > 1 else None,
                "against": "" if baseline is None or variant.from_scratch else difference(variant, baseline).text,
                "chosen": variant.chosen,
            }
        )
    return rows


def conclusions(collected: Collected) -> list[str]:
    """Return which teachers made a difference to which student, in sentences."""
    sentences = []
    for variants in collected.families():
        student, baseline = variants[0].student, collected.baseline(variants[0])
        taught = [variant for variant in variants if not variant.from_scratch]
        if not taught:
            continue
        if baseline is None:
            sentences.append(f"{student}: no student was trained in the same way without a teacher.")
            continue
        gaps = [(variant.label, difference(variant, baseline)) for variant in taught]
        best = max(taught, key=lambda variant: variant.mean)
        sentences.append(
            f"{student}: the best teacher so far is {best.label}, with {best.mean:.1f}% on the test set. The "
            f"difference from no teacher is {difference(best, baseline).text}. This comparison favors the best of "
            "several teachers."
        )
        for verdict in dict.fromkeys(gap.verdict for _, gap in gaps):
            listed = "; ".join(f"{label}: {gap.mean:+.2f} points" for label, gap in gaps if gap.verdict == verdict)
            sentences.append(f"{student} compared with no teacher, {verdict}: {listed}.")
        if any(gap.mean + gap.half_width < 0 for _, gap in gaps):  # False for one seed, whose half-width is NaN
            sentences.append(
                f"Some students of {student} are below the student without a teacher. Likely reasons: an under-trained "
                "teacher, an α that is too small for it, or too few epochs."
            )
    return list(dict.fromkeys(sentences))


def _verdict(name: str, record: PilotRecord) -> str:
    runs = pluralize(len(record.result.pilot_runs), "pilot run")
    return f"{name}, {runs} of {record.result.student}: {record.result.reason}."


def _chosen_by_search(scored: Scored) -> bool:
    return scored.selection is not None and scored.selection.rule == "pilot"


def _choice_sentence(scored: Scored) -> str:
    selection, count = scored.selection, pluralize(len(scored.plane.points), "checkpoint")
    if selection is None:
        return f"{scored.name}: {count} scored. No checkpoint is selected yet."
    unit, rule = scored.trajectory.unit, rule_name(selection.rule)
    if selection.estimator and selection.rule == "algorithm1":
        rule += f" (I(X;F) by {selection.estimator})"
    teacher = teachers_in_words(selection.names, unit) + (f" for {selection.student}" if selection.student else "")
    runner_up = "" if selection.runner_up is None else f" Runner-up: {unit} {selection.runner_up}."
    warnings = "".join(f" Warning: {warning.removesuffix('.')}." for warning in selection.warnings)
    return f"{scored.name}: of {count}, {rule} chose {teacher}. Reason: {selection.reason}.{runner_up}{warnings}"
