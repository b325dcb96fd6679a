"""The demo at a tenth of its size: what it leaves, and that running it again reuses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from checkpointkd.config import DataConfig
from checkpointkd.data import load_data
from checkpointkd.errors import UserError
from checkpointkd.experiments.demo import VARIANTS, Sizes, demo

TINY = Sizes(train_images=100, teacher_epochs=10, save_every=2, student_epochs=2, decoder_steps=4, seeds=2)


def test_the_demo_leaves_everything_and_reuses_it(tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    result = demo(out=tmp_path / "demo", on_progress=lambda *step: told.append(step), _sizes=TINY)
    labels = [row["label"] for row in result["students"]]
    assert labels[0] == "no teacher"
    assert any("last" in label for label in labels)
    assert any("midpoint" in label for label in labels)
    assert any("chosen by Algorithm 1" in label for label in labels)
    assert any(" and " in label for label in labels)
    assert all(row["n"] == 2 for row in result["students"])
    assert result["chosen_epoch"] in (2, 4, 6, 8, 10)
    mean_of = {row["label"]: f"{row['mean']:.1f}%" for row in result["students"]}
    chosen = next(row for row in result["students"] if row["chosen"])
    assert (
        f"epoch {result['chosen_epoch']} of 10. Test accuracy of its students: {mean_of[chosen['label']]}; of"
        in (result["headline"])
    )
    last = next(row for row in result["students"] if "last" in row["label"] and " and " not in row["label"])
    assert f"of the last checkpoint's: {mean_of[last['label']]}; without" in result["headline"]
    assert f"without a teacher: {mean_of['no teacher']}. In this demo 40% of the training labels" in result["headline"]
    right = load_data(DataConfig(data="digits", select_on="test")).train.labels_N.numpy()
    wrong = np.load(tmp_path / "demo" / "labels.npy") != right
    assert 0.35 < wrong.mean() < 0.45
    assert len(list((tmp_path / "demo" / "students").iterdir())) == 2 * len(labels)
    assert len(VARIANTS) - 1 <= len(labels) <= len(VARIANTS), "the choice may be one of the others"
    assert "<svg " in Path(result["report"]).read_text(encoding="utf-8"), "the page carries its figures"

    overall = [done / total for task, done, total in told if task == "the whole demo"]
    assert overall == sorted(overall)
    assert overall[-1] > 0.8

    left = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    again = demo(out=tmp_path / "demo", _sizes=TINY)
    assert again["students"] == result["students"]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == left


def test_a_file_of_the_user_is_not_overwritten(tmp_path: Path):
    (tmp_path / "labels.npy").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"labels\.npy already holds other labels\. Choose another --out"):
        demo(out=tmp_path, _sizes=TINY)
    assert (tmp_path / "labels.npy").read_bytes() == b"mine"
