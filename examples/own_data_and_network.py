"""Your own data set and network: train a teacher, distill a student, save it for plain PyTorch.

python examples/own_data_and_network.py          # under a minute on two cores; scikit-learn's digits, no download
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

import checkpointkd as ckd


class Digits(Dataset):
    """Any map-style data set of (image, label). This one shifts its training images at random."""

    def __init__(self, rows: slice, shift: bool = False):
        digits: Any = load_digits()
        self.images = torch.tensor(digits.images[rows] / 16).float()[:, None]
        self.labels, self.shift = digits.target[rows], shift

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        image = self.images[number]
        if self.shift:
            image = torch.roll(image, int(torch.randint(-1, 2, ())), dims=-1)
        return image, int(self.labels[number])


def network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    )  # fmt: skip


data = ckd.Data(
    train=Digits(slice(0, 600), shift=True), val=Digits(slice(600, 900)), test=Digits(slice(900, None)), classes=10
)
large, small = ckd.named(lambda: network(32), "large"), ckd.named(lambda: network(8), "small")
settings: Any = {"epochs": 8, "batch_size": 32, "learning_rate": 0.05}
teacher = ckd.train(large, data=data, out="runs/own/teacher", **settings)
student = ckd.distill(small, teachers=["runs/own/teacher@last"], out="runs/own/student", **settings)
print(f"teacher {teacher.test_accuracy:.1%}, student {student.test_accuracy:.1%}")
print(ckd.export("runs/own/student", out="student")["files"])
