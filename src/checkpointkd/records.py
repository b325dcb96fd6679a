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

from .config import (
    CheckpointDtype,
    ClassOrder,
    DistillConfig,
    EnsembleAverage,
    EstimatorConfig,
    KDConfig,
    Precision,
    PrecisionChoice,
    Recipe,
    SamplerName,
    SelectOn,
    SplitName,
    config_differences,
)
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
    """selection.json: what `select` chose last, by a rule or for a student by pilot runs.

    `scores` and `probability` (share of bootstrap resamples) are a rule's, by epoch; `made_with` says how the
    checkpoints were scored. `student`, `alpha` and `tau` are a pilot search's.
    """

    rule: str
    reason: str
    epochs: tuple[int, ...]
    unit: Literal["epoch", "step"] = "epoch"
    student: str | None = None
    alpha: float | None = None
    tau: float | None = None
    runner_up: int | None = None
    scores: dict[int, float] | None = None
    probability: dict[int, float] | None = None
    warnings: tuple[str, ...] = ()
    made_with: PlaneSettings | None = None

    @property
    def estimator(self) -> str | None:
        """The estimator of I(X;F) that the scores were made with, if the choice used scores."""
        return None if self.made_with is None else self.made_with.estimator


# Logit cache


class ViewsRecord(Record, frozen=True):
    """The views of each image: crops of the image padded by `pad` pixels, and with `flip` their mirror images."""

    pad: Count
    flip: bool


class LogitManifest(Record, frozen=True, kw_only=True):
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
    return decode(read_bytes(path), kind, path=path, remedy=remedy)


def read_lines(path: Path, kind: type[T], *, remedy: str) -> list[T]:
    """The records of a JSON-lines file; none where there is no file."""
    if not path.exists():
        return []
    return [decode(line, kind, path=path, remedy=remedy) for line in read_bytes(path).splitlines()]


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


