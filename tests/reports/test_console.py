"""What each command prints: tables that fit 80 columns, with whole numbers, and lines to copy that stay whole."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType

import checkpointkd as ckd
from checkpointkd import console
from checkpointkd.analysis.statistics import Claim, claim, corrected
from checkpointkd.records.selection import CandidateRecord, PilotResult
from checkpointkd.reports.build import student_rows
from checkpointkd.reports.charts import Table
from checkpointkd.reports.collect import collect
from checkpointkd.reports.tables import claims_table, evaluation_table

COPIED = ("checkpointkd ", "Report: ", "To load it: ")  # lines to copy, which must not wrap


def _printed(shown: RenderableType, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False, markup=False).print(shown, crop=False)
    return file.getvalue()


def _check(shown: RenderableType) -> str:
    """Return what is printed at 80 columns, after a check that it fits."""
    text = _printed(shown)
    for line in text.splitlines():
        assert cell_len(line) <= 80 or line.startswith(COPIED), line
    assert not re.search(r"\d ±\s*$|^\s*± \d", text, flags=re.MULTILINE), "a number is broken at its ±"
    return text


def _claims() -> list[Claim]:
    text = "A Snapshot Ensemble of two teaches better than a Full Ensemble of two, on average"
    caveat = "rests on one run of each teacher: another run's students may differ by more than seeds do"
    gaps = [[12.34, 13.37, 11.9], [1.0, -2.0], []]
    claims = [
        claim(text, f"wrn_16_2 → wrn_10_{number}", values, paper=0.41, caveat=caveat)
        for number, values in enumerate(gaps)
    ]
    return corrected([*claims, Claim(text, "resnet_20", "of loss per pixel", "image", 12345, 0.0123, 0.0012, 0.001)])


def test_the_tables_of_runs_fit_80_columns(runs: Path):
    teacher = runs / "teacher"
    refs = [f"{teacher}@2", f"{teacher}@4"]
    _check(console.trajectory(ckd.open_trajectory(runs / "both")))
    _check(console.inspection(ckd.inspect(teacher)))
    _check(console.plane(ckd.score(teacher, decoder_steps=4, decoder_seeds=2)))
    _check(console.choice(ckd.select(teacher)))
    evaluation = ckd.evaluate(*refs)
    text = _check(console.evaluation(evaluation))
    for row in evaluation_table(evaluation).rows:
        assert row[2] in text
    _check(console.correlation(ckd.correlate(*refs)))
    _check(console.report(Path("report.html")))


def test_the_table_of_tune_fits_80_columns(tuned: Path):
    result = json.loads((tuned / "tune" / "tune.json").read_text())
    command = f"checkpointkd distill wrn_10_1 --teachers {tuned / 'teacher'} --alpha 0.1 --tau 2 --out OUT"
    assert command in _check(console.tune({**result, "command": command})).splitlines()


def _pilot() -> PilotResult:
    row: dict[str, Any] = {"gain": 2.25, "low": -0.5, "high": 5.0, "chance": 0.3, "accuracy": 0.7, "chosen": False}
    rows = [
        {**row, "candidate": "mlkd-ls from epochs 160 + 240", "chosen": True, "accuracy": None},
        {**row, "candidate": "kd from mean:0.7-1.0, alpha 0.1"},
        {**row, "candidate": "dkd from epoch 240", "accuracy": None, "chance": 0.01},
    ]
    return PilotResult(
        student="wrn_16_1",
        epochs=(160, 240),
        teachers=("160", "240"),
        method="mlkd-ls",
        alpha=None,
        tau=None,
        reason="Use mlkd-ls from epochs 160 + 240. Expected gain over kd from epoch 240, alpha 0.5: +2.2 points",
        gain=2.25,
        low=-0.5,
        high=5.0,
        chance=0.3,
        safe="mlkd-ls from epoch 240",
        candidates=tuple(CandidateRecord(**fields) for fields in rows),
        pilot_runs=(),
        pilot_epochs=30,
        spent_epochs=75,
        student_epochs=200,
        command="checkpointkd distill wrn_16_1 --teachers runs/teacher@160 runs/teacher@240 --alpha 0.5 --out OUT",
    )


def test_the_table_of_a_pilot_search_fits_80_columns():
    pilot = _pilot()
    text = _check(console.choice(pilot))
    assert pilot.command in text.splitlines()
    prose = " ".join(text.split())
    assert prose.startswith(f"For wrn_16_1: {pilot.reason}."), "the verdict comes first"
    assert "←" in prose
    assert "dkd" not in prose, "it was not tried and has little chance"
    assert "Left out: 1 candidate without a pilot run and with little chance to be the best." in prose
    assert "The pilot runs took 75 epochs, 38% of a full distillation." in prose


def test_the_tables_of_experiments_fit_80_columns():
    columns = [
        "teacher → student",
        "T last",
        "S from scratch",
        "S from T last",
        "S from T midpoint",
        "best intermediate",
    ]
    cells = [f"{number}8.{number}9 ± 0.7{number} (n = 2)" for number in range(4)]
    table = Table("Students", columns, [["wrn_16_2 → wrn_10_1", "45.71", *cells]])
    claims = _claims()
    result: dict[str, Any] = {
        "title": "Table 2: Snapshot Ensembles against Full Ensembles",
        "missing": 3,
        "notes": ["Not finished: 3 of 12 tasks are missing."],
        "tables": [asdict(table)],
        "claims": [{**asdict(tested), "verdict": tested.verdict} for tested in claims],
    }
    text = _check(console.experiments({"experiments": {"table2": result}, "report": "r.html"}))
    assert "[1] rests on one run" in text
    assert all(cell.partition(" (")[0] in text for cell in cells)
    overview = console.experiments({"experiments": {"table2": result, "figure3": result}, "report": "r.html"})
    _check(overview)
    assert "3  2 supported, 1 undecided, 1 not run yet" in _printed(overview, 200)
    for row in claims_table(claims).rows:
        assert re.split(" (?=points|of)", row[1])[0] in text


def test_the_table_of_the_demo_fits_80_columns(runs: Path):
    result = {"headline": "Algorithm 1 chose epoch 4 of 4", "notes": [], "report": "r.html"}
    text = _check(console.demo({**result, "students": student_rows(collect(runs))}))
    assert text.endswith("Report: r.html\n")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_table_fits_any_width(width: int):
    cells = ["a long name with several words", "1.25 ± 0.05", "x" * 50, "日本語のとても長い名前"]
    table = Table("", ["name", "value", "long word", "wide"], [cells, ["", "2.00 ± 0.10", "", ""]], marked=[1])
    text = _printed(Group(*console._table(table)), width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert ("a long name with several words" in text) == (width == 200)


def test_control_characters_are_shown_escaped():
    table = Table("", ["name"], [["bell\x07 \x1b[1mbold"]])
    assert r"bell\x07 \x1b[1mbold" in _printed(Group(*console._table(table)))
