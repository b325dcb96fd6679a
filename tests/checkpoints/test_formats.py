"""Checkpoints of other trainers: the same tests for every format."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import checkpointkd as ckd
from checkpointkd.checkpoints import register_external, scan_folder
from checkpointkd.checkpoints.scan import FoundFolder
from checkpointkd.checkpoints.weights import opened_tensors
from checkpointkd.cli import main
from checkpointkd.data import Data
from checkpointkd.errors import UserError
from checkpointkd.models import Network

from . import network as users
from .writers import NET, WRITERS, Written, copied, lightning, quiet

every_format = pytest.mark.parametrize("written", WRITERS, indirect=True)


@every_format
def test_every_format_is_recognized_and_its_weights_are_exact(written: Written, digits: Data, request):
    path, model, states = written
    name = request.node.callspec.params["written"]
    folder = scan_folder(path)
    assert list(folder.checkpoints) == [1, 2, 3]
    assert folder.unit == "epoch"
    formats = {file.format for file in folder.checkpoints.values()}
    assert len(formats) == 1
    assert name.startswith(*formats)
    trajectory = register_external(path, model=model, data=digits)
    images = digits.val.to_float()[:20]
    for epoch, state in states.items():
        body = getattr(users, model.partition(":")[2])(10, 1)
        body.load_state_dict(state)
        expected = Network(body, mean=trajectory.run.mean, std=trajectory.run.std).eval()
        loaded = ckd.open_trajectory(path)[epoch].network()
        assert loaded.state_dict().keys() == expected.state_dict().keys()
        for key, tensor in expected.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], tensor), key
        assert torch.allclose(loaded(images), expected(images), atol=1e-6)


def test_wide_resnets_of_other_toolkits_are_ours(tmp_path: Path, digits: Data):
    torch.manual_seed(0)
    theirs = users.RepDistillerWideResNet(10, 1)
    for epoch in (120, 240):
        for tensor in theirs.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor))
        torch.save({"epoch": epoch, "model": theirs.state_dict()}, tmp_path / f"ckpt_epoch_{epoch}.pth")
    trajectory = register_external(tmp_path, model="wrn_16_1", data=digits)
    assert list(trajectory) == [120, 240]
    images = digits.val.to_float()[:20]
    network = trajectory[240].network().eval()
    expected = Network(theirs, mean=trajectory.run.mean, std=trajectory.run.std).eval()
    assert torch.allclose(network(images), expected(images), rtol=1e-5, atol=1e-5)


def test_inspect_names_format_epochs_and_their_source(all_written: dict[str, Written], tmp_path: Path):
    path, _, _ = copied(all_written["timm"], tmp_path)
    listed = ckd.inspect(path)
    assert listed["format"] == "timm"
    assert listed["model"] is None
    assert [(c["epoch"], c["stated"], c["epoch_from"]) for c in listed["checkpoints"]] == [
        (1, "epoch 0 counted from 0", "the file"),
        (2, "epoch 1 counted from 0", "the file"),
        (3, "epoch 2 counted from 0", "the file"),
    ]
    assert any(left.startswith(("last.", "model_best.")) for left in listed["left_out"])
    listed = ckd.inspect(path, model=NET, data="digits")
    measured = ckd.evaluate(f"{path}@3")["members"][0]["accuracy"]
    assert listed["checkpoints"][2]["val_accuracy"] == measured
    again = ckd.inspect(path)
    assert again["checkpoints"] == listed["checkpoints"]
    assert again["normalized_as"] == "measured on the training images"


def test_names_count_from_0_if_the_first_is_0_and_other_files_are_left_out(
    all_written: dict[str, Written], tmp_path: Path
):
    path, _, _ = copied(all_written["state dict"], tmp_path)
    listed = ckd.inspect(path)
    assert listed["checkpoints"][0]["stated"] == "net_0.pth, counted from 0"
    assert listed["left_out"] == ["final.pth: its name tells no epoch"]


def test_averaged_weights_are_read_by_their_key(all_written: dict[str, Written], tmp_path: Path, digits: Data):
    path, _, states = copied(all_written["timm"], tmp_path)
    average = register_external(path, model=NET, data=digits, state_dict_key="state_dict_ema")[3].network()
    name = "head.weight"
    assert not torch.equal(average.body.state_dict()[name], states[3][name])
    plain = register_external(path, model=NET, data=digits, state_dict_key="state_dict")[3].network()
    assert torch.equal(plain.body.state_dict()[name], states[3][name])
    with pytest.raises(UserError, match="has no key 'model'"):
        register_external(path, model=NET, data=digits, state_dict_key="model")


def test_the_sets_that_are_not_used_are_named(all_written: dict[str, Written], tmp_path: Path, capsys):
    path, _, _ = copied(all_written["timm"], tmp_path)
    main(["inspect", path, "--model", NET, "--data", "digits"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "weights: state_dict Not used: state_dict_ema (averaged). To use another, give --state-dict-key" in printed
    assert ckd.inspect(path, state_dict_key="state_dict_ema")["other_sets"] == ("state_dict",)


def test_torchvisions_averaged_weights_are_named(tmp_path: Path, digits: Data):
    """Its reference script keeps an AveragedModel in `model_ema`, with its own prefix and counter."""
    net = users.build(10, 1)
    average = torch.optim.swa_utils.AveragedModel(net, use_buffers=True)
    average.update_parameters(net)
    average.module.head.bias.data += 1
    torch.save({"model": net.state_dict(), "model_ema": average.state_dict(), "epoch": 4}, tmp_path / "model_4.pth")
    run = register_external(tmp_path, model=NET, data=digits).run
    assert (run.weights_at, run.other_sets) == ("model", ("model_ema.module (averaged)",))
    averaged = register_external(tmp_path, model=NET, data=digits, state_dict_key="model_ema")
    assert torch.equal(averaged.last.network().body.head.bias, average.module.head.bias)


def test_lightnings_averaged_weights_are_told_from_the_plain_ones(tmp_path: Path, digits: Data):
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

    _, _, states = lightning(
        tmp_path, digits, callbacks=[EMAWeightAveraging(decay=0.5), ModelCheckpoint(tmp_path, save_top_k=-1)]
    )
    which = r"state_dict\.net \(averaged\), current_model_state\.net \(as trained\)"
    with pytest.raises(UserError, match=rf"more than once: {which}\. Choose with --state-dict-key"):
        register_external(tmp_path, model=NET, data=digits)
    trained = register_external(tmp_path, model=NET, data=digits, state_dict_key="current_model_state")
    assert torch.equal(trained[3].network().body.head.weight, states[3]["head.weight"])
    averaged = register_external(tmp_path, model=NET, data=digits, state_dict_key="state_dict")
    assert not torch.equal(averaged[3].network().body.head.weight, states[3]["head.weight"])
    assert averaged.run.other_sets == ("current_model_state.net (as trained)",)


def test_a_wildcard_selects_one_of_two_runs_in_a_folder(all_written: dict[str, Written], tmp_path: Path):
    path, _, _ = copied(all_written["CheckpointKD authors"], tmp_path)
    with pytest.raises(UserError, match=r"both have epoch 1\. If these are several runs, select one with a wild"):
        scan_folder(Path(path).parent)
    first, second = (ckd.inspect(str(Path(path).parent / f"wrn{n}_*"), model=NET, data="digits") for n in (1, 2))
    assert first["checkpoints"][0]["sha256"] != second["checkpoints"][0]["sha256"]
    refs = [str(Path(path).parent / f"wrn{n}_*@3") for n in (1, 2)]
    assert len(ckd.evaluate(*refs)["members"]) == 2


def test_checkpoints_saved_within_epochs_are_counted_in_steps(digits: Data, tmp_path: Path):
    with quiet():
        from lightning.pytorch.callbacks import ModelCheckpoint

    often = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, every_n_train_steps=2)
    lightning(tmp_path, digits, callbacks=[often])
    folder = scan_folder(tmp_path)
    assert folder.unit == "step"
    assert list(folder.checkpoints) == [2, 4, 6, 8]


@pytest.mark.parametrize("written", ["Lightning", "safetensors"], indirect=True)
def test_external_checkpoints_are_scored_selected_and_distilled(written: Written, tmp_path: Path, caplog):
    path, model, _ = written
    with pytest.raises(UserError, match=r"3 checkpoints of another trainer \(.*\)\. Name their network once"):
        ckd.select(path)
    plane = ckd.score(path, model=model, data="digits", decoder_steps=4, decoder_seeds=1)
    assert "may have seen the validation set" in caplog.text
    assert plane.epochs == [1, 2, 3]
    choice = ckd.select(path)
    assert choice.epoch in (1, 2, 3)
    student = ckd.distill(
        "wrn_10_1",
        teachers=[f"{path}@best", f"{path}@last"],
        epochs=1,
        train_images=60,
        allow_weak_teacher=True,
        out=tmp_path / "student",
    )
    assert [teacher.epoch for teacher in student.run.teachers] == [choice.epoch, 3]
    assert len(ckd.evaluate(f"{path}@0.5", f"{path}@last")["members"]) == 2
    assert [checkpoint["epoch"] for checkpoint in ckd.correlate(f"{path}@1", f"{path}@last")["checkpoints"]] == [1, 3]
    assert ckd.report(tmp_path).exists()
    assert "external" in (tmp_path / "report.html").read_text(encoding="utf-8")
    on_test = ckd.inspect(path, model=model, data="digits", select_on="test")
    assert on_test["select_on"] == "test"
    assert ckd.evaluate(f"{path}@last")["images"] == 599


def test_new_files_are_scored_and_changed_files_are_refused(all_written: dict[str, Written], tmp_path: Path):
    path, model, _ = copied(all_written["safetensors"], tmp_path)
    third = Path(path) / "model_3.safetensors"
    third.rename(tmp_path / "model_3.safetensors")
    assert ckd.score(path, model=model, data="digits", decoder_steps=2, decoder_seeds=1).epochs == [1, 2]
    (tmp_path / "model_3.safetensors").rename(third)
    assert ckd.score(path, decoder_steps=2, decoder_seeds=1).epochs == [1, 2, 3]
    shutil.copy(Path(path) / "model_1.safetensors", third)
    with pytest.raises(
        UserError, match=r"model_3\.safetensors has changed since it was inspected\. Run `checkpointkd inspect"
    ):
        ckd.evaluate(f"{path}@3")
    assert ckd.score(path, decoder_steps=2, decoder_seeds=1).points[2].accuracy == pytest.approx(
        ckd.evaluate(f"{path}@1")["members"][0]["accuracy"]
    )


def test_a_folder_that_moves_takes_its_record_along(all_written: dict[str, Written], tmp_path: Path):
    path, model, _ = copied(all_written["safetensors"], tmp_path)
    ckd.inspect(path, model=model, data="digits")
    moved = tmp_path / "Käse und Brot"
    Path(path).rename(moved)
    assert len(ckd.evaluate(f"{moved}@1", f"{moved}@last")["members"]) == 2


def test_normalization_is_the_users_else_the_preprocessors(all_written, tmp_path: Path, digits: Data):
    path, model, _ = copied(all_written["Hugging Face"], tmp_path)
    for checkpoint in Path(path).glob("checkpoint-*"):
        (checkpoint / "preprocessor_config.json").write_text('{"image_mean": [0.25], "image_std": [0.75]}')
    run = register_external(path, model=model, data=digits).run
    assert (run.mean, run.std, run.normalized_as) == ((0.25,), (0.75,), "stated in preprocessor_config.json")
    run = register_external(path, model=model, data=digits, mean=[0.5], std=[0.5]).run
    assert (run.mean, run.std, run.normalized_as) == ((0.5,), (0.5,), "as given")
    for mean, std in (([0.5], None), ([0.5, 0.5], [0.5, 0.5]), ([0.5], [0.0]), ([125.3], [63.0])):
        with pytest.raises(UserError, match="--mean and --std"):
            register_external(path, model=model, data=digits, mean=mean, std=std)


MISFITS = [
    (
        {"model": "tests.checkpoints.network:build_transformers"},
        r"model_1\.safetensors does not fit tests.*: \d+ tensors are missing",
    ),
    (
        {"model": "wrn_10_1"},
        r"model_1\.safetensors does not fit wrn_10_1: .* \(absent in the file, \[.*\] in the model\)",
    ),
    ({"model": "tests.checkpoints.network:nothing"}, "cannot be imported"),
    (
        {"model": NET, "state_dict_key": "ema"},
        r"model_1\.safetensors has no key 'ema'\. Its top-level keys are blocks, head, stem",
    ),
    ({"model": NET, "data": None}, "--model needs --data"),
    ({"model": None}, "name no network, or different networks. Add --model MODEL"),
]


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_a_network_that_does_not_fit_is_refused(
    all_written: dict[str, Written], tmp_path: Path, change: dict, message: str
):
    path, _, _ = copied(all_written["safetensors"], tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        ckd.inspect(path, **({"data": "digits"} | change))
    assert "\n" not in str(caught.value)
    assert not (Path(path) / "checkpointkd").exists()


NAMES = [  # names of files whose content tells no epoch, and the epochs in them; None is left out
    ({"net_0.pth": 1, "net_1.pth": 2, "net_2.pth": 3}, "epoch"),
    ({"net_0.pth": 0, "net_10.pth": 10, "net_20.pth": 20}, "epoch"),
    ({"epoch-10.pth": 10, "epoch-20.pth": 20, "last.pth": None}, "epoch"),
    ({"net_ep9.pth": 9, "net_ep10.PTH": 10, "best.pth": None}, "epoch"),
    ({"net_10.pth": 10, "net_20.pth": 20, "resnet_lr0.1_final.pth": None}, "epoch"),
    ({"model.10.pth": 10, "model.20.pth": 20}, "epoch"),
    ({"ckpt10.pth.tar": 10, "ckpt20.pth.tar": 20}, "epoch"),
    ({"epoch_7.pth": 7, "epoch_8.pth": 8, "best_acc_91.2.pth": None}, "epoch"),
    ({"resnet18_cifar100.pth": None, "resnet18_epoch10.pth": 10, "resnet18_epoch20.pth": 20}, "epoch"),
    ({"epoch__10_val91.pth": 10, "epoch__20_val92.pth": 20}, "epoch"),
    ({"resnet50_epoch_12_acc_0.91.pth": 12, "resnet50_epoch_24_acc_0.93.pth": 24}, "epoch"),
    ({"epoch=3-step=100.pth": 3, "epoch=6-step=200.pth": 6, "epoch=6-step=200-v1.pth": None}, "epoch"),
    ({"step_1000.pth": 1000, "step_2000.pth": 2000}, "step"),
    ({"iter_0001000.pth": 1000, "iter_0002000.pth": 2000}, "step"),
    ({"epoch_1.pth": 1, "model_final2.pth": None, "epoch_3.pth": 3}, "epoch"),
    ({"best_epoch_7.pth": None, "epoch_7.pth": 7, "epoch_8.PTH": 8}, "epoch"),
    ({"epoch_7_ema.pth": None, "epoch_7.pth": 7}, "epoch"),
    ({"epoch3_lr1e-4.pt": 3, "epoch4_lr1e-4.pt": 4}, "epoch"),
    ({"wd5e-4_ckpt10.pt": 10, "wd5e-4_ckpt20.pt": 20}, "epoch"),
    ({"wrn_200epochs_ckpt10.pt": 10, "wrn_200epochs_ckpt20.pt": 20}, "epoch"),
    ({"model_ema_ep1.pt": None, "model_ema_ep2.pt": None, "model_ep2.pt": 2}, "epoch"),
    ({"resnet18.pt": 1}, "epoch"),
]


def _save(folder: Path, *names: str) -> None:
    for name in names:
        torch.save(users.build(10, 1).state_dict(), folder / name)


def _epochs(folder: FoundFolder) -> dict[str, int]:
    return {file.path.name: epoch for epoch, file in folder.checkpoints.items()}


@pytest.mark.parametrize(
    ("names", "unit"), NAMES, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_epochs_are_read_from_common_names(names: dict[str, int | None], unit: str, tmp_path: Path):
    _save(tmp_path, *names)
    folder = scan_folder(tmp_path)
    assert _epochs(folder) == {name: epoch for name, epoch in names.items() if epoch is not None}
    assert folder.unit == unit
    assert len(folder.left_out) == list(names.values()).count(None)


@pytest.mark.parametrize(
    "names",
    [
        ["model-0.9123.pt", "model-0.8555.pt"],
        ["model_20240115.pt", "model_20240116.pt"],
        ["resnet18.pt", "resnet34.pt"],
        ["seed0.pt", "seed1.pt"],
        ["wrn-40-2_1.pth", "wrn-40-2_10.pth"],
        ["iter_40k.pt", "iter_80k.pt"],
        ["one.pth", "two.pth"],
    ],
)
def test_names_that_tell_no_epoch_ask_for_a_pattern(names: list[str], tmp_path: Path):
    _save(tmp_path, *names)
    with pytest.raises(UserError, match=r"No epoch can be read .* a --pattern with \{epoch\} in place of the number"):
        scan_folder(tmp_path)


PATTERNS = [  # --pattern, and the epochs in the names of files; None is left out
    ("wrn-40-2_{epoch}.pth", {"wrn-40-2_1.pth": 1, "wrn-40-2_10.pth": 10, "wrn-40-2.pth": None}, "epoch"),
    ("weights.{epoch}-*.pth", {"weights.10-0.31.pth": 10, "weights.20-0.29.pth": 20}, "epoch"),
    ("step=*-epoch={epoch}.pth", {"step=100-epoch=3.pth": 3, "step=200-epoch=6.pth": 6}, "epoch"),
    ("sched-step30_{epoch}.pt", {"sched-step30_0.pt": 0, "sched-step30_1.pt": 1}, "epoch"),  # as given: never from 0
    ("iter_{step}k.pt", {"iter_40k.pt": 40, "iter_80k.pt": 80}, "step"),
    ("a[1]_{epoch}.pt", {"a[1]_3.pt": 3, "a1_4.pt": None}, "epoch"),
]


@pytest.mark.parametrize(
    ("pattern", "names", "unit"), PATTERNS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_pattern_says_where_the_epoch_is(pattern: str, names: dict[str, int | None], unit: str, tmp_path: Path):
    _save(tmp_path, *names)
    (tmp_path / "broken.pt").write_text("not opened, for it does not match")
    folder = scan_folder(tmp_path, pattern)
    assert _epochs(folder) == {name: epoch for name, epoch in names.items() if epoch is not None}
    assert (folder.unit, {file.number_from for file in folder.checkpoints.values()}) == (unit, {"--pattern"})
    assert f"broken.pt: does not match {pattern}" in folder.left_out


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("net_*.pt", r"must be a file name with one \{epoch\}"),
        ("{epoch}_{epoch}.pt", r"must be a file name with one \{epoch\}"),
        ("runs/net_{epoch}.pt", r"must be a file name with one \{epoch\}"),
        ("net_{epoch}.pt", r"No file in .* matches --pattern 'net_\{epoch\}\.pt' \(files: a2\.pt\)"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str, message: str, tmp_path: Path, capsys):
    _save(tmp_path, "a2.pt")
    assert main(["inspect", str(tmp_path), "--pattern", pattern]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_a_pattern_is_stored_and_finds_new_files(tmp_path: Path):
    _save(tmp_path, "wrn-40-2_1.pth", "wrn-40-2_2.pth")
    pattern = "wrn-40-2_{epoch}.pth"
    listed = ckd.inspect(tmp_path, pattern=pattern)
    assert [checkpoint["epoch"] for checkpoint in listed["checkpoints"]] == [1, 2]
    ckd.inspect(tmp_path, model=NET, data="digits", pattern=pattern)
    _save(tmp_path, "wrn-40-2_3.pth")
    assert [checkpoint["epoch"] for checkpoint in ckd.inspect(tmp_path)["checkpoints"]] == [1, 2, 3]
    _save(tmp_path, "wrn-40-2_4.pth")
    assert ckd.score(tmp_path, estimator="ridge").epochs == [1, 2, 3, 4]
    swapped = ckd.inspect(tmp_path, pattern="wrn-40-{epoch}_4.pth")
    assert [checkpoint["epoch"] for checkpoint in swapped["checkpoints"]] == [2]


@pytest.mark.parametrize("epoch", [5, 5.0, "5", torch.tensor(5), torch.tensor(5.0)])
def test_an_epoch_is_a_number_however_it_is_stored(epoch: object, tmp_path: Path):
    torch.save({"state_dict": users.build(10, 1).state_dict(), "epoch": epoch}, tmp_path / "a1.pth")
    assert list(scan_folder(tmp_path).checkpoints) == [5]


def test_the_imagenet_example_counts_completed_epochs(tmp_path: Path):
    content = {"state_dict": users.build(10, 1).state_dict(), "arch": "net", "best_acc1": 0.5, "optimizer": {}}
    for epoch in (1, 2):
        torch.save(content | {"epoch": epoch}, tmp_path / f"checkpoint{epoch}.pth.tar")
    assert list(scan_folder(tmp_path).checkpoints) == [1, 2]


def _hugging_face(folder: Path, epochs: dict[int, float | None]) -> Path:
    import json

    import safetensors.torch

    for step, epoch in epochs.items():
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        safetensors.torch.save_file(users.build(10, 1).state_dict(), checkpoint / "model.safetensors")
        if epoch is not None:
            (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": epoch}))
    return folder


@pytest.mark.parametrize(
    ("saved", "epochs", "unit", "left_out"),
    [
        ({10: 0.9996, 20: 1.9996, 30: 3.0004}, [1, 2, 3], "epoch", 0),
        ({10: 0.5, 20: 1.0, 30: 1.5}, [10, 20, 30], "step", 0),
        ({31: 1.0, 62: 2.0, 93: None}, [1, 2], "epoch", 1),
        ({31: None, 62: None}, [31, 62], "step", 0),
    ],
)
def test_steps_and_epochs_of_hugging_face(saved: dict, epochs: list[int], unit: str, left_out: int, tmp_path: Path):
    folder = scan_folder(_hugging_face(tmp_path / "out", saved))
    assert (list(folder.checkpoints), folder.unit, len(folder.left_out)) == (epochs, unit, left_out)


def test_a_manual_save_after_the_last_epoch_keeps_lightning_in_epochs(digits: Data, tmp_path: Path):
    lightning(tmp_path, digits)
    from lightning.pytorch.callbacks import ModelCheckpoint

    with quiet():
        each_third = ModelCheckpoint(
            dirpath=tmp_path / "steps", save_top_k=-1, every_n_train_steps=3
        )  # an epoch's steps
        lightning(tmp_path / "steps", digits, callbacks=[each_third], by_hand=tmp_path / "steps" / "hand.ckpt")
    folder = scan_folder(tmp_path / "steps")
    assert (list(folder.checkpoints), folder.unit) == ([1, 2, 3], "epoch")
    assert folder.left_out == ["hand.ckpt: the same epoch as epoch=2-step=9.ckpt"]


@pytest.mark.parametrize(
    "names",
    [
        ["run1_ep10.pt", "run1_ep20.pt", "run2_ep5.pt", "run2_ep15.pt"],
        ["elastic_ep1.pt", "elastic_ep2.pt", "plain_ep1.pt"],
    ],
)
def test_several_runs_in_a_folder_are_refused(names: list[str], tmp_path: Path):
    _save(tmp_path, *names)
    with pytest.raises(UserError, match=r"look like several runs\. Select one run with a wildcard in quotes"):
        scan_folder(tmp_path)


def test_a_file_that_counts_from_0_does_not_shift_epochs_from_names(tmp_path: Path):
    state = users.build(10, 1).state_dict()
    _save(tmp_path, "a_epoch1.pt", "a_epoch2.pt")
    torch.save({"epoch": 0, "net": state}, tmp_path / "interrupted.pt")
    epochs = _epochs(scan_folder(tmp_path))
    assert epochs == {"interrupted.pt": 0, "a_epoch1.pt": 1, "a_epoch2.pt": 2}
    for epoch in (0, 1):  # these files count from 0, the names do not
        (tmp_path / f"a_epoch{epoch + 1}.pt").rename(tmp_path / f"a_epoch{epoch + 5}.pt")
        torch.save({"epoch": epoch, "net": state}, tmp_path / f"net{epoch}.pt")
    (tmp_path / "interrupted.pt").unlink()
    assert _epochs(scan_folder(tmp_path)) == {
        "net0.pt": 1,
        "net1.pt": 2,
        "a_epoch5.pt": 5,
        "a_epoch6.pt": 6,
    }


def test_an_exponent_is_not_an_epoch(tmp_path: Path):
    _save(tmp_path, "net_lr1e-4.pt")
    assert list(scan_folder(tmp_path).checkpoints) == [1]


def test_only_file_names_may_have_wildcards(tmp_path: Path):
    with pytest.raises(UserError, match="only file names may have wildcards"):
        scan_folder(tmp_path / "dir*" / "epoch*.pt")


def test_weights_at_different_keys_are_not_mixed(tmp_path: Path, digits: Data):
    torch.save({"epoch": 1, "model": users.build(10, 1).state_dict()}, tmp_path / "1.pt")
    torch.save({"epoch": 2, "swa": users.build(10, 1).state_dict()}, tmp_path / "2.pt")
    with pytest.raises(UserError, match=r"has the weights of .* at 'swa', but earlier files have them at 'model'"):
        register_external(tmp_path, model=NET, data=digits)


def test_a_file_without_batch_counters_does_not_take_those_of_the_file_before(tmp_path: Path, digits: Data):
    """Batch norm's counters may be missing from a file; they are 0 then, whatever was read before it."""
    for epoch in (1, 2):
        state = users.build(10, 1).state_dict()
        counters = [name for name in state if name.endswith("num_batches_tracked")]
        for name in counters:
            state[name] = torch.tensor(5)
        if epoch == 2:
            state = {name: tensor for name, tensor in state.items() if name not in counters}
        torch.save(state, tmp_path / f"epoch_{epoch}.pt")
    trajectory = register_external(tmp_path, model=NET, data=digits)
    for epoch, expected in ((1, 5), (2, 0)):
        network = trajectory[epoch].network()  # verifies the recorded hash
        assert {int(network.body.state_dict()[name]) for name in counters} == {expected}


