"""`ckd.results`: every run as a row of a DataFrame."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import checkpointkd as ckd
from checkpointkd.errors import UserError


def test_each_run_is_a_row(teacher_run: Path, caplog: pytest.LogCaptureFixture):
    """`teacher_run` is copied into a folder of the test."""
    folder, short = teacher_run.parent, {"epochs": 1, "precision": "fp32", "seed": 3}
    student = ckd.distill(
        "wrn_10_1", teachers=[f"{teacher_run}@2", f"{teacher_run}@4"], out=folder / "a" / "s", method="dist", **short
    )
    (folder / "damaged").mkdir()
    (folder / "damaged" / "run.json").write_text("{")
    frame = ckd.results(folder)
    assert sorted(frame["run"]) == ["a/s", teacher_run.name]
    row = frame.set_index("run").loc["a/s"]
    assert (row["kind"], row["model"], row["seed"], row["method"]) == ("distill", "wrn_10_1", 3, "dist")
    assert row["test_accuracy"] == student.test_accuracy
    assert row["teachers"] == f"{teacher_run}@2 {teacher_run}@4"
    teacher = frame.set_index("run").loc[teacher_run.name]
    assert teacher["kind"] == "train"
    assert teacher["method"] == "none"
    assert "damaged" in caplog.text
    assert frame.groupby("model")["test_accuracy"].count().to_dict() == {"wrn_10_1": 2}


def test_no_run_and_no_pandas_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="nowhere"):
        ckd.results(tmp_path / "nowhere")
    with pytest.raises(UserError, match="No run in"):
        ckd.results(tmp_path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        ckd.results(tmp_path)
