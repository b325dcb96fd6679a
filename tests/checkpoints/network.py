"""A network of a user who does not use checkpointkd."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)) for _ in "ab")
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


def build(num_classes: int, in_channels: int) -> Net:
    return Net(num_classes, in_channels)


def build_transformers(num_classes: int, in_channels: int) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=in_channels,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=num_classes,
    )
    return ResNetForImageClassification(config)


class RepDistillerBlock(nn.Module):
    """A block of RepDistiller's Wide ResNet, by hand: the repository is in no package."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        out = self.conv2(self.bn2(self.conv1(active)).relu())
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class RepDistillerPart(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(RepDistillerBlock(inputs, outputs, stride), RepDistillerBlock(outputs, outputs, 1))


class RepDistillerWideResNet(nn.Module):
    """WRN-16-1 with the names of RepDistiller, mdistiller and LSKD."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1, self.block2, self.block3 = (
            RepDistillerPart(inputs, outputs, stride)
            for inputs, outputs, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for part in (self.block1, self.block2, self.block3):
            x = part.layer(x)
        return self.fc(self.bn1(x).relu().mean((2, 3)))


class With(nn.Module):
    """A network whose output a function changes."""

    def __init__(self, net: nn.Module, change) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor):
        return self.change(self.net(x))


def build_wrapped(num_classes: int, in_channels: int) -> nn.Module:
    return With(build(num_classes, in_channels), lambda logits: logits)


def build_tuple(num_classes: int, in_channels: int) -> nn.Module:
    return With(build(num_classes, in_channels), lambda logits: (logits, logits[:, :3]))


def build_list(num_classes: int, in_channels: int) -> nn.Module:
    return With(build(num_classes, in_channels), lambda logits: [logits, [logits]])


def build_dict(num_classes: int, in_channels: int) -> nn.Module:
    return With(build(num_classes, in_channels), lambda logits: {"features": logits[:, :3], "logits": logits})
