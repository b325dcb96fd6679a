"""Tables, figures and claims from rows with known numbers, and the teachers that runs were trained from."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from checkpointkd.analysis.statistics import Claim, claim_from
from checkpointkd.checkpoints import open_trajectory
from checkpointkd.experiments.catalog import get_experiment
from checkpointkd.experiments.figure4 import _peak
from checkpointkd.experiments.paper_numbers import CHOSEN
from checkpointkd.experiments.presets import Preset, paper, small
from checkpointkd.experiments.results import Results, Row, compare
from checkpointkd.experiments.tasks import DistillTask, EvaluateTask, ScoreTask, TrainTask
from checkpointkd.information import load_plane
from checkpointkd.reports.charts import Chart, Heatmaps

from .conftest import read_experiment, read_rows

ACCURACY = {
    "scratch": 10.0,
    "uniform": 11.0,
    "0.1": 5.0,
    "0.2": 6.0,
    "0.3": 12.0,
    "0.4": 13.0,
    "midpoint": 17.5,
    "0.6": 18.0,
    "0.7": 21.0,
    "0.8": 20.5,
    "0.9": 20.0,
    "last": 19.0,
    "best": 22.5,
    "EN1": 24.0,
    "EN2": 25.5,
    "EN3": 26.0,
    **{f"snapshot {k}": 30.0 + k for k in range(1, 11)},
    **{f"ensemble {k}": 30.0 - k for k in range(1, 11)},
}
SWEPT = ("0.1", "0.2", "0.3", "0.4", "midpoint", "0.6", "0.7", "0.8", "0.9", "last")
INFORMATION = {"teacher": -0.20, "scratch": -0.30, "uniform": -0.33, "last": -0.31, "midpoint": -0.27}
SMALL = small()


def _rows(preset: Preset, name: str) -> list[Row]:
    """Rows as the tasks of an experiment would leave them.

    Students of the second pair are a point better, those of seed s by s / 10. By validation accuracy the teacher at
    0.8 is better than the one at 0.7, by test accuracy the other way round.
    """
    rows: list[Row] = []
    for item in get_experiment(name).needs(preset):
        pair_number = preset.pairs.index(item.pair)
        common = {"pair": item.pair.name, "variant": item.variant}
        if isinstance(item.task, TrainTask | DistillTask):
            accuracy = ACCURACY[item.variant] + pair_number + item.task.seed / 10
            val_accuracy = accuracy + {"0.8": 2.0}.get(item.variant, 0.0)
            row = {
                "kind": "network",
                **common,
                "model": item.task.model,
                "seed": item.task.seed,
                "accuracy": accuracy,
                "val_accuracy": val_accuracy,
                "epochs": 20,
                "seconds": 100.0,
                "run": f"run-{item.variant}",
            }
            if isinstance(item.task, DistillTask):
                named = {"last": 30, "midpoint": 15, "best": 27}
                epochs = [named.get(choice.which) or round(30 * float(choice.which)) for choice in item.task.teachers]
                cost = {
                    "teachers_epochs": 30 * len({choice.training for choice in item.task.teachers}),
                    "teachers_seconds": 50.0,
                }
                row |= {
                    "teachers": [
                        [choice.training.model, choice.training.seed, epoch]
                        for choice, epoch in zip(item.task.teachers, epochs, strict=True)
                    ],
                    **cost,
                }
            rows.append(row)
        elif isinstance(item.task, EvaluateTask):
            own = {"EN1": 60.0, "EN2": 57.0, "EN3": 55.0, "teacher, last": 52.0}.get(item.variant, 50.0)
            rows.append({"kind": "measured", **common, "accuracy": own, "accuracy_se": 0.3, "images": 10_000})
        elif isinstance(item.task, ScoreTask):
            run = item.task.training
            last = preset.teacher_epochs if item.variant == "teacher" else preset.student_epochs
            common |= {"model": run.model, "seed": run.seed, "epochs": last}
            for epoch in (last // 2, last):
                information = INFORMATION[item.variant] + (0.1 if epoch < last else 0.0)
                rows.append(
                    {
                        "kind": "point",
                        **common,
                        "epoch": epoch,
                        "accuracy": 40.0 + epoch,
                        "accuracy_se": 1.0,
                        "label_information": 1.0,
                        "file": "a/b",
                        "information": information,
                        "information_se": 0.01,
                        "information_sd": 0.02,
                        "fits": 4,
                        "chosen": epoch == last,
                    }
                )
    return rows


def _results(name: str, preset: Preset = SMALL, rows: list[Row] | None = None) -> Results:
    return get_experiment(name).results(preset, _rows(preset, name) if rows is None else rows)


def _claim(results: Results, text: str, where: str) -> Claim:
    (claim,) = [claim for claim in results.claims if text in claim.text and claim.where == where]
    return claim


FIRST, SECOND = (pair.name for pair in SMALL.pairs)
AVERAGE = "all pairs on average"
EFFECTS = [
    ("table1", "T midpoint teaches better", FIRST, -1.5),
    ("table1", "T midpoint teaches better", AVERAGE, -1.5),
    ("table1", "best intermediate", FIRST, 1.5),  # 0.8 by validation accuracy: 20.5 − 19; 0.7 by test accuracy
    ("table1", "best intermediate", SECOND, 2.0),  # 0.8 is not part of that sweep
    ("figure2", "worst teacher is better than no teacher", FIRST, -5.0),
    ("figure2", "worst teacher is better than no teacher", SECOND, 2.0),
    ("figure2", "rises from the first", FIRST, 15.5),
    ("table2", "Snapshot Ensembles (EN₃) teach better", FIRST, 2.0),
    ("table2", "Mixed ensembles (EN₂) teach better", SECOND, 1.5),
    ("figure2", "The best intermediate teacher teaches", FIRST, 1.5),
    ("table1", "T last is itself more accurate than T midpoint", "wrn_16_2", 2.0),
    ("table2", "Full Ensembles are themselves more accurate than Snapshot", "wrn_16_2", 5.0),
    ("table2", "Full Ensembles are themselves more accurate than mixed", "wrn_16_2", 3.0),
    ("table2", "Mixed ensembles are themselves more accurate", "resnet_20", 2.0),
    ("figure3", "Ensemble of 2 teaches better", FIRST, 4.0),
    ("figure3", "Ensemble of 4 teaches better", FIRST, 8.0),
    ("figure4", "Students of T last have less I(X;F)", FIRST, 0.01),
    ("figure4", "Students of T midpoint have more I(X;F)", SECOND, 0.04),
    ("figure6", "Label smoothing compresses", FIRST, 0.03),
    ("figure6", "more I(X;F) than with label smoothing", FIRST, 0.02),
    ("figure6", "§4.3: T midpoint teaches better", FIRST, -1.5),
    ("figure6", "§4.3: T last teaches better", SECOND, 8.0),
    ("table3", "T* teaches better than T last", AVERAGE, 3.5),
    ("table3", "T* teaches better than T at 0.3", AVERAGE, 10.5),
    ("table3", "T at 0.7 teaches better than T last", AVERAGE, 2.0),
]


@pytest.mark.parametrize(("name", "text", "where", "effect"), EFFECTS, ids=lambda value: str(value)[:30])
def test_claims_are_differences_of_the_right_variants(name: str, text: str, where: str, effect: float):
    claim = _claim(_results(name), text, where)
    assert claim.effect == pytest.approx(effect)
    assert claim.n == (10_000 if claim.units == "image" else 3)
    assert claim.caveat or "smoothing compresses" in text


def test_gaps_between_checkpoints_become_claims():
    rows = _rows(SMALL, "figure4")
    variants = (
        "peak over first",
        "peak over last",
        "accuracy, last over best earlier",
        "midpoint over last",
        "accuracy, last over midpoint",
    )
    for number, variant in enumerate(variants):
        gap = {
            "mean": 1.0 + number,
            "error": 0.5,
            "degrees": 2.0 if number else 1e9,
            "n": 2500,
            "epochs": [9, 12],
            "against": 30,
        }
        rows.append({"kind": "gap", "pair": FIRST, "variant": variant, **gap})
    results = _results("figure4", rows=rows)
    claims = [claim for claim in results.claims if claim.where == FIRST and claim.units == "image"]
    assert [claim.effect for claim in claims] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [claim.text[0] for claim in claims] == ["1", "1", "1", "3", "3"]
    assert claims[0].half_width == pytest.approx(0.98, abs=1e-3)
    assert claims[1].half_width == pytest.approx(0.5 * 4.3027, rel=1e-4), "Student's t with two degrees of freedom"
    picked = ["epochs 9 or 12, picked" in claim.caveat for claim in claims]
    assert picked == [True, True, True, False, False]


def test_a_fall_after_the_first_checkpoint_does_not_refute_a_rise():
    """I(X;F) may have been lower before the first saved epoch, so the claim is not tested."""
    gap = {"error": 0.5, "degrees": 1e9, "n": 2500, "epochs": [9], "against": 3}
    for mean, is_tested in ((-1.0, False), (1.0, True)):
        row = {"kind": "gap", "pair": FIRST, "variant": "peak over first", "mean": mean, **gap}
        claim = _claim(_results("figure4", rows=[row]), "I(X;F) first rises", FIRST)
        assert (claim.p is not None) == is_tested


def test_the_error_of_the_one_teacher_counts():
    """Three students at −0.30 have no spread; the teacher's −0.20 has 0.01 over images and 0.02 / √4 over its fits."""
    claim = _claim(_results("figure4"), "larger teacher has more I(X;F)", FIRST)
    assert (claim.effect, claim.n) == (pytest.approx(0.1), 3)
    error = (0.01**2 + 0.02**2 / 4) ** 0.5
    degrees = error**4 / ((0.02**2 / 4) ** 2 / 3)
    assert claim.half_width == pytest.approx(error * t.ppf(0.975, degrees))


