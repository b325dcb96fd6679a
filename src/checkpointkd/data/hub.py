"""Data sets of the Hugging Face Hub, or folders that its `datasets` library reads: `hf:NAME`, `hf:NAME:CONFIGURATION`.

Small images of one size are decoded once and stay in memory. Larger images are streamed.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import DataConfig, OnProgress
from ..errors import UserError
from ..records.base import read_bytes
from .cache import Decoded, cached_decode, content_key
from .datasets import DataSet
from .image_io import decode_all, require_pillow
from .images import Images
from .in_memory import in_memory
from .streaming import StreamingImages, sample_digest
from .views import Views

ORIENTATION = 0x0112  # in EXIF; from 5 to 8, width and height are exchanged
SMALL = 64  # the largest side, in pixels, of images that stay in memory
TEST_SPLITS = ("test", "validation", "valid", "val")
LABELS = ("fine_label", "label", "labels", "cls")  # preferred if there are several


def hub(path: str | None, settings: DataConfig, on_progress: OnProgress) -> DataSet:
    """Return a data set of the Hugging Face Hub."""
    if path is None:
        raise UserError("Give the data set's name on the Hugging Face Hub: hf:NAME")
    datasets = _library()
    require_pillow(f"hf:{path}")
    splits = _load(datasets, path)
    if "train" not in splits:
        raise UserError(f"hf:{path} has no split train (splits: {', '.join(splits)})")
    features = splits["train"].features
    splits = _with_classes(datasets, splits, path)
    features = splits["train"].features
    image, label = _columns(datasets, features, path)
    classes = tuple(features[label].names)
    side, flip = settings.image_size or 224, settings.flip is not False
    test = _test_split(splits, label, path)
    val = _val_split(splits, label, test, path, settings)
    used = ("train", test) if val is None else ("train", test, val)
    labels = {split: _checked_labels(splits, split, label, path) for split in used}
    roots = _readable_folders(path)

    def encoded(split: str) -> HubImages:
        rows = splits[split].cast_column(image, datasets.Image(decode=False))
        return HubImages(f"hf:{path}", split, rows, image, roots)

    def streamed(split: str) -> Images:
        digest, numbers_N = sample_digest(encoded(split), len(labels[split])), torch.arange(len(labels[split]))
        return StreamingImages(encoded(split), digest, labels[split], numbers_N, side, flip, settings.eval_transform)

    def small(split: str, size: tuple[int, int]) -> Images:
        def decode() -> Decoded:
            task = f"decode {split} images"
            remedy = ". Give --image-size N, which resizes images and streams them."
            pixels_NCHW = decode_all(
                encoded(split), len(labels[split]), size=size, task=task, on_progress=on_progress, remedy=remedy
            )
            return pixels_NCHW, labels[split]

        sources = [Path(file["filename"]) for file in splits[split].cache_files]
        version = f"hf 2 {split} {image} {label}"
        if sources and encoded(split).embedded():
            decoded = cached_decode(content_key(sources, version=version), decode)
        else:  # the library's files hold only paths, which do not identify the content
            decoded = decode()
        return in_memory(*decoded, source=f"hf:{path}, split {split},", classes=classes, views=Views(pad=4, flip=flip))

    if len(splits["train"]) == 0:
        raise UserError(f"hf:{path} has no image in its split train")
    size = None if settings.image_size is not None else _small_size(encoded("train"))
    if size is None:
        return DataSet(
            classes,
            train=lambda: streamed("train"),
            test=lambda: streamed(test),
            val=None if val is None else lambda: streamed(val),
            recipe="adamw" if side > SMALL else "cifar100",
        )
    return DataSet(
        classes,
        train=lambda: small("train", size),
        test=lambda: small(test, size),
        val=None if val is None else lambda: small(val, size),
        recipe="cifar100",
    )


@dataclass(frozen=True, eq=False)
class HubImages:
    """The encoded images of a split."""

    data: str
    split: str
    rows: Any  # a datasets.Dataset
    column: str
    roots: tuple[str, ...]  # folders in which images may lie
    turns: ClassVar[bool] = True  # as the library does when it decodes

    def read(self, number: int) -> bytes:
        """Return the bytes of an image."""
        entry = self.rows[number][self.column] or {}
        if entry.get("bytes") or not entry.get("path"):
            return entry.get("bytes") or b""
        path = os.path.abspath(entry["path"])
        if not any(path.startswith(os.path.join(root, "")) for root in self.roots):
            raise UserError(
                f"{self.name(number)} names the file {path}, which is not in the data set's own "
                "folder. Copy the file there."
            )
        return read_bytes(Path(path))

    def embedded(self) -> bool:
        """Return whether the library's own files hold the images, and not paths to them."""
        return bool((self.rows[0][self.column] or {}).get("bytes"))

    def name(self, number: int) -> str:
        """Return the image's name for errors."""
        return f"image {number} in {self.split} of {self.data}"


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("hf:NAME needs Hugging Face's datasets. Run: pip install 'checkpointkd[hub]'.") from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _readable_folders(path: str) -> tuple[str, ...]:
    """Return the folders in which a data set's images may lie: its own, and the libraries' caches."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH, HF_HUB_CACHE)
    own = path.partition(":")[0]
    return tuple(os.path.abspath(folder) for folder in (*caches, *([own] if os.path.exists(own) else [])))


def _checked_labels(splits: Any, split: str, label: str, path: str) -> Tensor:
    """Return the labels of a split; raise UserError if one is missing or not among the classes."""
    names = splits["train"].features[label].names
    values = splits[split][label][:]
    bad = sum(value is None or not 0 <= value < len(names) for value in values)
    if bad:
        raise UserError(
            f"{bad} labels in hf:{path}, split {split}, are missing or not among the {len(names)} classes, which are "
            "numbered from 0. Correct these labels, or remove their rows."
        )
    return torch.tensor(values)


def _test_split(splits: Any, label: str, path: str) -> str:
    """Return the name of the first split to test on that has labels."""
    for split in TEST_SPLITS:
        if _is_labeled(splits, split, label):
            return split
    raise UserError(f"hf:{path} has no labeled split {', '.join(TEST_SPLITS)} to test on (splits: {', '.join(splits)})")


def _val_split(splits: Any, label: str, test: str, path: str, settings: DataConfig) -> str | None:
    """Return the name of the split to validate on: --val, or one beside `test`; None without such a split."""
    if settings.val is None:
        beside = [split for split in TEST_SPLITS[1:] if test == "test" and _is_labeled(splits, split, label)]
        return beside[0] if beside else None
    if settings.val in ("train", test) or not _is_labeled(splits, settings.val, label):
        usable = [split for split in splits if split not in ("train", test) and _is_labeled(splits, split, label)]
        raise UserError(
            f"--val {settings.val} names no labeled split of hf:{path} beside train and the test split {test}. "
            f"Such splits: {', '.join(usable) or 'none'}"
        )
    return settings.val


def _is_labeled(splits: Any, split: str, label: str) -> bool:
    """Return whether there is a split of this name whose images all have a label."""
    if split not in splits or label not in splits[split].features:
        return False
    values = splits[split][label][:]
    return len(values) > 0 and all(value is not None and value >= 0 for value in values)


def _load(datasets: Any, path: str) -> Any:
    name, _, configuration = path.partition(":")
    if not os.path.exists(name) and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise UserError(f"There is no folder {name}. A data set of the Hub has a name such as uoft-cs/cifar10.")
    try:
        return datasets.load_dataset(name, configuration or None)
    except Exception as error:  # the library raises many kinds
        raise UserError(f"Could not load hf:{path}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _with_classes(datasets: Any, splits: Any, path: str) -> Any:
    """Return the splits with class labels; labels that are words, or numbers from 0 on, are converted."""
    features = splits["train"].features
    kinds = [type(feature) for feature in features.values()]
    if datasets.ClassLabel in kinds or datasets.Image not in kinds:
        return splits
    label = next((name for name in LABELS if isinstance(features.get(name), datasets.Value)), None)
    if label is None:
        return splits
    labeled = [split for split in splits if label in splits[split].features]
    values = {value for split in labeled for value in splits[split].unique(label)}
    if not values or {type(value) for value in values} not in ({str}, {int}):
        raise UserError(
            f"hf:{path} has labels in the column {label!r} that are missing or not whole. Labels must be words, or "
            "whole numbers from 0 on."
        )
    names = sorted(values, key=lambda value: unicodedata.normalize("NFC", value) if isinstance(value, str) else value)
    for first, second in itertools.pairwise(names):
        if isinstance(first, str) and unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second):
            raise UserError(
                f"hf:{path} has two spellings of the class {first!r} in {label!r}, which differ only in "
                "Unicode normalization. Give all labels one spelling."
            )
    if not isinstance(names[0], str) and names != list(range(len(names))):
        raise UserError(
            f"hf:{path} has the labels {names[0]} to {names[-1]} in {label!r}. Renumber them from 0 on, without gaps."
        )
    classes = datasets.ClassLabel(names=[str(value) for value in names])
    return datasets.DatasetDict({split: splits[split].cast_column(label, classes) for split in labeled})


def _columns(datasets: Any, features: Any, path: str) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    label = labels if len(labels) == 1 else [name for name in LABELS if name in labels][:1]
    if not (len(images) == 1 and len(label) == 1):
        raise UserError(
            f"hf:{path} must have one column of images and one of class labels (columns: "
            f"{', '.join(f'{name}: {type(feature).__name__}' for name, feature in features.items())}). "
            "Labels may also be words, or numbers from 0 on, in a column named label."
        )
    return images[0], label[0]


def _small_size(images: HubImages) -> tuple[int, int] | None:
    """Return height and width of the first image; None if it is not small. Only its header is read."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(images.read(0)))
        width, height = image.size[::-1] if image.getexif().get(ORIENTATION) in (5, 6, 7, 8) else image.size
    except Exception:  # Pillow raises anything for broken files
        raise UserError(f"Could not decode {images.name(0)}") from None
    return (height, width) if max(width, height) <= SMALL else None
