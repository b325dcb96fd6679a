"""The preprocessing that a checkpoint states gives the same pixels as its writer: transformers, timm, scripts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from checkpointkd.checkpoints import scan_folder, stated_preprocessing
from checkpointkd.checkpoints.hf_preprocessor import hf_preprocessing
from checkpointkd.checkpoints.preprocessing import IMAGENET_MEAN, Preprocessing
from checkpointkd.config import EvalTransform
from checkpointkd.data.streaming import resize_center_crop
from checkpointkd.models import Network

SIZES = [(500, 375), (300, 421)]  # width and height: the second leaves half a pixel beside a crop
IMAGENET = {"do_normalize": True, "do_resize": True, "image_mean": [0.485, 0.456, 0.406]}
IMAGENET |= {"image_std": [0.229, 0.224, 0.225]}
HALF = {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
EFFICIENTNET = {**HALF, "image_processor_type": "EfficientNetImageProcessor", "size": {"height": 224, "width": 224}}

# Files as they are on the Hub, and the model type where the file names no processor.
FILES: dict[str, tuple[dict[str, Any], str]] = {
    "resnet-50": (IMAGENET | {"crop_pct": 0.875, "feature_extractor_type": "ConvNextFeatureExtractor", "resample": 3,
                              "size": 224}, "resnet"),
    "resnet without a type": (IMAGENET | {"crop_pct": 0.875, "resample": 3, "size": 224}, "resnet"),
    "convnext at 384": (IMAGENET | {"crop_pct": 1.0, "feature_extractor_type": "ConvNextFeatureExtractor",
                                    "resample": 3, "size": 384}, "convnext"),
    "convnext, 0.95": (IMAGENET | {"crop_pct": 0.95, "image_processor_type": "ConvNextImageProcessor",
                                   "size": {"shortest_edge": 224}}, "convnext"),
    "convnext without a share": (IMAGENET | {"image_processor_type": "ConvNextImageProcessor", "resample": 3,
                                             "size": {"shortest_edge": 232}}, "convnext"),
    "vit": (HALF | {"size": 224}, "vit"),
    "vit, one number": (HALF | {"size": 224, "image_mean": 0.4, "image_std": 0.3}, "vit"),
    "deit": (IMAGENET | {"do_center_crop": True, "crop_size": 224, "feature_extractor_type": "DeiTFeatureExtractor",
                         "resample": 3, "size": 256}, "deit"),
    "levit": (IMAGENET | {"do_center_crop": True, "feature_extractor_type": "LevitFeatureExtractor", "resample": 3,
                          "size": 224}, "levit"),
    "beit": (HALF | {"do_center_crop": False, "crop_size": 224, "feature_extractor_type": "BeitFeatureExtractor",
                     "resample": 2, "size": 224}, "beit"),
    "poolformer": (IMAGENET | {"crop_pct": 0.9, "feature_extractor_type": "PoolFormerFeatureExtractor",
                               "resample": 3, "size": 224}, "poolformer"),
    "mobilevit": ({"do_resize": True, "do_center_crop": True, "crop_size": 256, "do_flip_channel_order": True,
                   "feature_extractor_type": "MobileViTFeatureExtractor", "resample": 2, "size": 288}, "mobilevit"),
    "clip": (IMAGENET | {"do_center_crop": True, "crop_size": 224, "feature_extractor_type": "CLIPFeatureExtractor",
                         "resample": 3, "size": 224}, "clip"),
    "dinov2": (IMAGENET | {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "resample": 3,
                           "size": {"shortest_edge": 256}, "image_processor_type": "BitImageProcessor"}, "dinov2"),
    **{f"efficientnet, resample {number}": (EFFICIENTNET | {"resample": number}, "efficientnet")
       for number in (0, 2, 3)},
}  # fmt: skip


def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    small = [random.integers(0, 255, (h // 8 + 1, w // 8 + 1, 3), dtype=np.uint8) for w, h in SIZES]
    return [
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        for pixels, size in zip(small, SIZES, strict=True)
    ]


def shown(stated: Preprocessing, image: Image.Image) -> torch.Tensor:
    """Return an image as the network receives it with this preprocessing."""
    cropped = resize_center_crop(image, stated.image_size or 224, stated.eval_transform or EvalTransform())
    network = Network(
        torch.nn.Identity(),
        mean=stated.mean or (0, 0, 0),
        std=stated.std or (1, 1, 1),
        channel_order=stated.channel_order or "rgb",
    )
    return network.normalized(torch.from_numpy(np.array(cropped)).permute(2, 0, 1)[None] / 255)


def write(folder: Path, stated: dict[str, Any], model_type: str = "") -> dict[str, Any]:
    config = {"model_type": model_type} if model_type else {}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated, default=str))
    (folder / "config.json").write_text(json.dumps(config))
    return config


def compare(folder: Path, stated: dict[str, Any], model_type: str = "", *, tolerance: float = 0.01) -> None:
    """Compare pixels with transformers' processor for this file."""
    from transformers import AutoImageProcessor

    read = hf_preprocessing(folder, write(folder, stated, model_type))
    processor = AutoImageProcessor.from_pretrained(folder)
    for image in images():
        expected = processor(image, return_tensors="pt")["pixel_values"].float()
        ours = shown(read, image)
        assert ours.shape == expected.shape
        assert (ours - expected).abs().mean() < tolerance * expected.std(), read


