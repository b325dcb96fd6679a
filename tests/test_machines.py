"""Terminals, users and machines that differ from the developers'."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import checkpointkd as ckd
from checkpointkd.errors import UserError

COMMAND = (sys.executable, "-m", "checkpointkd.cli")


def _run(*words: str, cwd: Path, **environment: str | None) -> subprocess.CompletedProcess[str]:
    merged = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    return subprocess.run(
        [*COMMAND, *words], cwd=cwd, env=merged, capture_output=True, text=True, errors="replace", check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_letters_that_a_terminal_does_not_have_are_replaced(encoding: str, teacher_run: Path):
    for words in (("--help",), ("select", str(teacher_run), "--rule", "midpoint"), ("inspect", str(teacher_run))):
        done = _run(*words, cwd=teacher_run, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


def test_a_user_without_a_home_is_told_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CHECKPOINTKD_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")

    def no_name(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", no_name)
    with pytest.raises(UserError, match="Set CHECKPOINTKD_HOME"):
        ckd.config.cache_dir()


def test_a_current_folder_that_was_deleted_is_named(tmp_path: Path):
    script = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m checkpointkd.cli cache list"
    done = subprocess.run(script, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "checkpointkd: The current folder was deleted. Go to another folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "checkpointkd"], [str(Path(sys.executable).parent / "checkpointkd")]]
)
def test_no_file_in_the_current_folder_is_imported(teacher_run: Path, tmp_path: Path, command: list[str]):
    """Neither in place of an installed package, nor where an optional package of a library is missing."""
    names = ("cyclopts", "torch", "timm", "lz4", "numexpr", "zstandard", "dill")
    for name in (*names, "planted"):
        (tmp_path / f"{name}.py").write_text(f"open('{name}.imported', 'w')\nraise SystemExit(7)\n")
    hub = ["train", "wrn_10_1", "--data", f"hf:{tmp_path}", "--out", "run"]
    for arguments in (["--help"], ["inspect", str(teacher_run)], ["train", "timm:a", *hub[2:]], hub):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 2), done.stderr
    assert not list(tmp_path.glob("*.imported"))
    done = subprocess.run(
        [*command, "train", "planted:Net", "--data", "digits", "--out", "run"], cwd=tmp_path, check=False
    )
    assert done.returncode == 7
    assert [path.name for path in tmp_path.glob("*.imported")] == ["planted.imported"]


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_closed_standard_streams_do_not_stop_a_command(teacher_run: Path, tmp_path: Path, closed: str):
    """The next file that is opened must not take their place."""
    script = f"{sys.executable} -m checkpointkd.cli export {teacher_run} --out student {closed}"
    done = subprocess.run(script, shell=True, cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert (tmp_path / "student" / "config.json").exists()


class Pooled(nn.Module):
    """A network with batch norm after the pooling, which cannot be trained on one image."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x).mean((2, 3), keepdim=True)).flatten(1))


def test_a_last_batch_of_one_image_is_refused_before_the_training(tmp_path: Path):
    options = {"data": "digits", "epochs": 1, "precision": "fp32"}
    with pytest.raises(UserError, match=r"one image: 61 images in batches of 20\. Give another --batch-size"):
        ckd.train(f"{__name__}:Pooled", train_images=61, batch_size=20, out=tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()
    ckd.train(f"{__name__}:Pooled", train_images=62, batch_size=20, out=tmp_path / "b", **options)


@pytest.mark.slow
def test_a_missing_compiler_is_named(tmp_path: Path):
    words = [
        "train",
        "wrn_10_1",
        "--data",
        "digits",
        "--train-images",
        "100",
        "--epochs",
        "1",
        "--compile",
        "--out",
        "run",
    ]
    done = _run(*words, cwd=tmp_path, CXX="/none/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 2
    assert "Leave --compile out, or install a C++ compiler" in done.stderr


@pytest.mark.slow
def test_a_killed_reader_of_images_is_named(tmp_path: Path):
    random = np.random.default_rng(0)
    for split, count in (("train", 150), ("val", 3)):
        for name in ("ash", "elm"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 255, (96, 96, 3), np.uint8)).save(folder / f"{number}.png")
    words = [
        "train",
        "wrn_10_1",
        "--data",
        "folder:images",
        "--image-size",
        "96",
        "--epochs",
        "9",
        "--save-every",
        "1",
        "--batch-size",
        "8",
    ]
    process = subprocess.Popen(
        [*COMMAND, *words, "--precision", "fp32", "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, "CHECKPOINTKD_WORKERS": "2"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    killed = False
    while not killed and process.poll() is None and time.monotonic() < deadline:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
        if len(children) >= 2 and (tmp_path / "run" / "metrics.jsonl").exists():
            os.kill(int(children[0]), signal.SIGKILL)
            killed = True
        time.sleep(0.02)
    _, errors = process.communicate(timeout=120)
    assert killed
    assert process.returncode == 2, errors
    assert "A process that reads images was killed" in errors
    assert "Traceback" not in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [(), ("--json",)])
def test_full_output_is_an_error_in_one_sentence(words: tuple[str, ...], teacher_run: Path):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "inspect", str(teacher_run), *words], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert b"Could not write to standard output: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_messages_that_cannot_be_written_do_not_stop_a_training(tmp_path: Path):
    with open("/dev/full", "w") as full:
        words = [
            "train",
            "wrn_10_1",
            "--data",
            "digits",
            "--train-images",
            "60",
            "--epochs",
            "1",
            "--out",
            str(tmp_path / "run"),
        ]
        done = subprocess.run([*COMMAND, *words], stdout=subprocess.PIPE, stderr=full)
    assert done.returncode == 0
    assert (tmp_path / "run" / "result.json").exists()


def test_a_closed_pipe_is_no_error(teacher_run: Path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "inspect", str(teacher_run)], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
