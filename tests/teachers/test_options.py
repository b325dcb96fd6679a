"""Options of distillation: those that are refused, and what the others change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data
from checkpointkd.distill_config import DistillConfig, KDConfig
from checkpointkd.errors import UserError
from checkpointkd.losses import METHODS, LogitDistillation, distillation
from checkpointkd.models import build_network
from checkpointkd.teachers.ensemble import open_teacher

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 25, "precision": "fp32"}


@pytest.fixture(scope="session")
def wide_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "teacher"
    ckd.train("wrn_10_2", data="digits", train_images=100, epochs=4, batch_size=10, learning_rate=0.03, out=path)
    return path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_weights": (0.5, 0.6)}, r"lie in \[0, 1\] and sum to 1, not 0\.5 0\.6"),
        ({"teacher_weights": (1.5, -0.5)}, r"not 1\.5 -0\.5"),
        ({"teacher_weights": (float("nan"), 1.0)}, "not nan 1"),
        (
            {"teacher_weights": (0.5, 0.5), "teacher_schedule": "rco"},
            "--teacher-weights cannot be combined with --teacher-schedule",
        ),
        ({"method_weight": -1.0}, "at least 0, not -1"),
        ({"method_weight": float("inf")}, "at least 0, not inf"),
        ({"teacher_schedule": "rko"}, "Unknown teacher.schedule 'rko'. Did you mean 'rco'"),
        ({"teacher_tau": "best"}, "Unknown teacher tau 'best'"),
        ({"teacher_batch_norm": "train"}, "Unknown teacher batch norm 'train'"),
        ({"student_features": ()}, "--teacher-features and --student-features need"),
    ],
)
def test_invalid_distillation_settings_are_user_errors(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        DistillConfig(**settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_schedule": "rco"}, "--teacher-schedule rco needs several teachers, but only one is given"),
        (
            {"teacher_schedule": "rco", "ensemble": "all", "average": "logits"},
            "--average does not apply to --teacher-schedule rco",
        ),
        ({"method": "at", "channel_adapter": True}, "--channel-adapter does not apply to at, only to fsp"),
        ({"method": "at", "tau": 3.0}, "--tau has no effect on at at alpha 1"),
        ({"logit_cache_gb": float("inf")}, "--logit-cache-gb must be from 0 to 10⁹, not inf"),
    ],
)
def test_options_without_effect_are_refused(teacher_run: Path, tmp_path: Path, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        ckd.distill("wrn_10_1", teachers=[str(teacher_run)], out=tmp_path / "s", **SHORT, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "fitnets", "teacher_features": ["stage9"]},
            r"of the teacher .*: The model has no module 'stage9'. Did you mean 'stage3'.*Its modules: conv1, stage1",
        ),
        (
            {"method": "fitnets", "student_features": ["stage1", "stage2"]},
            r"has 2 \(stage1, stage2\) and the teacher .* has 3 \(stage1, stage2, relu\)\. Name the same number",
        ),
        (
            {"method": "crd", "student_features": ["stage1", "stage2"], "teacher_features": ["stage1", "stage2"]},
            r"crd takes 1 feature, not 2 \(stage1, stage2\)",
        ),
        (
            {"method": "fsp", "student_features": ["stage1"], "teacher_features": ["stage1"]},
            r"fsp .* needs at least 2 features, not 1 \(stage1\)\. Name more",
        ),
        (
            {"method": "fsp"},
            r"student's 'stage1' has 16 and the teacher's 'stage1' has 32\. Add --channel-adapter to train",
        ),
        ({"method": "kd", "teacher_features": ["stage1"]}, "--teacher-features does not apply to kd"),
        ({"method": "dkd", "channel_adapter": True}, "--channel-adapter does not apply to dkd, only to fsp"),
        ({"method": "hints"}, r"Unknown method 'hints'.*Known: kd, lskd, dkd"),
        ({"method": "at", "compile": True}, "--compile hides the features that at learns from"),
        ({"best_of_last_ten": True}, "but --select-on val allows one measurement"),
    ],
)
def test_features_that_cannot_be_matched_are_user_errors(tmp_path_factory, options: dict, message: str, wide_run: Path):
    out = tmp_path_factory.mktemp("out") / "s"
    with pytest.raises(UserError, match=message):
        ckd.distill("wrn_10_1", teachers=[str(wide_run)], out=out, **options)
    assert not out.exists()


def test_features_are_modules_by_path(wide_run: Path, tmp_path: Path):
    """Features of other channels and sizes, of another network."""
    run = ckd.distill(
        "resnet_8",
        teachers=[str(wide_run)],
        method="vid",
        teacher_features=["stage1.0", "stage3"],
        student_features=["stage2", "stage3.0"],
        out=tmp_path / "s",
        **SHORT,
    )
    assert run.run.distill_config.teacher_features == ("stage1.0", "stage3")
    assert run.complete


def test_best_of_last_ten_is_recorded_beside_the_last(tmp_path: Path):
    """The best test accuracy of the last ten epochs, as the authors report it."""
    run = ckd.train(
        "wrn_10_1",
        data="digits",
        select_on="test",
        train_images=60,
        epochs=12,
        batch_size=30,
        best_of_last_ten=True,
        out=tmp_path / "r",
    )
    tested = {row.epoch: row.test_accuracy for row in run.rows() if row.test_accuracy is not None}
    assert list(tested) == list(range(3, 13))
    result = run.result()
    assert result is not None
    assert result.best_of_last_ten is not None
    assert result.test is not None
    assert result.best_of_last_ten.accuracy == max(tested.values())
    assert tested[result.best_of_last_ten.epoch] == max(tested.values())
    assert result.test.accuracy == tested[12]


def test_another_method_weight_is_another_run(teacher_run: Path, tmp_path: Path):
    options = {"teachers": [str(teacher_run)], "out": tmp_path / "s", **SHORT}
    ckd.distill("wrn_10_1", **options)
    with pytest.raises(UserError, match=r"another run \(distill_config method_weight None stored, 0.3 given"):
        ckd.distill("wrn_10_1", method_weight=0.3, **options)


def test_dkd_warms_up_as_its_paper_says(teacher_run: Path):
    """The weight of its term grows from 0 over the first twelfth of the training."""
    data = load_data(DataConfig(data="digits", train_images=60))
    batch = next(iter(data.train.batches(batch_size=20, seed=0, device="cpu").epoch(0)))
    teacher = open_teacher([str(teacher_run)], device=CPU)
    student = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.3]).eval()
    objective = distillation(
        "dkd",
        teacher,
        KDConfig(alpha=1.0, tau=4.0),
        DistillConfig(),
        student=student,
        teachers=[("t", teacher.networks[0])],
        images=data.train,
        seed=0,
    )
    start, middle, end, later = (objective(student, batch, p)[0].detach() for p in (0.0, 1 / 24, 1 / 12, 0.5))
    torch.testing.assert_close(middle - start, (end - start) / 2)
    torch.testing.assert_close(end, later)
    plain = LogitDistillation(METHODS["kd"](), teacher, KDConfig(alpha=1.0))(student, batch, 0.0)[0]
    torch.testing.assert_close(start, plain.detach())
