"""The real CIFAR-100 from its parquet files, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checkpointkd.data import DataConfig, DataSet, load_data, load_test
from checkpointkd.data import cifar as module
from checkpointkd.data.cache import content_key
from checkpointkd.data.restricted_pickle import read_pickle
from checkpointkd.errors import UserError

from .serving import serving


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.slow
def test_the_real_data_set(home: Path, cifar100: Path):
    settings = DataConfig(data=f"cifar100:{cifar100}")
    data, test = load_data(settings), load_test(settings)
    assert (len(data.train), len(data.val), len(test)) == (45_000, 5_000, 10_000)
    assert data.classes[:3] == ("apple", "aquarium_fish", "baby")
    assert len(data.classes) == 100
    assert len(data.train.views) == 162
    assert data.val.labels_N.bincount().tolist() == [50] * 100
    assert test.labels_N.bincount().tolist() == [100] * 100
    whole = load_data(replace(settings, select_on="test")).train
    means, _ = whole.channel_statistics()
    assert means == pytest.approx([0.50707516, 0.48654887, 0.44091784], abs=1e-8)
    again = load_data(settings)
    assert again.record == data.record
    assert torch.equal(again.val.pixels_NCHW, data.val.pixels_NCHW)


def test_a_process_hashes_each_file_once_until_it_changes(tmp_path: Path, monkeypatch):
    file = tmp_path / "data"
    opened = []
    monkeypatch.setattr("builtins.open", lambda *args, real=open: opened.append(args[0]) or real(*args))

    def key(content: bytes, age: float) -> str:
        file.write_bytes(content)
        os.utime(file, (time.time() - age,) * 2)
        opened.clear()
        assert content_key([file], version="1") == content_key([file], version="1")
        return content_key([file], version="1")

    first = key(b"a", 100)
    assert len(opened) == 1
    assert key(b"b", 99) != first
    assert len(opened) == 1
    assert key(b"b", 0) == key(b"b", 99)
    key(b"c", 0)
    assert len(opened) == 3, "a new file could change again within its time stamp"


def test_pixels_are_those_of_the_file(cifar100: Path):
    import pyarrow.parquet as parquet

    file = cifar100 / "test-00000-of-00001.parquet"
    rows = parquet.read_table(file).slice(123, 2).to_pylist()
    test = load_test(DataConfig(data=f"cifar100:{cifar100}"))
    for offset, row in enumerate(rows):
        expected = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB"))
        assert np.array_equal(test.pixels_NCHW[123 + offset].permute(1, 2, 0).numpy(), expected)
        assert test.labels_N[123 + offset] == row["fine_label"]


def _archive(folder: Path, monkeypatch, *, labels: list[int] | None = None) -> Path:
    """Write a Python archive of 40 images in the official layout, and replace the official md5s by its own."""
    draw = np.random.default_rng(0)
    root = folder / module.CIFAR100.folder
    root.mkdir(parents=True)
    contents = {
        "meta": {b"fine_label_names": [b"zero", b"one"]},
        "train": {b"data": draw.integers(0, 256, (40, 3072), np.uint8), b"fine_labels": labels or [0, 1] * 20},
        "test": {b"data": draw.integers(0, 256, (10, 3072), np.uint8), b"fine_labels": [0, 1] * 5},
    }
    md5 = {}
    for name, content in contents.items():
        raw = pickle.dumps(content, protocol=2)
        (root / name).write_bytes(raw)
        md5[name] = hashlib.md5(raw).hexdigest()
    tar = folder / "cifar-100-python.tar.gz"
    with tarfile.open(tar, "w:gz") as file:
        file.add(root, arcname=module.CIFAR100.folder)
    monkeypatch.setattr(
        module,
        "CIFAR100",
        replace(
            module.CIFAR100,
            md5=hashlib.md5(tar.read_bytes()).hexdigest(),
            train={"train": md5["train"]},
            test={"test": md5["test"]},
            meta={"meta": md5["meta"]},
        ),
    )
    return folder


@pytest.mark.parametrize("form", ["folder", "tar.gz", "folder with the tar.gz"])
def test_a_python_archive_in_each_form(form: str, tmp_path: Path, monkeypatch):
    folder = _archive(tmp_path / "given", monkeypatch)
    expected = pickle.loads((folder / "cifar-100-python" / "train").read_bytes())
    path = folder / "cifar-100-python" if form == "folder" else folder / "cifar-100-python.tar.gz"
    if form == "folder with the tar.gz":
        for file in (folder / "cifar-100-python").iterdir():
            file.unlink()
        (folder / "cifar-100-python").rmdir()
        path = folder
    data = load_data(DataConfig(data=f"cifar100:{path}", select_on="test"))
    assert data.classes == ("zero", "one")
    assert torch.equal(data.train.pixels_NCHW, torch.from_numpy(expected[b"data"].reshape(40, 3, 32, 32)))
    assert data.train.labels_N.tolist() == expected[b"fine_labels"]
    assert len(data.val) == 10


@pytest.mark.parametrize("damage", ["altered", "truncated"])
def test_an_archive_that_is_not_the_official_one_is_refused(damage: str, tmp_path: Path, monkeypatch, home: Path):
    folder = _archive(tmp_path / "given", monkeypatch)
    for path, kind in ((folder / "cifar-100-python" / "test", "file"), (folder / "cifar-100-python.tar.gz", "archive")):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "altered" else content[:-10])
        given = path.parent if kind == "file" else path
        with pytest.raises(UserError, match=rf"is not the official {kind}: its md5 is [0-9a-f]{{32}}, not"):
            load_data(DataConfig(data=f"cifar100:{given}"))
    assert not any(home.rglob("*.npy")), "nothing is cached"


def test_labels_out_of_range_are_counted(tmp_path: Path, monkeypatch):
    folder = _archive(tmp_path / "given", monkeypatch, labels=[0, 1, 7, -1] * 10)
    with pytest.raises(UserError, match=r"20 labels in .* are not among the 2 classes, numbered from 0"):
        load_data(DataConfig(data=f"cifar100:{folder / 'cifar-100-python'}"))


class _Gadget:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_a_pickle_of_more_than_arrays_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, value in enumerate([_Gadget(), {"data": [_Gadget()]}, os.system, pickle.loads]):
        path = tmp_path / f"{number}"
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(UserError, match=r"it asks for .*, so it was not loaded"):
            read_pickle(path)
    (tmp_path / "cut").write_bytes(pickle.dumps(np.arange(100))[:50])
    (tmp_path / "text").write_bytes(b"hello")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("cut", "text", "empty"):
        with pytest.raises(UserError, match="is not a pickle of arrays and containers"):
            read_pickle(tmp_path / name)
    assert not (tmp_path / "owned").exists()
    (tmp_path / "fine").write_bytes(pickle.dumps({"a": np.arange(3)}, protocol=2))
    assert read_pickle(tmp_path / "fine")["a"].tolist() == [0, 1, 2]


def test_unusable_parquet_files_are_refused(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet as parquet

    def load(columns: dict, metadata: dict | None = None):
        for split in ("train", "test"):
            table = pyarrow.table(columns).replace_schema_metadata(metadata)
            parquet.write_table(table, tmp_path / f"{split}-00000.parquet")
        return load_data(DataConfig(data=f"cifar100:{tmp_path}"))

    named = {"huggingface": '{"info": {"features": {"fine_label": {"names": ["zero", "one"]}}}}'}
    with pytest.raises(
        UserError, match=r"must have a column img or image and a column fine_label or label \(its columns: a, b\)"
    ):
        load({"a": [1], "b": [2]})
    with pytest.raises(UserError, match="does not name its classes"):
        load({"img": [{"bytes": b""}], "fine_label": [0]})
    with pytest.raises(UserError, match=r"image 0 of .*train-00000\.parquet is not an image"):
        load({"img": [{"bytes": b"no image"}] * 2, "fine_label": [0, 1]}, named)
    (tmp_path / "train-00000.parquet").write_bytes((tmp_path / "train-00000.parquet").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"train-00000\.parquet is not a complete parquet file"):
        load_data(DataConfig(data=f"cifar100:{tmp_path}"))
    (tmp_path / "train-00000.parquet").unlink()
    with pytest.raises(UserError, match="has no parquet file of the train images"):
        load_data(DataConfig(data=f"cifar100:{tmp_path}"))


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"img": [_png()] * 4}, "Column img of .* must hold encoded images in a field `bytes`, not binary"),
        ({"img": [{"bytes": "text"}] * 4}, "must hold encoded images in a field `bytes`, not struct<bytes: string>"),
        ({"img": [{"path": "a"}] * 4}, "must hold encoded images in a field `bytes`, not struct<path: string>"),
        ({"img": [{"bytes": _png()}, None, {"bytes": None}, {"bytes": b""}]}, "image 1 of .* is empty"),
        ({"fine_label": [0.0, 1.0, 0.0, 1.0]}, "Column fine_label of .* must hold integers, not double"),
        ({"fine_label": ["a", "b", "a", "b"]}, "must hold integers, not string"),
        ({"fine_label": [[0], [1], [0], [1]]}, "must hold integers, not list"),
        ({"fine_label": [True, False, True, False]}, "must hold integers, not bool"),
        ({"fine_label": [0, 1, None, 0]}, "has images without a label"),
        ({"fine_label": np.array([0, 1, 2**63 + 1, 0], np.uint64)}, "Could not read .*test-00000.parquet: "),
        ({"fine_label": [0, 1, 2, 0]}, "1 labels in .* are not among the 2 classes"),
        ({"img": [], "fine_label": []}, "has no rows|must hold"),
        ({"names": ["one", "zero"]}, r"test-00000.parquet names other classes than .*train-00000.parquet"),
        ({"names": "zero"}, "does not name its classes"),
    ],
)
def test_errors_in_the_test_file_are_reported(tmp_path: Path, damage: dict, message: str):
    """Both files are checked alike; what can be checked without decoding is checked before any training."""
    import pyarrow
    import pyarrow.parquet as parquet

    valid = {"img": [{"bytes": _png()}] * 4, "fine_label": [0, 1, 0, 1], "names": ["zero", "one"]}
    for split, columns in (("train", valid), ("test", {**valid, **damage})):
        names = {"info": {"features": {"fine_label": {"names": columns["names"]}}}}
        table = pyarrow.table({"img": columns["img"], "fine_label": columns["fine_label"]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
        parquet.write_table(table, tmp_path / f"{split}-00000.parquet")
    with pytest.raises(UserError, match=message) as caught:
        load_test(DataConfig(data=f"cifar100:{tmp_path}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "names", [["zero", "zero"], ["zero"], ["zero", ""], ["zero", 1], ["zero", "o\nne"], ["zero", "\udcff"]]
)
def test_invalid_class_names_are_refused(names: list, tmp_path: Path):
    with pytest.raises(UserError, match="class"):
        DataSet(tuple(names), train=lambda: None, test=lambda: None, recipe="")  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("name", ["pixels.npy", "labels.npy", "sha256"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "altered", "another", "gone"])
def test_damaged_decoded_images_are_decoded_again(name: str, damage: str, tmp_path: Path, monkeypatch, home: Path):
    folder = _archive(tmp_path / "given", monkeypatch)
    settings = DataConfig(data=f"cifar100:{folder}")
    record = load_data(settings).record
    for path in home.rglob(name):
        content = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            altered = content[:-1] + bytes([content[-1] ^ 1])
            path.write_bytes(
                {"cut": content[:-3], "emptied": b"", "altered": altered, "another": b"hello " * 30}[damage]
            )
    assert load_data(settings).record == record
    assert all((path.parent / "sha256").exists() for path in home.rglob("pixels.npy")), "stored again"


def test_decoded_images_that_cannot_be_stored_are_used(tmp_path: Path, monkeypatch, home: Path, caplog):
    folder = _archive(tmp_path / "given", monkeypatch)
    settings = DataConfig(data=f"cifar100:{folder / 'cifar-100-python'}")
    home.write_text("a file where the folder should be")
    data = load_data(settings)
    assert "The decoded images could not be stored" in caplog.text
    home.unlink()
    assert load_data(settings).record == data.record


def test_missing_data_is_reported_with_its_path(tmp_path: Path):
    with pytest.raises(UserError, match="here is no cifar10 archive or folder at"):
        load_data(DataConfig(data=f"cifar10:{tmp_path / 'nowhere'}"))


def test_the_archive_is_downloaded_if_it_is_missing(tmp_path: Path, monkeypatch, home: Path):
    folder = _archive(tmp_path / "given", monkeypatch)
    progress = []
    with serving(folder) as address:
        archive = replace(module.CIFAR100, url=f"{address}/cifar-100-python.tar.gz")
        monkeypatch.setattr(module, "CIFAR100", archive)
        data = load_data(DataConfig(data="cifar100"), on_progress=lambda *step: progress.append(step))
        assert len(data.train) + len(data.val) == 40
        size = (home / "cifar100" / "cifar-100-python.tar.gz").stat().st_size
        assert progress[-1] == ("download cifar100", size, size)
    assert load_data(DataConfig(data="cifar100")).record == data.record, "the server is gone, and is not needed"


def test_a_download_that_fails_leaves_nothing(tmp_path: Path, monkeypatch, home: Path):
    folder = _archive(tmp_path / "given", monkeypatch)
    tar = folder / "cifar-100-python.tar.gz"
    with serving(folder) as address:
        monkeypatch.setattr(module, "CIFAR100", replace(module.CIFAR100, url=f"{address}/{tar.name}"))
        content = tar.read_bytes()
        tar.write_bytes(content[:-1] + b"x")
        md5 = hashlib.md5(tar.read_bytes()).hexdigest()
        with pytest.raises(UserError, match=rf"did not send the official file: its md5 is {md5}, not \w{{32}}"):
            load_data(DataConfig(data="cifar100"))
        tar.unlink()
        with pytest.raises(
            UserError, match=r"could not be downloaded \(404 .*\)\. Try again later, or put the file there"
        ):
            load_data(DataConfig(data="cifar100"))
    with pytest.raises(UserError, match=r"cifar100 is not in .*could not be downloaded .*or give its path: cifar100:P"):
        load_data(DataConfig(data="cifar100"))
    assert [path for path in home.rglob("*") if path.is_file()] == []
