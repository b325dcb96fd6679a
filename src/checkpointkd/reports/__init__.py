"""One self-contained page of what runs left: the plane and its choice, students, tables, provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .. import files
from ..errors import UserError
from ..settings import UNITS
from .collect import Arm, Collected, Difference, Scored, collect, difference, rule_name
from .figures import (
    SYMBOLS,
    curves_data,
    draw_correlation,
    draw_curves,
    draw_plane,
    draw_search,
    draw_students,
    plane_data,
    search_data,
    students_data,
)

__all__ = [
    "CORRELATION_COLUMNS",
    "Arm",
    "Collected",
    "Difference",
    "Scored",
    "collect",
    "conclusions",
    "correlation_rows",
    "difference",
    "write_correlation",
    "write_report",
]


KINDS = {"logits": "logits", "softened": "predictions, τ = {tau:g}"}  # of class correlation
ROUNDING = 1e-6
_GENERATOR = b'<meta name="generator" content="checkpointkd">'


def write_report(folder: Path, *, out: Path) -> Path:
    """Write the report on every run below a folder, as one HTML file that needs no network; raises UserError when
    there is nothing to report on, or when the file is there and is no report of ours."""
    collected = collect(folder)
    figures = []
    several = [
        scored for scored in collected.scored if len(scored.plane.points) > 1
    ]  # one point has no plane of its own
    for scored in several:
        drawn = draw_plane(plane_data(scored))
        figures.append(
            {
                "title": f"The information plane of {scored.name}",
                "alt": f"The checkpoints of {scored.name} by normalised I(X;F) and I(Y;F); values in the table below",
                "html": _embedded(drawn, len(figures)),
                "caption": "Up and to the right is better: Algorithm 1 chooses the largest sum. Numbers are "
                f"{scored.trajectory.unit}s.",
            }
        )
    for data in curves_data(collected):
        figures.append(
            {
                "title": f"{len(data.curves)} trajectories on one information plane",
                "alt": "The checkpoints of several runs by I(X;F) and accuracy; values in the tables below",
                "html": _embedded(draw_curves(data), len(figures)),
                "caption": f"The large point is a run's last checkpoint. I(X;F) by {data.estimator}, larger for more: "
                f"{UNITS[data.estimator]}.",
            }
        )
    for data in students_data(collected):
        figures.append(
            {
                "title": f"{data.student}: accuracy against the teacher's epoch",
                "alt": f"Test accuracy of {data.student} by the epoch of its teacher; values in the table above",
                "html": _embedded(draw_students(data), len(figures)),
                "caption": "Bars and the grey band: one standard deviation over seeds.",
            }
        )
    for name, result in collected.searches.items():
        data = search_data(result)
        settings = " and ".join(SYMBOLS.get(one, one.replace("_", " ")) for one in data.names)
        figures.append(
            {
                "title": f"The search for {settings}: {name}",
                "alt": f"Accuracy on the selection images by {settings}; values in the table below",
                "html": _embedded(draw_search(data), len(figures)),
                "caption": f"{result['student']} taught by {', '.join(result['teacher_addresses'])}, method "
                f"{result['method']}; {len(result['trials'])} of {result['planned']} trials.",
            }
        )
    return _write(
        "page.html.jinja",
        out,
        title=f"Checkpoints as teachers: {folder.resolve().name}",
        summary=[_summary(scored) for scored in several],
        conclusions=conclusions(collected),
        notes=collected.notes,
        heading="Students" if any(arm.teachers for arm in collected.arms) else "Networks",
        rows=[_row(arm, collected) for arm in collected.arms],
        figures=figures,
        searches=[_search_table(name, result) for name, result in collected.searches.items()],
        planes=[_plane_table(scored) for scored in collected.scored],
        provenance=collected.provenance,
    )


def write_correlation(found: dict[str, Any], *, out: Path) -> Path:
    """Write what `correlate` found as one HTML file; raises UserError when the file is there and is no page of ours."""
    figures = [
        {
            "title": f"Class correlation: {KINDS[kind].format(**found)}",
            "alt": f"Heatmaps of the similarity of {len(found['classes'])} classes",
            "html": _embedded(draw_correlation(found, kind), number),
            "caption": f"Classes by {found['order']}"
            + ("; in the last map blue is where the first finds two classes more alike, red where the second does."
               if "difference" in found[kind] else "."),
        }
        for number, kind in enumerate(KINDS)
    ]  # fmt: skip
    return _write(
        "correlation.html.jinja",
        out,
        title="Class correlation: " + " and ".join(one["address"] for one in found["checkpoints"]),
        tau=f"{found['tau']:g}",
        columns=CORRELATION_COLUMNS,
        rows=correlation_rows(found),
        words=correlation_words(found),
        figures=figures,
        provenance={
            "data": found["data"],
            "protocol": f"{found['protocol']}; {found['split']}: {found['images']:,} images",
            "weights": ", ".join(one["sha256"][:12] for one in found["checkpoints"]),
            **found["provenance"],
        },
    )


CORRELATION_COLUMNS = ["checkpoint", "epoch", "accuracy, %", "of", "mean similarity", "diversity"]


def correlation_rows(found: dict[str, Any]) -> list[list[str]]:
    """The table of what `correlate` found: a row for each checkpoint, and for the difference of two."""
    members = [
        [one["address"], str(one["epoch"]), f"{100 * one['accuracy']:.1f} ± {100 * one['accuracy_se']:.1f}"]
        for one in found["checkpoints"]
    ]
    rows = []
    for kind, name in KINDS.items():
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
    for kind, name in KINDS.items() if len(found["checkpoints"]) == 2 else ():
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


def _write(template: str, out: Path, *, figures: list[dict[str, Any]], **content: Any) -> Path:
    try:
        there = out.exists()
    except OSError as error:
        raise UserError(f"{str(out)[:80]}… can't be written: {error.strerror}") from None
    if there and not (out.is_file() and _GENERATOR in out.read_bytes()[:1000]):
        raise UserError(f"{out} is there already and is no page of ours; choose another --out")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    plotly_js = Markup(get_plotlyjs() if figures else "")
    page = environment.get_template(template).render(plotly_js=plotly_js, figures=figures, **content)
    files.write_whole(out, page.encode())
    return out


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
    if scored.selection is None:
        return f"{scored.name}: {len(scored.plane.points)} checkpoints scored, none chosen yet."
    used = (scored.selection.get("made_with") or {}).get("estimator")
    by = f" (I(X;F) by {used})" if used and scored.selection["rule"] == "paper" else ""
    runner_up, unit = scored.selection.get("runner_up"), scored.trajectory.unit
    return (
        f"{scored.name}: of {len(scored.plane.points)} checkpoints {rule_name(scored.selection['rule'])} chose {unit} "
        f"{scored.selection['epoch']}{by}: {scored.selection['reason']}"
        + (f"; the runner-up is {unit} {runner_up}." if runner_up is not None else ".")
    )


def _row(arm: Arm, collected: Collected) -> dict[str, Any]:
    baseline = collected.baseline(arm)
    return {
        "label": arm.label,
        "student": arm.student,
        "accuracy": f"{arm.mean:.2f} ± {arm.sd:.2f}" if arm.n > 1 else f"{arm.mean:.2f}",
        "n": arm.n,
        "against": difference(arm, baseline).words if baseline is not None and not arm.alone else "",
        "chosen": "chosen by" in arm.label and len(arm.teachers) == 1,
    }


def _plane_table(scored: Scored) -> dict[str, Any]:
    chosen = scored.selection["epoch"] if scored.selection else None
    settings = scored.plane.settings
    return {
        "name": scored.name,
        "unit": scored.trajectory.unit,
        "caption": f"Measured on {settings['measured_on']}, {scored.plane.information_ASN.shape[-1]:,} images. "
        f"I(X;F) by {settings['estimator']}: {UNITS[settings['estimator']]}. H(Y) − CE bounds I(Y;F) from below.",
        "rows": [
            {
                "epoch": point.epoch,
                "accuracy": f"{100 * point.accuracy:.1f} ± {100 * point.accuracy_se:.1f}",
                "nll": f"{point.nll:.3f}",
                "bound": f"{point.label_information:.3f}",
                "information": f"{point.image_information:.4f} ± {point.image_information_se:.4f}",
                "fits": "" if point.image_information_sd is None else f"{point.image_information_sd:.4f}",
                "sha256": point.sha256[:12],
                "chosen": point.epoch == chosen,
            }
            for point in scored.plane.points
        ],
    }


def _search_table(name: str, result: dict[str, Any]) -> dict[str, Any]:
    best = result["best"]
    ended = sorted(result["trials"], key=lambda trial: (trial["accuracy"] is None, -(trial["accuracy"] or 0)))
    left_alone = result["data"]["protocol"] == "holdout"
    of_these = "a part of the training images; the test images were left alone" if left_alone else "the test images"
    words = "no trial is finished yet"
    if best is not None:
        words = (
            f"the best is right on {100 * best['accuracy']:.1f} ± {100 * best['accuracy_se']:.1f} % of the "
            f"{result['images']:,} selection images; {best['within_noise']} others are within noise of it"
        )
    return {
        "name": name,
        "caption": f"Accuracy on the selection images, {of_these}. {words[0].upper()}{words[1:]}.",
        "columns": [SYMBOLS.get(one, one.replace("_", " ")) for one in result["space"]],
        "rows": [
            {
                "values": [f"{trial['values'][one]:g}" for one in result["space"]],
                "accuracy": "" if trial["accuracy"] is None else f"{100 * trial['accuracy']:.2f}",
                "stopped": trial["stopped"] or "",
                "chosen": best is not None and trial["trial"] == best["trial"],
            }
            for trial in ended
        ],
    }


def _embedded(figure: Any, number: int) -> Markup:
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{number}",
        config={"responsive": True, "displaylogo": False},
    )
    return Markup(html)
