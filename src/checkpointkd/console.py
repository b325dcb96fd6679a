"""Show the results of commands on the terminal, and as JSON values."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from . import records
from .analysis.statistics import claim_from
from .errors import UserError, discard, format_bytes, pluralize, printable
from .records.base import Measured
from .records.runs import DistillRecord
from .records.selection import PilotResult
from .records.tuning import TuneRecord
from .reports.charts import Table
from .reports.tables import (
    CLAIMS_NOTE,
    cache_table,
    caveats,
    checkpoints_table,
    choice_table,
    claims_table,
    correlation_sentences,
    correlation_table,
    evaluation_table,
    experiments_table,
    pilot_sentences,
    pilot_table,
    plane_table,
    students_table,
    tune_table,
)

if TYPE_CHECKING:
    from .checkpoints import Trajectory
    from .information import Plane
    from .selection import Choice

GAP = 2  # spaces between columns
MIN_TEXT = 8  # columns of texts are not narrower than this while a number would have to be broken instead
CHOSEN = " ←"
OWN_NETWORK = (
    "If the network is a class of your own, write a function that builds it, and name it --model my_network:build:"
)
FACTORY = (
    "    # my_network.py",
    "    from my_project import MyNetwork",
    "",
    "    def build(num_classes, in_channels):",
    "        return MyNetwork(num_classes)  # the nn.Module itself, not the LightningModule around it",
)
NBSP = "\N{NO-BREAK SPACE}"


def show(shown: RenderableType) -> None:
    """Print to standard output, 80 columns wide where there is no terminal."""
    console = Console(highlight=False, markup=False)
    with _write_errors():
        with console.capture() as capture:  # Rich would end the process at a closed pipe
            console.print(shown, crop=False)
        print(capture.get(), end="", flush=True)


def show_json(result: Any) -> None:
    """Print the result of a command to standard output as one JSON object on one line, without control characters."""
    text = json.dumps(plain(result), ensure_ascii=False, allow_nan=False)
    with _write_errors():
        print("".join(c if c.isprintable() else _json_escape(c) for c in text), flush=True)


def _json_escape(character: str) -> str:
    return f"\\u{ord(character):04x}" if character < "\U00010000" else json.dumps(character)[1:-1]


@contextlib.contextmanager
def _write_errors() -> Iterator[None]:
    """Turn an error of standard output into UserError; a pipe that nobody reads remains BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        raise UserError(
            f"Could not write to standard output: {error.strerror}. The command has finished, and its files are saved."
        ) from None


def plain(result: Any) -> Any:
    """Return the result of a command as JSON values."""
    if hasattr(result, "to_plain"):
        return result.to_plain()
    if isinstance(result, records.Record):
        return records.plain(result)
    if is_dataclass(result) and not isinstance(result, type):
        return asdict(result)
    return {"path": str(result)} if isinstance(result, Path) else result


def trajectory(trajectory: Trajectory) -> RenderableType:
    """Show a run's checkpoints, its accuracy and its cost."""
    run, result, epochs = trajectory.run, trajectory.result(), ", ".join(map(str, trajectory))
    lines = [f"{trajectory.path}: {pluralize(len(trajectory), 'checkpoint')}, {trajectory.unit}s {epochs}"]
    if result is None:
        return _lines(lines)
    if result.test is not None:
        test = f"After epoch {result.epoch}: test accuracy {_percent(result.test)} ({result.test_images:,} images)"
        test_selects = run.data.select_on == "test"
        also = "the test set is also used for selection" if test_selects else f"validation {_percent(result.val)}"
        lines.append(f"{test}; {also}")
    if isinstance(run, DistillRecord):
        cost, epochs = run.teachers_cost, pluralize(trajectory.planned_epochs, "epoch")
        lines.append(
            f"Cost: teachers {_cost(cost.runs, cost.epochs, cost.seconds)}; student {epochs}, {result.seconds:,.0f} s"
        )
    if result.best_of_last_ten is not None:
        best = result.best_of_last_ten
        lines.append(f"Best test accuracy of the last ten epochs: {100 * best.accuracy:.1f}%, epoch {best.epoch}")
    return _lines(lines)


def inspection(result: Mapping[str, Any]) -> RenderableType:
    """Show what is in a folder of checkpoints."""

    lines = [f"Left out: {reason}" for reason in result.get("left_out", [])]
    stood_in = dict.fromkeys(name for row in result["checkpoints"] for name in row["stood_in"])
    if stood_in:
        lines.append(f"Read as data, not imported: {', '.join(stood_in)}")
    if result["model"] is None:
        if result["network"]:
            needed, option = f"The files name the network {result['network']}. To use them, name", ""
        else:
            needed, option = "To use these checkpoints, name their network and", "--model MODEL "
        command = f"checkpointkd inspect {result['path']} {option}--data DATA"
        next_step = [_lines([f"{needed} the data set:"]), _line(command)]
        if not result["network"]:
            next_step += [_lines([OWN_NETWORK]), *map(_line, FACTORY)]
    else:
        epochs = result["selected"]
        selected = "none yet" if epochs is None else " + ".join(map(str, epochs)) or "no teacher"
        next_step = [_lines([f"Scored: {'yes' if result['scored'] else 'no'}; selected: {selected}"])]
    return Group(_lines(_description(result)), *_table(checkpoints_table(result)), _lines(lines), *next_step)


