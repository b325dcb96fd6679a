"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32×32 pixels.

They are read from the official Python archive (the tar.gz or its folder) or from Parquet files in the Hugging Face
layout. The files of the official archive are verified by md5.

Letters in names: N images, C channels, H W height and width.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..config import DataConfig, OnProgress
from ..errors import UserError, check_exists, first_line
from .cache import Decoded, cache_dir, cached_decode, content_key, download, verify_md5
from .datasets import DataSet
from .image_io import decode_all, require_pillow
from .in_memory import InMemoryImages, in_memory
from .restricted_pickle import read_pickle
from .views import Views


@dataclass(frozen=True)
class Archive:
    """An official Python archive: its URL, its md5, and the md5 of each file."""

    url: str
    md5: str
    folder: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    names_key: bytes
    labels_key: bytes
    columns: tuple[str, ...]  # the label's name in parquet files, in order of preference


CIFAR10 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    names_key=b"label_names",
    labels_key=b"labels",
    columns=("label",),
)
CIFAR100 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
    names_key=b"fine_label_names",
    labels_key=b"fine_labels",
    columns=("fine_label", "label"),
)
SUPERCLASSES = {  # of CIFAR-100, with their classes
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}


def superclasses(classes: Sequence[str]) -> list[str] | None:
    """Return the superclass of each class if the classes are CIFAR-100's; None for others.

    >>> superclasses(["cat", "dog"]) is None
    True
    """
    group_of = {name: group for group, names in SUPERCLASSES.items() for name in names.split()}
    return [group_of[name] for name in classes] if group_of.keys() == set(classes) else None


def cifar10(path: str | None, settings: DataConfig, on_progress: OnProgress) -> DataSet:
    """Return the data set `cifar10`."""
    return _cifar("cifar10", CIFAR10, path, settings, on_progress)


def cifar100(path: str | None, settings: DataConfig, on_progress: OnProgress) -> DataSet:
    """Return the data set `cifar100`, with its 100 fine classes."""
    return _cifar("cifar100", CIFAR100, path, settings, on_progress)


def _cifar(name: str, archive: Archive, path: str | None, settings: DataConfig, on_progress: OnProgress) -> DataSet:
    root = Path(path) if path is not None else cache_dir() / name
    markers = ["*.parquet", archive.url.rpartition("/")[2], archive.folder, *archive.test]
    if path is None and not any(any(root.glob(marker)) for marker in markers):
        root = download(name, archive.url, archive.md5, on_progress=on_progress)
    check_exists(root, f"{name} archive or folder")
    files = sorted(root.glob("*.parquet")) if root.is_dir() else [root] if root.suffix == ".parquet" else []
    if files:
        classes, train, test = _from_parquet(root, files, archive, on_progress)
    else:
        classes, train, test = _from_archive(_unpacked(root, archive), archive)
    views = Views(pad=4, flip=settings.flip is not False)

    def images(decode: Callable[[], Decoded]) -> InMemoryImages:
        return in_memory(*decode(), source=str(root), classes=classes, views=views)

    return DataSet(classes=classes, train=lambda: images(train), test=lambda: images(test), recipe="cifar100")


_Parts = tuple[tuple[str, ...], Callable[[], Decoded], Callable[[], Decoded]]  # classes, training and test images


def _from_parquet(root: Path, files: list[Path], archive: Archive, on_progress: OnProgress) -> _Parts:
    require_pillow(str(root))
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"Reading {root} needs pyarrow. Run: pip install 'checkpointkd[data]'.") from None
    splits = {split: [file for file in files if file.name.startswith(split)] for split in ("train", "test")}
    class_names: dict[Path, tuple[str, ...]] = {}
    image = label = ""
    for split, parts in splits.items():
        if not parts:
            raise UserError(f"{root} has no parquet file of the {split} images ({split}-*.parquet)")
        for file in parts:  # the columns of the test files too, so that errors precede any training
            image, label, class_names[file] = _columns(file, archive)
            if class_names[file] != class_names[splits["train"][0]]:
                raise UserError(f"{file} names other classes than {splits['train'][0]}")
    classes = class_names[splits["train"][0]]

    def decode(split: str) -> Decoded:
        contents, counts, labels = [], {}, []
        for file in splits[split]:
            try:
                table = parquet.read_table(file, columns=[image, label])
                labels_of_file = table[label].cast(pyarrow.int64())
            except (OSError, ValueError) as error:
                raise UserError(f"Could not read {file}: {first_line(error)}") from None
            if labels_of_file.null_count != 0:
                raise UserError(f"{file} has images without a label. Use a complete copy.")
            labels += labels_of_file.to_pylist()
            contents += [(entry or {}).get("bytes") or b"" for entry in table[image].to_pylist()]
            counts[file] = len(table)
        images = ParquetImages(contents, counts)
        pixels_NCHW = decode_all(
            images, len(labels), size=(32, 32), task=f"decode {split} images", on_progress=on_progress
        )
        return pixels_NCHW, torch.tensor(labels)

    def cached(split: str) -> Decoded:
        return cached_decode(content_key(splits[split], version=f"parquet 2 {image} {label}"), lambda: decode(split))

    return classes, lambda: cached("train"), lambda: cached("test")


