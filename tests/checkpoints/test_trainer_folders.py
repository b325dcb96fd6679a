"""Folders as trainers leave them: a last network beside checkpoint folders; records after a move."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.checkpoints import open_trajectory, register_external, scan_folder
from checkpointkd.data import Data
from checkpointkd.errors import UserError

from . import network as users
from .writers import NET, Written, copied

HF_KINDS = ["Hugging Face", "Hugging Face, shards", "Hugging Face, bin"]


def _names(path: Path | str) -> list[str]:
    return [file.name for file in scan_folder(path).checkpoints.values()]


def _save_model(folder: Path, source: Path) -> None:
    """Leave the files of `trainer.save_model()` and `save_state()` in a trainer's output folder."""
    for file in source.iterdir():
        if file.is_file():
            shutil.copy(file, folder)


@pytest.mark.parametrize("kind", HF_KINDS)
def test_a_trainers_last_network_is_left_out_beside_its_checkpoints(
    kind: str, all_written: dict[str, Written], tmp_path: Path, digits: Data
):
    path, model, states = copied(all_written[kind], tmp_path)
    folders = _names(path)
    _save_model(Path(path), Path(path) / folders[-1])
    folder = scan_folder(path)
    assert _names(path) == folders
    assert list(folder.checkpoints) == [1, 2, 3]
    is_shards = "shards" in kind
    assert len(folder.left_out) == 1
    assert ("To use it, name the file" if is_shards else f"a copy of {folders[-1]}") in folder.left_out[0]
    trajectory = register_external(path, model=model, data=digits)
    for epoch, state in states.items():
        weights = trajectory[epoch].network().body.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in state.items())
    assert trajectory.new_files() == []


@pytest.mark.parametrize("kind", HF_KINDS)
def test_a_last_network_that_is_no_copy_is_used_by_its_file(
    kind: str, all_written: dict[str, Written], tmp_path: Path, digits: Data
):
    path, model, states = copied(all_written[kind], tmp_path)
    last = Path(path) / _names(path)[-1]
    _save_model(Path(path), last)
    shutil.rmtree(last)
    folder = scan_folder(path)
    assert list(folder.checkpoints) == [1, 2]
    file, reason = folder.left_out[0].split(": ")
    assert reason == "lies beside the folders of checkpoints. To use it, name the file"
    trajectory = register_external(f"{path}/{file}", model=model, data=digits)
    weights = trajectory.last.network().body.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in states[3].items())


def test_a_network_that_accelerate_saves_beside_its_states_is_left_out(all_written: dict[str, Written], tmp_path: Path):
    path, _, _ = copied(all_written["Hugging Face, Accelerate"], tmp_path)
    shutil.copy(Path(path) / "checkpoint_2" / "model.safetensors", path)
    assert _names(path) == ["checkpoint_0", "checkpoint_1", "checkpoint_2"]
    assert scan_folder(path).left_out == ["model.safetensors: a copy of checkpoint_2"]
    project = tmp_path / "project"
    shutil.copytree(path, project / "checkpoints")
    (project / "checkpoints" / "model.safetensors").rename(project / "model.safetensors")
    folder = scan_folder(project)
    assert _names(project) == ["project"]
    assert folder.left_out == [f"checkpoints: holds folders of checkpoints. To use them, name {project}/checkpoints"]


def test_every_folder_of_deepspeed_is_found_and_not_only_the_latest(tmp_path: Path):
    state = users.build(10, 1).state_dict()
    for step in (10, 20, 30):
        (tmp_path / f"global_step{step}").mkdir()
        file = tmp_path / f"global_step{step}" / "mp_rank_00_model_states.pt"
        torch.save({"module": state, "global_steps": step, "dp_world_size": 1}, file)
    (tmp_path / "latest").write_text("global_step30")
    folder = scan_folder(tmp_path)
    assert (list(folder.checkpoints), folder.unit, folder.left_out) == ([10, 20, 30], "step", [])


