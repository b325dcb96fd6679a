"""Run directories with one replaced or edited file: each command succeeds, or ends with an error in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import checkpointkd as ckd

from .commands import complaints

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes and devices in folders")

ESCAPES = "\x1b[2J\x1b]0;title\x07\N{RIGHT-TO-LEFT OVERRIDE}\x9b31m\r"
FILES = (
    *("run.json", "metrics.jsonl", "plane.json", "selection.json", "result.json"),
    *("checkpoints/epoch-0002.safetensors", ".lock.holder", "state.bin"),
)
REPLACED: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "circle": lambda path: path.symlink_to(path.name),
    "link": lambda path: path.symlink_to(path.parents[1 + (path.parent.name == "checkpoints")] / "private"),
    "folder": Path.mkdir,
    "empty": Path.touch,
    "null": lambda path: path.write_text("null"),
    "deep": lambda path: path.write_text("[" * 1_000_000),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "sparse": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 6 << 30),
}
EDITED: dict[str, tuple[str, str, Any]] = {
    "model with escapes": ("run.json", "model", f"wrn{ESCAPES}"),
    "model with a lone surrogate": ("run.json", "model", "\ud800"),
    "model of code": ("run.json", "model", "planted:build"),
    "model of Python's own code": ("run.json", "model", "os:abort"),
    "model too large to build": ("run.json", "model", "wrn_9994_9999"),
    "too many epochs": ("run.json", "recipe.epochs", 10**400),
    "seed too large": ("run.json", "seed", 10**400),
    "standard deviation of 0": ("run.json", "std", [0.0]),
    "100,000 channels": ("run.json", "mean", [0.5] * 100_000),
    "classes with escapes": ("run.json", "classes", [f"{number}{ESCAPES}" for number in range(10)]),
    "data outside of the run": ("run.json", "data.source", "/etc"),
    "data with escapes": ("run.json", "data.name", ESCAPES),
    "accuracy that is text": ("result.json", "test", {"accuracy": "high"}),
    "no number of images": ("result.json", "test_images", None),
    "epoch with escapes": ("result.json", "epoch", ESCAPES),
    "reason with escapes": ("selection.json", "reason", ESCAPES),
    "rule with escapes": ("selection.json", "rule", ESCAPES),
    "selected epoch too large": ("selection.json", "epochs", [10**400]),
    "no selected epochs": ("selection.json", "epochs", []),
}
COMMANDS = {
    "inspect": lambda run: ["inspect", run],
    "json": lambda run: ["inspect", run, "--json"],
    "evaluate": lambda run: ["evaluate", f"{run}@last", f"{run}@best"],
    "report": lambda run: ["report", run, "--out", f"{run}.html"],
    "select": lambda run: ["select", run, "--estimator", "ridge"],
    "midpoint": lambda run: ["select", run, "--rule", "midpoint"],
    "train": lambda run: [
        *("train", "wrn_10_1", "--data", "digits", "--train-images", "60", "--epochs", "2", "--save-every", "1"),
        *("--precision", "fp32", "--out", run),
    ],
    "distill": lambda run: [
        *("distill", "resnet_8", "--teachers", f"{run}@last", "--allow-weak-teacher", "--epochs", "1"),
        *("--precision", "fp32", "--out", f"{run}-student"),
    ],
    "export": lambda run: ["export", f"{run}@last", "--out", f"{run}-exported"],
}
CASES = [*(f"{file} {how}" for file in FILES for how in REPLACED), *EDITED]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, scored and selected from."""
    run = tmp_path_factory.mktemp("faults") / "run"
    ckd.train("wrn_10_1", out=run, data="digits", train_images=60, epochs=2, save_every=1, precision="fp32")
    ckd.score(run, estimator="ridge")
    ckd.select(run, estimator="ridge")
    return run


def _change(run: Path, case: str) -> None:
    """Replace or edit one file of a run."""
    if case in EDITED:
        name, key, value = EDITED[case]
        content = json.loads((run / name).read_text())
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        assert last in place
        place[last] = value
        (run / name).write_text(json.dumps(content))
    else:
        name, _, how = case.rpartition(" ")
        (run / name).unlink(missing_ok=True)
        REPLACED[how](run / name)


def _check(case: str, commands: list[str], finished: Path, place: Path) -> None:
    found = []
    for command in commands:
        folder = place / command
        run = Path(shutil.copytree(finished, folder / "run", ignore=shutil.ignore_patterns(".lock*")))
        (folder / "private").write_text("private")
        (folder / "here").mkdir()
        planted = "from pathlib import Path\nPath('imported').touch()\ndef build(**_): raise ValueError\n"
        (folder / "here" / "planted.py").write_text(planted)
        _change(run, case)
        found += [f"{command}: {complaint}" for complaint in complaints(COMMANDS[command](str(run)), folder)]
        if (folder / "private").read_text() != "private":
            found.append(f"{command}: a file outside of the run was overwritten")
        if (folder / "here" / "imported").exists():
            found.append(f"{command}: code in the current folder was run")
    assert not found, "\n".join(found)


FAST = 3  # each third case is a fast test


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, id=case, marks=[] if n % FAST == 0 else pytest.mark.slow) for n, case in enumerate(CASES)],
)
def test_a_damaged_run_ends_in_one_sentence(number: int, finished: Path, tmp_path: Path):
    """Run each case with one command, in turn. `make test-faults` runs each case with every command."""
    names = list(COMMANDS)
    _check(CASES[number], [names[number % len(names)]], finished, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("case", CASES)
def test_a_damaged_run_ends_in_one_sentence_with_every_command(case: str, finished: Path, tmp_path: Path):
    _check(case, list(COMMANDS), finished, tmp_path)
