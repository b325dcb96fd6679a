"""`checkpointkd inspect`: describe a run, or register external checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ChannelOrder
from ..errors import UserError
from ..records.runs import ExternalRecord
from .checks import warn_if_saw_validation_images
from .options import CommonOptions, DataOptions
from .signature import command

if TYPE_CHECKING:
    from ..checkpoints import Trajectory
    from ..data import Data
    from ..models import Network

log = logging.getLogger("checkpointkd")


@dataclass(frozen=True, kw_only=True)
class InspectOptions(DataOptions, CommonOptions):
    """Options of `inspect`."""

    model: str | None = None
    """For external checkpoints: their network, as for `train`. Needs --data. Default: the network that the files name,
    such as in timm's options or in config.json."""

    pattern: str | None = None
    """For external checkpoints: the form of the file names, such as 'ckpt_{epoch}.pt'. Give it if the epoch is not
    found in the names, or to register some files only. {step} counts in steps, * matches any text."""

    state_dict_key: str | None = None
    """For files with several state dicts: the key of the weights, such as state_dict_ema or state_dict.student."""

    ignore_tensors: list[str] | None = None
    """For files with tensors that the network does not have: patterns of their names, such as 'criterion.*'."""

    mean: list[float] | None = None
    """For external checkpoints: the mean of each channel that images in [0, 1] were normalized with. Default: from the
    Hugging Face preprocessor or timm's model, otherwise the mean of the training images."""

    std: list[float] | None = None
    """For external checkpoints: the standard deviation of each channel. Default: as for --mean."""

    channel_order: ChannelOrder | None = None
    """For external checkpoints: bgr if their network takes the blue channel first. Default: as the checkpoint
    states, otherwise rgb."""

    def given_for_external(self) -> list[str]:
        """List the given options that apply to external checkpoints only."""
        names = ("data", "state_dict_key", "ignore_tensors", "mean", "std", "select_on", "image_size")
        names += ("resize", "class_order", "channel_order", "flip", "val", "train_labels")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]


@command(InspectOptions)
def inspect(path: Path | str, /, *, options: InspectOptions) -> dict[str, Any]:
    """Describe a run directory, or a folder of checkpoints from another trainer.

    `inspect` detects the format of external checkpoints from their content. It reads Hugging Face, Lightning, timm,
    torchvision's reference scripts and the paper authors' code. It also reads plain state dicts in safetensors or
    PyTorch files. With --model and --data, `inspect` compares every file with the network, measures its validation
    accuracy and records both. Afterwards PATH works like a run, as in PATH@last.

    Example:

        checkpointkd inspect runs/teacher

        checkpointkd inspect output/train/resnet18 --model timm:resnet18 --data folder:images

    Args:
        path: The directory; or a pattern, such as 'output/run1_*.pth'; or one file.

    Raises:
        UserError: If there is no run and no checkpoint, or if a file is damaged, refused or does not fit the network.
    """
    from ..checkpoints import RunDir, describe, is_registered, open_trajectory, scan_folder, trust_code
    from ..teachers.ensemble import chance_level
    from .doubts import doubts

    own_run = RunDir(Path(path)).record() if options.model is not None and os.path.exists(path) else None
    if own_run is not None:
        if options.model != own_run.model:
            raise UserError(f"{path} is a run of {own_run.model}, not of {options.model}. Leave out --model.")
        trust_code(own_run)
        return describe(path)
    given = options.given_for_external()
    if options.pattern is not None and is_registered(path):
        given.append("--pattern")
    trajectory = open_trajectory(path) if options.model is None and is_registered(path) else None
    if trajectory is None and options.model is None and options.data is not None:
        named = scan_folder(path, options.pattern).network
        if named is not None:
            log.info("The files name the network %s", named)
            options = replace(options, model=named)
    if trajectory is None and options.model is None and options.data is not None:
        raise UserError(f"The files in {path} name no network, or different networks. Add --model MODEL.")
    if options.model is None:
        if given and (trajectory is None or not trajectory.external):
            raise UserError(f"{' and '.join(given)} can only be used for external checkpoints. Add --model")
        if trajectory is None or not given:
            if trajectory is not None:
                _refresh(trajectory, options)
            return describe(path, options.pattern)
    trajectory, data = _register(path, trajectory, options)
    warn_if_saw_validation_images(str(path), trajectory.run, data)
    description = describe(trajectory.path)
    for advice in doubts(trajectory.last.network(options.torch_device), data):
        log.warning("The preprocessing or the order of classes may differ from training. %s", advice)
    _compare_with_stated(description["checkpoints"], len(data.val))
    chance, threshold = chance_level(data.val.labels_N)
    if all(checkpoint["val_accuracy"] < threshold for checkpoint in description["checkpoints"]):
        log.warning(
            "No checkpoint is better than chance (%.1f%%). The order of the classes or the preprocessing (--mean, "
            "--std, --image-size) probably differs from the training.",
            100 * chance,
        )
    return description