def test_a_name_with_ema_in_it_is_not_an_average(tmp_path: Path, digits: Data):
    first, second = (users.build(10, 1).state_dict() for _ in "ab")
    torch.save({"semantic_net": first, "teacher": second}, tmp_path / "1.pt")
    with pytest.raises(UserError, match="more than once"):
        register_external(tmp_path, model=NET, data=digits)


def test_what_the_user_gave_stays_until_it_is_given_again(all_written: dict[str, Written], tmp_path: Path, capsys):
    """--select-on alone is enough, and scores and choices on other images are not used."""
    path, model, _ = copied(all_written["safetensors"], tmp_path)
    ckd.inspect(path, model=model, data="digits", mean=[0.3], std=[0.2])
    ckd.score(path, estimator="ridge")
    ckd.select(path, estimator="ridge")
    assert ckd.inspect(path)["selected"] is not None
    on_test = ckd.inspect(path, select_on="test")
    assert (on_test["select_on"], on_test["mean"], on_test["selected"]) == ("test", (0.3,), None)
    with pytest.raises(UserError, match="was scored on other images"):
        ckd.select(path, estimator="ridge")
    assert ckd.score(path, model=model, data="digits", estimator="ridge").settings.data.select_on == "test"
    assert (ckd.select(path, estimator="ridge").epoch,) == ckd.inspect(path)["selected"]
    accuracies = [checkpoint["val_accuracy"] for checkpoint in ckd.inspect(path)["checkpoints"]]
    assert None not in accuracies, "score keeps the accuracies"
    assert ckd.inspect(path, flip=True)["select_on"] == "test"


