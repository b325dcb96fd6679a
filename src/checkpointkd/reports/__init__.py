"""One self-contained page of what runs left: the plane and its choice, students, tables, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..analysis.statistics import AVERAGE, Claim, claim_from
from ..config import CORRELATION_KINDS, INFORMATION_UNITS
from ..errors import pluralize
from .charts import Figure, Table, from_plain
from .collect import (
    Collected,
    Difference,
    Scored,
    Variant,
    collect,
    difference,
    rule_name,
)
from .figures import (
    SYMBOLS,
    correlation_heatmaps,
    curves_charts,
    plane_chart,
    points_of,
    search_chart,
    students_charts,
)
from .page import Page, Section, refuse_others, write_page

__all__ = [
    "CORRELATION_COLUMNS",
    "Collected",
    "Difference",
    "Scored",
    "Variant",
    "collect",
    "conclusions",
    "correlation_rows",
    "difference",
    "notes_of_all",
    "probing_words",
    "refuse_others",
    "settings_words",
    "write_correlation",
    "write_report",
]


ROUNDING = 1e-6
ABOUT = (
    "Which checkpoint of a network's training teaches a smaller network best? Each checkpoint has two informations: "
    "I(Y;F), how well its features tell the label (its accuracy), and I(X;F), how much of the image they keep (how "
    "well a small decoder redraws it). Algorithm 1 of Wang et al. (NeurIPS 2022) chooses the largest sum of both."
)
ABOUT_STUDIES = (
    "Wang et al. (NeurIPS 2022) found that a checkpoint from the middle of a teacher's training often teaches a small "
    "network better than the finished teacher, that two checkpoints of one run can beat an ensemble of independent "
    "runs, and that an information-theoretic score can pick the checkpoint. These are their experiments, run here."
)
ABOUT_CORRELATION = (
    "How alike a network finds each pair of classes: the cosine of the classes' mean logits, or of their mean "
    "predictions softened at temperature {tau:g} (Eq. 8 of Wang et al., NeurIPS 2022). Mean similarity and diversity "
    "are the mean and the standard deviation of the cells beside the diagonal, with 95% intervals by bootstrap over "
    "the images: a bright map finds classes alike, a diverse one tells near classes from far ones."
)
STUDENTS_NOTE = (
    "Test accuracy after the last epoch, mean ± standard deviation over n seeds. Differences are paired over seeds, "
    'with 95% intervals that are not corrected for how many there are; "within noise" means that the interval holds 0.'
)


def write_report(folder: Path, *, out: Path) -> Path:
    """Write the report on every run below a folder, or on the studies there, as one HTML file that needs no network,
    with its figures and tables as files in a folder beside it; raises UserError when there is nothing to report on, or
    when the file is there and is no report of ours."""
    collected = collect(folder)
    page = _studies_page(collected) if collected.studies else _runs_page(collected)
    return write_page(page, out=out)


def _runs_page(collected: Collected) -> Page:
    several = [scored for scored in collected.scored if len(scored.plane.points) > 1]  # one point is no plane
    sections = []
    if collected.arms:
        title = "Students" if any(arm.teachers for arm in collected.arms) else "Networks"
        sections.append(Section(title=title, tables=[_students_table(collected)]))
    figures: list[Figure] = [
        plane_chart(
            scored.name,
            points_of(scored),
            chosen=scored.chosen,
            unit=scored.trajectory.unit,
        )
        for scored in several
    ]
    figures += [*curves_charts(collected), *students_charts(collected)]
    figures += [search_chart(name, result) for name, result in collected.searches.items()]
    sections += [Section(title=figure.title, figures=[figure]) for figure in figures]
    sections += [
        Section(title=f"The trials of {name}", tables=[_search_table(result)])
        for name, result in collected.searches.items()
    ]
    sections += [
        Section(
            title=f"Which teacher for {found['result']['student']}: {name}",
            words=[
                *probing_words(found["result"]),
                f"Lessons of seed {found['seed']}. To train the student:",
            ],
            command=found["result"]["command"],
            notes=found["result"]["warnings"],
            tables=[_lessons_table(found["result"])],
        )
        for name, found in collected.probings.items()
    ]
    sections += [
        Section(title=f"The checkpoints of {scored.name}", tables=[_plane_table(scored)]) for scored in collected.scored
    ]
    return Page(
        title=f"Checkpoints as teachers: {collected.folder.resolve().name}",
        about=ABOUT,
        words=[*map(_summary, several), *conclusions(collected)],
        notes=collected.notes,
        sections=sections,
        provenance=collected.provenance,
    )


def _studies_page(collected: Collected) -> Page:
    of_all = notes_of_all(collected.studies)
    claims = [[claim_from(stored) for stored in study["claims"]] for study in collected.studies]
    return Page(
        title=f"The paper's experiments on checkpoints as teachers: {collected.folder.resolve().name}",
        about=ABOUT_STUDIES,
        words=list(dict.fromkeys(settings_words(study["preset"]) for study in collected.studies)),
        findings=_findings([claim for several in claims for claim in several]),
        notes=[*of_all, *collected.notes],
        sections=[
            Section(
                title=study["title"],
                notes=[note for note in study["notes"] if note not in of_all],
                tables=[Table(**table) for table in study["tables"]],
                claims=several,
                figures=[from_plain(figure) for figure in study["figures"]],
            )
            for study, several in zip(collected.studies, claims, strict=True)
        ],
        provenance=collected.provenance,
    )


def notes_of_all(studies: Sequence[dict[str, Any]]) -> list[str]:
    """What is noted of every study, which is said once."""
    said = [note for study in studies for note in study["notes"]]
    return [note for note in dict.fromkeys(said) if said.count(note) == len(studies)]


def settings_words(scale: dict[str, Any]) -> str:
    """What was run, in one line."""
    images = f", {scale['train_images']:,} training images" if scale["train_images"] else ""
    pairs = ", ".join(f"{pair['teacher']} → {pair['student']}" for pair in scale["pairs"])
    return (
        f"The scale {scale['name']}: {scale['dataset']}{images}; teacher → student: {pairs}; "
        f"{scale['teacher_epochs']} and {scale['student_epochs']} epochs; {pluralize(scale['seeds'], 'seed')} each; "
        f"protocol {scale['select_on']}."
    )


def _findings(claims: list[Claim]) -> dict[str, list[str]]:
    """The main claims, whatever became of them; the rest that is decided; how many aren't."""
    weakest: dict[tuple[str, str], Claim] = {}  # two studies may have the same claim, each among others
    for one in claims:
        held = weakest.setdefault((one.text, one.where), one)
        if held.p_corrected is not None and (one.p_corrected is None or one.p_corrected > held.p_corrected):
            weakest[one.text, one.where] = one
    claims = list(weakest.values())
    main = [one for one in claims if one.where == AVERAGE]
    found: dict[str, list[str]] = {}
    if main:
        found["In short, on average over the pairs of networks"] = [
            f"{one.text}? {one.verdict.capitalize()}{f': {one.cells()[0]}' if one.n else ''}." for one in main
        ]
    for word in ("supported", "not supported"):
        said = [f"{one.text} ({one.where}): {one.cells()[0]}" for one in claims if one not in main and one.word == word]
        if said:
            found[f"Also {word}"] = said
    cautions = dict.fromkeys(one.caveat for one in claims if one.caveat and (one in main or one.word != "undecided"))
    if cautions:
        found["What to know of these"] = [
            *(f"{caveat[0].upper()}{caveat[1:]}." for caveat in cautions),
            "p is corrected for the number of claims of each study, not of all of them together.",
        ]
    undecided = sum(one.n > 0 and one.word == "undecided" and not one.same for one in claims)
    if undecided:
        found[f"Undecided: {undecided} of {pluralize(len(claims), 'claim')}"] = [
            "The tables of claims below show them."
        ]
    missing = sum(one.n == 0 for one in claims)
    if missing:
        found[f"Not run yet: {missing} of {pluralize(len(claims), 'claim')}"] = [
            "The studies below say what is missing."
        ]
    return found


