"""Which students form a variant, what it is called, and how two variants compare."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpointkd as ckd
from checkpointkd.config import DataConfig
from checkpointkd.data import load_data
from checkpointkd.records.runs import DistillRecord, TrainRecord
from checkpointkd.reports.build import conclusions
from checkpointkd.reports.collect import collect
from checkpointkd.reports.figures import students_charts
from checkpointkd.reports.variants import FAMILY, TEACHING, Variant, difference

BOTH = "epoch 2 (midpoint) and epoch 4 (last, chosen by rule best-accuracy)"


def test_variants_are_labeled_by_their_teachers(runs: Path):
    collected = collect(runs)
    assert [(variant.label, variant.n, variant.teachers) for variant in collected.variants] == [
        ("no teacher", 2, ()),
        ("epoch 2 (midpoint)", 2, (("teacher", 2),)),
        ("epoch 4 (last, chosen by rule best-accuracy)", 2, (("teacher", 4),)),
        (BOTH, 1, (("teacher", 2), ("teacher", 4))),
    ]
    scratch = collected.variants[0]
    for seed in (0, 1):
        result = ckd.open_trajectory(runs / f"scratch-{seed}").result()
        assert result is not None
        assert result.test is not None
        assert scratch.accuracy[seed] == 100 * result.test.accuracy
    assert scratch.mean == pytest.approx((scratch.accuracy[0] + scratch.accuracy[1]) / 2)
    assert scratch.sd == pytest.approx(abs(scratch.accuracy[0] - scratch.accuracy[1]) / math.sqrt(2))
    assert math.isnan(collected.variants[3].sd)
    assert collected.notes == []
    assert collected.provenance["runs"] == "8"
    assert collected.provenance["select on"] == "val"
    assert collected.provenance["images"] == "100 for training, 300 of the validation set"


@pytest.mark.parametrize(
    ("student", "alpha", "marked"), [("wrn_10_1", 0.5, [3]), ("wrn_10_1", 0.1, []), ("x", 0.5, [])]
)
def test_a_choice_by_pilot_runs_holds_for_its_student_and_alpha(
    runs: Path, student: str, alpha: float, marked: list[int]
):
    """The pilot search chose both checkpoints together: neither of the two alone is marked."""
    selection = {"rule": "pilot", "reason": "it was", "epochs": [2, 4], "student": student, "alpha": alpha}
    (runs / "teacher" / "selection.json").write_text(json.dumps(selection))
    variants = collect(runs).variants
    assert [number for number, variant in enumerate(variants) if variant.chosen] == marked
    assert [number for number, variant in enumerate(variants) if "chosen by pilot runs" in variant.label] == marked
    assert variants[3].label.startswith("epoch 2 (midpoint) and epoch 4 (last)")


def test_a_smoothed_student_has_the_uniform_teacher_and_is_no_baseline(runs: Path):
    for seed in (0, 1):
        ckd.train(
            "wrn_10_1",
            data="digits",
            train_images=100,
            out=runs / f"smoothed-{seed}",
            epochs=2,
            save_every=2,
            seed=seed,
            label_smoothing=0.1,
        )
    collected = collect(runs)
    (smoothed,) = [variant for variant in collected.variants if variant.smoothing]
    assert (smoothed.label, smoothed.n) == ("uniform teacher (label smoothing 0.1)", 2)
    baseline = collected.baseline(smoothed)
    assert baseline is not None
    assert baseline.label == "no teacher"
    assert any("uniform teacher" in sentence for sentence in conclusions(collected))


def _variant(*accuracies: float) -> Variant:
    return Variant("s", "a", (), dict(enumerate(accuracies)), family="")


def test_differences_are_paired_by_seed_with_students_t_intervals():
    """Gaps 1, 2 and 3 points: mean 2, standard deviation 1, t at 97.5% with 2 degrees of freedom 4.3027."""
    gap = difference(_variant(91, 93, 95), _variant(90, 91, 92))
    assert (gap.n, gap.mean) == (3, 2)
    assert gap.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert gap.text == "+2.00 ± 2.48 (95% CI includes 0)"
    assert difference(_variant(92, 94, 96.1), _variant(90, 92, 94)).text.endswith("(95% CI excludes 0)")
    assert difference(_variant(92), _variant(90)).text == "+2.00 (no CI with one seed)"
    assert difference(_variant(92), _variant()).text == "no common seed"


def test_equal_differences_have_no_interval():
    """Two seeds with the same gap say nothing about chance, as in a claim; nor do three equal students."""
    assert difference(_variant(91, 92), _variant(90, 91)).text == "+1.00 (no CI: equal differences)"
    assert difference(_variant(91, 92, 93), _variant(91, 92, 93)).text == "+0.00 (no CI: equal differences)"


def test_only_students_with_the_same_settings_are_compared(runs: Path):
    """A longer student and one with another alpha: each is a variant of its own, and has its own baseline or none."""
    ckd.train("wrn_10_1", data="digits", train_images=100, epochs=3, save_every=3, out=runs / "longer")
    teacher = [f"{runs / 'teacher'}@2"]
    ckd.distill("wrn_10_1", teachers=teacher, alpha=0.9, epochs=2, save_every=2, out=runs / "other-alpha")
    ckd.distill("wrn_10_1", teachers=teacher, epochs=4, save_every=4, out=runs / "without-baseline")
    collected = collect(runs)
    by_label = {variant.label: variant for variant in collected.variants}
    assert len(by_label) == len(collected.variants)
    baseline = collected.baseline(by_label["epoch 2 (midpoint); α 0.9, τ 5, 2 epochs"])
    assert baseline is not None
    assert baseline.label == "no teacher; 2 epochs"
    without = next(
        variant for label, variant in by_label.items() if label.startswith("epoch 2") and "4 epochs" in label
    )
    assert collected.baseline(without) is None
    assert any("no student was trained in the same way without a teacher" in text for text in conclusions(collected))
    assert any("no CI with one seed" in text for text in conclusions(collected))


def test_a_copied_run_counts_once(runs: Path):
    shutil.copytree(runs / "scratch-1", runs / "copied")
    collected = collect(runs)
    assert collected.variants[0].n == 2
    (note,) = collected.notes
    assert note.startswith("Counted once: ")


def test_runs_with_rounded_checkpoints_are_variants_of_their_own(runs: Path):
    """Their results are those of the rounded weights: such a run is no repetition of the run with the same seed."""
    for name, teachers in (("scratch-fp16", []), ("two-fp16", [f"{runs / 'teacher'}@2"])):
        common: dict[str, Any] = {"epochs": 2, "save_every": 2, "checkpoint_dtype": "float16", "out": runs / name}
        if teachers:
            ckd.distill("wrn_10_1", teachers=teachers, **common)
        else:
            ckd.train("wrn_10_1", data="digits", train_images=100, **common)
    collected = collect(runs)
    assert collected.notes == []
    by_label = {variant.label: variant for variant in collected.variants}
    assert len(by_label) == len(collected.variants) == 6
    rounded = by_label["epoch 2 (midpoint); float16 checkpoints"]
    assert (rounded.n, by_label["epoch 2 (midpoint); float32 checkpoints"].n) == (1, 2)
    assert collected.baseline(rounded) == by_label["no teacher; float16 checkpoints"]


def test_a_teacher_of_the_students_own_network_is_a_baseline(runs: Path):
    """Self-distillation: the run that taught is also the student without a teacher."""
    ckd.distill("wrn_10_1", teachers=[f"{runs / 'scratch-0'}"], epochs=2, save_every=2, out=runs / "self")
    assert next(variant for variant in collect(runs).variants if not variant.teachers).n == 2


def test_labels_show_methods_and_other_settings(teacher_run: Path):
    """Only plain KD is part of the curve over the teacher's epoch."""
    folder = teacher_run.parent
    settings: dict[str, dict[str, Any]] = {
        "plain": {},
        "dkd": {"method": "dkd"},
        "heavy": {"method": "dkd", "method_weight": 2.0},
        "logits": {"average": "logits", "teacher_weights": [0.25, 0.75], "ensemble": "snapshot:2"},
        "rco": {"teacher_schedule": "rco", "ensemble": "snapshot:2"},
        "batch": {"teacher_batch_norm": "batch"},
        "teacher-tau": {"teacher_tau": "auto"},
    }
    for name, options in settings.items():
        ckd.distill("wrn_10_1", teachers=[str(teacher_run)], out=folder / name, epochs=1, batch_size=50, **options)
    collected = collect(folder)
    labels = {variant.label for variant in collected.variants}
    last, both = "epoch 4 (last)", "epoch 2 (midpoint) and epoch 4 (last)"
    assert {
        last,
        f"{last}, teacher batch norm by batch",
        f"{both}, teacher schedule rco",
        f"{both}, teacher weights 0.25 : 0.75, mean of logits",
    } <= labels
    dkd = sorted(label for label in labels if label.startswith(f"{last}, method dkd"))
    assert dkd == [f"{last}, method dkd; default method weight", f"{last}, method dkd; method weight 2"]
    assert students_charts(collected) == [], "one epoch makes no curve"
    ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@2"], out=folder / "midpoint", epochs=1, batch_size=50)
    (chart,) = students_charts(collect(folder))
    curve = next(series for series in chart.series if series.name == "one checkpoint as teacher")
    assert curve.x == [2, 4]