def test_steps_are_called_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "external"
    folder.mkdir()
    _save(folder, "step_500.pt", "step_1000.pt", "step_1500.pt")
    assert main(["score", str(folder), "--model", NET, "--data", "digits", "--decoder-steps", "1"]) == 0
    assert main(["select", str(folder), "--rule", "midpoint"]) == 0
    output = capsys.readouterr().out
    assert re.search("^step +accuracy", output, re.MULTILINE)
    assert "step 500" in output
    assert main(["evaluate", f"{folder}@7"]) == 2
    assert "No checkpoint of step 7" in capsys.readouterr().err
    page = ckd.report(tmp_path).read_text(encoding="utf-8")
    assert "chose step 500" in page
    assert "\nstep 1500\n" in page


def test_recovery_files_of_timm_are_left_out(all_written: dict[str, Written], tmp_path: Path):
    path, _, _ = copied(all_written["timm"], tmp_path)
    shutil.copy(Path(path) / "checkpoint-1.pth.tar", Path(path) / "recovery-1-200.pth.tar")
    folder = scan_folder(path)
    assert list(folder.checkpoints) == [1, 2, 3]
    assert "recovery-1-200.pth.tar: saved within an epoch, by timm" in folder.left_out


def test_new_and_changed_files_are_reported_and_registered(all_written, tmp_path: Path, caplog):
    path, model, _ = copied(all_written["safetensors"], tmp_path)
    third = Path(path) / "model_3.safetensors"
    third.rename(tmp_path / "model_3.safetensors")
    first = ckd.inspect(path, model=model, data="digits")
    ckd.score(path, decoder_steps=2, decoder_seeds=1)
    accuracies = [checkpoint["val_accuracy"] for checkpoint in ckd.inspect(path)["checkpoints"]]
    assert accuracies == [checkpoint["val_accuracy"] for checkpoint in first["checkpoints"]], (
        "score keeps the accuracies"
    )
    (tmp_path / "model_3.safetensors").rename(third)
    caplog.clear()
    assert ckd.evaluate(f"{path}@last")["members"][0]["epoch"] == 2
    assert "checkpoints that are new or changed since it was inspected (model_3.safetensors)" in caplog.text
    assert [checkpoint["epoch"] for checkpoint in ckd.inspect(path)["checkpoints"]] == [1, 2, 3]
    ckd.select(path, rule="last")
    shutil.copy(Path(path) / "model_1.safetensors", third)
    assert ckd.inspect(path)["selected"] is None, "it was chosen among other checkpoints"
    checkpoints = ckd.inspect(path)["checkpoints"]
    assert checkpoints[2]["val_accuracy"] == checkpoints[0]["val_accuracy"]
    assert len(ckd.evaluate(f"{path}@3")["members"]) == 1


