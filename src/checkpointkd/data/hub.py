"""Data sets of the Hugging Face Hub, or folders that its library reads: `hf:NAME`, `hf:NAME:CONFIGURATION`.

Small images, all of one size, are decoded once and stay in memory; larger ones are streamed.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import DataConfig, OnProgress
from ..errors import UserError
from .cache import Decoded, cached_decode, content_key
from .datasets import DataSet
from .image_io import decode_all, needs_pillow
from .images import Images, in_memory
from .streaming import StreamingImages
from .views import Views

SMALL = 64  # pixels a side up to which images stay in memory
TESTS = ("test", "validation", "valid", "val")
LABELS = ("fine_label", "label", "labels")  # preferred where there are several


def hub(path: str | None, settings: DataConfig, tell: OnProgress) -> DataSet:
    """A data set of the Hugging Face Hub."""
    if path is None:
        raise UserError("say which data set of the Hugging Face Hub: hf:NAME")
    assert path is not None
    datasets = _library()
    needs_pillow(f"hf:{path}")
    splits = _load(datasets, path)
    if "train" not in splits:
        raise UserError(f"hf:{path} has no split called train (its splits: {', '.join(splits)})")
    features = splits["train"].features
    image, label = _columns(datasets, features, path)
    classes = tuple(features[label].names)
    flip = settings.flip is not False
    test = _test_split(splits, label, path)

    def pictures(split: str) -> HubImages:
        return HubImages(f"hf:{path}", split, splits[split].cast_column(image, datasets.Image(decode=False)), image)

    def streamed(split: str) -> Images:
        labels_N = torch.tensor(splits[split][label][:])
        bad = int((labels_N < 0).sum())
        if bad != 0:
            raise UserError(f"{bad} images of hf:{path}, split {split}, have no label")
        side = settings.image_size or 224
        # Its name is its identity, beside the labels: reading the content of a large data set would take hours.
        name = str(Path(path).resolve()) if Path(path).exists() else path
        digest = f"{name} {split}"
        return StreamingImages(pictures(split), digest, labels_N, torch.arange(len(labels_N)), side, flip=flip)

    def small(split: str, size: tuple[int, int]) -> Images:
        def decode() -> Decoded:
            labels_N = torch.tensor(splits[split][label][:])
            task = f"decode {split} images"
            way_out = "; --image-size N brings pictures of any size to one, and streams them"
            pixels_NCHW = decode_all(pictures(split), len(labels_N), size=size, task=task, tell=tell, way_out=way_out)
            return pixels_NCHW, labels_N

        sources = [Path(file["filename"]) for file in splits[split].cache_files]
        version = f"hf 1 {split} {image} {label}"
        if sources and pictures(split).inside():
            decoded = cached_decode(content_key(sources, version=version), decode)
        else:  # the library's files hold the pictures' paths only, which say nothing of their content
            decoded = decode()
        return in_memory(*decoded, what=f"hf:{path}, split {split},", classes=classes, views=Views(pad=4, flip=flip))

    if not len(splits["train"]) > 0:
        raise UserError(f"hf:{path} has no image in its split train")
    size = None if settings.image_size is not None else _small(pictures("train"))
    if size is None:
        return DataSet(
            classes,
            train=lambda: streamed("train"),
            test=lambda: streamed(test),
            recipe="imagenet" if (settings.image_size or 224) > SMALL else "cifar100",
        )
    return DataSet(classes, train=lambda: small("train", size), test=lambda: small(test, size), recipe="cifar100")


@dataclass(frozen=True, eq=False)
class HubImages:
    """The encoded pictures of a split."""

    what: str
    split: str
    rows: Any  # a datasets.Dataset
    column: str

    def read(self, number: int) -> bytes:
        entry = self.rows[number][self.column] or {}
        if entry.get("bytes") or not entry.get("path"):
            return entry.get("bytes") or b""
        try:
            return Path(entry["path"]).read_bytes()
        except OSError as error:
            raise UserError(f"{self.name(number)} can't be read at {entry['path']}: {error.strerror}") from None

    def inside(self) -> bool:
        """Whether the pictures are in the library's own files, and not elsewhere."""
        return bool((self.rows[0][self.column] or {}).get("bytes"))

    def name(self, number: int) -> str:
        return f"image {number} in {self.split} of {self.what}"


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("hf:NAME needs Hugging Face's datasets; pip install 'checkpointkd[hub]'") from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _test_split(splits: Any, label: str, path: str) -> str:
    """The name of the first split to test on whose labels are known."""
    for split in TESTS:
        if split in splits and label in splits[split].features and min(splits[split][label][:], default=-1) >= 0:
            return split
    raise UserError(f"hf:{path} has no labeled split to test on ({', '.join(TESTS)}; its splits: {', '.join(splits)})")


def _load(datasets: Any, path: str) -> Any:
    name, _, configuration = path.partition(":")
    try:
        return datasets.load_dataset(name, configuration or None)
    except Exception as error:  # the library raises dozens of kinds
        raise UserError(f"hf:{path} can't be loaded: {' '.join(str(error).split()) or type(error).__name__}") from None


def _columns(datasets: Any, features: Any, path: str) -> tuple[str, str]:
    """The columns of images and of labels."""
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    label = labels if len(labels) == 1 else [name for name in LABELS if name in labels][:1]
    if not (len(images) == 1 and len(label) == 1):
        raise UserError(
            f"hf:{path} must have one column of images and one of class labels (its columns: "
            f"{', '.join(f'{name}: {type(feature).__name__}' for name, feature in features.items())})"
        )
    return images[0], label[0]


def _small(pictures: HubImages) -> tuple[int, int] | None:
    """Height and width of the first image if it is a small one; only its header is read."""
    from PIL import Image

    try:
        width, height = Image.open(io.BytesIO(pictures.read(0))).size
    except (OSError, IndexError):
        raise UserError(f"{pictures.name(0)} can't be read") from None
    return (height, width) if max(width, height) <= SMALL else None
