"""Read Hugging Face's preprocessor_config.json as transformers does: sizes, crops, interpolation, normalization.

What `size` means depends on the class of the processor. Without a class in the file, the model type decides. The
tables follow transformers 5. Nothing is imported from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import EvalTransform, Interpolation, Resize
from ..errors import UserError
from ..models.hugging_face import read_object
from .preprocessing import Preprocessing, is_number, names, numbers, square_size, with_interpolation

FILE = "preprocessor_config.json"
PILLOW_FILTERS: dict[Any, Interpolation] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"
}  # fmt: skip


@dataclass(frozen=True)
class _Processor:
    """How a class of processors reads its file."""

    shortest_edge: bool = False  # an integer size is the shorter side; otherwise it is both sides
    crop: int | None = None  # the side of the center crop where the file has none; None: no crop by default
    interpolation: Interpolation = "bilinear"  # where the file has none
    crop_pct: float | None = None  # where the file has none


_EDGE = _Processor(True, 224, "bicubic")
_SQUARE = _Processor(interpolation="bicubic")
PROCESSORS = {  # classes of image classifiers, without ImageProcessor and FeatureExtractor, in small letters
    "beit": _SQUARE,
    "bit": _EDGE,
    "chineseclip": _EDGE,
    "clip": _EDGE,
    "convnext": _Processor(True, None, "bicubic", 224 / 256),
    "deit": _Processor(False, 224, "bicubic"),
    "efficientnet": _SQUARE,
    "levit": _EDGE,
    "mobilenetv1": _Processor(True, 224),
    "mobilenetv2": _Processor(True, 224),
    "mobilevit": _Processor(True, 256, "bicubic"),
    "perceiver": _Processor(False, 256, "bicubic"),
    "poolformer": _Processor(True, 224, "bicubic", 0.9),
    "pplcnet": _Processor(False, 224),
    "pvt": _SQUARE,
    "siglip": _SQUARE,
    "textnet": _Processor(True),
}
NOT_SQUARE = {"donut", "imagegpt", "siglip2"}  # other classes, whose outputs are no squares of pixels
MODEL_TYPES = {  # the processor of a model where the file names none
    **dict.fromkeys(("beit", "data2vec-vision"), "beit"),
    **dict.fromkeys(("bit", "dinov2", "dinov2_with_registers", "focalnet", "hiera"), "bit"),
    **dict.fromkeys(("clip", "metaclip_2"), "clip"),
    **dict.fromkeys(("convnext", "convnextv2", "cvt", "regnet", "resnet", "van"), "convnext"),
    **dict.fromkeys(("mobilevit", "mobilevitv2"), "mobilevit"),
    **dict.fromkeys(("pvt", "pvt_v2"), "pvt"),
    "donut-swin": "donut",
    "mobilenet_v1": "mobilenetv1",
    "mobilenet_v2": "mobilenetv2",
    "pp_lcnet": "pplcnet",
}


def hf_preprocessing(folder: Path, config: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that a folder of Hugging Face states.

    Args:
        folder: The folder, with or without a preprocessor_config.json.
        config: The content of its config.json.

    Raises:
        UserError: If a file is damaged.
    """
    classes = _class_names(config.get("id2label"))
    if not (folder / FILE).exists():
        size = config.get("image_size")
        wrong = "" if size is None or square_size(size) else f"config.json has the image size {size}"
        return Preprocessing(
            source="stated in config.json", image_size=square_size(size), not_square=wrong, classes=classes
        )
    stated = read_object(folder / FILE)
    kind = _kind(stated, config)
    resized = _resizing(stated, kind)
    factor = stated.get("rescale_factor", 1 / 255) if stated.get("do_rescale", True) else 1.0
    if not (is_number(factor) and 0 < factor <= 1):
        raise UserError(
            f"{folder / FILE} is damaged: rescale_factor is {factor!r}. The factor must be above 0 and at most 1."
        )
    channels = 1 if config.get("num_channels") == 1 else 3
    mean, std = (numbers(stated.get(key), channels=channels) for key in ("image_mean", "image_std"))
    divisor = std
    # Processors set do_normalize. A file without any do_ key means normalization if image_mean is there.
    others = any(key.startswith("do_") for key in stated)
    if not stated.get("do_normalize", "image_mean" in stated and not others):
        channels = len(mean or ()) or channels
        mean, std = (0.0,) * channels, (1.0,) * channels
    elif (mean is None) != (std is None):
        present, absent = ("image_mean", "image_std") if std is None else ("image_std", "image_mean")
        sentence = f"{FILE} has {present} without a usable {absent}, so both are ignored. Give --mean and --std."
        resized = replace(resized, notes=(*resized.notes, ("mean", sentence)))
    unit = 255 * factor  # the value of a white pixel before normalization
    if mean and std and stated.get("rescale_offset") is True:  # EfficientNet's processor subtracts 1 after rescaling
        mean = tuple(value + 1 for value in mean)
    if mean and std and unit != 1:
        mean, std = tuple(value / unit for value in mean), tuple(value / unit for value in std)
    # EfficientNet's processor divides by the standard deviation twice.
    if std and divisor and stated.get("include_top", kind == "efficientnet") is True:
        std = tuple(value * again for value, again in zip(std, divisor, strict=True))
    if kind == "pplcnet" and mean and std:  # it normalizes, then reverses the channels
        mean, std = mean[::-1], std[::-1]
    reversed_order = kind == "pplcnet" or stated.get("do_flip_channel_order", kind == "mobilevit") is True
    return replace(
        resized,
        source=f"stated in {FILE}",
        mean=mean,
        std=std,
        channel_order="bgr" if reversed_order else None,
        classes=classes,
    )


