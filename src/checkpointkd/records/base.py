"""Read, write and share typed records: the base class, the checks, and the records that several files hold."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import msgspec
from msgspec import Meta

from ..config import EvalTransform, SelectOn
from ..errors import UserError

PLACES = ("source", "val", "train_labels")  # fields of DataRecord that say where images and labels lie
LARGEST_FILE = 1 << 29  # bytes of a JSON file

T = TypeVar("T")
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(min_length=1)]
FileName = Annotated[str, Meta(pattern=r"^[^/\\\x00]+$", max_length=1000)]
Normalization = Annotated[tuple[Annotated[float, Meta(gt=-1e6, lt=1e6)], ...], Meta(min_length=1)]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all records: immutable, made with keywords."""


class Provenance(Record, frozen=True):
    """Versions and machine, for whoever reads a result later."""

    started: str
    checkpointkd: str
    torch: str
    python: str
    machine: str


def selection_set(select_on: SelectOn) -> str:
    """Return the name of the images on which everything is chosen.

    >>> selection_set("test")
    'the test set'
    """
    return "the test set" if select_on == "test" else "the validation set"


class DataRecord(Record, frozen=True, omit_defaults=True):
    """The data set of a run: the settings that chose its images, their content, and how many there are."""

    name: Name
    source: str | None  # where the images lie; may differ from machine to machine
    sha256: str
    select_on: SelectOn
    val_fraction: float | None
    split_seed: int
    train_images: int | None
    image_size: int | None
    flip: bool
    shape: tuple[int, int, int]
    train_size: Count
    val_size: Count
    eval_transform: EvalTransform = EvalTransform()
    class_order: tuple[str, ...] | None = None
    val: str | None = None  # --val; may be a place that differs from machine to machine
    train_labels: str | None = None  # --train-labels; `sha256` includes its labels
    val_sha256: str | None = None  # of validation images that are no part of the training images

    @property
    def spec(self) -> str:
        """The data set as `--data` takes it: NAME or NAME:PATH."""
        return f"{self.name}:{self.source}" if self.source else self.name

    @property
    def identity(self) -> dict[str, Any]:
        """All fields that say what the images are; where they lie is not among them."""
        return {name: value for name, value in plain(self).items() if name not in PLACES}


class TeacherRecord(Record, frozen=True):
    """One teacher of a student: its epoch, the hash of its weights, and of what they are an average, if they are."""

    epoch: int
    sha256: str
    average: str | None = None

    @property
    def name(self) -> str:
        """The part of a reference after the @: the epoch or the weight average."""
        return self.average or str(self.epoch)


class Measured(Record, frozen=True):
    """Accuracy, its standard error over images, and negative log-likelihood in nats."""

    accuracy: Share
    accuracy_se: float
    nll: float


def provenance() -> Provenance:
    """Versions and machine of this process."""
    return Provenance(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        checkpointkd=version("checkpointkd"),
        torch=version("torch"),
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
    )


def plain(record: Any) -> Any:
    """A record, or anything made of records, dataclasses and plain values, as JSON's values."""
    return msgspec.to_builtins(record, str_keys=True)


def decode(content: bytes, kind: type[T], *, path: Path, remedy: str) -> T:
    """The record that a file's content holds; raises UserError that names the file, the field and the remedy."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}. {remedy}") from None


def convert(values: Mapping[str, Any], kind: type[T]) -> T:
    """A record from plain values of ours; raises msgspec.ValidationError where they cannot be one."""
    return msgspec.convert(values, type=kind)


def read(path: Path, kind: type[T], *, remedy: str) -> T:
    """The record in a JSON file; raises UserError that says what is wrong with the file, and the remedy."""
    return decode(read_bytes(path), kind, path=path, remedy=remedy)


def read_lines(path: Path, kind: type[T], *, remedy: str) -> list[T]:
    """The records of a JSON-lines file; none where there is no file."""
    if not path.exists():
        return []
    return [decode(line, kind, path=path, remedy=remedy) for line in read_bytes(path).splitlines()]


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it.

    Raises:
        UserError: If it is a pipe, a device or a socket, which could make the reader wait for ever.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path} is not a regular file")
    return file


def read_bytes(path: Path, *, largest: int | None = LARGEST_FILE) -> bytes:
    """Return a file's content.

    Raises:
        UserError: If the file cannot be read, or has more than `largest` bytes.
    """
    try:
        with open_regular(path) as file:
            content = file.read() if largest is None else file.read(largest + 1)
        if largest is not None and len(content) > largest:
            raise UserError(f"{path} has more than {largest:,} bytes")
        return content
    except FileNotFoundError:
        raise UserError(f"There is no file {path}") from None
    except OSError as error:
        raise UserError(f"Could not read {path}: {error.strerror}") from None
    except ValueError as error:  # a name that no file can have
        raise error if isinstance(error, UserError) else UserError(f"Could not read {path}: {error}") from None


def config_differences(given: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """List how given settings differ from stored ones. The places of data on disk may differ.

    >>> config_differences({"seed": 1, "recipe": {"epochs": 3}}, {"seed": 1, "recipe": {"epochs": 5}})
    ['recipe epochs 5 stored, 3 given']
    """
    differences: list[str] = []
    for name, value in given.items():
        stored_value = stored.get(name)
        if isinstance(value, dict) and isinstance(stored_value, dict):
            differences += [f"{name} {difference}" for difference in config_differences(value, stored_value)]
        elif name not in PLACES and stored_value != value:
            differences.append(f"{name} {stored_value!r} stored, {value!r} given")
    return differences
