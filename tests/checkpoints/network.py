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
