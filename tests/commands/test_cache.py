"""`cache` lists what is kept below CHECKPOINTKD_HOME, and frees copies only."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import checkpointkd as ckd
from checkpointkd.errors import UserError

MANIFEST = {
    "teacher": "0123456789abcdef",
    "model": "wrn_16_2",
    "images": "89ab",
    "views": None,
    "rows": 1000,
    "classes": 10,
    "precision": "fp32",
    "device": "cpu",
    "batch_size": 250,
    "versions": {"torch": "2.13.0"},
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory with one entry of each kind."""
    home = tmp_path / "home"
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(home))
    for name in ("logits/abc", "decoded/digits", "external/runs-12", "trusted", "cifar10"):
        (home / name).mkdir(parents=True)
    (home / "logits" / ".lock").touch()
    (home / "logits" / "abc" / "rows.bin").write_bytes(bytes(1000))
    (home / "logits" / "abc" / "manifest.json").write_text(json.dumps(MANIFEST))
    (home / "logits" / "def").mkdir()
    (home / "logits" / "def" / "manifest.json").write_text("{}")
    (home / "logits" / "file").write_bytes(bytes(100))
    np.save(home / "decoded" / "digits" / "pixels.npy", np.zeros((5, 1, 8, 8), np.uint8))
    (home / "trusted" / "4711").touch()
    (home / "cifar10" / "cifar-10-python.tar.gz").write_bytes(bytes(300))
    return home


def test_list_shows_kind_size_last_use_and_content(home: Path):
    os.utime(home / "logits" / "abc" / "rows.bin", (10**9, 10**9))
    os.utime(home / "logits" / "abc" / "manifest.json", (10**9, 10**9))
    os.utime(home / "logits" / "abc", (10**9, 10**9))
    result = ckd.cache("list")
    entries = {entry["path"].removeprefix(f"{home}/"): entry for entry in result["entries"]}
    kinds = {name: entry["kind"] for name, entry in entries.items()}
    assert kinds == {
        "cifar10": "data",
        "decoded/digits": "decoded",
        "external/runs-12": "external",
        "logits/abc": "logits",
        "logits/def": "logits",
        "logits/file": "logits",
        "trusted/4711": "trusted",
    }
    assert entries["logits/abc"]["bytes"] == 1000 + (home / "logits" / "abc" / "manifest.json").stat().st_size
    assert entries["logits/abc"]["last_used"] == "2001-09-09T01:46:40+00:00"
    assert entries["logits/abc"]["content"] == ("wrn_16_2, weights 0123456789ab: 1,000 clean images, 10 classes, fp32")
    assert entries["logits/def"]["content"] == "damaged"
    assert entries["decoded/digits"]["content"] == "images 5×1×8×8"
    assert result["bytes"] == sum(entry["bytes"] for entry in entries.values())
    assert [entry["kind"] for entry in ckd.cache("list", "decoded")["entries"]] == ["decoded"]


@pytest.mark.parametrize(
    ("kinds", "deleted"),
    [
        (["logits"], {"logits/abc", "logits/def", "logits/file"}),
        (["decoded"], {"decoded/digits"}),
        (["all"], {"logits/abc", "logits/def", "logits/file", "decoded/digits"}),
    ],
)
def test_clear_deletes_copies_only(kinds: list[str], deleted: set[str], home: Path):
    before = {entry["path"] for entry in ckd.cache("list")["entries"]}
    result = ckd.cache("clear", *kinds)
    assert {entry["path"] for entry in result["entries"]} == {str(home / name) for name in deleted}
    assert result["bytes"] > 0
    assert {entry["path"] for entry in ckd.cache("list")["entries"]} == before - {str(home / name) for name in deleted}
    assert ckd.cache("clear", *kinds)["entries"] == []


def test_clear_does_not_follow_links(home: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    (home / "decoded" / "link").symlink_to(tmp_path / "elsewhere")
    ckd.cache("clear", "decoded")
    assert not (home / "decoded" / "link").exists()
    assert (tmp_path / "elsewhere" / "kept").exists()


def test_clear_says_what_it_could_not_delete(home: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(UserError, match=r"2 of 3 entries could not be deleted \(.*/abc: .*Permission denied.*freed"):
        ckd.cache("clear", "logits")
    assert not (home / "logits" / "file").exists()


def test_an_absent_cache_is_empty(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(home / "absent"))
    assert ckd.cache("list")["entries"] == []


def test_external_checkpoints_in_the_cache_are_named(home: Path, teacher_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # nothing can be written beside the checkpoints
    ckd.inspect(teacher_run / "checkpoints", model="wrn_10_1", data="digits")
    (entry,) = (e for e in ckd.cache("list", "external")["entries"] if "runs-12" not in e["path"])
    assert entry["content"] == f"wrn_10_1 in {teacher_run / 'checkpoints'}"


def test_what_commands_make_can_be_cleared_and_made_again(home: Path, tmp_path: Path):
    small = {"data": "digits", "train_images": 60, "epochs": 1, "precision": "fp32"}
    first = ckd.train("wrn_10_1", out=tmp_path / "first", **small)
    cleared = ckd.cache("clear", "all")
    assert "decoded" in {entry["kind"] for entry in cleared["entries"]}
    second = ckd.train("wrn_10_1", out=tmp_path / "second", **small)
    assert first.last.sha256 == second.last.sha256
