"""Whatever happens to a process or a disk: no work is lost, and nothing that is wrong is ever taken for right."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
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

SMALL: dict[str, Any] = {"data": "digits", "train_images": 60, "batch_size": 20, "precision": "fp32"}
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["tests.conftest", "checkpointkd.cli", "checkpointkd.tables", "checkpointkd.studies.demo"]
)


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


def _killed(work: Callable, *arguments: Any, home: Path, kills: int, check: Callable[[], None]) -> int:
    """Do the work over and over, killed at random moments, then once to its end; how often it was killed at work."""
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
    process = processes.Process(target=_child, args=(str(home), work, arguments))
    process.start()
    process.join()
    assert process.exitcode == 0
    return killed


def _start_over(run: Path) -> None:
    """It was quicker than the kill: take its last half away, or all of it, so that there is something to kill."""
    if (run / "plane.json").exists():
        (run / "plane.json").unlink()
    else:
        shutil.rmtree(run)


def contents(run: Path) -> dict[str, Any]:
    """All that a run left but the times it took."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or path.name.startswith(".lock"):
            continue
        if path.suffix == ".json":
            value = json.loads(path.read_text())
            timeless = (
                "provenance",
                "seconds",
                "wall_seconds_since_start_or_resume",
                "teacher_refs",
                "teachers_cost",
            )
            found[name] = {key: value[key] for key in value if key not in timeless}
            for member in value.get("teachers_measured", {}).get("members", []):
                del member["ref"]
        elif path.suffix == ".jsonl":
            found[name] = [{key: row[key] for key in row if key != "seconds"} for row in storage.read_jsonl(path)]
        else:
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("often", [(6, 4, 6), pytest.param((20, 12, 20), marks=pytest.mark.slow)])
def test_killed_over_and_over_everything_ends_as_if_undisturbed(often: tuple[int, int, int], tmp_path: Path, capsys):
    undisturbed, home = tmp_path / "undisturbed", tmp_path / "undisturbed home"
    for work, arguments in (
        (train, (undisturbed / "teacher",)),
        (score, (undisturbed / "teacher",)),
        (distill, (undisturbed / "student", [f"{undisturbed}/teacher@4", f"{undisturbed}/teacher@8"])),
    ):
        process = processes.Process(target=_child, args=(str(home), work, arguments))
        process.start()
        process.join()
        assert process.exitcode == 0
    (undisturbed / "teacher" / "plane.json").rename(tmp_path / "plane.json")
    run = tmp_path / "killed"
    counts: Counter[str] = Counter()

    def no_wrong_checkpoint() -> None:
        for path in run.rglob("epoch-*.safetensors"):
            right = undisturbed / path.relative_to(run)
            assert path.read_bytes() == right.read_bytes(), path
            storage.load_tensors(path)

    kills = {"home": tmp_path / "home", "check": no_wrong_checkpoint}
    counts["training"] = _killed(train, run / "teacher", kills=often[0], **kills)
    shutil.rmtree(undisturbed / "teacher" / "plane.json", ignore_errors=True)
    left = contents(run / "teacher")
    assert left == {k: v for k, v in contents(undisturbed / "teacher").items() if not k.startswith("plane")}
    counts["scoring"] = _killed(score, run / "teacher", kills=often[1], **kills)
    (tmp_path / "plane.json").rename(undisturbed / "teacher" / "plane.json")
    assert contents(run / "teacher") == contents(undisturbed / "teacher")
    teachers = [f"{run}/teacher@4", f"{run}/teacher@8"]
    counts["distilling, its table filling"] = _killed(distill, run / "student", teachers, kills=often[2], **kills)
    assert contents(run / "student") == contents(undisturbed / "student")
    for path in (tmp_path / "home").rglob("rows.bin"):
        rows = 60 * 9
        ours, theirs = (LogitFile(p, rows=rows, classes=10) for p in (path, home / path.relative_to(tmp_path / "home")))
        for logits, there in (ours.read(torch.arange(rows)),):
            right, known = theirs.read(torch.arange(rows))
            assert bool((there & known).any())
            assert torch.equal(logits[there & known], right[there & known])
    with capsys.disabled():
        print(f"\nkilled {sum(counts.values())} times: {dict(counts)}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of sixteen megabytes: a report's page fits it twice, as one is written before the one there goes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    yield place
    subprocess.run(["mount", "-o", "remount,rw", str(place)], check=False)
    subprocess.run(["umount", str(place)], check=True)


def _leave(disk: Path, free: int) -> None:
    """Fill the disk up to so many free bytes."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    status = os.statvfs(disk)
    with open(filler, "wb") as file:
        if taken := max(0, status.f_bavail * status.f_frsize - free):
            os.posix_fallocate(file.fileno(), 0, taken)


def _until_there_is_room(disk: Path, work: Callable[[], Any], *, room: Iterable[int]) -> Counter[str]:
    """Do the work with ever more room on the disk, until it is done; what could not be written, and how often."""
    failed: Counter[str] = Counter()
    for free in room:
        _leave(disk, free)
        before = {path: path.read_bytes() for path in disk.rglob("epoch-*.safetensors")}
        said = ""
        try:
            work()
        except UserError as error:
            said = str(error)
        for path, content in before.items():
            assert path.read_bytes() == content, "what was whole is whole still"
        assert not list(disk.rglob(f"*{storage.TMP_SUFFIX}")), "nothing half-written is left"
        if not said:
            return failed
        assert "No space left on device" in said, said
        assert "\n" not in said
        named = re.search(rf"{re.escape(str(disk))}[^ :;]*", said)
        assert named, said
        failed[Path(named[0]).name] += 1
    raise AssertionError(f"there was never enough room: {failed}")


def test_a_full_disk_is_said_and_loses_nothing(small_disk: Path, tmp_path: Path, capsys):
    train(tmp_path / "undisturbed", epochs=3)
    run = small_disk / "run"
    page = 4096
    checkpoint = (tmp_path / "undisturbed" / "checkpoints" / "epoch-0001.safetensors").stat().st_size
    after_it = [(checkpoint // page + pages) * page for pages in range(4)]  # and before the row that follows it
    room = [0, *after_it, *range(5 * page, 7_000_000, 5 * page)]
    failed = _until_there_is_room(small_disk, lambda: train(run, epochs=3), room=room)
    assert contents(run) == contents(tmp_path / "undisturbed")
    for name in ("run.json", "epoch-0001.safetensors", "state.bin", "metrics.jsonl"):
        assert failed[name] > 0, failed
    (small_disk / "filler").unlink()
    (tmp_path / "runs").mkdir()
    score(tmp_path / "undisturbed")
    failed |= _until_there_is_room(small_disk, lambda: score(run), room=range(0, 7_000_000, page))
    assert contents(run) == contents(tmp_path / "undisturbed")
    failed |= _until_there_is_room(small_disk, lambda: ckd.select(run), room=range(0, 7_000_000, page))
    failed |= _until_there_is_room(small_disk, lambda: ckd.report(run), room=range(0, 7_000_000, 16 * page))
    for name in ("plane.json", "selection.json", "report.html"):
        assert failed[name] > 0, failed
    with capsys.disabled():
        print(f"\nthe disk was full {sum(failed.values())} times, when writing {dict(failed)}")


def test_a_disk_that_can_not_be_written_to(small_disk: Path, tmp_path: Path):
    train(small_disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert ckd.inspect(small_disk / "run")["complete"]
    assert len(ckd.evaluate(f"{small_disk}/run@midpoint", f"{small_disk}/run@last")["members"]) == 2
    distill(tmp_path / "student", [f"{small_disk}/run@midpoint"])
    for ask in (
        lambda: score(small_disk / "run"),
        lambda: ckd.select(small_disk / "run", rule="midpoint"),
        lambda: train(small_disk / "other"),
        lambda: ckd.report(small_disk / "run"),
    ):
        with pytest.raises(UserError, match="Read-only file system"):
            ask()


def test_checkpoints_of_others_on_a_disk_that_can_not_be_written_to(small_disk: Path):
    from .checkpoints.network import build

    for epoch in (1, 2):
        torch.save(build(10, 1).state_dict(), small_disk / f"epoch_{epoch}.pt")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ckd.inspect(small_disk, model="tests.checkpoints.network:build", data="digits")
    assert ckd.select(small_disk, rule="midpoint").epoch == 1
    assert len(ckd.evaluate(f"{small_disk}@best")["members"]) == 1


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="takes another user's place, which only root can")
def test_without_the_permission_it_says_so():
    with tempfile.TemporaryDirectory() as folder:  # others can look into it, unlike pytest's
        Path(folder).chmod(0o755)
        _without_the_permission(Path(folder))


def _without_the_permission(tmp_path: Path) -> None:
    train(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "epoch-0008.safetensors").chmod(0)
    (tmp_path / "hidden").mkdir(mode=0o700)
    for arguments, sentence in (
        (["evaluate", f"{tmp_path}/run@last"], "epoch-0008.safetensors: Permission denied"),
        (["select", f"{tmp_path}/run", "--rule", "midpoint"], "Permission denied"),
        (["train", "wrn_10_1", "--data", "digits", "--out", f"{tmp_path}/new"], "Permission denied"),
        (["inspect", f"{tmp_path}/hidden"], "Permission denied"),
        (["inspect", f"{tmp_path}/hidden/run"], "Permission denied"),
    ):
        said = tmp_path / "said"
        process = processes.Process(target=_as_nobody, args=(arguments, str(said), str(tmp_path / "home")))
        process.start()
        process.join()
        assert process.exitcode == 2, said.read_text()
        assert sentence in said.read_text()
        assert "Traceback" not in said.read_text()


def _as_nobody(arguments: list[str], said: str, home: str) -> None:
    import checkpointkd.selection  # noqa: F401 - what is imported on first use may lie where nobody may look
    from checkpointkd.cli import main
    from checkpointkd.data import DataConfig, load_data

    os.environ["CHECKPOINTKD_HOME"] = home  # which others can look into, unlike pytest's
    load_data(DataConfig(data="digits"))
    sys.stderr = open(said, "w")  # noqa: SIM115
    try:
        os.seteuid(65534)
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def test_a_second_command_on_a_run_is_refused_by_name_of_the_first(tmp_path: Path):
    command = [sys.executable, "-m", "checkpointkd.cli", "train", "wrn_10_1", "--data", "digits", "--epochs", "999"]
    command += ["--precision", "fp32", "--out", str(tmp_path / "run")]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=alone)
    try:
        while not (tmp_path / "run" / "state.bin").exists():
            assert first.poll() is None
            time.sleep(0.05)
        second = subprocess.run(command, capture_output=True, text=True, env=alone)
        assert second.returncode == 2
        assert second.stderr.endswith(f"is in use by process {first.pid}. Try again when it is done.\n")
    finally:
        first.kill()
        first.wait()
    with storage.locked(tmp_path / "run"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["my runs, été", "ラン 実験", 'a"b<c>d|e?f*g:h', "-n", "@best", "a@b", "%s {x} [red]"])
def test_any_name_is_a_name(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path(name) / "teacher"
    ckd.train("wrn_10_1", out=run, epochs=2, save_every=1, **SMALL)
    ckd.score(run, decoder_steps=1, fit_images=20, decoder_seeds=1)
    ckd.select(run)
    distill(Path(name) / "student", [f"{run}@best", f"{run}@2", str(run)])
    assert len(ckd.evaluate(f"{run}@midpoint", str(run))["members"]) == 2
    assert ckd.report(name).exists()
