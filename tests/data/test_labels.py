"""Other labels for the training images, `--train-labels`: CIFAR-100N's noisy labels, and files that do not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpointkd as ckd
from checkpointkd.config import DataConfig
from checkpointkd.data import load_data, load_test
from checkpointkd.errors import UserError

DIGITS = 1198  # official training images
SMALL: dict[str, Any] = {"train_images": 60, "epochs": 1, "save_every": 1, "precision": "fp32"}


def _labels(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Write other labels: every third digit is called the next digit."""
    official = load_data(DataConfig(data="digits", select_on="test")).train
    labels = official.labels_N.numpy().copy()
    assert len(labels) == DIGITS
    labels[::3] = (labels[::3] + 1) % 10
    np.save(tmp_path / "labels.npy", labels)
    return tmp_path / "labels.npy", labels


def test_cifar100n_changes_the_labels_of_training_and_validation_images(cifar100: Path):
    """The file has 40.2% wrong labels. Test images keep the clean ones."""
    file = cifar100.parent / "cifar100n" / "noisy_fine_labels.npy"
    if not file.exists():
        pytest.skip("CHECKPOINTKD_TEST_DATA has no cifar100n/")
    settings = DataConfig(data=f"cifar100:{cifar100}", train_labels=str(file))
    noisy, clean = load_data(settings), load_data(DataConfig(data=f"cifar100:{cifar100}", select_on="test"))
    label_N = clean.train.labels_N
    for images in (noisy.train, noisy.val):
        wrong = (images.labels_N != label_N[images.index_N]).double().mean().item()
        assert wrong == pytest.approx(0.402, abs=0.02)
    assert noisy.train.labels_N.equal(torch.from_numpy(np.load(file)).long()[noisy.train.index_N])
    assert load_test(settings).labels_N.equal(clean.val.labels_N)
    assert noisy.record.sha256 != clean.record.sha256


def test_later_commands_use_the_labels_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    file, labels = _labels(tmp_path)
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "checkpointkd")
    run = ckd.train("wrn_10_1", data="digits", train_labels="labels.npy", out=tmp_path / "run", **SMALL)
    assert "Labels of the training images: labels.npy; 33.4% differ from the data set's" in caplog.text
    monkeypatch.chdir("/")  # the record has the absolute path
    record = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert record["train_labels"] == str(file)
    teacher = f"{run.path}@last"
    student = ckd.distill("wrn_10_1", teachers=[teacher], out=tmp_path / "student", allow_weak_teacher=True, **SMALL)
    assert student.run.data.sha256 == run.run.data.sha256
    official = load_data(DataConfig(data="digits", select_on="test")).train
    label_of = dict(zip(official.index_N.tolist(), labels.tolist(), strict=True))
    images = load_data(DataConfig(data="digits", train_images=60, train_labels=str(file))).train
    assert images.labels_N.tolist() == [label_of[index] for index in images.index_N.tolist()]
    (tmp_path / "moved").mkdir()
    file = file.rename(tmp_path / "moved" / "labels.npy")
    with pytest.raises(UserError, match=r"--train-labels .*labels\.npy cannot be read .*Give a \.npy file"):
        ckd.distill("wrn_10_1", teachers=[teacher], out=tmp_path / "other", allow_weak_teacher=True, **SMALL)
    with pytest.raises(UserError, match="cannot be read"):
        ckd.evaluate(teacher)
    assert ckd.evaluate(teacher, train_labels=file)["members"]
    ckd.score(run.path, train_labels=file, estimator="ridge")
    again = ckd.train("wrn_10_1", data="digits", train_labels=file, out=tmp_path / "run", **SMALL)
    assert again.run == run.run, "the same labels at another place are the same run"
    with pytest.raises(UserError, match="sha256"):
        ckd.train("wrn_10_1", data="digits", out=tmp_path / "run", **SMALL)


def _other_type(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.float32)


def _too_few(labels: np.ndarray) -> np.ndarray:
    return labels[:-1]


def _two_dimensions(labels: np.ndarray) -> np.ndarray:
    return labels[:, None]


def _unknown_class(labels: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(labels)) == 7, 10, labels)


def _negative(labels: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(labels)) == 7, -1, labels)


def _without_a_class(labels: np.ndarray) -> np.ndarray:
    return np.where(labels == 3, 4, labels)


def _without_the_last_class(labels: np.ndarray) -> np.ndarray:
    return np.where(labels == 9, 0, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_type, "holds values of type float32, not integers"),
        (_too_few, r"has the shape \(1197,\), but there are 1,198 official training images"),
        (_two_dimensions, r"has the shape \(1198, 1\), but there are 1,198"),
        (_unknown_class, "has the label 10 at position 7. The 10 classes are numbered from 0 to 9"),
        (_negative, "has the label -1 at position 7"),
        (_without_a_class, r"has no image of class 3\. Give labels with each of the 10 classes"),
        (_without_the_last_class, "has no image of class 9"),
    ],
)
def test_labels_that_do_not_fit_are_refused(change: Any, message: str, tmp_path: Path):
    file, labels = _labels(tmp_path)
    np.save(file, change(labels))
    with pytest.raises(UserError, match=message):
        load_data(DataConfig(data="digits", train_labels=str(file)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a .npy file"),
        (b"not an array", "is not a .npy file"),
        (b"PK\x03\x04 no archive", "is not a .npy file"),
        (b"\x93NUMPY\x01\x00", "cannot be read"),
        (b"\x93NUMPY\x01\x00\x16\x00{'descr': '<i8', ((((\n", "cannot be read"),
        (
            b"\x93NUMPY\x01\x00\x44\x00{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,)}\n",
            "cannot be",
        ),
    ],
)
def test_damaged_files_are_refused(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "labels.npy").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_data(DataConfig(data="digits", train_labels=str(tmp_path / "labels.npy")))


def test_a_pipe_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "labels.npy")
    with pytest.raises(UserError, match="is not a regular file"):
        load_data(DataConfig(data="digits", train_labels=str(tmp_path / "labels.npy")))


def test_other_files_are_refused(tmp_path: Path):
    _, labels = _labels(tmp_path)
    np.savez(tmp_path / "several.npz", a=labels, b=labels)
    with pytest.raises(UserError, match=r"is not a \.npy file"):
        load_data(DataConfig(data="digits", train_labels=str(tmp_path / "several.npz")))
    np.save(tmp_path / "objects.npy", np.array([{}] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        load_data(DataConfig(data="digits", train_labels=str(tmp_path / "objects.npy")))


def test_labels_are_numbers_of_the_data_sets_own_order(tmp_path: Path):
    file, _ = _labels(tmp_path)
    plain, reordered = (
        load_data(DataConfig(data="digits", select_on="test", train_labels=str(file), class_order=order))
        for order in (None, tuple("9876543210"))
    )
    assert reordered.train.labels_N.tolist() == [9 - label for label in plain.train.labels_N.tolist()]
    assert reordered.val.labels_N.tolist() == [9 - label for label in plain.val.labels_N.tolist()]
