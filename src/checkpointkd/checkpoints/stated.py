"""Read the preprocessing that a checkpoint states: image size, normalization, channel order, order of classes.

The sources are Hugging Face's preprocessor_config.json and config.json, and the options that timm's, torchvision's and
Lightning's checkpoints hold. For timm's models, timm's own settings are a source, too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from .. import storage
from ..config import ChannelOrder, DataConfig, EvalTransform, Interpolation, NamedOrder, OnProgress
from ..data import Data, load_data
from ..errors import UserError
from ..models.hugging_face import read_object
from .formats import FoundFile

log = logging.getLogger("checkpointkd")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's scripts
PILLOW_FILTERS: dict[Any, Interpolation] = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The preprocessing and the classes that a checkpoint states. A value that is not stated is None.

    `mean` and `std` are for images in [0, 1], in the network's channel order.
    """

    source: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_order: ChannelOrder | None = None
    image_size: int | None = None
    eval_transform: EvalTransform | None = None
    classes: tuple[str, ...] | None = None
    class_order: NamedOrder | None = None

    def text(self) -> str:
        """Return the stated values except mean and std, as text for a message."""
        transform = self.eval_transform
        parts = [
            self.image_size and f"{self.image_size} pixels",
            transform and f"{transform.resize} with crop share {transform.crop_share:.3g}, {transform.interpolation}",
            self.channel_order == "bgr" and "channels in the order blue, green, red",
            self.class_order and f"{self.class_order}'s order of classes",
        ]
        return ", ".join(part for part in parts if part)


def load_as_stated(
    stated: Preprocessing, settings: DataConfig, *, given: Collection[str], on_progress: OnProgress | None = None
) -> Data:
    """Load the data set with the preprocessing that a checkpoint states. Options of the user override it.

    Args:
        stated: The preprocessing that the checkpoint states.
        settings: The data set with the user's options.
        given: The options that the user gave: `image_size`, `resize`, `class_order`.
        on_progress: As for `load_data`.

    Raises:
        UserError: As `load_data` does.
    """
    wanted: dict[str, Any] = {}
    if settings.data.partition(":")[0] in ("folder", "imagenet", "hf"):
        wanted = {"image_size": stated.image_size, "eval_transform": stated.eval_transform}
    if settings.data.startswith("folder:"):
        wanted["class_order"] = stated.class_order
    named = {"eval_transform": "resize"}
    changes = {key: value for key, value in wanted.items() if value is not None}
    for key in [key for key in changes if named.get(key, key) in given]:
        stated_value = changes.pop(key)
        if stated_value != getattr(settings, key):
            shown = getattr(stated_value, "resize", stated_value)
            log.info("--%s overrides the checkpoint's %s", named.get(key, key).replace("_", "-"), shown)
    applied = replace(
        stated, classes=None, **{key: changes.get(key) for key in ("image_size", "eval_transform", "class_order")}
    )
    if applied.text():
        log.info("Images get the preprocessing %s: %s", stated.source, applied.text())
    data = load_data(replace(settings, **changes), on_progress=on_progress)
    names = stated.classes
    if names is None or names == data.classes or "class_order" in given:
        return data
    if sorted(names) == sorted(data.classes):
        log.info("The classes are in the checkpoint's order (%s)", stated.source)
        return load_data(replace(settings, **changes, class_order=names), on_progress=on_progress)
    log.warning(
        "The checkpoint names its classes %s, …; the data set names them %s, …. Their order is assumed to be the same. "
        "Give --class-order FILE if the order differs.",
        ", ".join(names[:2]),
        ", ".join(data.classes[:2]),
    )
    return data


def stated_preprocessing(file: FoundFile) -> Preprocessing:
    """Return the preprocessing that a checkpoint states.

    Raises:
        UserError: If a file beside the checkpoint is damaged.
    """
    if file.path.is_dir():
        return _hugging_face(file.path)
    if file.path.suffix == ".safetensors":
        return _own_writers(file)
    if file.format == "timm":
        return _timm(file.network, file.args)
    if file.format == "torchvision reference":
        return _torchvision(file.args)
    if file.format == "Lightning":
        size = _size(
            next((file.args[key] for key in ("image_size", "img_size", "input_size") if key in file.args), None)
        )
        mean, std = _numbers(file.args.get("mean")), _numbers(file.args.get("std"))
        return Preprocessing(source=f"stated in {file.name}", mean=mean, std=std, image_size=size)
    return Preprocessing()


def _own_writers(file: FoundFile) -> Preprocessing:
    header = storage.read_metadata(file.path)
    mean, std = _numbers(header.get("mean")), _numbers(header.get("std"))
    return Preprocessing(source=f"stated in {file.name}", mean=mean, std=std)


