"""The records of scores, of selections and of pilot searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta

from ..config import EstimatorConfig, Precision, PrecisionChoice, Recipe
from .base import (
    DataRecord,
    FileName,
    Name,
    Provenance,
    Record,
    Share,
    TeacherRecord,
    config_differences,
    plain,
    selection_set,
)


class PlaneSettings(Record, frozen=True, kw_only=True):
    """How a trajectory was scored. Points are kept only while all of these settings stay the same."""

    estimator_config: EstimatorConfig
    feature_layer: str
    precision: Precision
    data: DataRecord  # its source is None: where the images lie does not change a score
    unit: Literal["epoch", "step"] = "epoch"
    features: Literal["float32", "float16"] = "float32"

    @property
    def estimator(self) -> str:
        """The name of the estimator of I(X;F)."""
        return self.estimator_config.estimator

    @property
    def measured_on(self) -> str:
        """The images that the estimators were measured on."""
        return selection_set(self.data.select_on)


class PlanePoint(Record, frozen=True, kw_only=True):
    """One checkpoint on the information plane.

    `image_information` estimates I(X;F) and is larger for more information; `config.INFORMATION_UNITS` has its unit.
    `image_information_se` is its standard error over images. `image_information_sd` is its standard deviation over the
    fits of the estimator, None for a single fit. `details` holds further numbers of the estimator.

    `accuracy` is the paper's I(Y;F). `label_information` is H(Y) − CE in nats, a lower bound on I(Y;F), with the
    logits divided by the fitted `temperature`. `nuclear_norm` is None in older files.
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
    nuclear_norm: float | None = None


class PlaneRecord(Record, frozen=True, kw_only=True):
    """One entry of plane.json, which has an entry for each estimator.

    `arrays` names the safetensors file beside it, with the contribution of each image.
    """

    settings: PlaneSettings
    arrays: FileName
    points: Annotated[tuple[PlanePoint, ...], Meta(min_length=1)]


def teachers_in_words(names: Sequence[str], unit: str = "epoch") -> str:
    """Return a text that names teachers, which are epochs and weight averages.

    >>> teachers_in_words(["10", "20"]), teachers_in_words(["mean:0.7-1.0"]), teachers_in_words([])
    ('epochs 10 + 20', 'mean:0.7-1.0', 'no teacher')
    """
    if not names:
        return "no teacher"
    epochs = all(name.isdecimal() for name in names)
    return f"{unit}{'s' * (len(names) > 1)} " * epochs + " + ".join(names)


class SelectionRecord(Record, frozen=True, kw_only=True):
    """selection.json: what `select` chose last, by a rule or for a student by pilot runs.

    `scores` and `probability` (share of bootstrap resamples) are a rule's, by epoch; `made_with` says how the
    checkpoints were scored. Only a pilot search sets `student`, `teachers`, `method`, `alpha` and `tau`. `teachers`
    also contains weight averages.
    """

    rule: str
    reason: str
    epochs: tuple[int, ...]
    unit: Literal["epoch", "step"] = "epoch"
    student: str | None = None
    teachers: tuple[str, ...] = ()
    method: str | None = None
    alpha: float | None = None
    tau: float | None = None
    runner_up: int | None = None
    scores: dict[int, float] | None = None
    probability: dict[int, float] | None = None
    warnings: tuple[str, ...] = ()
    made_with: PlaneSettings | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The epochs and weight averages that RUN@best refers to."""
        return self.teachers or tuple(map(str, self.epochs))

    @property
    def estimator(self) -> str | None:
        """The estimator of I(X;F) that the scores were made with, if the choice used scores."""
        return None if self.made_with is None else self.made_with.estimator


class PilotSearchRecord(Record, frozen=True, kw_only=True):
    """pilot_search.json: what all pilot runs of a search have in common. The budget may grow, so it is not included."""

    student: Name
    teachers: Annotated[tuple[TeacherRecord, ...], Meta(min_length=1)]
    data: DataRecord
    recipe: Recipe
    tau: float
    alphas: tuple[float, ...]
    methods: tuple[str, ...]
    compared_teachers: tuple[str, ...]
    seed: int
    precision: PrecisionChoice

    def differences(self, stored: PilotSearchRecord) -> list[str]:
        """How this search differs from a stored one, one text a field."""
        return config_differences(plain(self), plain(stored))


class DivergedRecord(Record, frozen=True):
    """diverged.json, in the directory of a pilot run that diverged or could not be trained, with the reason."""

    candidate: str
    reason: str


class PilotRunRecord(Record, frozen=True, kw_only=True):
    """One completed pilot run.

    `teachers` are the checkpoints and weight averages that teach; it is empty for no teacher. `alpha` is None if the
    method's default is used. `information` is H(Y) − CE of the student on the validation set, in nats.
    """

    candidate: str
    teachers: tuple[str, ...]
    method: str | None
    alpha: float | None
    information: float
    accuracy: Share


class CandidateRecord(Record, frozen=True, kw_only=True):
    """One candidate of a search, with or without a pilot run.

    `gain` is the expected gain over the default in points of accuracy, with a 95% interval. `chance` is the chance that
    the candidate is the best. `accuracy` is that of its pilot run, None if there is no pilot run or if it failed.
    `below` says that this accuracy is far below that of the default and of no teacher, so that the gain is an upper
    bound.
    """

    candidate: str
    gain: float
    low: float
    high: float
    chance: Share
    accuracy: Share | None
    chosen: bool
    failed: bool = False
    below: bool = False


class PilotResult(Record, frozen=True, kw_only=True):
    """The candidate that a pilot search chose for a student.

    `teachers` are checkpoints and weight averages that teach together; it is empty for no teacher. `epochs` are the
    teachers' epochs, empty if a teacher is a weight average. `alpha` and `tau` are None if the method's defaults are
    used. `gain` is the expected gain in points over the default, `kd` from the last checkpoint. `low` and `high` are
    the ends of its 95% interval. `candidates` are in the order of their expected gain, `pilot_runs` in the order of
    training. `command` trains the student.
    """

    student: str
    epochs: tuple[int, ...]
    teachers: tuple[str, ...]
    method: str | None
    alpha: float | None
    tau: float | None
    reason: str
    gain: float
    low: float
    high: float
    chance: Share
    safe: str
    candidates: tuple[CandidateRecord, ...]
    pilot_runs: tuple[PilotRunRecord, ...]
    pilot_epochs: Annotated[int, Meta(ge=1)]
    spent_epochs: int
    student_epochs: Annotated[int, Meta(ge=1)]
    unit: Literal["epoch", "step"] = "epoch"
    rule: str = "pilot"
    command: str = ""
    safe_command: str = ""
    warnings: tuple[str, ...] = ()


class PilotRecord(PilotSearchRecord, frozen=True, kw_only=True):
    """pilot.json: a pilot search and its result."""

    result: PilotResult
    provenance: Provenance
