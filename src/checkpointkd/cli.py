"""The command line: every command with the same options as in Python, plus --json.

Results go to standard output, as tables or as one JSON object; messages and progress go to standard error.
Exit codes: 0 done, 1 a bug of ours, 2 a user error, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from .commands.options import Model
from .errors import READER_KILLED, UserError, discard, first_line, print_message, printable
from .trackers import Tracking
from .user_data import Data as UserData

if TYPE_CHECKING:
    from .progress import Bars

log = logging.getLogger("checkpointkd")

# In the order of `--help`. A command is imported when it is needed: its module, and what shows its result.
COMMANDS = {
    "demo": ("experiments.demo", "demo"),
    "train": ("commands.train", "trajectory"),
    "inspect": ("commands.inspect", "inspection"),
    "score": ("commands.score", "plane"),
    "select": ("commands.select", "choice"),
    "distill": ("commands.distill", "trajectory"),
    "tune": ("commands.tune", "tune"),
    "evaluate": ("commands.evaluate", "evaluation"),
    "correlate": ("commands.correlate", "correlation"),
    "convert": ("commands.convert", "converted"),
    "export": ("commands.export", "exported"),
    "reproduce": ("experiments.reproduce", "experiments"),
    "report": ("commands.report", "report"),
    "cache": ("commands.cache", "cache"),
}
SEVERAL_PROCESSES = ("train", "distill", "score")  # commands that torchrun may start
WITHOUT_TORCH = ("cache",)

OUT_OF_MEMORY = "[Oo]ut of memory|[Cc](an.t|annot) allocate memory|could not create a (primitive|memory)"

COMMON = "Common options"  # the last heading of each `--help`
JSON = Annotated[bool, cyclopts.Parameter(help="Print one JSON object to standard output.")]
JSON_OPTION = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JSON)

# Return types whose names only torch could resolve.
UNRESOLVED: dict[str, Any] = dict.fromkeys(("Trajectory", "Plane", "Choice", "PilotResult"), object)


def build_app(names: Sequence[str] = tuple(COMMANDS)) -> cyclopts.App:
    """Return the command line with these commands."""
    app = cyclopts.App(
        name="checkpointkd",
        help="Choose and use training checkpoints as knowledge-distillation teachers.",
        version=_version,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for position, name in enumerate(names):
        module, renderer = COMMANDS[name]
        function = getattr(import_module(f".{module}", __package__), name)
        description, example = _help(function)
        app.command(
            _command(function, renderer),
            name=name,
            help=description,
            help_epilogue=example,
            sort_key=position,
        )
    return app


def _help(function: Callable[..., Any]) -> tuple[str, str]:
    """Return what a command does, and its examples, from its docstring."""
    text = re.split(r"^(?:Args:|Parameters$|Raises)", inspect.cleandoc(function.__doc__ or ""), flags=re.M)[0]
    description, _, examples = text.partition("Example:\n")
    return description, "\n".join(["Example:\n", *(line for line in examples.splitlines() if line.strip())])


def _version() -> str:
    from importlib import metadata

    return metadata.version("checkpointkd")


def _command(function: Callable[..., Any], renderer: str) -> Callable[..., None]:
    """Wrap a command for the command line: its options and --json; progress bars take the place of `on_progress`."""
    signature = inspect.signature(function, eval_str=True, locals=UNRESOLVED)
    headings = {option.parameter.name: option.heading for option in getattr(function, "options", ())}
    headings |= {"device": COMMON, "json": COMMON}
    order = [None, *dict.fromkeys(heading for heading in headings.values() if heading not in (None, COMMON)), COMMON]

    def command(*arguments: Any, json: bool = False, **options: Any) -> None:
        with _loading_torch(needed=function.__name__ not in WITHOUT_TORCH):
            from . import console
            from .progress import Bars
        secondary = _check_processes(function.__name__)
        with Bars() as bars:
            log.handlers = [logging.NullHandler() if secondary else _BarsHandler(bars)]
            if "on_progress" in signature.parameters and not secondary:
                options["on_progress"] = bars
            result = function(*arguments, **options)
        if secondary:
            return
        console.show_json(result) if json else console.show(getattr(console, renderer)(result))

    shown = [p for p in signature.parameters.values() if p.name != "on_progress" and not p.name.startswith("_")]
    parameters = [
        _for_command_line(parameter, heading := headings.get(parameter.name), order.index(heading))
        for parameter in [*shown, JSON_OPTION]
    ]
    command.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = function.__doc__
    return command


def _check_processes(command: str) -> bool:
    """Return whether this process is one of several, but not the main one, which alone prints.

    Raises:
        UserError: If there are several processes and the command does not train one network.
    """
    if "RANK" not in os.environ:
        return False
    from .ranks import is_secondary, refuse_several_processes

    if command not in SEVERAL_PROCESSES:
        refuse_several_processes(command)
    return is_secondary()


def _for_command_line(parameter: inspect.Parameter, heading: str | None, position: int) -> inspect.Parameter:
    """Annotate a parameter with how its value is read, and with its heading in `--help` and that heading's position.

    Paths become Path. Lists take several values after one option. Only switches that are on by default have a `--no-`
    form.
    """
    annotation = parameter.annotation
    if annotation == list[str] | Tracking | None:
        annotation = list[str] | None
    how: dict[str, Any] = {} if heading is None else {"group": cyclopts.Group(heading, sort_key=position)}
    if annotation in (int, int | None):
        how["converter"] = _whole_number
    elif annotation in (bool, JSON) and parameter.default is False:
        how |= {"negative": (), "show_default": False}
    elif annotation in (list[str], list[str] | None, list[float] | None, list[Path | str] | None):
        how |= {"consume_multiple": True, "negative": ()}
    elif annotation == Path | str:
        annotation = Path
    elif annotation == Path | str | None:
        annotation = Path | None
    elif annotation in (str | float, str | UserData, Model):
        annotation = str
    elif annotation in (str | UserData | None, Model | None):
        annotation = str | None
    return parameter.replace(annotation=Annotated[annotation, cyclopts.Parameter(**how)] if how else annotation)


def _whole_number(_: type, tokens: Sequence[cyclopts.Token]) -> int:
    """Convert to int. Without this check cyclopts would take 2.5 for 2."""
    if not re.fullmatch("-?[0-9]+", tokens[0].value):
        raise ValueError(f'"{tokens[0].value}" is not a whole number')
    return int(tokens[0].value)


@contextlib.contextmanager
def _loading_torch(*, needed: bool) -> Iterator[None]:
    """Say on standard error that PyTorch is loading, which takes seconds. On a terminal the line goes away again."""
    message = "checkpointkd: loading PyTorch ..."
    shown = needed and "torch" not in sys.modules
    erase = shown and sys.stderr.isatty()
    if shown:
        print_message(message, end="" if erase else "\n")
    try:
        if needed:
            import torch  # noqa: F401
        yield
    finally:
        if erase:
            print_message("\r" + " " * len(message) + "\r", end="")


class _BarsHandler(logging.Handler):
    """Prints log messages above the progress bars."""

    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self._bars = bars

    def emit(self, record: logging.LogRecord) -> None:
        self._bars.say(("warning: " if record.levelno >= logging.WARNING else "") + printable(record.getMessage()))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: the next file that is opened would take its place
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the terminal does not have are replaced
            stream.reconfigure(errors="replace")
    try:
        if sys.path[0] in ("", os.getcwd()):  # `python -m` puts the current folder before the installed packages
            del sys.path[0]
    except FileNotFoundError:  # without a current folder, PyTorch's libraries end the process
        return _fail("The current folder was deleted. Go to another folder, and run the command again")
    log.setLevel(logging.INFO)
    log.propagate = False
    words = sys.argv[1:] if arguments is None else arguments
    for before, word in zip(["", *words], words, strict=False):  # an empty path would be the current folder
        if word == "" or re.fullmatch("--[a-z-]+=", word):
            name = word or before or "The first argument"
            return _fail(f"{name} has an empty value. Is a variable in your command not set?")
    names = [words[0]] if words and words[0] in COMMANDS else list(COMMANDS)
    try:
        build_app(names)(words, exit_on_error=False, print_error=False)
    except UserError as error:
        return _fail_once(error)
    except cyclopts.CycloptsError as error:
        return _fail(_usage_error(error))
    except KeyboardInterrupt as error:
        print_message("\nStopped. Everything that is saved is kept; run the same command again to continue.")
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    except BrokenPipeError:  # the reader of standard output has ended, as in `| head`
        discard(sys.stdout)
    except OSError as error:
        if error.strerror is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    except (MemoryError, RuntimeError) as error:
        if "DataLoader worker" in str(error):  # PyTorch's signal handler raises wherever the main thread is
            return _fail(READER_KILLED)
        if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        return _fail(
            f"There is not enough memory ({first_line(error)}). Use smaller batches, fewer images or a smaller network."
        )
    return 0


def _usage_error(error: cyclopts.CycloptsError) -> str:
    """Return what is wrong with the arguments, and where the help is."""
    argument = error.argument if isinstance(error, cyclopts.MissingArgumentError) else None
    command = " ".join(["checkpointkd", *(error.command_chain or ())])
    if argument is not None and not argument.tokens and not error.unused_tokens:
        return f"`{command}` needs {argument.name}. `{command} --help` explains it"
    problem = " ".join(str(error).split()).rstrip(".")
    return (
        problem
        + ("" if problem.endswith("?") else ".")
        + f" `{command} --help` lists the {'options' if ' ' in command else 'commands'}"
    )


def _fail_once(error: UserError) -> int:
    """Print an error in one of the processes that train a network together."""
    from .ranks import reports

    return _fail(str(error)) if reports(error) else 2


def _fail(message: str) -> int:
    print_message(f"checkpointkd: {message}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
