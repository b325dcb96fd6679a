"""Validation images that are no part of the training images: three splits of folders and of the Hub, and --val."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data, load_test
from checkpointkd.errors import UserError

from .image_files import digit, encoded, folder_of_digits

SETTINGS: dict[str, Any] = {"epochs": 1, "batch_size": 8, "image_size": 16, "precision": "fp32"}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A folder with train, val and test."""
    root = folder_of_digits(tmp_path / "three")
    shutil.copytree(folder_of_digits(tmp_path / "more", train=20, test=5) / "val", root / "test")
    return root


def test_folders_with_three_splits(three: Path):
    data = load_data(DataConfig(data=f"folder:{three}", image_size=16))
    test = load_test(DataConfig(data=f"folder:{three}", image_size=16))
    assert (len(data.train), len(data.val), len(test)) == (36, 12, 15)
    assert (data.record.val_fraction, data.record.val_sha256) == (None, data.val.sha256())
    part = load_data(DataConfig(data=f"folder:{three}", image_size=16, val_fraction=0.25))
    assert (len(part.train), len(part.val), part.record.val_sha256) == (27, 9, None)
    on_test = load_data(DataConfig(data=f"folder:{three}", image_size=16, select_on="test"))
    assert (len(on_test.train), on_test.val.sha256()) == (36, test.sha256())
    shutil.rmtree(three / "test" / "class-2")
    with pytest.raises(UserError, match=r"The classes in .*train and .*test differ \(only in train: class-2\)"):
        load_data(DataConfig(data=f"folder:{three}", image_size=16))


def test_a_test_folder_without_classes_is_ignored_as_imagenets(three: Path):
    shutil.rmtree(three / "test")
    (three / "test").mkdir()
    assert len(load_test(DataConfig(data=f"folder:{three}", image_size=16))) == 12
    assert load_data(DataConfig(data=f"folder:{three}", image_size=16)).record.val_fraction == 0.1


def test_val_names_a_split_or_a_folder(three: Path, tmp_path: Path):
    fresh = folder_of_digits(tmp_path / "fresh", train=25, test=3)
    shutil.move(fresh / "val", three / "fresh")
    moved = shutil.copytree(three / "fresh", tmp_path / "elsewhere")
    split, folder = (
        load_data(DataConfig(data=f"folder:{three}", image_size=16, val=val)) for val in ("fresh", str(moved))
    )
    assert (len(split.train), len(split.val)) == (36, 9)
    assert torch.equal(split.val.to_float(), folder.val.to_float())
    assert split.record.identity == folder.record.identity, "where the images lie is not their identity"
    run = ckd.train("wrn_10_1", data=f"folder:{three}", val="fresh", out=tmp_path / "run", **SETTINGS)
    assert run.run.data.val == "fresh"
    assert ckd.evaluate(f"{tmp_path}/run@last")["images"] == 9
    student = ckd.distill(
        "wrn_10_1", teachers=f"{tmp_path}/run", out=tmp_path / "s", allow_weak_teacher=True, **SETTINGS
    )
    assert student.run.data.val_sha256 == split.val.sha256()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val": "nowhere"}, "--val nowhere names neither a folder in"),
        ({"val": "train"}, "--val train names neither a folder in"),
        ({"val": "test"}, "--val test names the test set"),
        ({"val": "val", "select_on": "test"}, "--val val cannot be combined with --select-on test"),
        ({"val": "val", "data": "digits"}, "--val val applies to folder:PATH, imagenet, hf:NAME, not to digits"),
    ],
)
def test_wrong_val_is_refused(three: Path, changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        load_data(DataConfig(**{"data": f"folder:{three}", "image_size": 16, **changes}))


def test_an_external_teacher_that_has_not_seen_the_validation_set_is_not_warned_about(
    three: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = tmp_path / "external"
    folder.mkdir()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    torch.save(network.state_dict(), folder / "epoch_1.pt")
    (tmp_path / "flat_network.py").write_text(
        "from torch import nn\ndef flat(): return nn.Sequential(nn.Flatten(), nn.Linear(768, 3))\n"
    )
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, logger="checkpointkd"):
        patch.syspath_prepend(tmp_path)
        options: dict[str, Any] = {"model": "flat_network:flat", "data": f"folder:{three}", "image_size": 16}
        shutil.rmtree(three / "test")
        ckd.inspect(folder, **options)
        assert "may have seen the validation set" in caplog.text
        caplog.clear()
        (three / "fresh").mkdir()
        shutil.copytree(three / "val", three / "fresh", dirs_exist_ok=True)
        ckd.inspect(folder, val="fresh", **options)
        assert "may have seen the validation set" not in caplog.text


def test_data_sets_of_the_hub_with_three_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def rows(first: int, count: int) -> Any:
        numbers = [(label, number) for label in range(2) for number in range(first, first + count)]
        images = [{"bytes": encoded(digit(*each), "PNG"), "path": None} for each in numbers]
        features = datasets.Features({"photo": datasets.Image(), "label": datasets.Value("string")})
        return datasets.Dataset.from_dict(
            {"photo": images, "label": [f"class {label}" for label, _ in numbers]}, features=features
        )

    folder = tmp_path / "table"
    folder.mkdir()
    for split, first, count in (("train", 0, 8), ("validation", 8, 3), ("test", 11, 2)):
        rows(first, count).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    data, test = load_data(DataConfig(data=f"hf:{folder}")), load_test(DataConfig(data=f"hf:{folder}"))
    assert (len(data.train), len(data.val), len(test)) == (16, 6, 4)
    assert data.classes == ("class 0", "class 1")
    assert data.record.val_sha256 == data.val.sha256()
    named = load_data(DataConfig(data=f"hf:{folder}", val="validation"))
    assert named.val.sha256() == data.val.sha256()
    with pytest.raises(UserError, match=r"--val valid names no labeled split of hf:.* Such splits: validation"):
        load_data(DataConfig(data=f"hf:{folder}", val="valid"))