def _hugging_face(folder: Path) -> Preprocessing:
    config, stated = (
        read_object(folder / name) if (folder / name).exists() else {}
        for name in ("config.json", "preprocessor_config.json")
    )
    if "pretrained_cfg" in config:
        timm = config["pretrained_cfg"] if isinstance(config["pretrained_cfg"], dict) else {}
        classes = _names(config.get("label_names"))
        return replace(_of_timm_settings(timm), source="stated in config.json", classes=classes)
    classes = _class_names(config.get("id2label"))
    if not stated:
        return Preprocessing(
            source="stated in config.json", image_size=_size(config.get("image_size")), classes=classes
        )
    size, transform = _hugging_face_size(stated)
    factor = stated.get("rescale_factor", 1 / 255) if stated.get("do_rescale", True) else 1.0
    if not (_is_number(factor) and 0 < factor <= 1):
        raise UserError(
            f"{folder / 'preprocessor_config.json'} is damaged: rescale_factor is {factor!r}. "
            "The factor must be above 0 and at most 1."
        )
    mean, std = _numbers(stated.get("image_mean")), _numbers(stated.get("image_std"))
    # Processors set do_normalize. A file without any do_ key means normalization if image_mean is there.
    others = any(key.startswith("do_") for key in stated)
    if not stated.get("do_normalize", "image_mean" in stated and not others):
        channels = len(mean or ()) or (1 if config.get("num_channels") == 1 else 3)
        mean, std = (0.0,) * channels, (1.0,) * channels
    unit = 255 * factor  # the value of a white pixel before normalization
    if mean and std and stated.get("rescale_offset") is True:  # EfficientNet's processor subtracts 1 after rescaling
        mean = tuple(value + 1 for value in mean)
    if mean and std and unit != 1:
        mean, std = tuple(value / unit for value in mean), tuple(value / unit for value in std)
    divisor = _numbers(stated.get("image_std"))
    # EfficientNet's processor divides by the standard deviation twice.
    if std and divisor and len(std) == len(divisor) and stated.get("include_top") is True:
        std = tuple(value * again for value, again in zip(std, divisor, strict=True))
    return Preprocessing(
        source="stated in preprocessor_config.json",
        mean=mean,
        std=std,
        channel_order="bgr" if stated.get("do_flip_channel_order") is True else None,
        image_size=size,
        eval_transform=transform,
        classes=classes,
    )


def _hugging_face_size(stated: Mapping[str, Any]) -> tuple[int | None, EvalTransform | None]:
    """Return the side of the images in pixels, and the transform that resizes them."""
    asked = stated.get("size") if stated.get("do_resize", True) else None
    crop = _size(stated.get("crop_size")) if stated.get("do_center_crop") else None
    interpolation = PILLOW_FILTERS.get(stated.get("resample"), "bilinear")
    shortest = _size(asked.get("shortest_edge")) if isinstance(asked, dict) else None
    resized = shortest or _size(asked)
    if resized is None:
        return crop, None
    share = stated.get("crop_pct")
    if shortest and crop is None and _is_number(share) and 0.1 <= share < 1 and resized < 384:  # ConvNeXt's processor
        return resized, EvalTransform(crop_share=share, interpolation=interpolation)
    size = min(crop or resized, resized)
    resize = "crop" if shortest and not (_is_number(share) and resized >= 384) else "squash"
    return size, EvalTransform(resize=resize, crop_share=max(size / resized, 0.1), interpolation=interpolation)


def _timm(network: str | None, args: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing with which timm's script evaluates: its options, otherwise timm's for the model."""
    name = (network or "").removeprefix("timm:").partition("?")[0]
    try:
        import timm
        from timm.data.config import resolve_data_config

        known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        settings = {} if known is None else known.to_dict()
        used = {key: value for key, value in args.items() if value is not None}
        settings = resolve_data_config(used, pretrained_cfg=settings)
    except (ImportError, RuntimeError, AttributeError, ValueError, TypeError, AssertionError):
        settings = dict(args)  # timm is missing or refuses an option
    by_file = bool(args.get("class_map"))
    return replace(_of_timm_settings(settings), source="stated by timm", class_order=None if by_file else "timm")


def _of_timm_settings(settings: Mapping[str, Any]) -> Preprocessing:
    shape = settings.get("input_size")
    share, interpolation = settings.get("crop_pct"), settings.get("interpolation")
    transform = None
    if _is_number(share) and 0.1 <= share <= 1:
        transform = EvalTransform(
            resize="squash" if settings.get("crop_mode") == "squash" else "crop",
            crop_share=float(share),
            interpolation="bicubic" if interpolation == "bicubic" else "bilinear",
        )
    return Preprocessing(
        mean=_numbers(settings.get("mean")),
        std=_numbers(settings.get("std")),
        image_size=_size(shape[-1] if isinstance(shape, list | tuple) and shape else settings.get("img_size")),
        eval_transform=transform,
    )


def _torchvision(args: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing with which torchvision's reference script for classification evaluates."""
    size, resized = _size(args.get("val_crop_size")) or 224, _size(args.get("val_resize_size")) or 256
    bicubic = args.get("interpolation") == "bicubic"
    share = min(1.0, max(0.1, size / resized))
    return Preprocessing(
        source="of torchvision's scripts",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        image_size=size,
        eval_transform=EvalTransform(crop_share=share, interpolation="bicubic" if bicubic else "bilinear"),
    )


def _class_names(id2label: Any) -> tuple[str, ...] | None:
    """Return the names in Hugging Face's `id2label`, in the order of the logits."""
    if not isinstance(id2label, dict):
        return None
    return _names([id2label.get(str(number)) for number in range(len(id2label))])


def _names(value: Any) -> tuple[str, ...] | None:
    """Return a list of different names; None for anything else, and for Hugging Face's placeholders."""
    if not (isinstance(value, list | tuple) and value and all(isinstance(name, str) and name for name in value)):
        return None
    placeholders = all(name.startswith("LABEL_") for name in value)
    return tuple(value) if len(set(value)) == len(value) and not placeholders else None


def _numbers(value: Any) -> tuple[float, ...] | None:
    """Return a list of numbers, one for each channel; None for anything else."""
    listed = isinstance(value, list | tuple) and value and all(map(_is_number, value))
    return tuple(map(float, value)) if listed else None


def _size(value: Any) -> int | None:
    """Return the side of a square: of 224, [224], [224, 224] or {"height": 224, "width": 224}; otherwise None."""
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")]
    if isinstance(value, list | tuple) and value and all(side == value[-1] for side in value):
        value = value[-1]
    return value if type(value) is int and 8 <= value <= 4096 else None


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)
