"""Fixtures for all tests: one thread, real digits, small runs. Warnings are errors (pyproject.toml)."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import checkpointkd as ckd

# torchvision's wheel is built for PyTorch with CUDA. With the CPU build it imports only if these schemas are defined.
_torchvision = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _torchvision.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

torch.set_num_threads(1)  # faster and steadier than two threads for networks this small
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # Tests that a shell starts in the background ignore Ctrl-C, and the processes of the tests would inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = {"data": "digits", "train_images": 100, "epochs": 4, "save_every": 1, "batch_size": 10, "precision": "fp32"}


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session that all test processes share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> Iterator[None]:
    """Use another cache directory than the user's. Test processes share the decoded images."""
    home, decoded = tmp_path_factory.mktemp("home"), shared_folder / "decoded"
    decoded.mkdir(exist_ok=True)
    (home / "decoded").symlink_to(decoded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHECKPOINTKD_HOME", str(home))
        yield


def _real_data(name: str) -> Path:
    """Return a folder of CHECKPOINTKD_TEST_DATA, which holds the real data sets; skip the test without it."""
    root = os.environ.get("CHECKPOINTKD_TEST_DATA")
    if not root:
        pytest.skip("CHECKPOINTKD_TEST_DATA is not set: it names a folder with cifar100/, tiny-imagenet/, cifar100n/")
    path = Path(root) / name
    if not path.exists():
        pytest.skip(f"CHECKPOINTKD_TEST_DATA has no {name}/")
    return path


@pytest.fixture(scope="session")
def cifar100() -> Path:
    """The folder of the real CIFAR-100."""
    return _real_data("cifar100")


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "teacher"
    ckd.train("wrn_10_1", out=path, learning_rate=0.03, **SMALL)
    return path


@pytest.fixture
def teacher_run(_trained: Path, tmp_path: Path) -> Path:
    """A finished run of four epochs on 100 digits, which the test may change.

    Its checkpoints have validation accuracies of 24, 33, 45 and 56%.
    """
    path = tmp_path / "teacher"
    shutil.copytree(_trained, path)
    return path
