"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32×32 pixels.

Read from the official python archive (tar.gz, or its folder), each file checked by its md5; or from a folder of parquet
files in the Hugging Face layout. Letters in names: N images, C channels, H W height and width.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..config import DataConfig, OnProgress
from ..errors import UserError, check_exists
from .cache import Decoded, cache_dir, cached_decode, content_key, download, verify_md5
from .datasets import DataSet
from .image_io import decode_all, needs_pillow
from .images import InMemoryImages, in_memory
from .restricted_pickle import read_pickle
from .views import Views


@dataclass(frozen=True)
class Archive:
    """An official python archive: where, its md5, and each file's."""

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
SUPERCLASSES = {  # CIFAR-100's twenty, and their classes
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
    """The superclass of each class where the classes are CIFAR-100's, from wherever they came; None for others.

    >>> superclasses(["cat", "dog"]) is None
    True
    """
    group_of = {name: group for group, names in SUPERCLASSES.items() for name in names.split()}
    return [group_of[name] for name in classes] if group_of.keys() == set(classes) else None


def cifar10(path: str | None, settings: DataConfig, tell: OnProgress) -> DataSet:
    """The data set `cifar10`."""
    return _cifar("cifar10", CIFAR10, path, settings, tell)


def cifar100(path: str | None, settings: DataConfig, tell: OnProgress) -> DataSet:
    """The data set `cifar100`, with its 100 fine classes."""
    return _cifar("cifar100", CIFAR100, path, settings, tell)


def _cifar(name: str, archive: Archive, path: str | None, settings: DataConfig, tell: OnProgress) -> DataSet:
    place = Path(path) if path is not None else cache_dir() / name
    signs = ["*.parquet", archive.url.rpartition("/")[2], archive.folder, *archive.test]
    if path is None and not any(any(place.glob(sign)) for sign in signs):
        place = download(name, archive.url, archive.md5, tell=tell)
    check_exists(place, f"{name} archive or folder")
    parquet = sorted(place.glob("*.parquet")) if place.is_dir() else [place] if place.suffix == ".parquet" else []
    if parquet:
        classes, train, test = _from_parquet(place, parquet, archive, tell)
    else:
        classes, train, test = _from_archive(_unpacked(place, archive), archive)
    views = Views(pad=4, flip=settings.flip is not False)

    def images(decode: Callable[[], Decoded]) -> InMemoryImages:
        return in_memory(*decode(), what=str(place), classes=classes, views=views)

    return DataSet(classes=classes, train=lambda: images(train), test=lambda: images(test), recipe="cifar100")


_Parts = tuple[tuple[str, ...], Callable[[], Decoded], Callable[[], Decoded]]  # classes, training and test images


def _from_parquet(place: Path, found: list[Path], archive: Archive, tell: OnProgress) -> _Parts:
    needs_pillow(str(place))
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"reading {place} needs pyarrow; pip install 'checkpointkd[data]'") from None
    splits = {split: [file for file in found if file.name.startswith(split)] for split in ("train", "test")}
    named: dict[Path, tuple[str, ...]] = {}
    image = label = ""
    for split, parts in splits.items():
        if not parts:
            raise UserError(f"{place} has no parquet file of the {split} images ({split}-*.parquet)")
        for file in parts:  # of the test images, too, what they are called: mistakes are said before any training
            image, label, named[file] = _columns(file, archive)
            if named[file] != named[splits["train"][0]]:
                raise UserError(f"{file} names other classes than {splits['train'][0]}")
    classes = named[splits["train"][0]]

    def decode(split: str) -> Decoded:
        contents, counts, labels = [], {}, []
        for file in splits[split]:
            try:
                table = parquet.read_table(file, columns=[image, label])
                labels_of_file = table[label].cast(pyarrow.int64())
            except (OSError, ValueError) as error:
                raise UserError(f"{file} can't be read: {str(error).splitlines()[0]}") from None
            if labels_of_file.null_count != 0:
                raise UserError(f"{file} has images without a label")
            labels += labels_of_file.to_pylist()
            contents += [(entry or {}).get("bytes") or b"" for entry in table[image].to_pylist()]
            counts[file] = len(table)
        pictures = ParquetImages(contents, counts)
        pixels_NCHW = decode_all(pictures, len(labels), size=(32, 32), task=f"decode {split} images", tell=tell)
        return pixels_NCHW, torch.tensor(labels)

    def once(split: str) -> Decoded:
        return cached_decode(content_key(splits[split], version=f"parquet 2 {image} {label}"), lambda: decode(split))

    return classes, lambda: once("train"), lambda: once("test")


