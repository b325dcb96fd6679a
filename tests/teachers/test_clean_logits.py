"""Logits of clean images: from the cache where they can be, fresh where they must be."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import checkpointkd as ckd
from checkpointkd.teachers.ensemble import Teacher


def test_teachers_are_measured_once(teacher_run: Path, tmp_path: Path, monkeypatch):
    """A second student, another ensemble and a moved run use the cache. Damaged entries are computed again."""
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home"))
    computed: list[str] = []
    compute_clean = Teacher._compute_clean

    def count(teacher: Teacher, member: int, images: Any) -> torch.Tensor:
        computed.append(teacher.members[member].text)
        return compute_clean(teacher, member, images)

    monkeypatch.setattr(Teacher, "_compute_clean", count)

    def distill(name: str, *teachers: str, **options: Any) -> dict[str, Any]:
        run = ckd.distill(
            "wrn_10_1",
            teachers=list(teachers),
            data="digits",
            out=tmp_path / name,
            epochs=1,
            batch_size=50,
            train_images=100,
            **options,
        )
        return json.loads((run.path / "run.json").read_text())["teachers_measured"]

    first = distill("one", f"{teacher_run}@last")
    assert computed == [f"{teacher_run}@last"]
    assert first["members"][0]["accuracy"] == pytest.approx(0.56, abs=0.01)
    moved = teacher_run.rename(tmp_path / "moved")
    both = distill("two", f"{moved}@last", f"{moved}@midpoint", seed=1)
    assert computed[1:] == [f"{moved}@midpoint"]
    assert both["members"][0] == {**first["members"][0], "ref": f"{moved}@last"}
    assert both["members"][1]["accuracy"] == pytest.approx(0.33, abs=0.01)
    stored = list((tmp_path / "home" / "logits").glob("*/*.safetensors"))
    assert len(stored) == 2
    for path in stored:
        path.write_bytes(path.read_bytes()[:-3])
    assert distill("three", f"{moved}@last")["members"] == both["members"][:1]
    assert len(computed) == 3
    assert ckd.evaluate(f"{moved}@last")["ensemble"]["accuracy"] == first["ensemble"]["accuracy"]
    assert len(computed) == 3


def test_clean_logits_are_cached_where_they_can_be(teacher_run: Path, tmp_path: Path, monkeypatch):
    """An entry in the place of another is not used. A cache that cannot be written to costs time only."""
    home = tmp_path / "home"
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(home))
    last, midpoint = (ckd.evaluate(f"{teacher_run}@{name}", split="test") for name in ("last", "midpoint"))
    assert last["ensemble"]["accuracy"] != midpoint["ensemble"]["accuracy"]
    first, second = (home / "logits").glob("*/*.safetensors")
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert ckd.evaluate(f"{teacher_run}@last", split="test")["ensemble"] == last["ensemble"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "file" / "home"))
    assert ckd.evaluate(f"{teacher_run}@midpoint", split="test")["ensemble"] == midpoint["ensemble"]


def test_logits_of_streamed_images_are_not_cached(tmp_path: Path, monkeypatch):
    """Images of the same names in another folder are other images."""
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home"))
    noise = np.random.default_rng(0)
    for root in ("clean", "noisy"):
        for split, name in itertools.product(("train", "val"), ("a", "b")):
            (tmp_path / root / split / name).mkdir(parents=True)
            for number in range(12):
                level = {"a": 40, "b": 200}[name] if root == "clean" else 120
                pixels = np.clip(noise.normal(level, 10, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / root / split / name / f"{number}.png")
    run = ckd.train(
        "wrn_10_1",
        data=f"folder:{tmp_path / 'clean'}",
        image_size=8,
        epochs=6,
        batch_size=6,
        select_on="test",
        precision="fp32",
        out=tmp_path / "run",
    )
    clean = ckd.evaluate(str(run.path), split="test")["ensemble"]
    noisy = ckd.evaluate(str(run.path), split="test", data=f"folder:{tmp_path / 'noisy'}")["ensemble"]
    assert noisy["nll"] > clean["nll"] + 0.1