def processors() -> dict[str, Any]:
    """Return transformers' processors of image classifiers, by name."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES as NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

    found = [NAMES.get(model) or {} for model in CLASSIFIERS]
    names = [name for listed in found for name in (listed.values() if isinstance(listed, dict) else listed)]
    named = {name: getattr(transformers, name) for name in names if name and not name.endswith("Pil")}
    return {name: kind for name, kind in named.items() if name != "TimmWrapperImageProcessor"}


def test_every_processor_of_transformers_is_followed_or_refused(tmp_path: Path):
    """A processor that is new in transformers fails here if its pixels differ."""
    refused = set()
    for name, kind in processors().items():
        stated = {"image_processor_type": name} | json.loads(kind().to_json_string())
        if hf_preprocessing(tmp_path, write(tmp_path, stated)).not_square:
            refused.add(name)
        else:  # Perceiver's crops before it resizes, which moves edges by less than a pixel
            compare(tmp_path, stated, tolerance=0.2 if name.startswith("Perceiver") else 0.01)
    assert refused == {f"{name}ImageProcessor" for name in ("Donut", "ImageGPT", "Siglip2", "TextNet")}
    assert len(processors()) > 15


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_hub_are_read_as_transformers_reads_them(name: str, tmp_path: Path):
    compare(tmp_path, *FILES[name])


@pytest.mark.parametrize(
    ("stated", "part"),
    [
        ({"size": [224, 225]}, "size [224, 225]"),
        ({"size": {"longest_edge": 224}}, "size {'longest_edge': 224}"),
        ({"size": {"shortest_edge": 224}}, "no crop"),
        ({"size": 256, "do_center_crop": True, "crop_size": [224, 200]}, "crop size [224, 200]"),
        ({"size": 1000, "do_center_crop": True, "crop_size": 64}, "crops 64 pixels from 1000"),
    ],
)
def test_sizes_that_are_not_square_are_named(stated: dict[str, Any], part: str, tmp_path: Path):
    read = hf_preprocessing(tmp_path, write(tmp_path, stated))
    assert part in read.not_square
    assert read.image_size is None


@pytest.mark.parametrize(
    ("stated", "part"),
    [
        ({"size": 224, "resample": [3]}, "interpolation [3] is unknown. Bilinear interpolation is used"),
        ({"size": 224, "resample": 9}, "interpolation 9 is unknown"),
        ({"size": 224, "do_resize": False}, "images are not resized (do_resize). Give --image-size"),
        ({"size": 224, "do_normalize": True, "image_mean": [0.5] * 3}, "has image_mean without a usable image_std"),
    ],
)
def test_settings_that_are_not_used_are_named(stated: dict[str, Any], part: str, tmp_path: Path):
    assert part in " ".join(sentence for _, sentence in hf_preprocessing(tmp_path, write(tmp_path, stated)).notes)


def script_file(folder: Path, **args: Any) -> Preprocessing:
    """Write what torchvision's, DeiT's and many other scripts write; return what is read."""
    folder.mkdir(exist_ok=True)
    entries = {"model": {"w": torch.zeros(1)}, "optimizer": {}, "lr_scheduler": {}, "epoch": 1}
    torch.save({**entries, "args": argparse.Namespace(**args)}, folder / "checkpoint.pth")
    return stated_preprocessing(scan_folder(folder).last)


def test_options_tell_which_script_wrote_a_file(tmp_path: Path):
    read = script_file(tmp_path, val_crop_size=176, val_resize_size=232, interpolation="bicubic")
    transform = EvalTransform(crop_share=176 / 232, interpolation="bicubic")
    assert (read.image_size, read.eval_transform, read.mean) == (176, transform, IMAGENET_MEAN)
    old = script_file(tmp_path, cache_dataset=False, batch_size=32)
    assert (old.source, old.image_size, old.eval_transform) == ("of torchvision's scripts", 224, EvalTransform())
    own = script_file(tmp_path, img_size=32, mean=[0.1] * 3, std=[0.3] * 3)
    assert (own.source, own.image_size, own.mean) == ("stated in checkpoint.pth", 32, (0.1,) * 3)
    deit = script_file(tmp_path, input_size=192, data_set="IMNET", eval_crop_ratio=0.875)
    transform = EvalTransform(interpolation="bicubic")
    assert (deit.image_size, deit.eval_transform, deit.mean) == (192, transform, IMAGENET_MEAN)
    small = script_file(tmp_path, input_size=32, data_set="CIFAR")
    assert (small.image_size, small.eval_transform) == (32, None), "DeiT does not resize images to 32 pixels"
    unknown = script_file(tmp_path, epochs=3)
    assert (unknown.image_size, unknown.mean, unknown.eval_transform) == (None, None, None)


@pytest.mark.parametrize(
    ("model", "args"),
    [
        ("resnet18", {}),
        ("vit_tiny_patch16_224", {}),
        ("inception_v3", {}),
        ("regnety_004", {}),
        ("mobilevit_s", {}),
        ("resnet18", {"img_size": 64, "crop_pct": 0.9}),
        ("resnet18", {"interpolation": "nearest"}),
        ("resnet18", {"interpolation": "lanczos"}),
        ("dm_nfnet_f0", {}),
        ("resnet18", {"img_size": 64, "crop_pct": 0.9, "crop_mode": "squash"}),
    ],
)
def test_images_are_those_of_timms_script(model: str, args: dict[str, Any], tmp_path: Path):
    import timm
    from timm.data import create_transform, resolve_data_config

    content = {"state_dict": {"w": torch.zeros(1)}, "arch": model, "epoch": 2, "version": 2}
    torch.save({**content, "args": argparse.Namespace(model=model, **args)}, tmp_path / "checkpoint-2.pth.tar")
    read = stated_preprocessing(scan_folder(tmp_path).last)
    config = resolve_data_config(args, pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())  # type: ignore[union-attr]
    config["crop_mode"] = args.get("crop_mode")  # timm's script passes none
    transform: Any = create_transform(**config)
    for image in images():
        assert torch.allclose(shown(read, image)[0], transform(image), atol=1e-5)


def test_a_crop_mode_that_is_not_supported_is_named(tmp_path: Path):
    content = {"state_dict": {"w": torch.zeros(1)}, "arch": "x", "epoch": 2, "version": 2}
    torch.save({**content, "args": argparse.Namespace(crop_mode="border")}, tmp_path / "checkpoint-2.pth.tar")
    notes = stated_preprocessing(scan_folder(tmp_path).last).notes
    assert "timm's crop mode 'border' is not supported" in notes[0][1]