def test_variants_with_the_same_label_get_the_settings_that_differ(teacher_run: Path):
    folder = teacher_run.parent
    ckd.train("wrn_10_1", data="digits", train_images=100, out=folder / "other", seed=3, epochs=1, batch_size=50)
    for name, teachers in (("a", ["teacher@4"]), ("b", ["other@1"]), ("c", ["teacher@4", "other@1"])):
        refs = [str(folder / ref) for ref in teachers]
        ckd.distill("wrn_10_1", teachers=refs, out=folder / name, allow_weak_teacher=True, epochs=1, batch_size=50)
    labels = {variant.label for variant in collect(folder).variants if variant.teachers}
    assert labels == {
        "epoch 4 (last); from teacher",
        "epoch 1 (last, midpoint); from other",
        "epoch 4 (last) and epoch 1 (last, midpoint); from teacher, other",
    }


def test_each_setting_of_a_run_tells_variants_apart():
    """Add a new field of the records to FAMILY or TEACHING, or here if the field does not change the student."""
    fields = {*TrainRecord.__struct_fields__, *DistillRecord.__struct_fields__}
    without_effect = {"format", "provenance", "device", "save_every", "best_of_last_ten", "teacher_refs", "init"}
    follows_from_others = {
        "classes",
        "mean",
        "std",
        "taught_by",
        "teachers_measured",
        "teachers_cost",
        "teacher_scales",
        "fitted_weights",
    }
    assert fields - {*FAMILY, *TEACHING} == {"seed", *without_effect, *follows_from_others}


