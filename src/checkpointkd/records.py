"""Typed records of the JSON files that the package writes, each described once, here.

A record is read with `read`, which checks every field, and written with `storage.write_json(path, plain(record))`.
No torch here: the command line imports this module.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from .config import CheckpointDtype, DistillConfig, KDConfig, Precision, Recipe, SelectOn, config_differences
from .errors import UserError

FORMAT = 2  # of run.json; raised when its fields change

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


class DataRecord(Record, frozen=True):
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

    @property
    def spec(self) -> str:
        """The data set as `--data` takes it: NAME or NAME:PATH."""
        return f"{self.name}:{self.source}" if self.source else self.name

    @property
    def identity(self) -> dict[str, Any]:
        """All fields that say what the images are; where they lie is not among them."""
        return {name: value for name, value in plain(self).items() if name != "source"}


class TeacherRecord(Record, frozen=True):
    """One teacher of a student: its epoch, and the hash of its weights."""

    epoch: int
    sha256: str


class Measured(Record, frozen=True):
    """Accuracy, its standard error over images, and negative log-likelihood in nats."""

    accuracy: Share
    accuracy_se: float
    nll: float


class RunRecord(Record, frozen=True, tag_field="kind", kw_only=True):
    """run.json: what a run is. Fields of METADATA are kept beside it and need not match when the run continues."""

    format: Literal[2] = FORMAT
    model: Name
    classes: Annotated[tuple[Name, ...], Meta(min_length=1)]
    data: DataRecord
    mean: Normalization
    std: Annotated[tuple[Annotated[float, Meta(gt=0, lt=1e6)], ...], Meta(min_length=1)]
    seed: int
    precision: Precision
    provenance: Provenance

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std differ in length")

    @property
    def teachers(self) -> tuple[TeacherRecord, ...]:
        """The teachers of a distilled student; none for other runs."""
        return ()

    def differences(self, stored: RunRecord) -> list[str]:
        """How this run differs from a stored one, one text a field."""
        return config_differences(identity_of(self), identity_of(stored))


class OwnRunRecord(RunRecord, frozen=True, kw_only=True):
    """What the runs of this package have in common."""

    recipe: Recipe
    save_every: Annotated[int, Meta(ge=1)]
    best_of_last_ten: bool
    checkpoint_dtype: CheckpointDtype
    device: str


class TrainRecord(OwnRunRecord, frozen=True, tag="train", kw_only=True):
    """A run that learns from labels alone."""

    label_smoothing: Annotated[float, Meta(ge=0, lt=1)]


class TeacherMeasured(Measured, frozen=True):
    """What was measured of one teacher on the validation set, before it taught."""

    ref: str
    epoch: int
    calibration_error: float


class EnsembleMeasured(Measured, frozen=True):
    """The same for the ensemble. `disagreement` is None for a single teacher."""

    calibration_error: float
    disagreement: float | None


class TeachersMeasured(Record, frozen=True):
    """What was measured of the teachers on the validation set."""

    images: Count
    members: tuple[TeacherMeasured, ...]
    ensemble: EnsembleMeasured


class TrainingCost(Record, frozen=True):
    """What training the teachers took, as Figure 3 counts it: each run once, up to the last checkpoint that teaches."""

    runs: Count
    epochs: Count
    seconds: float | None  # None where another trainer left no times


class DistillRecord(OwnRunRecord, frozen=True, tag="distill", kw_only=True):
    """A run that learns from teachers."""

    method: Name
    kd: KDConfig
    distill_config: DistillConfig
    taught_by: Annotated[tuple[TeacherRecord, ...], Meta(min_length=1)]
    teacher_refs: tuple[str, ...]
    teachers_measured: TeachersMeasured
    teachers_cost: TrainingCost

    @property
    def teachers(self) -> tuple[TeacherRecord, ...]:
        return self.taught_by


class ExternalCheckpoint(Record, frozen=True):
    """One checkpoint of another trainer, as it was registered."""

    file: Annotated[str, Meta(pattern=r"^[^\x00]+$", max_length=1000)]  # relative to the folder
    format: str
    epoch_from: str  # where the epoch was read: the file, its name, or --pattern
    stated: str  # the epoch as the file or its name states it
    fingerprint: tuple[int, ...]  # sizes and modification times of its files
    sha256: str
    accuracy: Share | None


class ExternalRecord(RunRecord, frozen=True, tag="external", kw_only=True):
    """run.json of another trainer's checkpoints: what the user said of them, and what was found in them."""

    folder: str
    files: FileName | None  # the last part of PATH where that is a file or has a wildcard
    pattern: FileName | None  # --pattern
    state_dict_key: str | None  # --state-dict-key
    weights_at: str  # the key of the weights in the files; "" for the top
    normalized_as: str  # where mean and std are from
    unit: Literal["epoch", "step"]
    left_out: tuple[str, ...]  # a reason for each file
    passed_over: tuple[str, ...]  # files that were seen and not used
    checkpoints: Annotated[dict[Count, ExternalCheckpoint], Meta(min_length=1)]


