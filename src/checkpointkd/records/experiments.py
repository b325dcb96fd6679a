"""The records of experiments and of class correlation."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from ..config import ClassOrder, Precision, SelectOn, SplitName
from .base import Count, Measured, Name, Provenance, Record

Positive = Annotated[float, Meta(gt=0)]
Matrix = tuple[tuple[float, ...], ...]


class NetworkSpeed(Record, frozen=True, kw_only=True):
    """What training a network takes. machine.json has one by setting (device, data set, precision, batch
    size) and network.
    """

    precision: Precision
    seconds_per_step: Positive
    megabytes: Positive  # of a checkpoint in float32
    loading_seconds_per_step: float = 0.0  # to read, decode and augment a batch; 0 for images in memory


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
