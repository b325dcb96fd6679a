"""The records of scores, of selections and of pilot searches."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from ..config import EstimatorConfig, Precision, PrecisionChoice, Recipe
from .base import DataRecord, FileName, Name, Provenance, Record, Share, TeacherRecord, config_differences, plain


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
    Its intervals are over images only. With another seed the gaps can differ by more. The best of several runs is
    chosen on the same images, which favors it. `skipped` are checkpoints less accurate than the student of the pilot
    run without a teacher. `untried` are checkpoints that the budget did not cover. `command` trains the student.
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