def test_scoring_a_copy_scores_the_copy(all_written, tmp_path: Path):
    path, model, _ = copied(all_written["timm"], tmp_path)
    ckd.inspect(path, model=model, data="digits", state_dict_key="state_dict_ema")
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    shutil.rmtree(path)
    plane = ckd.score(copy, decoder_steps=2, decoder_seeds=1)
    assert plane.epochs == [1, 2, 3]
    assert ckd.inspect(copy)["path"] == str(copy)
    assert ckd.inspect(copy)["weights_at"] == "state_dict_ema", "the key that was given is used again"


def test_our_writers_store_the_normalization(tmp_path: Path, digits: Data):
    ckd.save_checkpoint(tmp_path, epoch=1, model=users.build(10, 1), mean=[0.2], std=[0.4])
    run = register_external(tmp_path, model=NET, data=digits).run
    assert (run.mean, run.std, run.normalized_as) == ((0.2,), (0.4,), "stated in epoch-0001.safetensors")
    not_finite = users.build(10, 1)
    torch.nn.init.constant_(not_finite.head.bias, float("nan"))
    for epoch, model in ((1.5, users.build(10, 1)), (-1, users.build(10, 1)), (2, not_finite)):
        with pytest.raises(UserError):
            ckd.save_checkpoint(tmp_path, epoch=epoch, model=model)  # type: ignore[arg-type]


