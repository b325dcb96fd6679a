"""Rules: the same tests for all of them, and each compared with a computation by hand."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from checkpointkd.config import EstimatorConfig
from checkpointkd.errors import UserError
from checkpointkd.information import Plane
from checkpointkd.information.labels import nuclear_norm
from checkpointkd.records.base import DataRecord
from checkpointkd.records.selection import PlanePoint, PlaneSettings
from checkpointkd.selection import NEED_NO_SCORES, RULES, Candidates, choose, fall_of_accuracy

SETTINGS = PlaneSettings(
    estimator_config=EstimatorConfig(),
    feature_layer="pool:input",
    precision="fp32",
    data=DataRecord(
        name="digits",
        source=None,
        sha256="",
        select_on="val",
        val_fraction=None,
        split_seed=0,
        train_images=None,
        image_size=None,
        flip=False,
        shape=(1, 8, 8),
        train_size=100,
        val_size=400,
    ),
)


def _plane(excess: list[float], accuracy: list[float], epochs: list[int] | None = None, images: int = 400) -> Plane:
    epochs = epochs or [10 * (number + 1) for number in range(len(excess))]
    draw = np.random.default_rng(0)
    correct = (draw.random((len(accuracy), images)) < np.array(accuracy)[:, None]).astype(np.uint8)
    points = tuple(
        PlanePoint(
            epoch=epoch,
            sha256="",
            accuracy=a,
            accuracy_se=0.0,
            nll=1.0,
            label_information=0.0,
            temperature=1.0,
            image_information=-e,
            image_information_se=0.0,
            image_information_sd=0.0,
            details={},
            nuclear_norm=1 - e,
        )
        for epoch, e, a in zip(epochs, excess, accuracy, strict=True)
    )
    noise = draw.normal(0, 0.01, (1, 1, images))
    parts = {"correct": correct}
    for name in ("nll", "brier", "confidence", "conditional_mi", "wrong_variance"):
        parts[name] = draw.random(correct.shape)
    return Plane(points, SETTINGS, -np.array(excess)[:, None, None] + noise, parts)


RISE_AND_FALL = _plane([0.5, 0.2, 0.1, 0.2, 0.3], [0.2, 0.5, 0.6, 0.7, 0.8])


def _choose(rule: str, plane: Plane = RISE_AND_FALL, planned: int = 50):
    return choose(Candidates(plane.epochs, planned, plane), rule=rule)


def test_transition_by_hand():
    choice = _choose("transition", _plane([0.1] * 4, [0.1, 0.2, 0.5, 0.9], epochs=[2, 4, 6, 20]), planned=20)
    assert list(choice.scores.values()) == pytest.approx([0.0, 0.05, 0.15, 0.4 / 14])
    assert (choice.epoch, choice.reason) == (6, "the steepest rise of accuracy, 15.00% per epoch")


def test_nuclear_norm_is_largest_for_confident_and_varied_predictions():
    """Against the singular values of NumPy, in a plane, and without the measure."""
    logits_NK = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) * 3
    singular_values = np.linalg.svd(logits_NK.double().softmax(-1).numpy(), compute_uv=False)
    assert nuclear_norm(logits_NK) == pytest.approx(singular_values.sum() / np.sqrt(7 * 40), rel=1e-6)
    choice = _choose("nuclear-norm")
    assert (choice.epoch, choice.reason, choice.probability) == (30, "the largest nuclear norm, 0.900", None)
    old = _plane([0.1, 0.2], [0.5, 0.6])
    old = replace(old, points=tuple(msgspec.structs.replace(point, nuclear_norm=None) for point in old.points))
    with pytest.raises(UserError, match=r"Remove plane.json from the run, and run `checkpointkd score` again"):
        _choose("nuclear-norm", old)


def test_algorithm1_index_by_hand():
    """I(X;F) = −excess: 0, .75, 1, .75, .5; I(Y;F) = accuracy: 0, 1/2, 2/3, 5/6, 1."""
    choice = _choose("algorithm1")
    expected = [0.0, 0.75 + 1 / 2, 1 + 2 / 3, 0.75 + 5 / 6, 1.5]
    assert list(choice.scores.values()) == pytest.approx(expected)
    assert (choice.epoch, choice.runner_up) == (30, 40)
    assert choice.reason == "the largest sum, 1.667 = 1.000 for I(X;F) + 0.667 for I(Y;F)"
    assert choice.probability is not None
    assert sum(choice.probability.values()) == pytest.approx(1)
    assert max(choice.probability, key=choice.probability.__getitem__) == 30
    assert any("An under-trained teacher" in warning for warning in choice.warnings), "60% against 80%"


@pytest.mark.parametrize(("rule", "epoch"), [("last", 50), ("midpoint", 20), ("best-accuracy", 50), ("algorithm1", 30)])
def test_each_rule_chooses_as_expected(rule: str, epoch: int):
    assert _choose(rule).epoch == epoch


PARTS = [
    ("lowest-nll", "nll", [3.0, 1.0, 2.0]),
    ("lowest-brier", "brier", [0.9, 0.2, 0.5]),
    ("mcmi", "conditional_mi", [0.1, 0.9, 0.5]),
    ("wrong-class-variance", "wrong_variance", [0.1, 0.3, 0.2]),
]


@pytest.mark.parametrize(("rule", "part", "means"), PARTS)
def test_rules_use_the_mean_of_their_measure(rule: str, part: str, means: list[float]):
    plane = _plane([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    plane.images[part][:] = np.array(means)[:, None] + np.random.default_rng(1).normal(
        0, 0.01, plane.images[part].shape
    )
    choice = _choose(rule, plane, planned=30)
    assert choice.epoch == 20
    assert choice.probability is not None
    assert choice.probability[20] > 0.99


def test_calibration_error_by_hand():
    """One checkpoint is calibrated. The other's accuracy does not depend on its confidence."""
    plane = _plane([0.1, 0.2], [0.5, 0.5], images=300)
    plane.images["confidence"][:] = np.linspace(0.5, 1.0, 300)
    plane.images["correct"][0] = np.random.default_rng(0).random(300) < np.linspace(0.5, 1.0, 300)
    plane.images["correct"][1] = np.arange(300) < 150
    choice = _choose("lowest-calibration-error", plane, planned=20)
    assert choice.epoch == 10
    confidence = np.linspace(0.5, 1.0, 300)
    bins = [np.arange(300)[20 * number : 20 * number + 20] for number in range(15)]
    expected = np.mean([abs(confidence[rows].mean() - (rows < 150).mean()) for rows in bins])
    assert -choice.scores[20] == pytest.approx(expected)


