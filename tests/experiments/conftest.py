"""All experiments with the preset `smoke`, run once for all tests that read them, however many processes test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import filelock
import pytest

import checkpointkd as ckd
from checkpointkd.experiments.presets import Preset, get_preset
from checkpointkd.records.experiments import NetworkSpeed


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that read the experiments of `smoke` as slow: these experiments take minutes."""
    for item in items:
        if "smoke" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def smoke(shared_folder: Path) -> Path:
    """The folder of the experiments; tests may only read it."""
    shared = shared_folder / "experiments-smoke"
    with filelock.FileLock(f"{shared}.lock"):
        if not (shared / "table3" / "experiment.json").exists():
            for name in ("selection", "teachers", "lr-schedule", "all"):
                ckd.reproduce(name, preset="smoke", seeds=1 if name in ("selection", "teachers") else None, out=shared)
    return shared


def copied(smoke: Path, out: Path, *experiments: str) -> Path:
    """Copy runs and measurements, and the results of these experiments only, whose report is quickly written."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        is_result = lambda name: (Path(folder) / name / "experiment.json").exists()  # noqa: E731
        return [name for name in names if is_result(name) and name not in experiments]

    return Path(shutil.copytree(smoke, out, ignore=left_out))


def started(smoke: Path, out: Path) -> Path:
    """Copy what was measured of the machine and the teachers of seed 0. Everything else is left to do."""
    out.mkdir(exist_ok=True)
    for name in ("experiments.json", "machine.json"):
        shutil.copy(smoke / name, out)
    for run in smoke.glob("runs/*-teacher-seed0-*"):
        shutil.copytree(run, out / "runs" / run.name)
    return out


def read_rows(folder: Path, experiment: str, **wanted: Any) -> list[dict[str, Any]]:
    """Read the rows of an experiment that have these values."""
    lines = (folder / experiment / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def read_experiment(folder: Path, experiment: str) -> dict[str, Any]:
    """Read the results of an experiment."""
    return json.loads((folder / experiment / "experiment.json").read_text(encoding="utf-8"))


def speeds_of(preset: Preset) -> dict[str, NetworkSpeed]:
    """Return round speeds for the networks of a preset."""
    models = [model for pair in preset.pairs for model in (pair.teacher, pair.student)]
    return {model: NetworkSpeed(precision="fp32", seconds_per_step=0.1, megabytes=1.0) for model in models}


def smoke_preset() -> Preset:
    """Return the preset `smoke`."""
    return get_preset("smoke", None)
