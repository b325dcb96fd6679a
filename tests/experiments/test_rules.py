"""The experiment on rules: regrets by hand, and that students have the teachers that rules and pilot searches chose."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import checkpointkd as ckd
from checkpointkd.experiments.presets import Pair, Preset
from checkpointkd.experiments.rules import regrets, results
from checkpointkd.reports.charts import Chart, from_plain, to_plain

from .conftest import read_rows, smoke_preset

PAIR = Pair(teacher="t", student="s", sweep=(0.5, 1.0))
PRESET: Preset = replace(smoke_preset(), pairs=(PAIR,), seeds=3, alphas=(0.5,), budgets=("1.0",))


def _students(variant: str, test: list[float], val: list[float] | None = None, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "kind": "network",
            "pair": PAIR.name,
            "variant": variant,
            "seed": seed,
            "accuracy": accuracy,
            "val_accuracy": (val or test)[seed],
            "run": f"{more.get('teachers')}-{seed}",
            **more,
        }
        for seed, accuracy in enumerate(test)
    ]


def _from(epoch: int) -> dict[str, Any]:
    return {"teachers": [["t", 0, epoch]], "alpha": 0.5}


ROWS = [
    *_students("scratch", [50.0, 51.0, 52.0]),
    *_students("0.3, 0.5", [40.0, 41.0, 42.0], **_from(6)),
    *_students("midpoint, 0.5", [60.0, 61.0, 59.0], val=[70.0, 60.0, 60.0], **_from(10)),
    *_students("last, 0.5", [58.0, 62.0, 63.0], val=[60.0, 64.0, 64.0], **_from(20)),
    *_students("algorithm1, 0.5", [60.0, 61.0, 59.0], val=[70.0, 60.0, 60.0], **_from(10)),
    *_students("pilot, 1.0", [58.0, 62.0], val=[90.0, 90.0], **_from(20)),
    _students("pilot, 1.0", [50.0, 51.0, 52.0], val=[90.0] * 3)[2],  # without a teacher
    {
        "kind": "choice",
        "pair": PAIR.name,
        "rule": "algorithm1",
        "epoch": 10,
        "scores": {"6": 0.5, "10": 1.5, "20": 1.0},
    },
    *(
        {
            "kind": "pilot",
            "pair": PAIR.name,
            "variant": "pilot, 1.0",
            "budget": "1.0",
            "seed": seed,
            "epochs": epochs,
            "alpha": 0.5,
            "pilot_runs": [
                {"epochs": [], "alpha": 1.0, "pilot_epochs": 3, "information": 1.0},
                {"epochs": [20], "alpha": 0.5, "pilot_epochs": 3, "information": 2.0},
                {"epochs": [10], "alpha": 0.5, "pilot_epochs": 3, "information": 1.5},
                {"epochs": [6], "alpha": 0.5, "pilot_epochs": 3, "information": 0.5},
                {"epochs": [20], "alpha": 0.1, "pilot_epochs": 3, "information": 0.1},
                {"epochs": [6], "alpha": 0.5, "pilot_epochs": 6, "information": 9.0},
            ],
            "skipped": [],
            "spent_epochs": 9,
            "student_epochs": 12,
        }
        for seed, epochs in enumerate(([20], [20], []))
    ),
]


def test_the_best_teacher_is_picked_by_the_other_seeds():
    """For seed 0 the other seeds pick the last checkpoint (validation accuracy 64 against 60), for seeds 1 and 2 the
    midpoint (65 against 62). The regret is against that seed's student, by test accuracy."""
    assert regrets(PRESET, ROWS, "midpoint, 0.5") == {PAIR.name: {0: 58 - 60, 1: 61 - 61, 2: 59 - 59}}
    assert regrets(PRESET, ROWS, "last, 0.5") == {PAIR.name: {0: 58 - 58, 1: 61 - 62, 2: 59 - 63}}
    assert regrets(PRESET, ROWS, "scratch") == {PAIR.name: {0: 58 - 50, 1: 61 - 51, 2: 59 - 52}}
    assert regrets(PRESET, ROWS, "pilot, 1.0") == {PAIR.name: {0: 0, 1: -1, 2: 59 - 52}}
    assert regrets(PRESET, ROWS, "mcmi, 0.5") == {}


def test_the_mean_of_equally_good_teachers_counts():
    """However many rules choose one of them."""
    both = {"teachers": [["t", 0, 10], ["t", 0, 20]], "alpha": 0.5}
    rows = list(ROWS)
    for variant in ("midpoint and last, 0.5", "mcmi, 0.5"):
        rows += _students(variant, [40.0, 41.0, 42.0], val=[60.0, 64.0, 64.0], **both)
        assert regrets(PRESET, rows, "last, 0.5") == {PAIR.name: {0: (58 + 40) / 2 - 58, 1: 61 - 62, 2: 59 - 63}}


