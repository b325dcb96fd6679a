"""Checkpoints that your own training loop left: which of them should teach, and a student from it.

python examples/your_own_checkpoints.py          # about half a minute on two cores; real digits, no download

The network and the loop below need nothing of this toolkit but the digits; it is told once what the files are of.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data

FOLDER = Path("runs/your-own")


class Net(nn.Module):
    def __init__(self, width: int, num_classes: int, in_channels: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, stride=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


# What the toolkit calls: the names of the sizes are all that it asks for.
def large(num_classes: int, in_channels: int) -> Net:
    return Net(48, num_classes, in_channels)


def small(num_classes: int, in_channels: int) -> Net:
    return Net(16, num_classes, in_channels)


def train_as_you_always_did() -> None:
    digits = load_data(DataConfig(data="digits", select_on="test")).train  # the test images stay unseen
    x, y = digits.to_float()[:300], digits.labels_N[:300]
    torch.manual_seed(0)
    model = large(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(20):
        for rows in torch.randperm(len(x)).split(50):
            loss = nn.functional.cross_entropy(model((x[rows] - 0.3) / 0.37), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 4 == 3:
            torch.save({"epoch": epoch + 1, "model": model.state_dict()}, FOLDER / f"checkpoint_{epoch + 1}.pt")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    train_as_you_always_did()

    # Said once: which network, which data, and how its images were normalized. It is remembered beside the files.
    model = f"{Path(__file__).stem}:large"
    found = ckd.inspect(FOLDER, model=model, data="digits", select_on="test", mean=[0.3], std=[0.37])
    for checkpoint in found["checkpoints"]:
        print(f"epoch {checkpoint['epoch']:2}: {checkpoint['val_accuracy']:.1%}  {checkpoint['file']}")

    # From here on, the folder is used like a run.
    ckd.score(FOLDER, decoder_steps=200)
    print(ckd.select(FOLDER).reason)
    # A student that sees a third of the images, from nobody, from the chosen checkpoint, and from two.
    student = f"{Path(__file__).stem}:small"
    common: dict[str, Any] = {"train_images": 100, "epochs": 100, "save_every": 100}
    alone = ckd.train(student, data="digits", select_on="test", out="runs/your-own-students/alone", **common)
    print(f"student of nobody: {alone.test_accuracy:.1%}")
    for teachers in ([f"{FOLDER}@best"], [f"{FOLDER}@midpoint", f"{FOLDER}@last"]):
        taught = ckd.distill(student, teachers=teachers, out=f"runs/your-own-students/{len(teachers)}", **common)
        print(f"student of {' and '.join(teachers)}: {taught.test_accuracy:.1%}")


if __name__ == "__main__":
    main()