def test_the_callbacks_save_the_last_epoch_too(digits: Data, tmp_path: Path):
    from .writers import hugging_face

    lightning(tmp_path / "a", digits, callbacks=[ckd.lightning_callback(tmp_path / "l", every=2)])
    hugging_face(tmp_path / "b", digits, callback=ckd.transformers_callback(tmp_path / "t", every=2))
    for folder in ("l", "t"):
        assert list(scan_folder(tmp_path / folder).checkpoints) == [2, 3]


def test_inspect_warns_about_networks_no_better_than_chance(tmp_path: Path, caplog):
    ckd.save_checkpoint(tmp_path, epoch=1, model=users.build(10, 1))
    ckd.inspect(tmp_path, model=NET, data="digits")
    assert "No checkpoint is better than chance" in caplog.text


def test_two_sets_that_share_their_tensors_are_both_there(tmp_path: Path, digits: Data):
    """The averaged weights of a first epoch can be the very dict of the plain ones."""
    state = users.build(10, 1).state_dict()
    torch.save({"state_dict": state, "state_dict_ema": state, "epoch": 1}, tmp_path / "checkpoint-1.pth.tar")
    for key in (None, "state_dict", "state_dict_ema"):
        trajectory = register_external(tmp_path, model=NET, data=digits, state_dict_key=key)
        assert trajectory.run.weights_at == (key or "state_dict")