def test_the_table_shows_cost_and_correlation():
    shown = results(PRESET, ROWS)
    lines = {line[0]: line for line in shown.tables[0].rows}
    pilot = lines["pilot search, budget 1.0"]
    assert pilot[-1] == "0.75", "9 epochs of pilot runs, 12 of a distillation"
    assert pilot[-2] == "1.00 ± 0.00", "epochs 6, 10, 20: 41, 60, 61% and 0.5, 1.5, 2 nats in the first pilot runs"
    assert pilot[5] == "0 of 1", "for two seeds it is the same student"
    algorithm1 = lines["Algorithm 1, α = 0.5"]
    assert algorithm1[1:3] == ["3", "-0.67"]
    assert algorithm1[5] == "1 of 3", "60, 61, 59 against 58, 62, 63"
    assert algorithm1[-2:] == ["0.50", "0.00"]
    claim = next(claim for claim in shown.claims if "no teacher" in claim.text)
    assert claim.effect == pytest.approx((8 + 11 + 0) / 3)


def test_the_table_shows_the_choices():
    choices = results(PRESET, ROWS).tables[1].rows
    assert ["Algorithm 1", "10"] in choices
    assert ["pilot search, budget 1.0", "20, 0.5; 20, 0.5; no teacher"] in choices


def test_the_figures_show_each_rule_once():
    by_rule, by_cost = results(PRESET, ROWS).figures
    assert isinstance(by_rule, Chart)
    names = ["last", "midpoint", "Algorithm 1", "pilot search, budget 1.0", "no teacher"]
    assert by_rule.x_names == names, "the smallest regret first"
    shown = [(series, rule, round(regret, 2)) for series, rule, regret, *_ in by_rule.table()[1]]
    other = "no teacher, and pilot searches, which choose α"
    assert shown == [
        ("α = 0.5", "last", -1.67),
        ("α = 0.5", "midpoint", -0.67),
        ("α = 0.5", "Algorithm 1", -0.67),
        (other, "pilot search, budget 1.0", 2.0),
        (other, "no teacher", 8.33),
    ]
    assert isinstance(by_cost, Chart)
    assert sorted(round(regret, 2) for *_, regret, _, _ in by_cost.table()[1]) == [-1.67, -0.67, -0.67, 2.0, 8.33]
    with pytest.raises(ValueError, match="name"):
        from_plain({**to_plain(by_rule), "x_names": by_rule.x_names[:4]})


def test_advice_of_pilot_searches_is_followed(smoke: Path):
    pilots = read_rows(smoke, "rules", kind="pilot")
    assert len(pilots) == 4
    for row in pilots:
        (student,) = read_rows(
            smoke, "rules", kind="network", variant=f"pilot, {row['budget']}", pair=row["pair"], seed=row["seed"]
        )
        assert [epoch for _, _, epoch in student.get("teachers", [])] == row["epochs"]
        assert student.get("alpha", 1.0) == row["alpha"]
        assert sum(run["pilot_epochs"] for run in row["pilot_runs"]) == row["spent_epochs"]


def test_rules_choose_what_select_chooses(smoke: Path, tmp_path: Path):
    run = next((smoke / "runs").glob("wrn_16_2-teacher-seed0-*"))
    shutil.copytree(run, tmp_path / "teacher")
    choices = [row for row in read_rows(smoke, "rules", kind="choice") if row["pair"].startswith("wrn_16_2")]
    assert len(choices) == 9
    for row in choices:
        assert ckd.select(tmp_path / "teacher", rule=row["rule"]).epoch == row["epoch"]
        students = read_rows(smoke, "rules", kind="network", variant=f"{row['rule']}, 0.5", pair=row["pair"])
        assert {student["teachers"][0][2] for student in students} == {row["epoch"]}


def test_missing_seeds_are_left_out():
    """While tasks run, or when some failed, seeds are missing here and there."""
    missing = (("pilot, 1.0", 0), ("scratch", 2))
    rows = [row for row in ROWS if (row.get("variant"), row.get("seed")) not in missing]
    claim = next(claim for claim in results(PRESET, rows).claims if "no teacher" in claim.text)
    assert (claim.effect, claim.n) == (62 - 51, 1), "seed 1 alone has both"


@pytest.mark.slow
def test_results_before_the_teachers_are_scored(smoke: Path, tmp_path: Path):
    """Results are written while tasks run, also between a teacher's training and its scoring."""
    out = tmp_path / "experiments"
    shutil.copytree(smoke, out)
    for plane in (out / "runs").glob("*-teacher-seed0-*/plane*.json"):
        plane.unlink()
    for name in ("rules", "all"):
        result = ckd.reproduce(name, preset="smoke", out=out, time_limit=1e-4)
        assert result["estimate"]["left"] > 0, "the scores of teachers, and the tasks that require them"
    assert {row["kind"] for row in read_rows(out, "rules")} == {"network", "pilot"}
