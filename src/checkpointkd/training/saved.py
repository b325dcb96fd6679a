"""A network as its checkpoint keeps it, and its measurement on a set of images."""

from __future__ import annotations

from copy import deepcopy

from torch import Tensor, nn

from .. import records
from ..config import CheckpointDtype
from ..data import Images
from ..metrics import measure, predict
from ..ranks import Ranks
from ..records.base import Measured


def as_saved(network: nn.Module, dtype: CheckpointDtype) -> nn.Module:
    """Return the network with its weights as its checkpoint keeps them. The given network is not changed."""
    if dtype == "float32":
        return network
    copy = deepcopy(network)
    copy.load_state_dict(fp16_state_dict(network))
    return copy


def tensors_to_save(network: nn.Module, dtype: CheckpointDtype) -> dict[str, Tensor]:
    """Return the tensors of a network's checkpoint."""
    return fp16_state_dict(network) if dtype == "float16" else network.state_dict()


def fp16_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors in 16 bits; integers, and tensors that 16 bits cannot hold, stay as they are."""
    tensors = {}
    for name, tensor in network.state_dict().items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        tensors[name] = half if bool(half.isfinite().all()) else tensor
    return tensors


def measured_on(network: nn.Module, images: Images, ranks: Ranks) -> Measured:
    """Return a network's accuracy and loss on images, which the processes share."""
    return records.convert(measure(predict(network, images, ranks=ranks), images.labels_N), Measured)
