"""The folders of other trainers, written once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from checkpointkd.data import Data, DataConfig, load_data

from .writers import WRITERS, Written, copied, quiet


@pytest.fixture(scope="session")
def digits() -> Data:
    return load_data(DataConfig(data="digits", train_images=150))


@pytest.fixture(scope="session")
def all_written(tmp_path_factory: pytest.TempPathFactory, digits: Data) -> dict[str, Written]:
    torch.manual_seed(0)
    with quiet():
        return {name: write(tmp_path_factory.mktemp("external"), digits) for name, write in WRITERS.items()}


@pytest.fixture
def written(all_written: dict[str, Written], tmp_path: Path, request: pytest.FixtureRequest) -> Written:
    """A copy of one writer's folder."""
    return copied(all_written[request.param], tmp_path)
