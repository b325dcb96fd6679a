"""Register checkpoints of other trainers: what the user says of them is recorded once, then they are used like ours.

PATH/checkpointkd/run.json                     the network, the data, and each checkpoint's file and content hash
PATH/checkpointkd/plane.json, selection.json   as in a run directory

For a folder that cannot be written to, these files lie in the cache directory (`CHECKPOINTKD_HOME`).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import records, storage
from ..config import ChannelOrder, OnProgress
from ..data import Data
from ..errors import UserError, pluralize
from ..models import Network, build_network, check_trainable, read_config
from ..models.hugging_face import same_architecture
from ..records.runs import ExternalCheckpoint, ExternalRecord
from .metadata import file_fingerprint, metadata_dir, metadata_dirs, trust_code
from .scan import FoundFolder, candidate_files, scan_folder, without_path
from .stated import Preprocessing, stated_preprocessing
from .tensor_plans import UnusableFile
from .trajectory import Trajectory, open_trajectory
from .weights import weights

log = logging.getLogger("checkpointkd")

GIVEN = "as given"

Accuracy = Callable[[Network], float]
Measurement = tuple[str, str, str, str]  # network, hashes of weights and data, and which images were measured


class _Normalization(NamedTuple):
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


def register_external(
    path: Path | str,
    *,
    model: str,
    data: Data,
    network_config: Mapping[str, Any] | None = None,
    pattern: str | None = None,
    state_dict_key: str | None = None,
    ignore_tensors: Sequence[str] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channel_order: ChannelOrder | None = None,
    accuracy: Accuracy | None = None,
    on_progress: OnProgress | None = None,
) -> Trajectory:
    """Record what another trainer's folder holds, and return it as a trajectory.

    Every file is read and compared with the network.

    Args:
        path: A folder, a file, or a wildcard such as `output/run1_*.pth`.
        model: The network, as `build_network` takes it.
        data: The images that the network classifies.
        network_config: For `hf:FOLDER`, the config that was recorded before. By default FOLDER's config is read.
        pattern: The form of the file names, such as `ckpt_{epoch}.pt`. See `scan_folder`.
        state_dict_key: The key of the weights in a file that holds several sets.
        ignore_tensors: Patterns of names of tensors to ignore if the network lacks them, such as `criterion.*`.
        mean: The mean of each channel of images in [0, 1]. By default the mean that the checkpoint states, otherwise
            timm's for the model, otherwise that of the training images.
        std: The standard deviation of each channel, likewise.
        channel_order: `bgr` if the network takes the blue channel first. By default as the checkpoint states,
            otherwise `rgb`.
        accuracy: Measures each network; the result is recorded.
        on_progress: Called after each file.

    Raises:
        UserError: If a file is damaged or does not fit the network, or if the epochs cannot be told.
    """
    path = Path(path)
    if os.path.exists(path / "run.json"):
        raise UserError(f"{path} is a run directory of checkpointkd. Leave out --model.")
    folder = scan_folder(path, pattern)
    config = read_config(model) if network_config is None else dict(network_config)
    if network_config is not None:
        _warn_if_config_changed(folder, network_config)
    measured_before = _measured_before(path)
    stated = stated_preprocessing(folder.last)
    normalization = _normalization(stated, model, network_config, data, mean, std)
    channel_order = channel_order or stated.channel_order or "rgb"

    def build() -> Network:
        return _build(model, network_config, data, normalization.mean, normalization.std, channel_order)

    if accuracy is not None:
        images_BCHW = data.train.subset(torch.arange(2)).to_float()
        check_trainable(build(), images_BCHW, classes=len(data.classes), model=model)
    checkpoints, weights_at, other_sets = _read_checkpoints(
        folder,
        build().eval(),
        model=model,
        config=config,
        data=data,
        state_dict_key=state_dict_key,
        ignore_tensors=ignore_tensors,
        measured_before=measured_before,
        accuracy=accuracy,
        on_progress=on_progress,
    )
    used = {checkpoint.file for checkpoint in checkpoints.values()}
    record = ExternalRecord(
        model=model,
        classes=tuple(data.classes),
        data=data.record,
        mean=normalization.mean,
        std=normalization.std,
        network_config=config,
        channel_order=channel_order,
        seed=0,
        precision="fp32",
        provenance=records.provenance(),
        folder=str(folder.path.resolve()),  # read only from a record in the cache; others lie beside their folder
        files=None if path.is_dir() else path.name,
        pattern=pattern,
        state_dict_key=state_dict_key,
        ignore_tensors=tuple(ignore_tensors),
        weights_at=weights_at,
        other_sets=other_sets,
        normalized_as=normalization.source,
        unit=folder.unit,
        left_out=tuple(folder.left_out),
        passed_over=tuple(name for name in candidate_files(path) if name not in used),
        checkpoints=checkpoints,
    )
    metadata = _write(record, path, measured_before)
    _log(record, path)
    return open_trajectory(metadata)


def _read_checkpoints(
    folder: FoundFolder,
    network: Network,
    *,
    model: str,
    config: Mapping[str, Any] | None,
    data: Data,
    state_dict_key: str | None,
    ignore_tensors: Sequence[str],
    measured_before: dict[Measurement, float | None],
    accuracy: Accuracy | None,
    on_progress: OnProgress | None,
) -> tuple[dict[int, ExternalCheckpoint], str, tuple[str, ...]]:
    """Return the records of a folder's checkpoints, the key of the weights in all of them, and other sets in them.

    A damaged file is added to those that are left out.
    """
    checkpoints: dict[int, ExternalCheckpoint] = {}
    weights_at: str | None = None
    other_sets: dict[str, None] = {}
    damaged: UnusableFile | None = None
    for epoch, file in folder.checkpoints.items():
        try:
            stored = weights(file.path, network.body, key=state_dict_key, model=model, ignore=ignore_tensors)
        except UnusableFile as error:
            damaged = damaged or error
            folder.left_out.append(f"{file.name}: {without_path(error, file.path)}")
            continue
        if weights_at is not None and _without_wrapper(weights_at) != _without_wrapper(stored.key):
            raise UserError(
                f"{file.path} has the weights of {model} at {stored.key or 'its top'!r}, but earlier files have them "
                f"at {weights_at or 'their top'!r}. Give --state-dict-key KEY, or select some files with a wildcard."
            )
        weights_at = stored.key
        other_sets |= dict.fromkeys(stored.others)
        network.body.load_state_dict(stored.tensors)
        sha256 = storage.content_hash(network.state_dict())
        key = (_network_key(model, config), sha256, data.record.sha256, data.record.select_on)
        stored_accuracy = measured_before.get(key)
        checkpoints[epoch] = ExternalCheckpoint(
            file=os.path.relpath(file.path, folder.path),
            format=file.format,
            epoch_from=file.number_from,
            stated=file.stated,
            fingerprint=file_fingerprint(file.path) or (),
            sha256=sha256,
            accuracy=stored_accuracy if accuracy is None else accuracy(network),
            stood_in=file.stood_in,
            stated_accuracy=file.accuracy if file.accuracy_of in (None, stored.key) else None,
        )
        if on_progress is not None:
            on_progress(f"read {folder.path}", len(checkpoints), len(folder.checkpoints))
    if damaged is not None and not checkpoints:
        raise damaged
    return checkpoints, weights_at or "", tuple(other_sets)


def _without_wrapper(key: str) -> str:
    """Return a key without the parts of DataParallel: a run may continue on another number of devices."""
    return ".".join(part for part in key.split(".") if part != "module")


def refresh_external(
    trajectory: Trajectory, *, data: Data, accuracy: Accuracy | None = None, on_progress: OnProgress | None = None
) -> Trajectory:
    """Return the trajectory with the checkpoints that its folder holds now."""
    run = trajectory.run
    assert isinstance(run, ExternalRecord)
    given = run.normalized_as == GIVEN
    return register_external(
        trajectory.source,
        model=run.model,
        data=data,
        network_config=run.network_config,
        pattern=run.pattern,
        state_dict_key=run.state_dict_key,
        ignore_tensors=run.ignore_tensors,
        mean=run.mean if given else None,
        std=run.std if given else None,
        channel_order=run.channel_order,
        accuracy=accuracy,
        on_progress=on_progress,
    )


def _warn_if_config_changed(folder: FoundFolder, config: Mapping[str, Any]) -> None:
    """Warn if config.json in a folder describes another network than the one that is registered."""
    named = folder.network
    if named is not None and not same_architecture(read_config(named), config):
        log.warning(
            "config.json in %s describes another network than the registered config. The registered config is used. To "
            "use config.json, give --model %s and --data.",
            folder.last.path,
            named,
        )


def _build(
    model: str,
    network_config: Mapping[str, Any] | None,
    data: Data,
    mean: Sequence[float],
    std: Sequence[float],
    channel_order: ChannelOrder = "rgb",
) -> Network:
    return build_network(
        model,
        num_classes=len(data.classes),
        in_channels=len(mean),
        mean=mean,
        std=std,
        config=network_config,
        channel_order=channel_order,
    )


def _write(record: ExternalRecord, path: Path, measured_before: dict[Measurement, float | None]) -> Path:
    """Write the record; remove scores of another architecture, and a selection among other networks or images."""
    metadata = _first_writable(metadata_dirs(path))
    with storage.locked(metadata):
        storage.write_json(metadata / "run.json", record)
        trust_code(record)
        selection = metadata / "selection.json"
        if selection.exists() and not _measurements(record).keys() >= measured_before.keys():
            selection.unlink()
        if any(network != _network_key(record.model, record.network_config) for network, *_ in measured_before):
            (metadata / "plane.json").unlink(missing_ok=True)
    return metadata


def _log(record: ExternalRecord, path: Path) -> None:
    log.info(
        "%s: %s of %s (%s), last %s %d. Images are normalized with mean %s and std %s (%s)",
        path,
        pluralize(len(record.checkpoints), "checkpoint"),
        record.model,
        ", ".join(sorted({checkpoint.format for checkpoint in record.checkpoints.values()})),
        record.unit,
        max(record.checkpoints),
        _decimals(record.mean),
        _decimals(record.std),
        record.normalized_as,
    )
    for reason in record.left_out:
        log.info("Left out: %s", reason)


def _measurements(record: ExternalRecord) -> dict[Measurement, float | None]:
    """Return the recorded accuracies, by network, data and validation images."""
    return {
        (network, checkpoint.sha256, record.data.sha256, record.data.select_on): checkpoint.accuracy
        for network in [_network_key(record.model, record.network_config)]
        for checkpoint in record.checkpoints.values()
    }


def _network_key(model: str, config: Mapping[str, Any] | None) -> str:
    """Return a key of the architecture. Two configs may have tensors of the same names and shapes."""
    return model if config is None else storage.cache_key(config)


def _measured_before(path: Path) -> dict[Measurement, float | None]:
    """Return the accuracies recorded here before; none where the record is missing or damaged."""
    try:
        metadata = metadata_dir(path)
        run = None if metadata is None else open_trajectory(metadata).run
    except UserError:
        return {}
    return _measurements(run) if isinstance(run, ExternalRecord) else {}


def _normalization(
    stated: Preprocessing,
    model: str,
    network_config: Mapping[str, Any] | None,
    data: Data,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> _Normalization:
    """Return the mean and deviation of each channel: the user's, the files', timm's, or the training images' own."""
    own_mean, own_std = data.train.channel_statistics()
    channels = len(own_mean)
    if mean is not None or std is not None:
        mean, std = tuple(mean or ()), tuple(std or ())
        if not (len(mean) == len(std) and len(mean) in (1, channels)):
            raise UserError(
                f"Give --mean and --std together, with one number for each of the {channels} channels. A network that "
                "takes one channel gets the images in gray if each option has one number."
            )
        if not _usable(mean, std, len(mean)):
            raise UserError(
                "--mean and --std are for images in [0, 1]: give finite numbers below 10, and --std above 0"
            )
        return _Normalization(mean, std, GIVEN)
    pretrained = getattr(_build(model, network_config, data, own_mean, own_std).body, "pretrained_cfg", {})
    for source, stated_mean, stated_std in (
        (stated.source, stated.mean, stated.std),
        ("timm's default for this model", pretrained.get("mean"), pretrained.get("std")),
    ):
        if stated_mean is not None and stated_std is not None:
            if any(_usable(stated_mean, stated_std, number) for number in (channels, 1)):
                return _Normalization(tuple(stated_mean), tuple(stated_std), source)
            log.warning(
                "The mean and standard deviation (%s) do not fit %d channels and are ignored. Give --mean and --std.",
                source,
                channels,
            )
    return _Normalization(tuple(own_mean), tuple(own_std), "measured on the training images")


def _usable(mean: Any, std: Any, channels: int) -> bool:
    """Whether these are means and deviations of so many channels in [0, 1]."""
    lists = [values for values in (mean, std) if isinstance(values, list | tuple) and len(values) == channels]
    return (
        len(lists) == 2
        and all(type(value) in (int, float) and math.isfinite(value) for values in lists for value in values)
        and all(abs(value) < 10 for values in lists for value in values)
        and min(std) > 0
    )


def _first_writable(folders: Sequence[Path]) -> Path:
    """Return the first folder that exists, or can be made, and is writable; the last is not tested."""
    for folder in folders[:-1]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return folders[-1]


def _decimals(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