def test_a_peak_is_picked_by_other_fits_and_other_images():
    """Two fits have their highest value at different checkpoints, on even images only: neither counts for itself."""
    candidates_ASN = np.zeros((2, 2, 4))
    candidates_ASN[0, 0], candidates_ASN[1, 1] = [5, 1, 5, 1], [5, 3, 5, 3]
    gap_SN, picked = _peak(candidates_ASN, np.full((2, 4), -1.0), 1)
    assert picked == [1, 2]
    assert gap_SN.tolist() == [[1, 1], [1, 1]], "each fit's own peak would be 2 and 4 above"
    gap_SN, picked = _peak(candidates_ASN[:, :1], np.zeros((1, 4)))
    assert (picked, gap_SN.tolist()) == ([0], [[1, 1]]), "a single fit"


def test_a_variant_is_not_compared_with_the_same_students():
    rows = [
        {**row, "run": "one run"} if row["variant"] in ("best", "0.3") and row["pair"] == FIRST else row
        for row in _rows(SMALL, "table3")
        if row["kind"] == "network"
    ]
    claims = compare(SMALL, rows, "T* is better", "best", "0.3")
    assert [claim.same for claim in claims] == [True, False, False]
    assert "same students" in claims[0].verdict
    assert all("undecided" in claim.verdict for claim in claims[1:])
    assert f"both variants are the same students for {FIRST}" in claims[-1].caveat
    assert "same students" in claim_from(asdict(claims[0])).verdict


