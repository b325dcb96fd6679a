"""The command line as users meet it, mostly in a process of its own."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import pty
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.cli import COMMANDS, build_app, main
from checkpointkd.progress import Bars

from .data.image_files import digit

PROGRAM = [sys.executable, "-m", "checkpointkd"]
LOADING = "checkpointkd: loading PyTorch ...\n"


def _run(*arguments: object) -> subprocess.CompletedProcess:
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def _seconds(command: list[str], *, until_first_output: bool = False) -> float:
    """Return how long a process runs, or how long it takes to write to standard error."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        if until_first_output:
            assert process.stderr.read(1)
            seconds = time.perf_counter() - began
            process.kill()
            return seconds
        process.communicate()
    return time.perf_counter() - began


def _against_torch(command: list[str], *, until_first_output: bool = False) -> tuple[float, float]:
    """Return the median seconds of a command and of importing torch, measured in turn on a machine that may be busy."""
    ours, torchs = [], []
    for _ in range(3):
        ours.append(_seconds(command, until_first_output=until_first_output))
        torchs.append(_seconds([sys.executable, "-c", "import torch"]))
    return statistics.median(ours), statistics.median(torchs)


def test_help_takes_less_than_half_a_second_and_imports_no_torch():
    ours, torchs = _against_torch([*PROGRAM, "--help"])
    assert ours < max(0.5, 0.4 * torchs)
    code = "import sys, checkpointkd.cli as c; c.main(['train', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_first_line_appears_within_half_a_second(tmp_path: Path):
    command = [*PROGRAM, "train", "wrn_10_1", "--data", "digits", "--json", "--out", str(tmp_path / "run")]
    ours, torchs = _against_torch(command, until_first_output=True)
    assert ours < max(0.5, 0.4 * torchs)


def test_on_a_terminal_the_loading_line_is_erased(teacher_run: Path):
    terminal, side = pty.openpty()
    process = subprocess.run(
        [*PROGRAM, "inspect", teacher_run, "--json"], stdout=subprocess.PIPE, stderr=side, check=True
    )
    os.close(side)
    with open(terminal, "rb", buffering=0) as file:
        shown = file.read(10_000).decode()
    assert json.loads(process.stdout)["complete"]
    blank = " " * len(LOADING.strip())
    assert shown.startswith(f"{LOADING.strip()}\r{blank}\r")


def test_cache_needs_no_torch():
    assert "loading" not in _run("cache", "list").stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_device_and_json(command: str):
    shown = _run(command, "--help").stdout
    assert f"checkpointkd {command} " in shown.partition("Example:")[2]
    assert "--json" in shown
    assert "--device" in shown
    assert "Raises" not in shown
    assert "on_progress" not in shown
    assert "on-progress" not in shown


def test_every_option_has_a_help_text():
    for command in COMMANDS:
        for option in getattr(getattr(ckd, command), "options", ()):
            assert option.text.endswith((".", ".)")), (command, option.parameter.name)


def test_the_help_lists_every_command():
    shown = _run("--help").stdout
    assert re.findall(r"^│ (\w+) ", shown, re.M) == list(COMMANDS)


def test_the_help_of_select_groups_the_options_that_need_a_student():
    shown = _run("select", "--help").stdout
    group = shown.partition("╭─ With --student")[2]
    assert "--student" in group
    assert "--budget" in group
    assert not re.search(r"^│ +--rule", group, re.M)  # the text of --logits names it


