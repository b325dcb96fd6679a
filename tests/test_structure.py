"""The layers of the package. A module imports only from those before it in this list, which docs/design.md explains."""

from __future__ import annotations

import ast
from pathlib import Path

import checkpointkd

LAYERS = [
    "errors",
    "config",
    "distill_config",
    "records",
    "recipes",
    "seeding",
    "storage",
    "ranks",
    "trackers",
    "user_code",
    "user_data",
    "data",
    "models",
    "losses",
    "checkpoints",
    "metrics",
    "device",
    "executors",
    "exporting",
    "teachers",
    "training",
    "information",
    "analysis",
    "selection",
    "testing",
    "reports",
    "commands",
    "experiments",
    "progress",
    "console",
    "cli",
    "__main__",
]
ROOT = Path(checkpointkd.__file__).parent


def _imported(path: Path) -> set[str]:
    """Return the layers that a file imports from, at its top or inside its functions."""
    depth = len(path.relative_to(ROOT).parts)
    layers = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            layers |= {name.partition(".")[0] for name in names}
    return layers


def test_every_module_imports_from_earlier_layers_only():
    checked = 0
    for path in sorted(ROOT.rglob("*.py")):
        layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if layer == "__init__":
            continue
        for imported in _imported(path) - {layer}:
            assert LAYERS.index(imported) < LAYERS.index(layer), f"{path.relative_to(ROOT)} imports {imported}"
            checked += 1
    assert checked > 50


def test_every_module_is_in_the_list_and_in_the_docs():
    modules = {path.name.removesuffix(".py") for path in ROOT.iterdir()} - {"__init__", "__pycache__"}
    assert modules == set(LAYERS)
    page = (ROOT.parents[1] / "docs" / "design.md").read_text(encoding="utf-8")
    assert [layer for layer in LAYERS if f"`{layer}" not in page] == []