def _description(result: Mapping[str, Any]) -> list[str]:
    if result["model"] is None:
        count = pluralize(len(result["checkpoints"]), "external checkpoint")
        return [f"{result['path']}: {count} ({result['format']})"]
    lines = [
        f"{result['path']}: {result['model']} on {result['data']} ({result['classes']} classes, selection on "
        f"{result['select_on']})"
    ]
    if result["kind"] == "external":
        mean, std = (" ".join(f"{value:.3f}" for value in result[name]) for name in ("mean", "std"))
        lines.append(f"Format: {result['format']}; weights: {result['weights_at'] or 'the whole file'}")
        if result["other_sets"]:
            lines.append(f"Not used: {', '.join(result['other_sets'])}. To use another, give --state-dict-key KEY.")
        lines.append(f"Normalization: mean {mean}, std {std} ({result['normalized_as']})")
        return lines
    state = "complete" if result["complete"] else f"stopped after epoch {result['epochs_done']}"
    return [*lines, f"Seed {result['seed']}; {state} of {pluralize(result['planned_epochs'], 'epoch')}"]


def plane(scored: Plane) -> RenderableType:
    """Show each checkpoint on the information plane."""

    return Group(*_table(plane_table(scored)))


def choice(chosen: Choice | PilotResult) -> RenderableType:
    """Show which teacher was selected, by a rule or by pilot runs, and what else was close."""

    if isinstance(chosen, PilotResult):
        verdict, *others = pilot_sentences(chosen)
        after = _lines([*others, "To train the student:"])
        safe = [_lines(["The safe choice:"]), _line(chosen.safe_command)] if chosen.safe_command else []
        return Group(_lines([verdict]), *_table(pilot_table(chosen)), after, _line(chosen.command), *safe)
    lines = [f"Selected: {chosen.unit} {chosen.epoch}. Reason: {chosen.reason}."]
    if chosen.runner_up is not None:
        lines.append(f"Runner-up: {chosen.unit} {chosen.runner_up}, {chosen.scores[chosen.runner_up] + 0.0:.4g}.")
    return Group(*_table(choice_table(chosen)), _lines(lines))


def evaluation(result: Mapping[str, Any]) -> RenderableType:
    """Show accuracy, NLL and calibration of checkpoints and of their ensemble."""

    cost = result["training_cost"]
    line = f"Training cost: {_cost(cost['runs'], cost['epochs'], cost['seconds'])}"
    return Group(*_table(evaluation_table(result)), _lines([line]))


def correlation(result: Mapping[str, Any]) -> RenderableType:
    """Show how similar the classes are to each checkpoint, and how two checkpoints differ."""

    page = f"Heatmaps: {result['page']}" if result["page"] else "For heatmaps, add --out PAGE.html"
    return Group(*_table(correlation_table(result)), _lines(correlation_sentences(result)), _line(page))


def tune(result: Mapping[str, Any]) -> RenderableType:
    """Show the trials, the best first, and the command that uses the best."""

    table = tune_table(records.convert(result, TuneRecord))
    return Group(*_table(table), _lines(["To train the student:"]), _line(result["command"]))


def converted(result: Mapping[str, Any]) -> RenderableType:
    """Show what was converted, and what was left out or read as data."""
    checkpoints = result["checkpoints"].values()
    lines = [f"{result['folder']}: {pluralize(len(checkpoints), 'checkpoint')} as safetensors"]
    lines += [f"Left out: {reason}" for reason in result["left_out"]]
    stood_in = dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint["stood_in"])
    if stood_in:
        lines.append(f"Read as data, not imported: {', '.join(stood_in)}")
    return _lines(lines)


def exported(result: Mapping[str, Any]) -> RenderableType:
    """Show which files were written, and how to load them."""
    lines = [f"{result['folder']}: {', '.join(result['files'])}"]
    if result["onnx_difference"] is not None:
        lines.append(f"Largest difference between ONNX and PyTorch logits: {result['onnx_difference']:.1e}")
    source = "/".join(result["hub"].split("/")[-2:]) if result["hub"] else result["folder"]
    return Group(_lines(lines), _line(f"To load it: checkpointkd.load({source!r})"))


def report(path: Path) -> RenderableType:
    """Show where the report is."""
    return _line(f"Report: {path}")


def cache(result: Mapping[str, Any]) -> RenderableType:
    """Show the entries of the cache, or what was deleted from it."""

    total = f"{pluralize(len(result['entries']), 'item')}, {format_bytes(result['bytes'])}"
    if result["action"] == "clear":
        return Group(*_table(cache_table(result)), _lines([f"Freed {total}"]))
    note = "`cache clear all` frees what commands can make again. --json lists each item"
    return Group(*_table(cache_table(result)), _lines([f"{result['home']}: {total}. {note}"]))


