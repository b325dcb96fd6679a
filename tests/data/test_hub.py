"""Data sets that Hugging Face's `datasets` reads, from local folders: tests have no network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from checkpointkd.data import DataConfig, InMemoryImages, StreamingImages, load_data, load_test
from checkpointkd.data.hub import HubImages
from checkpointkd.data.streaming import resize_center_crop
from checkpointkd.errors import UserError

from .image_files import digit, folder_of_digits


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch):
    os.environ.setdefault("HF_HOME", str(tmp_path_factory.mktemp("hf")))  # read once, when the library is imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home"))


@pytest.mark.slow
def test_cifar100_is_the_same_by_name_and_by_hf(tmp_path: Path, cifar100: Path):
    for split in ("train", "test"):  # the test images for both: they are real, and fewer
        (tmp_path / f"{split}-00000-of-00001.parquet").symlink_to(cifar100 / "test-00000-of-00001.parquet")
    by_name, by_hf = (load_data(DataConfig(data=f"{name}:{tmp_path}")) for name in ("cifar100", "hf"))
    assert by_hf.classes == by_name.classes
    assert isinstance(by_hf.train, InMemoryImages)
    assert by_hf.record.sha256 == by_name.record.sha256
    assert torch.equal(by_hf.val.index_N, by_name.val.index_N)
    assert by_hf.recipe == "cifar100"
    assert load_test(DataConfig(data=f"hf:{tmp_path}")).labels_N.bincount().tolist() == [100] * 100


def _squares(root: Path, side: int) -> Path:
    """Write a folder of small squares of two classes."""
    for split, numbers in (("train", range(8)), ("test", range(8, 11))):
        for label in range(2):
            class_folder = root / split / f"class-{label}"
            class_folder.mkdir(parents=True)
            for number in numbers:
                digit(label, number, size=(side, side)).save(class_folder / f"{number}.png")
    return root


def test_small_images_stay_in_memory_and_large_ones_are_streamed(tmp_path: Path):
    small = load_data(DataConfig(data=f"hf:{_squares(tmp_path / 'small', 20)}", val_fraction=0.25))
    assert isinstance(small.train, InMemoryImages)
    assert (len(small.train), small.train.shape, small.recipe) == (12, (3, 20, 20), "cifar100")
    assert len(small.train.views) == 162
    folder = _squares(tmp_path / "large", 70)
    large = load_data(DataConfig(data=f"hf:{folder}", val_fraction=0.25))
    assert isinstance(large.train, StreamingImages)
    assert (len(large.train), large.train.shape, large.recipe) == (12, (3, 224, 224), "adamw")
    assert large.train.to_float().shape == (12, 3, 224, 224)
    smaller = load_data(DataConfig(data=f"hf:{folder}", val_fraction=0.25, image_size=32))
    assert smaller.train.shape == (3, 32, 32)
    assert len(load_test(DataConfig(data=f"hf:{folder}"))) == 6
    (batch,) = smaller.train.batches(batch_size=20, seed=0, device="cpu").epoch(0)
    assert sorted(batch.index_B.tolist()) == smaller.train.index_N.tolist()


def _table(path: Path, labels: list[int]) -> None:
    """Write a parquet file as on the Hub: images, and labels of two classes, -1 for no label."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zero", "one"])})
    images = [digit(max(label, 0), number) for number, label in enumerate(labels)]
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(path)


@pytest.mark.parametrize("size", [(24, 40), (90, 120)])
def test_images_are_turned_as_their_camera_says(size: tuple[int, int], tmp_path: Path):
    """The library does so when it decodes; torchvision and timm, and so `folder:`, do not."""
    orientation = Image.Exif()
    orientation[0x0112] = 6
    for split in ("train", "test"):
        for label in range(2):
            (tmp_path / split / str(label)).mkdir(parents=True)
            for number in range(4):
                stored = digit(label, number, size=size).transpose(Image.Transpose.ROTATE_90)
                stored.save(tmp_path / split / str(label) / f"{number}.png", exif=orientation)
    upright = digit(0, 0, size=size)
    images = load_data(DataConfig(data=f"hf:{tmp_path}", select_on="test")).val
    if isinstance(images, InMemoryImages):
        expected = np.asarray(upright)
    else:
        expected = np.asarray(resize_center_crop(upright, 224))
        by_folder = load_data(DataConfig(data=f"folder:{tmp_path}", select_on="test")).val
        assert not torch.equal(*(kind.subset(torch.tensor([0])).to_float() for kind in (images, by_folder)))
    shown = images.subset(torch.tensor([0])).to_float()[0].permute(1, 2, 0)
    assert np.array_equal((255 * shown).round().byte().numpy(), expected)


def test_a_test_split_without_labels_is_skipped(tmp_path: Path):
    for split, labels in (("train", [0, 1] * 6), ("test", [-1] * 5), ("validation", [0, 1, 1])):
        _table(tmp_path / f"{split}-00000.parquet", labels)
    settings = DataConfig(data=f"hf:{tmp_path}", val_fraction=0.25)
    assert load_test(settings).labels_N.tolist() == [0, 1, 1]
    _table(tmp_path / "train-00000.parquet", [0, 1, -1] * 4)
    with pytest.raises(UserError, match=r"4 labels in hf:.*, split train, are missing or not among the 2 classes"):
        load_data(settings)
    (tmp_path / "validation-00000.parquet").unlink()
    with pytest.raises(UserError, match=r"has no labeled split test, validation, valid, val to test on"):
        load_data(settings)