def test_nothing_is_picked_from_an_unfinished_sweep():
    """Nor by the student that shows how good it is, as long as other seeds are to come."""
    rows = [row for row in _rows(SMALL, "table1") if row["variant"] != "0.1"]
    assert _claim(_results("table1", rows=rows), "best intermediate", FIRST).verdict == "not run yet"
    assert "(epoch 24, the best of 8; 1 missing)" in _results("table1", rows=rows).tables[0].rows[0][-1]
    claims = [claim for claim in _results("figure2", rows=rows).claims if claim.where == FIRST]
    assert [claim.verdict for claim in claims] == ["not run yet"] * 3
    rows = [row for row in _rows(SMALL, "table1") if row.get("seed", 0) == 0]
    assert _claim(_results("table1", rows=rows), "best intermediate", FIRST).n == 0
    claim = _claim(_results("table1", replace(SMALL, seeds=1), rows), "best intermediate", FIRST)
    assert claim.n == 1
    assert "picked by the same students" in claim.caveat


def test_a_variant_is_picked_by_the_other_seeds():
    """Each seed is lucky with another variant. Picked by its own luck, each would gain 5 points of nothing."""
    accuracies = dict.fromkeys(SWEPT, (1.0, 1.0)) | {"0.3": (25.0, 20.0), "0.7": (20.0, 25.0), "last": (20.0, 20.0)}
    common = {"kind": "network", "pair": FIRST, "teachers": [["", 0, 30]], "run": "x"}
    rows = [
        {**common, "variant": variant, "seed": seed, "accuracy": accuracy, "val_accuracy": accuracy}
        for variant, by_seed in accuracies.items()
        for seed, accuracy in enumerate(by_seed)
    ]
    claim = _claim(_results("table1", rows=rows), "best intermediate", FIRST)
    assert (claim.n, claim.effect) == (2, 0.0)


