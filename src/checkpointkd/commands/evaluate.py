"""`checkpointkd evaluate`: measure checkpoints and their ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import SplitName, check_choice
from ..distill_config import EnsembleAverage
from ..errors import UserError
from .checks import warn_if_any_saw_validation_images
from .options import CommonOptions, DataSetOptions, EnsembleOptions
from .signature import command

if TYPE_CHECKING:
    from ..data import Data, Images
    from ..teachers.ensemble import Teacher


@dataclass(frozen=True, kw_only=True)
class SplitOptions(DataSetOptions):
    """Data."""

    split: SplitName = "val"
    """The images to measure on: val, or test for the final result."""

    def open(
        self, references: Sequence[str], common: CommonOptions, ensemble: str | None = None
    ) -> tuple[Teacher, Data, Images]:
        """Load the checkpoints, the data, and the images of the split.

        Raises:
            UserError: If a reference names no checkpoint, or if the data have other classes.
        """
        from ..checkpoints import resolve_ensemble
        from ..data import config_like, load_data, load_test
        from ..teachers.ensemble import Teacher

        if not references:
            raise UserError("Name at least one checkpoint, such as runs/teacher@last")
        check_choice("split", self.split, SplitName)
        refs = resolve_ensemble(references, ensemble)
        config = config_like(refs[0].checkpoint.run.data, self.data, train_labels=self.labels_file)
        data = load_data(config, on_progress=common.on_progress)
        teacher = Teacher(refs, device=common.torch_device)
        if teacher.classes != list(data.classes):
            raise UserError(
                f"{references[0]} was trained on other classes than those of {data.name!r}. "
                "Give the run's own data set with --data"
            )
        if self.split == "test":
            return teacher, data, load_test(config, on_progress=common.on_progress)
        warn_if_any_saw_validation_images(refs, data)
        return teacher, data, data.val


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SplitOptions, EnsembleOptions, CommonOptions):
    """Options of `evaluate`."""


@command(EvaluateOptions)
def evaluate(*references: str, options: EvaluateOptions) -> dict[str, Any]:
    """Measure checkpoints and their ensemble on images without augmentation.

    Use the validation set (the default) to compare and choose. Use the test set for the final result only.

    Example:

        checkpointkd evaluate runs/teacher@midpoint runs/teacher@last

    Args:
        references: One or more checkpoint references: RUN@160, RUN@0.5, RUN@midpoint, RUN@last, RUN@best.

    Raises:
        UserError: If a reference names no checkpoint, or if the data have other classes.
    """
    from ..records.base import plain
    from ..teachers.cost import training_cost

    check_choice("average", options.average, EnsembleAverage)
    teacher, data, images = options.open(references, options, options.ensemble)
    weights = options.weights_of(len(teacher))
    if isinstance(weights, str):
        raise UserError(
            f"--teacher-weights {weights} is fitted when a student is trained. Give one number per checkpoint, such as "
            "the `fitted_weights` that auto writes to a student's run.json."
        )
    return {
        "average": options.average,
        "weights": weights,
        "data": data.name,
        "select_on": data.record.select_on,
        "split": options.split,
        **plain(teacher.measure(images, average=options.average, weights=weights)),
        "training_cost": plain(training_cost(teacher.members)),
    }
