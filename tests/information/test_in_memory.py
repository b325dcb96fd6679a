"""`ckd.plane`: networks in memory on the information plane; and estimators and rules of the user's own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import checkpointkd as ckd
from checkpointkd.data import config_of, load_data
from checkpointkd.errors import UserError
from checkpointkd.information import ridge_information
from checkpointkd.selection import Candidates


@pytest.fixture
def networks(teacher_run: Path) -> tuple[dict[int, nn.Module], Any]:
    run = ckd.open_trajectory(teacher_run)
    data = load_data(config_of(run.run.data))
    return {epoch: run[epoch].network() for epoch in run}, data


def _loader(images: Any, mean: float = 0.0, std: float = 1.0, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset((images.to_float() - mean) / std, images.labels_N), batch_size=64, **options)


def test_networks_in_memory_score_as_their_checkpoints(networks: Any, teacher_run: Path):
    """The networks of a run, with the images of `score`: the same points, and the same choices."""
    models, data = networks
    stored = ckd.score(teacher_run, estimator="ridge", fit_images=100, measure_images=300)
    body = {epoch: model.body for epoch, model in models.items()}
    mean, std = (getattr(models[1], name).item() for name in ("mean", "std"))
    plane = ckd.plane(
        body,
        _loader(data.val, mean, std),
        fit_loader=_loader(data.train, mean, std),
        normalized=([mean], [std]),
        estimator="ridge",
    )
    assert plane.epochs == [1, 2, 3, 4]
    for mine, theirs in zip(plane.points, stored.points, strict=True):
        assert mine.accuracy == theirs.accuracy
        assert mine.nll == pytest.approx(theirs.nll, rel=1e-4)
        assert mine.image_information == pytest.approx(theirs.image_information, rel=1e-2)
    for rule in ("algorithm1", "lowest-nll"):
        assert ckd.select(plane, rule=rule).epoch == ckd.select(teacher_run, rule=rule, estimator="ridge").epoch


def test_a_shuffling_loader_and_a_list_of_networks(networks: Any):
    models, data = networks
    torch.manual_seed(0)
    plane = ckd.plane([models[1], models[4]], _loader(data.val, shuffle=True), steps=2, seeds=1)
    assert plane.epochs == [1, 2]
    assert len(plane.images["correct"][0]) == 150, "the other half fits the decoder"
    assert plane.points[0].accuracy < plane.points[1].accuracy


def test_bad_networks_and_loaders_are_refused(networks: Any):
    models, data = networks
    seven = nn.Sequential(nn.Conv2d(1, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    cases = [
        ([models[1]], _loader(data.val, 0.5, 0.1), r"not in \[0, 1\]. Give normalized="),
        ([models[1], seven], _loader(data.val), "The networks differ in their number of classes: 10, 7"),
        ([seven], _loader(data.val), "The label 9 is not among the 7 classes"),
        ([models[1]], [torch.zeros(2, 1, 8, 8)], r"loader must yield \(images, labels\), two tensors, not Tensor"),
        ([models[1]], [], "loader yields no images"),
        ([], _loader(data.val), "needs at least one network"),
        ([nn.Identity()], _loader(data.val), r"The network of epoch 1 returns \(2, 1, 8, 8\), not logits"),
    ]
    for models_, loader, message in cases:
        with pytest.raises(UserError, match=message):
            ckd.plane(models_, loader, steps=2, seeds=1)


def twice_ridge(
    fitted_on: Any, fitted: Any, measured_on: Any, measured: Any, *, settings: Any, on_step: Any, device: Any
) -> Any:
    """An estimator of one's own: ridge's, in other units."""
    values, details = ridge_information(
        fitted_on, fitted, measured_on, measured, settings=settings, on_step=on_step, device=device
    )
    return 2 * values, details


def wrong_shape(
    fitted_on: Any, fitted: Any, measured_on: Any, measured: Any, *, settings: Any, on_step: Any, device: Any
) -> Any:
    return torch.zeros(3), {}


def most_confident(candidates: Candidates) -> Any:
    """A rule of one's own: the checkpoint with the highest mean confidence."""
    return candidates.scored.images["confidence"].mean(1)


def second(candidates: Candidates) -> Any:
    return np.array([epoch == 2 for epoch in candidates.epochs])


second.needs_scores = False  # type: ignore[attr-defined]