def test_table_1_shows_the_best_by_validation_accuracy():
    (table,) = _results("table1").tables
    assert table.rows[0][1:] == [
        "52.00",
        "50.00",
        "10.10 ± 0.10",
        "19.10 ± 0.10",
        "17.60 ± 0.10",
        "20.60 ± 0.10 (epoch 24)",
    ]
    assert table.rows[1][-1] == "22.10 ± 0.10 (epoch 21)"


def test_a_seed_that_one_variant_lacks_is_not_paired():
    rows = [row for row in _rows(SMALL, "table2") if (row["variant"], row.get("seed")) != ("EN1", 1)]
    results = _results("table2", rows=rows)
    assert _claim(results, "Snapshot Ensembles (EN₃)", FIRST).n == 2
    assert _claim(results, "Snapshot Ensembles (EN₃)", AVERAGE).n == 2
    assert _claim(results, "Mixed ensembles (EN₂)", FIRST).effect == pytest.approx(1.5), "pairs of seeds, not means"


def test_the_paper_s_numbers_are_shown_below_ours():
    preset = paper()
    rows = [row for row in _rows(preset, "table3") if row["kind"] == "network"]
    results = _results("table3", preset, rows)
    table = results.tables[0]
    assert table.rows[1][1:] == ["70.38", "72.34", "72.76", "73.08", "72.68", "73.26"]
    averages = ["average of these pairs, paper", "67.38", "69.78", "70.76", "70.77", "70.46", "70.87"]
    assert table.rows[-1] == averages, "as the paper prints them"
    assert _claim(results, "T* teaches better than T last", AVERAGE).paper == pytest.approx(0.41)
    ensembles = _results("table2", preset, _rows(preset, "table2"))
    average = _claim(ensembles, "Snapshot Ensembles (EN₃)", AVERAGE)
    assert average.paper == pytest.approx((0.65 + 0.51 + 0.15 + 0.50) / 4, abs=0.006)
    effects = {name: _claim(_results("table1", preset), "itself more accurate", name).paper for name in CHOSEN}
    assert effects == {"wrn_40_2": 13.54, "resnet_110": 13.98}
    assert _claim(ensembles, "Full Ensembles are themselves more accurate than Snap", "wrn_40_2").paper == 3.15


def test_figure_2_shows_the_means_by_epoch():
    first, second = _results("figure2").figures
    assert isinstance(first, Chart)
    scratch, curve = first.series
    assert list(curve.x) == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert list(curve.y) == pytest.approx([ACCURACY[variant] + 0.1 for variant in SWEPT])
    assert list(scratch.y) == pytest.approx([10.1, 10.1])
    assert isinstance(second, Chart)
    assert list(second.series[1].x) == [9, 15, 21, 30]


def test_figure_3_counts_what_ensembles_cost():
    accuracy, cost = _results("figure3").figures
    assert isinstance(accuracy, Chart)
    assert isinstance(cost, Chart)
    assert [list(series.x) for series in cost.series] == [[1, 2, 4, 7, 10], [1, 2, 4]]
    epochs = [list(series.y) for series in cost.series]
    assert epochs == [[50] * 5, [50, 80, 140]], "each run's epochs once, and the student's"
    assert list(accuracy.series[0].y) == pytest.approx([31.1, 32.1, 34.1, 37.1, 40.1])


def test_distances_are_in_units_of_the_teacher_s_curve():
    """Eq. 5. The teacher goes from −0.10 to −0.20 and from 55 to 70%. Its midpoint student ends at −0.27 and 60%:
    |−0.10 + 0.27| / 0.1 + |55 − 60| / 15. Its last student: |−0.20 + 0.31| / 0.1 + |70 − 60| / 15."""
    (table,) = _results("figure4").tables
    distances = {row[0]: row[3] for row in table.rows}
    assert distances[f"{FIRST}: T midpoint"] == f"{1.7 + 5 / 15:.2f}"
    assert distances[f"{FIRST}: T last"] == f"{1.1 + 10 / 15:.2f}"


