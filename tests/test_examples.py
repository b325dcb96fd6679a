"""Run the examples: the scripts, and the notebook of the quickstart."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
STUDENT_LINE = re.compile(r"^(?:no teacher|last|best|midpoint-last) +\d+\.\d%$", re.MULTILINE)


def _run(arguments: list[str], folder: Path) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the quickstart ran, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, _run([str(EXAMPLES / "quickstart.py")], folder)


def test_quickstart_prints_four_accurate_students(quickstart: tuple[Path, str]):
    folder, output = quickstart
    source = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 50, "one screen"
    students = STUDENT_LINE.findall(output)
    assert len(students) == 4
    assert all(float(line.split()[-1].rstrip("%")) > 85 for line in students)
    assert (folder / "runs" / "quickstart" / "report.html").exists()


def test_notebook_does_what_the_quickstart_does(quickstart: tuple[Path, str]):
    """The notebook's cells run in the quickstart's folder. They find its runs, and print the same numbers."""
    folder, output = quickstart
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    printed = _run(["-c", "\n\n".join(["import matplotlib", "matplotlib.use('svg')", *code])], folder)
    assert STUDENT_LINE.findall(printed) == STUDENT_LINE.findall(output)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before, "trained again"


def test_notebook_shows_its_results():
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    texts = "".join("".join(output.get("text", "")) for output in shown)
    assert len(STUDENT_LINE.findall(texts)) == 4
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert not [output for output in shown if output["output_type"] == "error"]
    assert not re.search(r"/(?:home|root|tmp|Users)/", json.dumps(cells)), "a path of the machine that ran it"


@pytest.mark.slow
def test_checkpoints_of_a_plain_pytorch_loop_teach_students(tmp_path: Path):
    output = _run([str(EXAMPLES / "your_own_checkpoints.py")], tmp_path)
    accuracies = [float(accuracy) for accuracy in re.findall(r"^epoch +\d+: (\d+\.\d)%", output, re.MULTILINE)]
    assert len(accuracies) == 5
    assert accuracies[-1] > 85
    assert len(re.findall(r"^(?:no teacher|teachers .*): \d+\.\d%$", output, re.MULTILINE)) == 3


ONE_SCREEN = {  # examples by name, and a pattern of what they print
    "own_data_and_network": r"teacher (9\d\.\d|8[5-9]\.\d)%, student \d\d\.\d%\n.*state_dict.safetensors",
    "plain_loop": r"epoch 5: loss (\d\.\d+)",
    "timm_distillation": r"epoch 3: loss (\d\.\d+)",
    "lightning_distillation": r"epoch 4: validation accuracy \d\d\.\d%",
    "accelerate_loop": r"epoch 4: validation accuracy \d\d\.\d%",
    "hugging_face_trainer": r"loss \d\.\d+ over 21 steps",
    "own_method_rule_estimator": r"the highest score, .*\nobject:cosine: \d\d\.\d%",
    "results_to_pandas": r"test_accuracy",
}


@pytest.mark.parametrize(
    "name", ["plain_loop", *(pytest.param(n, marks=pytest.mark.slow) for n in ONE_SCREEN if n != "plain_loop")]
)
def test_an_example_of_one_screen(name: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    """Run in this process, where torchvision can be imported."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 60, "one screen"
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        if name in ("accelerate_loop", "lightning_distillation", "hugging_face_trainer"):
            warnings.simplefilter("ignore")  # of these libraries
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    output = capsys.readouterr().out
    assert re.search(ONE_SCREEN[name], output), output


def test_the_examples_are_all_run():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"quickstart", "your_own_checkpoints", *ONE_SCREEN}