def test_timm_files_name_their_network(tmp_path: Path):
    import argparse

    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    args = argparse.Namespace(model="test_resnet", num_classes=10)
    content = {"state_dict": network.state_dict(), "arch": "resnet", "version": 2, "epoch": 4, "args": args}
    torch.save(content, tmp_path / "checkpoint-4.pth.tar")
    assert ckd.inspect(tmp_path)["network"] == "timm:test_resnet"
    assert ckd.inspect(tmp_path, data="digits")["model"] == "timm:test_resnet"
    assert list(ckd.open_trajectory(tmp_path)) == [5]


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("protocol", [2, 5])
def test_tensors_of_every_kind_are_exact(archive: bool, protocol: int, tmp_path: Path):
    """As torch.load reads them: views, negatives, conjugates, expansions, parameters, shared arrays, whole networks."""
    import numpy as np

    z, array = torch.randn(3, dtype=torch.complex64), np.arange(20_000, dtype=np.float32).reshape(100, 200)
    content = {
        "view": torch.randn(4, 5)[1:, ::2],
        "transposed": nn.Parameter(torch.randn(2, 3).t()),
        "negative": torch._neg_view(torch.randn(3)),
        "imaginary": z.conj().imag,
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "expanded": torch.zeros(1).expand(10),
        "half": torch.randn(3).to(torch.bfloat16),
        "scalar": torch.tensor(5),
        "array": array,
        "same array": array,
        "columns": np.asfortranarray(array),
        "network": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
    }
    path = tmp_path / "file.pt"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    expected = {name: torch.as_tensor(value) for name, value in content.items() if name != "network"}
    expected |= {f"network.{name}": tensor for name, tensor in content["network"].state_dict().items()}
    with opened_tensors(path) as flat:
        assert flat.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(flat[name].read(), tensor), name


