"""The wrapper around every network: it normalizes, so that all networks take images in [0, 1].

Networks of any origin can then share images, and a saved or exported network needs no separate preprocessing.
Letters in names: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import ChannelOrder
from .hooks import main_output

ONE_CHANNEL = (  # the end of a message about a network with one channel and images in color
    ". For a network that takes one channel, give `checkpointkd inspect` --mean M --std S with one number each. The "
    "network then gets the images in gray."
)


class Network(nn.Module):
    """Normalization followed by a body.

    The body is any unmodified module that maps images (B, C, H, W) to logits (B, K). It may also return an object with
    `.logits`, as Hugging Face's models do, a dict with `logits`, or a tuple or list that begins with the logits.

    A network whose mean has one channel takes gray images, or images in color, which it converts to gray.

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
        return main_output(self.body(self.normalized(images_BCHW)))[0]

    def normalized(self, images_BCHW: Tensor) -> Tensor:
        """Return the body's input for a batch of images in [0, 1]."""
        if self.channel_order == "bgr":
            images_BCHW = images_BCHW[:, self.channels]
        if self.mean.shape[1] == 1 and images_BCHW.shape[1] == 3:
            red, green, blue = images_BCHW.split(1, dim=1)
            images_BCHW = 0.299 * red + 0.587 * green + 0.114 * blue  # as Pillow (ITU-R BT.601)
        return (images_BCHW - self.mean) / self.std
