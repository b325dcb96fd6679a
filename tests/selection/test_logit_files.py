"""`select --logits`: rules on logits that any program has written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import checkpointkd as ckd
from checkpointkd.cli import main
from checkpointkd.data import config_of, load_data
from checkpointkd.errors import UserError
from checkpointkd.metrics import predict
from checkpointkd.selection import RULES


@pytest.fixture
def arrays(teacher_run: Path) -> dict[str, np.ndarray]:
    """Labels and logits of the teacher's checkpoints on its real validation images."""
    run = ckd.open_trajectory(teacher_run)
    data = load_data(config_of(run.run.data))
    logits = {str(epoch): predict(run[epoch].network(), data.val).numpy() for epoch in run}
    return {"labels": data.val.labels_N.numpy(), **logits}


def _write(folder: Path, arrays: dict[str, np.ndarray], form: str) -> Path:
    folder.mkdir()
    if form == "one npz":
        np.savez(folder / "all.npz", **arrays)
    elif form == "one safetensors":
        save_file(arrays, folder / "all.safetensors")
    else:
        for name, array in arrays.items():
            stem = name if name == "labels" else f"epoch_{int(name):04}"
            if form == "npy":
                np.save(folder / f"{stem}.npy", array)
            elif form == "npz":
                np.savez(folder / f"{stem}.npz", array)
            else:
                save_file({"logits" if name != "labels" else name: array}, folder / f"{stem}.safetensors")
    return folder


@pytest.mark.parametrize("form", ["npy", "npz", "safetensors", "one npz", "one safetensors"])
def test_rules_choose_as_from_the_run(form: str, arrays: dict[str, np.ndarray], teacher_run: Path, tmp_path: Path):
    folder = _write(tmp_path / "logits", arrays, form)
    ckd.score(teacher_run, decoder_steps=2, decoder_seeds=1)
    for rule in set(RULES) - {"algorithm1"}:
        expected, choice = ckd.select(teacher_run, rule=rule), ckd.select(logits=folder, rule=rule)
        assert (choice.epoch, choice.reason) == (expected.epoch, expected.reason), rule
        assert choice.scores == pytest.approx(expected.scores, rel=1e-4), rule
        if expected.probability is not None:
            assert choice.probability == pytest.approx(expected.probability, abs=0.01), rule


def test_the_command_writes_a_choice_and_a_report(arrays: dict[str, np.ndarray], tmp_path: Path, capsys):
    folder = _write(tmp_path / "logits", arrays, "npy")
    assert main(["select", "--logits", str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["rule"], printed["epoch"]) == ("lowest-nll", 4)
    assert json.loads((folder / "selection.json").read_text())["epochs"] == [4]
    report = (folder / "report.html").read_text()
    assert "Choice by the rule lowest-nll" in report
    assert "epoch 4" in report
    assert main(["select", "--logits", str(folder), "--rule", "best-accuracy"]) == 0, "the report is replaced"


def _without(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: array for key, array in arrays.items() if key != name}


BAD = {
    "no labels": (lambda a: _without("labels", a), "has no labels. Write an array named labels"),
    "no logits": (lambda a: {"labels": a["labels"]}, "has labels but no logits"),
    "float labels": (lambda a: a | {"labels": a["labels"] / 2}, "must hold whole numbers"),
    "label": (lambda a: a | {"labels": a["labels"] + 1}, "Label 10 of image .* is not among the 10 classes"),
    "fewer": (lambda a: a | {"2": a["2"][:-1]}, "has 299 images, and the labels 300"),
    "classes": (lambda a: a | {"2": a["2"][:, :9]}, "has 9 classes, and .* has 10"),
    "NaN": (lambda a: a | {"2": a["2"] * np.nan}, "has NaN or infinite values"),
    "integers": (lambda a: a | {"2": a["2"].astype(int)}, r"must hold logits \(N, K\), not int64"),
    "no number": (lambda a: a | {"best": a["2"]}, "has no number in its name 'best'"),
    "same epoch": (lambda a: a | {"e02": a["2"]}, "are both of epoch 2"),
    "objects": (lambda a: a | {"2": np.array([{}])}, "is damaged, or is not a file of arrays"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name: str, arrays: dict[str, np.ndarray], tmp_path: Path):
    change, message = BAD[name]
    folder = tmp_path / "logits"
    folder.mkdir()
    np.savez(folder / "all.npz", **change(arrays))
    with pytest.raises(UserError, match=message):
        ckd.select(logits=folder)
    assert not (folder / "selection.json").exists()


def test_what_needs_images_or_a_run_is_refused(arrays: dict[str, np.ndarray], tmp_path: Path, teacher_run: Path):
    folder = _write(tmp_path / "logits", arrays, "npy")
    for arguments, message in (
        ({"logits": folder, "rule": "algorithm1"}, "The rule algorithm1 needs images, not only logits. Rules without"),
        ({"logits": folder, "student": "wrn_10_1", "out": tmp_path / "p"}, "--student needs a run directory"),
        ({"logits": tmp_path / "nowhere"}, "There is no folder of logits at"),
        ({"logits": folder, "budget": 3}, "--budget needs --student"),
        ({}, "select needs a run directory, or --logits FOLDER"),
    ):
        with pytest.raises(UserError, match=message):
            ckd.select(**arguments)
    with pytest.raises(UserError, match="--logits takes the place of"):
        ckd.select(teacher_run, logits=folder)
    (folder / "damaged.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match=r"damaged.npz is damaged"):
        ckd.select(logits=folder)