def test_overlapping_chunks_are_refused(tmp_path: Path):
    """A chunk that is there twice would leave a part of the tensor without values."""
    import torch.distributed.checkpoint as dcp

    with quiet():
        dcp.save({"weight": torch.arange(4.0)}, checkpoint_id=tmp_path / "step-1")
    metadata = tmp_path / "step-1" / ".metadata"
    content = pickle.loads(metadata.read_bytes())
    tensor = content.state_dict_metadata["weight"]
    (chunk,) = tensor.chunks
    tensor.size = torch.Size([8])
    tensor.chunks = [chunk, chunk]
    metadata.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="chunks of weight overlap"), opened_tensors(tmp_path / "step-1") as flat:
        flat["weight"].read()


@pytest.mark.parametrize("ending", ["", ".th", ".pyth", ".pkl", ".weights", ".model"])
def test_files_with_any_ending_are_found(ending: str, tmp_path: Path):
    for epoch in (1, 2):
        torch.save({"epoch": epoch, "model": users.build(10, 1).state_dict()}, tmp_path / f"epoch_{epoch}{ending}")
    (tmp_path / "log.txt").write_text("accuracy 93.2")
    assert list(scan_folder(tmp_path).checkpoints) == [1, 2]


def test_a_tuple_or_list_with_a_state_dict_is_read(tmp_path: Path, digits: Data):
    state = users.build(10, 1).state_dict()
    torch.save((0.93, state, [1, 2]), tmp_path / "epoch_1.pt")
    torch.save([0.93, state], tmp_path / "epoch_2.pt")
    trajectory = register_external(tmp_path, model=NET, data=digits)
    assert all(torch.equal(network.body.head.weight, state["head.weight"]) for network in (
        trajectory[1].network(), trajectory[2].network()
    ))  # fmt: skip


