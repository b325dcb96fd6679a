"""The command as users meet it: in a process of its own."""

from __future__ import annotations

import contextlib
import json
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
from checkpointkd.cli import main
from checkpointkd.progress import Bars

COMMANDS = ["demo", "train", "inspect", "score", "select", "distill", "search"]
COMMANDS += ["evaluate", "correlate", "export", "reproduce", "report", "pack", "unpack"]


def _run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "checkpointkd.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_help_answers_at_once_and_without_torch():
    ours, torchs = [], []  # in turn: machines are busy at times
    for _ in range(3):
        began = time.perf_counter()
        assert _run("--help").returncode == 0
        ours.append(time.perf_counter() - began)
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        torchs.append(time.perf_counter() - began - ours[-1])
    assert statistics.median(ours) < 0.5 * statistics.median(torchs)
    code = "import sys, checkpointkd.cli as c; c.main(['train', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command: str):
    shown = _run(command, "--help").stdout
    assert f"checkpointkd {command} " in shown.partition("Example:")[2]
    assert "--json" in shown
    assert "Raises" not in shown


def test_the_help_lists_every_command():
    shown = _run("--help").stdout
    assert re.findall(r"^│ (\w+) ", shown, re.M) == COMMANDS


def test_by_hand_each_a_command_of_its_own(tmp_path: Path, capfd):
    """The whole story, as JSON: one object on standard output and nothing else there."""

    def ask(*arguments: object):
        code, said = main([*map(str, arguments), "--json"]), capfd.readouterr()
        assert code == 0, said.err
        return json.loads(said.out)

    teacher, student = tmp_path / "teacher", tmp_path / "student"
    small = ["--epochs", 4, "--train-images", 100]
    trained = ask("train", "wrn_10_1", "--data", "digits", *small, "--save-every", 2, "--out", teacher)
    assert trained["epochs"] == [2, 4]
    assert trained["result"]["test_images"] == 599
    looked = ask("inspect", teacher)
    assert [checkpoint["epoch"] for checkpoint in looked["checkpoints"]] == [2, 4]
    scored = ask("score", teacher, "--decoder-steps", 4)
    assert [point["epoch"] for point in scored["points"]] == [2, 4]
    chosen = ask("select", teacher)
    assert chosen["epoch"] in (2, 4)
    assert set(chosen["scores"]) == {"2", "4"}
    taught = ask(
        "distill",
        "wrn_10_1",
        "--teachers",
        f"{teacher}@midpoint",
        f"{teacher}@best",
        "--allow-weak-teacher",
        "--epochs",
        2,
        "--out",
        student,
    )
    assert taught["complete"] is True
    measured = ask("evaluate", f"{teacher}@midpoint", student, "--split", "test")
    assert measured["images"] == 599
    assert measured["members"][1]["accuracy"] == taught["result"]["test"]["accuracy"]
    assert Path(ask("report", tmp_path)["path"]).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_words_go_where_they_belong(teacher_run: Path):
    shown = _run("evaluate", f"{teacher_run}@midpoint", f"{teacher_run}")
    assert shown.stderr == ""
    assert "the ensemble" in shown.stdout
    again = _run(
        "train",
        "wrn_10_1",
        "--data",
        "digits",
        "--train-images",
        100,
        "--epochs",
        4,
        "--save-every",
        1,
        "--batch-size",
        10,
        "--learning-rate",
        0.03,
        "--out",
        teacher_run,
    )
    assert again.returncode == 0
    assert "is complete already" in again.stderr
    assert "accuracy" in again.stdout


def raises(**sizes: int) -> torch.nn.Module:
    raise RuntimeError("no luck today\nand a second line")


def few_classes(**sizes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))


