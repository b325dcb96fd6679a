"""`checkpointkd score`: place the checkpoints of a run on the information plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import DataConfig, EstimatorConfig, OnProgress
from ..errors import UserError
from ..user_code import name_of
from .checks import check_same_classes, warn_if_saw_validation_images
from .options import CommonOptions, DataSetOptions
from .signature import command

if TYPE_CHECKING:
    from ..checkpoints import Trajectory
    from ..data import Data
    from ..information import Plane


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(DataSetOptions, CommonOptions):
    """Options of `score`."""

    model: str | None = None
    """For external checkpoints: their network, as for `train`. Later commands remember it."""

    estimator: str | Callable[..., Any] = EstimatorConfig.estimator
    """The estimator of I(X;F): decoder, the paper's reconstruction decoder; ridge, a linear decoder in closed form,
    which is faster and gives nats; or your own, as package.module:function."""

    feature_layer: str | None = None
    """The module, by its path in the model, whose feature map is decoded. Default: the last map or tokens that
    the logits depend on; before global pooling for a convolutional network."""

    fit_images: int | None = None
    """Number of training images that the estimator is fitted on. Default: a tenth of them, at least 1,000 and at most
    10,000, or 2,000 of images of more than 32 pixels; 1,000 for ridge."""

    measure_images: int | None = None
    """Number of validation images that the estimator is evaluated on. Default: all, at most 10,000, or
    2,000 of images of more than 32 pixels; 1,000 for ridge."""

    decoder_steps: int = EstimatorConfig.steps
    """Training steps of each decoder."""

    decoder_seeds: int = EstimatorConfig.seeds
    """Decoders per checkpoint, each from another initialization. Their spread is reported, and is part of the
    uncertainty of a choice."""


@command(ScoreOptions)
def score(run: Path | str, /, *, options: ScoreOptions) -> Plane:
    """Place every checkpoint of a run on the information plane: I(Y;F) and I(X;F) (§4.2).

    Checkpoints that already have scores with the same settings are not scored again.

    Example:

        checkpointkd score runs/teacher

    Args:
        run: The run directory; or a folder of external checkpoints, see `inspect`.

    Raises:
        UserError: If the network has no feature map to decode, or if a setting or the data set is unknown.
    """
    from ..information import score_trajectory
    from ..ranks import joined

    settings = EstimatorConfig(
        estimator=name_of(options.estimator),
        fit_images=options.fit_images,
        measure_images=options.measure_images,
        steps=options.decoder_steps,
        seeds=options.decoder_seeds,
    )
    with joined(options.torch_device) as ranks:
        if ranks.world_size > 1:  # the main process registers external checkpoints, the others find them
            ranks.from_main(lambda: str(_open(run, options)[0].path))
        with ranks.alike():
            trajectory, data = _open(run, options)
            check_same_classes(trajectory, data)
        warn_if_saw_validation_images(str(run), trajectory.run, data)
        with ranks.locked(trajectory.path):
            return score_trajectory(
                trajectory,
                data,
                settings=settings,
                feature_layer=options.feature_layer,
                device=options.torch_device,
                on_progress=_prefixed("score", options.on_progress),
                ranks=ranks,
            )


def _open(run: Path | str, options: ScoreOptions) -> tuple[Trajectory, Data]:
    """Open the run and load its data. External checkpoints are registered first if they are new or have changed."""
    from ..checkpoints import (
        is_registered,
        load_as_stated,
        open_trajectory,
        refresh_external,
        register_external,
        scan_folder,
        stated_preprocessing,
    )
    from ..data import config_like, load_data

    trajectory = open_trajectory(run) if options.model is None or is_registered(run) else None
    if trajectory is None or options.model not in (None, trajectory.run.model):
        if options.data is None or options.model is None:
            raise UserError("--model is for external checkpoints and needs --data")
        stated = stated_preprocessing(scan_folder(run).last)
        config = DataConfig(data=str(options.data), train_labels=options.labels_file)
        data = load_as_stated(stated, config, given=(), on_progress=options.on_progress)
        trajectory = register_external(run, model=options.model, data=data, on_progress=options.on_progress)
        return trajectory, data
    if trajectory.new_files():
        registered = load_data(config_like(trajectory.run.data, None), on_progress=options.on_progress)
        trajectory = refresh_external(trajectory, data=registered, on_progress=options.on_progress)
    config = config_like(trajectory.run.data, options.data, train_labels=options.labels_file)
    data = load_data(config, on_progress=options.on_progress)
    return trajectory, data


def _prefixed(verb: str, on_progress: OnProgress | None) -> OnProgress | None:
    """Put a verb before the name of the work."""
    if on_progress is None:
        return None
    return lambda work, done, total: on_progress(f"{verb} {work}", done, total)
