"""Networks that start from weights, and networks as objects."""

from __future__ import annotations

import functools
import logging
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data
from checkpointkd.errors import UserError
from checkpointkd.models import build_network, check_trainable
from checkpointkd.storage import load_tensors

SETTINGS: dict[str, Any] = {"data": "digits", "train_images": 100, "epochs": 1, "batch_size": 20, "precision": "fp32"}
FROZEN: dict[str, Any] = {**SETTINGS, "learning_rate": 1e-12}


def small(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, num_classes))


def _first_conv(run: Any) -> torch.Tensor:
    tensors, _ = load_tensors(run.last.path)
    return next(tensor for name, tensor in tensors.items() if name.startswith("body.") and tensor.ndim == 4)


def test_a_student_starts_from_a_checkpoint_reference(teacher_run: Path, tmp_path: Path):
    run = ckd.train("wrn_10_1", init=f"{teacher_run}@2", out=tmp_path / "run", **FROZEN)
    stored, _ = load_tensors(teacher_run / "checkpoints" / "epoch-0002.safetensors")
    conv = next(name for name in stored if name.startswith("body.") and stored[name].ndim == 4)
    assert torch.allclose(load_tensors(run.last.path)[0][conv], stored[conv], atol=1e-6)
    assert run.run.init == f"{teacher_run}@2"  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"already holds another run \(init_sha256"):
        ckd.train("wrn_10_1", init=f"{teacher_run}@4", out=tmp_path / "run", **FROZEN)
    again = ckd.train("wrn_10_1", init=f"{teacher_run}@2", out=tmp_path / "run", **FROZEN)
    assert again.last.sha256 == run.last.sha256
    student = ckd.distill("wrn_10_1", teachers=str(teacher_run), init=f"{teacher_run}@2", out=tmp_path / "s", epochs=1)
    assert student.run.init_sha256 == run.run.init_sha256  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["state dict", "Lightning", "safetensors"])
def test_a_file_of_another_trainer_with_other_classes(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    torch.manual_seed(3)
    source = small(7, 1)
    path = tmp_path / "weights.pt"
    if form == "Lightning":
        torch.save({"state_dict": {f"model.{name}": t for name, t in source.state_dict().items()}, "epoch": 3}, path)
    elif form == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "weights.safetensors"
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path)
    with caplog.at_level(logging.INFO, logger="checkpointkd"):
        run = ckd.train(small, init=str(path), out=tmp_path / "run", **FROZEN)
    assert "with a fresh classifier (3.weight, 3.bias)" in caplog.text
    assert torch.allclose(_first_conv(run), source.state_dict()["0.weight"], atol=1e-6)
    assert load_tensors(run.last.path)[0]["body.3.weight"].shape == (10, 288)


def test_timm_with_arguments_starts_from_its_own_weights(tmp_path: Path, monkeypatch, caplog):
    """The download is replaced by a file of the same form; timm itself fits the classifier and the channels."""
    timm = pytest.importorskip("timm")
    model = "timm:test_vit?drop_path_rate=0.1&img_size=8&patch_size=4"
    source = timm.create_model("test_vit", num_classes=1000, in_chans=3, img_size=8, patch_size=4)
    path = tmp_path / "timm.pt"
    torch.save(source.state_dict(), path)
    real = timm.create_model
    overlay = {"file": str(path), "hf_hub_id": None, "url": None}
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained=False, **arguments: real(
            name, pretrained=pretrained, **({"pretrained_cfg_overlay": overlay} if pretrained else {}), **arguments
        ),
    )
    with caplog.at_level(logging.INFO, logger="checkpointkd"):
        run = ckd.train(model, init="pretrained", out=tmp_path / "run", **FROZEN)
    assert "starts from pretrained weights with a fresh classifier (10, not 1000 classes)" in caplog.text
    stored, _ = load_tensors(run.last.path)
    assert torch.allclose(stored["body.blocks.0.attn.qkv.weight"], source.blocks[0].attn.qkv.weight, atol=1e-6)
    network = run.last.network()
    assert network.body.patch_embed.img_size == (8, 8)  # type: ignore[union-attr]
    assert any("DropPath" in type(module).__name__ for module in network.body.modules())


