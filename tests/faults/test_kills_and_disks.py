"""Killed processes, full disks and missing permissions: nothing is lost, and no wrong file is taken for a right one."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpointkd as ckd
from checkpointkd import storage
from checkpointkd.errors import UserError
from checkpointkd.teachers.logit_cache import LogitFile

from .commands import processes

SMALL: dict[str, Any] = {"data": "digits", "train_images": 60, "batch_size": 20, "precision": "fp32"}


def train(out: Path, epochs: int = 8) -> None:
    ckd.train("wrn_10_1", out=out, epochs=epochs, save_every=1, **SMALL)


def score(run: Path) -> None:
    ckd.score(run, decoder_steps=40, fit_images=60, decoder_seeds=1)


def distill(out: Path, teachers: list[str]) -> None:
    ckd.distill(
        "wrn_10_1",
        teachers=teachers,
        out=out,
        epochs=8,
        save_every=1,
        allow_weak_teacher=True,
        batch_size=20,
        precision="fp32",
    )


def _child(home: str, work: Callable, arguments: tuple) -> None:
    os.environ["CHECKPOINTKD_HOME"] = home
    torch.set_num_threads(1)
    work(*arguments)


def _finish(work: Callable, *arguments: Any, home: Path) -> None:
    """Do the work in a process of its own."""
    process = processes.Process(target=_child, args=(str(home), work, arguments))
    process.start()
    process.join()
    assert process.exitcode == 0


def _kill_repeatedly(work: Callable, *arguments: Any, home: Path, kills: int, check: Callable[[], None]) -> int:
    """Start the work again and again, kill it at random moments, and finish it. Return the number of kills."""
    draw = random.Random(0)
    longest, killed = 1.0, 0
    while killed < kills:
        process = processes.Process(target=_child, args=(str(home), work, arguments))
        began = time.monotonic()
        process.start()
        process.join(draw.uniform(0.02, longest))
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
            check()
        else:
            assert process.exitcode == 0
            longest = max(0.1, min(longest, time.monotonic() - began))
            check()
            _start_over(arguments[0])
    _finish(work, *arguments, home=home)
    return killed


def _start_over(run: Path) -> None:
    """Remove the scores of a finished run, or else the run, so that there is something to kill again."""
    if (run / "plane.json").exists():
        (run / "plane.json").unlink()
    else:
        shutil.rmtree(run)


def contents(run: Path) -> dict[str, Any]:
    """Return all that a run left, without times and places."""
    left_out = {"provenance", "seconds", "wall_seconds_since_start_or_resume", "teacher_refs", "teachers_cost"}
    files: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or path.name.startswith(".lock"):
            continue
        if path.suffix == ".json":
            value = json.loads(path.read_text())
            files[name] = {key: value[key] for key in value if key not in left_out}
            for member in value.get("teachers_measured", {}).get("members", []):
                del member["ref"]
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            files[name] = [{key: row[key] for key in row if key != "seconds"} for row in rows]
        else:
            files[name] = path.read_bytes()
    return files


@pytest.mark.slow
@pytest.mark.parametrize("kills", [(6, 4, 6), (20, 12, 20)])
def test_runs_that_were_killed_repeatedly_equal_undisturbed_ones(kills: tuple[int, int, int], tmp_path: Path, capsys):
    undisturbed, undisturbed_home = tmp_path / "undisturbed", tmp_path / "undisturbed home"
    _finish(train, undisturbed / "teacher", home=undisturbed_home)
    _finish(score, undisturbed / "teacher", home=undisturbed_home)
    teachers = [f"{undisturbed}/teacher@4", f"{undisturbed}/teacher@8"]
    _finish(distill, undisturbed / "student", teachers, home=undisturbed_home)
    (undisturbed / "teacher" / "plane.json").rename(tmp_path / "plane.json")
    run = tmp_path / "killed"
    counts: Counter[str] = Counter()

    def every_checkpoint_is_right() -> None:
        for path in run.rglob("epoch-*.safetensors"):
            assert path.read_bytes() == (undisturbed / path.relative_to(run)).read_bytes(), path
            storage.load_tensors(path)

    how: dict[str, Any] = {"home": tmp_path / "home", "check": every_checkpoint_is_right}
    counts["training"] = _kill_repeatedly(train, run / "teacher", kills=kills[0], **how)
    trained = {name: content for name, content in contents(undisturbed / "teacher").items() if "plane" not in name}
    assert contents(run / "teacher") == trained
    counts["scoring"] = _kill_repeatedly(score, run / "teacher", kills=kills[1], **how)
    (tmp_path / "plane.json").rename(undisturbed / "teacher" / "plane.json")
    assert contents(run / "teacher") == contents(undisturbed / "teacher")
    teachers = [f"{run}/teacher@4", f"{run}/teacher@8"]
    counts["distilling"] = _kill_repeatedly(distill, run / "student", teachers, kills=kills[2], **how)
    assert contents(run / "student") == contents(undisturbed / "student")
    files = list((tmp_path / "home").rglob("rows.bin"))
    assert files
    for path in files:
        _cached_logits_agree(path, undisturbed_home / path.relative_to(tmp_path / "home"))
    with capsys.disabled():
        print(f"\nkilled {sum(counts.values())} times: {dict(counts)}")


def _cached_logits_agree(path: Path, undisturbed: Path) -> None:
    """Compare the rows of two files of the logit cache that both have."""
    rows = 60 * 9  # images × views
    logits_MK, valid_M = LogitFile(path, rows=rows, classes=10).read(torch.arange(rows))
    expected_MK, expected_valid_M = LogitFile(undisturbed, rows=rows, classes=10).read(torch.arange(rows))
    both_M = valid_M & expected_valid_M
    assert bool(both_M.any())
    assert torch.equal(logits_MK[both_M], expected_MK[both_M])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB. A report fits twice: the new one is written before the old one is removed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the permission to mount a disk")
    yield place
    subprocess.run(["mount", "-o", "remount,rw", str(place)], check=False)
    subprocess.run(["umount", str(place)], check=True)


def _leave_free(disk: Path, free: int) -> None:
    """Fill the disk, except for this many bytes."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    status = os.statvfs(disk)
    with open(filler, "wb") as file:
        if size := max(0, status.f_bavail * status.f_frsize - free):
            os.posix_fallocate(file.fileno(), 0, size)


