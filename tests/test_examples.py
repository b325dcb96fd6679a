"""What we print, we run: the examples, and the commands and the Python of README."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from checkpointkd.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_quickstart_tells_the_whole_story(tmp_path: Path):
    source = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 50, "one screen"
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    accuracies = re.findall(r"^(no teacher|full|chosen|half \+ full) +(\d+\.\d)%$", done.stdout, re.M)
    assert len(accuracies) == 4
    assert all(float(accuracy) > 85 for _, accuracy in accuracies)
    assert (tmp_path / "runs" / "quickstart" / "report.html").exists()


def test_your_own_checkpoints_are_taken_as_they_are(tmp_path: Path):
    command = [sys.executable, str(ROOT / "examples" / "your_own_checkpoints.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    measured = [float(share) for share in re.findall(r"^epoch +\d+: (\d+\.\d)%", done.stdout, re.M)]
    assert len(measured) == 5
    assert measured[-1] > 85
    assert len(re.findall(r"^student of .*: \d+\.\d%$", done.stdout, re.M)) == 3


def test_the_commands_of_readme_run_in_their_order(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [
        shlex.split(line.partition("#")[0])[1:]
        for block in re.findall(r"```sh\n(.*?)```", README, re.S)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("checkpointkd ") and " demo" not in line
    ]
    assert {command[0] for command in commands} >= {
        "train",
        "inspect",
        "score",
        "select",
        "distill",
        "search",
        "evaluate",
        "export",
        "report",
    }
    for command in commands:
        assert main(command) == 0, (command, capsys.readouterr().err)


def test_the_python_of_readme_runs(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_every_link_of_the_documents_leads_somewhere():
    checked = 0
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
            checked += 1
    assert checked > 5


@pytest.mark.skipif(
    not os.access(ROOT / ".git", os.R_OK), reason="not a git checkout, so there is no list of its files"
)
def test_nothing_large_is_tracked():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in tracked.stdout.split("\0") if name]
    assert [str(file) for file in files if file.exists() and file.stat().st_size > 1_000_000] == []