def test_estimators_of_ones_own(teacher_run: Path):
    ridge = ckd.score(teacher_run, estimator="ridge", fit_images=100)
    name = f"{__name__}:twice_ridge"
    for estimator in (name, twice_ridge):
        own = ckd.score(teacher_run, estimator=estimator, fit_images=100)
        assert own.settings.estimator == name
        for mine, theirs in zip(own.points, ridge.points, strict=True):
            assert mine.image_information == pytest.approx(2 * theirs.image_information)
    assert ckd.select(teacher_run, estimator=twice_ridge).epoch == ckd.select(teacher_run, estimator="ridge").epoch
    assert ckd.report(teacher_run.parent, out=teacher_run.parent / "report.html").exists()
    with pytest.raises(UserError, match=r"returned values of shape \(3,\). It must return one value for each"):
        ckd.score(teacher_run, estimator=wrong_shape, fit_images=100)
    with pytest.raises(UserError, match=r"Unknown estimator 'rigde'\. Did you mean 'ridge'"):
        ckd.score(teacher_run, estimator="rigde")
    with pytest.raises(UserError, match="Estimator 'nowhere_at_all:x' cannot be imported"):
        ckd.score(teacher_run, estimator="nowhere_at_all:x", fit_images=100)


def test_rules_of_ones_own(teacher_run: Path):
    assert ckd.select(teacher_run, rule=second).epoch == 2
    with pytest.raises(UserError, match="have not been scored"):
        ckd.select(teacher_run, rule=most_confident)
    plane = ckd.score(teacher_run, decoder_steps=2, decoder_seeds=1)
    choice = ckd.select(teacher_run, rule=f"{__name__}:most_confident")
    assert choice.rule == f"{__name__}:most_confident"
    assert choice.epoch == plane.epochs[plane.images["confidence"].mean(1).argmax()]
    assert ckd.open_trajectory(teacher_run).selection().epochs == (choice.epoch,)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="must return a Choice, or one finite number for each of the 4 checkpoints"):
        ckd.select(teacher_run, rule=ckd.named(lambda candidates: "best", "words"))
    with pytest.raises(UserError, match=r"Unknown rule 'lastt'\. Did you mean 'last'"):
        ckd.select(teacher_run, rule="lastt")


IMAGES, LABELS = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10


def _small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))


def _batches(images: torch.Tensor = IMAGES, labels: torch.Tensor = LABELS, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(images, labels), batch_size=20, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalized": ((0.5, 0.5), (0.2, 0.2))}, "normalized has 2 values of mean and std, but the images have 1"),
        ({"fit_loader": _batches(IMAGES[..., 1:])}, r"fit_loader have the shape \(1, 8, 7\), of loader \(1, 8, 8\)"),
        ({"device": "gpu"}, "The device 'gpu' cannot be used"),
    ],
)
def test_plane_refuses_wrong_options(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        ckd.plane([_small()], _batches(), estimator="ridge", **options)


def test_plane_leaves_networks_in_their_mode():
    """A loop that measures its network goes on training it."""
    network = _small().train()
    network[0].eval()
    ckd.plane([network], _batches(), estimator="ridge")
    assert [module.training for module in network.modules()] == [True, False, True, True]


@pytest.mark.parametrize(
    ("models", "loader", "message"),
    [
        (["wrn_10_1"], _batches(), "The network of epoch 1 must be a torch.nn.Module, not str"),
        (
            [_small()],
            _batches(labels=LABELS.float()),
            r"must yield one whole number per image .*, not \(20,\) of float32",
        ),
        ([_small()], _batches(labels=torch.eye(10)[LABELS]), r"not \(20, 10\) of float32"),
        ([_small()], _batches(labels=-LABELS), "The label -1 is not among the 10 classes"),
        ([_small()], _batches(IMAGES[:1], LABELS[:1]), "loader yields 1 image. Give at least 2, or a fit_loader"),
        ([_small()], [(IMAGES, LABELS), (IMAGES[:, :, 1:], LABELS)], r"unequal size: \(1, 8, 8\) and \(1, 7, 8\)"),
        (
            [nn.Sequential(nn.Flatten(), nn.Linear(9, 10))],
            _batches(),
            r"The network of epoch 1 fails on images of shape",
        ),
    ],
)
def test_plane_refuses_what_it_cannot_measure(models: Any, loader: Any, message: str):
    with pytest.raises(UserError, match=message):
        ckd.plane(models, loader, estimator="ridge")


@pytest.mark.parametrize("shuffle", [False, True])
def test_plane_warns_of_a_loader_that_shuffles(shuffle: bool, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "checkpointkd"):
        ckd.plane([_small()], _batches(shuffle=shuffle), estimator="ridge")
    assert (["shuffle=False" in record.getMessage() for record in caplog.records] == [True]) == shuffle
