"""MobileNetV2 (Sandler et al., arXiv 1801.04381) for 32×32 and 64×64 images, in the variant of distillation papers.

Differences from ImageNet's (timm:mobilenetv2_100): fewer strides, channels rounded down to integers instead of to
multiples of 8, an expansion layer also in the first block, ReLU instead of ReLU6.

Letters in names: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import UserError

# Expansion, channels, blocks, stride of each stage.
STAGES = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


class MobileNetV2(nn.Module):
    """MobileNetV2 with a width multiplier; the last convolution keeps 1,280 channels at widths up to 1.

    Raises:
        UserError: `width` is not from 0.1 to 4.

    >>> sum(parameter.numel() for parameter in MobileNetV2(0.75, num_classes=100, in_channels=3).parameters())
    1475692
    """

    def __init__(self, width: float, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        if not 0.1 <= width <= 4:
            raise UserError(
                f"Unknown model 'mobilenetv2_{width:g}'. The width must be from 0.1 to 4, for example mobilenetv2_0.75."
            )
        channels = int(32 * width)
        self.stem = _convolution(in_channels, channels, kernel=3, stride=2)
        blocks = []
        for expansion, stage_channels, count, stride in STAGES:
            for number in range(count):
                out_channels = int(stage_channels * width)
                blocks.append(InvertedResidual(channels, out_channels, expansion, stride if number == 0 else 1))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        last_channels = int(1280 * max(1.0, width))
        self.last = _convolution(channels, last_channels, kernel=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # the fan-out ignores groups
                nn.init.normal_(module.weight, std=(2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.classifier(self.pool(self.last(self.blocks(self.stem(images_BCHW)))).flatten(1))


class InvertedResidual(nn.Module):
    """A 1×1 expansion, a 3×3 depthwise convolution and a 1×1 projection; a shortcut where the shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden_channels = in_channels * expansion
        self.layers = nn.Sequential(
            _convolution(in_channels, hidden_channels, kernel=1),
            _convolution(hidden_channels, hidden_channels, kernel=3, stride=stride, groups=hidden_channels),
            nn.Conv2d(hidden_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        output_BCHW = self.layers(maps_BCHW)
        return maps_BCHW + output_BCHW if self.residual else output_BCHW


def _convolution(
    in_channels: int, out_channels: int, *, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
