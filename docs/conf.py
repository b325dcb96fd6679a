"""Settings of the documentation site. `make docs` builds it; warnings are errors.

This file writes the reference of the command line from the texts that `--help` shows.
"""

from __future__ import annotations

import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

from checkpointkd.cli import COMMANDS, build_app

HERE = Path(__file__).parent
REPOSITORY = HERE.parent

project = "checkpointkd"
author = "The checkpointkd authors"
project_copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]
myst_heading_anchors = 4
suppress_warnings = ["myst.xref_missing"]  # `test_links_of_the_documentation_lead_somewhere` checks all links
smartquotes = False  # they would make a dash of the -- of options
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True

html_theme = "furo"
html_title = "checkpointkd"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # browsers do not let a page on disk read others


def setup(app: Any) -> None:
    app.connect("source-read", _write_command_line)
    app.connect("source-read", _link_outside)
    app.connect("autodoc-process-docstring", _python_examples, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _public_signature)


def _write_command_line(_app: Any, name: str, source: list[str]) -> None:
    """Write one section per command in place of the comment in reference/command-line.md."""
    if name == "reference/command-line":
        sections = "\n".join(line for command in COMMANDS for line in command_section(command))
        source[0] = re.sub(r"<!--.*?-->", lambda _: sections, source[0])


def command_section(name: str) -> list[str]:
    """Return the section of one command: its description, its examples, and a table of options for each heading."""
    module, _ = COMMANDS[name]
    doc = inspect.getdoc(getattr(import_module(f"checkpointkd.{module}"), name)) or ""
    description, _, rest = doc.partition("\n\nExample:")
    examples = [line.strip() for line in rest.partition("\n\nArgs:")[0].splitlines() if line.strip()]
    lines = [f"## {name}", "", *_escaped(description).splitlines(), "", "```console", *examples, "```", ""]
    texts = _arguments(doc)
    shown = None
    for argument in build_app([name])[name].assemble_argument_collection():
        group = argument.parameter.group[0].name
        if group != shown:
            title = [] if group in ("Arguments", "Parameters") else [f"### {name}: {group[0].lower()}{group[1:]}", ""]
            first = "argument" if group == "Arguments" else "option"
            lines += ["", *title, f"| {first} | meaning | default |", "|---|---|---|"]
            shown = group
        names = ", ".join(argument.names if group == "Arguments" else (f"`{option}`" for option in argument.names))
        text = argument.parameter.help or texts[argument.field_info.name]
        default = argument.field_info.default
        if isinstance(default, bool):
            default = "yes" if default else ""
        shown_default = default if isinstance(default, str | float | int) else ""
        lines.append(f"| {names} | {_escaped(text)} | {_escaped(str(shown_default))} |")
    return [*lines, ""]


def _arguments(doc: str) -> dict[str, str]:
    """Return the text of each argument in a docstring in Google style."""
    section = doc.partition("\nArgs:\n")[2].partition("\n\nRaises:")[0]
    entries = re.split(r"\n {4}(?=\w+: )", "\n" + section)
    named = (entry.partition(": ") for entry in entries[1:])
    return {argument: " ".join(text.split()) for argument, _, text in named}


def _escaped(text: str) -> str:
    return re.sub(r"([|<*_])", r"\\\1", text)


def _link_outside(app: Any, name: str, source: list[str]) -> None:
    """Replace each link to a file outside of docs/ by its text, because the site does not contain the file."""
    folder = (Path(app.srcdir) / name).parent

    def replaced(match: re.Match[str]) -> str:
        target = (folder / match[2].partition("#")[0]).resolve()
        inside = target.is_relative_to(HERE) and target.suffix in (".md", ".svg", ".png", "")
        return match[0] if match[2].startswith("http") or inside else match[1]

    source[0] = re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", replaced, source[0])


def _python_examples(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Show the code below `Example:` without changes, and commands as the calls that they make."""
    lines[:] = ["Example::" if line == "Example:" else _as_call(line) for line in lines]


def _as_call(line: str) -> str:
    """Return the Python call of an example's command; other lines stay as they are.

    The parser of the command line reads the command, so the call has the values that the function would get.
    """
    words = shlex.split(line) if line.lstrip().startswith("checkpointkd ") else []
    if not words:
        return line
    _, given, *_ = build_app([words[1]]).parse_args(words[1:], exit_on_error=False, print_error=False)
    values = [*map(_literal, given.args), *(f"{name}={_literal(value)}" for name, value in given.kwargs.items())]
    return f"{line[: -len(line.lstrip())]}ckd.{words[1]}({', '.join(values)})"


def _literal(value: Any) -> str:
    text = repr(str(value) if isinstance(value, Path) else value)
    return text.replace("'", '"')


def _public_signature(
    _app: Any, _what: str, _name: str, _object: Any, _options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Leave out private parameters, which begin with an underscore."""
    return signature and re.sub(r", _\w+=[^,)]*", "", signature), returned
