from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import checkpointkd as ckd
from checkpointkd.checkpoints import resolve
from checkpointkd.errors import NoSuchEpoch, UserError


@pytest.mark.parametrize(
    ("which", "epoch"),
    [("", 4), ("@last", 4), ("@midpoint", 2), ("@3", 3), ("@1", 1), ("@1.0", 4), ("@0.5", 2), ("@.7", 3), ("@0.01", 1)],
)
def test_a_reference_resolves_to_its_epoch(teacher_run: Path, which: str, epoch: int):
    assert resolve(f"{teacher_run}{which}").checkpoint.epoch == epoch


def test_a_tie_goes_to_the_earlier_checkpoint(teacher_run: Path):
    assert ckd.open_trajectory(teacher_run).at(0.375).epoch == 1


def test_best_is_the_selected_checkpoint(teacher_run: Path):
    with pytest.raises(UserError, match=r"Nothing has been selected in .* yet\. Run `checkpointkd score"):
        resolve(f"{teacher_run}@best")
    ckd.select(teacher_run, rule="midpoint")
    assert resolve(f"{teacher_run}@best").checkpoint.epoch == 2


def test_a_trajectory_is_a_mapping_by_epoch(teacher_run: Path):
    trajectory = ckd.open_trajectory(teacher_run)
    assert list(trajectory) == [1, 2, 3, 4]
    assert trajectory[3].epoch == 3
    assert 7 not in trajectory
    assert trajectory.get(7) is None
    assert trajectory.midpoint is trajectory[2]
    message = f"No checkpoint of epoch 7 in {teacher_run} (saved epochs: 1, 2, 3, 4)"
    for error in (NoSuchEpoch, KeyError, UserError):
        with pytest.raises(error) as caught:
            trajectory[7]
        assert str(caught.value) == message
    with pytest.raises(KeyError):
        trajectory[-1]


@pytest.mark.parametrize("which", ["@", "@x", "@-1", "@1e2", "@0.5.5", "@best2"])
def test_an_invalid_reference_is_explained(teacher_run: Path, which: str):
    with pytest.raises(UserError, match=r"is not a checkpoint reference\. After @ comes an epoch"):
        resolve(f"{teacher_run}{which}")


@pytest.mark.parametrize("which", ["@1.5", "@0.0"])
def test_a_fraction_lies_between_0_and_1(teacher_run: Path, which: str):
    with pytest.raises(UserError, match=r"must lie in \(0, 1\]"):
        resolve(f"{teacher_run}{which}")


def test_a_folder_name_may_hold_an_at_sign(teacher_run: Path, tmp_path: Path):
    folder = tmp_path / "me@home"
    shutil.copytree(teacher_run, folder)
    assert resolve(str(folder)).checkpoint.epoch == 4
    assert resolve(f"{folder}@3").checkpoint.epoch == 3


def test_a_path_without_a_run_is_explained(tmp_path: Path, teacher_run: Path):
    with pytest.raises(UserError, match="here is no run directory at"):
        ckd.open_trajectory(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"The folder .* is empty"):
        ckd.open_trajectory(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"is not a run directory: it has no run\.json\. There are no checkpoints in"):
        ckd.open_trajectory(tmp_path / "other")
    with pytest.raises(UserError, match="is not a file of weights, which ends in "):
        ckd.open_trajectory(tmp_path / "other" / "notes.txt")
    record = (teacher_run / "run.json").read_bytes()
    (teacher_run / "run.json").write_bytes(record.replace(b'"wrn_10_1"', b'"wrn_\xff"'))
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        ckd.open_trajectory(teacher_run)
    (teacher_run / "run.json").write_text('{"model": ')
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        ckd.open_trajectory(teacher_run)
    (teacher_run / "run.json").write_text('{"format": 2, "model": "wrn_10_1"}')
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        ckd.open_trajectory(teacher_run)


def test_an_unfinished_run_has_no_last_checkpoint(teacher_run: Path):
    (teacher_run / "checkpoints" / "epoch-0004.safetensors").unlink()
    with pytest.raises(UserError, match=r"The last checkpoint, of epoch 4, is missing from .* \(saved: 1, 2, 3\)"):
        resolve(str(teacher_run))
    (teacher_run / "result.json").unlink()
    with pytest.raises(UserError, match=r"has not reached 0\.9 of its 4 epochs"):
        resolve(f"{teacher_run}@0.9")
    with pytest.raises(UserError, match=r"is not finished \(planned epochs: 4, saved: 1, 2, 3\)"):
        resolve(str(teacher_run))
    assert resolve(f"{teacher_run}@3").checkpoint.epoch == 3
