"""Weight-averaged teachers: one network whose weights are a weighted mean of checkpoints of one trajectory.

The running statistics of batch norm are not averaged: activations of the averaged network differ from those of its
checkpoints. They are measured again on training images.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .. import storage
from ..config import cache_dir
from ..data import config_of, load_data
from ..errors import UserError, pluralize
from ..models import Network, names_code
from .trajectory import Checkpoint, Trajectory, build_from_run
from .weights import differing_shapes

log = logging.getLogger("checkpointkd")

FORMS = "mean:0.7-1.0 (all saved checkpoints in this part of the training) or decay-mean:0.9"
STATISTICS_IMAGES, STATISTICS_BATCH = 2000, 250  # training images for the statistics of batch norm
_FRACTION = r"([0-9]{0,9}\.[0-9]{1,9}|[01])"


def names_average(which: str) -> bool:
    """Return whether the part of a reference after @ names a weight average."""
    return which.startswith(("mean:", "decay-mean:"))


def average(trajectory: Trajectory, which: str) -> Checkpoint:
    """Return a weight average of checkpoints as a checkpoint. It is made once, and stored in the cache.

    Args:
        trajectory: The trajectory.
        which: `mean:A-B`, the mean over the saved checkpoints between the fractions A and B of the training; or
            `decay-mean:D`, the mean over all saved checkpoints, in which each counts D times as much as the next.

    Raises:
        UserError: If `which` is neither of these, if it names fewer than two checkpoints, or if the checkpoints differ
            in shape or hold values that are not finite. Also if batch norm needs training images that are not found.
    """
    shares = _shares(trajectory, which)
    members = [trajectory[epoch] for epoch in shares]
    last = members[-1]
    identity = {
        "checkpoints": [[member.sha256, shares[member.epoch]] for member in members],
        "data": trajectory.run.data.identity,
        "images": [STATISTICS_IMAGES, STATISTICS_BATCH],
    }
    path = cache_dir() / "averages" / f"{storage.cache_key(identity)}.safetensors"
    averaged = Checkpoint(path, last.epoch, trajectory.run, average=which, averaged_from=last.path)
    if names_code(trajectory.run.model) or not _is_stored(path):  # a user's code may have changed
        epochs = ", ".join(map(str, shares))
        log.info("%s of %s: %ss %s", which, trajectory.source, trajectory.unit, epochs)
        network = build_from_run(trajectory.run)
        network.load_state_dict(_mean(trajectory, shares))
        measure_statistics(network, trajectory)
        storage.save_tensors(path, network.state_dict(), {"epoch": str(last.epoch)})
    return averaged


def _is_stored(path: Path) -> bool:
    try:
        storage.load_tensors(path)
    except UserError:
        return False
    return True


def _shares(trajectory: Trajectory, which: str) -> dict[int, float]:
    """Return the share of each averaged checkpoint, by epoch; shares sum to 1."""
    between = re.fullmatch(rf"mean:{_FRACTION}-{_FRACTION}", which)
    decay = re.fullmatch(rf"decay-mean:{_FRACTION}", which)
    if between:
        low, high = float(between[1]), float(between[2])
        planned = trajectory.planned_epochs
        weights = {epoch: 1.0 for epoch in trajectory if low * planned - 1e-6 <= epoch <= high * planned + 1e-6}
    elif decay and 0 < float(decay[1]) < 1:
        epochs = list(trajectory)
        weights = {epoch: float(decay[1]) ** (len(epochs) - 1 - number) for number, epoch in enumerate(epochs)}
    else:
        raise UserError(f"{which!r} is no weight average. Write {FORMS}.")
    if len(weights) < 2:
        saved = ", ".join(map(str, trajectory))
        raise UserError(
            f"{which} of {trajectory.source} holds {pluralize(len(weights), 'checkpoint')}, and an average needs two "
            f"(saved {trajectory.unit}s: {saved})"
        )
    return {epoch: weight / sum(weights.values()) for epoch, weight in weights.items()}


def _mean(trajectory: Trajectory, shares: Mapping[int, float]) -> dict[str, Tensor]:
    """Return the weighted mean of the checkpoints' tensors. Of integers, the last checkpoint's count."""
    total: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    for epoch, share in shares.items():
        last = trajectory[epoch].network().state_dict()
        for name, tensor in last.items():
            if not tensor.isfinite().all():
                raise UserError(
                    f"{trajectory[epoch].path} has values in {name} that are not finite, so it cannot be averaged"
                )
        if total and (differing := differing_shapes(total, last)):
            raise UserError(f"{trajectory[epoch].path} cannot be averaged with earlier checkpoints: {differing}")
        for name, tensor in last.items():
            if tensor.is_floating_point():
                total[name] = total.get(name, 0.0) + share * tensor.double()
            else:
                total[name] = tensor
    return {name: total[name].to(last[name].dtype) for name in last}


@torch.no_grad()
def measure_statistics(network: Network, trajectory: Trajectory) -> None:
    """Set the running statistics of batch norm to those of training images, without augmentation."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    images = load_data(config_of(trajectory.run.data)).train
    images = images.subset(torch.arange(min(STATISTICS_IMAGES, len(images))))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for images_BCHW in images.iter_batches(STATISTICS_BATCH):
        if len(images_BCHW) > 1:
            network(images_BCHW)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