def test_streamed_data_sets_with_equal_content_are_the_same(tmp_path: Path):
    cats, dogs = (_squares(tmp_path / name, 70) for name in ("cats", "dogs"))
    digit(9, 0, size=(70, 70)).save(dogs / "train" / "class-0" / "3.png")

    def identity(path: object) -> dict:
        return load_data(DataConfig(data=f"hf:{path}", val_fraction=0.25)).record.identity

    assert identity(cats) != identity(dogs)
    assert identity(cats) == identity(shutil.copytree(cats, tmp_path / "moved"))


def test_changed_images_beside_the_librarys_files_are_noticed(tmp_path: Path):
    folder = _squares(tmp_path / "squares", 20)
    settings = DataConfig(data=f"hf:{folder}", select_on="test")
    before = load_data(settings).record.sha256
    target = folder / "train" / "class-0" / "3.png"
    digit(9, 0, size=(20, 20)).save(target)
    assert load_data(settings).record.sha256 != before


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["oak", "ash", "elm"], ("ash", "elm", "oak")),
        ([2, 0, 1], ("0", "1", "2")),
        ([5, 7, 9], r"the labels 5 to 9 in 'label'\. Renumber them from 0 on"),
        ([None, "a", "b"], r"that are missing or not whole\. Labels must be words"),
    ],
)
def test_labels_may_be_words_or_numbers(values: list[Any], classes: Any, tmp_path: Path):
    import datasets

    for split in ("train", "test"):
        images = [digit(row % 10, row, size=(12, 12)) for row in range(30)]
        columns = {"image": images, "label": [values[row % 3] for row in range(30)]}
        features = datasets.Features(
            image=datasets.Image(), label=datasets.Value("string" if isinstance(values[1], str) else "int64")
        )
        (tmp_path / "set").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "set" / f"{split}.parquet")
    settings = DataConfig(data=f"hf:{tmp_path / 'set'}", select_on="test")
    if isinstance(classes, str):
        with pytest.raises(UserError, match=classes):
            load_data(settings)
        return
    data = load_data(settings)
    assert data.classes == classes
    assert data.train.labels_N.tolist() == [sorted(values).index(values[row % 3]) for row in range(30)]


@pytest.mark.slow
def test_errors_of_the_library_are_reported_in_one_line(tmp_path: Path):
    def refused(path: object, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            load_data(DataConfig(data=f"hf:{path}"))
        assert "\n" not in str(caught.value)

    with pytest.raises(UserError, match="Give the data set's name on the Hugging Face Hub: hf:NAME"):
        load_data(DataConfig(data="hf"))
    refused("nobody/nothing", "Could not load hf:nobody/nothing: ")
    for path in ("./nope", "nope/", "/nope", "../a/b", "a/b/c"):
        refused(path, f"There is no folder {path}. A data set of the Hub has a name such as")
    mixed = tmp_path / "mixed"
    folder_of_digits(mixed)
    refused(mixed, r"image \d+ in train of hf:.* is \d+×\d+, not \d+×\d+\. Give --image-size N")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.csv").write_text("a,label\n1,2\n")
    refused(tmp_path / "text", r"must have one column of images and one of class labels \(columns: a: Value")
    only_test = tmp_path / "only"
    (only_test / "test" / "zero").mkdir(parents=True)
    digit(0, 0).save(only_test / "test" / "zero" / "a.png")
    refused(only_test, r"has no split train \(splits: test\)")


def test_words_that_differ_in_unicode_normalization_only_are_refused(tmp_path: Path):
    import datasets

    words = ["caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    for split in ("train", "test"):
        values = {"image": [digit(0, number) for number in range(4)], "label": words * 2}
        datasets.Dataset.from_dict(values, features=features).to_parquet(tmp_path / f"{split}-00000.parquet")
    with pytest.raises(UserError, match=r"has two spellings of the class 'caf.*' in 'label'"):
        load_data(DataConfig(data=f"hf:{tmp_path}", select_on="test"))


def test_invalid_labels_and_paths_outside_of_the_data_set_are_refused(tmp_path: Path):
    private = tmp_path / "private.png"
    digit(9, 0, size=(70, 70)).save(private)
    (tmp_path / "labels").mkdir()
    for name, labels in (("train", [0, 1, 1] * 4), ("test", [0, 1])):
        path = tmp_path / "labels" / f"{name}-00000.parquet"
        _table(path, labels)
        table = parquet.read_table(path)  # the library itself refuses to write such labels
        changed = pyarrow.array([4 if number % 3 == 2 else label for number, label in enumerate(labels)])
        position = table.schema.get_field_index("label")
        parquet.write_table(table.set_column(position, "label", changed).cast(table.schema), path)
    with pytest.raises(UserError, match=r"4 labels in hf:.*, split train, are missing or not among the 2 classes"):
        load_data(DataConfig(data=f"hf:{tmp_path / 'labels'}", select_on="test"))
    images = HubImages("hf:x", "train", [{"image": {"path": str(private)}}], "image", (str(tmp_path / "own"),))
    with pytest.raises(UserError, match=r"image 0 in train of hf:x names the file .*, which is not in the data set's"):
        images.read(0)