def write_correlation(found: dict[str, Any], *, out: Path) -> Path:
    """Write what `correlate` found as one HTML file; raises UserError when the file is there and is no page of ours."""
    rows = correlation_rows(found)
    page = Page(
        title="Class correlation: " + " and ".join(one["ref"] for one in found["checkpoints"]),
        about=ABOUT_CORRELATION.format(**found),
        words=correlation_words(found),
        sections=[
            Section(title="How alike classes are", tables=[Table("", CORRELATION_COLUMNS, rows)]),
            *(
                Section(title=figure.title, figures=[figure])
                for figure in (correlation_heatmaps(found, kind) for kind in CORRELATION_KINDS)
            ),
        ],
        provenance={
            "data": found["data"],
            "select_on": f"{found['select_on']}; {found['split']}: {found['images']:,} images",
            "weights": ", ".join(one["sha256"][:12] for one in found["checkpoints"]),
            **found["provenance"],
        },
    )
    return write_page(page, out=out)


CORRELATION_COLUMNS = ["checkpoint", "epoch", "accuracy, %", "of", "mean similarity", "diversity"]


def correlation_rows(found: dict[str, Any]) -> list[list[str]]:
    """The table of what `correlate` found: a row for each checkpoint, and for the difference of two."""
    members = [
        [one["ref"], str(one["epoch"]), f"{100 * one['accuracy']:.1f} ± {100 * one['accuracy_se']:.1f}"]
        for one in found["checkpoints"]
    ]
    rows = []
    for kind, name in CORRELATION_KINDS.items():
        numbers = found[kind]["numbers"].values()
        for member, *intervals in zip(members, *numbers, strict=True):
            rows.append([*member, name.format(**found), *map(_interval, intervals)])
        if "differences" in found[kind]:
            apart = [_interval(one) for one in found[kind]["differences"].values()]
            rows.append(["the first less the second", "", "", name.format(**found), *apart])
    return rows


