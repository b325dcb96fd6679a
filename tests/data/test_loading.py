"""The workers that load images: they stay, any share may be empty, and shared memory may be too small."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data, loading
from checkpointkd.data.images import Images
from checkpointkd.ranks import Ranks

from .image_files import folder_of_digits


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Images:
    folder = folder_of_digits(tmp_path_factory.mktemp("images"))
    return load_data(DataConfig(data=f"folder:{folder}", image_size=16)).train


@pytest.fixture(autouse=True)
def workers(monkeypatch):
    monkeypatch.setenv("CHECKPOINTKD_WORKERS", "2")


def _seen(batches, epoch: int, **more) -> tuple[torch.Tensor, torch.Tensor]:
    whole = list(batches.epoch(epoch, **more))
    return torch.cat([batch.index_B for batch in whole]), torch.cat([batch.images_BCHW for batch in whole])


def _batches(images: Images, **more):
    return images.batches(**{"batch_size": 5, "seed": 1, "device": "cpu", **more})


def test_workers_stay_alive_and_load_each_epoch(images: Images):
    batches = _batches(images)
    first, second = _seen(batches, 0), _seen(batches, 1)
    processes = batches._loader._kept._iterator._workers
    assert _seen(batches, 0)[0].equal(first[0])
    assert batches._loader._kept._iterator._workers is processes
    assert all(process.is_alive() for process in processes)
    assert _seen(batches, 0)[1].equal(first[1])
    assert not second[1].equal(first[1]), "another epoch has other crops"
    assert _seen(_batches(images), 1)[1].equal(second[1]), "crops depend on the epoch, not on what was loaded before"


def test_two_epochs_can_be_loaded_at_once(images: Images):
    expected = [_seen(_batches(images), epoch)[1] for epoch in (0, 1)]
    batches = _batches(images)
    pairs = list(zip(batches.epoch(0), batches.epoch(1), strict=True))
    for number in (0, 1):
        assert torch.cat([pair[number].images_BCHW for pair in pairs]).equal(expected[number])


def test_an_epoch_that_was_left_does_not_disturb_the_next(images: Images):
    expected = _seen(_batches(images), 1)[1]
    batches = _batches(images)
    left = batches.epoch(0)
    next(left)
    left.close()
    assert _seen(batches, 1)[1].equal(expected)


@pytest.mark.parametrize("start", [0, 2])
def test_shares_of_three_processes_make_the_whole(images: Images, start: int):
    """The last batch has one image, so two of the processes have an empty share of it, or nothing at all."""
    images = images.subset(torch.arange(9))
    whole_index, whole_pixels = _seen(_batches(images, batch_size=4), 3, start=start)
    shares = [
        list(_batches(images, batch_size=4, ranks=Ranks(rank=rank, world_size=3)).epoch(3, start=start))
        for rank in range(3)
    ]
    merged = [[share[number] for share in shares] for number in range(3 - start)]
    assert torch.cat([part.index_B for parts in merged for part in parts]).equal(whole_index)
    assert torch.cat([part.images_BCHW for parts in merged for part in parts]).equal(whole_pixels)
    assert [[len(part.labels_B) for part in parts] for parts in merged][-1] == [1, 0, 0]


def test_batches_travel_through_pipes_where_shared_memory_is_small(images: Images, monkeypatch, caplog):
    expected = _seen(_batches(images), 0)[1]
    assert not caplog.records
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(64, 63, 1000))
    loading._warn_of_small_memory.cache_clear()
    batches = _batches(images)
    assert _seen(batches, 0)[1].equal(expected)
    assert batches._loader._kept.collate_fn.keywords == {"shared": False}
    assert len(caplog.records) == 1
    assert "/dev/shm has 0 MB free" in caplog.text


def test_an_image_that_becomes_unreadable_is_named_and_the_training_continues(tmp_path: Path):
    """The error comes from a worker that stays alive, in the second epoch."""
    folder = folder_of_digits(tmp_path)
    images = load_data(DataConfig(data=f"folder:{folder}", image_size=16)).train
    batches = _batches(images)
    expected = _seen(batches, 0)[1]
    path = folder / "train" / "class-1" / "000.jpg"
    content = path.read_bytes()
    path.write_bytes(b"hello")
    with pytest.raises(ckd.UserError, match=r"class-1/000\.jpg is not an image"):
        _seen(batches, 1)
    path.write_bytes(content)
    assert _seen(batches, 0)[1].equal(expected)


def test_an_error_does_not_keep_workers_alive(tmp_path: Path):
    """Otherwise later workers, which inherit them, print tracebacks."""
    folder = folder_of_digits(tmp_path)
    images = load_data(DataConfig(data=f"folder:{folder}", image_size=16)).train
    for path in (folder / "train" / "class-1").iterdir():
        path.write_bytes(b"hello")
    loader = loading.RowLoader(images, batches=4, persistent=True)
    kept = weakref.ref(loader)
    gc.disable()
    try:
        with contextlib.suppress(ckd.UserError):
            list(loader.load(torch.arange(20).split(5), None))
        del loader
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups that receive a signal")
def test_a_batch_system_that_stops_all_processes_gets_no_traceback(tmp_path: Path):
    """Workers, too, receive the signal. The command ends with its own message, and leaves no process."""
    folder, run = folder_of_digits(tmp_path / "images"), tmp_path / "run"
    words = ["train", "wrn_10_1", "--data", f"folder:{folder}", "--image-size", "16", "--batch-size", "5"]
    words += ["--epochs", "5000", "--save-every", "5000", "--precision", "fp32", "--out", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "checkpointkd.cli", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (run / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143, errors
    assert errors.strip().endswith("Stopped. Everything that is saved is kept; run the same command again to continue.")
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_pipe_in_the_place_of_an_image_does_not_hang(tmp_path: Path):
    folder = folder_of_digits(tmp_path)
    images = load_data(DataConfig(data=f"folder:{folder}", image_size=16)).train
    for path in (folder / "train" / "class-1").iterdir():
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(ckd.UserError, match="is not a regular file"):
        _seen(_batches(images), 0)
