"""A file is whole or absent, and content that changed on disk is never taken for what was written."""

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
from checkpointkd.records.runs import BestEpoch

TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([1, 2, 3])}


def test_tensors_come_back_with_their_metadata(tmp_path: Path):
    sha256 = storage.save_tensors(tmp_path / "x.safetensors", TENSORS, {"epoch": "3"})
    tensors, metadata = storage.load_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert metadata == {"epoch": "3", "sha256": sha256}
    assert storage.content_hash(tensors) == sha256


def test_each_flipped_byte_is_detected(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    storage.save_tensors(path, TENSORS)
    content, errors = path.read_bytes(), []
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        try:
            tensors, _ = storage.load_tensors(path)
        except UserError as error:
            errors.append(str(error))
        else:  # bytes without meaning, such as white space in the header
            assert storage.content_hash(tensors) == storage.content_hash(TENSORS)
    assert len(errors) > 0.9 * len(content)
    assert all("x.safetensors is damaged" in error for error in errors)


def test_each_truncation_is_detected(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    storage.save_tensors(path, TENSORS)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
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


@pytest.mark.slow
def test_a_save_killed_in_the_middle_leaves_the_previous_file(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    half_written = 0
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        last_saved = int(process.stdout.readline())
        began = time.monotonic()
        deadline = began + 20
        while time.monotonic() < deadline:  # kill while a file is half written
            assert path.stat().st_size > 8_000_000, "half a file lay at the path"
            if time.monotonic() > began + 0.5 and (attempt == 0 or _half_written(tmp_path)):
                break
        os.kill(process.pid, signal.SIGKILL)
        output = process.communicate()[0].split()
        last_saved = int(output[-1]) if output else last_saved
        tensors, metadata = storage.load_tensors(path)  # verifies the checksum
        assert int(metadata["number"]) in (last_saved, last_saved + 1)
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


def test_one_process_holds_a_lock_and_its_death_releases_it(tmp_path: Path):
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


def test_a_damaged_line_is_an_error(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert records.read_lines(path, BestEpoch, remedy="Train again.") == []
    path.write_text('{"epoch": 1, "accuracy": 0.5}\n{"epoch": 2, "accuracy": 0.6}\n')
    assert [row.epoch for row in records.read_lines(path, BestEpoch, remedy="Train again.")] == [1, 2]
    for damage in ('{"epoch": 1, "accuracy": 0.5}\n{"epo', "[1]\n", "{}\n", "\udcff"):
        path.write_bytes(damage.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: .*Train again\."):
            records.read_lines(path, BestEpoch, remedy="Train again.")


def test_only_leftovers_of_this_package_are_removed(tmp_path: Path):
    for name in ("a.json.123.unfinished", "my.unfinished", "nested/b.123.unfinished"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    storage.remove_leftovers(tmp_path)
    assert sorted(file.name for file in tmp_path.rglob("*.unfinished")) == ["b.123.unfinished", "my.unfinished"]


def test_a_file_that_is_being_written_is_no_leftover(tmp_path: Path):
    with storage.atomic_write(tmp_path / "a") as file:
        file.write(b"content")
        storage.remove_leftovers(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"content"


def test_links_where_we_write_are_not_followed(tmp_path: Path):
    private = tmp_path / "private"
    private.write_text("private")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock.holder").symlink_to(private)
    (tmp_path / "run" / f"a.{os.getpid()}.unfinished").symlink_to(private)
    with storage.locked(tmp_path / "run"):
        storage.atomic_write_bytes(tmp_path / "run" / "a", b"content")
    assert private.read_text() == "private"
    assert (tmp_path / "run" / "a").read_bytes() == b"content"


def test_an_error_inside_the_block_is_not_a_failed_write(tmp_path: Path):
    (tmp_path / "x").write_text("before")
    with pytest.raises(FileNotFoundError), storage.atomic_write(tmp_path / "x"):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(UserError, match=r"Could not read .*absent: No such file"):
        storage.atomic_copy(tmp_path / "absent", tmp_path / "x")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "before")]


def test_a_failed_write_names_the_path_and_leaves_the_previous_file(tmp_path: Path):
    resource = pytest.importorskip("resource")  # not on Windows
    path = tmp_path / "x"
    path.write_text("before")
    (tmp_path / "large").write_bytes(bytes(100_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # larger files fail, as on a full disk
    try:
        for write in (
            lambda: storage.atomic_write_bytes(path, bytes(100_000)),
            lambda: storage.atomic_copy(tmp_path / "large", path),
        ):
            with pytest.raises(UserError, match=r"Could not write .*/x: File too large\. Previous content"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "before"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["large", "x"]
    with pytest.raises(UserError, match=r"Could not write .*/x/y: "):
        storage.atomic_write_bytes(path / "y", b"")


def test_json_is_never_written_with_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_state_keeps_its_nesting_and_its_numbers(tmp_path: Path):
    state = {"epoch": 3, "groups": [{"lr": 0.1 + 0.2, "params": [0, 1], "name": None}], "of": {0: torch.ones(2, 3)}}
    storage.save_state(tmp_path / "state.bin", state)
    loaded = storage.load_state(tmp_path / "state.bin")
    assert torch.equal(loaded["of"].pop(0), state["of"].pop(0))
    assert loaded == state


@pytest.mark.parametrize(
    "nesting", ['{"tensor": "7"}', '{"pairs": 3}', '{"pairs": [[[], 1]]}', "{}", "[" * 10**5, "\xff", "NaN-"]
)
def test_a_state_from_elsewhere_is_data(nesting: str, tmp_path: Path):
    """A file with a right checksum, whose content is wrong."""
    content = torch.frombuffer(bytearray(nesting.encode("latin-1")), dtype=torch.uint8)
    storage.save_tensors(tmp_path / "state.bin", {storage.NESTING: content})
    with pytest.raises(UserError, match=r"state\.bin is damaged .* Remove the run directory"):
        storage.load_state(tmp_path / "state.bin")