def test_deepspeeds_part_of_a_trainers_checkpoint_is_no_checkpoint_of_its_own(all_written, tmp_path: Path):
    path, _, _ = copied(all_written["Hugging Face"], tmp_path)
    checkpoint = Path(path) / _names(path)[0]
    (checkpoint / "global_step3").mkdir()
    state = users.build(10, 1).state_dict()
    torch.save({"module": state, "global_steps": 3}, checkpoint / "global_step3" / "mp_rank_00_model_states.pt")
    (checkpoint / "latest").write_text("global_step3")
    assert _names(checkpoint) == [checkpoint.name]
    assert len(_names(path)) == 3


def test_a_refused_folder_is_left_out_and_does_not_end_the_command(all_written, tmp_path: Path):
    path, _, _ = copied(all_written["Hugging Face"], tmp_path)
    first, *others = _names(path)
    (Path(path) / first / "adapter_config.json").write_text("{}")
    folder = scan_folder(path)
    assert _names(path) == others
    assert [reason.partition(".")[0] for reason in folder.left_out] == [f"{first}: holds a PEFT adapter"]
    for name in others:
        shutil.rmtree(Path(path) / name)
    with pytest.raises(UserError, match="holds a PEFT adapter"):
        scan_folder(path)
    shutil.copy(Path(path) / first / "model.safetensors", path)
    assert _names(path) == ["external"]
    assert "PEFT adapter" in scan_folder(path).left_out[0], "merged weights beside folders of adapters"


def test_a_wildcard_is_found_from_any_folder_and_after_a_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Data
):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "deep").mkdir(parents=True)
    for run in "ab":
        for epoch in (1, 2):
            content = {"epoch": epoch, "model": users.build(10, 1).state_dict()}
            torch.save(content, tmp_path / "runs" / f"{run}_ep{epoch}.pt")
    monkeypatch.chdir(tmp_path / "runs")
    hashes = {run: register_external(f"{run}_*", model=NET, data=digits).last.sha256 for run in "ab"}
    assert hashes["a"] != hashes["b"]
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    for folder in (tmp_path / "runs", "../runs", "../link", "../runs/deep/..", f"{tmp_path}/elsewhere/../runs"):
        for run, sha256 in hashes.items():
            assert open_trajectory(f"{folder}/{run}_*").last.sha256 == sha256
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert open_trajectory(tmp_path / "moved" / "a_*").last.sha256 == hashes["a"]
    assert open_trajectory(tmp_path / "moved" / "b_*").last.sha256 == hashes["b"]


def test_the_record_of_a_folder_that_cannot_be_written_is_found_by_each_of_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Data
):
    torch.save(users.build(10, 1).state_dict(), tmp_path / "net_1.pt")
    (tmp_path / "checkpointkd").write_text("a file where the record's folder would be")
    monkeypatch.chdir(tmp_path)
    register_external(".", model=NET, data=digits)
    monkeypatch.chdir(tmp_path.parent)
    assert list(open_trajectory(tmp_path)) == [1]


def test_a_run_that_continues_on_one_device_keeps_its_trajectory(tmp_path: Path, digits: Data):
    state = users.build(10, 1).state_dict()
    for epoch, prefix in enumerate(("module.", "", "module._orig_mod."), 1):
        torch.save({"epoch": epoch, "model": {prefix + name: value for name, value in state.items()}},
                   tmp_path / f"{epoch}.pt")  # fmt: skip
    trajectory = register_external(tmp_path, model=NET, data=digits)
    assert len({checkpoint.sha256 for checkpoint in trajectory.values()}) == 1


