"""Read the preprocessing that a checkpoint states: image size, normalization, channel order, order of classes.

The sources are Hugging Face's preprocessor_config.json and config.json, and the options that timm's, torchvision's and
Lightning's checkpoints hold. For timm's models, timm's own settings are a source, too.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from .. import storage
from ..config import DataConfig, EvalTransform, Interpolation, NamedOrder, OnProgress, Resize
from ..data import Data, load_data
from ..errors import UserError
from ..models.hugging_face import read_object
from .formats import FoundFile
from .hf_preprocessor import hf_preprocessing
from .preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    is_number,
    names,
    numbers,
    square_size,
    with_interpolation,
)

log = logging.getLogger("checkpointkd")

RESIZED = ("folder", "imagenet", "hf")  # data sets whose images are resized; others keep their size
SIZES = ("image_size", "img_size", "input_size")  # names of options


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
        UserError: As `load_data` does; or if the checkpoint states images that are not square, and no size is given.
    """
    for option, warning in stated.notes:
        if option not in given:
            log.warning("%s", warning)
    wanted: dict[str, Any] = {}
    if settings.data.partition(":")[0] in RESIZED:
        wanted = {"image_size": stated.image_size, "eval_transform": stated.eval_transform}
        if stated.not_square and "image_size" not in given:
            raise UserError(
                f"The preprocessing of the checkpoint is not understood: {stated.not_square}. Give `checkpointkd "
                "inspect` the --image-size of square images, and --resize."
            )
    if settings.data.startswith("folder:"):
        wanted["class_order"] = stated.class_order
    changes = {key: value for key, value in wanted.items() if value is not None}
    for key in ("image_size", "class_order"):
        if key in changes and key in given and (stated_value := changes.pop(key)) != getattr(settings, key):
            log.info("--%s overrides the checkpoint's %s", key.replace("_", "-"), stated_value)
    if "eval_transform" in changes and "resize" in given and stated.eval_transform is not None:
        changes["eval_transform"] = stated.eval_transform.resized_by(settings.eval_transform.resize)
        if changes["eval_transform"] != stated.eval_transform:
            log.info("--resize overrides the checkpoint's %s", stated.eval_transform.resize)
    applied = replace(
        stated, classes=None, **{key: changes.get(key) for key in ("image_size", "eval_transform", "class_order")}
    )
    if applied.text():
        log.info("Images get the preprocessing %s: %s", stated.source, applied.text())
    data = load_data(replace(settings, **changes), on_progress=on_progress)
    height, width = data.train.shape[1:]
    if not wanted.get("image_size") and stated.image_size not in (None, height, width):
        log.warning(
            "The checkpoint takes images of %d×%d pixels (%s), but the images of %s keep their %d×%d pixels. Images of "
            "hf:PATH and folder:PATH are resized.",
            stated.image_size,
            stated.image_size,
            stated.source,
            settings.data,
            height,
            width,
        )
    classes = stated.classes
    if classes is None or classes == data.classes or "class_order" in given:
        return data
    if sorted(classes) == sorted(data.classes):
        log.info("The classes are in the checkpoint's order (%s)", stated.source)
        return load_data(replace(settings, **changes, class_order=classes), on_progress=on_progress)
    log.warning(
        "The checkpoint names its classes %s, …; the data set names them %s, …. Their order is assumed to be the same. "
        "Give --class-order FILE if the order differs.",
        ", ".join(classes[:2]),
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
        return _training_script(file)
    if file.format == "Lightning":
        return _options(file)
    return Preprocessing()


def _own_writers(file: FoundFile) -> Preprocessing:
    header = storage.read_metadata(file.path)
    mean, std = numbers(header.get("mean")), numbers(header.get("std"))
    return Preprocessing(source=f"stated in {file.name}", mean=mean, std=std)


def _hugging_face(folder: Path) -> Preprocessing:
    config = read_object(folder / "config.json") if (folder / "config.json").exists() else {}
    if "pretrained_cfg" not in config:
        return hf_preprocessing(folder, config)
    settings = config["pretrained_cfg"] if isinstance(config["pretrained_cfg"], dict) else {}
    return replace(
        _of_timm_settings(settings), source="stated in config.json", classes=names(config.get("label_names"))
    )


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
    settings["crop_mode"] = args.get("crop_mode")  # timm's script ignores the model's crop mode
    stated = replace(_of_timm_settings(settings), source="stated by timm")
    if args.get("class_map"):
        sentence = (
            f"The checkpoint's order of classes is in the file {args['class_map']} (timm's class_map), which is not "
            "read. Give --class-order FILE with one class name per line, in this order."
        )
        return replace(stated, notes=(*stated.notes, ("class_order", sentence)))
    return replace(stated, class_order=_timm_order(str(args.get("dataset") or "")))


def _timm_order(dataset: str) -> NamedOrder | None:
    """Return the order of classes in timm's data set of this name; None if it does not follow from folders' names."""
    prefix, slash, name = dataset.lower().partition("/")
    if prefix == "torch" and slash:  # torchvision's ImageFolder
        return "names" if name in ("image_folder", "folder") else None
    return None if slash and prefix in ("hfds", "hfids", "tfds", "wds") else "timm"


def _of_timm_settings(settings: Mapping[str, Any]) -> Preprocessing:
    shape, share, mode = settings.get("input_size"), settings.get("crop_pct"), settings.get("crop_mode")
    asked = shape if isinstance(shape, list | tuple) and shape else settings.get("img_size")
    size, stated = square_size(asked), settings.get("interpolation")
    known = next((name for name in get_args(Interpolation) if name == stated), None)
    interpolation, warning = with_interpolation(stated, known, "bicubic")
    notes = [("", warning)] if warning else []
    if mode not in (None, "", "center", "squash"):
        notes.append(("resize", f"timm's crop mode {mode!r} is not supported. Images are cropped at the center."))
    transform = None
    if is_number(share) and 0.1 <= share <= 2:
        resize: Resize = "squash" if mode == "squash" else "crop"
        transform = EvalTransform(resize=resize, crop_share=float(share), interpolation=interpolation)
    return Preprocessing(
        mean=numbers(settings.get("mean")),
        std=numbers(settings.get("std")),
        image_size=size,
        eval_transform=transform,
        not_square="" if asked is None or size else f"timm's input size is {asked}",
        notes=tuple(notes),
    )


def _training_script(file: FoundFile) -> Preprocessing:
    """Return the preprocessing with which torchvision's, DeiT's or another script evaluates, which saved this file.

    Such scripts save the same entries. Their options tell which one it was.
    """
    args = file.args
    own_size = any(key in args for key in SIZES)
    if "val_crop_size" in args or "val_resize_size" in args or ("cache_dataset" in args and not own_size):
        size, resized = square_size(args.get("val_crop_size")) or 224, square_size(args.get("val_resize_size")) or 256
        stated = args.get("interpolation")
        known = next((name for name in get_args(Interpolation) if name == stated), None)
        interpolation, warning = with_interpolation(stated, known, "bilinear")
        return Preprocessing(
            source="of torchvision's scripts",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            image_size=size,
            eval_transform=EvalTransform(crop_share=min(2.0, max(0.1, size / resized)), interpolation=interpolation),
            notes=(("", warning),) if warning else (),
        )
    stated_options = _options(file)
    if "data_set" not in args or stated_options.mean is not None or stated_options.image_size is None:
        return stated_options
    share = args.get("eval_crop_ratio")
    share = share if is_number(share) and 0.1 <= share <= 1 else 224 / 256
    transform = EvalTransform(crop_share=share, interpolation="bicubic") if stated_options.image_size > 32 else None
    return replace(
        stated_options, source="of DeiT's script", mean=IMAGENET_MEAN, std=IMAGENET_STD, eval_transform=transform
    )


def _options(file: FoundFile) -> Preprocessing:
    """Return the preprocessing in a script's options, by their usual names."""
    asked = next((file.args[key] for key in SIZES if key in file.args), None)
    size = square_size(asked)
    return Preprocessing(
        source=f"stated in {file.name}",
        mean=numbers(file.args.get("mean")),
        std=numbers(file.args.get("std")),
        image_size=size,
        not_square="" if asked is None or size else f"{file.name} has the image size {asked}",
    )
