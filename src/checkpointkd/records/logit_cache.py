"""The record of an entry of the logit cache."""

from __future__ import annotations

from typing import Any, Literal

from ..config import Augmentation, Precision
from .base import Count, Name, Record


class ViewsRecord(Record, frozen=True):
    """The views of each image: crops of the image padded by `pad` pixels, and with `flip` their mirror images."""

    pad: Count
    flip: bool


class FixedViewsRecord(Record, frozen=True, omit_defaults=True, kw_only=True):
    """A few fixed augmented views of each image, and the versions of the packages that make them."""

    augmentation: Augmentation
    size: tuple[int, int]
    flip: bool
    pad: Count | None = None  # of small images; None for random resized crops
    pillow: str | None = None
    torchvision: str | None = None


class LogitManifest(Record, frozen=True, omit_defaults=True, kw_only=True):
    """manifest.json of an entry of the logit cache: all that one teacher's logits follow from. Its hash is the key."""

    format: Literal[1] = 1
    teacher: str  # content hash of the weights, normalization included
    model: Name
    images: str  # content hash
    views: ViewsRecord | None  # None for clean images
    rows: Count
    classes: Count
    precision: Precision
    device: str
    batch_size: Count  # images in one forward pass
    versions: dict[str, str]
    network_config: dict[str, Any] | None = None  # of `hf:FOLDER`
    fixed_views: FixedViewsRecord | None = None  # of --views, where images are streamed or changed by torchvision
    top_k: Count | None = None  # the largest logits that are stored; None for all
