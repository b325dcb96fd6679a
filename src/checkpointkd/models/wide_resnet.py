"""Wide residual networks (Zagoruyko and Komodakis, arXiv 1605.07146) for small images: WRN-depth-width.

Letters in names: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError

MAX_WIDTH = 64  # a WRN-10 of this width has 300 million parameters


class WideResNet(nn.Module):
    """WRN-depth-width: three stages of (depth − 4) / 6 pre-activation blocks with 16, 32 and 64 times width channels.

    Raises:
        UserError: `depth` is not 6n + 4, or `width` is not from 1 to 64.

    >>> sum(parameter.numel() for parameter in WideResNet(40, 2, num_classes=100, in_channels=3).parameters())
    2255156
    """

    def __init__(self, depth: int, width: int, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 != 0 or not 1 <= width <= MAX_WIDTH:
            nearest = f"wrn_{max(10, 6 * round((depth - 4) / 6) + 4)}_{min(max(width, 1), MAX_WIDTH)}"
            raise UserError(
                f"Unknown model 'wrn_{depth}_{width}'. Wide ResNets have 6n + 4 layers and a width from 1 to "
                f"{MAX_WIDTH}: did you mean {nearest}?"
            )
        blocks = (depth - 4) // 6
        stages = [16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.stage1 = _stage(blocks, 16, stages[0], stride=1)
        self.stage2 = _stage(blocks, stages[0], stages[1], stride=2)
        self.stage3 = _stage(blocks, stages[1], stages[2], stride=2)
        self.bn = nn.BatchNorm2d(stages[2])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(stages[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        maps = self.stage3(self.stage2(self.stage1(self.conv1(images_BCHW))))
        return self.classifier(self.pool(self.relu(self.bn(maps))).flatten(1))


class Block(nn.Module):
    """BN-ReLU-conv twice, and a shortcut.

    Where the number of channels changes, the shortcut is a 1×1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False) if in_channels != out_channels else None
        )

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        active = F.relu(self.bn1(maps_BCHW))
        shortcut = maps_BCHW if self.shortcut is None else self.shortcut(active)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))


def _stage(blocks: int, in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    first = Block(in_channels, out_channels, stride=stride)
    return nn.Sequential(first, *(Block(out_channels, out_channels, stride=1) for _ in range(blocks - 1)))
