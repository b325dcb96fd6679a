"""Checkpoints of other trainers: one exam for all that they write."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.checkpoints import register_external, scan_folder
from checkpointkd.cli import main
from checkpointkd.data import Data
from checkpointkd.errors import UserError
from checkpointkd.models import Network

from . import network as users
from .writers import NET, WRITERS, Written, copied, lightning, quiet

every_format = pytest.mark.parametrize("written", WRITERS, indirect=True)


@every_format
def test_every_format_is_recognized_and_gives_exactly_the_weights(written: Written, digits: Data, request):
    path, model, states = written
    name = request.node.callspec.params["written"]
    folder = scan_folder(path)
    assert list(folder.checkpoints) == [1, 2, 3]
    assert folder.unit == "epoch"
    formats = {found.format for found in folder.checkpoints.values()}
    assert len(formats) == 1
    assert name.startswith(*formats)
    trajectory = register_external(path, model=model, data=digits)
    images = digits.val.to_float()[:20]
    for epoch, state in states.items():
        body = getattr(users, model.partition(":")[2])(10, 1)
        body.load_state_dict(state)
        theirs = Network(body, mean=trajectory.run.mean, std=trajectory.run.std).eval()
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
    assert found["checkpoints"][2]["val_accuracy"] == measured
    again = ckd.inspect(path)
    assert again["checkpoints"] == found["checkpoints"]
    assert again["normalized_as"] == "the training images' own"


def test_names_count_from_0_where_the_first_is_0_and_left_out_is_said(all_written: dict[str, Written], tmp_path: Path):
    path, _, _ = copied(all_written["state dict"], tmp_path)
    found = ckd.inspect(path)
    assert found["checkpoints"][0]["stated"] == "net_0.pth, counted from 0 as the first is 0"
    assert found["left_out"] == ["final.pth: nothing tells its epoch"]


def test_the_average_of_weights_is_there_for_the_asking(all_written: dict[str, Written], tmp_path: Path, digits: Data):
    path, _, states = copied(all_written["timm"], tmp_path)
    average = register_external(path, model=NET, data=digits, where="state_dict_ema")[3].network()
    name = "head.weight"
    assert not torch.equal(average.body.state_dict()[name], states[3][name])
    plain = register_external(path, model=NET, data=digits, where="state_dict")[3].network()
    assert torch.equal(plain.body.state_dict()[name], states[3][name])
    with pytest.raises(UserError, match="has nothing at 'model'"):
        register_external(path, model=NET, data=digits, where="model")


def test_two_runs_in_a_folder_are_told_apart_by_a_pattern(all_written: dict[str, Written], tmp_path: Path):
    path, _, _ = copied(all_written["CheckpointKD authors"], tmp_path)
    with pytest.raises(UserError, match=r"are both of epoch 1; if there are several runs in it, name one's files by a"):
        scan_folder(Path(path).parent)
    one, other = (ckd.inspect(str(Path(path).parent / f"wrn{n}_*"), model=NET, data="digits") for n in (1, 2))
    assert one["checkpoints"][0]["sha256"] != other["checkpoints"][0]["sha256"]
    first, second = (str(Path(path).parent / f"wrn{n}_*@3") for n in (1, 2))
    assert len(ckd.evaluate(first, second)["members"]) == 2


def test_saved_within_epochs_they_are_counted_in_steps(digits: Data, tmp_path: Path):
    with quiet():
        from lightning.pytorch.callbacks import ModelCheckpoint

    often = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, every_n_train_steps=2)
    lightning(tmp_path, digits, callbacks=[often])
    folder = scan_folder(tmp_path)
    assert folder.unit == "step"
    assert list(folder.checkpoints) == [2, 4, 6, 8]


@pytest.mark.parametrize("written", ["Lightning", "safetensors"], indirect=True)
def test_the_whole_story_with_checkpoints_of_others(written: Written, tmp_path: Path, caplog):
    path, model, _ = written
    with pytest.raises(UserError, match=r"3 checkpoints of another trainer \(.*\); say once which network they are of"):
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
    assert [teacher["epoch"] for teacher in student.run.teachers] == [choice.epoch, 3]
    assert len(ckd.evaluate(f"{path}@0.5", f"{path}@last")["members"]) == 2
    assert [one["epoch"] for one in ckd.correlate(f"{path}@1", f"{path}@last")["checkpoints"]] == [1, 3]
    assert ckd.report(tmp_path).exists()
    assert "theirs" in (tmp_path / "report.html").read_text(encoding="utf-8")
    paper = ckd.inspect(path, model=model, data="digits", select_on="test")
    assert paper["select_on"] == "test"
    assert ckd.evaluate(f"{path}@last")["images"] == 599


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
    assert len(ckd.evaluate(f"{moved}@1", f"{moved}@last")["members"]) == 2


def test_normalization_as_given_as_timm_and_as_a_preprocessor_says(all_written, tmp_path: Path, digits: Data):
    path, model, _ = copied(all_written["Hugging Face"], tmp_path)
    for checkpoint in Path(path).glob("checkpoint-*"):
        (checkpoint / "preprocessor_config.json").write_text('{"image_mean": [0.25], "image_std": [0.75]}')
    run = register_external(path, model=model, data=digits).run
    assert (run["mean"], run["std"], run["normalized_as"]) == ([0.25], [0.75], "preprocessor_config.json says so")
    run = register_external(path, model=model, data=digits, mean=[0.5], std=[0.5]).run
    assert (run["mean"], run["std"], run["normalized_as"]) == ([0.5], [0.5], "as given")
    for mean, std in (([0.5], None), ([0.5, 0.5], [0.5, 0.5]), ([0.5], [0.0]), ([125.3], [63.0])):
        with pytest.raises(UserError, match="--mean and --std"):
            register_external(path, model=model, data=digits, mean=mean, std=std)


MISFITS = [
    (
        {"model": "tests.checkpoints.network:build_transformers"},
        r"a\.safetensors does not fit tests.*: \d+ tensors are missing",
    ),
    ({"model": "wrn_10_1"}, r"a\.safetensors does not fit wrn_10_1: .* \(absent in the file, \[.*\] in the model\)"),
    ({"model": "tests.checkpoints.network:nothing"}, "cannot be imported"),
    ({"model": NET, "weights": "ema"}, r"a\.safetensors has nothing at 'ema' \(at its top: blocks, head, stem\)"),
    ({"model": NET, "data": None}, "--model needs --data"),
    ({"model": None}, "--data can only be used for external checkpoints. Add --model"),
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


NAMES = [  # names of files whose content tells no epoch, and the epochs that they tell; None is left out
    ({"net_0.pth": 1, "net_1.pth": 2, "net_2.pth": 3}, "epoch"),
    ({"net_0.pth": 0, "net_10.pth": 10, "net_20.pth": 20}, "epoch"),
    ({"model_10ep.pth": 10, "model_20ep.pth": 20, "model_30epochs_lr0.1.pth": 30}, "epoch"),
    ({"net_10.pth": 10, "net_20.pth": 20, "resnet_lr0.1_final.pth": None}, "epoch"),
    ({"model.10.pth": 10, "model.20.pth": 20}, "epoch"),
    ({"weights.10-0.31.pth": 10, "weights.20-0.29.pth": 20}, "epoch"),
    ({"epoch_7.pth": 7, "epoch_8.pth": 8, "best_acc_91.2.pth": None}, "epoch"),
    ({"resnet18_cifar100.pth": None, "resnet18_epoch10.pth": 10, "resnet18_epoch20.pth": 20}, "epoch"),
    ({"epoch__10_val91.pth": 10, "epoch__20_val92.pth": 20}, "epoch"),
    ({"ckpt_e3_s300.pth": 3, "ckpt_e6_s600.pth": 6}, "epoch"),
    ({"resnet50_epoch_12_acc_0.91.pth": 12, "resnet50_epoch_24_acc_0.93.pth": 24}, "epoch"),
    ({"step=100-epoch=3.pth": 3, "step=200-epoch=6.pth": 6}, "epoch"),
    ({"step_1000.pth": 1000, "step_2000.pth": 2000}, "step"),
    ({"iter_0001000.pth": 1000, "iter_0002000.pth": 2000}, "step"),
    ({"epoch_1.pth": 1, "model_final2.pth": None, "epoch_3.pth": 3}, "epoch"),
    ({"wrn-40-2_1.pth": 1, "wrn-40-2_10.pth": 10, "wrn-40-2.pth": None}, "epoch"),
    ({"best_epoch_7.pth": None, "epoch_7.pth": 7, "epoch_8.PTH": 8}, "epoch"),
    ({"epoch_7_ema.pth": None, "epoch_7.pth": 7}, "epoch"),
    ({"a2.pth": 2, "a10.pth": 10}, "epoch"),
    ({"two.pth": 2, "one.pth": 1}, "epoch"),
    ({"net_10_20240101.pth": 10, "net_20_20240301.pth": 20}, "epoch"),
    ({"epoch3_lr1e-4.pt": 3, "epoch4_lr1e-4.pt": 4}, "epoch"),
    ({"wd5e-4_ckpt10.pt": 10, "wd5e-4_ckpt20.pt": 20}, "epoch"),
    ({"wrn_200epochs_ckpt10.pt": 10, "wrn_200epochs_ckpt20.pt": 20}, "epoch"),
    ({"sched-step30_5.pt": 5, "sched-step30_6.pt": 6}, "epoch"),
    ({"iter_40k.pt": 40, "iter_80k.pt": 80}, "epoch"),
    ({"model_ema_ep1.pt": None, "model_ema_ep2.pt": None, "model_ep2.pt": 2}, "epoch"),
]


@pytest.mark.parametrize(
    ("names", "unit"), NAMES, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_epochs_by_name(names: dict[str, int | None], unit: str, tmp_path: Path):
    for name in names:
        torch.save(users.build(10, 1).state_dict(), tmp_path / name)
    folder = scan_folder(tmp_path)
    assert {one.path.name: epoch for epoch, one in folder.checkpoints.items()} == {
        name: epoch for name, epoch in names.items() if epoch is not None
    }
    assert folder.unit == unit
    assert len(folder.left_out) == list(names.values()).count(None)


@pytest.mark.parametrize("names", [["model-0.9123.pt", "model-0.8555.pt"], ["model_20240115.pt", "model_20240116.pt"]])
def test_names_that_tell_no_epoch_are_taken_in_their_order(names: list[str], tmp_path: Path):
    for name in names:
        torch.save(users.build(10, 1).state_dict(), tmp_path / name)
    folder = scan_folder(tmp_path)
    assert list(folder.checkpoints) == [1, 2]
    assert {one.number_from for one in folder.checkpoints.values()} == {"the order of names"}


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
    ("epochs", "found", "unit", "left"),
    [
        ({10: 0.9996, 20: 1.9996, 30: 3.0004}, [1, 2, 3], "epoch", 0),
        ({10: 0.5, 20: 1.0, 30: 1.5}, [10, 20, 30], "step", 0),
        ({31: 1.0, 62: 2.0, 93: None}, [1, 2], "epoch", 1),
        ({31: None, 62: None}, [31, 62], "step", 0),
    ],
)
def test_hugging_faces_steps_and_epochs(epochs: dict, found: list[int], unit: str, left: int, tmp_path: Path):
    folder = scan_folder(_hugging_face(tmp_path / "out", epochs))
    assert (list(folder.checkpoints), folder.unit, len(folder.left_out)) == (found, unit, left)


def test_saved_by_hand_after_the_last_epoch_lightning_is_still_in_epochs(digits: Data, tmp_path: Path):
    lightning(tmp_path, digits)
    from lightning.pytorch.callbacks import ModelCheckpoint

    with quiet():
        each_third = ModelCheckpoint(
            dirpath=tmp_path / "steps", save_top_k=-1, every_n_train_steps=3
        )  # an epoch's steps
        lightning(tmp_path / "steps", digits, callbacks=[each_third], by_hand=tmp_path / "steps" / "hand.ckpt")
    folder = scan_folder(tmp_path / "steps")
    assert (list(folder.checkpoints), folder.unit) == ([1, 2, 3], "epoch")
    assert folder.left_out == ["hand.ckpt: of the same epoch as epoch=2-step=9.ckpt"]


@pytest.mark.parametrize(
    "names",
    [
        ["run1_ep10.pt", "run1_ep20.pt", "run2_ep5.pt", "run2_ep15.pt"],
        ["seed0.pt", "seed1.pt"],
        ["elastic_ep1.pt", "elastic_ep2.pt", "plain_ep1.pt"],
    ],
)
def test_several_runs_in_a_folder_are_not_one(names: list[str], tmp_path: Path):
    for name in names:
        torch.save(users.build(10, 1).state_dict(), tmp_path / name)
    with pytest.raises(UserError, match=r"several runs.* by a pattern in quotes"):
        scan_folder(tmp_path)


def test_numbers_of_networks_are_no_epochs(tmp_path: Path):
    for name in ("resnet18.pt", "resnet34.pt"):
        torch.save(users.build(10, 1).state_dict(), tmp_path / name)
    assert {one.number_from for one in scan_folder(tmp_path).checkpoints.values()} == {"the order of names"}


def test_a_file_that_counts_from_0_does_not_shift_those_told_by_name(tmp_path: Path):
    state = users.build(10, 1).state_dict()
    for name in ("a_epoch1.pt", "a_epoch2.pt"):
        torch.save(state, tmp_path / name)
    torch.save({"epoch": 0, "net": state}, tmp_path / "interrupted.pt")
    found = scan_folder(tmp_path).checkpoints
    assert {one.path.name: epoch for epoch, one in found.items() if epoch > 0} == {"a_epoch1.pt": 1, "a_epoch2.pt": 2}
    for epoch in (0, 1):  # these count from 0, names don't
        (tmp_path / f"a_epoch{epoch + 1}.pt").rename(tmp_path / f"a_epoch{epoch + 5}.pt")
        torch.save({"epoch": epoch, "net": state}, tmp_path / f"net{epoch}.pt")
    (tmp_path / "interrupted.pt").unlink()
    assert {one.path.name: epoch for epoch, one in scan_folder(tmp_path).checkpoints.items()} == {
        "net0.pt": 1,
        "net1.pt": 2,
        "a_epoch5.pt": 5,
        "a_epoch6.pt": 6,
    }


def test_an_exponent_is_no_epoch(tmp_path: Path):
    torch.save(users.build(10, 1).state_dict(), tmp_path / "net_lr1e-4.pt")
    assert list(scan_folder(tmp_path).checkpoints) == [1]


def test_only_the_names_of_files_may_be_a_pattern(tmp_path: Path):
    with pytest.raises(UserError, match="name their folder itself"):
        scan_folder(tmp_path / "dir*" / "epoch*.pt")


def test_weights_at_different_places_are_not_mixed(tmp_path: Path, digits: Data):
    torch.save({"epoch": 1, "model": users.build(10, 1).state_dict()}, tmp_path / "1.pt")
    torch.save({"epoch": 2, "swa": users.build(10, 1).state_dict()}, tmp_path / "2.pt")
    with pytest.raises(UserError, match=r"has the weights of .* at 'swa', files before it at 'model'"):
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
    good, other = (users.build(10, 1).state_dict() for _ in "ab")
    torch.save({"semantic_net": good, "teacher": other}, tmp_path / "1.pt")
    with pytest.raises(UserError, match="more than once"):
        register_external(tmp_path, model=NET, data=digits)


def test_what_was_told_once_stays_until_told_otherwise(all_written: dict[str, Written], tmp_path: Path, capsys):
    """Another protocol alone is enough; scores and choices of other images are not taken for its own."""
    path, model, _ = copied(all_written["safetensors"], tmp_path)
    ckd.inspect(path, model=model, data="digits", mean=[0.3], std=[0.2])
    ckd.score(path, estimator="ridge")
    ckd.select(path, estimator="ridge")
    assert ckd.inspect(path)["selected"] is not None
    paper = ckd.inspect(path, select_on="test")
    assert (paper["select_on"], paper["mean"], paper["selected"]) == ("paper", [0.3], None)
    with pytest.raises(UserError, match=r"was scored on other images \(digits, protocol holdout\)"):
        ckd.select(path, estimator="ridge")
    assert ckd.score(path, model=model, data="digits", estimator="ridge").settings["data"]["select_on"] == "test"
    assert [ckd.select(path, estimator="ridge").epoch] == ckd.inspect(path)["selected"]
    accuracies = [checkpoint["val_accuracy"] for checkpoint in ckd.inspect(path)["checkpoints"]]
    assert None not in accuracies, "scoring forgets nothing"
    assert ckd.inspect(path, flip=True)["select_on"] == "test"


def test_steps_are_called_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for step in (500, 1000, 1500):
        torch.save(users.build(10, 1).state_dict(), folder / f"step_{step}.pt")
    assert main(["score", str(folder), "--model", NET, "--data", "digits", "--decoder-steps", "1"]) == 0
    assert main(["select", str(folder), "--rule", "midpoint"]) == 0
    told = capsys.readouterr().out
    assert re.search("^step +accuracy", told, re.MULTILINE)
    assert "step 500: the nearest to half of 1500 steps" in told
    assert main(["evaluate", f"{folder}@7"]) == 2
    assert "no checkpoint of step 7" in capsys.readouterr().err
    page = ckd.report(tmp_path).read_text(encoding="utf-8")
    assert "chose step 500" in page
    assert "step 1500<br>" in page.replace("\\u003c", "<").replace("\\u003e", ">")


def test_timms_recovery_files_are_left_out(all_written: dict[str, Written], tmp_path: Path):
    path, _, _ = copied(all_written["timm"], tmp_path)
    shutil.copy(Path(path) / "checkpoint-1.pth.tar", Path(path) / "recovery-1-200.pth.tar")
    folder = scan_folder(path)
    assert list(folder.checkpoints) == [1, 2, 3]
    assert "recovery-1-200.pth.tar: timm's, saved within an epoch" in folder.left_out


def test_a_folder_that_grows_or_changes_is_noticed_and_taken_in(all_written, tmp_path: Path, caplog):
    path, model, _ = copied(all_written["safetensors"], tmp_path)
    third = Path(path) / "c.safetensors"
    third.rename(tmp_path / "c.safetensors")
    first = ckd.inspect(path, model=model, data="digits")
    ckd.score(path, decoder_steps=2, decoder_seeds=1)
    kept = [checkpoint["val_accuracy"] for checkpoint in ckd.inspect(path)["checkpoints"]]
    assert kept == [checkpoint["val_accuracy"] for checkpoint in first["checkpoints"]], "score keeps what is known"
    (tmp_path / "c.safetensors").rename(third)
    caplog.clear()
    assert ckd.evaluate(f"{path}@last")["members"][0]["epoch"] == 2
    assert "checkpoints that are new or changed since it was looked at (c.safetensors)" in caplog.text
    assert [checkpoint["epoch"] for checkpoint in ckd.inspect(path)["checkpoints"]] == [1, 2, 3]
    ckd.select(path, rule="last")
    shutil.copy(Path(path) / "a.safetensors", third)
    assert ckd.inspect(path)["selected"] is None, "it was chosen among others"
    found = ckd.inspect(path)["checkpoints"]
    assert found[2]["val_accuracy"] == found[0]["val_accuracy"]
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
    assert ckd.inspect(copy)["weights_at"] == "state_dict_ema", "what was asked for is asked for again"


def test_our_writers_remember_the_normalization(tmp_path: Path, digits: Data):
    ckd.save_checkpoint(tmp_path, epoch=1, model=users.build(10, 1), mean=[0.2], std=[0.4])
    run = register_external(tmp_path, model=NET, data=digits).run
    assert (run["mean"], run["std"], run["normalized_as"]) == ([0.2], [0.4], "epoch-0001.safetensors says so")
    spoiled = users.build(10, 1)
    torch.nn.init.constant_(spoiled.head.bias, float("nan"))
    for epoch, model in ((1.5, users.build(10, 1)), (-1, users.build(10, 1)), (2, spoiled)):
        with pytest.raises(UserError):
            ckd.save_checkpoint(tmp_path, epoch=epoch, model=model)  # type: ignore[arg-type]


def test_the_writers_leave_the_last_epoch_too(digits: Data, tmp_path: Path):
    from .writers import hugging_face

    lightning(tmp_path / "a", digits, callbacks=[ckd.lightning_callback(tmp_path / "l", every=2)])
    hugging_face(tmp_path / "b", digits, callback=ckd.transformers_callback(tmp_path / "t", every=2))
    for folder in ("l", "t"):
        assert list(scan_folder(tmp_path / folder).checkpoints) == [2, 3]


def test_inspect_warns_of_networks_that_know_nothing(tmp_path: Path, caplog):
    ckd.save_checkpoint(tmp_path, epoch=1, model=users.build(10, 1))
    ckd.inspect(tmp_path, model=NET, data="digits")
    assert "none of the checkpoints knows more than guessing does" in caplog.text