def test_runs_that_differ_in_a_setting_of_the_recipe_or_in_averaging_are_told_apart(tmp_path: Path):
    settings: dict[str, Any] = {"data": "digits", "train_images": 60, "epochs": 2, "save_every": 2}
    teacher = ckd.train("wrn_10_1", out=tmp_path / "teacher", **settings)
    taught = {**settings, "teachers": [f"{teacher.path}@last"], "allow_weak_teacher": True}
    for name, options in {
        "plain": {},
        "views": {"views": 2},
        "smoothed": {"label_smoothing": 0.1},
        "averaged": {"ema": 0.5},
        "top": {"top_k": 3},
    }.items():
        ckd.distill("resnet_8", out=tmp_path / name, **taught, **options)
    collected = collect(tmp_path)
    labels = {variant.label for variant in collected.variants if variant.student == "resnet_8"}
    assert len(labels) == 6
    assert any("label smoothing 0.1" in label for label in labels)
    assert any("the 3 largest logits" in label for label in labels)
    assert any("views 2" in label for label in labels)
    assert any("moving average of the weights" in label for label in labels)
    assert not any("Counted once" in note for note in collected.notes)


def test_runs_that_differ_in_the_loss_or_in_labels_are_told_apart(tmp_path: Path):
    settings: dict[str, Any] = {"data": "digits", "train_images": 60, "epochs": 1, "precision": "fp32"}
    labels = load_data(DataConfig(data="digits", select_on="test")).train.labels_N.numpy()
    np.save(tmp_path / "noisy.npy", np.roll(labels, 1))
    teacher = ckd.train("wrn_10_1", out=tmp_path / "clean", **settings)
    ckd.train("wrn_10_1", out=tmp_path / "squared", loss="squared-error", **settings)
    ckd.train("wrn_10_1", out=tmp_path / "noisy", train_labels=tmp_path / "noisy.npy", **settings)
    ckd.distill("wrn_10_1", out=tmp_path / "s", teachers=[f"{teacher.path}@1"], allow_weak_teacher=True, **settings)
    collected = collect(tmp_path)
    variants = {variant.label.removesuffix("; 60 images of digits"): variant for variant in collected.variants}
    assert {label for label in variants if label.startswith("no teacher")} == {
        "no teacher",
        "no teacher, loss squared-error",
        "no teacher; 60 images of digits, labels of noisy.npy",
    }
    baseline = collected.baseline(variants["no teacher, loss squared-error"])
    assert baseline is variants["no teacher"], "the squared error is no baseline"
    assert not any("Counted once" in note for note in collected.notes)
    frame = ckd.results(tmp_path).set_index("run")
    assert frame["loss"].dropna().to_dict() == {
        "clean": "cross-entropy",
        "squared": "squared-error",
        "noisy": "cross-entropy",
    }
    assert frame.loc["noisy", "train_labels"] == str(tmp_path / "noisy.npy")
    note = "Some runs train on the labels of noisy.npy (`--train-labels`), not on those of the data set."
    assert note in collect(tmp_path).notes