@pytest.mark.parametrize(
    ("options", "key", "stated"),
    [
        ({}, None, 0.5),
        ({"eval_metric": "top1"}, None, 0.5),
        ({"eval_metric": "top5"}, None, None),
        ({"eval_metric": "loss"}, None, None),
        ({"model_ema": True}, None, None),
        ({"model_ema": True}, "state_dict_ema", 0.5),
        ({"model_ema": True, "model_ema_force_cpu": True}, None, 0.5),
    ],
)
def test_timms_metric_is_the_accuracy_of_the_network_that_timm_measured(
    options: dict, key: str | None, stated: float | None, tmp_path: Path, digits: Data
):
    """timm measures the averaged weights if it keeps them, and may rank checkpoints by another metric."""
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = users.build(10, 1)
    saver = CheckpointSaver(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        args=argparse.Namespace(model="net", **options),
        model_ema=ModelEmaV3(model) if "model_ema" in options else None,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, metric=50.0)
    run = register_external(tmp_path, model=NET, data=digits, state_dict_key=key).run
    assert [checkpoint.stated_accuracy for checkpoint in run.checkpoints.values()] == [stated]


def test_a_folder_changes_only_with_the_files_of_its_checkpoint(all_written, tmp_path: Path, caplog):
    """The record and the scores of a single checkpoint's folder lie in that folder."""
    path, model, _ = copied(all_written["Hugging Face"], tmp_path)
    folder = Path(path) / _names(path)[-1]
    ckd.inspect(folder, model=model, data="digits")
    ckd.score(folder, estimator="ridge")
    (folder / "README.md").write_text("a note")
    (folder / "optimizer.pt").unlink()
    assert open_trajectory(folder).new_files() == []
    assert "new or changed" not in caplog.text
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps(state | {"epoch": 7.0}))
    assert open_trajectory(folder).new_files() == ["."]
    assert [checkpoint["epoch"] for checkpoint in ckd.inspect(folder)["checkpoints"]] == [7]


@pytest.mark.parametrize(
    ("file", "left_out"),
    [
        ("final.pth", ["final.pth: its name tells no epoch"]),
        ("best_epoch_2.pth", ["best_epoch_2.pth: the same epoch as epoch_2"]),
        ("ema.pt", ["ema.pt: averaged weights beside plain ones"]),
        ("optimizer.pt", []),
    ],
)
def test_a_file_without_an_epoch_does_not_hide_folders_of_checkpoints(file: str, left_out: list[str], tmp_path: Path):
    state = users.build(10, 1).state_dict()
    for folder in ("epoch_1", "epoch_2"):
        (tmp_path / folder).mkdir()
        torch.save(state, tmp_path / folder / "model.pt")
    torch.save(state, tmp_path / file)
    assert (_names(tmp_path), scan_folder(tmp_path).left_out) == (["epoch_1", "epoch_2"], left_out)


def test_folders_beside_a_trajectory_of_files_are_named(tmp_path: Path):
    state = users.build(10, 1).state_dict()
    (tmp_path / "checkpoint-10").mkdir()
    for file in ("epoch_1.pth", "epoch_2.pth", "checkpoint-10/model.pt"):
        torch.save(state, tmp_path / file)
    assert _names(tmp_path) == ["epoch_1.pth", "epoch_2.pth"]
    reason = "checkpoint-10: lies beside files that tell their epochs. To use it, name it"
    assert scan_folder(tmp_path).left_out == [reason]


def test_a_wildcard_may_match_folders_of_one_file(tmp_path: Path, digits: Data):
    state = users.build(10, 1).state_dict()
    for folder in ("epoch_1", "epoch_2", "epoch_logs"):
        (tmp_path / folder).mkdir()
        if "logs" not in folder:
            torch.save(state, tmp_path / folder / "model.pt")
    (tmp_path / "epoch_3").symlink_to("nowhere")
    folder = scan_folder(tmp_path / "epoch_*")
    assert (list(folder.checkpoints), len(folder.left_out)) == ([1, 2], 2)
    assert list(register_external(tmp_path / "epoch_*", model=NET, data=digits)) == [1, 2]
    with pytest.raises(UserError, match="epoch_logs: holds no weights"):
        scan_folder(tmp_path / "epoch_l*")
