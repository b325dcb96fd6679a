"""The logit cache: cached logits are the live teacher's, whatever happens to files, disks and processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs

import checkpointkd as ckd
from checkpointkd import records
from checkpointkd.checkpoints import CheckpointRef, resolve_ensemble
from checkpointkd.data import Data, DataConfig, InMemoryBatches, load_data
from checkpointkd.records.logit_cache import LogitManifest, ViewsRecord
from checkpointkd.teachers import cached_batches, logit_cache
from checkpointkd.teachers.cached_batches import CachedTeacherBatches, with_cached_logits
from checkpointkd.teachers.ensemble import Teacher, open_teacher
from checkpointkd.teachers.logit_cache import manifests_of, size_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def data() -> Data:
    return load_data(DataConfig(data="digits", train_images=60, flip=True))


def _with_cache(
    data: Data, teacher: Teacher, *, seed: int = 0, precision="fp32", limit: int = 10**9, batch_size: int = 16
):
    batches = data.train.batches(batch_size=batch_size, seed=seed, device=CPU)
    return with_cached_logits(
        batches, data.train, teacher, precision=precision, limit=limit, on_progress=lambda *_: None
    )


def _forward_sizes(teacher: Teacher, monkeypatch) -> list[int]:
    """Return a list that grows by the number of images of each forward pass from now on."""
    counts: list[int] = []
    real = teacher.member_logits

    def counting(member, batch):
        counts.append(len(batch.labels_B))
        return real(member, batch)

    monkeypatch.setattr(teacher, "member_logits", counting)
    return counts


def test_cached_logits_are_the_live_teachers(teacher_run: Path, data: Data):
    """For each image in each view that four epochs show, for both members."""
    teacher = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"], device=CPU)
    batches = _with_cache(data, teacher)
    assert isinstance(batches, CachedTeacherBatches)
    seen = set()
    for epoch in (0, 1, 2, 1):
        for batch in batches.epoch(epoch):
            assert batch.teacher_TBK is not None
            live_TBK = teacher.logits(replace(batch, teacher_TBK=None))
            torch.testing.assert_close(batch.teacher_TBK, live_TBK, rtol=2**-10, atol=1e-4)
            assert torch.equal(batch.teacher_TBK.argmax(-1), live_TBK.argmax(-1))
            assert batch.view_B is not None
            seen |= set(zip(batch.index_B.tolist(), batch.view_B.tolist(), strict=True))
    assert len(seen) > 150, "the epochs show different views"


def test_only_missing_logits_are_computed(teacher_run: Path, data: Data, monkeypatch):
    monkeypatch.setattr(cached_batches, "FILL_BATCH", 1)
    teacher = open_teacher([str(teacher_run)], device=CPU)
    sizes = _forward_sizes(teacher, monkeypatch)
    first = [batch.teacher_TBK for batch in _with_cache(data, teacher).epoch(0)]
    assert sizes == [1] * 60
    again = [batch.teacher_TBK for batch in _with_cache(data, teacher).epoch(0)]
    assert sizes == [1] * 60, "nothing is missing"
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))  # type: ignore[arg-type]
    batches = _with_cache(data, teacher)
    assert isinstance(batches, CachedTeacherBatches)
    first_N, second_N = (batches.batches.view_N(epoch) for epoch in (0, 1))
    new = int((first_N != second_N).sum())
    assert 30 < new < 60, "with 18 views some images show the same view again"
    steps = []
    batches.on_progress = lambda *step: steps.append(step)
    list(batches.epoch(1))
    assert sizes == [1] * (60 + new), "only the missing rows"
    assert steps[-1] == ("teacher forward", new, new)


def test_logits_do_not_depend_on_how_many_were_missing(teacher_run: Path, data: Data, home: Path):
    """A file filled in one order of epochs equals a file filled in another."""
    teacher = open_teacher([str(teacher_run)], device=CPU)
    contents = []
    for order in ((0, 1, 2), (2, 0, 1)):
        batches = _with_cache(data, teacher)
        for epoch in order:
            list(batches.epoch(epoch))
        (rows,) = home.rglob("rows.bin")
        contents.append(rows.read_bytes())
        rows.unlink()
    assert contents[0] == contents[1]


def test_warm_cold_and_live_runs(teacher_run: Path, tmp_path: Path, home: Path, monkeypatch):
    """A warm and a cold cache give the same run, bit for bit. Without the cache float order differs."""

    def student(name: str, **options) -> ckd.Trajectory:
        return ckd.distill(
            "wrn_10_1",
            teachers=[f"{teacher_run}@2", f"{teacher_run}@4"],
            epochs=3,
            save_every=1,
            precision="fp32",
            out=tmp_path / name,
            **options,
        )

    cold = student("cold")
    assert len(list(home.rglob("rows.bin"))) == 2, "one file per teacher"
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "member_logits", lambda *_: pytest.fail("a teacher ran although the cache is full"))
        warm = student("warm")
    assert [c.sha256 for c in cold.values()] == [c.sha256 for c in warm.values()]
    live = student("live", logit_cache_gb=0)
    assert [row.loss for row in live.rows()] == pytest.approx([row.loss for row in cold.rows()], rel=1e-3)
    assert live.run.teachers == cold.run.teachers
    again = student("again")  # the live run left the cache as it was
    assert again.last.sha256 == cold.last.sha256


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_bf16_with_and_without_the_cache(teacher_run: Path, tmp_path: Path, limit: float):
    student = ckd.distill(
        "wrn_10_1",
        teachers=[f"{teacher_run}@2", f"{teacher_run}@4"],
        epochs=1,
        precision="bf16",
        logit_cache_gb=limit,
        out=tmp_path / "student",
    )
    assert student.complete


def test_each_change_of_the_key_is_another_entry(teacher_run: Path, data: Data, home: Path):
    def entries() -> set[str]:
        return {path.parent.name for path in home.rglob("rows.bin")}

    midpoint, last = (open_teacher([f"{teacher_run}@{epoch}"], device=CPU) for epoch in (2, 4))
    before: set[str] = set()
    fewer_images = load_data(DataConfig(data="digits", train_images=50, flip=True))
    no_flip = load_data(DataConfig(data="digits", train_images=60))
    for change in (
        lambda: _with_cache(data, last),
        lambda: _with_cache(data, midpoint),
        lambda: _with_cache(fewer_images, last),
        lambda: _with_cache(no_flip, last),
        lambda: _with_cache(data, last, precision="bf16"),
    ):
        assert isinstance(change(), CachedTeacherBatches)
        assert len(entries() - before) == 1
        before = entries()
    _with_cache(data, last, seed=7, batch_size=5)
    assert entries() == before, "runs of other seeds and batch sizes share an entry"


@pytest.mark.parametrize("package", ["checkpointkd", "torch"])
def test_another_version_of_the_code_is_another_entry(
    package: str, teacher_run: Path, data: Data, home: Path, monkeypatch
):
    def computed() -> int:
        """How many images the teacher's network sees for one epoch and for the validation set."""
        teacher = open_teacher([str(teacher_run)])
        counts = _forward_sizes(teacher, monkeypatch)
        list(_with_cache(data, teacher).epoch(0))
        monkeypatch.setattr(teacher, "_compute_clean", lambda member, images: counts.append(1) or torch.zeros(300, 10))
        teacher.predict(data.val)
        return len(counts)

    real = logit_cache.version
    assert [computed(), computed()] == [2, 0]
    monkeypatch.setattr(logit_cache, "version", lambda name: "0.0.1" if name == package else real(name))
    assert [computed(), computed()] == [2, 0]
    assert len(list((home / "logits").iterdir())) == 4