def _refresh(trajectory: Trajectory, options: InspectOptions) -> None:
    """Register external checkpoints that are new since the last time, and measure those without an accuracy."""
    from ..checkpoints import refresh_external
    from ..data import config_like, load_data

    if trajectory.new_files() or (trajectory.external and not trajectory.measured):
        data = load_data(config_like(trajectory.run.data, None), on_progress=options.on_progress)
        accuracy = _accuracy_on(data, options)
        refresh_external(trajectory, data=data, accuracy=accuracy, on_progress=options.on_progress)


def _register(path: Path | str, registered: Trajectory | None, options: InspectOptions) -> tuple[Trajectory, Data]:
    """Register the checkpoints with the given options. Options that are not given keep their registered values."""
    from ..checkpoints import GIVEN, load_as_stated, register_external, scan_folder, stated_preprocessing
    from ..data import load_data

    model, pattern, state_dict_key = options.model, options.pattern, options.state_dict_key
    mean, std, ignored = options.mean, options.std, options.ignore_tensors
    network_config = None
    if registered is not None and isinstance(registered.run, ExternalRecord):
        run = registered.run
        model, network_config, path = run.model, run.network_config, registered.source
        pattern = pattern or run.pattern
        state_dict_key = state_dict_key or run.state_dict_key
        ignored = list(run.ignore_tensors) if ignored is None else ignored
        if mean is None and std is None and run.normalized_as == GIVEN:
            mean, std = list(run.mean), list(run.std)
        channel_order = options.channel_order or run.channel_order
        _log_kept(run, options)
        data = load_data(options.config_like(run.data), on_progress=options.on_progress)
    else:
        if model is None or options.data is None:
            raise UserError("--model needs --data, which defines the classes of the network")
        stated = stated_preprocessing(scan_folder(path, pattern).last)
        named = ("image_size", "resize", "class_order", "mean")
        given = [name for name in named if getattr(options, name) is not None]
        settings, channel_order = options.config(options.data), options.channel_order
        data = load_as_stated(stated, settings, given=given, on_progress=options.on_progress)
    trajectory = register_external(
        path,
        model=model,
        data=data,
        network_config=network_config,
        pattern=pattern,
        state_dict_key=state_dict_key,
        ignore_tensors=ignored or (),
        mean=mean,
        std=std,
        channel_order=channel_order,
        accuracy=_accuracy_on(data, options),
        on_progress=options.on_progress,
    )
    return trajectory, data


def _log_kept(run: ExternalRecord, options: InspectOptions) -> None:
    """Say which options of an earlier call are kept."""
    earlier = {
        "image_size": run.data.image_size,
        "class_order": run.data.class_order if isinstance(run.data.class_order, str | None) else "as given",
        "channel_order": None if run.channel_order == "rgb" else run.channel_order,
        "pattern": run.pattern,
        "state_dict_key": run.state_dict_key,
    }
    kept = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in earlier.items()
        if value and getattr(options, name) is None
    ]
    if kept:
        log.info(
            "Kept from an earlier inspection: %s. To start again, add --model %s and --data", ", ".join(kept), run.model
        )


def _compare_with_stated(checkpoints: Sequence[Mapping[str, Any]], images: int) -> None:
    """Warn if the last checkpoint that states an accuracy is clearly less accurate here."""
    stating = [checkpoint for checkpoint in checkpoints if checkpoint["stated_accuracy"] is not None]
    for checkpoint in stating[-1:]:
        stated, measured = checkpoint["stated_accuracy"], checkpoint["val_accuracy"]
        if stated - measured > max(0.02, 4 * (max(stated * (1 - stated), 0.01) / images) ** 0.5):
            log.warning(
                "%s states an accuracy of %.1f%%, but the measured accuracy is %.1f%%. Its trainer probably used other "
                "images or other preprocessing (--image-size, --resize, --mean, --std, --class-order).",
                checkpoint["file"],
                100 * stated,
                100 * measured,
            )


def _accuracy_on(data: Data, options: InspectOptions) -> Callable[[Network], float]:
    """Return a function that measures a network's accuracy on the validation set."""
    from ..metrics import measure, predict

    device = options.torch_device
    return lambda network: measure(predict(network.to(device).eval(), data.val), data.val.labels_N)["accuracy"]