def _columns(file: Path, archive: Archive) -> tuple[str, str, tuple[str, ...]]:
    """The columns of images and of labels in a parquet file, and the names of its classes."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        described = parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no whole parquet file: {str(error).splitlines()[0]}") from None
    schema = described.schema_arrow
    if not described.metadata.num_rows > 0:
        raise UserError(f"{file} has no rows")
    image = next((column for column in ("img", "image") if column in schema.names), None)
    label = next((column for column in archive.columns if column in schema.names), None)
    if image is None or label is None:
        raise UserError(
            f"{file} has no column img or no column {' or '.join(archive.columns)} (its columns: "
            f"{', '.join(schema.names)})"
        )
    kind = schema.field(image).type
    encoded = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    encoded = encoded and kind.field("bytes").type in (pyarrow.binary(), pyarrow.large_binary())
    if not encoded:
        raise UserError(f"the column {image} of {file} must hold encoded pictures in a field `bytes`, not {kind}")
    kind = schema.field(label).type
    if not pyarrow.types.is_integer(kind):
        raise UserError(f"the column {label} of {file} must hold whole numbers, not {kind}")
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        names = None
    if not isinstance(names, list):
        raise UserError(f"{file} does not name its classes (no `huggingface` entry in its schema)")
    return image, label, tuple(names)


@dataclass(frozen=True)
class ParquetImages:
    """The encoded pictures of parquet files, and how many each file has."""

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


def _unpacked(place: Path, archive: Archive) -> Path:
    """The folder with the archive's files."""
    if place.is_dir():
        tars = sorted(place.glob("*-python.tar.gz"))
        if (place / archive.folder).is_dir():
            return place / archive.folder
        if not tars or any((place / name).exists() for name in archive.test):
            return place
        place = tars[0]
    verify_md5(place, archive.md5, what="archive")
    target = cache_dir() / "unpacked" / archive.md5
    if (target / archive.folder).is_dir():
        return target / archive.folder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as aside:
            inside = Path(aside) / "whole"
            with tarfile.open(place) as tar:
                tar.extractall(inside, filter="data")
            if not target.exists():  # another process may have been quicker
                inside.rename(target)
    except (OSError, tarfile.TarError) as error:
        if not (target / archive.folder).is_dir():
            raise UserError(
                f"{place} can't be unpacked to {target.parent} ({error}); unpack it yourself and name the folder"
            ) from None
    return target / archive.folder


def _from_archive(folder: Path, archive: Archive) -> _Parts:
    for name, expected in {**archive.train, **archive.test, **archive.meta}.items():
        verify_md5(check_exists(folder / name, "file of the official archive"), expected, what="file")
    (meta,) = archive.meta
    classes = tuple(name.decode() for name in read_pickle(folder / meta)[archive.names_key])

    def decode(names: dict[str, str]) -> Decoded:
        batches = [read_pickle(folder / name) for name in names]
        pixels = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = [label for batch in batches for label in batch[archive.labels_key]]
        return torch.from_numpy(pixels.copy()), torch.tensor(labels)

    def once(names: dict[str, str]) -> Decoded:
        return cached_decode(content_key([folder / name for name in names], version="python 1"), lambda: decode(names))

    return classes, lambda: once(archive.train), lambda: once(archive.test)
