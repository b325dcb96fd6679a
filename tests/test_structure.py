"""The layers of the package: imports point upward in this list only. It is the list of docs/design.md."""

from __future__ import annotations

import ast
from pathlib import Path

import checkpointkd

LAYERS = [
    "errors",
    "config",
    "records",
    "recipes",
    "seeding",
    "storage",
    "data",
    "models",
    "losses",
    "checkpoints",
    "metrics",
    "device",
    "exporting",
    "teachers",
    "training",
    "information",
    "analysis",
    "selection",
    "reports",
    "commands",
    "experiments",
    "progress",
    "console",
    "cli",
]
ROOT = Path(checkpointkd.__file__).parent


def _imported(path: Path) -> set[str]:
    """The layers that a file imports, wherever in it."""
    depth = len(path.relative_to(ROOT).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {name.partition(".")[0] for name in names}
    return found


def test_imports_point_upward_only():
    checked = 0
    for path in sorted(ROOT.rglob("*.py")):
        layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if layer == "__init__":
            continue
        for imported in _imported(path):
            if imported != layer:
                assert LAYERS.index(imported) < LAYERS.index(layer), f"{path.relative_to(ROOT)} imports {imported}"
                checked += 1
    assert checked > 50


def test_every_module_has_its_place_in_the_list_and_in_the_docs():
    there = {path.name.removesuffix(".py") for path in ROOT.iterdir() if not path.name.startswith("_")}
    assert there == set(LAYERS)
    page = (ROOT.parents[1] / "docs" / "design.md").read_text(encoding="utf-8")
    assert [layer for layer in LAYERS if f"`{layer}" not in page] == []
