"""What `collect` reads, what it leaves out, and the note on each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import checkpointkd as ckd
from checkpointkd.errors import UserError
from checkpointkd.reports import collect
from checkpointkd.reports.figures import tune_chart


def test_a_folder_without_runs_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"No run to report on in "):
        ckd.report(tmp_path)
    with pytest.raises(UserError, match="there is no folder at"):
        ckd.report(tmp_path / "nowhere")


def test_an_unfinished_run_is_noted_and_left_out_of_the_table(runs: Path):
    (runs / "scratch-1" / "result.json").unlink()
    collected = collect(runs)
    assert collected.notes == ["Not finished: scratch-1, epoch 2 of 2"]
    assert collected.variants[0].n == 1
    assert "Not finished: scratch-1" in ckd.report(runs).read_text(encoding="utf-8")


def test_a_run_json_of_another_program_is_left_out(runs: Path):
    (runs / "npm").mkdir()
    (runs / "npm" / "run.json").write_text('{"scripts": {}}')
    assert any(note.startswith("Left out: ") and "npm" in note for note in collect(runs).notes)


def test_a_run_with_a_damaged_checkpoint_is_left_out(runs: Path):
    (runs / "four-0" / "checkpoints" / "epoch-0002.safetensors").write_bytes(b"damage")
    assert any("Left out: " in note and "four-0" in note for note in collect(runs).notes)


def test_trials_of_a_tune_search_are_not_students(tuned: Path, tmp_path: Path):
    collected = collect(tuned)
    assert not any(variant.teachers for variant in collected.variants)
    assert list(collected.tunings) == ["tune"]
    assert collected.notes == [], "pruned trials are not unfinished runs"
    assert collected.provenance["runs"] == "1"
    page = ckd.report(tuned, out=tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Tuning α and τ: tune" in page
    trials = page[page.index(">Trials of tune</h2>") :]
    assert trials.count(">0.1</td>") == 2
    page = ckd.report(tuned / "tune", out=tmp_path / "tune.html").read_text(encoding="utf-8")
    assert "Trials of tune" in page


def test_an_unfinished_tune_search_is_noted(tuned: Path):
    path = tuned / "tune" / "tune.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "trials": result["trials"][:2], "best": None}))
    assert "Not finished: tune search tune, 2 of 6 trials" in collect(tuned).notes
    ckd.report(tuned, out=tuned / "r.html")


@pytest.mark.parametrize(
    "damage",
    [
        "[]",
        "{}",
        "no JSON",
        '{"trials": 3}',
        {"best": {"trial": 99, "accuracy": 0.5}},
        {"best": {"accuracy_se": 0.1}},
        {"space": {}},
        {"space": {"alpha": ["x"]}},
        {"trials": [{}]},
        {"data": None},
        {"planned": "all"},
    ],
)
def test_a_damaged_tune_search_is_left_out(tuned: Path, damage: str | dict):
    path = tuned / "tune" / "tune.json"
    path.write_text(damage if isinstance(damage, str) else json.dumps({**json.loads(path.read_text()), **damage}))
    collected = collect(tuned)
    assert collected.tunings == {}
    assert any("Left out: " in note and "tune.json is damaged" in note for note in collected.notes)


def test_trials_on_a_line_have_no_contours(tuned: Path, tmp_path: Path):
    """Up to three finished trials on a line span no area; the report is still written."""
    path = tuned / "tune" / "tune.json"
    result = json.loads(path.read_text())
    values = [(0.1, 2.0), (0.5, 4.0), (0.9, 6.0)]
    for count in (1, 2, 3):
        trials = [
            {
                **result["trials"][0],
                "trial": number,
                "values": {"alpha": alpha, "tau": tau},
                "accuracy": 0.2 + number / 10,
                "stopped": None,
            }
            for number, (alpha, tau) in enumerate(values[:count])
        ]
        best = {**trials[-1], "accuracy_se": 0.01, "comparable": 0}
        path.write_text(json.dumps({**result, "trials": trials, "best": best}))
        assert tune_chart("tune", collect(tuned).tunings["tune"]).contour is None
        ckd.report(tuned / "tune", out=tmp_path / "r.html")


def test_an_experiment_alone_has_a_report(experiment: Path):
    assert "Table 1" in ckd.report(experiment).read_text(encoding="utf-8")
    assert collect(experiment).notes == []


@pytest.mark.parametrize(
    ("at", "damage"),
    [
        ("title", 3),
        ("notes", "x"),
        ("notes", [3]),
        ("provenance", None),
        ("provenance", {"a": 1}),
        ("preset", {}),
        ("tables.0.columns", ["a"]),
        ("tables.0.rows", [["a", 3]]),
        ("tables.0.marked", 3),
        ("tables.0.title", None),
        ("figures.0.title", 3),
        ("figures.0.x_title", None),
        ("figures.0.kind", "pie"),
        ("figures.0.log_x", True),
        ("figures.0.series.0.x", [1]),
        ("figures.0.series.0.y", [1, None]),
        ("figures.0.series.0.y", [1, 1e308]),
        ("figures.0.series.0.y", ["1", 2]),
        ("figures.0.series.0.error", [-1, 1]),
        ("figures.0.series.0.name", 3),
        ("figures.0.series.0.hover", [1, 2]),
        ("figures.0.series.0.symbol", "no"),
        ("figures.0.series.0.highlight", [99]),
        ("figures.0.series.0.color", "red"),
        ("figures.0.series.0.style", "dots"),
        ("figures.0.contour", [[1], [2]]),
        ("figures.1.classes", ["c"]),
        ("figures.1.maps", []),
        ("figures.1.maps.0.0", [1]),
        ("figures.1.names", []),
        ("figures.1.maps.0.0.0", None),
        ("claims.0.effect", "1"),
        ("claims.0.n", None),
        ("claims.0.text", 3),
        ("title", "\ud800"),
    ],
)
def test_a_damaged_experiment_is_left_out(experiment: Path, at: str, damage: object, teacher_run: Path):
    path = experiment / "table1" / "experiment.json"
    result = json.loads(path.read_text())
    *way, last = [int(step) if step.isdigit() else step for step in at.split(".")]
    place = result
    for step in way:
        place = place[step]
    place[last] = damage
    if last == "log_x":
        place["series"][0]["x"] = [-1, 2]
    path.write_text(json.dumps(result))
    collected = collect(experiment)
    assert collected.experiments == []
    assert any("Left out: " in note and "experiment.json is damaged" in note for note in collected.notes)
    ckd.report(experiment)
