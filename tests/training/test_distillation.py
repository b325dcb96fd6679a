"""One distillation: a complete one is recognized before its teachers are loaded, and networks are built once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import checkpointkd as ckd
from checkpointkd.checkpoints import trajectory
from checkpointkd.errors import UserError
from checkpointkd.training import distillation
from checkpointkd.training import run as run_module


@pytest.fixture
def options(teacher_run: Path, tmp_path: Path) -> dict[str, Any]:
    refs = [f"{teacher_run}@2", f"{teacher_run}@4"]
    return {"teachers": refs, "epochs": 1, "batch_size": 25, "precision": "fp32", "out": tmp_path / "student"}


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """The networks that are built from now on: `student` for the run's own, `teacher` for a checkpoint's."""
    names: list[str] = []
    for module, name, function in (
        (run_module, "student", "build_network"),
        (trajectory, "teacher", "build_from_run"),
    ):
        original = getattr(module, function)

        def build(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            names.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, function, build)
    return names


def test_a_complete_distillation_returns_without_its_teachers_weights(
    options: dict[str, Any], teacher_run: Path, tmp_path: Path, built: list[str], monkeypatch
):
    student = ckd.distill("wrn_10_1", **options)
    built.clear()
    for path in (teacher_run / "checkpoints").iterdir():  # the headers stay: they hold the hashes
        content = path.read_bytes()
        path.write_bytes(content[:-1000] + bytes(1000))
    with pytest.raises(UserError, match="is damaged"):
        ckd.distill("wrn_10_1", **{**options, "out": tmp_path / "new"})
    built.clear()
    monkeypatch.setattr(distillation, "Teacher", lambda *_, **__: pytest.fail("a teacher was loaded"))
    monkeypatch.setattr(run_module, "fit", lambda *_, **__: pytest.fail("the student was trained again"))
    again = ckd.distill("wrn_10_1", **options)
    assert again.last.sha256 == student.last.sha256
    assert built == []


def test_each_network_is_built_once(options: dict[str, Any], built: list[str]):
    ckd.distill("wrn_10_1", **options)
    assert sorted(built) == ["student", "teacher", "teacher"]


def test_training_builds_the_network_once(tmp_path: Path, built: list[str]):
    ckd.train("wrn_10_1", data="digits", train_images=60, epochs=1, precision="fp32", out=tmp_path / "run")
    assert built == ["student"]