def _columns(file: Path, archive: Archive) -> tuple[str, str, tuple[str, ...]]:
    """Return the columns of images and of labels in a parquet file, and the names of its classes."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        content = parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a complete parquet file: {first_line(error)}") from None
    schema = content.schema_arrow
    if content.metadata.num_rows == 0:
        raise UserError(f"{file} has no rows")
    image = next((column for column in ("img", "image") if column in schema.names), None)
    label = next((column for column in archive.columns if column in schema.names), None)
    if image is None or label is None:
        raise UserError(
            f"{file} must have a column img or image and a column {' or '.join(archive.columns)} (its columns: "
            f"{', '.join(schema.names)})"
        )
    kind = schema.field(image).type
    encoded = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    encoded = encoded and kind.field("bytes").type in (pyarrow.binary(), pyarrow.large_binary())
    if not encoded:
        raise UserError(f"Column {image} of {file} must hold encoded images in a field `bytes`, not {kind}")
    kind = schema.field(label).type
    if not pyarrow.types.is_integer(kind):
        raise UserError(f"Column {label} of {file} must hold integers, not {kind}")
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        names = None
    if not isinstance(names, list):
        raise UserError(f"{file} does not name its classes: its schema has no `huggingface` entry")
    return image, label, tuple(names)


@dataclass(frozen=True)
class ParquetImages:
    """The encoded images of parquet files, and how many each file has."""

    contents: list[bytes]
    counts: dict[Path, int]

    def read(self, number: int) -> bytes:
        return self.contents[number]

    def name(self, number: int) -> str:
        for file, count in self.counts.items():
            if number < count:
                return f"image {number} of {file}"
            number -= count
        raise IndexError(number)


def _unpacked(path: Path, archive: Archive) -> Path:
    """Return the folder with the archive's files; unpack the archive if need be."""
    if path.is_dir():
        tars = sorted(path.glob("*-python.tar.gz"))
        if (path / archive.folder).is_dir():
            return path / archive.folder
        if not tars or any((path / name).exists() for name in archive.test):
            return path
        path = tars[0]
    verify_md5(path, archive.md5, kind="archive")
    target = cache_dir() / "unpacked" / archive.md5
    if (target / archive.folder).is_dir():
        return target / archive.folder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as aside:
            unpacked = Path(aside) / "unpacked"
            with tarfile.open(path) as tar:
                tar.extractall(unpacked, filter="data")
            if not target.exists():  # another process may have been faster
                unpacked.rename(target)
    except (OSError, tarfile.TarError) as error:
        if not (target / archive.folder).is_dir():
            raise UserError(
                f"Could not unpack {path} to {target.parent} ({first_line(error)}). Unpack it yourself and give its "
                "folder."
            ) from None
    return target / archive.folder


def _from_archive(folder: Path, archive: Archive) -> _Parts:
    for name, md5 in {**archive.train, **archive.test, **archive.meta}.items():
        verify_md5(check_exists(folder / name, "file of the official archive"), md5, kind="file")
    (meta,) = archive.meta
    classes = tuple(name.decode() for name in read_pickle(folder / meta)[archive.names_key])

    def decode(files: dict[str, str]) -> Decoded:
        batches = [read_pickle(folder / name) for name in files]
        pixels = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = [label for batch in batches for label in batch[archive.labels_key]]
        return torch.from_numpy(pixels.copy()), torch.tensor(labels)

    def cached(files: dict[str, str]) -> Decoded:
        key = hashlib.sha256(" ".join(["python 2", *files.values()]).encode()).hexdigest()[:32]  # of the verified md5s
        return cached_decode(key, lambda: decode(files))

    return classes, lambda: cached(archive.train), lambda: cached(archive.test)