def read_bytes(path: Path) -> bytes:
    """Return a file's content. Raises UserError that names the file if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no file {path}") from None
    except OSError as error:
        raise UserError(f"Could not read {path}: {error.strerror}") from None


# Information plane


class PlaneSettings(Record, frozen=True, kw_only=True):
    """How a trajectory was scored. Points are kept only while all of these settings stay the same."""

    estimator_config: EstimatorConfig
    feature_layer: str
    precision: Precision
    data: DataRecord  # its source is None: where the images lie does not change a score
    unit: Literal["epoch", "step"] = "epoch"

    @property
    def estimator(self) -> str:
        """The name of the estimator of I(X;F)."""
        return self.estimator_config.estimator

    @property
    def measured_on(self) -> str:
        """The images that the estimators were measured on."""
        return "the test set" if self.data.select_on == "test" else "the validation set"


class PlanePoint(Record, frozen=True, kw_only=True):
    """One checkpoint on the information plane.

    `image_information` estimates I(X;F) and is larger for more information; `config.INFORMATION_UNITS` has its unit.
    `image_information_se` is its standard error over images. `image_information_sd` is its standard deviation over the
    fits of the estimator, None for a single fit. `details` holds further numbers of the estimator.

    `accuracy` is the paper's I(Y;F). `label_information` is H(Y) − CE in nats, a lower bound on I(Y;F), with the
    logits divided by the fitted `temperature`.
    """

    epoch: int
    sha256: str
    accuracy: Share
    accuracy_se: float
    nll: float
    label_information: float
    temperature: float
    image_information: float
    image_information_se: float
    image_information_sd: float | None
    details: dict[str, float]


class PlaneRecord(Record, frozen=True, kw_only=True):
    """One entry of plane.json, which has an entry for each estimator.

    `arrays` names the safetensors file beside it, with the contribution of each image.
    """

    settings: PlaneSettings
    arrays: FileName
    points: Annotated[tuple[PlanePoint, ...], Meta(min_length=1)]


# Pilot search


class PilotSearchRecord(Record, frozen=True, kw_only=True):
    """pilot_search.json: what all pilot runs of a search have in common. The budget may grow, so it is not included."""

    student: Name
    teachers: Annotated[tuple[TeacherRecord, ...], Meta(min_length=1)]
    data: DataRecord
    recipe: Recipe
    tau: float
    alphas: tuple[float, ...]
    seed: int
    precision: PrecisionChoice

    def differences(self, stored: PilotSearchRecord) -> list[str]:
        """How this search differs from a stored one, one text a field."""
        return config_differences(plain(self), plain(stored))


class DivergedRecord(Record, frozen=True):
    """diverged.json, in the directory of a pilot run that diverged: its candidate and its length in epochs."""

    epochs: tuple[int, ...]
    alpha: float
    pilot_epochs: int


class PilotRunRecord(Record, frozen=True, kw_only=True):
    """One completed pilot run.

    `epochs` are those of the checkpoints that teach, none for no teacher. `information` is H(Y) − CE of the student on
    the validation set, in nats. `probability` is the share of bootstrap resamples of the images in which this run is
    the best, None for runs shorter than those that decide.
    """

    epochs: tuple[int, ...]
    alpha: float
    pilot_epochs: int
    information: float
    accuracy: Share
    chosen: bool
    probability: Share | None


class PilotGap(Record, frozen=True, kw_only=True):
    """How many nats a candidate is behind the chosen one after pilot runs of one length, with a 95% CI over images."""

    candidate: str
    pilot_epochs: int
    mean: float
    low: float
    high: float


class PilotResult(Record, frozen=True, kw_only=True):
    """The teacher that a pilot search chose for a student.

    `epochs` are those of the checkpoints that teach together, none for no teacher. `pilot_runs` are in the order of
    training. `behind` compares the chosen candidate with no teacher, with the last checkpoint and with the runner-up.
    Its intervals see the images only: with another seed the gaps can differ by more, and the best of several runs is
    chosen on the same images, which favors it. `skipped` are checkpoints less accurate than the student of the pilot
    run without a teacher. `untried` are checkpoints that the budget left no room for. `command` trains the student.
    """

    student: str
    epochs: tuple[int, ...]
    alpha: float
    tau: float
    reason: str
    pilot_runs: tuple[PilotRunRecord, ...]
    behind: dict[str, PilotGap]
    skipped: tuple[int, ...]
    spent_epochs: int
    student_epochs: Annotated[int, Meta(ge=1)]
    untried: tuple[int, ...] = ()
    unit: Literal["epoch", "step"] = "epoch"
    rule: str = "pilot"
    command: str = ""
    warnings: tuple[str, ...] = ()


class PilotRecord(PilotSearchRecord, frozen=True, kw_only=True):
    """pilot.json: a pilot search and its result."""

    result: PilotResult
    provenance: Provenance


# Tuning


class TrialRecord(Record, frozen=True, kw_only=True):
    """One trial that ended. `accuracy` is the mean over its students, None if the trial was stopped.

    `stopped` says why a trial was stopped. `last_seen` is the last accuracy that the pruner saw.
    """

    trial: Count
    values: dict[str, float]
    accuracy: Share | None
    accuracies: tuple[Share, ...] | None
    stopped: str | None
    last_seen: Share | None
    seconds: float | None


class BestTrialRecord(TrialRecord, frozen=True, kw_only=True):
    """The most accurate trial. `comparable` counts the others for which the 95% CI of the difference includes 0."""

    accuracy: Share
    accuracy_se: Annotated[float, Meta(ge=0)]
    comparable: Count


class TuneSettings(Record, frozen=True, kw_only=True):
    """What `tune` was asked for: the first fields of tune.json."""

    student: Name
    method: Name
    average: EnsembleAverage
    tau_squared: bool
    teachers: Annotated[tuple[TeacherRecord, ...], Meta(min_length=1)]
    distill_config: DistillConfig
    data: DataRecord
    recipe: Recipe
    seed: int
    seeds: Annotated[int, Meta(ge=1)]
    space: Annotated[dict[str, tuple[float, ...]], Meta(min_length=1)]
    sampler: SamplerName


class TuneRecord(TuneSettings, frozen=True, kw_only=True):
    """tune.json: all trials that ended, and the best of those that were not stopped."""

    planned: Count
    images: Count
    precision: Precision | None
    storage: str
    teacher_refs: tuple[str, ...]
    best: BestTrialRecord | None
    trials: tuple[TrialRecord, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        if any(trial.values.keys() != self.space.keys() for trial in self.trials):
            raise ValueError("a trial has other hyper-parameters than the search space")


# Experiments

Positive = Annotated[float, Meta(gt=0)]
Matrix = tuple[tuple[float, ...], ...]


class NetworkSpeed(Record, frozen=True, kw_only=True):
    """What training a network takes. machine.json has one by setting (device, data set, precision) and network."""

    precision: Precision
    seconds_per_step: Positive
    megabytes: Positive  # of a checkpoint in float32


class StoreRecord(Record, frozen=True, kw_only=True):
    """experiments.json: the preset and the images that all experiments in a folder have in common."""

    preset: Name
    dataset: Name
    images_sha256: Name


class IntervalRecord(Record, frozen=True):
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


class SimilarityRecord(Record, frozen=True, kw_only=True):
    """The class similarity of two checkpoints by one kind of class vectors.

    `similarity` holds a square matrix per checkpoint, `difference` the first less the second. `numbers` and
    `differences` are the same for mean similarity and diversity.
    """

    similarity: tuple[Matrix, Matrix]
    difference: Matrix
    numbers: dict[str, tuple[IntervalRecord, IntervalRecord]]
    differences: dict[str, IntervalRecord]


class CorrelatedCheckpoint(Measured, frozen=True):
    """A checkpoint whose classes were correlated, and what was measured of it."""

    ref: str
    epoch: int
    sha256: str


class CorrelationRecord(Record, frozen=True, kw_only=True):
    """correlated.json: the class correlation of two checkpoints, as `correlate` returns it."""

    data: Name
    select_on: SelectOn
    split: SplitName
    images: Count
    tau: Positive
    order: ClassOrder
    classes: tuple[Name, ...]
    groups: tuple[str, ...] | None
    checkpoints: tuple[CorrelatedCheckpoint, CorrelatedCheckpoint]
    logits: SimilarityRecord
    softened: SimilarityRecord
    provenance: Provenance

    def __post_init__(self) -> None:
        classes = len(self.classes)
        for kind in (self.logits, self.softened):
            for matrix in (*kind.similarity, kind.difference):
                if len(matrix) != classes or any(len(row) != classes for row in matrix):
                    raise ValueError(f"a matrix is not {classes} × {classes}")


class PairRecord(Record, frozen=True):
    """The teacher and the student network of an experiment."""

    teacher: str
    student: str


class PresetRecord(Record, frozen=True, kw_only=True):
    """The settings of an experiment that pages show. The file holds all settings of the preset."""

    name: str
    dataset: str
    select_on: SelectOn
    seeds: int
    train_images: int | None
    teacher_epochs: int
    student_epochs: int
    pairs: tuple[PairRecord, ...]


class ExperimentRecord(Record, frozen=True, kw_only=True):
    """experiment.json: the tables, figures and claims of an experiment.

    `missing` counts the tasks that are not done. Tables, figures and claims are plain data of `reports.charts` and
    `analysis.statistics`.
    """

    experiment: Name
    title: str
    preset: PresetRecord
    missing: Count
    notes: tuple[str, ...]
    tables: tuple[dict[str, Any], ...]
    figures: tuple[dict[str, Any], ...]
    claims: tuple[dict[str, Any], ...]
    provenance: Provenance
