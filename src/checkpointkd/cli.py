"""The command: the verbs, from the same signatures, with words for people and JSON for programs.

Exit codes: 0 done, 1 our bug, 2 the user's mistake (one sentence on standard error), 130 stopped by Ctrl-C, 143 by
SIGTERM.
"""

from __future__ import annotations

import inspect
import itertools
import json as json_module
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import cyclopts

from . import commands, console
from .errors import UserError, printable
from .experiments import demo, reproduce
from .progress import Bars

app = cyclopts.App(
    name="checkpointkd",
    help="Choose and use training checkpoints as knowledge-distillation teachers.",
    version=lambda: metadata.version("checkpointkd"),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)

Json = Annotated[
    bool, cyclopts.Parameter(help="Print one JSON object on standard output, and nothing else there.", negative=())
]


def _command(verb: Callable[..., Any], words: Callable[[Any], Any]) -> None:
    """Make a verb a command: its own options, plus --json; less `progress`, which becomes bars."""

    def command(*arguments: Any, json: bool = False, **options: Any) -> None:
        with Bars() as bars:
            logging.getLogger("checkpointkd").handlers = [_Handler(bars)]
            if "on_progress" in parameters:
                options["on_progress"] = bars
            result = verb(*arguments, **options)
        if json:
            print(json_module.dumps(console.plain(result), ensure_ascii=False, allow_nan=False))
        else:
            console.show(words(result))

    signature = inspect.signature(verb, eval_str=True, locals=_UNRESOLVED)
    parameters = signature.parameters
    kept = [_readable(p) for p in parameters.values() if p.name != "on_progress" and not p.name.startswith("_")]
    json_option = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
    command.__signature__ = signature.replace(parameters=[*kept, json_option], return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*kept, json_option]}
    command.__doc__ = verb.__doc__
    app.command(command, name=verb.__name__, sort_key=next(_order))


_order = itertools.count()

# Return types that would need torch to be named at run time.
_UNRESOLVED: dict[str, Any] = dict.fromkeys(("Trajectory", "Plane", "Choice", "PilotResult"), object)


def _readable(parameter: inspect.Parameter) -> inspect.Parameter:
    """The types that the command line reads: a path is a path, a list takes several values (--teachers A B), and only a
    switch that is on by default has a --no- of its own."""
    annotation = parameter.annotation
    if annotation in (int, int | None):
        return parameter.replace(annotation=Annotated[annotation, cyclopts.Parameter(converter=_whole)])
    if annotation is bool and parameter.default is False:
        return parameter.replace(annotation=Annotated[bool, cyclopts.Parameter(negative=())])
    if annotation in (list[str], list[str] | None, list[float] | None):
        return parameter.replace(
            annotation=Annotated[annotation, cyclopts.Parameter(consume_multiple=True, negative=())]
        )
    if annotation in (Path | str, Path | str | None):
        return parameter.replace(annotation=Path if annotation == Path | str else Path | None)
    return parameter


def _whole(_: type, tokens: Sequence[cyclopts.Token]) -> int:
    """A whole number; left alone, 2.5 would be taken for 2."""
    if not tokens[0].value.lstrip("-").isdecimal():
        raise ValueError(f'"{tokens[0].value}" is no whole number')
    return int(tokens[0].value)


class _Handler(logging.Handler):
    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self._bars = bars

    def emit(self, record: logging.LogRecord) -> None:
        self._bars.say(("warning: " if record.levelno >= logging.WARNING else "") + printable(record.getMessage()))


for _verb, _words in (
    (demo.demo, console.demo),
    (commands.train, console.trajectory),
    (commands.inspect, console.inspection),
    (commands.score, console.plane),
    (commands.select, console.choice),
    (commands.distill, console.trajectory),
    (commands.tune, console.tune),
    (commands.evaluate, console.evaluation),
    (commands.correlate, console.correlation),
    (commands.export, console.exported),
    (reproduce.reproduce, console.experiments),
    (commands.report, console.report),
):
    _command(_verb, _words)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    sys.path.insert(0, os.getcwd())  # for the user's own models, as `python -m` has it
    logging.getLogger("checkpointkd").setLevel(logging.INFO)
    logging.getLogger("checkpointkd").propagate = False
    words = sys.argv[1:] if arguments is None else arguments
    for before, word in zip(["", *words], words, strict=False):  # an empty path would be the folder that one is in
        if word == "" or re.fullmatch("--[a-z-]+=", word):
            return _complain(
                f"{word or before or 'the first argument'} has an empty value, as of a variable without one"
            )
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except UserError as error:
        return _complain(str(error))
    except cyclopts.CycloptsError as error:
        wanted = error.argument if isinstance(error, cyclopts.MissingArgumentError) else None
        if wanted is not None and not wanted.tokens and not error.unused_tokens:
            verb = "checkpointkd " + " ".join(error.command_chain or ())
            return _complain(f"`{verb}` needs {wanted.name}; `{verb} --help` says what it is")
        return _complain(
            " ".join(str(error).split())
            + " (`checkpointkd --help` lists the commands, `checkpointkd COMMAND --help` its options)"
        )
    except KeyboardInterrupt as error:
        print("\nstopped; what is saved is kept, and the same command again goes on from there", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    except PermissionError as error:  # wherever it was met
        return _complain(f"{error.filename}: {error.strerror}")
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _complain(sentence: str) -> int:
    print(f"checkpointkd: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
