"""The preprocessing that a checkpoint states is used; `inspect` warns if other preprocessing is clearly better."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import checkpointkd as ckd
from checkpointkd.checkpoints import load_as_stated, scan_folder, stated_preprocessing
from checkpointkd.checkpoints.preprocessing import Preprocessing
from checkpointkd.config import DataConfig, EvalTransform
from checkpointkd.data import load_data
from checkpointkd.data.load import natural_key
from checkpointkd.data.streaming import resize_center_crop
from checkpointkd.errors import UserError
from checkpointkd.models import build_network

CLASSES = ["Elm", "ash", "shot_10", "shot_9"]  # in the order of names; timm's is ash, Elm, shot_9, shot_10


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each class is a color, with noise."""
    root, random = tmp_path_factory.mktemp("image_folder"), np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        color = np.array([(number * 67) % 256, (number * 131 + 40) % 256, (number * 193 + 90) % 256])
        for split, count in (("train", 30), ("val", 12)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                noisy = (color + random.integers(-12, 13, (40, 32, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(folder / f"{image}.png")
    return root


class ByColor(torch.nn.Module):
    """A network that classifies by mean color: the largest logit is that of the class with the nearest color."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)

    def forward(self, x):
        return self.head(x.mean((2, 3)))


def by_color(num_classes: int) -> torch.nn.Module:
    return ByColor(num_classes)


def knowing(order: list[str], mean: float = 0.0, std: float = 1.0, flip: bool = False) -> dict[str, torch.Tensor]:
    """Return the weights of a network that classifies the images, for this order of classes and normalization."""
    numbers = [CLASSES.index(name) for name in order]
    colors = torch.tensor([[(n * 67) % 256, (n * 131 + 40) % 256, (n * 193 + 90) % 256] for n in numbers]) / 255
    colors = ((colors.flip(1) if flip else colors) - mean) / std
    return {"head.weight": 200 * colors, "head.bias": -100 * colors.square().sum(1)}


NET = f"{__name__}:by_color"


def accuracy(path: Path, **options: Any) -> float:
    return ckd.inspect(path, model=NET, select_on="test", **options)["checkpoints"][-1]["val_accuracy"]


def timm_file(folder: Path, state: dict[str, torch.Tensor], **args: Any) -> Path:
    folder.mkdir()
    content = {
        "state_dict": state,
        "arch": "net",
        "epoch": 2,
        "version": 2,
        "metric": args.pop("metric", 100.0),
        "args": argparse.Namespace(**args),
    }
    torch.save(content, folder / "checkpoint-2.pth.tar")
    return folder


def test_timms_order_of_classes_is_used(image_folder: Path, tmp_path: Path):
    timm_order = sorted(CLASSES, key=natural_key)
    assert timm_order == ["ash", "Elm", "shot_9", "shot_10"]
    path = timm_file(tmp_path / "run", knowing(timm_order), mean=[0.0] * 3, std=[1.0] * 3)
    assert accuracy(path, data=f"folder:{image_folder}", image_size=16) == 1.0
    run = ckd.open_trajectory(path).run
    assert (list(run.classes), run.normalized_as) == (timm_order, "stated by timm")
    student = ckd.distill("wrn_10_1", teachers=[f"{path}@last"], epochs=1, out=tmp_path / "student")
    assert list(ckd.load(student.path).classes or []) == timm_order, "students take the order of their teacher"


def test_a_given_order_of_classes_overrides_the_stated_order(image_folder: Path, tmp_path: Path, caplog):
    caplog.set_level("INFO")
    order = [CLASSES[number] for number in (2, 0, 3, 1)]
    path = timm_file(tmp_path / "run", knowing(order), mean=[0.0] * 3, std=[1.0] * 3)
    data = {"data": f"folder:{image_folder}", "image_size": 16}
    assert accuracy(path, **data) < 0.6
    assert "the accuracy would be 100.0% instead of" in caplog.text
    (tmp_path / "order.txt").write_text("\n".join(order) + "\n")
    assert accuracy(path, **data, class_order=str(tmp_path / "order.txt")) == 1.0
    assert "--class-order overrides the checkpoint's timm" in caplog.text
    assert ckd.inspect(path)["checkpoints"][-1]["val_accuracy"] == 1.0, "the order is kept"
    ckd.inspect(path, data=data["data"])
    assert "Kept from an earlier inspection: --image-size 16, --class-order as given. To start again" in caplog.text
    for content, message in (
        ("a\nb\n", "must name each of the 4 classes once. First difference: 'Elm'"),
        (None, "neither"),
    ):
        (tmp_path / "order.txt").unlink(missing_ok=True)
        if content:
            (tmp_path / "order.txt").write_text(content)
        with pytest.raises(UserError, match=message):
            accuracy(path, **data, class_order=str(tmp_path / "order.txt"))


def test_two_swapped_classes_are_named(image_folder: Path, tmp_path: Path, caplog):
    order = [CLASSES[number] for number in (1, 0, 2, 3)]
    torch.save(knowing(order), tmp_path / "epoch_1.pt")
    zero_one = {"mean": [0.0] * 3, "std": [1.0] * 3}
    accuracy(tmp_path, data=f"folder:{image_folder}", image_size=16, **zero_one)
    assert "If 'Elm' and 'ash' were swapped, the accuracy would be 100.0% instead of 50.0%" in caplog.text


def test_a_normalization_that_differs_from_training_is_reported(image_folder: Path, tmp_path: Path, caplog):
    torch.save(knowing(CLASSES), tmp_path / "epoch_1.pt")
    accuracy(tmp_path, data=f"folder:{image_folder}", image_size=16, mean=[5.0] * 3, std=[1.0] * 3)
    assert "With --mean 0 0 0 --std 1 1 1, the accuracy would be 100.0%" in caplog.text
    caplog.clear()
    accuracy(tmp_path, data=f"folder:{image_folder}", image_size=16, mean=[0.0] * 3, std=[1.0] * 3)
    assert "accuracy would be" not in caplog.text


def test_a_stated_accuracy_is_shown_beside_the_measured_accuracy(image_folder: Path, tmp_path: Path, capsys):
    path = timm_file(tmp_path / "run", knowing(CLASSES[::-1]), mean=[0.0] * 3, std=[1.0] * 3, metric=77.5)
    from checkpointkd.cli import main

    main(["inspect", str(path), "--model", NET, "--data", f"folder:{image_folder}", "--image-size", "16"])
    printed = capsys.readouterr()
    assert "stated," in printed.out
    assert ckd.inspect(path)["checkpoints"][0]["stated_accuracy"] == 0.775
    assert "checkpoint-2.pth.tar states an accuracy of 77.5%" in printed.err


def hugging_face(folder: Path, state: dict[str, torch.Tensor], preprocessor: dict[str, Any], **config: Any) -> Path:
    import safetensors.torch

    checkpoint = folder / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    safetensors.torch.save_file(state, checkpoint / "model.safetensors")
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (checkpoint / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("stated", "weights"),
    [
        ({"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}, {"mean": 0.5, "std": 0.25}),
        ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}, {}),
        ({"do_rescale": False, "do_normalize": False}, {"std": 1 / 255}),
        ({"do_rescale": True, "rescale_factor": 2 / 255, "do_normalize": False}, {"std": 0.5}),
        (
            {"do_rescale": False, "do_normalize": True, "image_mean": [127.5] * 3, "image_std": [51.0] * 3},
            {"mean": 0.5, "std": 0.2},
        ),
        ({"do_flip_channel_order": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, {"flip": True}),
    ],
)
def test_the_settings_of_a_preprocessor_are_used(
    stated: dict[str, Any], weights: dict[str, Any], image_folder: Path, tmp_path: Path
):
    path = hugging_face(tmp_path / "run", knowing(CLASSES, **weights), stated)
    assert accuracy(path, data=f"folder:{image_folder}", image_size=16) == 1.0


def test_names_of_classes_in_a_config_give_their_order(image_folder: Path, tmp_path: Path, caplog):
    order = [CLASSES[number] for number in (3, 1, 0, 2)]
    names = {str(number): name for number, name in enumerate(order)}
    path = hugging_face(tmp_path / "run", knowing(order), {"do_normalize": False}, id2label=names)
    assert accuracy(path, data=f"folder:{image_folder}", image_size=16) == 1.0
    assert accuracy(path, data=f"folder:{image_folder}", class_order="names") < 0.6, "the user's order wins"
    others = {str(number): f"n{number}" for number in range(4)}
    path = hugging_face(tmp_path / "other", knowing(CLASSES), {"do_normalize": False}, id2label=others)
    assert accuracy(path, data=f"folder:{image_folder}", image_size=16) == 1.0
    assert "The checkpoint names its classes n0, n1, …; the data set names them Elm, ash, …" in caplog.text
    caplog.clear()
    unnamed = {str(number): f"LABEL_{number}" for number in range(4)}
    path = hugging_face(tmp_path / "unnamed", knowing(CLASSES), {"do_normalize": False}, id2label=unnamed)
    accuracy(path, data=f"folder:{image_folder}", image_size=16)
    assert "names its classes" not in caplog.text


@pytest.mark.parametrize(
    ("stated", "size", "transform"),
    [
        ({"size": {"height": 24, "width": 24}, "resample": 3}, 24,
         EvalTransform(resize="squash", crop_share=1, interpolation="bicubic")),
        ({"size": {"shortest_edge": 32}, "crop_size": 28, "do_center_crop": True}, 28,
         EvalTransform(crop_share=28 / 32, crop_offset="floor")),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 2}, 224,
         EvalTransform(crop_share=0.875, crop_offset="floor")),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 2}, 384,
         EvalTransform(resize="squash", crop_share=1)),
        ({"size": 32}, 32, EvalTransform(resize="squash", crop_share=1)),
    ],
)  # fmt: skip
def test_the_size_of_a_preprocessor_is_used(
    stated: dict[str, Any], size: int, transform: EvalTransform, tmp_path: Path
):
    path = hugging_face(tmp_path, knowing(CLASSES), stated)
    said = stated_preprocessing(scan_folder(path).last)
    assert (said.image_size, said.eval_transform) == (size, transform)


def test_images_are_resized_as_the_checkpoint_says(image_folder: Path, tmp_path: Path, caplog):
    caplog.set_level("INFO")
    path = hugging_face(
        tmp_path / "run", knowing(CLASSES), {"size": {"height": 24, "width": 24}, "do_normalize": False}
    )
    said = stated_preprocessing(scan_folder(path).last)
    data = load_as_stated(said, DataConfig(data=f"folder:{image_folder}"), given=())
    first = Image.open(next((image_folder / "train" / CLASSES[0]).iterdir()))
    assert data.train.shape == (3, 24, 24)
    expected = np.asarray(first.resize((24, 24), Image.Resampling.BILINEAR))
    shown = np.asarray(resize_center_crop(first, 24, said.eval_transform or EvalTransform()))
    assert np.array_equal(shown, expected), "40 by 32 pixels become 24 by 24"
    assert load_as_stated(said, DataConfig(data="digits"), given=()).train.shape == (1, 8, 8), (
        "images in memory keep their size"
    )
    accuracy(path, data=f"folder:{image_folder}", image_size=16, resize="crop")
    assert "--image-size overrides the checkpoint's 24" in caplog.text
    run = ckd.open_trajectory(path).run
    assert (run.data.image_size, run.data.eval_transform) == (16, EvalTransform(crop_share=1.0))


def test_a_given_resize_changes_nothing_else(image_folder: Path, tmp_path: Path):
    path = timm_file(tmp_path / "run", knowing(CLASSES), crop_pct=0.95, interpolation="bicubic", dataset="torch/folder")
    accuracy(path, data=f"folder:{image_folder}", image_size=16, resize="squash")
    expected = EvalTransform(resize="squash", crop_share=0.95, interpolation="bicubic")
    assert ckd.open_trajectory(path).run.data.eval_transform == expected


def test_squash_crops_nothing_unless_a_crop_is_stated(image_folder: Path, tmp_path: Path):
    torch.save(knowing(CLASSES), tmp_path / "epoch_1.pt")
    for first, then in (("squash", None), ("crop", "squash")):
        for resize in filter(None, (first, then)):
            accuracy(tmp_path, data=f"folder:{image_folder}", image_size=16, resize=resize)
        transform = ckd.open_trajectory(tmp_path).run.data.eval_transform
        assert transform == EvalTransform(resize="squash", crop_share=1.0)
    image = Image.open(next((image_folder / "val" / CLASSES[0]).iterdir()))
    assert np.array_equal(resize_center_crop(image, 16, transform), image.resize((16, 16), Image.Resampling.BILINEAR))
    with pytest.raises(UserError, match="--resize squash does not apply to digits: its images keep their size"):
        ckd.train("wrn_10_1", data="digits", resize="squash", out=tmp_path / "run")


def test_a_stated_size_that_data_in_memory_do_not_have_is_reported(tmp_path: Path, caplog):
    said = Preprocessing(source="stated in x", image_size=224, not_square="y", notes=(("mean", "no deviation"),))
    load_as_stated(said, DataConfig(data="digits"), given=())
    assert "takes images of 224×224 pixels (stated in x), but the images of digits keep their 8×8 pixels" in caplog.text
    assert "no deviation" in caplog.text
    caplog.clear()
    load_as_stated(replace(said, image_size=8), DataConfig(data="digits"), given=("mean",))
    assert not caplog.records


def test_a_size_that_is_not_square_must_be_replaced(image_folder: Path, tmp_path: Path):
    path = hugging_face(tmp_path, knowing(CLASSES), {"size": [224, 225], "do_normalize": False})
    data = f"folder:{image_folder}"
    with pytest.raises(UserError, match=r"has the size \[224, 225\]\. Give `checkpointkd inspect` the --image-size of"):
        accuracy(path, data=data)
    assert accuracy(path, data=data, image_size=16) == 1.0


def test_the_accuracy_that_timm_states_may_be_that_of_averaged_weights(image_folder: Path, tmp_path: Path, caplog):
    path = timm_file(tmp_path / "run", knowing(CLASSES[::-1]), mean=[0.0] * 3, std=[1.0] * 3, dataset="torch/folder")
    content = torch.load(path / "checkpoint-2.pth.tar", weights_only=False)
    torch.save({**content, "state_dict_ema": knowing(CLASSES)}, path / "checkpoint-2.pth.tar")
    data = {"data": f"folder:{image_folder}", "image_size": 16}
    assert accuracy(path, **data) < 0.5
    assert "states an accuracy" not in caplog.text, "it is not that of the weights that were measured"
    assert ckd.inspect(path)["other_sets"] == ("state_dict_ema (averaged)",)
    assert accuracy(path, **data, state_dict_key="state_dict_ema") == 1.0


def test_timms_order_of_classes_depends_on_its_data_set(image_folder: Path, tmp_path: Path, caplog):
    data = {"data": f"folder:{image_folder}", "image_size": 16}
    for dataset, order in (("torch/image_folder", "names"), ("", "timm"), ("folder", "timm"), ("hfds/x", None)):
        path = timm_file(tmp_path / f"run{len(list(tmp_path.iterdir()))}", knowing(CLASSES), dataset=dataset)
        assert stated_preprocessing(scan_folder(path).last).class_order == order, dataset
    path = timm_file(tmp_path / "mapped", knowing(CLASSES), class_map="classes.txt", mean=[0.0] * 3, std=[1.0] * 3)
    accuracy(path, **data)
    assert "order of classes is in the file classes.txt (timm's class_map)" in caplog.text
    caplog.clear()
    (tmp_path / "order.txt").write_text("\n".join(CLASSES))
    assert accuracy(path, **data, class_order=str(tmp_path / "order.txt")) == 1.0
    assert "class_map" not in caplog.text


def test_timms_options_give_the_transform_and_the_network(tmp_path: Path):
    import timm

    net = timm.create_model("resnet10t", num_classes=10, in_chans=1, global_pool="max", act_layer="gelu").eval()
    path = timm_file(
        tmp_path / "run", net.state_dict(), model="resnet10t", gp="max", model_kwargs={"act_layer": "gelu"},
        img_size=64, crop_pct=0.9, interpolation="bicubic",
    )  # fmt: skip
    said = stated_preprocessing(scan_folder(path).last)
    assert (said.image_size, said.eval_transform) == (64, EvalTransform(crop_share=0.9, interpolation="bicubic"))
    assert ckd.inspect(path, data="digits")["model"] == "timm:resnet10t?global_pool=max&act_layer=gelu"
    loaded, images = ckd.load(f"{path}@last"), torch.rand(3, 1, 8, 8)
    assert torch.allclose(loaded(images), net((images - loaded.mean) / loaded.std), atol=1e-5)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("pretrained=true", "is not allowed"),
        ("pretrained_cfg=x", "is not allowed"),
        ("checkpoint_path=x.pt", "is not allowed"),
        ("num_classes=3", "is not allowed"),
        ("global_pool", "is not allowed"),
        ("global_pool=none_such", "cannot build"),
        ("x=1", "cannot build"),
    ],
)
def test_wrong_arguments_of_timm_are_refused(argument: str, message: str):
    """No argument may fetch weights or open files."""
    with pytest.raises(UserError, match=message):
        build_network(f"timm:resnet10t?{argument}", num_classes=10, in_channels=1, mean=[0.5], std=[0.5])


def test_the_order_of_classes_is_part_of_the_data(tmp_path: Path):
    names = tuple(reversed("0123456789"))
    plain, turned = load_data(DataConfig(data="digits")), load_data(DataConfig(data="digits", class_order=names))
    assert turned.classes == names
    assert plain.record.sha256 != turned.record.sha256
    assert turned.record.class_order == names
    assert plain.record.class_order is None
    test = {
        name: load_data(DataConfig(data="digits", class_order=order, select_on="test"))
        for name, order in (("a", None), ("b", names))
    }
    assert torch.equal(9 - test["a"].val.labels_N, test["b"].val.labels_N)


def test_the_order_of_channels_is_part_of_a_networks_identity(image_folder: Path, tmp_path: Path):
    """Otherwise the logit cache would return logits of the other channel order, and scores would be kept."""
    torch.save(knowing(CLASSES), tmp_path / "epoch_1.pt")
    hashes = set()
    for order in ("rgb", "bgr"):
        accuracy(tmp_path, data=f"folder:{image_folder}", image_size=16, channel_order=order)
        checkpoint = ckd.open_trajectory(tmp_path)[1]
        assert checkpoint.network().channel_order == order
        hashes.add(checkpoint.sha256)
    assert len(hashes) == 2


def test_the_processor_of_efficientnet_is_followed(tmp_path: Path):
    """The processor may subtract 1 after rescaling, and it may normalize twice."""
    from transformers import EfficientNetImageProcessor

    images = torch.rand(2, 3, 16, 16)
    for number, options in enumerate(
        ({}, {"include_top": False}, {"rescale_offset": True, "rescale_factor": 1 / 127.5})
    ):
        processor = EfficientNetImageProcessor(size={"height": 16, "width": 16}, do_resize=False, **options)
        path = hugging_face(tmp_path / str(number), knowing(CLASSES), json.loads(processor.to_json_string()))
        expected = processor([(255 * image).numpy() for image in images], return_tensors="pt")["pixel_values"]
        said = stated_preprocessing(scan_folder(path).last)
        mean, std = (torch.tensor(values)[:, None, None] for values in (said.mean, said.std))
        assert torch.allclose((images - mean) / std, expected, atol=1e-4), options