def test_probability_includes_the_fits_of_the_estimator():
    plane = _plane([0.1, 0.1001], [0.5, 0.5])
    plane.images["correct"][1] = plane.images["correct"][0]
    equal_fits = np.repeat(plane.information_ASN, 4, axis=1)
    different_fits = equal_fits.copy()
    different_fits[0, :2] += 0.5
    different_fits[0, 2:] -= 0.5
    sure, unsure = (
        _choose("algorithm1", Plane(plane.points, SETTINGS, information, plane.images), planned=20).probability
        for information in (equal_fits, different_fits)
    )
    assert sure is not None
    assert unsure is not None
    assert max(sure.values()) == 1
    assert 0.1 < unsure[10] < 0.9


def test_midpoint_is_the_nearest_epoch_and_of_two_the_earlier():
    assert _choose("midpoint", planned=50).epoch == 20
    assert _choose("midpoint", planned=60).epoch == 30


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_passes_its_check(rule: str):
    choice = _choose(rule)
    assert choice.rule == rule
    assert list(choice.scores) == RISE_AND_FALL.epochs
    assert choice.scores[choice.epoch] == max(choice.scores.values())
    assert choice.runner_up != choice.epoch
    assert choice.reason
    single = _choose(rule, _plane([0.3], [0.5]), planned=10)
    assert (single.epoch, single.runner_up) == (10, None)
    assert any("only one checkpoint" in warning for warning in single.warnings)
    with pytest.raises(UserError, match="The run has no checkpoint to choose from"):
        choose(Candidates([], 10, None), rule=rule)
    if rule in NEED_NO_SCORES:
        assert choose(Candidates([10, 20], 20, None), rule=rule).epoch in (10, 20)
    else:
        with pytest.raises(UserError, match="needs scored checkpoints"):
            choose(Candidates([10, 20], 20, None), rule=rule)
        with pytest.raises(UserError, match="The scores of epoch 20 are NaN or infinite"):
            _choose(rule, _plane([0.3, float("nan")], [0.5, 0.6]))


