"""Which features meet, and the errors for features that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data
from checkpointkd.distill_config import DistillConfig
from checkpointkd.errors import UserError
from checkpointkd.losses import METHODS
from checkpointkd.losses.matching import match_features
from checkpointkd.models import build_network, last_map_path, stage_paths, vector_path


@pytest.mark.slow
def test_stages_of_equal_size_meet(cifar100: Path):
    """WRN's stages are 32, 16 and 8 wide, MobileNetV2's 16, 8, 4 and 2."""
    images = load_data(DataConfig(data=f"cifar100:{cifar100}", train_images=200)).train
    wrn, mobilenet = (
        build_network(model, num_classes=100, in_channels=3, mean=[0.5] * 3, std=[0.5] * 3)
        for model in ("wrn_10_1", "mobilenetv2_0.75")
    )

    def pairs(method: str) -> tuple[list[str], list[str]]:
        kind = METHODS[method].feature_kind
        spec = match_features(kind, mobilenet, wrn, images, DistillConfig(), teacher_name="wrn")
        return list(spec.student), list(spec.teacher)

    assert pairs("at") == (["blocks.2", "blocks.5"], ["stage2", "relu"])
    assert pairs("fitnets") == (["blocks.5"], ["relu"])
    assert pairs("crd") == (["classifier:input"], ["classifier:input"])


def two_stages(*, num_classes: int, in_channels: int) -> nn.Module:
    """Its stages are 6 and 3 wide for 8×8 images."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)]
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Conv2d(4, 4, 3, 2, 1), *head)


def test_the_last_stages_meet_where_no_sizes_are_equal():
    """WRN's stages are 8, 4 and 2 wide."""
    images = load_data(DataConfig(data="digits", train_images=60)).train
    student, teacher = (
        build_network(model, num_classes=10, in_channels=1, mean=[0.3], std=[0.3])
        for model in ("tests.losses.test_matching:two_stages", "wrn_10_1")
    )
    spec = match_features("stages", student, teacher, images, DistillConfig(), teacher_name="wrn")
    assert spec.student == {"0": (4, 6, 6), "1": (4, 3, 3)}
    assert spec.teacher == {"stage2": (32, 4, 4), "relu": (64, 2, 2)}


class OddFeatures(nn.Module):
    """A network with modules whose outputs are not features of the images."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.windows, self.shared, self.integers = nn.Identity(), nn.Identity(), nn.Identity()
        self.eval_only, self.no_gradient = nn.Identity(), nn.Identity()
        self.net = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(8, num_classes)
        self.bias = nn.Parameter(torch.zeros(1, 8))

    def forward(self, images: Tensor) -> Tensor:
        self.windows(images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(0, 0).repeat(4, 1, 1, 1, 1, 1)[:, 0, 0, 0][:, None])
        self.integers((images > 0.5).long())
        if not self.training:
            self.eval_only(images)
        self.no_gradient(images)
        return self.classifier(self.net(images) + self.shared(self.bias))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["windows"], r"shape \(8, 1, 4, 4\) and type float32 are not one map or vector for each of 2 images"),
        (["shared"], r"Features of the student: Features of shape \(1, 8\) and type float32 are not one map"),
        (["integers"], "int64 are not one map"),
        (["eval_only"], "The student does not call 'eval_only' in training"),
        (["no_gradient"], "The student's 'no_gradient' has no gradient"),
        (["net", "net"], r"A module is named twice \(net, net\)"),
    ],
)
def test_outputs_that_are_not_features_are_refused(
    teacher_run: Path, tmp_path: Path, features: list[str], message: str
):
    with pytest.raises(UserError, match=message):
        ckd.distill(
            "tests.losses.test_matching:OddFeatures",
            teachers=[str(teacher_run)],
            method="sp",
            student_features=features,
            teacher_features=["stage1"],
            epochs=1,
            out=tmp_path / "s",
        )


def test_attention_transfer_refuses_a_single_position(teacher_run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="at compares attention maps, but the feature 'pool' has only one position"):
        ckd.distill(
            "wrn_10_1",
            teachers=[str(teacher_run)],
            method="at",
            student_features=["pool"],
            teacher_features=["pool"],
            epochs=1,
            out=tmp_path / "s",
        )


def test_a_network_without_maps_is_told_which_options_name_features(teacher_run: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "flat.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels): return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    message = r"Features of the student: The model has no map.*--student-features and --teacher-features"
    for method in ("sp", "fitnets"):
        with pytest.raises(UserError, match=message):
            ckd.distill("flat:net", teachers=[str(teacher_run)], method=method, epochs=1, out=tmp_path / "s")


def test_default_features_are_found_on_the_networks_device():
    """The images come from CPU memory; the network may be elsewhere."""
    network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.3]).to("meta")
    assert stage_paths(network.body, torch.rand(2, 1, 8, 8)) == ["stage1", "stage2", "relu"]
    assert vector_path(network.body, torch.rand(2, 1, 8, 8)) == "classifier:input"
    assert last_map_path(network.body, torch.rand(2, 1, 8, 8)) == "pool:input"
