"""What studies make of rows, by hand: rows with known numbers in, tables and claims out; and who teaches whom."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from checkpointkd.analysis.statistics import Claim, claim_from
from checkpointkd.experiments.figure4 import _peak
from checkpointkd.experiments.paper_numbers import CHOSEN
from checkpointkd.experiments.presets import Preset, paper, small
from checkpointkd.experiments.reproduce import _module
from checkpointkd.experiments.results import Results, Row, compared
from checkpointkd.experiments.tasks import DistillTask, EvaluateTask, ScoreTask, TrainTask
from checkpointkd.reports.charts import Chart, Heatmaps

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
    """Rows as the study's runs would leave them. Students of the second pair are a point better, of seed s by s / 10;
    the selection images see 0.7 of the training behind 0.8, the test images the other way round."""
    rows: list[Row] = []
    for part in _module(name).needs(preset):
        at = preset.pairs.index(part.pair)
        of = {"pair": part.pair.name, "arm": part.arm}
        if isinstance(part.work, TrainTask | DistillTask):
            accuracy = ACCURACY[part.arm] + at + part.work.seed / 10
            seen = accuracy + {"0.8": 2.0}.get(part.arm, 0.0)
            row = {
                "kind": "network",
                **of,
                "model": part.work.model,
                "seed": part.work.seed,
                "accuracy": accuracy,
                "val_accuracy": seen,
                "epochs": 20,
                "seconds": 100.0,
                "run": f"run-{part.arm}",
            }
            if isinstance(part.work, DistillTask):
                words = {"last": 30, "midpoint": 15, "best": 27}
                epochs = [words.get(one.which) or round(30 * float(one.which)) for one in part.work.teachers]
                cost = {"teachers_epochs": 30 * len({one.run for one in part.work.teachers}), "teachers_seconds": 50.0}
                row |= {
                    "teachers": [
                        [one.run.model, one.run.seed, epoch]
                        for one, epoch in zip(part.work.teachers, epochs, strict=True)
                    ],
                    **cost,
                }
            rows.append(row)
        elif isinstance(part.work, EvaluateTask):
            own = {"EN1": 60.0, "EN2": 57.0, "EN3": 55.0, "teacher, last": 52.0}.get(part.arm, 50.0)
            rows.append({"kind": "measured", **of, "accuracy": own, "accuracy_se": 0.3, "images": 10_000})
        elif isinstance(part.work, ScoreTask):
            run = part.work.run
            last = preset.teacher_epochs if part.arm == "teacher" else preset.student_epochs
            of |= {"model": run.model, "seed": run.seed, "epochs": last}
            for epoch in (last // 2, last):
                information = INFORMATION[part.arm] + (0.1 if epoch < last else 0.0)
                rows.append(
                    {
                        "kind": "point",
                        **of,
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
    return _module(name).results(preset, _rows(preset, name) if rows is None else rows)


def _claim(results: Results, text: str, where: str) -> Claim:
    (found,) = [one for one in results.claims if text in one.text and one.where == where]
    return found


FIRST, SECOND = (pair.name for pair in SMALL.pairs)
EFFECTS = [
    ("table1", "half-way teacher teaches better", FIRST, -1.5),
    ("table1", "half-way teacher teaches better", "all pairs on average", -1.5),
    ("table1", "best intermediate", FIRST, 1.5),  # 0.8 by the selection images: 20.5 − 19; 0.7 by the test images
    ("table1", "best intermediate", SECOND, 2.0),  # 0.8 is no part of that sweep
    ("figure2", "worst teacher is better than none", FIRST, -5.0),
    ("figure2", "worst teacher is better than none", SECOND, 2.0),
    ("figure2", "rises from the first", FIRST, 15.5),
    ("table2", "Snapshot Ensembles (EN₃) teach better", FIRST, 2.0),
    ("table2", "Mixed ensembles (EN₂) teach better", SECOND, 1.5),
    ("figure2", "The best intermediate teacher teaches", FIRST, 1.5),
    ("table1", "itself more accurate than the half-way one", "wrn_16_2", 2.0),
    ("table2", "Full Ensembles are themselves more accurate than Snapshot", "wrn_16_2", 5.0),
    ("table2", "Full Ensembles are themselves more accurate than mixed", "wrn_16_2", 3.0),
    ("table2", "Mixed ensembles are themselves more accurate", "resnet_20", 2.0),
    ("figure3", "Ensemble of 2 teaches better", FIRST, 4.0),
    ("figure3", "Ensemble of 4 teaches better", FIRST, 8.0),
    ("figure4", "Students of the full teacher keep less", FIRST, 0.01),
    ("figure4", "half-way teacher keep more of the image", SECOND, 0.04),
    ("figure6", "Label smoothing compresses", FIRST, 0.03),
    ("figure6", "keep more I(X;F) than label smoothing's", FIRST, 0.02),
    ("figure6", "§4.3: the half-way teacher teaches better", FIRST, -1.5),
    ("figure6", "§4.3: the full teacher teaches better", SECOND, 8.0),
    ("table3", "T* teaches better than T full", "all pairs on average", 3.5),
    ("table3", "T* teaches better than T at 0.3", "all pairs on average", 10.5),
    ("table3", "T at 0.7 teaches better than T full", "all pairs on average", 2.0),
]


@pytest.mark.parametrize(("name", "text", "where", "effect"), EFFECTS, ids=lambda value: str(value)[:30])
def test_claims_are_differences_of_the_right_arms(name: str, text: str, where: str, effect: float):
    found = _claim(_results(name), text, where)
    assert found.effect == pytest.approx(effect)
    assert found.n == (10_000 if found.units == "image" else 3)
    assert found.caveat or "smoothing compresses" in text


def test_images_gaps_become_claims():
    """The comparisons that are made image by image, from the rows that hold them."""
    rows = _rows(SMALL, "figure4")
    accuracies = ("accuracy, last over best earlier", "accuracy, full over half")
    arms = ("peak over first", "peak over last", accuracies[0], "half over full", accuracies[1])
    for number, arm in enumerate(arms):
        gap = {
            "mean": 1.0 + number,
            "error": 0.5,
            "degrees": 2.0 if number else 1e9,
            "n": 2500,
            "epochs": [9, 12],
            "against": 30,
        }
        rows.append({"kind": "gap", "pair": FIRST, "arm": arm, **gap})
    found = [one for one in _results("figure4", rows=rows).claims if one.where == FIRST and one.units == "image"]
    assert [one.effect for one in found] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [one.text[0] for one in found] == ["1", "1", "1", "3", "3"]
    assert found[0].half_width == pytest.approx(0.98, abs=1e-3)
    assert found[1].half_width == pytest.approx(0.5 * 4.3027, rel=1e-4), "Student's t of two degrees of freedom"
    assert ["epochs 9 or 12, picked" in one.caveat for one in found] == [True, True, True, False, False]


def test_the_one_teacher_s_error_counts_as_well():
    """Three students at −0.30 have no spread; the teacher's −0.20 has 0.01 by images and 0.02 / √4 by its fits."""
    found = _claim(_results("figure4"), "larger teacher keeps more", FIRST)
    assert (found.effect, found.n) == (pytest.approx(0.1), 3)
    error = (0.01**2 + 0.02**2 / 4) ** 0.5
    degrees = error**4 / ((0.02**2 / 4) ** 2 / 3)
    assert found.half_width == pytest.approx(error * t.ppf(0.975, degrees))


