"""Folders to report on: students of one teacher, a tune search, an experiment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import checkpointkd as ckd
from checkpointkd.analysis.statistics import claim
from checkpointkd.records.base import plain, provenance
from checkpointkd.reports.charts import Chart, Heatmaps, Series, to_plain


@pytest.fixture(scope="session")
def _runs(_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    teacher_run = Path(shutil.copytree(_trained, folder / "teacher"))
    ckd.score(teacher_run, decoder_steps=4, decoder_seeds=2)
    ckd.select(teacher_run, rule="best-accuracy")
    for seed in (0, 1):
        ckd.train(
            "wrn_10_1",
            data="digits",
            train_images=100,
            out=folder / f"scratch-{seed}",
            epochs=2,
            save_every=2,
            seed=seed,
        )
        for name, epoch in (("two", 2), ("four", 4)):
            ckd.distill(
                "wrn_10_1",
                teachers=[f"{teacher_run}@{epoch}"],
                out=folder / f"{name}-{seed}",
                epochs=2,
                save_every=2,
                seed=seed,
            )
    ckd.distill(
        "wrn_10_1", teachers=[f"{teacher_run}@2", f"{teacher_run}@4"], out=folder / "both", epochs=2, save_every=2
    )
    return folder


@pytest.fixture
def runs(_runs: Path, tmp_path: Path) -> Path:
    """A scored teacher and its students: from scratch, from epoch 2, from epoch 4, and from both (one seed)."""
    return Path(shutil.copytree(_runs, tmp_path, dirs_exist_ok=True))


@pytest.fixture(scope="session")
def _tuned(_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    teacher_run = Path(shutil.copytree(_trained, tmp_path_factory.mktemp("tuned") / "teacher"))
    ckd.tune(
        "wrn_10_1",
        teachers=[str(teacher_run)],
        alpha=[0.1, 0.5, 0.9],
        tau=[2, 8],
        epochs=2,
        batch_size=50,
        out=teacher_run.parent / "tune",
    )
    return teacher_run.parent


@pytest.fixture
def tuned(_tuned: Path, tmp_path: Path) -> Path:
    """A folder with a teacher and a finished tune search named `tune`."""
    return Path(shutil.copytree(_tuned, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """The folder of an experiment, as `reproduce` writes it."""
    chart = Chart(title="a", x_title="b", y_title="c", series=[Series(name="d", x=[1, 2], y=[3, 4])])
    maps = Heatmaps(title="a", names=["b"], classes=["c", "d"], maps=[[[1, 0.5], [0.5, 1]]])
    result = {
        "experiment": "table1",
        "title": "Table 1",
        "missing": 0,
        "preset": {
            "name": "smoke",
            "dataset": "digits",
            "select_on": "val",
            "seeds": 2,
            "train_images": None,
            "teacher_epochs": 1,
            "student_epochs": 1,
            "pairs": [{"teacher": "t", "student": "s"}],
        },
        "notes": [],
        "tables": [{"title": "t", "columns": ["a", "b"], "rows": [["1", "2"]], "note": "", "marked": []}],
        "figures": [to_plain(chart), to_plain(maps)],
        "claims": [{**vars(claim("a", "b", [1.0, 2.0, 4.0])), "verdict": ""}],
        "provenance": plain(provenance()),
    }
    (tmp_path / "table1").mkdir()
    (tmp_path / "table1" / "experiment.json").write_text(json.dumps(result))
    return tmp_path
