"""Check the order of a page of results: a summary of at most ten rows, figures, then all rows."""

from __future__ import annotations

import re
from pathlib import Path


def tables(text: str) -> list[list[str]]:
    """Return the lines of each Markdown table."""
    return [table.splitlines() for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)]


def check_results_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.split("\n\n")[1].startswith("|"), "a table right after the title"
    assert 1 <= len(tables(text)[0]) - 2 <= 10, "at most ten rows"
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    expected = ["Setting", "Figures", "All rows", "How to read the claims", "Where this comes from"]
    assert headings == [heading for heading in expected if heading != "Figures" or "![" in text]
    assert "![" not in text.partition("## All rows")[2]
    linked = re.findall(r"\]\(([\w.-]+\.(?:svg|jsonl(?:\.gz)?))\)", text)
    assert linked
    assert all((page.parent / name).exists() for name in linked)
