"""Tiny-ImageNet in its official layout, with few real images and the md5 of that zip in place of the official one."""

from __future__ import annotations

import hashlib
import importlib
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checkpointkd.data import DataConfig, load_data, load_test
from checkpointkd.errors import UserError

from .image_files import digit, encoded
from .serving import serving

module = importlib.import_module("checkpointkd.data.tiny_imagenet")  # in the package, the name is the function's

CLASSES = ["n02", "n00", "n01"]  # wnids.txt numbers the classes, not the alphabet


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path, home: Path) -> Path:
    root = tmp_path / "given" / "tiny-imagenet-200"
    root.mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(CLASSES) + "\n")
    annotations = []
    for label, name in enumerate(CLASSES):
        class_folder = root / "train" / name / "images"
        class_folder.mkdir(parents=True)
        for number in range(12):
            mode = "L" if number % 5 == 4 else "RGB"  # some of the real ones are gray
            image = encoded(digit(label, number, size=(64, 64), mode=mode), "JPEG")
            (class_folder / f"{name}_{number}.JPEG").write_bytes(image)
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t62\t62\n")
    (root / "val" / "images").mkdir(parents=True)
    for number in range(9):
        label = (number * 2) % 3
        image = encoded(digit(label, 20 + number, size=(64, 64), mode="L" if number == 4 else "RGB"), "JPEG")
        (root / "val" / "images" / f"val_{number}.JPEG").write_bytes(image)
        annotations.append(f"val_{number}.JPEG\t{CLASSES[label]}\t0\t0\t62\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(annotations) + "\n")
    (root / "test" / "images").mkdir(parents=True)
    (root / "test" / "images" / "test_0.JPEG").write_bytes(b"never read: it has no label")
    return root


@pytest.fixture
def archive(folder: Path, tmp_path: Path, monkeypatch) -> Path:
    path = tmp_path / "zipped" / "tiny-imagenet-200.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        for member in sorted(folder.rglob("*")):
            file.write(member, f"tiny-imagenet-200/{member.relative_to(folder).as_posix()}")
    monkeypatch.setattr(module, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


def _load(path: Path, select_on: str = "test"):
    return load_data(DataConfig(data=f"tiny-imagenet:{path}", select_on=select_on))  # type: ignore[arg-type]


def test_every_form_gives_the_same_images(folder: Path, archive: Path):
    loaded = [_load(path) for path in (folder, folder.parent, archive, archive.parent)]
    for data in loaded:
        assert data.classes == tuple(CLASSES)
        assert data.record.sha256 == loaded[0].record.sha256
        assert torch.equal(data.val.to_float(), loaded[0].val.to_float())
    data = loaded[0]
    assert (len(data.train), len(data.val), data.train.shape) == (36, 9, (3, 64, 64))
    assert data.recipe == "tiny-imagenet"
    assert data.train.labels_N.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert data.val.labels_N.tolist() == [0, 2, 1, 0, 2, 1, 0, 2, 1], "as val_annotations.txt says"
    expected = np.asarray(Image.open(folder / "train" / "n00" / "images" / "n00_1.JPEG").convert("RGB"))
    in_order = sorted(f"n00_{number}.JPEG" for number in range(12))
    row = 12 + in_order.index("n00_1.JPEG")
    assert np.array_equal((data.train.to_float()[row] * 255).round().byte().permute(1, 2, 0).numpy(), expected)
    gray = data.val.to_float()[4]
    assert torch.equal(gray[0], gray[1])
    assert not torch.equal(data.val.to_float()[3][0], data.val.to_float()[3][1])


def test_the_official_validation_images_are_not_decoded_before_the_test(folder: Path, home: Path):
    data = load_data(DataConfig(data=f"tiny-imagenet:{folder}", val_fraction=0.25))
    assert (len(data.train), len(data.val)) == (27, 9)
    assert len(list(home.rglob("pixels.npy"))) == 1, "of the training images"
    assert len(load_test(DataConfig(data=f"tiny-imagenet:{folder}"))) == 9


def test_images_are_decoded_once_and_again_when_a_file_has_changed(folder: Path, home: Path):
    first = _load(folder)
    pixels = sorted(home.rglob("pixels.npy"))
    assert len(pixels) == 2
    made = [path.stat().st_mtime_ns for path in pixels]
    assert _load(folder).record == first.record
    assert [path.stat().st_mtime_ns for path in pixels] == made
    time.sleep(0.01)
    target = folder / "train" / "n02" / "images" / "n02_0.JPEG"
    size = target.stat().st_size
    changed = encoded(digit(7, 3, size=(64, 64)), "JPEG", quality=30)
    target.write_bytes(changed + bytes(size - len(changed)))  # of the same size
    assert _load(folder).record.sha256 != first.record.sha256


def test_the_zip_is_downloaded_if_it_is_missing(archive: Path, monkeypatch):
    with serving(archive.parent) as address:
        monkeypatch.setattr(module, "URL", f"{address}/{archive.name}")
        data = load_data(DataConfig(data="tiny-imagenet", select_on="test"))
    assert load_data(DataConfig(data="tiny-imagenet", select_on="test")).record == data.record


def test_a_zip_that_is_not_the_official_one_is_refused(archive: Path, home: Path):
    content = archive.read_bytes()
    for damaged in (content[:-10], content[:100] + b"x" + content[101:], b""):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match=r"is not the official zip: its md5 is \w{32}, not \w{32}"):
            _load(archive)
    assert not home.exists(), "nothing is cached"


def _put(path: Path, content: bytes | str) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _put(f / "train/n00/images/n00_3.JPEG", b""), r"train/n00/images/n00_3\.JPEG in .* is empty"),
        (lambda f: _put(f / "train/n00/images/n00_3.JPEG", b"text"), r"n00_3\.JPEG in .* is not an image in a format"),
        (
            lambda f: _put(f / "val/images/val_2.JPEG", (f / "val/images/val_2.JPEG").read_bytes()[:400]),
            r"val/images/val_2\.JPEG in .* (cannot be decoded|is not an image)",
        ),
        (
            lambda f: digit(0, 0, size=(32, 64)).save(f / "train/n01/images/n01_0.JPEG"),
            r"n01_0\.JPEG in .* is 32×64, not 64×64",
        ),
        (lambda f: [p.unlink() for p in (f / "train/n01/images").iterdir()], "has no training image of the class n01"),
        (lambda f: (f / "train/n01").rename(f / "train/n77"), "has the class n77 in train, but not in wnids.txt"),
        (lambda f: (f / "val/images/val_8.JPEG").unlink(), r"lists 1 images that are missing, first val/images/val_8"),
        (lambda f: (f / "val/val_annotations.txt").unlink(), r"has no val/val_annotations\.txt\. Is it the official"),
        (lambda f: _put(f / "val/val_annotations.txt", ""), "lists no image"),
        (lambda f: _put(f / "val/val_annotations.txt", "val_0.JPEG\tn99\n"), "Line 1 of .* gives the class 'n99'"),
        (lambda f: _put(f / "val/val_annotations.txt", "val_0.JPEG\n"), "Line 1 of .* gives the class ''"),
        (lambda f: _put(f / "val/val_annotations.txt", "../../x.JPEG\tn00\n"), "names a file in another folder"),
        (lambda f: _put(f / "wnids.txt", b"\xff\xfe"), "wnids.txt in .* is not text"),
        (lambda f: _put(f / "wnids.txt", "n00\nn00\nn01\nn02"), "must name at least two classes, each once"),
        (lambda f: shutil.rmtree(f / "train"), "has no training image of the class n02"),
        (lambda f: (f / "wnids.txt").unlink(), r"has no wnids\.txt\. Is it the official"),
    ],
)
def test_damage_is_reported_in_one_line(folder: Path, home: Path, damage, message: str):
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        _load(folder)
    assert "\n" not in str(caught.value)
    assert len(list(home.rglob("*.npy"))) in (0, 2), "both splits are cached, or none"


def test_a_missing_path_is_reported(tmp_path: Path, home: Path):
    with pytest.raises(UserError, match="here is no Tiny-ImageNet zip or folder at"):
        _load(tmp_path / "nowhere")
