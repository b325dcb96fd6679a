"""A file is whole or absent, and what was changed on disk is never taken for what was written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from checkpointkd import records, storage
from checkpointkd.errors import UserError
from checkpointkd.records import BestEpoch

TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([1, 2, 3])}


def test_tensors_come_back_with_their_metadata(tmp_path: Path):
    sha256 = storage.save_tensors(tmp_path / "x.safetensors", TENSORS, {"epoch": "3"})
    tensors, metadata = storage.load_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert metadata == {"epoch": "3", "sha256": sha256}
    assert storage.content_hash(tensors) == sha256


def test_every_single_flipped_byte_is_noticed(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    storage.save_tensors(path, TENSORS)
    whole, noticed = path.read_bytes(), []
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            tensors, _ = storage.load_tensors(path)
        except UserError as error:
            noticed.append(str(error))
        else:  # only what carries no meaning, such as white space in the header, may change unnoticed
            assert storage.content_hash(tensors) == storage.content_hash(TENSORS)
    assert len(noticed) > 0.9 * len(whole)
    assert all("x.safetensors is damaged" in sentence for sentence in noticed)


def test_every_truncation_is_noticed(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    storage.save_tensors(path, TENSORS)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"x\.safetensors is damaged"):
            storage.load_tensors(path)


SAVER = """
import sys, torch
from pathlib import Path
from checkpointkd import storage
for number in range(100_000):
    storage.save_tensors(Path(sys.argv[1]), {"a": torch.full((2_000_000,), float(number))}, {"number": str(number)})
    print(number, flush=True)
"""


def test_a_save_killed_in_the_middle_leaves_the_file_before_it(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    half_written = 0
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = int(process.stdout.readline())
        began = time.monotonic()
        deadline = began + 20
        while time.monotonic() < deadline:  # kill while a file is being written aside
            assert path.stat().st_size > 8_000_000, "half a file was there to be read"
            if time.monotonic() > began + 0.5 and (attempt == 0 or _half_written(tmp_path)):
                break
        os.kill(process.pid, signal.SIGKILL)
        rest = process.communicate()[0].split()
        said = int(rest[-1]) if rest else said
        tensors, metadata = storage.load_tensors(path)  # whole, checksum and all
        assert int(metadata["number"]) in (said, said + 1)
        assert torch.equal(tensors["a"], torch.full((2_000_000,), float(metadata["number"])))
        half_written += _half_written(tmp_path)
        storage.remove_leftovers(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert half_written > 0, "no save was killed in the middle, so nothing was tested"


def _half_written(folder: Path) -> bool:
    try:
        return any(0 < aside.stat().st_size < 8_000_000 for aside in folder.glob(f"*{storage.TMP_SUFFIX}"))
    except FileNotFoundError:  # renamed meanwhile
        return False


def test_a_folder_is_held_by_one_process_and_freed_when_it_dies(tmp_path: Path):
    holder = "import sys,time\nfrom pathlib import Path\nfrom checkpointkd import storage\n"
    holder += "with storage.locked(Path(sys.argv[1])):\n print('held', flush=True)\n time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"is in use by process {process.pid}"), storage.locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    with storage.locked(tmp_path):
        pass


def test_rows_are_read_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert records.read_lines(path, BestEpoch, remedy="Train again.") == []
    path.write_text('{"epoch": 1, "accuracy": 0.5}\n{"epoch": 2, "accuracy": 0.6}\n')
    assert [row.epoch for row in records.read_lines(path, BestEpoch, remedy="Train again.")] == [1, 2]
    for damage in ('{"epoch": 1, "accuracy": 0.5}\n{"epo', "[1]\n", "{}\n", "\udcff"):
        path.write_bytes(damage.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: .*Train again\."):
            records.read_lines(path, BestEpoch, remedy="Train again.")


def test_only_our_own_leftovers_are_removed(tmp_path: Path):
    for name in ("a.json.123.unfinished", "my.unfinished", "nested/b.123.unfinished"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    storage.remove_leftovers(tmp_path)
    assert sorted(file.name for file in tmp_path.rglob("*.unfinished")) == ["b.123.unfinished", "my.unfinished"]


def test_json_is_never_written_with_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