def test_the_version_of_timm_is_part_of_the_key_of_its_models_only(teacher_run: Path, data: Data):
    checkpoint = open_teacher([str(teacher_run)]).members[0].checkpoint
    names = {}
    for model in ("wrn_10_1", "timm:resnet18"):
        member = CheckpointRef("run", replace(checkpoint, run=structs.replace(checkpoint.run, model=model)))
        (manifest,) = manifests_of([member], data.val, views=None, precision="fp32", device=CPU, batch_size=1)
        names[model] = set(manifest.versions)
    assert names == {"wrn_10_1": {"checkpointkd", "torch"}, "timm:resnet18": {"checkpointkd", "torch", "timm"}}


OWN_NETWORK = """
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, num_classes)
    def forward(self, images):
        return FACTOR * self.head(self.layers(images))
"""


def test_an_edited_forward_of_a_users_network_gives_fresh_logits(
    data: Data, tmp_path: Path, home: Path, monkeypatch, caplog
):
    """The weights stay the same, and so does everything else in a key."""
    caplog.set_level("INFO", "checkpointkd")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two edits within a second look alike to Python's own cache
    code = tmp_path / "edited_network.py"
    code.write_text(OWN_NETWORK.replace("FACTOR", "1"))
    ckd.train("edited_network:Net", data="digits", train_images=60, epochs=1, out=tmp_path / "run")

    def logits() -> tuple[torch.Tensor, torch.Tensor]:
        sys.modules.pop("edited_network", None)
        teacher = open_teacher([str(tmp_path / "run")])
        batch = next(iter(_with_cache(data, teacher).epoch(0)))
        return teacher.predict(data.val), teacher.logits(batch) if batch.teacher_TBK is None else batch.teacher_TBK

    clean, seen = logits()
    code.write_text(OWN_NETWORK.replace("FACTOR", "2"))
    edited_clean, edited_seen = logits()
    torch.testing.assert_close(edited_clean, 2 * clean)
    torch.testing.assert_close(edited_seen, 2 * seen, rtol=2**-9, atol=1e-4)
    assert not (home / "logits").exists()
    assert "Teachers run at every step: the code of edited_network:Net may change" in caplog.text