MISTAKES = [
    (["trian"], r'Unknown command "trian"\. Did you mean "train"\?'),
    (["train", "wrn_10_1", "--data", "digits"], r"`checkpointkd train` needs --out; `checkpointkd train --help` says"),
    (["train", "wrn_10_1", "--data", "digits", "--out", ""], "--out has an empty value"),
    (["train", "wrn_10_1", "--data", "digits", "--out="], "--out= has an empty value"),
    (["evaluate", ""], "evaluate has an empty value"),
    (["train", "wrn_10_1", "--data", "digits", "--epoch", "3", "--out", "{new}"], "Did you mean --epochs"),
    (["train", "wrn_10_1", "--data", "digits", "--epochs", "many", "--out", "{new}"], '"many" is no whole number'),
    (["train", "wrn_10_1", "--data", "digits", "--epochs", "2.5", "--out", "{new}"], '"2.5" is no whole number'),
    (["train", "tests.test_cli:raises", "--data", "digits", "--out", "{new}"], "cannot be built: no luck today"),
    (["train", "tests.test_cli:few_classes", "--data", "digits", "--out", "{new}"], r"gives \(2, 3\), not logits"),
    (["train", "wrn_10_1", "--data", "digits", "--epochs", "0", "--out", "{new}"], "epochs must be at least 1, not 0"),
    (["train", "wrn_10_1", "--data", "digit", "--out", "{new}"], "unknown data set 'digit'; did you mean 'digits'"),
    (["train", "wrm_10_1", "--data", "digits", "--out", "{new}"], "unknown model 'wrm_10_1'; did you mean 'wrn_D_K'"),
    (["train", "wrn_11_1", "--data", "digits", "--out", "{new}"], r"the depth must be 6n \+ 4"),
    (["train", "wrn_10_9000", "--data", "digits", "--out", "{new}"], r"and the width from 1 to 64"),
    (["train", "wrn_10_1", "--data", "digits", "--recipe", "digit", "--out", "{new}"], "unknown recipe 'digit'"),
    (["train", "wrn_10_1", "--data", "digits", "--save-every", "0", "--out", "{new}"], "must be at least 1"),
    (["train", "wrn_10_1", "--data", "digits", "--train-images", "5", "--out", "{new}"], "can't represent 10 classes"),
    (["train", "wrn_10_1", "--data", "digits", "--train-images", "5000", "--out", "{new}"], "of 898 that there are"),
    (["train", "wrn_10_1", "--data", "digits", "--device", "gpu", "--out", "{new}"], 'Choose from: "auto"'),
    (["train", "wrn_10_1", "--data", "digits", "--out", "{run}"], "already holds another run"),
    (["train", "wrn_10_1", "--data", "digits", "--out", "{run}/run.json"], "could not make the folder"),
    (
        ["distill", "wrn_10_1", "--teachers", "{run}@midpoint", "--alpha", "1.5", "--out", "{new}"],
        r"in \[0, 1\], not 1\.5",
    ),
    (["distill", "wrn_10_1", "--teachers", "{run}@midpoint", "--tau", "0", "--out", "{new}"], "tau must be above 0"),
    (["distill", "wrn_10_1", "--teachers", "{run}@midpoint", "--tau", "nan", "--out", "{new}"], "tau must be above 0"),
    (["distill", "wrn_10_1", "--teachers", "{run}@7", "--out", "{new}"], r"No checkpoint of epoch 7 .*1, 2, 3, 4\)"),
    (["distill", "wrn_10_1", "--teachers", "{run}@best", "--out", "{new}"], "Nothing has been selected"),
    (["distill", "wrn_10_1", "--teachers", "{run}", "--method", "kdd", "--out", "{new}"], "unknown method 'kdd'"),
    (["score", "{new}"], "there is no run folder at"),
    (["score", "{empty}"], "is empty"),
    (["score", "{run}", "--estimator", "ridg"], "Choose from"),
    (["score", "{run}", "--decoder-steps", "0"], "steps must be at least 1, not 0"),
    (["select", "{run}"], "have not been scored by the decoder; run `checkpointkd score"),
    (["select", "{run}", "--rule", "algorithm"], "unknown rule 'algorithm'; did you mean 'algorithm1'"),
    (["evaluate"], "name at least one checkpoint|requires"),
    (["evaluate", "{run}@midpoint", "--data", "cifar"], "unknown data set 'cifar'"),
    (["inspect", "{new}"], "there is no file or folder at"),
    (["report", "{new}"], "there is no folder at"),
    (["report", "{empty}"], "there is no run in"),
]


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, sentence: str, teacher_run: Path, tmp_path: Path, capfd):
    (tmp_path / "empty").mkdir()
    places = {"run": teacher_run, "new": tmp_path / "new", "empty": tmp_path / "empty"}
    code = main([argument.format(**places) for argument in arguments])
    out, error = capfd.readouterr()
    assert code == 2
    assert out == ""
    assert re.search(sentence, error)
    assert error.startswith("checkpointkd: ")
    assert error.count("\n") == 1, "one sentence, on one line"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_says_how_to_go_on(how: signal.Signals, code: int, tmp_path: Path):
    arguments = [
        "train",
        "wrn_16_2",
        "--data",
        "digits",
        "--epochs",
        "40",
        "--save-every",
        "1",
        "--out",
        tmp_path / "run",
    ]
    command = [sys.executable, "-m", "checkpointkd.cli", *map(str, arguments)]
    listening = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731 - whoever started us
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listening)
    while not (tmp_path / "run" / "state.bin").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.endswith("stopped; what is saved is kept, and the same command again goes on from there\n")
    assert "Traceback" not in error


def test_an_interrupt_that_was_swallowed_is_raised_at_the_next_step():
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Bars() as bars:
            bars("task", 1, 3)
            with contextlib.suppress(KeyboardInterrupt):  # as a callback of a library's may
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                bars("task", 2, 3)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_python_and_command_line_take_the_same_names():
    import inspect

    from checkpointkd.cli import app

    for command in COMMANDS[1:]:
        parameters = inspect.signature(getattr(ckd, command)).parameters
        shown = inspect.signature(app[command].default_command).parameters
        assert [name for name in parameters if name != "progress"] == [name for name in shown if name != "json"]