def correlation_words(found: dict[str, Any]) -> list[str]:
    """How two checkpoints differ, in plain words."""
    sentences = []
    for kind, name in CORRELATION_KINDS.items() if len(found["checkpoints"]) == 2 else ():
        said = []
        for number, what in (("mean_similarity", "alike"), ("diversity", "diverse")):
            apart = found[kind]["differences"][number]
            if apart["low"] <= ROUNDING and apart["high"] >= -ROUNDING:
                said.append(f"as {what}, within noise")
            else:
                said.append(f"{'more' if apart['value'] > 0 else 'less'} {what}, beyond noise")
        sentences.append(
            f"By {name.format(**found)}, the first against the second finds classes {'; and '.join(said)}."
        )
    return sentences


def _interval(one: dict[str, float]) -> str:
    return f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def conclusions(collected: Collected) -> list[str]:
    """What the students' differences amount to, in plain words."""
    sentences = []
    for arms in collected.families():
        baseline = collected.baseline(arms[0])
        taught = [arm for arm in arms if not arm.alone]
        if taught and baseline is None:
            sentences.append(f"{arms[0].student}: no student was trained in the same way without a teacher.")
        if not taught or baseline is None:
            continue
        found = [(arm.label, difference(arm, baseline)) for arm in taught]
        for verdict, why in (("beyond noise", ""), ("within noise", "at this n "), ("undecided", "with one seed ")):
            of_these = [(label, gap) for label, gap in found if gap.verdict == verdict]
            if verdict == "beyond noise":
                listed = [f"{label}: {gap.mean:+.2f} points" for label, gap in of_these]
            else:
                listed = [label for label, _ in of_these]
            if listed:
                sentences.append(f"{arms[0].student}, against no teacher, {why}{verdict}: {'; '.join(listed)}.")
    return list(dict.fromkeys(sentences))


def _summary(scored: Scored) -> str:
    selection = scored.selection
    if selection is None:
        return f"{scored.name}: {len(scored.plane.points)} checkpoints scored, none chosen yet."
    by = f" (I(X;F) by {selection.estimator})" if selection.estimator and selection.rule == "algorithm1" else ""
    unit, epochs = scored.trajectory.unit, selection.epochs
    chosen = f"{unit}{'s' if len(epochs) > 1 else ''} {' + '.join(map(str, epochs))}" if epochs else "no teacher"
    return (
        f"{scored.name}: of {len(scored.plane.points)} checkpoints {rule_name(selection.rule)} chose "
        f"{chosen}{f' for {selection.student}' if selection.student else ''}{by}: {selection.reason}"
        + (f"; the runner-up is {unit} {selection.runner_up}." if selection.runner_up is not None else ".")
    )


def _students_table(collected: Collected) -> Table:
    rows, marked = [], []
    for number, arm in enumerate(collected.arms):
        baseline = collected.baseline(arm)
        against = difference(arm, baseline).words if baseline is not None and not arm.alone else ""
        rows.append([arm.label, arm.student, arm.words, str(arm.n), against])
        if arm.chosen:
            marked.append(number)
    columns = ["learned from", "network", "accuracy, %", "n", "against no teacher, points"]
    return Table("", columns, rows, STUDENTS_NOTE, marked)


