"""`convert`: safetensors files that know their epoch, from any trainer's checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.checkpoints import register_external, scan_folder
from checkpointkd.cli import main
from checkpointkd.data import Data
from checkpointkd.errors import UserError

from .writers import WRITERS, Written, copied

every_format = pytest.mark.parametrize("written", WRITERS, indirect=True)


@every_format
def test_converted_checkpoints_are_the_same_networks(written: Written, tmp_path: Path, digits: Data):
    path, model, _ = written
    converted = ckd.convert(path, out=tmp_path / "converted")
    assert list(converted["checkpoints"]) == ["1", "2", "3"]
    assert list(scan_folder(tmp_path / "converted").checkpoints) == [1, 2, 3]
    before = register_external(path, model=model, data=digits)
    after = register_external(tmp_path / "converted", model=model, data=digits)
    for epoch in before:
        expected, loaded = (trajectory[epoch].network().state_dict() for trajectory in (before, after))
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_a_conversion_continues_and_overwrites_nothing(all_written: dict[str, Written], tmp_path: Path, capsys):
    path, _, _ = copied(all_written["Lightning, Hydra"], tmp_path)
    out = tmp_path / "converted"
    assert main(["convert", path, "--out", str(out)]) == 0
    assert "functools.partial" in capsys.readouterr().out
    files = sorted(out.glob("*.safetensors"))
    assert len(files) == 3
    assert "optimizer" not in json.dumps(list(ckd.convert(path, out=out)["checkpoints"]["1"]["source"]))
    times = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    ckd.convert(path, out=out)
    assert [file.stat().st_mtime_ns for file in files][::2] == times[::2], "these were there"
    assert files[1].exists()
    with pytest.raises(UserError, match="of another file or another --state-dict-key"):
        ckd.convert(path, out=out, state_dict_key="state_dict")
    other = tmp_path / "other"
    shutil.copytree(out, other)
    (other / "convert.json").unlink()
    assert list(ckd.convert(path, out=other)["checkpoints"]) == ["1", "2", "3"], "killed before the manifest"
    (other / "convert.json").unlink()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="other holds something else"):
        ckd.convert(path, out=other)


def test_a_damaged_checkpoint_is_named_and_left_out(all_written: dict[str, Written], tmp_path: Path, capsys):
    path, model, _ = copied(all_written["state dict, compiled"], tmp_path)
    damaged = Path(path) / "net-epoch02.pt"
    damaged.write_bytes(damaged.read_bytes()[:-5000])
    assert list(ckd.convert(path, out=tmp_path / "converted")["checkpoints"]) == ["1", "3"]
    assert main(["inspect", path, "--model", model, "--data", "digits"]) == 0
    assert "Left out: net-epoch02.pt: damaged" in " ".join(capsys.readouterr().out.split())
    assert list(ckd.open_trajectory(path)) == [1, 3]
    with pytest.raises(UserError, match=r"net-epoch02\.pt is damaged"):
        ckd.inspect(damaged, model=model, data="digits")


def test_steps_are_kept(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    for step in (500, 1000):
        torch.save({"weight": torch.full((2, 2), float(step))}, source / f"model_step{step}.pt")
    out = tmp_path / "converted"
    ckd.convert(source, out=out)
    assert sorted(file.name for file in out.glob("*.safetensors")) == [
        "step-000500.safetensors",
        "step-001000.safetensors",
    ]
    folder = scan_folder(out)
    assert (folder.unit, list(folder.checkpoints)) == ("step", [500, 1000])
