"""Run what the documentation prints: the examples, and the commands and Python blocks of README and docs/."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkpointkd.cli import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def _blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page; `sh` and `python` blocks run here, `console` and `text` blocks do not."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def _commands(page: Path, language: str = "sh") -> list[list[str]]:
    """Return the arguments of each `checkpointkd` command in the blocks of a page."""
    lines = [line for block in _blocks(page, language) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line.partition("#")[0])[1:] for line in lines if line.startswith("checkpointkd ")]


def _run_page(page: Path) -> None:
    """Run a page's commands, then its Python blocks, in the current directory."""
    for command in _commands(page):
        assert main(command) == 0, command
    for block in _blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})


def _run_example(name: str, folder: Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / name)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that README's commands and Python leave."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _run_page(README)
    return folder


def test_quickstart_prints_four_accurate_students(tmp_path: Path):
    source = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 50, "one screen"
    output = _run_example("quickstart.py", tmp_path)
    accuracies = re.findall(r"^(no teacher|last|best|midpoint-last) +(\d+\.\d)%$", output, re.MULTILINE)
    assert len(accuracies) == 4
    assert all(float(accuracy) > 85 for _, accuracy in accuracies)
    assert (tmp_path / "runs" / "quickstart" / "report.html").exists()


@pytest.mark.slow
def test_checkpoints_of_a_plain_pytorch_loop_teach_students(tmp_path: Path):
    output = _run_example("your_own_checkpoints.py", tmp_path)
    accuracies = [float(accuracy) for accuracy in re.findall(r"^epoch +\d+: (\d+\.\d)%", output, re.MULTILINE)]
    assert len(accuracies) == 5
    assert accuracies[-1] > 85
    assert len(re.findall(r"^(?:no teacher|teachers .*): \d+\.\d%$", output, re.MULTILINE)) == 3


def test_readme_goes_from_a_teacher_to_a_report(readme_folder: Path):
    assert [command[0] for command in _commands(README)] == ["train", "score", "select", "distill", "report"]
    assert len(_blocks(README, "python")) == 1
    assert (readme_folder / "runs" / "student" / "student.safetensors").exists()
    assert (readme_folder / "runs" / "report.html").exists()


def test_readme_is_one_screen_and_a_half():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 140


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _commands(page) or _blocks(page, "python")], ids=lambda page: page.stem
)
def test_commands_of_a_page_run_after_those_of_readme(page: Path, readme_folder: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(readme_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    _run_page(page)


def test_documentation_runs_every_command():
    """Two commands are left to their own tests: `demo` takes minutes, `reproduce` has a folder of tests."""
    run = {command[0] for page in (README, *PAGES) for command in _commands(page)}
    assert run >= {
        "train",
        "inspect",
        "score",
        "select",
        "distill",
        "tune",
        "evaluate",
        "correlate",
        "export",
        "report",
    }


def test_documentation_prints_only_options_that_exist(capsys: pytest.CaptureFixture[str], monkeypatch):
    """Commands of `console` blocks do not run here, so their options are compared with `--help`."""
    monkeypatch.setenv("COLUMNS", "200")
    helps: dict[str, str] = {}
    for page in (README, *PAGES):
        for command in _commands(page, "sh") + _commands(page, "console"):
            if command[0] not in helps:
                assert main([command[0], "--help"]) == 0
                helps[command[0]] = capsys.readouterr().out
            for option in (word for word in command if word.startswith("--")):
                assert re.search(rf"{option}\b", helps[command[0]]), f"{page.name}: {command}"
    assert "reproduce" in helps


def test_links_of_the_documentation_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *PAGES]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#:]*(?:#[^)]*)?)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 50
    for page, link in links:
        name, _, section = link.partition("#")
        target = page.parent / name if name else page
        if target == ROOT / "docs" / "reference" / "command-line.md":  # `make docs` writes it
            continue
        assert target.exists(), f"{page.name}: {link}"
        if section:
            assert section in _anchors(target), f"{page.name}: {link}"


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.skipif(not os.access(ROOT / ".git", os.R_OK), reason="not a git checkout: there is no list of its files")
def test_nothing_large_is_tracked():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in tracked.stdout.split("\0") if name]
    assert [str(file) for file in files if file.exists() and file.stat().st_size > 1_000_000] == []
