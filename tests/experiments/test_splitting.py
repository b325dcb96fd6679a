"""One experiment split between processes, engines and folders: the rows are those of one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import checkpointkd as ckd
from checkpointkd.cli import main
from checkpointkd.errors import UserError
from checkpointkd.experiments.context import ID_FILE
from checkpointkd.experiments.scheduler import run_task

from .conftest import read_experiment, read_rows, smoke_preset, speeds_of, started
from .test_interruptions import TIMES

FIGURE3 = ("reproduce", "figure3", "--preset", "smoke", "--seeds", "1")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "checkpointkd", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip


def rows_of(folder: Path, experiment: str, **wanted: object) -> list[dict]:
    """Return rows without times, which differ between machines."""
    rows = [{key: row[key] for key in row if key not in TIMES} for row in read_rows(folder, experiment, **wanted)]
    return sorted(rows, key=str)


def test_seed_and_only_leave_the_others_out(smoke: Path, tmp_path: Path):
    out = started(smoke, tmp_path / "out")
    ckd.reproduce("figure2", preset="smoke", out=out, seed=1, only=["last", "scratch"])
    rows = read_rows(out, "figure2", kind="network")
    assert {row["seed"] for row in rows} == {1}
    assert {row["variant"] for row in rows} == {"last", "scratch"}
    assert read_experiment(out, "figure2")["missing"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", "7"), "No student has --seed 7. The seeds are 0 to 1; see --seeds."),
        (("--seed", "-1"), "--seed must be at least 0, not -1"),
        (("--only", "lsat"), "Unknown pair or variant 'lsat'. Did you mean 'last'"),
        (("--merge", "nowhere"), "There is no folder of experiments at nowhere"),
    ],
)
def test_unknown_parts_are_named(options: tuple[str, str], message: str, tmp_path: Path, capsys):
    assert main(["reproduce", "figure2", "--preset", "smoke", "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_share_a_folder(smoke: Path, tmp_path: Path):
    """Both want all tasks. No finished run is trained again, and the rows are those of one process."""
    out = started(smoke, tmp_path / "out")
    processes = [start(*FIGURE3, "--out", str(out)) for _ in range(2)]
    printed = [process.communicate(timeout=280)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert rows_of(out, "figure3") == rows_of(smoke, "figure3", seed=0)
    assert not read_experiment(out, "figure3")["missing"]


@pytest.mark.slow
def test_parts_are_merged(smoke: Path, tmp_path: Path):
    """Seed 0 in one folder and seed 1 in another, with the same teachers."""
    parts = [started(smoke, tmp_path / name) for name in ("first", "second")]
    for seed, part in enumerate(parts):
        ckd.reproduce("figure2", preset="smoke", out=part, seed=seed, only=["last", "scratch"])
    out = tmp_path / "merged"
    ckd.reproduce("figure2", preset="smoke", out=out, only=["last", "scratch"], merge=list(parts))
    assert len(read_rows(out, "figure2", kind="network", variant="last")) == 4, "two pairs, two seeds"
    seeds = {row["seed"] for row in read_rows(out, "figure2", kind="network")}
    assert seeds == {0, 1}
    for part, seed in zip(parts, (0, 1), strict=True):
        assert rows_of(out, "figure2", kind="network", seed=seed) == rows_of(part, "figure2", kind="network")


def test_folders_whose_teachers_differ_are_not_merged(smoke: Path, tmp_path: Path):
    first, second = (started(smoke, tmp_path / name) for name in ("first", "second"))
    run = next(second.glob("runs/*-teacher-*"))
    last = max((run / "checkpoints").glob("*.safetensors"))
    shutil.copy(min((run / "checkpoints").glob("*.safetensors")), last)  # another network under the same name
    with pytest.raises(UserError, match="trainings of the same run with different weights"):
        ckd.reproduce("figure2", preset="smoke", out=first, merge=[second])
    with pytest.raises(UserError, match="trainings of the same run with different weights"):
        ckd.reproduce("figure2", preset="smoke", out=tmp_path / "new", merge=[first, second])


def test_another_folder_with_the_same_path_is_noticed(tmp_path: Path):
    from checkpointkd.experiments.context import Context
    from checkpointkd.experiments.tasks import TrainTask

    (tmp_path / ID_FILE).write_text("of another machine")
    preset = smoke_preset()
    context = Context(tmp_path, preset, "digits", speeds=speeds_of(preset), folder_id="ours")
    outcome = run_task(context, TrainTask("wrn_10_1", "student"))
    assert "does not see the folder" in outcome.error
    assert not (tmp_path / "runs").exists()


def half_trained(out: Path) -> Path | None:
    """Return a run that has saved two epochs and is not complete."""
    for metrics in out.glob("runs/*/metrics.jsonl"):
        if metrics.read_bytes().count(b"\n") >= 2 and not (metrics.parent / "result.json").exists():
            return metrics.parent
    return None


def wait_until_half_trained(out: Path, process: subprocess.Popen[str]) -> Path:
    deadline = time.monotonic() + 200
    while (run := half_trained(out)) is None:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return run


FIGURE2 = ("reproduce", "figure2", "--preset", "smoke", "--seeds", "1", "--student-epochs", "40")
FIGURE2 = (*FIGURE2, "--only", "last", "scratch")


@pytest.fixture(scope="module")
def undisturbed(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long students, trained in one process."""
    out = started(smoke, tmp_path_factory.mktemp("undisturbed") / "out")
    assert main([*FIGURE2, "--out", str(out)]) == 0
    return out


