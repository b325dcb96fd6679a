"""What the command prints of each verb's result: tables for people, plain values for JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import records
from .analysis.statistics import CLAIM_COLUMNS, claim_from
from .config import INFORMATION_UNITS
from .errors import format_bytes, pluralize, printable


def plain(result: Any) -> Any:
    """A verb's result as JSON's values."""
    if hasattr(result, "to_plain"):
        return result.to_plain()
    if isinstance(result, records.Record):
        return records.plain(result)
    if is_dataclass(result) and not isinstance(result, type):
        return asdict(result)
    return {"path": str(result)} if isinstance(result, Path) else result


def trajectory(found: Any) -> RenderableType:
    """One line on what a run left, one on how good it is."""
    result, run = found.result(), found.run
    lines = [f"{found.path}: {pluralize(len(found), 'checkpoint')}, {found.unit}s {', '.join(map(str, found))}"]
    if result is not None and run.data.select_on == "test":
        lines.append(
            f"after epoch {result.epoch}: accuracy {_percent(result.test)} on the {result.test_images:,} test images, "
            "which also select (--select-on test)"
        )
    elif result is not None:
        lines.append(
            f"after epoch {result.epoch}: accuracy {_percent(result.val)} on the validation set, "
            f"{_percent(result.test)} on the {result.test_images:,} test images"
        )
    cost = getattr(run, "teachers_cost", None)
    if result is not None and cost is not None:
        seconds = "" if cost.seconds is None else f" ({cost.seconds:,.0f} s)"
        lines.append(
            f"cost: {pluralize(cost.epochs, 'epoch')} of {pluralize(cost.runs, 'run')}{seconds} to train the teachers, "
            f"{pluralize(found.planned_epochs, 'epoch')} ({result.seconds:,.0f} s) to distill"
        )
    if result is not None and result.best_of_last_ten is not None:
        best = result.best_of_last_ten
        lines.append(f"best of the last ten epochs on the test images: {100 * best.accuracy:.1f}%, epoch {best.epoch}")
    return Text("\n".join(lines))


def inspection(found: dict[str, Any]) -> RenderableType:
    """What is in a folder of checkpoints."""
    foreign = found["kind"] == "external"
    table = _table(
        found.get("unit", "epoch"), "as written" if foreign else "from", "file", "kB", "selection accuracy", "weights"
    )
    for checkpoint in found["checkpoints"]:
        accuracy = checkpoint["val_accuracy"]
        table.add_row(
            str(checkpoint["epoch"]),
            f"{checkpoint['stated']} ({checkpoint['epoch_from']})" if foreign else checkpoint["epoch_from"],
            checkpoint["file"],
            f"{checkpoint['bytes'] / 1000:,.0f}",
            "" if accuracy is None else f"{100 * accuracy:.1f}%",
            (checkpoint["sha256"] or "")[:12],
        )
    return Group(Text(printable(_about(found))), table, Text("\n".join(map(printable, _further(found)))))


def _about(found: dict[str, Any]) -> str:
    if found["model"] is None:
        return f"{found['path']}: {len(found['checkpoints'])} checkpoints of another trainer ({found['format']})"
    knows = f"{found['classes']} classes, protocol {found['select_on']}"
    what = f"{found['path']}: {found['model']} on {found['data']} ({knows})"
    if found["kind"] == "external":
        numbers = [" ".join(f"{value:.3f}" for value in found[name]) for name in ("mean", "std")]
        return (
            f"{what}, written by another trainer ({found['format']}); images are normalized with mean {numbers[0]} and "
            f"deviation {numbers[1]} ({found['normalized_as']}); weights: {found['weights_at'] or 'the whole file'}"
        )
    state = "complete" if found["complete"] else f"stopped after epoch {found['epochs_done']}"
    return f"{what}, seed {found['seed']}; {state} of {found['planned_epochs']} epochs"


def _further(found: dict[str, Any]) -> list[str]:
    lines = [f"left out: {one}" for one in found.get("left_out", [])]
    if found["model"] is None:
        command = f"checkpointkd inspect {found['path']} --model MODEL --data DATA"
        return [*lines, f"to use them, say which network they are of: {command}"]
    epochs = found["selected"]
    selected = "none yet" if epochs is None else " + ".join(map(str, epochs)) or "no teacher"
    return [*lines, f"scored: {'yes' if found['scored'] else 'no'}; selected: {selected}"]


def plane(scored: Any) -> RenderableType:
    """Each checkpoint's mutual-information estimates."""
    table = _table(scored.settings.unit, "accuracy", "NLL, nats", "H(Y) − CE, nats", "I(X;F)", "± images", "± fits")
    for point in scored.points:
        table.add_row(
            str(point.epoch),
            f"{100 * point.accuracy:.1f} ± {100 * point.accuracy_se:.1f}%",
            f"{point.nll:.3f}",
            f"{point.label_information:.3f}",
            f"{point.image_information:.4f}",
            f"{point.image_information_se:.4f}",
            "" if point.image_information_sd is None else f"{point.image_information_sd:.4f}",
        )
    settings = scored.settings
    note = (
        f"measured on {settings.measured_on} ({scored.information_ASN.shape[-1]:,} images); I(X;F) by "
        f"{settings.estimator}: {INFORMATION_UNITS[settings.estimator]}"
    )
    return Group(table, Text(note))