def test_a_peak_is_sought_by_other_fits_and_other_images():
    """Two fits find another checkpoint highest each, and by even images alone: the gap is of the fit that didn't."""
    among_ASN = np.zeros((2, 2, 4))
    among_ASN[0, 0], among_ASN[1, 1] = [5, 1, 5, 1], [5, 3, 5, 3]
    gap_SN, at = _peak(among_ASN, np.full((2, 4), -1.0), 1)
    assert at == [1, 2]
    assert gap_SN.tolist() == [[1, 1], [1, 1]], "each fit's own peak would be 2 and 4 above"
    gap_SN, at = _peak(among_ASN[:, :1], np.zeros((1, 4)))
    assert (at, gap_SN.tolist()) == ([0], [[1, 1]]), "a single fit"


def test_the_same_students_are_no_comparison():
    rows = [
        {**row, "run": "one"} if row["arm"] in ("best", "0.3") and row["pair"] == FIRST else row
        for row in _rows(SMALL, "table3")
        if row["kind"] == "network"
    ]
    claims = compared(SMALL, rows, "T* is better", "best", "0.3")
    assert [one.verdict for one in claims] == ["the same students", *["undecided at n = 3"] * 2]
    assert f"of {FIRST} both are the same students" in claims[-1].caveat
    assert claim_from(asdict(claims[0])).verdict == "the same students"


