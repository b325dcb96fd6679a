"""Settings of the documentation site. `make docs` builds it; warnings are errors.

This file writes the reference of the command line from the texts that `--help` shows.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

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


def setup(app: Any) -> None:
    app.connect("builder-inited", lambda app: _write_command_line(Path(app.srcdir)))
    app.connect("source-read", _link_outside)
    app.connect("autodoc-process-docstring", _literal_examples, priority=400)  # before napoleon


def _write_command_line(folder: Path) -> None:
    """Write reference/command-line.md, one section per command."""
    from checkpointkd.cli import COMMANDS

    lines = ["# Command line", "", "Every command is also a Python function with the same options.", ""]
    for name, (module, _) in COMMANDS.items():
        lines += _command(name, getattr(import_module(f"checkpointkd.{module}"), name))
    (folder / "reference").mkdir(exist_ok=True)
    (folder / "reference" / "command-line.md").write_text("\n".join(lines), encoding="utf-8")


def _command(name: str, function: Any) -> list[str]:
    """Return the section of one command: its description, its example, and a table of options for each heading."""
    doc = inspect.getdoc(function) or ""
    description, _, rest = doc.partition("\n\nExample:")
    example = [line.strip() for line in rest.partition("\n\nArgs:")[0].splitlines() if line.strip()]
    lines = [f"## {name}", "", *_escaped(description).splitlines(), ""]
    if example:
        lines += ["```console", *example, "```", ""]
    headings = {option.parameter.name: option.heading for option in getattr(function, "options", [])}
    signature = inspect.signature(function)
    shown: str | None = ""
    for argument, text in _arguments(doc).items():
        if argument == "on_progress":  # for Python only
            continue
        group = headings.get(argument)
        if group != shown:
            title = [] if group is None else [f"### {name}: {group[0].lower()}{group[1:]}", ""]
            lines += ["", *title, "| option | meaning | default |", "|---|---|---|"]
            shown = group
        is_option = signature.parameters[argument].kind is inspect.Parameter.KEYWORD_ONLY
        label = f"`--{argument.replace('_', '-')}`" if is_option else argument.upper()
        default = signature.parameters[argument].default
        shown_default = default if isinstance(default, str | float | int) and not isinstance(default, bool) else ""
        lines.append(f"| {label} | {_escaped(text)} | {_escaped(str(shown_default))} |")
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


def _literal_examples(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Show the code below `Example:` without changes."""
    lines[:] = ["Example::" if line == "Example:" else line for line in lines]
