"""The features of many images, with bounded memory: 16 bits for large images, in host memory if they are many.

Letters in names: A checkpoints, N images, B batch, K classes, D channels, h w map height and width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import Images, eval_batch_size
from ..errors import UserError
from ..models import Network, as_map, capture_activations

log = logging.getLogger("checkpointkd")

LARGE_SIDE = 32  # pixels; the features of larger images are stored in 16 bits
MAX_MAP_BYTES = 7.5e8  # of features on an accelerator, over all checkpoints that are scored together
BATCH_PIXELS = 1_500_000  # in a batch of large images, whose activations take more memory than its features
_LARGEST = torch.finfo(torch.float16).max


def is_large(images: Images) -> bool:
    """Return whether images are larger than CIFAR's, so that their features are stored in 16 bits."""
    return max(images.shape[1:]) > LARGE_SIDE


def feature_batch_size(images: Images, device: torch.device | str = "cpu") -> int:
    """Return how many images to run through a network or through decoders at once."""
    size = eval_batch_size(images, device)
    return max(1, min(size, BATCH_PIXELS // (images.shape[1] * images.shape[2]))) if is_large(images) else size


@torch.no_grad()
def maps_and_logits(
    network: Network, images: Images, layer: str, *, maps_on: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return the map of a layer and the logits for every clean image.

    Args:
        network: The network.
        images: Images in [0, 1].
        layer: The path of a module in the body of the network.
        maps_on: Where to store the maps. Default: the device of the network.

    Returns:
        The maps (N, h, w, D), float32, or float16 for large images. The logits (N, K) on the CPU.

    Raises:
        UserError: If the layer's output is no map, if pixels are not in [0, 1], or if features are not finite.
    """
    device = next(network.parameters()).device
    maps_NhwD, logits_NK, start = torch.empty(0), torch.empty(0), 0
    with capture_activations(network.body, [layer]) as activations:
        for images_BCHW in images.iter_batches(feature_batch_size(images, device)):
            if not ((images_BCHW >= 0) & (images_BCHW <= 1)).all():
                low, high = images_BCHW.min(), images_BCHW.max()
                raise UserError(f"Images must be in [0, 1], but these are in [{low:g}, {high:g}]")
            logits_BK = network(images_BCHW.to(device, memory_format=torch.channels_last))
            if not isinstance(logits_BK, Tensor) or logits_BK.dim() != 2:
                shape = list(logits_BK.shape) if isinstance(logits_BK, Tensor) else type(logits_BK).__name__
                raise UserError(f"The network must return logits (images, classes), not {shape}")
            if layer not in activations:
                raise UserError(f"The network never computes the layer {layer!r}. Choose another --feature-layer.")
            maps_BhwD = as_map(activations[layer], images.shape[1:])
            expected = (len(images_BCHW), *(maps_NhwD.shape[1:] if start else ()))
            if maps_BhwD is None or maps_BhwD.shape[: len(expected)] != expected:
                raise UserError(
                    f"The output of layer {layer!r} is neither a feature map nor a sequence of tokens. It has the "
                    f"shape {list(activations[layer].shape[1:])} per image. Choose another --feature-layer."
                )
            if not maps_BhwD.isfinite().all():
                raise UserError(
                    f"The output of layer {layer!r} has NaN or infinite values. The checkpoint may be damaged."
                )
            if start == 0:
                # allocated once: small tensors between large temporary ones would fragment the memory
                logits_NK = torch.empty(len(images), logits_BK.shape[1])
                kept_as = torch.float16 if is_large(images) else torch.float32
                maps_NhwD = torch.empty(
                    (len(images), *maps_BhwD.shape[1:]),
                    dtype=kept_as,
                    device=maps_on if maps_on is not None else device,
                )
            if maps_NhwD.dtype == torch.float16 and maps_BhwD.abs().max() > _LARGEST:
                log.warning(
                    "The output of layer %r has values beyond %d, which float16 cannot hold. They are clipped.",
                    layer,
                    _LARGEST,
                )
                maps_BhwD = maps_BhwD.clamp(-_LARGEST, _LARGEST)
            maps_NhwD[start : start + len(maps_BhwD)] = maps_BhwD
            logits_NK[start : start + len(maps_BhwD)] = logits_BK
            start += len(maps_BhwD)
    return maps_NhwD, logits_NK


def rows_of(maps_ANhwD: Sequence[Tensor] | Tensor, rows: Tensor | slice, device: torch.device) -> Tensor:
    """Return the maps of some images by each checkpoint, (A, B, h, w, D), float32, on a device."""
    return torch.stack([maps_NhwD[rows].to(device).float() for maps_NhwD in maps_ANhwD])