def test_earlier_of_equal_scores_is_chosen_with_a_warning():
    choice = _choose("algorithm1", _plane([0.1, 0.2], [0.4, 0.5]), planned=20)
    assert choice.epoch == 10
    assert _choose("best-accuracy", _plane([0.1] * 40, [0.4] * 20 + [0.5] * 20), planned=400).epoch == 210
    assert any("epochs 10 and 20 have the same score; the earlier is chosen" in warning for warning in choice.warnings)


@pytest.mark.parametrize(
    ("excess", "accuracy", "name"), [([0.2, 0.2], [0.4, 0.5], "I(X;F)"), ([0.2, 0.1], [0.5, 0.5], "I(Y;F)")]
)
def test_constant_scores_are_warned_about(excess: list[float], accuracy: list[float], name: str):
    choice = _choose("algorithm1", _plane(excess, accuracy), planned=20)
    assert choice.epoch == 20
    assert any(warning.startswith(f"{name} is the same at every checkpoint") for warning in choice.warnings)


def test_bootstrap_is_uncertain_if_checkpoints_are_alike():
    sure = _choose("best-accuracy", _plane([0.1, 0.1], [0.3, 0.9])).probability
    unsure = _choose("best-accuracy", _plane([0.1, 0.1], [0.5, 0.5], images=100)).probability
    assert sure is not None
    assert unsure is not None
    assert sure[20] == 1
    assert 0 < unsure[20] < 1


def test_uncertain_choice_names_its_rival():
    sure = _choose("best-accuracy", _plane([0.1, 0.1], [0.3, 0.9]))
    assert not sure.warnings
    unsure = _choose("best-accuracy", _plane([0.1] * 3, [0.5, 0.3, 0.51], images=100))
    assert unsure.probability is not None
    shares = [f"{100 * unsure.probability[epoch]:.0f}%" for epoch in (30, 10)]
    assert unsure.warnings == (
        f"The choice is uncertain: epoch 30 is chosen in {shares[0]} of 1,000 resamples of the images, epoch 10 in "
        f"{shares[1]}. To compare candidates with pilot runs, use `select --student`",
    )


def test_last_needs_a_finished_run():
    with pytest.raises(UserError, match=r"stopped at epoch 50 of 60\. Run its command again"):
        _choose("last", planned=60)


def test_unknown_rule_suggests_the_nearest():
    with pytest.raises(UserError, match=r"Unknown rule 'algoritm1'. Did you mean 'algorithm1'"):
        _choose("algoritm1")


def test_a_last_checkpoint_that_is_clearly_less_accurate_is_pointed_out():
    """Both are right for 60 images and wrong for 20. The earlier one alone is right for 16, the last for 3 or 4."""
    for last_alone, clear in ((3, True), (4, False)):  # differences of 13 and 12 images; standard errors 4.1 and 4.3
        both = [1] * 60 + [0] * 20
        correct = np.array([both + [1] * 16 + [0] * last_alone, both + [0] * 16 + [1] * last_alone], dtype=np.uint8)
        plane = _plane([0.2, 0.1], list(correct.mean(1)))
        text = fall_of_accuracy(replace(plane, images={**plane.images, "correct": correct}))
        assert (text is not None) == clear
    falls = fall_of_accuracy(_plane([0.5, 0.2, 0.1], [0.4, 0.7, 0.5]))
    assert falls is not None
    assert "falls from 70.0% at epoch 20 to 50.0% at the last checkpoint, epoch 30. So the last checkpoint is" in falls
    assert fall_of_accuracy(RISE_AND_FALL) is None, "the accuracy rises"
