"""The learning-rate schedules next to the paper's numbers, and both estimators of I(X;F) next to each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpointkd.checkpoints import open_trajectory
from checkpointkd.experiments.catalog import get_experiment
from checkpointkd.experiments.lr_schedule import needs, results
from checkpointkd.experiments.presets import paper
from checkpointkd.information import load_plane
from checkpointkd.reports.charts import Chart

from .conftest import read_rows

PRESET = paper()
FIRST = PRESET.pairs[0].name


def _rows() -> list[dict[str, Any]]:
    """Rows of teachers with two schedules, in which ridge ranks checkpoints the other way round than the decoder."""
    rows: list[dict[str, Any]] = []
    for item in needs(PRESET):
        recipe, _, measurement = item.variant.partition(", ")
        common = {"pair": item.pair.name, "variant": item.variant}
        if measurement in ("midpoint", "last"):
            accuracy = {"midpoint": 63.0, "last": 76.5}[measurement] - (5.0 if recipe == "cifar100" else 0.0)
            rows.append({"kind": "measured", **common, "accuracy": accuracy})
            continue
        information = [3.0, 2.9, 0.0] if measurement == "decoder" else [0.1, 0.5, 3.0]
        for epoch, accuracy, estimate in zip((10, 100, 200), (20.0, 60.0, 76.0), information, strict=True):
            rows.append(
                {
                    "kind": "point",
                    **common,
                    "epoch": epoch,
                    "accuracy": accuracy,
                    "information": estimate,
                    "chosen": False,
                    "accuracy_se": 0.3,
                    "information_se": 0.01,
                    "information_sd": 0.02,
                    "fits": 4,
                    "label_information": 1.0,
                    "file": "a/b",
                }
            )
    return rows


def test_schedules_are_shown_next_to_the_paper():
    shown = results(PRESET, _rows())
    assert shown.tables[0].rows[:3] == [
        ["wrn_40_2, cifar100 (cosine)", "58.00", "71.50", "100", "200"],
        ["wrn_40_2, cifar100-step (step)", "63.00", "76.50", "100", "200"],
        ["wrn_40_2, paper", "62.99", "76.53", "160", ""],
    ]
    chart = shown.figures[0]
    assert isinstance(chart, Chart)
    paper_points = chart.series[-1]
    assert (list(paper_points.x), list(paper_points.y)) == ([100, 200], [62.99, 76.53])


def test_the_teacher_of_the_other_schedule_is_another_run(smoke: Path):
    """Its schedule is moved to the preset's epochs. Rows hold the scores of both estimators that the runs keep."""
    (run,) = (smoke / "runs").glob("wrn_16_2-cifar100-step-teacher-seed0-*")
    recipe = json.loads((run / "run.json").read_text())["recipe"]
    assert (recipe["lr_schedule"], recipe["epochs"], recipe["step_every"]) == ("step", 20, 6)
    (usual,) = (smoke / "runs").glob("wrn_16_2-teacher-seed0-*")
    assert json.loads((usual / "run.json").read_text())["recipe"]["lr_schedule"] == "cosine"
    for folder, recipe_name in ((run, "cifar100-step"), (usual, "digits")):
        for estimator in ("decoder", "ridge"):
            plane = load_plane(open_trajectory(folder), estimator=estimator)
            assert plane is not None
            rows = read_rows(smoke, "lr-schedule", variant=f"{recipe_name}, {estimator}", model="wrn_16_2")
            assert [row["information"] for row in rows] == [point.image_information for point in plane.points]


def test_figure_7_shows_both_estimators():
    variants = {"cifar100, decoder": "teacher", "cifar100, ridge": "teacher, ridge"}
    rows = [
        {**row, "variant": variants[row["variant"]], "chosen": row["epoch"] == 100, "images": 1000}
        for row in _rows()
        if row["variant"] in variants and row["pair"] == FIRST
    ]
    figure7 = get_experiment("figure7")
    shown = figure7.results(PRESET, rows)
    table = shown.tables[0]
    assert [line[0] for line in table.rows] == ["10", "100, chosen", "200"]
    assert [line[-1] for line in table.rows] == ["0.100", "0.500", "3.000"]
    assert "By ridge: in nats per patch, on 1,000 of the images" in table.note
    assert "Spearman's rank correlation of both estimators over 3 checkpoints is -1.00" in table.note
    assert "By ridge, Algorithm 1 would choose epoch 200" in table.note
    assert [figure.title for figure in shown.figures][1] == "The information plane of wrn_40_2, by ridge"
    for row in rows:
        row["information"] = 0.0 if row["variant"] == "teacher, ridge" else row["information"]
    shown = figure7.results(PRESET, rows)
    assert "The estimators cannot be compared" in shown.tables[0].note
    assert len(shown.figures) == 1, "estimates that are all the same give no plane"
