"""ResNets for small images (He et al., arXiv 1512.03385, §4.2): 6n + 2 layers, shortcuts without parameters.

Letters in names: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError


class ResNet(nn.Module):
    """ResNet-depth for small images: three stages of n = (depth − 2) / 6 blocks with 16, 32 and 64 channels.

    Raises:
        UserError: `depth` is not 6n + 2.

    >>> sum(parameter.numel() for parameter in ResNet(32, num_classes=100, in_channels=3).parameters())
    470004
    """

    def __init__(self, depth: int, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6 != 0:
            nearest = max(8, 6 * round((depth - 2) / 6) + 2)
            imagenet = f" or timm:resnet{depth}" if depth in (18, 34, 101) else ""
            raise UserError(
                f"Unknown model 'resnet_{depth}'. ResNets for small images have 6n + 2 layers: did you mean "
                f"resnet_{nearest}{imagenet}?"
            )
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.stage1 = _stage(blocks, 16, 16, stride=1)
        self.stage2 = _stage(blocks, 16, 32, stride=2)
        self.stage3 = _stage(blocks, 32, 64, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        maps = F.relu(self.bn1(self.conv1(images_BCHW)))
        return self.classifier(self.pool(self.stage3(self.stage2(self.stage1(maps)))).flatten(1))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut.

    Where the map shrinks, the shortcut takes every second pixel and pads the channels with zeros (option A).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.stride, self.added_channels = stride, out_channels - in_channels

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        shortcut = maps_BCHW[:, :, :: self.stride, :: self.stride]
        if self.added_channels:
            half = self.added_channels // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, half, self.added_channels - half))
        return self.relu(shortcut + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps_BCHW))))))


def _stage(blocks: int, in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride=stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, stride=1) for _ in range(blocks - 1)))
