"""The index of a large folder: it is used while no directory changes, and never otherwise."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpointkd.config import cache_dir
from checkpointkd.data import DataConfig, folder_index, load_data
from checkpointkd.errors import UserError

from .image_files import digit, folder_of_digits


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(folder_index, "INDEXED", 10)
    root = folder_of_digits(tmp_path / "images")
    (root / "train" / "class-0" / "more").mkdir()
    digit(0, 5).save(root / "train" / "class-0" / "more" / "a.png")
    (root / "train" / "class-1" / ".hidden").mkdir()
    _age(root)
    return root


def _age(root: Path) -> None:
    """Set the times of all directories back, as if nothing had changed for a while."""
    for directory, _, _ in os.walk(root):
        past = os.stat(directory).st_mtime - 100
        os.utime(directory, (past, past))


def _load(folder: Path):
    return load_data(DataConfig(data=f"folder:{folder}", image_size=16)).record


def _walks(monkeypatch) -> list[Path]:
    walked = []
    walk = folder_index._walk
    monkeypatch.setattr(folder_index, "_walk", lambda split, classes: walked.append(split) or walk(split, classes))
    return walked


def test_an_unchanged_folder_is_listed_once(folder: Path, monkeypatch, caplog):
    walked = _walks(monkeypatch)
    first = _load(folder)
    assert {path.name for path in walked} == {"train", "val"}
    walked.clear()
    caplog.clear()
    assert _load(folder) == first
    assert not walked
    assert "Ignoring the hidden folder" in caplog.text


@pytest.mark.parametrize("change", ["add", "remove", "rename", "in a folder below", "a new class", "a link"])
def test_a_changed_folder_is_listed_again(folder: Path, change: str):
    images = folder / "train" / "class-0"
    before = _load(folder)
    if change == "add":
        digit(0, 9).save(images / "new.png")
    elif change == "remove":
        (images / "000.jpg").unlink()
    elif change == "rename":
        (images / "000.jpg").rename(images / "renamed.jpg")
    elif change == "in a folder below":
        digit(0, 9).save(images / "more" / "new.png")
    elif change == "a new class":
        for split in ("train", "val"):
            (folder / split / "class-9").mkdir()
            for number in range(12):
                digit(9, number).save(folder / split / "class-9" / f"{number}.png")
    else:
        (images / "link").symlink_to(folder / "train" / "class-1")
    assert _load(folder).sha256 != before.sha256


def test_a_folder_that_has_just_changed_is_not_indexed(folder: Path):
    digit(0, 9).save(folder / "train" / "class-0" / "new.png")
    _load(folder)
    assert len(list((cache_dir() / "indexes").iterdir())) == 1, "the index of val only"


def _without_names(path: Path) -> None:
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"names": {name: [] for name in index["names"]}}))


def _as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        _without_names,
        pytest.param(_as_pipe, marks=pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")),
    ],
    ids=["truncated", "without names", "pipe"],
)
def test_a_damaged_index_is_ignored(folder: Path, damage: Callable[[Path], Any]):
    first = _load(folder)
    for path in (cache_dir() / "indexes").iterdir():
        damage(path)
    assert _load(folder) == first


def test_an_image_that_vanished_after_the_listing_is_named(folder: Path):
    data = load_data(DataConfig(data=f"folder:{folder}", image_size=16))
    (folder / "train" / "class-0" / "000.jpg").unlink()
    with pytest.raises(UserError, match=r"Could not read .*class-0/000\.jpg: No such file"):
        torch.cat([data.train.to_float(), data.val.to_float()])