@pytest.mark.parametrize(
    ("model", "init", "message"),
    [
        ("wrn_10_1", "pretrained", "--init pretrained applies to timm:NAME. For wrn_10_1 give --init PATH"),
        ("wrn_10_1", "nowhere.pt", "There is no file of weights at nowhere.pt"),
        ("wrn_10_1", "{run}@9", "No checkpoint of epoch 9"),
        ("wrn_16_1", "{run}@2", "@2 does not fit wrn_16_1: "),
        ("resnet_8", "{file}", "does not fit resnet_8: "),
    ],
)
def test_weights_that_do_not_fit_are_refused(teacher_run: Path, tmp_path: Path, model: str, init: str, message: str):
    file = tmp_path / "other.pt"
    torch.save(small(10, 1).state_dict(), file)
    with pytest.raises(UserError, match=message):
        ckd.train(model, init=init.format(run=teacher_run, file=file), out=tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run").exists()


def test_networks_as_objects(tmp_path: Path):
    """A function of a module has a name of its own; any other object gets one from `named`."""
    run = ckd.train(small, out=tmp_path / "module", **SETTINGS)
    assert run.run.model == f"{__name__}:small"
    local = functools.partial(small)
    with pytest.raises(UserError, match=r"has no name. Give it one: checkpointkd.named"):
        ckd.train(local, out=tmp_path / "none", **SETTINGS)
    named = ckd.named(local, "my small net")
    run = ckd.train(named, out=tmp_path / "named", **SETTINGS)
    assert run.run.model == "object:my small net"
    student = ckd.distill(
        ckd.named(lambda num_classes, in_channels: small(num_classes, in_channels), "another"),
        teachers=str(tmp_path / "named"),
        out=tmp_path / "s",
        allow_weak_teacher=True,
        epochs=1,
    )
    assert student.test_accuracy is not None
    again = ckd.train(named, out=tmp_path / "named", **SETTINGS)
    assert again.last.sha256 == run.last.sha256


def test_an_object_of_another_process_is_asked_for(tmp_path: Path, monkeypatch):
    from checkpointkd import user_code

    ckd.train(ckd.named(functools.partial(small), "lost"), out=tmp_path / "run", **SETTINGS)
    monkeypatch.setattr(user_code, "_objects", {})
    with pytest.raises(UserError, match=r"Model 'object:lost' is an object of the process that made the run"):
        ckd.evaluate(f"{tmp_path}/run@last")


Outputs = namedtuple("Outputs", ["main", "aux"])


class Several(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.head, self.aux, self.wrap = nn.Linear(64, 10), nn.Linear(64, 10), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.head(x.flatten(1)), self.aux(x.flatten(1)))


class Dataclass:
    def __init__(self, logits: torch.Tensor, aux: torch.Tensor) -> None:
        self.logits, self.aux = logits, aux


WRAPS = {
    "tuple": (lambda main, aux: (main, aux), "the first of 2 outputs"),
    "named tuple": (Outputs, "the first of 2 outputs"),
    "dict": (lambda main, aux: {"aux": aux, "logits": main}, "'logits' of 2 outputs"),
    "dataclass": (Dataclass, "'logits'"),
}


@pytest.mark.parametrize("name", WRAPS)
def test_the_main_output_is_used_and_named(name: str, caplog: pytest.LogCaptureFixture):
    wrap, which = WRAPS[name]
    images = load_data(DataConfig(train_images=10)).train.to_float()
    torch.manual_seed(0)
    body = Several(wrap)
    model = ckd.named(lambda: body, f"several {name}")
    network = build_network(model, num_classes=10, in_channels=1, mean=[0.0], std=[1.0])
    assert torch.equal(network(images), body.head(images.flatten(1)))
    with caplog.at_level(logging.INFO, logger="checkpointkd"):
        check_trainable(network, images, classes=10, model=model)
    assert f"Its logits are {which}." in caplog.text


def test_a_network_with_another_number_of_classes_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"the output has shape \(2, 7\), expected logits of shape \(2, 10\)"):
        ckd.train(ckd.named(lambda: small(7, 1), "seven"), out=tmp_path / "run", **SETTINGS)


def test_the_network_is_built_no_more_often_than_needed(teacher_run: Path, tmp_path: Path):
    """Once if all tensors fit; with another classifier once more to find it, and once as in the file."""
    built = []

    def counted(num_classes: int, in_channels: int) -> nn.Module:
        built.append(num_classes)
        return small(num_classes, in_channels)

    model = ckd.named(counted, "counted")
    counts = []
    for classes in (10, 7):
        torch.save(small(classes, 1).state_dict(), tmp_path / f"{classes}.pt")
        built.clear()
        ckd.train(model, init=str(tmp_path / f"{classes}.pt"), out=tmp_path / f"run-{classes}", **FROZEN)
        counts.append(list(built))
    assert counts == [[10], [10, 11, 7]]


def test_a_name_whose_code_changes_is_pointed_out(caplog: pytest.LogCaptureFixture):
    """As when a cell of a notebook is edited and run again."""

    def build(width: int):
        def network(num_classes: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

        def wider(num_classes: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, num_classes))

        return network if width == 1 else wider

    ckd.named(build(1), "edited")
    ckd.named(build(1), "edited")
    assert not caplog.records, "the same code again"
    ckd.named(build(2), "edited")
    assert "'edited' named other code earlier in this process" in caplog.text