def test_nothing_is_picked_from_half_a_sweep():
    """Nor by the student that is measured, as long as there will be others."""
    rows = [row for row in _rows(SMALL, "table1") if row["arm"] != "0.1"]
    assert _claim(_results("table1", rows=rows), "best intermediate", FIRST).verdict == "not run yet"
    assert "(epoch 24, the best of 8; 1 missing)" in _results("table1", rows=rows).tables[0].rows[0][-1]
    assert [one.verdict for one in _results("figure2", rows=rows).claims if one.where == FIRST] == ["not run yet"] * 3
    rows = [row for row in _rows(SMALL, "table1") if row.get("seed", 0) == 0]
    assert _claim(_results("table1", rows=rows), "best intermediate", FIRST).n == 0
    single = replace(SMALL, seeds=1)
    one = _claim(_results("table1", single, rows), "best intermediate", FIRST)
    assert one.n == 1
    assert "picked by the same students" in one.caveat


def test_what_is_picked_is_picked_by_the_other_seeds():
    """Seed 0 has luck with one arm, seed 1 with another: each would pick its own lucky arm, and gain 5 points of
    nothing."""
    accuracies = dict.fromkeys(SWEPT, (1.0, 1.0)) | {"0.3": (25.0, 20.0), "0.7": (20.0, 25.0), "last": (20.0, 20.0)}
    of = {"kind": "network", "pair": FIRST, "teachers": [["", 0, 30]], "run": "x"}
    rows = [
        {**of, "arm": arm, "seed": seed, "accuracy": accuracy, "val_accuracy": accuracy}
        for arm, by_seed in accuracies.items()
        for seed, accuracy in enumerate(by_seed)
    ]
    found = _claim(_results("table1", rows=rows), "best intermediate", FIRST)
    assert (found.n, found.effect) == (2, 0.0)


def test_table_1_shows_the_best_by_the_selection_images():
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


def test_a_seed_that_one_arm_lacks_is_no_pair():
    rows = [row for row in _rows(SMALL, "table2") if (row["arm"], row.get("seed")) != ("EN1", 1)]
    results = _results("table2", rows=rows)
    assert _claim(results, "Snapshot Ensembles", FIRST).n == 2
    assert _claim(results, "Snapshot Ensembles", "all pairs on average").n == 2
    assert _claim(results, "Mixed", FIRST).effect == pytest.approx(1.5), "pairs of the same seed, not means"


def test_the_paper_s_numbers_stand_beside_ours():
    preset = paper()
    rows = [row for row in _rows(preset, "table3") if row["kind"] == "network"]
    results = _results("table3", preset, rows)
    table = results.tables[0]
    assert table.rows[1][1:] == ["70.38", "72.34", "72.76", "73.08", "72.68", "73.26"]
    average = ["average of these pairs, the paper", "67.38", "69.78", "70.76", "70.77", "70.46", "70.87"]
    assert table.rows[-1] == average, "as the paper prints them"
    assert _claim(results, "T* teaches better than T full", "all pairs on average").paper == pytest.approx(0.41)
    ensembles = _results("table2", preset, _rows(preset, "table2"))
    average = _claim(ensembles, "Snapshot Ensembles (EN₃)", "all pairs on average")
    assert average.paper == pytest.approx((0.65 + 0.51 + 0.15 + 0.50) / 4, abs=0.006)
    known = {name: _claim(_results("table1", preset), "itself more accurate", name).paper for name in CHOSEN}
    assert known == {"wrn_40_2": 13.54, "resnet_110": 13.98}
    assert _claim(ensembles, "Full Ensembles are themselves more accurate than Snap", "wrn_40_2").paper == 3.15


def test_figures_hold_the_means_by_epoch():
    (first, second) = _results("figure2").figures
    assert isinstance(first, Chart)
    alone, curve = first.series
    assert list(curve.x) == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert list(curve.y) == pytest.approx([ACCURACY[arm] + 0.1 for arm in SWEPT])
    assert list(alone.y) == pytest.approx([10.1, 10.1])
    assert isinstance(second, Chart)
    assert list(second.series[1].x) == [9, 15, 21, 30]


def test_figure_3_counts_what_ensembles_cost():
    accuracy, cost = _results("figure3").figures
    assert isinstance(accuracy, Chart)
    assert isinstance(cost, Chart)
    assert [list(one.x) for one in cost.series] == [[1, 2, 4, 7, 10], [1, 2, 4]]
    assert [list(one.y) for one in cost.series] == [[50] * 5, [50, 80, 140]], "a run's epochs once, and the student's"
    assert list(accuracy.series[0].y) == pytest.approx([31.1, 32.1, 34.1, 37.1, 40.1])


def test_eq_5_s_distance_is_in_units_of_the_teacher_s_curve():
    """The teacher goes from −0.10 to −0.20 and from 55 to 70%; its half-way student ends at −0.27 and 60%:
    |−0.10 + 0.27| / 0.1 + |55 − 60| / 15, the full one's |−0.20 + 0.31| / 0.1 + |70 − 60| / 15."""
    (table,) = _results("figure4").tables
    found = {row[0]: row[3] for row in table.rows}
    assert found[f"{FIRST}: T half-way"] == f"{1.7 + 5 / 15:.2f}"
    assert found[f"{FIRST}: T full"] == f"{1.1 + 10 / 15:.2f}"