METADATA = {"format", "mean", "std", "device", "provenance", "teacher_refs", "teachers_measured", "teachers_cost"}
AnyRun = TrainRecord | DistillRecord | ExternalRecord


def identity_of(record: RunRecord) -> dict[str, Any]:
    """The fields that must match when a run continues."""
    return {name: value for name, value in plain(record).items() if name not in METADATA}


class MetricsRow(Record, frozen=True, omit_defaults=True, kw_only=True):
    """One line of metrics.jsonl: what an epoch left."""

    epoch: Annotated[int, Meta(ge=1)]
    loss: float
    learning_rate: float
    seconds: float
    train_accuracy: Share | None = None
    val_accuracy: Share | None = None
    val_nll: float | None = None
    test_accuracy: Share | None = None


class BestEpoch(Record, frozen=True):
    """The epoch of the last ten with the highest test accuracy, as the authors report it."""

    epoch: int
    accuracy: Share


class RunResult(Record, frozen=True, omit_defaults=True, kw_only=True):
    """result.json: the final measurement. Trials of `tune` and pilot runs leave the test set alone."""

    epoch: int
    val: Measured
    seconds: float
    wall_seconds_since_start_or_resume: float
    test: Measured | None = None
    test_images: Count | None = None
    best_of_last_ten: BestEpoch | None = None


class SelectionRecord(Record, frozen=True, kw_only=True):
    """selection.json: what `select` chose last, by a rule or for a student by pilot runs."""

    rule: str
    reason: str
    epochs: tuple[int, ...]
    student: str | None = None
    alpha: float | None = None
    tau: float | None = None
    runner_up: int | None = None
    made_with: dict[str, Any] | None = None

    @property
    def estimator(self) -> str | None:
        """The estimator of I(X;F) that the scores were made with, if the choice used scores."""
        return (self.made_with or {}).get("estimator")


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
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}. {remedy}") from None


def convert(values: Mapping[str, Any], kind: type[T]) -> T:
    """A record from plain values of ours; raises msgspec.ValidationError where they cannot be one."""
    return msgspec.convert(values, type=kind)


def read(path: Path, kind: type[T], *, remedy: str) -> T:
    """The record in a JSON file; raises UserError that says what is wrong with the file, and the remedy."""
    return decode(_content(path), kind, path=path, remedy=remedy)


def read_lines(path: Path, kind: type[T], *, remedy: str) -> list[T]:
    """The records of a JSON-lines file; none where there is no file."""
    if not path.exists():
        return []
    return [decode(line, kind, path=path, remedy=remedy) for line in _content(path).splitlines()]


class _Versioned(Record, frozen=True, kw_only=True):
    format: int = 1


def read_run(path: Path) -> AnyRun:
    """run.json; raises UserError for a damaged file, and for one of an older or newer format."""
    remedy = "Restore it from a copy, or train in another folder."
    written = read(path, _Versioned, remedy=remedy).format
    if written != FORMAT:
        raise UserError(
            f"{path} has file format {written}, and this version reads format {FORMAT}. "
            "Train again in another folder, or use the version that wrote it."
        )
    return read(path, AnyRun, remedy=remedy)  # type: ignore[arg-type]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"could not read {path}: {error.strerror}") from None