def choice(chosen: Any) -> RenderableType:
    """What was chosen, why, and what else was near."""
    return _probed(chosen) if hasattr(chosen, "pilot_runs") else _ruled(chosen)


def _probed(found: Any) -> RenderableType:
    """The lessons, what the best of them is worth, and the command that uses it."""
    table = _table("learned from", "alpha", "epochs", "I(Y;F), nats", "accuracy", "best in")
    for run in sorted(found.pilot_runs, key=lambda run: (-run.pilot_epochs, -run.information)):
        mark = " ←" if run.chosen else ""
        who = f"{found.unit} {' + '.join(map(str, run.epochs))}" if run.epochs else "no teacher"
        share = "" if run.probability is None else f"{100 * run.probability:.0f}%"
        table.add_row(
            who + mark,
            f"{run.alpha:g}",
            str(run.pilot_epochs),
            f"{run.information:.3f}",
            f"{100 * run.accuracy:.1f}%",
            share,
        )
    from .reports import probing_words

    lines = probing_words(plain(found))
    return Group(table, Text("\n".join(lines)), Text(found.command, no_wrap=True, overflow="ignore"))


def _ruled(chosen: Any) -> RenderableType:
    """The epoch, why, and what else was near."""
    columns = list(chosen.details)
    table = _table(chosen.unit, *columns, "score", *(["chosen in"] if chosen.probability else []))
    for epoch, value in chosen.scores.items():
        mark = " ←" if epoch == chosen.epoch else ""
        cells = [f"{chosen.details[column][epoch]:.2f}" for column in columns]
        share = [f"{100 * chosen.probability[epoch]:.0f}%"] if chosen.probability else []
        table.add_row(f"{epoch}{mark}", *cells, f"{value + 0.0:.4g}", *share)
    lines = [f"{chosen.unit} {chosen.epoch}: {chosen.reason}"]
    if chosen.runner_up is not None:
        lines.append(f"runner-up: {chosen.unit} {chosen.runner_up}, {chosen.scores[chosen.runner_up] + 0.0:.4g}")
    if chosen.probability:
        resampled = "images and of the estimator's fits" if chosen.rule == "algorithm1" else "images"
        lines.append(f"chosen in: share of 1,000 resamples of the {resampled}")
    return Group(table, Text("\n".join(lines)))


def evaluation(measured: dict[str, Any]) -> RenderableType:
    """Accuracy and NLL of checkpoints and of their ensemble."""
    table = _table("checkpoint", "epoch", "accuracy", "NLL, nats", "calibration error")
    rows = [(member["ref"], str(member["epoch"]), member) for member in measured["members"]]
    together, cost = measured["ensemble"], measured["training_cost"]
    lines = []
    if len(rows) > 1:
        how = [f"mean of {measured['average']}"]
        if measured["weights"] is not None:
            how.append(f"weights {' '.join(f'{weight:g}' for weight in measured['weights'])}")
        rows.append((f"the ensemble, {', '.join(how)}", "", together))
        lines.append(f"two members name {100 * together['disagreement']:.1f}% of the images differently, on average")
    for name, epoch, one in rows:
        calibration = f"{100 * one['calibration_error']:.1f}%"
        table.add_row(name, epoch, _percent(one), f"{one['nll']:.3f}", calibration)
    seconds = "" if cost["seconds"] is None else f", {cost['seconds']:,.0f} s"
    lines.append(f"training up to here took {_epochs_of(cost)}{seconds}")
    where = f"{measured['data']}, protocol {measured['select_on']}, {measured['split']}: {measured['images']:,} images"
    return Group(table, Text("\n".join([*lines, where])))


def correlation(found: dict[str, Any]) -> RenderableType:
    """How diverse each checkpoint finds the classes, and whether two differ."""
    from .reports import CORRELATION_COLUMNS, correlation_rows, correlation_words

    table = _table(*CORRELATION_COLUMNS)
    for row in correlation_rows(found):
        table.add_row(*row)
    where = f"{found['data']}, protocol {found['select_on']}, {found['split']}: {found['images']:,} images"
    drawn = f"the heatmaps are in {found['page']}" if found["page"] else "--out PAGE.html draws the heatmaps"
    notes = [*correlation_words(found), f"{where}; in brackets 95% intervals", drawn]
    return Group(table, Text("\n".join(notes)))