def experiments(result: Mapping[str, Any]) -> RenderableType:
    """Show the tables and claims of an experiment, or how far each of several is."""

    results = list(result["experiments"].values())
    if len(results) > 1:
        notes = dict.fromkeys(note for each in results for note in each["notes"] if not note.startswith("Not finished"))
        return Group(*_table(experiments_table(results)), _lines([*notes]), report(result["report"]))
    parts: list[RenderableType] = []
    for each in results:
        parts.append(Text(printable(each["title"]), style="bold"))
        for stored in each["tables"]:
            parts += [Text(), *_table(Table(**stored))]
        claims = [claim_from(stored) for stored in each["claims"]]
        if claims:
            numbered = [f"[{number}] {caveat}" for number, caveat in enumerate(caveats(claims), 1)]
            parts += [Text(), *_table(claims_table(claims)), _lines([*numbered, CLAIMS_NOTE])]
        parts.append(_lines(each["notes"]))
    return Group(*parts, report(result["report"]))


def demo(result: Mapping[str, Any]) -> RenderableType:
    """Show the students of the demo, what they mean, and where the report is."""

    table = _table(students_table(result["students"]))
    return Group(_lines([result["headline"]]), *table, _lines(result["notes"]), report(result["report"]))


def _cost(runs: int, epochs: int, seconds: float | None) -> str:
    cost = f"{pluralize(epochs, 'epoch')} of {pluralize(runs, 'run')}"
    return cost if seconds is None else f"{cost}, {seconds:,.0f} s"


def _percent(measured: Measured) -> str:
    return f"{100 * measured.accuracy:.1f} ± {100 * measured.accuracy_se:.1f}%"


def _lines(lines: Sequence[str]) -> Text:
    """Return lines of text that wrap at the width of the terminal."""
    return Text("\n".join(map(printable, lines)), end="\n" if lines else "")


def _line(text: str) -> Text:
    """Return a command or a path, which stays on one line so that it can be copied."""
    return Text(printable(text), no_wrap=True, overflow="ignore")


def _table(table: Table) -> list[RenderableType]:
    """Return a table with its title above and its note below."""
    title = [_lines([table.title])] if table.title else []
    return [*title, _Columns(table), *([_lines([table.note])] if table.note else [])]


class _Columns:
    """The cells of a table, in columns that fit the width of the console. Marked rows end their first cell in ←."""

    def __init__(self, table: Table) -> None:
        self._header = [printable(name) for name in table.columns]
        self._is_text = table.text_columns()
        self._rows = [
            [printable(cell) + CHOSEN * (number in table.marked and column == 0) for column, cell in enumerate(row)]
            for number, row in enumerate(table.rows)
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> list[RenderableType]:
        widths, gap = self._widths(options.max_width)
        shown = RichTable(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
        names = [_wrapped(name, width) for name, width in zip(self._header, widths, strict=True)]
        height = max(len(lines) for lines in names)
        for lines, width, is_text in zip(names, widths, self._is_text, strict=True):
            name = Text("\n".join([""] * (height - len(lines)) + lines))
            shown.add_column(name, justify="left" if is_text else "right", width=width, overflow="fold")
        for row in self._rows:
            shown.add_row(*(Text("\n".join(_wrapped(cell, width))) for cell, width in zip(row, widths, strict=True)))
        return [shown]

    def _widths(self, available: int) -> tuple[list[int], int]:
        """Return the width of each column and of the gap between two.

        Each column begins with its longest unbreakable part. If these do not fit, the gap shrinks, then parts of texts
        are broken, then numbers. Otherwise, the column whose longest cell would take the most lines is widened until
        the table fills the width, or all cells fit on one line.
        """
        columns = list(zip(self._header, *self._rows, strict=True))
        full = [max(map(cell_len, cells)) for cells in columns]
        widths = [max(cell_len(part) for cell in cells for part in _parts(cell)) for cells in columns]
        gap = GAP if sum(widths) + GAP * (len(columns) - 1) <= available else 1
        available -= gap * (len(columns) - 1)
        while sum(widths) > available and max(widths) > 1:
            broken = max(range(len(widths)), key=lambda n: (self._is_text[n] and widths[n] > MIN_TEXT, widths[n]))
            widths[broken] -= 1
        while sum(widths) < min(available, sum(full)):
            lines = [wanted / width if width < wanted else 0.0 for wanted, width in zip(full, widths, strict=True)]
            widths[lines.index(max(lines))] += 1
        return widths, gap


def _parts(cell: str) -> list[str]:
    """Return the parts of a cell between which it may be broken; "1.0 ± 0.1" and "< 0.001" are one part each."""
    return (
        cell.replace(" ± ", f"{NBSP}±{NBSP}")
        .replace("< ", f"<{NBSP}")
        .replace(CHOSEN, f"{NBSP}{CHOSEN.strip()}")
        .split(" ")
    )


def _wrapped(cell: str, width: int) -> list[str]:
    """Return the lines of a cell in a column."""
    lines = textwrap.wrap(" ".join(_parts(cell)), width, break_on_hyphens=False)
    return [line.replace(NBSP, " ") for line in lines]
