"""All studies at the scale `smoke`, run once for all tests that look at them, however many processes test."""

from __future__ import annotations

import shutil
from pathlib import Path

import filelock
import pytest

import checkpointkd as ckd


@pytest.fixture(scope="session")
def smoke(together: Path) -> Path:
    """The folder of the studies; tests may read it only."""
    shared = together / "studies-at-smoke"
    with filelock.FileLock(f"{shared}.lock"):
        if not (shared / "table3" / "experiment.json").exists():
            for name in ("rules", "lr-schedule", "all"):
                ckd.reproduce(name, preset="smoke", out=shared)
    return shared


def copied(smoke: Path, out: Path, *studies: str) -> Path:
    """Its runs and measurements, and the results of these studies only, whose report is quickly written."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if (Path(folder) / name / "experiment.json").exists() and name not in studies]

    return Path(shutil.copytree(smoke, out, ignore=left_out))


def begun(smoke: Path, out: Path) -> Path:
    """What was measured of the machine, and the first seed's teachers: the rest is to be done."""
    out.mkdir(exist_ok=True)
    for name in ("experiments.json", "machine.json"):
        shutil.copy(smoke / name, out)
    for run in smoke.glob("runs/*-teacher-seed0-*"):
        shutil.copytree(run, out / "runs" / run.name)
    return out