def test_the_commands_in_order_each_print_one_json_object(tmp_path: Path, capfd):
    def ask(*arguments: object):
        code, output = main([*map(str, arguments), "--json"]), capfd.readouterr()
        assert code == 0, output.err
        return json.loads(output.out)

    teacher, student = tmp_path / "teacher", tmp_path / "student"
    small = ["--epochs", 4, "--train-images", 100]
    trained = ask("train", "wrn_10_1", "--data", "digits", *small, "--save-every", 2, "--out", teacher)
    assert trained["epochs"] == [2, 4]
    assert trained["result"]["test_images"] == 599
    inspected = ask("inspect", teacher)
    assert [checkpoint["epoch"] for checkpoint in inspected["checkpoints"]] == [2, 4]
    scored = ask("score", teacher, "--decoder-steps", 4)
    assert [point["epoch"] for point in scored["points"]] == [2, 4]
    chosen = ask("select", teacher)
    assert chosen["epoch"] in (2, 4)
    assert set(chosen["scores"]) == {"2", "4"}
    teachers = [f"{teacher}@midpoint", f"{teacher}@best"]
    how = ["--allow-weak-teacher", "--epochs", 2, "--out", student]
    distilled = ask("distill", "wrn_10_1", "--teachers", *teachers, *how)
    assert distilled["complete"] is True
    measured = ask("evaluate", f"{teacher}@midpoint", student, "--split", "test")
    assert measured["images"] == 599
    assert measured["members"][1]["accuracy"] == distilled["result"]["test"]["accuracy"]
    exported = ask("export", student, "--out", tmp_path / "exported", "--device", "cpu")
    assert "model.safetensors" in exported["files"]
    assert Path(ask("report", tmp_path)["path"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert ask("cache", "list")["bytes"] > 0


def test_results_go_to_standard_output_and_messages_to_standard_error(teacher_run: Path):
    evaluated = _run("evaluate", f"{teacher_run}@midpoint", f"{teacher_run}")
    assert evaluated.stderr == LOADING
    assert "ensemble" in evaluated.stdout
    same = ["--train-images", 100, "--epochs", 4, "--save-every", 1, "--batch-size", 10, "--learning-rate", 0.03]
    again = _run("train", "wrn_10_1", "--data", "digits", *same, "--out", teacher_run)
    assert again.returncode == 0
    assert "already complete" in again.stderr
    assert "accuracy" in again.stdout


def raises(**sizes: int) -> torch.nn.Module:
    raise RuntimeError("no luck today\nand a second line")


def few_classes(**sizes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))


TRAIN = ["train", "wrn_10_1", "--data", "digits", "--out", "{new}"]
DISTILL = ["distill", "wrn_10_1", "--out", "{new}", "--teachers"]
MISTAKES = [
    (["trian"], r'Unknown command "trian"\. Did you mean "train"\?'),
    (TRAIN[:-2], r"`checkpointkd train` needs --out\. `checkpointkd train --help` explains it"),
    ([*TRAIN[:-1], ""], "--out has an empty value"),
    ([*TRAIN[:-2], "--out="], "--out= has an empty value"),
    (["evaluate", ""], "evaluate has an empty value"),
    ([*TRAIN, "--epoch", "3"], "Did you mean --epochs"),
    ([*TRAIN, "--epochs", "many"], '"many" is not a whole number'),
    ([*TRAIN, "--epochs", "2.5"], '"2.5" is not a whole number'),
    (["train", "tests.test_cli:raises", *TRAIN[2:]], "no luck today"),
    (["train", "tests.test_cli:few_classes", *TRAIN[2:]], r"\(2, 3\)"),
    ([*TRAIN, "--epochs", "0"], "epochs must be from 1 to 1,000,000, not 0"),
    (["train", "wrn_10_1", "--data", "digit", "--out", "{new}"], "Unknown data set 'digit'. Did you mean 'digits'"),
    (["train", "wrm_10_1", *TRAIN[2:]], "Unknown model 'wrm_10_1'. Did you mean 'wrn_D_K'"),
    (["train", "wrn_11_1", *TRAIN[2:]], r"6n \+ 4"),
    (["train", "wrn_10_9000", *TRAIN[2:]], r"from 1 to 64"),
    ([*TRAIN, "--recipe", "digit"], "Unknown recipe 'digit'"),
    ([*TRAIN, "--save-every", "0"], "must be at least 1"),
    ([*TRAIN, "--train-images", "5"], "10 classes"),
    ([*TRAIN, "--train-images", "5000"], "898"),
    ([*TRAIN, "--device", "gpu"], "Did you mean .cpu."),
    ([*TRAIN[:-1], "{run}"], "already holds another run"),
    ([*TRAIN[:-1], "{run}/run.json"], "run.json"),
    ([*DISTILL, "{run}@midpoint", "--alpha", "1.5"], r"in \[0, 1\], not 1\.5"),
    ([*DISTILL, "{run}@midpoint", "--tau", "0"], "tau must be above 0"),
    ([*DISTILL, "{run}@midpoint", "--tau", "nan"], "tau must be above 0"),
    ([*DISTILL, "{run}@7"], r"epoch 7.*1, 2, 3, 4\)"),
    ([*DISTILL, "{run}@best"], "selected"),
    ([*DISTILL, "{run}", "--method", "kdd"], "Unknown method 'kdd'"),
    ([*DISTILL, "{run}", "--method", "at", "--tau", "3"], "--tau has no effect on at at alpha 1"),
    ([*DISTILL, "{run}", "--teacher-weights", "0.5", "0.5"], "--teacher-weights has 2 values for 1 checkpoints"),
    (["score", "{new}"], "There is no run"),
    (["score", "{empty}"], "is empty"),
    (["score", "{empty}", "--model", "wrn_10_1"], "--model is for external checkpoints and needs --data"),
    (["score", "{run}", "--estimator", "ridg"], "Did you mean 'ridge'"),
    (["score", "{run}", "--decoder-steps", "0"], "steps must be at least 1.*, not 0"),
    (["select", "{run}"], "checkpointkd score"),
    (["select", "{run}", "--rule", "algorithm"], "Unknown rule 'algorithm'. Did you mean 'algorithm1'"),
    (["select", "{run}", "--budget", "2.0"], "--budget needs --student"),
    (["select", "{run}", "--train-images", "50"], "--train-images needs --student"),
    (["select", "{run}", "--student", "wrn_10_1"], "--student needs --out"),
    (
        ["select", "{run}", "--student", "wrn_10_1", "--out", "{new}", "--rule", "last"],
        "--rule last cannot be combined",
    ),
    (["evaluate"], "Name at least one checkpoint"),
    (["evaluate", "{run}@midpoint", "--data", "cifar"], "Unknown data set 'cifar'"),
    (["correlate", "{run}", "{run}@1", "{run}@2"], "correlate takes one or two checkpoints, not 3"),
    (["inspect", "{new}"], "There is no"),
    (["inspect", "{run}", "--mean", "0.5"], "--mean can only be used for external checkpoints"),
    (["report", "{new}"], "There is no"),
    (["report", "{empty}"], "No run to report on in"),
    (["cache", "clean"], "Choose from"),
    (["cache", "clear"], "needs the kinds to delete: logits, decoded, averages, indexes or all"),
    (["cache", "clear", "trusted"], "does not delete 'trusted'"),
    (["cache", "clear", "logit"], "Unknown kind of cache 'logit'. Did you mean 'logits'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message: str, teacher_run: Path, tmp_path: Path, capfd):
    (tmp_path / "empty").mkdir()
    places = {"run": teacher_run, "new": tmp_path / "new", "empty": tmp_path / "empty"}
    code = main([argument.format(**places) for argument in arguments])
    out, error = capfd.readouterr()
    assert code == 2
    assert out == ""
    assert re.search(message, error, re.I)
    assert error.startswith("checkpointkd: ")
    assert error.count("\n") == 1, "the message is one line"
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_command_says_how_to_continue(number: signal.Signals, code: int, tmp_path: Path):
    run = tmp_path / "run"
    command = [*PROGRAM, "train", "wrn_16_2", "--data", "digits", "--epochs", "40", "--save-every", "1", "--out", run]
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731 - pytest may ignore SIGINT
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    while not (run / "state.bin").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.endswith("Stopped. Everything that is saved is kept; run the same command again to continue.\n")
    assert "Traceback" not in error


def test_an_interrupt_that_a_library_swallowed_is_raised_at_the_next_step():
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Bars() as bars:
            bars("task", 1, 3)
            with contextlib.suppress(KeyboardInterrupt):  # as a library's callback may
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                bars("task", 2, 3)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_lines_without_a_terminal_tell_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("checkpointkd.progress.LINE_SECONDS", (0.0, 0.0))
    with Bars() as bars:
        bars("task", 5000, 20_000)  # a run that continues
        time.sleep(0.1)
        bars("task", 5001, 20_000)  # 14,999 steps of at least 0.1 s are left
        bars("task", 20_000, 20_000)
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "task: 25%"
    assert re.fullmatch(r"task: 25%, ((2[4-9]|[3-9][0-9]|1[0-9][0-9]) minutes|[1-9] hours?) left", second), second
    assert last == "task: 100%"


def test_python_and_the_command_line_have_the_same_options():
    app = build_app()
    for command in COMMANDS:
        python = inspect.signature(getattr(ckd, command)).parameters
        command_line = inspect.signature(app[command].default_command).parameters
        names = [name for name in python if name != "on_progress" and not name.startswith("_")]
        assert names == [name for name in command_line if name != "json"]


@pytest.mark.slow
def test_modules_of_the_current_folder_are_found_but_hide_no_installed_ones(tmp_path: Path):
    pytest.importorskip("datasets")
    for split, count in (("train", 8), ("test", 4)):  # images of 20 × 20 pixels in two classes
        for label in range(2):
            folder = tmp_path / "images" / split / f"class-{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                digit(label, number, size=(20, 20)).save(folder / f"{number}.png")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("raise ImportError('a folder of data, not a library')")
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def network(*, num_classes, in_channels):\n"
        "    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),\n"
        "        torch.nn.Linear(in_channels, num_classes))\n"
    )
    command = [*PROGRAM, "train", "mine:network", "--data", "hf:images", "--epochs", "1", "--precision", "fp32"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--out", "run"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