def test_ensembles_have_the_paper_s_members(smoke: Path):
    """Seed and epoch of each teacher, as the runs' records have them."""

    def members(name: str, variant: str) -> list[tuple[int, int]]:
        row = read_rows(smoke, name, kind="network", variant=variant, seed=1)[0]
        run = json.loads((smoke / "runs" / row["run"] / "run.json").read_text())
        teacher_runs = [Path(reference.partition("@")[0]) for reference in run["teacher_refs"]]
        seeds = [json.loads((folder / "run.json").read_text())["seed"] for folder in teacher_runs]
        return list(zip(seeds, [teacher["epoch"] for teacher in run["taught_by"]], strict=True))

    assert members("table2", "EN1") == [(0, 20), (1, 20)]
    assert members("table2", "EN2") == [(0, 10), (1, 20)]
    assert members("table2", "EN3") == [(0, 10), (0, 20)]
    assert members("figure3", "snapshot 4") == [(0, 4), (0, 10), (0, 14), (0, 20)]
    assert members("figure3", "ensemble 2") == [(0, 20), (1, 20)]
    assert members("table3", "0.3") == [(0, 6)]
    assert members("figure2", "midpoint") == [(0, 10)]


def test_heatmaps_show_what_correlate_found(smoke: Path):
    stored = read_experiment(smoke, "figure5")["figures"]
    assert [figure["kind"] for figure in stored] == ["heatmaps", "heatmaps"]
    (path,) = smoke.glob("correlated/*/correlated.json")
    correlation = json.loads(path.read_text())
    assert correlation["split"] == "test"
    for figure, kind in zip(stored, ("logits", "softened"), strict=True):
        maps = Heatmaps(**{name: value for name, value in figure.items() if name != "kind"}).maps
        assert maps[0][3] == pytest.approx(correlation[kind]["similarity"][0][3], abs=1e-4)
        assert maps[2][3] == pytest.approx(correlation[kind]["difference"][3], abs=1e-4)


def test_checkpoints_are_compared_image_by_image(smoke: Path):
    """The rows of Figure 4 against the plane: errors are those over images and over fits of the decoder."""
    gaps = {
        row["variant"]: row for row in read_rows(smoke, "figure4", kind="gap") if row["pair"].startswith("wrn_16_2")
    }
    (run,) = smoke.glob("runs/wrn_16_2-teacher-seed0-*")
    plane = load_plane(open_trajectory(run))
    information_ASN, correct_AN = plane.information_ASN, 100.0 * plane.images["correct"]
    best = correct_AN[:-1, 0::2].mean(1).argmax()
    midpoint = plane.epochs.index(10)
    by_hand = {
        "peak over first": _peak(information_ASN[1:], information_ASN[0], 1),
        "peak over last": _peak(information_ASN[:-1], information_ASN[-1]),
        "midpoint over last": (information_ASN[midpoint] - information_ASN[-1], [midpoint]),
        "accuracy, last over best earlier": ((correct_AN[-1] - correct_AN[best])[None, 1::2], [best]),
        "accuracy, last over midpoint": ((correct_AN[-1] - correct_AN[midpoint])[None], [midpoint]),
    }
    assert gaps.keys() == by_hand.keys()
    for variant, (gap_SN, picked) in by_hand.items():
        row = gaps[variant]
        fits, images = gap_SN.shape
        assert row["mean"] == pytest.approx(gap_SN.mean()), variant
        assert row["epochs"] == [plane.epochs[checkpoint] for checkpoint in picked], variant
        assert (row["n"], row["fits"]) == (images, fits)
        over_images, over_fits = gap_SN.mean(0).std(ddof=1) / images**0.5, 0.0
        if fits > 1:
            over_fits = gap_SN.mean(1).std(ddof=1) / fits**0.5
            assert row["degrees"] < images - 1
        assert row["error"] == pytest.approx((over_images**2 + over_fits**2) ** 0.5)
