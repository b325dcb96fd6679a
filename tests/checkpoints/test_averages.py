"""Weight averages of a trajectory: what they are, and that every command takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import update_bn

import checkpointkd as ckd
from checkpointkd import storage
from checkpointkd.checkpoints import resolve
from checkpointkd.checkpoints.averages import STATISTICS_BATCH
from checkpointkd.data import config_of, load_data
from checkpointkd.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("which", "shares"),
    [
        ("mean:0.5-1.0", {2: 1 / 3, 3: 1 / 3, 4: 1 / 3}),
        ("mean:0.7-1", {3: 1 / 2, 4: 1 / 2}),
        ("decay-mean:0.5", {1: 1 / 15, 2: 2 / 15, 3: 4 / 15, 4: 8 / 15}),
    ],
)
def test_an_average_is_the_mean_of_weights_with_new_statistics(teacher_run: Path, which: str, shares: dict):
    run = ckd.open_trajectory(teacher_run)
    averaged = resolve(f"{teacher_run}@{which}").checkpoint.network()
    expected = run.last.network()
    weights = dict(expected.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            parts = [share * dict(run[epoch].network().named_parameters())[name] for epoch, share in shares.items()]
            weight.copy_(torch.stack(parts).sum(0))
    images = load_data(config_of(run.run.data)).train
    update_bn(images.iter_batches(STATISTICS_BATCH), expected)
    for name, tensor in averaged.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-5, atol=1e-6)
    statistics = [name for name in averaged.state_dict() if name.endswith("running_var")]
    assert statistics
    last = run.last.network().state_dict()
    assert all(not torch.allclose(averaged.state_dict()[name], last[name], rtol=1e-3) for name in statistics)


def test_an_average_is_made_once_and_again_where_it_is_damaged(teacher_run: Path, tmp_path: Path):
    first = resolve(f"{teacher_run}@mean:0.5-1.0").checkpoint
    written = first.path.stat().st_mtime_ns
    assert resolve(f"{teacher_run}@mean:0.5-1.0").checkpoint.path.stat().st_mtime_ns == written
    content = first.path.read_bytes()
    first.path.write_bytes(content[:-100])
    assert resolve(f"{teacher_run}@mean:0.5-1.0").checkpoint.sha256 == first.sha256
    assert first.path.read_bytes() == content
    assert resolve(f"{teacher_run}@mean:0.5-1.0") != resolve(f"{teacher_run}@mean:0.7-1.0")
    assert len(ckd.cache("clear", "averages")["entries"]) == 2
    assert not first.path.exists()


def test_every_command_takes_an_average(teacher_run: Path, tmp_path: Path):
    ref = f"{teacher_run}@mean:0.5-1.0"
    student = ckd.distill(
        "resnet_8", teachers=[ref], epochs=1, batch_size=50, precision="fp32", out=tmp_path / "student"
    )
    (teacher,) = student.run.teachers
    assert (teacher.epoch, teacher.average) == (4, "mean:0.5-1.0")
    assert teacher.sha256 != ckd.open_trajectory(teacher_run).last.sha256
    plain = ckd.distill(
        "resnet_8", teachers=[str(teacher_run)], epochs=1, batch_size=50, precision="fp32", out=tmp_path / "plain"
    )
    assert student.run.teachers_cost == plain.run.teachers_cost, "an average costs what its last checkpoint costs"
    assert ckd.evaluate(ref)["members"][0]["ref"] == ref
    exported = ckd.export(ref, out=tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert (config["average"], config["accuracy"]) == ("mean:0.5-1.0", None), exported
    network = ckd.load(tmp_path / "exported")
    images_BCHW = load_data(config_of(student.run.data)).val.subset(torch.arange(8)).to_float()
    torch.testing.assert_close(network(images_BCHW), resolve(ref).checkpoint.network()(images_BCHW))
    ckd.report(tmp_path, out=tmp_path / "report.html")
    assert "mean:0.5-1.0" in (tmp_path / "report.html").read_text()


def test_an_average_of_external_checkpoints(teacher_run: Path, tmp_path: Path):
    run = ckd.open_trajectory(teacher_run)
    for epoch in (2, 4):
        ckd.save_checkpoint(tmp_path / "external", epoch=epoch, model=run[epoch].network().body)
    (tmp_path / "external").mkdir(exist_ok=True)
    ckd.inspect(tmp_path / "external", model=run.run.model, data="digits")
    averaged = resolve(f"{tmp_path / 'external'}@mean:0.5-1.0").checkpoint
    name = next(name for name, _ in averaged.network().named_parameters())
    expected = (run[2].network().state_dict()[name] + run[4].network().state_dict()[name]) / 2
    torch.testing.assert_close(averaged.network().state_dict()[name], expected)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("mean:0.9-1.0", r"holds 1 checkpoint, and an average needs two \(saved epochs: 1, 2, 3, 4\)"),
        ("mean:1.0-0.5", r"holds 0 checkpoints, and an average needs two"),
        ("mean:0.5", r"'mean:0\.5' is no weight average\. Write mean:0\.7-1\.0"),
        ("mean:0.5-2.0e3", r"is no weight average"),
        ("decay-mean:1.0", r"'decay-mean:1\.0' is no weight average"),
        ("decay-mean:0", r"is no weight average"),
        ("average:0.5-1.0", r"is not a checkpoint reference\. .* or a weight average: mean:0\.7-1\.0"),
    ],
)
def test_wrong_averages_are_refused(teacher_run: Path, which: str, message: str):
    with pytest.raises(UserError, match=message):
        resolve(f"{teacher_run}@{which}")


def test_weights_that_are_not_finite_are_named(teacher_run: Path):
    path = teacher_run / "checkpoints" / "epoch-0003.safetensors"
    tensors, metadata = storage.load_tensors(path)
    name = next(name for name in tensors if name.endswith("weight"))
    tensors[name] = tensors[name] * float("nan")
    storage.save_tensors(path, tensors, {"epoch": metadata["epoch"]})
    with pytest.raises(UserError, match=r"epoch-0003\.safetensors has values in .*weight that are not finite"):
        resolve(f"{teacher_run}@mean:0.5-1.0")