def check_continued(out: Path, undisturbed: Path, printed: str, finished: dict[Path, int]) -> None:
    """The rows are those of an undisturbed experiment; nothing finished was written again; the log says so."""
    assert "It continues after epoch" in printed
    assert rows_of(out, "figure2") == rows_of(undisturbed, "figure2")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


@pytest.mark.slow
def test_a_killed_local_process_is_replaced(smoke: Path, undisturbed: Path, tmp_path: Path):
    out = started(smoke, tmp_path / "out")
    process = start(*FIGURE2, "--jobs", "2", "--out", str(out))
    wait_until_half_trained(out, process)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    listing = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)]
    children = subprocess.run(listing, capture_output=True, text=True).stdout.splitlines()
    pids = [int(line.split()[0]) for line in children if "popen_loky_posix" in line]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    _, printed = process.communicate(timeout=280)
    assert process.returncode == 0, printed
    check_continued(out, undisturbed, printed, finished)


@pytest.mark.slow
def test_a_killed_slurm_job_is_replaced(smoke: Path, undisturbed: Path, tmp_path: Path):
    """With submitit's local cluster, which starts the same jobs as processes."""
    pytest.importorskip("submitit")
    out = started(smoke, tmp_path / "out")
    words = ("--executor", "slurm", "--slurm", "cluster=local", "timeout_min=10", "--jobs", "1", "--out", str(out))
    process = start(*FIGURE2, *words)
    wait_until_half_trained(out, process)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    subprocess.run(["pkill", "-KILL", "-f", f"submitit.core._submit {out}"], check=True)
    _, printed = process.communicate(timeout=400)
    assert process.returncode == 0, printed
    check_continued(out, undisturbed, printed, finished)


@pytest.mark.slow
def test_a_killed_ray_node_is_replaced(smoke: Path, undisturbed: Path, tmp_path: Path):
    pytest.importorskip("ray")
    out = started(smoke, tmp_path / "out")
    script = Path(__file__).with_name("killed_ray_node.py")
    words = [*FIGURE2, "--executor", "ray", "--out", str(out)]
    process = subprocess.run(
        [sys.executable, str(script), str(out), *words], capture_output=True, text=True, env=ENVIRONMENT, timeout=500
    )
    assert process.returncode == 0, process.stderr[-3000:]
    check_continued(out, undisturbed, process.stderr, {})
    assert "killed a node" in process.stdout


def test_folders_with_runs_in_other_precisions_are_not_merged(smoke: Path, tmp_path: Path):
    out, part = (started(smoke, tmp_path / name) for name in ("out", "part"))
    speeds = json.loads((part / "machine.json").read_text())
    for setting in speeds.values():
        for speed in setting.values():
            speed["precision"] = "bf16"
    (part / "machine.json").write_text(json.dumps(speeds))
    with pytest.raises(UserError, match=r"out are in fp32, those in .*part in bf16.*Give --precision"):
        ckd.reproduce("figure2", preset="smoke", out=out, merge=[part])
