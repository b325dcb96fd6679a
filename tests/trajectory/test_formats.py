"""Checkpoints of other trainers: one exam for all that they write."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.data import Data
from checkpointkd.errors import UserError
from checkpointkd.models import Network
from checkpointkd.trajectory import adopt, look

from . import network as users
from .writers import NET, WRITERS, Written, copied, lightning, quiet

every_format = pytest.mark.parametrize("written", WRITERS, indirect=True)


@every_format
def test_every_format_is_recognised_and_gives_exactly_the_weights(written: Written, digits: Data, request):
    path, model, states = written
    name = request.node.callspec.params["written"]
    folder = look(path)
    assert list(folder.checkpoints) == [1, 2, 3]
    assert folder.unit == "epoch"
    formats = {found.format for found in folder.checkpoints.values()}
    assert len(formats) == 1
    assert name.startswith(*formats)
    trajectory = adopt(path, model=model, data=digits)
    images = digits.selection.clean()[:20]
    for epoch, state in states.items():
        body = getattr(users, model.partition(":")[2])(10, 1)
        body.load_state_dict(state)
        theirs = Network(body, mean=trajectory.run["mean"], std=trajectory.run["std"]).eval()
        ours = ckd.open_trajectory(path)[epoch].network()
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for key, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], tensor), key
        assert torch.allclose(ours(images), theirs(images), atol=1e-6)


def test_inspect_says_what_it_found_and_from_where(all_written: dict[str, Written], tmp_path: Path):
    path, _, _ = copied(all_written["timm"], tmp_path)
    found = ckd.inspect(path)
    assert found["format"] == "timm"
    assert found["model"] is None
    assert [(c["epoch"], c["stated"], c["epoch_from"]) for c in found["checkpoints"]] == [
        (1, "epoch 0 counted from 0", "the file"),
        (2, "epoch 1 counted from 0", "the file"),
        (3, "epoch 2 counted from 0", "the file"),
    ]
    assert any(left.startswith(("last.", "model_best.")) for left in found["left_out"])
    found = ckd.inspect(path, model=NET, data="digits")
    measured = ckd.evaluate(f"{path}@3")["members"][0]["accuracy"]
    assert found["checkpoints"][2]["selection_accuracy"] == measured
    again = ckd.inspect(path)
    assert again["checkpoints"] == found["checkpoints"]
    assert again["normalised_as"] == "the training images' own"


def test_names_count_from_0_where_the_first_is_0_and_left_out_is_said(all_written: dict[str, Written], tmp_path: Path):
    path, _, _ = copied(all_written["state dict"], tmp_path)
    found = ckd.inspect(path)
    assert found["checkpoints"][0]["stated"] == "net_0.pth, counted from 0 as the first is 0"
    assert found["left_out"] == ["final.pth: nothing tells its epoch"]


def test_the_average_of_weights_is_there_for_the_asking(all_written: dict[str, Written], tmp_path: Path, digits: Data):
    path, _, states = copied(all_written["timm"], tmp_path)
    average = adopt(path, model=NET, data=digits, where="state_dict_ema")[3].network()
    name = "head.weight"
    assert not torch.equal(average.body.state_dict()[name], states[3][name])
    plain = adopt(path, model=NET, data=digits, where="state_dict")[3].network()
    assert torch.equal(plain.body.state_dict()[name], states[3][name])
    with pytest.raises(UserError, match="has nothing at 'model'"):
        adopt(path, model=NET, data=digits, where="model")


def test_two_runs_in_a_folder_are_told_apart_by_a_pattern(all_written: dict[str, Written], tmp_path: Path):
    path, _, _ = copied(all_written["CheckpointKD authors"], tmp_path)
    with pytest.raises(UserError, match=r"are both of epoch 1; if there are several runs in it, name one's files by a"):
        look(Path(path).parent)
    one, other = (ckd.inspect(str(Path(path).parent / f"wrn{n}_*"), model=NET, data="digits") for n in (1, 2))
    assert one["checkpoints"][0]["sha256"] != other["checkpoints"][0]["sha256"]
    first, second = (str(Path(path).parent / f"wrn{n}_*@3") for n in (1, 2))
    assert len(ckd.evaluate(first, second)["members"]) == 2


def test_saved_within_epochs_they_are_counted_in_steps(digits: Data, tmp_path: Path):
    with quiet():
        from lightning.pytorch.callbacks import ModelCheckpoint

    often = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, every_n_train_steps=2)
    lightning(tmp_path, digits, callbacks=[often])
    folder = look(tmp_path)
    assert folder.unit == "step"
    assert list(folder.checkpoints) == [2, 4, 6, 8]


@pytest.mark.parametrize("written", ["Lightning", "safetensors"], indirect=True)
def test_the_whole_story_with_checkpoints_of_others(written: Written, tmp_path: Path, caplog):
    path, model, _ = written
    with pytest.raises(UserError, match=r"3 checkpoints of another trainer \(.*\); say once which network they are of"):
        ckd.select(path)
    plane = ckd.score(path, model=model, data="digits", decoder_steps=4, decoder_seeds=1)
    assert "may have seen the selection images" in caplog.text
    assert plane.epochs == [1, 2, 3]
    choice = ckd.select(path)
    assert choice.epoch in (1, 2, 3)
    student = ckd.distill(
        "wrn_10_1", teachers=[f"{path}@best", f"{path}@full"], epochs=1, train_images=60, weak_teacher=True,
        out=tmp_path / "student",
    )  # fmt: skip
    assert [teacher["epoch"] for teacher in student.run["teachers"]] == [choice.epoch, 3]
    assert len(ckd.evaluate(f"{path}@0.5", f"{path}@full")["members"]) == 2
    assert ckd.report(tmp_path).exists()
    assert "theirs" in (tmp_path / "report.html").read_text(encoding="utf-8")
    paper = ckd.inspect(path, model=model, data="digits", protocol="paper")
    assert paper["protocol"] == "paper"
    assert ckd.evaluate(f"{path}@full")["images"] == 599


def test_what_comes_later_is_scored_too_and_what_changed_is_noticed(all_written: dict[str, Written], tmp_path: Path):
    path, model, _ = copied(all_written["safetensors"], tmp_path)
    third = Path(path) / "c.safetensors"
    third.rename(tmp_path / "c.safetensors")
    assert ckd.score(path, model=model, data="digits", decoder_steps=2, decoder_seeds=1).epochs == [1, 2]
    (tmp_path / "c.safetensors").rename(third)
    assert ckd.score(path, decoder_steps=2, decoder_seeds=1).epochs == [1, 2, 3]
    shutil.copy(Path(path) / "a.safetensors", third)
    with pytest.raises(
        UserError, match=r"c\.safetensors has changed since it was looked at; run `checkpointkd inspect"
    ):
        ckd.evaluate(f"{path}@3")
    assert ckd.score(path, decoder_steps=2, decoder_seeds=1).points[2].accuracy == pytest.approx(
        ckd.evaluate(f"{path}@1")["members"][0]["accuracy"]
    )


def test_a_folder_that_moves_takes_its_notes_along(all_written: dict[str, Written], tmp_path: Path):
    path, model, _ = copied(all_written["safetensors"], tmp_path)
    ckd.inspect(path, model=model, data="digits")
    moved = tmp_path / "Käse und Brot"
    Path(path).rename(moved)
    assert len(ckd.evaluate(f"{moved}@1", f"{moved}@full")["members"]) == 2


def test_normalisation_as_given_as_timm_and_as_a_preprocessor_says(all_written, tmp_path: Path, digits: Data):
    path, model, _ = copied(all_written["Hugging Face"], tmp_path)
    for checkpoint in Path(path).glob("checkpoint-*"):
        (checkpoint / "preprocessor_config.json").write_text('{"image_mean": [0.25], "image_std": [0.75]}')
    run = adopt(path, model=model, data=digits).run
    assert (run["mean"], run["std"], run["normalised_as"]) == ([0.25], [0.75], "preprocessor_config.json says so")
    run = adopt(path, model=model, data=digits, mean=[0.5], std=[0.5]).run
    assert (run["mean"], run["std"], run["normalised_as"]) == ([0.5], [0.5], "as given")
    for mean, std in (([0.5], None), ([0.5, 0.5], [0.5, 0.5]), ([0.5], [0.0]), ([125.3], [63.0])):
        with pytest.raises(UserError, match="--mean and --std"):
            adopt(path, model=model, data=digits, mean=mean, std=std)


MISFITS = [
    (
        {"model": "tests.trajectory.network:build_transformers"},
        r"a\.safetensors does not fit tests.*: \d+ tensors are missing",
    ),
    ({"model": "wrn_10_1"}, r"a\.safetensors does not fit wrn_10_1: .* \(absent in the file, \[.*\] in the model\)"),
    ({"model": "tests.trajectory.network:nothing"}, "can't be imported"),
    ({"model": NET, "weights": "ema"}, r"a\.safetensors has nothing at 'ema' \(at its top: blocks, head, stem\)"),
    ({"model": NET, "data": None}, "--model goes with --data"),
    ({"model": None}, "--data is about another trainer's checkpoints; say --model too"),
]


@pytest.mark.parametrize(("change", "sentence"), MISFITS)
def test_a_network_that_does_not_fit_is_an_error_that_names_what(
    all_written: dict[str, Written], tmp_path: Path, change: dict, sentence: str
):
    path, _, _ = copied(all_written["safetensors"], tmp_path)
    with pytest.raises(UserError, match=sentence) as caught:
        ckd.inspect(path, **({"data": "digits"} | change))
    assert "\n" not in str(caught.value)
    assert not (Path(path) / "checkpointkd").exists()