def _repeat_with_more_space(disk: Path, work: Callable[[], Any], *, sizes: Iterable[int]) -> Counter[str]:
    """Try the work with more and more free space until it succeeds. Return how often each file could not be written."""
    failed: Counter[str] = Counter()
    for free in sizes:
        _leave_free(disk, free)
        before = {path: path.read_bytes() for path in disk.rglob("epoch-*.safetensors")}
        message = ""
        try:
            work()
        except UserError as error:
            message = str(error)
        for path, content in before.items():
            assert path.read_bytes() == content, "a complete checkpoint changed"
        assert not list(disk.rglob(f"*{storage.TMP_SUFFIX}")), "a half-written file is left"
        if not message:
            return failed
        assert "No space left on device" in message, message
        assert "\n" not in message
        path = re.search(rf"{re.escape(str(disk))}[^ :;]*", message)
        assert path, message
        failed[Path(path[0]).name] += 1
    raise AssertionError(f"there was never enough space: {failed}")


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_loses_nothing(small_disk: Path, tmp_path: Path, capsys):
    train(tmp_path / "undisturbed", epochs=3)
    run = small_disk / "run"
    page = 4096
    checkpoint = (tmp_path / "undisturbed" / "checkpoints" / "epoch-0001.safetensors").stat().st_size
    after_checkpoint = [(checkpoint // page + pages) * page for pages in range(4)]  # and before its row
    sizes = [0, *after_checkpoint, *range(5 * page, 7_000_000, 5 * page)]
    failed = _repeat_with_more_space(small_disk, lambda: train(run, epochs=3), sizes=sizes)
    assert contents(run) == contents(tmp_path / "undisturbed")
    for name in ("run.json", "epoch-0001.safetensors", "state.bin", "metrics.jsonl"):
        assert failed[name] > 0, failed
    (small_disk / "filler").unlink()
    (tmp_path / "runs").mkdir()
    score(tmp_path / "undisturbed")
    failed |= _repeat_with_more_space(small_disk, lambda: score(run), sizes=range(0, 7_000_000, page))
    assert contents(run) == contents(tmp_path / "undisturbed")
    failed |= _repeat_with_more_space(small_disk, lambda: ckd.select(run), sizes=range(0, 7_000_000, page))
    failed |= _repeat_with_more_space(small_disk, lambda: ckd.report(run), sizes=range(0, 7_000_000, 16 * page))
    for name in ("plane.json", "selection.json", "report.html"):
        assert failed[name] > 0, failed
    with capsys.disabled():
        print(f"\nthe disk was full {sum(failed.values())} times, when writing {dict(failed)}")


def test_a_read_only_disk_can_be_read(small_disk: Path, tmp_path: Path):
    train(small_disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert ckd.inspect(small_disk / "run")["complete"]
    assert len(ckd.evaluate(f"{small_disk}/run@midpoint", f"{small_disk}/run@last")["members"]) == 2
    distill(tmp_path / "student", [f"{small_disk}/run@midpoint"])
    for write in (
        lambda: score(small_disk / "run"),
        lambda: ckd.select(small_disk / "run", rule="midpoint"),
        lambda: train(small_disk / "second"),
        lambda: ckd.report(small_disk / "run"),
    ):
        with pytest.raises(UserError, match="Read-only file system"):
            write()


def test_external_checkpoints_on_a_read_only_disk_can_be_used(small_disk: Path):
    from ..checkpoints.network import build

    for epoch in (1, 2):
        torch.save(build(10, 1).state_dict(), small_disk / f"epoch_{epoch}.pt")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ckd.inspect(small_disk, model="tests.checkpoints.network:build", data="digits")
    assert ckd.select(small_disk, rule="midpoint").epoch == 1
    assert len(ckd.evaluate(f"{small_disk}@best")["members"]) == 1


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs to be root, to become another user")
def test_a_missing_permission_is_an_error():
    with tempfile.TemporaryDirectory() as folder:  # which other users can read, unlike pytest's
        Path(folder).chmod(0o755)
        _without_the_permission(Path(folder))


def _without_the_permission(tmp_path: Path) -> None:
    train(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "epoch-0008.safetensors").chmod(0)
    (tmp_path / "hidden").mkdir(mode=0o700)
    for arguments, message in (
        (["evaluate", f"{tmp_path}/run@last"], "epoch-0008.safetensors: Permission denied"),
        (["select", f"{tmp_path}/run", "--rule", "midpoint"], "Permission denied"),
        (["train", "wrn_10_1", "--data", "digits", "--out", f"{tmp_path}/new"], "Permission denied"),
        (["inspect", f"{tmp_path}/hidden"], "Permission denied"),
        (["inspect", f"{tmp_path}/hidden/run"], "Permission denied"),
    ):
        output = tmp_path / "output"
        process = processes.Process(target=_as_nobody, args=(arguments, str(output), str(tmp_path / "home")))
        process.start()
        process.join()
        assert process.exitcode == 2, output.read_text()
        assert message in output.read_text()
        assert "Traceback" not in output.read_text()


def _as_nobody(arguments: list[str], output: str, home: str) -> None:
    """Run a command as another user."""
    import checkpointkd.console  # the user may not be allowed to read the packages
    import checkpointkd.selection  # noqa: F401
    from checkpointkd.cli import main
    from checkpointkd.data import DataConfig, load_data

    os.environ["CHECKPOINTKD_HOME"] = home  # which other users can read, unlike pytest's
    load_data(DataConfig(data="digits"))
    sys.stderr = open(output, "w")  # noqa: SIM115
    try:
        os.seteuid(65534)
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


@pytest.mark.slow
def test_a_second_process_on_a_run_is_refused_with_the_id_of_the_first(tmp_path: Path):
    command = [sys.executable, "-m", "checkpointkd.cli", "train", "wrn_10_1", "--data", "digits", "--epochs", "999"]
    command += ["--precision", "fp32", "--out", str(tmp_path / "run")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=one_thread)
    try:
        while not (tmp_path / "run" / "state.bin").exists():
            assert first.poll() is None
            time.sleep(0.05)
        second = subprocess.run(command, capture_output=True, text=True, env=one_thread)
        assert second.returncode == 2
        assert second.stderr.endswith(
            f"is in use by process {first.pid} on {socket.gethostname()}. Try again when that process has ended.\n"
        )
    finally:
        first.kill()
        first.wait()
    with storage.locked(tmp_path / "run"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows does not allow these names")
@pytest.mark.parametrize("name", ["my runs, été", "ラン 実験", 'a"b<c>d|e?f*g:h', "-n", "@best", "a@b", "%s {x} [red]"])
def test_runs_can_have_any_name(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path(name) / "teacher"
    ckd.train("wrn_10_1", out=run, epochs=2, save_every=1, **SMALL)
    ckd.score(run, decoder_steps=1, fit_images=20, decoder_seeds=1)
    ckd.select(run)
    distill(Path(name) / "student", [f"{run}@best", f"{run}@2", str(run)])
    assert len(ckd.evaluate(f"{run}@midpoint", str(run))["members"]) == 2
    assert ckd.report(name).exists()