def tune(found: dict[str, Any]) -> RenderableType:
    """The trials, the best first, and the command that uses them."""
    best, names = found["best"], list(found["space"])
    table = _table(*names, "selection accuracy", "stopped")
    ended = sorted(found["trials"], key=lambda trial: (trial["accuracy"] is None, -(trial["accuracy"] or 0)))
    for trial in ended:
        accuracy = "" if trial["accuracy"] is None else f"{100 * trial['accuracy']:.1f}%"
        mark = " ←" if trial["trial"] == best["trial"] else ""
        values = [f"{trial['values'][name]:g}" for name in names]
        table.add_row(values[0] + mark, *values[1:], accuracy, trial["stopped"] or "")
    noise = f"within noise of it: {pluralize(best['comparable'], 'other')} ({found['images']:,} images)"
    line = f"the best: {100 * best['accuracy']:.1f} ± {100 * best['accuracy_se']:.1f}%; {noise}"
    return Group(table, Text(line), Text(found["command"], no_wrap=True, overflow="ignore"))


def exported(written: dict[str, Any]) -> RenderableType:
    """What lies where, and how to load it."""
    lines = [f"{written['folder']}: {', '.join(written['files'])}"]
    if written["onnx_difference"] is not None:
        lines.append(f"ONNX's logits are within {written['onnx_difference']:.1e} of PyTorch's")
    source = f"hf:{'/'.join(written['hub'].split('/')[-2:])}" if written["hub"] else written["folder"]
    lines.append(f"in Python: checkpointkd.load({source!r})")
    return Text("\n".join(lines))


def report(path: Any) -> RenderableType:
    """Where the report is."""
    return Text(f"the report is in {path}")


def cache(result: dict[str, Any]) -> RenderableType:
    """The entries of the cache, or what was deleted from it."""
    table = _table("kind", "last used", "size", "content", "path")
    for entry in result["entries"]:
        table.add_row(
            entry["kind"], entry["last_used"][:10], format_bytes(entry["bytes"]), entry["content"], entry["path"]
        )
    total = f"{pluralize(len(result['entries']), 'item')}, {format_bytes(result['bytes'])}"
    if result["action"] == "clear":
        return Group(table, Text(f"Freed {total}"))
    note = "`checkpointkd cache clear logits decoded` frees what commands can make again"
    return Group(table, Text(f"{result['home']}: {total}. {note}"))


def packed(written: dict[str, Any]) -> RenderableType:
    """What was packed."""
    if not written["pieces"]:
        return Text("nothing is new")
    gone = f"; {pluralize(written['gone'], 'file')} gone" if written["gone"] else ""
    return Text(
        f"{pluralize(written['files'], 'file')} new or changed, {written['bytes'] / 1e6:.1f} MB{gone}; pieces: "
        f"{', '.join(written['pieces'])}, and index.json"
    )


def unpacked(written: dict[str, Any]) -> RenderableType:
    """What is there."""
    return Text(f"{pluralize(written['files'], 'file')}, {written['bytes'] / 1e6:.1f} MB")


def experiments(result: dict[str, Any]) -> RenderableType:
    """A study's tables and claims, or of several how far each is, and where to look."""
    parts: list[RenderableType] = []
    if len(result["experiments"]) > 1:
        table = _table("reproduce", "pieces of work missing", "claims")
        for found in result["experiments"].values():
            verdicts = Counter(claim["verdict"].partition(" at ")[0] for claim in found["claims"])
            said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
            table.add_row(found["title"], str(found["missing"]), said)
        notes = dict.fromkeys(
            note
            for found in result["experiments"].values()
            for note in found["notes"]
            if not note.startswith("Not finished")
        )
        return Group(table, Text("\n".join([*notes, "", f"report: {result['report']}"])))
    for found in result["experiments"].values():
        parts.append(Text(found["title"], style="bold"))
        for shown in found["tables"]:
            table = _table(*shown["columns"])
            for row in shown["rows"]:
                table.add_row(*row)
            parts += [Text(f"\n{shown['title']}"), table, Text(shown["note"])]
        if found["claims"]:
            table = _table(*CLAIM_COLUMNS)
            for claim in map(claim_from, found["claims"]):
                table.add_row(claim.text, claim.where, *claim.cells())
            parts += [Text(), table]
        parts.append(Text("\n".join([*found["notes"], ""])))
    return Group(*parts, Text(f"report: {result['report']}"))


def demo(result: dict[str, Any]) -> RenderableType:
    """The demo's table, what it means, and where to look."""
    table = _table("student learned from", "test accuracy", "n", "against no teacher")
    for arm in result["students"]:
        table.add_row(arm["label"], f"{arm['mean']:.2f} ± {arm['sd']:.2f}%", str(arm["n"]), arm["against"])
    return Group(Text(result["headline"]), table, Text("\n".join([*result["notes"], f"report: {result['report']}"])))


def _epochs_of(cost: dict[str, Any]) -> str:
    return f"{pluralize(cost['epochs'], 'epoch')} of {pluralize(cost['runs'], 'run')}"


def _percent(measured: Any) -> str:
    accuracy, error = (
        (measured.accuracy, measured.accuracy_se)
        if hasattr(measured, "accuracy")
        else (measured["accuracy"], measured["accuracy_se"])
    )
    return f"{100 * accuracy:.1f} ± {100 * error:.1f}%"


class _Cells(Table):
    """A table whose cells are shown as they are."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(Text(printable(cell)) for cell in cells), **options)


def _table(*columns: str) -> Table:
    table = _Cells(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table