def _kind(stated: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the class of the processor, in small letters and without its ending; "" if nothing tells it."""
    for key in ("image_processor_type", "feature_extractor_type"):
        if isinstance(name := stated.get(key), str):
            return re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", name).lower()
    model = str(config.get("model_type") or "")
    if not model and "crop_pct" in stated:  # only these two have this key
        return "poolformer" if stated.get("do_center_crop") else "convnext"
    return MODEL_TYPES.get(model, model)


def _resizing(stated: Mapping[str, Any], kind: str) -> Preprocessing:
    """Return image size and transform, or why they are unknown."""
    processor, asked = PROCESSORS.get(kind, _Processor()), stated.get("size")
    if kind in NOT_SQUARE:
        return Preprocessing(not_square=f"{FILE} describes a processor of the kind {kind}")
    resample = stated.get("resample")
    known = PILLOW_FILTERS.get(resample) if type(resample) is int else None
    interpolation, warning = with_interpolation(resample, known, processor.interpolation)
    notes = (("", warning),) if warning else ()
    crop_wanted = stated.get("do_center_crop", processor.crop is not None)
    crop_asked = stated.get("crop_size", processor.crop) if crop_wanted else None
    crop = square_size(crop_asked)
    if crop_asked is not None and crop is None:
        return Preprocessing(not_square=f"{FILE} has the crop size {crop_asked}", notes=notes)
    if not stated.get("do_resize", True):
        sentence = f"{FILE} says that images are not resized (do_resize). Give --image-size and --resize."
        return Preprocessing(image_size=crop, notes=(*notes, ("image_size", sentence)))
    if asked is None:
        return Preprocessing(image_size=crop, notes=notes)
    by_edge = isinstance(asked, dict) and "shortest_edge" in asked
    edge = square_size(asked["shortest_edge"] if by_edge else asked)
    by_edge = by_edge or (processor.shortest_edge and not isinstance(asked, dict))
    if edge is None or (isinstance(asked, dict) and asked.get("longest_edge")):
        return Preprocessing(not_square=f"{FILE} has the size {asked}", notes=notes)
    if by_edge and crop is None and kind != "convnext":
        return Preprocessing(not_square=f"{FILE} has the size {asked} and no crop", notes=notes)
    resize, resized, size = _sides(kind, stated, edge=edge, crop=crop)
    if resize is None:
        resize = "crop" if by_edge else "squash"
    if not 0.1 <= size / resized <= 2:
        return Preprocessing(not_square=f"{FILE} crops {size} pixels from {resized}", notes=notes)
    transform = EvalTransform(
        resize=resize,
        crop_share=size / resized,
        interpolation=interpolation,
        crop_offset="floor" if resize == "crop" or size != resized else "round",
    )
    return Preprocessing(image_size=size, eval_transform=transform, notes=notes)


def _sides(kind: str, stated: Mapping[str, Any], *, edge: int, crop: int | None) -> tuple[Resize | None, int, int]:
    """Return how this kind of processor resizes (None: as `size` says), to how many pixels, and the side of the crop.

    Args:
        kind: The class of the processor.
        stated: The content of the file.
        edge: The stated size.
        crop: The stated side of the crop.
    """
    share = stated.get("crop_pct", PROCESSORS.get(kind, _Processor()).crop_pct)
    share = share if is_number(share) and 0.1 <= share <= 1 else 1.0
    if kind == "convnext":
        return ("squash", edge, edge) if edge >= 384 else ("crop", int(edge / share), edge)
    if kind == "poolformer":
        return "crop", int(edge / share), crop or edge
    if kind == "levit":
        return None, int(256 / 224 * edge), crop or edge
    if kind == "pplcnet":
        return "crop", square_size(stated.get("resize_short", 256)) or edge, crop or edge
    if kind == "perceiver" and crop is not None:  # it crops the share edge / crop of an image, then resizes
        return "crop", crop, edge
    return None, edge, crop or edge


def _class_names(id2label: Any) -> tuple[str, ...] | None:
    """Return the names in Hugging Face's `id2label`, in the order of the logits."""
    if not isinstance(id2label, dict):
        return None
    return names([id2label.get(str(number)) for number in range(len(id2label))])
