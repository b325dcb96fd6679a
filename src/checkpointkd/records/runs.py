"""The records that a run leaves: run.json, metrics.jsonl and result.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from ..config import ChannelOrder, CheckpointDtype, LabelLoss, Precision, Recipe
from ..distill_config import DistillConfig, KDConfig
from ..errors import UserError
from .base import (
    Count,
    DataRecord,
    FileName,
    Measured,
    Name,
    Normalization,
    Provenance,
    Record,
    Share,
    TeacherRecord,
    config_differences,
    plain,
    read,
)

FORMAT = 2  # of run.json; raised when its fields change


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
    channel_order: ChannelOrder = "rgb"  # of the network; images are RGB
    network_config: dict[str, Any] | None = None  # of `hf:FOLDER`: what describes the architecture

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std differ in length")

    @property
    def teachers(self) -> tuple[TeacherRecord, ...]:
        """The teachers of a distilled student; none for other runs."""
        return ()

    def differences(self, stored: RunRecord) -> list[str]:
        """How this run differs from a stored one, one text a field."""
        return run_differences(identity_of(self), identity_of(stored))


class OwnRunRecord(RunRecord, frozen=True, kw_only=True):
    """What the runs of this package have in common."""

    recipe: Recipe
    save_every: Annotated[int, Meta(ge=1)]
    best_of_last_ten: bool
    checkpoint_dtype: CheckpointDtype
    device: str
    batch_norm_processes: Annotated[int, Meta(ge=1)] = 1  # with statistics of their own; 1 where they are shared
    accumulate: Annotated[int, Meta(ge=1)] = 1  # parts of a batch, with batch statistics of their own
    init: str | None = None  # --init: which weights the network starts from; None for random ones
    init_sha256: str | None = None
    averaged: bool = False  # the weights are the moving average of another run's, see `Recipe.ema`


class TrainRecord(OwnRunRecord, frozen=True, tag="train", kw_only=True):
    """A run that learns from labels alone."""

    label_smoothing: Annotated[float, Meta(ge=0, lt=1)]
    loss: LabelLoss = "cross-entropy"


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
    teacher_scales: tuple[float, ...] | None = None  # factors of their logits, by DistillConfig.teacher_tau
    fitted_weights: tuple[tuple[float, ...], ...] | None = None  # of each teacher, by class for auto-per-class

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
    stood_in: tuple[str, ...] = ()  # classes in the file that were read as data
    stated_accuracy: float | None = None  # as the trainer measured it, on its own images


class ExternalRecord(RunRecord, frozen=True, tag="external", kw_only=True):
    """run.json of another trainer's checkpoints: what the user said of them, and what was found in them."""

    folder: str
    files: FileName | None  # the last part of PATH where that is a file or has a wildcard
    pattern: FileName | None  # --pattern
    state_dict_key: str | None  # --state-dict-key
    ignore_tensors: tuple[str, ...] = ()  # --ignore-tensors
    weights_at: str  # the key of the weights in the files; "" for the top
    other_sets: tuple[str, ...] = ()  # keys of sets in the files that are not used
    normalized_as: str  # where mean and std are from
    unit: Literal["epoch", "step"]
    left_out: tuple[str, ...]  # a reason for each file
    passed_over: tuple[str, ...]  # files that were seen and not used
    checkpoints: Annotated[dict[Count, ExternalCheckpoint], Meta(min_length=1)]


class ConvertedCheckpoint(Record, frozen=True):
    """One checkpoint that `convert` wrote."""

    file: FileName
    source: str  # relative to the folder of the source
    source_sha256: str
    format: str
    stated: str
    key: str | None  # --state-dict-key
    sha256: str  # of the tensors
    tensors: Count
    unreadable: tuple[str, ...]  # tensors that are sparse, quantized or of another special kind
    stood_in: tuple[str, ...]  # classes that were read as data


class ConvertRecord(Record, frozen=True, kw_only=True):
    """convert.json: where each converted checkpoint is from."""

    unit: Literal["epoch", "step"]
    state_dict_key: str | None
    left_out: tuple[str, ...]
    checkpoints: dict[Count, ConvertedCheckpoint]
    provenance: Provenance


METADATA = {"format", "init", "mean", "std", "device", "provenance"}
METADATA |= {"teacher_refs", "teachers_measured", "teachers_cost", "teacher_scales"}
AnyRun = TrainRecord | DistillRecord | ExternalRecord


def identity_of(record: RunRecord) -> dict[str, Any]:
    """The fields that must match when a run continues."""
    return {name: value for name, value in plain(record).items() if name not in METADATA}


def run_differences(given: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """List how two identities of runs differ, with teachers by epoch and the first digits of their hashes."""
    return config_differences(_with_teachers_as_text(given), _with_teachers_as_text(stored))


def _with_teachers_as_text(identity: dict[str, Any]) -> dict[str, Any]:
    teachers = identity.get("taught_by")
    if teachers is None:
        return identity
    text = " + ".join(f"epoch {teacher['epoch']} ({teacher['sha256'][:8]})" for teacher in teachers)
    return {"teachers" if name == "taught_by" else name: value for name, value in identity.items()} | {"teachers": text}


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

    def __post_init__(self) -> None:
        if (self.test is None) != (self.test_images is None):
            raise ValueError("test and test_images must be given together")


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