FILLER = """
import sys
import torch
torch.set_num_threads(1)
import checkpointkd as ckd
from checkpointkd import records
from checkpointkd.checkpoints import CheckpointRef, resolve_ensemble
from checkpointkd.data import DataConfig, load_data
from checkpointkd.teachers.ensemble import open_teacher
from checkpointkd.teachers.cached_batches import with_cached_logits
data = load_data(DataConfig(data="digits", train_images=600, flip=True))
teacher = open_teacher([sys.argv[1]], device=torch.device("cpu"))
batches = data.train.batches(batch_size=100, seed=0, device="cpu")
batches = with_cached_logits(batches, data.train, teacher, precision="fp32", limit=10**9, on_progress=lambda *_: None)
print("begun", flush=True)
for epoch in range(8):
    list(batches.epoch(epoch))
print("done", flush=True)
"""


def _fill(teacher_run: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", FILLER, str(teacher_run)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_and_concurrent_processes_fill_the_same_file(teacher_run: Path, home: Path):
    single = _fill(teacher_run)
    assert single.communicate()[0].split() == ["begun", "done"]
    (rows,) = home.rglob("rows.bin")
    expected = rows.read_bytes()
    rows.unlink()
    for trial in range(2):
        killed = _fill(teacher_run)
        assert killed.stdout is not None
        killed.stdout.readline()
        time.sleep(0.05 + 0.2 * trial)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    both = [_fill(teacher_run) for _ in range(2)]
    assert [process.communicate()[0].split() for process in both] == [["begun", "done"]] * 2
    assert rows.read_bytes() == expected


def test_teachers_run_at_every_step_if_the_disk_is_full(teacher_run: Path, data: Data, monkeypatch, caplog, home: Path):
    teacher = open_teacher([str(teacher_run)], device=CPU)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    batches = _with_cache(data, teacher)
    assert isinstance(batches, InMemoryBatches)
    assert "Teachers run at every step" in caplog.text
    assert "No space left on device" in caplog.text
    files = (home / "logits").rglob("*")
    assert not [path for path in files if path.is_file() and path.suffix != ".json"], "no partial file is left"


@pytest.mark.parametrize("older", [0, 1])
def test_the_limit_removes_entries_but_not_those_that_are_wanted(
    older: int, teacher_run: Path, data: Data, home: Path, caplog
):
    size = size_of(60 * 18, 10)
    teachers = [open_teacher([f"{teacher_run}@{epoch}"], device=CPU) for epoch in (1, 2, 3)]
    stored: dict[int, Path] = {}
    for number, teacher in enumerate(teachers[:2]):
        _with_cache(data, teacher, limit=2 * size)
        (stored[number],) = set(home.rglob("rows.bin")) - set(stored.values())
        for path in stored[number].parent.iterdir():
            os.utime(path, (1000 + number, 1000 + number))
    newer = _with_cache(data, teachers[1 - older], limit=2 * size)  # used again
    assert isinstance(newer, CachedTeacherBatches)
    assert isinstance(_with_cache(data, teachers[2], limit=2 * size), CachedTeacherBatches)
    assert [stored[older].exists(), stored[1 - older].exists()] == [False, True]
    assert isinstance(_with_cache(data, teachers[older], limit=size - 1), InMemoryBatches)
    assert "--logit-cache-gb allows" in caplog.text
    assert stored[1 - older].exists(), "nothing is removed for logits that exceed the limit"
    assert isinstance(_with_cache(data, teachers[older], limit=size), CachedTeacherBatches)
    assert not stored[1 - older].exists()
    logits = [batch.teacher_TBK for batch in newer.epoch(3)]  # its file is removed, but still open
    assert len(logits) == 4


def test_logits_of_clean_images_and_of_views_share_the_limit(teacher_run: Path, data: Data, home: Path):
    """Entries that were unused for longest are removed first, whichever kind they are."""

    def teacher(epoch: int, limit: int = 10**9) -> Teacher:
        return Teacher(resolve_ensemble([f"{teacher_run}@{epoch}"]), device=CPU, cache_limit=limit)

    def keys() -> set[str]:
        return {path.name for path in (home / "logits").iterdir()}

    def age(key: str, seconds: int) -> None:
        for path in (home / "logits" / key).iterdir():
            os.utime(path, (seconds, seconds))

    teacher(1).predict(data.val)
    (first,) = keys()
    teacher(2).predict(data.val)
    (second,) = keys() - {first}
    age(first, 1000)
    age(second, 2000)
    teacher(1).predict(data.val)  # the first entry is used again
    clean = (home / "logits" / first / "logits.safetensors").stat().st_size
    _with_cache(data, teacher(1), limit=size_of(60 * 18, 10) + clean)
    assert first in keys()
    assert second not in keys()
    assert len(keys()) == 2
    teacher(3, limit=300 * 10 * 4 - 1).predict(data.val)
    assert len(keys()) == 2, "for logits that do not fit into the limit nothing is removed and nothing is stored"
    for key in keys():
        manifest = records.read(home / "logits" / key / "manifest.json", LogitManifest, remedy="")
        assert manifest.views == (None if key == first else ViewsRecord(pad=1, flip=True))
        assert manifest.rows == (300 if key == first else 60 * 18)


def test_a_file_of_another_size_is_written_anew(teacher_run: Path, data: Data, home: Path):
    teacher = open_teacher([str(teacher_run)], device=CPU)
    list(_with_cache(data, teacher).epoch(0))
    (rows,) = home.rglob("rows.bin")
    content = rows.read_bytes()
    rows.write_bytes(content[:-8])
    list(_with_cache(data, teacher).epoch(0))
    assert rows.read_bytes() == content