def test_who_teaches_whom(smoke: Path):
    """The members of the paper's ensembles, as the runs' own manifests have them."""

    def taught(study: str, arm: str) -> list[tuple[int, int]]:
        rows = [json.loads(line) for line in (smoke / study / "rows.jsonl").read_text().splitlines()]
        row = next(one for one in rows if one["kind"] == "network" and one["arm"] == arm and one["seed"] == 1)
        run = json.loads((smoke / "runs" / row["run"] / "run.json").read_text())
        seeds = [
            json.loads((Path(one.partition("@")[0]) / "run.json").read_text())["seed"] for one in run["teacher_refs"]
        ]
        return list(zip(seeds, [one["epoch"] for one in run["teachers"]], strict=True))

    assert taught("table2", "EN1") == [(0, 20), (1, 20)]
    assert taught("table2", "EN2") == [(0, 10), (1, 20)]
    assert taught("table2", "EN3") == [(0, 10), (0, 20)]
    assert taught("figure3", "snapshot 4") == [(0, 4), (0, 10), (0, 14), (0, 20)]
    assert taught("figure3", "ensemble 2") == [(0, 20), (1, 20)]
    assert taught("table3", "0.3") == [(0, 6)]
    assert taught("figure2", "midpoint") == [(0, 10)]


def test_heatmaps_are_what_correlate_finds(smoke: Path):
    stored = json.loads((smoke / "figure5" / "experiment.json").read_text())["figures"]
    assert [figure["kind"] for figure in stored] == ["heatmaps", "heatmaps"]
    (path,) = smoke.glob("correlated/*/correlated.json")
    found = json.loads(path.read_text())
    assert found["split"] == "test"
    for figure, kind in zip(stored, ("logits", "softened"), strict=True):
        maps = Heatmaps(**{name: value for name, value in figure.items() if name != "kind"}).maps
        assert maps[0][3] == pytest.approx(found[kind]["similarity"][0][3], abs=1e-4)
        assert maps[2][3] == pytest.approx(found[kind]["difference"][3], abs=1e-4)


def test_checkpoints_are_compared_image_by_image(smoke: Path):
    """The rows of Figure 4 against the plane: errors are of images and of the decoder's fits."""
    from checkpointkd.checkpoints import open_trajectory
    from checkpointkd.information import load_plane

    rows = [json.loads(line) for line in (smoke / "figure4" / "rows.jsonl").read_text().splitlines()]
    gaps = {row["arm"]: row for row in rows if row["kind"] == "gap" and row["pair"].startswith("wrn_16_2")}
    (run,) = smoke.glob("runs/wrn_16_2-teacher-seed0-*")
    plane = load_plane(open_trajectory(run))
    assert plane is not None
    information_ASN, right_AN = plane.information_ASN, 100.0 * plane.images["correct"]
    later, earlier = _peak(information_ASN[1:], information_ASN[0], 1), _peak(information_ASN[:-1], information_ASN[-1])
    best = right_AN[:-1, 0::2].mean(1).argmax()
    half = plane.epochs.index(10)
    by_hand = {
        "peak over first": later,
        "peak over last": earlier,
        "half over full": (information_ASN[half] - information_ASN[-1], [half]),
        "accuracy, last over best earlier": ((right_AN[-1] - right_AN[best])[None, 1::2], [best]),
        "accuracy, full over half": ((right_AN[-1] - right_AN[half])[None], [half]),
    }
    assert gaps.keys() == by_hand.keys()
    for arm, (gap_SN, at) in by_hand.items():
        assert gaps[arm]["mean"] == pytest.approx(gap_SN.mean()), arm
        assert gaps[arm]["epochs"] == [plane.epochs[one] for one in at], arm
        assert (gaps[arm]["n"], gaps[arm]["fits"]) == (gap_SN.shape[1], gap_SN.shape[0])
        of_images, of_fits = gap_SN.mean(0).std(ddof=1) / gap_SN.shape[1] ** 0.5, 0.0
        if len(gap_SN) > 1:
            of_fits = gap_SN.mean(1).std(ddof=1) / len(gap_SN) ** 0.5
            assert gaps[arm]["degrees"] < gap_SN.shape[1] - 1
        assert gaps[arm]["error"] == pytest.approx((of_images**2 + of_fits**2) ** 0.5)
