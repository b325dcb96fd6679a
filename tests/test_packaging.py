"""The package as users install it: a wheel in an environment of its own, and `make` on a fresh machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
NO_INDEX = ("Could not find a version", "No matching distribution", "connection", "Connection")


def _pip(*arguments: object) -> None:
    """Run pip; skip the test if pip reaches no package index."""
    done = subprocess.run([*PIP, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0 and any(words in done.stderr for words in NO_INDEX) and not os.environ.get("CI"):
        pytest.skip(f"pip needs a package index: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("checkpointkd-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_installs_and_trains_in_a_fresh_environment(wheel: Path, tmp_path: Path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    _pip("--python", environment / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # without its own .pth files

    def run(*command: object) -> str:
        outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        arguments = [str(environment / "bin" / str(command[0])), *map(str, command[1:])]
        done = subprocess.run(arguments, cwd=tmp_path, env=outside, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("python", "-c", "import checkpointkd; print(checkpointkd.__file__)").startswith(str(environment))
    assert "reproduce" in run("checkpointkd", "--help")
    assert run("checkpointkd", "--version").strip() in wheel.name
    train = ["train", "wrn_10_1", "--data", "digits", "--train-images", 50, "--epochs", 1, "--out", "run"]
    assert "accuracy" in run("checkpointkd", *train)
    assert "report.html" in run("checkpointkd", "report", "run")


@pytest.mark.slow
def test_the_wheel_holds_the_package_only_and_no_path_of_the_machine_that_built_it(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name.partition("/")[0].partition("-")[0] for name in names} == {"checkpointkd"}
        assert "checkpointkd/cli.py" in names
        for name in names:
            assert str(ROOT).encode() not in archive.read(name), name


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_resolves(extra: str, wheel: Path):
    _pip("install", "--dry-run", "--constraint", ROOT / "constraints.txt", f"{wheel}[{extra}]")


PIP_STAND_IN = """#!/bin/sh
echo "WARNING: Location '/some/wheels' is ignored: it is a non-existing path." >&2
echo "WARNING: something that matters" >&2
exit $PIP_EXIT_CODE
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("code", [0, 1])
def test_make_shows_messages_of_pip_that_matter_and_fails_with_it(code: int, tmp_path: Path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    program = tmp_path / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(PIP_STAND_IN)
    program.chmod(0o755)
    command = ["make", ".venv/installed", "PYTHON=true"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PIP_EXIT_CODE": str(code)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == (code == 0)
    assert "something that matters" in done.stderr
    assert "/some/wheels" not in done.stderr
    assert (tmp_path / ".venv" / "installed").exists() == (code == 0)
