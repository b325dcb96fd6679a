"""The wrapper around every network: it normalizes, so that all networks take images in [0, 1].

Networks of any origin can then share images, and a saved or exported network needs no separate preprocessing.
Letters in names: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..config import ChannelOrder


class Network(nn.Module):
    """Normalization followed by a body.

    The body is any unmodified module that maps images (B, C, H, W) to logits (B, K). It may also return an object with
    `.logits`, as Hugging Face's models do, a dict with `logits`, or a tuple or list that begins with the logits.

    Args:
        body: The module.
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel.
        channel_order: `bgr` if the body takes the blue channel first; `mean` and `std` follow this order. Images are
            RGB.
    """

    mean: Tensor
    std: Tensor
    channels: Tensor
    classes: list[str] | None = None  # class names, set by `load` where they are known

    def __init__(
        self, body: nn.Module, *, mean: Sequence[float], std: Sequence[float], channel_order: ChannelOrder = "rgb"
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))
        if channel_order == "bgr":  # a buffer, so that it is part of the content hash
            self.register_buffer("channels", torch.tensor([2, 1, 0]))
        self.body, self.channel_order = body, channel_order

    def forward(self, images_BCHW: Tensor) -> Tensor:
        if self.channel_order == "bgr":
            images_BCHW = images_BCHW[:, self.channels]
        output = self.body((images_BCHW - self.mean) / self.std)
        if isinstance(output, Mapping):
            return output["logits"] if "logits" in output else next(iter(output.values()))
        return output[0] if type(output) in (tuple, list) else getattr(output, "logits", output)
