"""Networks that a checkpoint names itself: config.json of transformers and timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.checkpoints import register_external, resolve
from checkpointkd.cli import main
from checkpointkd.data import Data
from checkpointkd.errors import UserError
from checkpointkd.models import build_network
from checkpointkd.teachers.logit_cache import manifests_of

VISION = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = {"num_channels": 1, "num_labels": 10, "image_size": 8, "patch_size": 2, "hidden_size": 12}
BLOCKS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {**SMALL, **BLOCKS},
    "deit": {**SMALL, **BLOCKS},
    "beit": {**SMALL, **BLOCKS, "use_relative_position_bias": True},
    "dinov2": {**SMALL, **BLOCKS},
    "clip": {"num_labels": 10, "vision_config": {**VISION, "image_size": 8, "patch_size": 2, "num_channels": 1}},
    "swin": {**SMALL, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
    "resnet": {"num_channels": 1, "num_labels": 10, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "convnext": {"num_channels": 1, "num_labels": 10, "patch_size": 2, "hidden_sizes": [8, 16], "depths": [1, 1],
                 "num_stages": 2},
}  # fmt: skip


def written(folder: Path, kind: str, steps: tuple[int, ...] = (10, 20)) -> dict[int, torch.nn.Module]:
    """Write checkpoints as Trainer and `save_pretrained` do, and return the networks."""
    import transformers

    networks = {}
    for step in steps:
        torch.manual_seed(step)
        config = transformers.CONFIG_MAPPING[kind](**CONFIGS[kind], architectures=[])
        model = transformers.AutoModelForImageClassification.from_config(config)
        with torch.no_grad():  # no tensor may be equal to that of another network
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand_like(tensor) * 0.1 + 0.01)
        model.save_pretrained(folder / f"checkpoint-{step}")
        networks[step] = model.eval()
    return networks


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_of_transformers_names_its_network(kind: str, tmp_path: Path, digits: Data):
    networks = written(tmp_path / "run", kind)
    described = ckd.inspect(tmp_path / "run", data="digits")
    assert described["model"].startswith("hf:")
    trajectory = ckd.open_trajectory(tmp_path / "run")
    images = digits.val.to_float()[:10]
    for step, theirs in networks.items():
        ours = trajectory[step].network()
        assert ours.body.state_dict().keys() == theirs.state_dict().keys()
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.body.state_dict()[name], tensor), name
        normalized = (images - ours.mean) / ours.std
        assert torch.allclose(ours(images), theirs(normalized).logits, atol=1e-5)


def test_a_config_may_be_gone_once_it_is_registered(tmp_path: Path):
    written(tmp_path / "run", "resnet")
    ckd.inspect(tmp_path / "run", data="digits")
    for config in (tmp_path / "run").rglob("config.json"):
        if config.parent.name.startswith("checkpoint-"):
            config.unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    assert ckd.load(f"{tmp_path}/moved@last").body.config.hidden_sizes == [8, 16]


def test_a_student_of_a_config_is_trained_and_loaded_without_the_folder(tmp_path: Path):
    written(tmp_path / "run", "vit", steps=(10,))
    model = f"hf:{tmp_path}/run/checkpoint-10"
    run = ckd.train(model, data="digits", train_images=50, epochs=1, out=tmp_path / "student")
    expected = run.last.network().state_dict()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    loaded = ckd.load(tmp_path / "student").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    main(["export", f"{tmp_path}/student", "--out", f"{tmp_path}/export"])
    exported = ckd.load(tmp_path / "export").state_dict()
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())


def test_a_config_of_timm_names_its_network(tmp_path: Path, digits: Data):
    import timm
    from timm.models import save_for_hf

    for epoch in (1, 2):
        torch.manual_seed(epoch)
        net = timm.create_model("resnet10t", num_classes=10, in_chans=1)
        net.pretrained_cfg |= {"mean": [0.25], "std": [0.5]}
        save_for_hf(net, tmp_path / f"epoch_{epoch}", model_config={"num_classes": 10})
    described = ckd.inspect(tmp_path, data="digits")
    assert (described["model"], described["normalized_as"]) == (
        "timm:resnet10t?global_pool=avg",
        "stated in config.json",
    )
    assert (described["mean"], described["std"]) == ((0.25,), (0.5,))
    loaded = ckd.open_trajectory(tmp_path)[2].network().body
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("change", ["a missing tensor", "one tensor too many", "another shape", "NaN"])
def test_weights_that_do_not_fit_a_config_are_refused(change: str, tmp_path: Path, digits: Data):
    from safetensors.torch import load_file, save_file

    written(tmp_path / "run", "vit", steps=(10,))
    file = tmp_path / "run" / "checkpoint-10" / "model.safetensors"
    tensors = load_file(file)
    first = next(name for name in tensors if name.endswith("weight"))
    if change == "a missing tensor":
        del tensors[first]
    elif change == "one tensor too many":
        tensors["vit.encoder.layer.2.output.dense.bias"] = torch.zeros(12)
    elif change == "another shape":
        tensors[first] = torch.zeros(3, 3)
    else:
        tensors[first] = tensors[first] * float("nan")
    save_file(tensors, file)
    with pytest.raises(UserError, match="NaN" if change == "NaN" else "does not fit"):
        register_external(tmp_path / "run", model=f"hf:{tmp_path}/run/checkpoint-10", data=digits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bert"}, "no image classifier"),
        ({"model_type": 5}, "no image classifier"),
        ({"model_type": "clip", "vision_config": {"hidden_size": 10**9}}, "is refused: hidden_size"),
        ({"model_type": "vit", "num_hidden_layers": 10**6}, "is refused: num_hidden_layers is 1000000"),
        ({"model_type": "resnet", "depths": [500, 501]}, "is refused: depths"),
        ({"model_type": "vit", "hidden_size": 10**9}, "is refused: hidden_size"),
        ({"model_type": "vit", "hidden_size": 90_000, "num_attention_heads": 1}, "parameters"),
        ({"model_type": "vit", "hidden_size": "wide"}, "cannot build"),
        ({"model_type": "vit", "hidden_size": int("9" * 4000)}, "is refused: hidden_size"),
        ({"model_type": "resnet", "depths": [30_000, -30_000]}, "is refused: depths"),
        ({"model_type": "swin", "window_size": 9000}, "values in buffers"),
        (
            {
                "model_type": "shieldgemma2",
                "vision_config": {"model_type": "timm_wrapper", "architecture": "hf-hub:a/b"},
            },
            "a timm_wrapper lies inside another network",
        ),
        (json.loads('{"model_type": "vit", "a": ' + '{"a": ' * 900 + "1" + "}" * 900 + "}"), "nested too deeply"),
        ({"model_type": "vit", "hidden_size": -3}, "cannot build"),
        ({"model_type": "timm_wrapper", "architecture": "resnet18"}, "Give --model timm:resnet18"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(settings: dict[str, Any], message: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        build_network(f"hf:{tmp_path}", num_classes=10, in_channels=1, mean=[0.5], std=[0.5])


def test_nothing_that_a_config_names_is_run_or_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass ViT: pass\n")
    config = {
        **CONFIGS["vit"],
        "model_type": "vit",
        "auto_map": {"AutoModelForImageClassification": "evil.ViT", "AutoConfig": "evil.ViT"},
        "_name_or_path": str(tmp_path),
        "_attn_implementation": "kernels-community/flash-attn",
        "attn_implementation": "kernels-community/flash-attn",
        "quantization_config": {"quant_method": "bitsandbytes"},
        "use_pretrained_backbone": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.syspath_prepend(tmp_path)
    network = build_network(f"hf:{tmp_path}", num_classes=10, in_channels=1, mean=[0.5], std=[0.5])
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert not canary.exists()


def test_a_damaged_config_leaves_out_its_checkpoint_only(tmp_path: Path):
    written(tmp_path / "run", "resnet", steps=(10, 20, 30))
    (tmp_path / "run" / "checkpoint-20" / "config.json").write_text("{")
    described = ckd.inspect(tmp_path / "run")
    assert [checkpoint["epoch"] for checkpoint in described["checkpoints"]] == [10, 30]
    assert "checkpoint-20" in described["left_out"][0]


def test_surplus_tensors_of_a_folder_of_transformers_are_refused_unless_the_user_ignores_them(
    tmp_path: Path, digits: Data
):
    from safetensors.torch import load_file, save_file

    written(tmp_path / "run", "vit", steps=(10,))
    file = tmp_path / "run" / "checkpoint-10" / "model.safetensors"
    save_file({**load_file(file), "criterion.weight": torch.ones(3)}, file)
    model = f"hf:{tmp_path}/run/checkpoint-10"
    with pytest.raises(UserError, match=r"criterion\.weight"):
        register_external(tmp_path / "run", model=model, data=digits)
    register_external(tmp_path / "run", model=model, data=digits, ignore_tensors=["criterion.*"])
    assert ckd.load(f"{tmp_path}/run@last") is not None


def test_logits_are_cached_for_a_config_and_not_for_its_place(tmp_path: Path, digits: Data):
    """Another config of the same weights gives other logits."""
    keys = []
    for activation in ("gelu", "relu", "gelu"):
        if not keys:
            written(tmp_path / "run", "vit", steps=(10,))
        config = tmp_path / "run" / "checkpoint-10" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": activation}))
        ckd.inspect(tmp_path / "run", model=f"hf:{tmp_path}/run/checkpoint-10", data="digits")
        member = resolve(f"{tmp_path}/run@last")
        settings = {"views": None, "precision": "fp32", "device": torch.device("cpu"), "batch_size": 10}
        keys.append(manifests_of([member], digits.val, **settings)[0])
    assert keys[0] == keys[2] != keys[1]


def test_scores_and_accuracies_of_another_config_are_not_kept(tmp_path: Path):
    """Equal weights in another architecture have another accuracy and other information."""
    written(tmp_path / "run", "resnet")
    first = ckd.inspect(tmp_path / "run", data="digits")
    ckd.score(tmp_path / "run", estimator="ridge")
    ckd.inspect(tmp_path / "run", data="digits")
    assert (tmp_path / "run" / "checkpointkd" / "plane.json").exists()
    for config in (tmp_path / "run").glob("checkpoint-*/config.json"):
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "sigmoid"}))
    second = ckd.inspect(tmp_path / "run", data="digits", model=f"hf:{tmp_path}/run/checkpoint-20")
    assert [row["sha256"] for row in first["checkpoints"]] == [row["sha256"] for row in second["checkpoints"]]
    assert not (tmp_path / "run" / "checkpointkd" / "plane.json").exists()


def test_a_registered_config_is_used_from_another_folder_and_after_a_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written(tmp_path / "run", "resnet", steps=(10,))
    (tmp_path / "run" / "checkpoint-10").rename(tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    first = ckd.inspect("net", data="digits", mean=[0.3], std=[0.4])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in (tmp_path / "net", tmp_path / "moved"):
        if not folder.exists():
            (tmp_path / "net").rename(folder)
        (folder / "model.safetensors").touch()  # registers again
        assert ckd.open_trajectory(folder).new_files() == ["."]
        assert ckd.score(folder, estimator="ridge").epochs == [1]
        on_test = ckd.inspect(folder, select_on="test")
        assert on_test["checkpoints"][0]["sha256"] == first["checkpoints"][0]["sha256"]
        assert len(ckd.evaluate(f"{folder}@last")["members"]) == 1


def test_a_config_that_changed_since_it_was_registered_is_named(tmp_path: Path, caplog):
    written(tmp_path / "run", "vit")
    for config in (tmp_path / "run").glob("checkpoint-*/config.json"):
        content = json.loads(config.read_text())
        config.write_text(json.dumps({**content, "transformers_version": f"4.5{config.parent.name[-2]}"}))
    assert ckd.inspect(tmp_path / "run", data="digits")["model"] == f"hf:{tmp_path}/run/checkpoint-20", "of the last"
    ckd.inspect(tmp_path / "run", select_on="test")
    assert "another network than the registered config" not in caplog.text
    for config in (tmp_path / "run").glob("checkpoint-*/config.json"):
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "relu"}))
    ckd.inspect(tmp_path / "run", select_on="val")
    assert f"To use config.json, give --model hf:{tmp_path}/run/checkpoint-20 and --data" in caplog.text
