"""Folders as pieces: what is packed comes out the same, in any state, or with one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import checkpointkd as ckd
from checkpointkd import files
from checkpointkd.cli import main
from checkpointkd.errors import UserError


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }


def _fill(folder: Path) -> None:
    for name, content in {"a": b"x" * 30_000, "b/c": os.urandom(25_000), "b/d": b"", "e-0": b"1", "e/0": b"2"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_what_is_packed_comes_out_the_same_in_pieces_of_the_size(tmp_path: Path):
    folder, pieces = tmp_path / "folder", tmp_path / "pieces"
    _fill(folder)
    first = ckd.pack(folder, out=pieces, megabytes=0.02)
    assert max(path.stat().st_size for path in pieces.glob("*.bin")) == 20_000
    assert (len(first["pieces"]), first["files"], first["bytes"]) == (3, 5, 55_002)
    assert ckd.pack(folder, out=pieces, megabytes=0.02)["pieces"] == [], "nothing is new"
    (folder / "a").write_bytes(b"y")
    (folder / "b" / "c").unlink()
    (folder / "report.html").write_text("made again")
    second = ckd.pack(folder, out=pieces, megabytes=0.02)
    assert (len(second["pieces"]), second["files"], second["gone"]) == (1, 1, 1)
    ckd.unpack(pieces, out=tmp_path / "there")
    (folder / "report.html").unlink()
    assert _tree(tmp_path / "there") == _tree(folder)


def test_a_folder_is_brought_up_to_date_and_sent_back(tmp_path: Path):
    here, there, pieces = tmp_path / "here", tmp_path / "there", tmp_path / "pieces"
    _fill(here)
    ckd.pack(here, out=pieces)
    ckd.unpack(pieces, out=there)
    (there / "b" / "new").write_text("n")
    (there / "a").unlink()
    ckd.pack(there, out=pieces)
    ckd.unpack(pieces, out=here)
    assert _tree(here) == _tree(there)
    (here / "mine").write_text("never packed")
    (there / "more").write_text("m")
    ckd.pack(there, out=pieces)
    before = _tree(here)
    with pytest.raises(UserError, match=r"has what is not in the pieces \(mine\)"):
        ckd.unpack(pieces, out=here)
    assert _tree(here) == before


def test_a_run_that_was_carried_goes_on_as_if_it_had_stayed(tmp_path: Path):
    options = {
        "data": "digits",
        "train_images": 60,
        "epochs": 4,
        "batch_size": 20,
        "save_every": 1,
        "precision": "fp32",
    }
    stayed = ckd.train("wrn_10_1", out=tmp_path / "stayed", **options)

    def stop(task: str, done: int, total: int) -> None:
        if done > 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ckd.train("wrn_10_1", out=tmp_path / "runs" / "carried", progress=stop, **options)
    ckd.pack(tmp_path / "runs", out=tmp_path / "pieces", megabytes=0.1)
    ckd.unpack(tmp_path / "pieces", out=tmp_path / "there")
    carried = ckd.train("wrn_10_1", out=tmp_path / "there" / "carried", **options)
    assert carried.full.sha256 == stayed.full.sha256


@pytest.mark.parametrize("damage", ["flipped", "short", "gone", "index", "outside", "absolute"])
def test_damaged_pieces_are_refused_and_leave_what_is_there(tmp_path: Path, damage: str, capsys):
    folder, pieces, there = tmp_path / "folder", tmp_path / "pieces", tmp_path / "there"
    _fill(folder)
    ckd.pack(folder, out=pieces, megabytes=0.02)
    piece, index = pieces / "0001-0002.bin", pieces / "index.json"
    if damage == "flipped":
        content = bytearray(piece.read_bytes())
        content[7] ^= 1
        piece.write_bytes(bytes(content))
    elif damage == "short":
        piece.write_bytes(piece.read_bytes()[:100])
    elif damage == "gone":
        piece.unlink()
    elif damage == "index":
        index.write_text('{"packs": [{"files": []}]}')
    else:
        where = "../outside" if damage == "outside" else str(tmp_path / "outside")
        stored = json.loads(index.read_text())
        stored["packs"][0]["files"][where] = stored["packs"][0]["files"].pop("e-0")
        index.write_text(json.dumps(stored))
    assert main(["unpack", str(pieces), "--out", str(there)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "outside").exists()
    for name, content in _tree(there).items():
        assert content == (folder / name).read_bytes(), "what is there is whole"


def test_a_pack_that_was_stopped_never_was(tmp_path: Path, monkeypatch):
    folder, pieces = tmp_path / "folder", tmp_path / "pieces"
    _fill(folder)
    write, written = files.write_whole, []

    def stop(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", stop)
        with pytest.raises(KeyboardInterrupt):
            ckd.pack(folder, out=pieces, megabytes=0.02)
    with pytest.raises(UserError, match="there is no index of pieces"):
        ckd.unpack(pieces, out=tmp_path / "there")
    ckd.pack(folder, out=pieces, megabytes=0.02)
    ckd.unpack(pieces, out=tmp_path / "there")
    assert _tree(tmp_path / "there") == _tree(folder)


def test_what_cannot_be_packed_is_said(tmp_path: Path):
    with pytest.raises(UserError, match="there is no folder at"):
        ckd.pack(tmp_path / "nowhere", out=tmp_path / "pieces")
    _fill(tmp_path / "folder")
    with pytest.raises(UserError, match="lies in"):
        ckd.pack(tmp_path / "folder", out=tmp_path / "folder" / "pieces")
    with pytest.raises(UserError, match="pieces have from"):
        ckd.pack(tmp_path / "folder", out=tmp_path / "pieces", megabytes=float("nan"))
