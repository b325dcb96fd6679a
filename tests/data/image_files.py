"""Real images in files: scikit-learn's digits, enlarged, in several formats."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

_PIXELS_NHW = (load_digits().images * 15).astype(np.uint8)
_LABELS_N = load_digits().target


def digit(label: int, number: int, *, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Image.Image:
    """Return the image of a digit, of size (width, height). In color it has a tint."""
    gray = Image.fromarray(_PIXELS_NHW[label == _LABELS_N][number]).resize(size, Image.Resampling.BICUBIC)
    if mode != "RGB":
        return gray.convert(mode)
    return Image.merge("RGB", [gray, gray.point(lambda v: v // 2), gray.point(lambda v: 255 - v)])


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def folder_of_digits(root: Path, *, train: int = 12, test: int = 4, classes: int = 3) -> Path:
    """Write a folder train and a folder val, each with a folder per class, in several sizes, formats and modes."""
    kinds = [
        ("jpg", "JPEG", "RGB"),
        ("png", "PNG", "L"),
        ("webp", "WEBP", "RGB"),
        ("png", "PNG", "P"),
        ("JPEG", "JPEG", "L"),
    ]
    for split, first, count in (("train", 0, train), ("val", train, test)):
        for label in range(classes):
            class_folder = root / split / f"class-{label}"
            class_folder.mkdir(parents=True)
            for number in range(first, first + count):
                ending, format, mode = kinds[number % len(kinds)]
                image = digit(label, number, size=(20 + number, 40 - number), mode=mode)
                (class_folder / f"{number:03}.{ending}").write_bytes(encoded(image, format))
    return root