def probing_words(found: dict[str, Any]) -> list[str]:
    """What lessons found, as sentences: which teacher, by how much others are behind, what was left out, the cost."""
    unit, together = found["unit"], " + ".join(map(str, found["epochs"]))
    who = f"{unit} {together} with alpha {found['alpha']:g} and tau {found['tau']:g}" if together else "no teacher"
    lines = [f"{who}, for {found['student']}: {found['reason']}"]
    behind = found["behind"]
    for one in {(gap["candidate"], gap["pilot_epochs"]): gap for gap in behind.values()}.values():
        also = [name for name, gap in behind.items() if gap == one and name != one["candidate"]]
        where, sign = ("behind by", 1) if one["mean"] >= 0 else ("ahead by", -1)
        low, high = sorted((sign * one["low"], sign * one["high"]))
        names = f"{one['candidate']}{', ' + ' and '.join(also) + ',' if also else ''}"
        lines.append(
            f"{names} is {where} {sign * one['mean']:.3f} nats "
            f"({low:.3f} to {high:.3f}{', by these images alone' * (sign < 0 < low)}) after "
            f"{pluralize(one['pilot_epochs'], 'epoch')}"
        )
    if found["skipped"]:
        skipped = ", ".join(map(str, found["skipped"]))
        lines.append(f"less accurate than the student after its lesson without a teacher: {unit} {skipped}")
    if found.get("untried"):
        untried = ", ".join(map(str, found["untried"]))
        lines.append(f"not tried, for which a larger budget would have room: {unit} {untried}")
    share = found["spent_epochs"] / found["student_epochs"]
    lines.append(
        f"the lessons cost {pluralize(found['spent_epochs'], 'epoch')}, {100 * share:.0f}% of one whole distillation; "
        "best in: share of 1,000 resamples of the images, of these very students; another seed's may differ more"
    )
    return lines


def _lessons_table(found: dict[str, Any]) -> Table:
    """The lessons of a student, the best first, what was chosen marked."""
    lessons = sorted(found["pilot_runs"], key=lambda one: (-one["pilot_epochs"], -one["information"]))
    chosen = (found["epochs"], found["alpha"])
    rows = [
        [
            (f"{found['unit']} {' + '.join(map(str, one['epochs']))}" if one["epochs"] else "no teacher")
            + (", chosen" if (one["epochs"], one["alpha"]) == chosen else ""),
            f"{one['alpha']:g}",
            str(one["pilot_epochs"]),
            f"{one['information']:.3f}",
            f"{100 * one['accuracy']:.1f}",
            "" if one["probability"] is None else f"{100 * one['probability']:.0f}",
        ]
        for one in lessons
    ]
    marked = [number for number, one in enumerate(lessons) if (one["epochs"], one["alpha"]) == chosen]
    note = (
        f"{found['student']} had {len(lessons)} short lessons, compared on the selection images; a whole distillation "
        f"has {found['student_epochs']} epochs. I(Y;F) is the bound H(Y) − CE; best in: of the lessons that decide."
    )
    columns = ["learned from", "α", "epochs", "I(Y;F), nats", "accuracy, %", "best in, %"]
    return Table("", columns, rows, note, marked)


def _plane_table(scored: Scored) -> Table:
    settings, points = scored.plane.settings, scored.plane.points
    rows = [
        [
            str(point.epoch),
            f"{100 * point.accuracy:.1f} ± {100 * point.accuracy_se:.1f}",
            f"{point.nll:.3f}",
            f"{point.label_information:.3f}",
            f"{point.image_information:.4f} ± {point.image_information_se:.4f}",
            "" if point.image_information_sd is None else f"{point.image_information_sd:.4f}",
            point.sha256[:12],
        ]
        for point in points
    ]
    note = (
        f"Measured on {settings.measured_on}, {scored.plane.information_ASN.shape[-1]:,} images. I(X;F) by "
        f"{settings.estimator}: {INFORMATION_UNITS[settings.estimator]}. H(Y) − CE bounds I(Y;F) from below."
    )
    unit = scored.trajectory.unit
    columns = [unit, "accuracy, %", "NLL, nats", "H(Y) − CE, nats", "I(X;F)", "± fits", "weights"]
    return Table(
        "", columns, rows, note, [number for number, point in enumerate(points) if point.epoch in scored.chosen]
    )


def _search_table(result: dict[str, Any]) -> Table:
    best = result["best"]
    ended = sorted(result["trials"], key=lambda trial: (trial["accuracy"] is None, -(trial["accuracy"] or 0)))
    left_alone = result["data"]["select_on"] == "val"
    of_these = "a part of the training images; the test images were left alone" if left_alone else "the test images"
    words = "no trial is finished yet"
    if best is not None:
        words = (
            f"the best is right on {100 * best['accuracy']:.1f} ± {100 * best['accuracy_se']:.1f}% of the "
            f"{result['images']:,} selection images; {best['comparable']} others are within noise of it"
        )
    rows = [
        [
            *(f"{trial['values'][one]:g}" for one in result["space"]),
            "" if trial["accuracy"] is None else f"{100 * trial['accuracy']:.2f}",
            trial["stopped"] or "",
        ]
        for trial in ended
    ]
    return Table(
        "",
        [*(str(SYMBOLS.get(one, one.replace("_", " "))) for one in result["space"]), "accuracy, %", "stopped"],
        rows,
        f"Accuracy on the selection images, {of_these}. {words[0].upper()}{words[1:]}.",
        [number for number, trial in enumerate(ended) if best is not None and trial["trial"] == best["trial"]],
    )
