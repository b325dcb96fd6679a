"""All studies at the scale `smoke`, run once for all tests that look at them, however many processes test."""

from __future__ import annotations

from pathlib import Path

import filelock
import pytest

import checkpointkd as ckd


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the studies; tests may read it only."""
    shared = tmp_path_factory.getbasetemp().parent / "studies-at-smoke"
    with filelock.FileLock(f"{shared}.lock"):
        if not (shared / "table3" / "study.json").exists():
            for name in ("selection", "schedule", "all"):
                ckd.study(name, scale="smoke", out=shared)
    return shared
