"""The demo at a tenth of its size: what it leaves, and that running it again reuses it."""

from __future__ import annotations

from pathlib import Path

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
    assert len(list((tmp_path / "demo" / "students").iterdir())) == 2 * len(labels)
    assert len(VARIANTS) - 1 <= len(labels) <= len(VARIANTS), "the choice may be one of the others"
    assert Path(result["report"]).stat().st_size > 1_000_000, "the page carries its own drawing code"

    overall = [done / total for task, done, total in told if task == "the whole demo"]
    assert overall == sorted(overall)
    assert overall[-1] > 0.8

    left = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    again = demo(out=tmp_path / "demo", _sizes=TINY)
    assert again["students"] == result["students"]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == left