def test_surplus_tensors_are_refused_unless_the_user_ignores_them(tmp_path: Path, digits: Data):
    state = users.build(10, 1).state_dict()
    counters = {f"{part}{what}": torch.zeros(1) for part in ("", "head.") for what in ("total_ops", "total_params")}
    torch.save(state | counters, tmp_path / "epoch_1.pt")
    assert [*register_external(tmp_path, model=NET, data=digits)] == [1], "thop's counters are no weights"
    torch.save(state | {"criterion.weight": torch.ones(10), "head.scale": torch.ones(1)}, tmp_path / "epoch_1.pt")
    with pytest.raises(UserError, match=r"criterion\.weight .*\. If the network works without .* --ignore-tensors 'cr"):
        register_external(tmp_path, model=NET, data=digits)
    with pytest.raises(UserError, match=r"give --ignore-tensors 'head\.\*'"):
        register_external(tmp_path, model=NET, data=digits, ignore_tensors=["criterion.*"])
    ckd.inspect(tmp_path, model=NET, data="digits", ignore_tensors=["criterion.*", "head.s*"])
    assert torch.equal(ckd.load(f"{tmp_path}@1", model=NET).body.head.weight, state["head.weight"])
    assert ckd.inspect(tmp_path, select_on="test")["checkpoints"], "the patterns that were given are used again"
    del state["head.bias"]
    torch.save(state | {"head.scale": torch.ones(1)}, tmp_path / "epoch_1.pt")
    with pytest.raises(UserError, match=r"first head\.bias \(absent in the file, \[10\] in the model\)$"):
        register_external(tmp_path, model=NET, data=digits)


def test_a_network_that_the_user_wrapped_takes_the_weights_of_the_inner_network(tmp_path: Path, digits: Data):
    """The classifier returns a tuple, a list or a dict; or a wrapper returns the logits."""
    state = users.build(10, 1).state_dict()
    torch.save(
        {"epoch": 1, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "1.pt"
    )
    images, logits = digits.val.to_float()[:5], []
    for name in ("build", "build_wrapped", "build_tuple", "build_list", "build_dict"):
        network = register_external(tmp_path, model=f"tests.checkpoints.network:{name}", data=digits)[1].network()
        logits.append(network(images))
    assert all(torch.equal(other, logits[0]) for other in logits)
