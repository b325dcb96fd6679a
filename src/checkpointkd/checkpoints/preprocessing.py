"""The preprocessing that a checkpoint states, and the parts that its files are read with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..config import ChannelOrder, EvalTransform, Interpolation, NamedOrder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The preprocessing and the classes that a checkpoint states. A value that is not stated is None.

    Attributes:
        source: Where the values are from, as in "stated in config.json".
        mean: The mean of each channel of images in [0, 1], in the network's channel order.
        std: The standard deviation of each channel, likewise.
        not_square: What the checkpoint states instead of a square image size, for an error.
        notes: An option, and a warning to give if the user does not give that option.
    """

    source: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_order: ChannelOrder | None = None
    image_size: int | None = None
    eval_transform: EvalTransform | None = None
    classes: tuple[str, ...] | None = None
    class_order: NamedOrder | None = None
    not_square: str = ""
    notes: tuple[tuple[str, str], ...] = ()

    def text(self) -> str:
        """Return the stated values except mean and std, as text for a message."""
        transform = self.eval_transform
        parts = [
            self.image_size and f"{self.image_size} pixels",
            transform and f"{transform.resize} with crop share {transform.crop_share:.3g}, {transform.interpolation}",
            self.channel_order == "bgr" and "channels in the order blue, green, red",
            self.class_order
            and ("classes sorted by name" if self.class_order == "names" else "timm's order of classes"),
        ]
        return ", ".join(part for part in parts if part)


def with_interpolation(value: Any, named: Interpolation | None, default: Interpolation) -> tuple[Interpolation, str]:
    """Return the interpolation to use, and a warning if the stated one is unknown.

    Args:
        value: What the file states; None or an empty text for nothing.
        named: Our name of this interpolation, if there is one.
        default: The one to use otherwise.
    """
    if named is not None or value in (None, ""):
        return named or default, ""
    return default, f"The stated interpolation {value!r} is unknown. {default.capitalize()} interpolation is used."


def names(value: Any) -> tuple[str, ...] | None:
    """Return a list of different names; None for anything else, and for Hugging Face's placeholders."""
    if not (isinstance(value, list | tuple) and value and all(isinstance(name, str) and name for name in value)):
        return None
    placeholders = all(name.startswith("LABEL_") for name in value)
    return tuple(value) if len(set(value)) == len(value) and not placeholders else None


def numbers(value: Any, *, channels: int = 0) -> tuple[float, ...] | None:
    """Return a list of numbers, one for each channel; None for anything else.

    With `channels`, a single number stands for so many equal ones.
    """
    if channels and is_number(value):
        return (float(value),) * channels
    listed = isinstance(value, list | tuple) and value and all(map(is_number, value))
    return tuple(map(float, value)) if listed else None


def square_size(value: Any) -> int | None:
    """Return the side of a square: of 224, [224, 224], [3, 224, 224] or {"height": 224, "width": 224}; else None."""
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")]
    if isinstance(value, list | tuple) and value:
        sides = value[1:] if len(value) == 3 else value
        value = sides[0] if all(side == sides[0] for side in sides) else None
    return value if type(value) is int and 8 <= value <= 4096 else None


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether this is a finite number and no bool."""
    return type(value) in (int, float) and math.isfinite(value)
