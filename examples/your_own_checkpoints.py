"""Use checkpoints that your own training loop saved: choose a teacher among them, and distill a student from it.

python examples/your_own_checkpoints.py          # about one minute on two cores; scikit-learn's digits, no download

The network and the training loop below are plain PyTorch. Only `main` uses checkpointkd.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data

FOLDER = Path("runs/your-own")
STUDENTS = Path("runs/your-own-students")


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


# checkpointkd builds a network by calling such a function.
def large(num_classes: int, in_channels: int) -> Net:
    return Net(48, num_classes, in_channels)


def small(num_classes: int, in_channels: int) -> Net:
    return Net(16, num_classes, in_channels)


def train_with_plain_pytorch() -> None:
    digits = load_data(DataConfig(data="digits", select_on="test")).train  # does not read the test set
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
    train_with_plain_pytorch()

    # Register the folder once: which network, which data, and how the images were normalized.
    model = f"{Path(__file__).stem}:large"
    inspected = ckd.inspect(FOLDER, model=model, data="digits", select_on="test", mean=[0.3], std=[0.37])
    for checkpoint in inspected["checkpoints"]:
        print(f"epoch {checkpoint['epoch']:2}: {checkpoint['val_accuracy']:.1%}  {checkpoint['file']}")

    # From now on, use the folder like a run.
    ckd.score(FOLDER, decoder_steps=200)
    print(ckd.select(FOLDER).reason)

    # Students that see a third of the images: without a teacher, with the chosen checkpoint, and with two.
    student = f"{Path(__file__).stem}:small"
    settings: dict[str, Any] = {"train_images": 100, "epochs": 100, "save_every": 100}
    no_teacher = ckd.train(student, data="digits", select_on="test", out=STUDENTS / "no-teacher", **settings)
    print(f"no teacher: {no_teacher.test_accuracy:.1%}")
    for refs in (["best"], ["midpoint", "last"]):
        teachers = [f"{FOLDER}@{ref}" for ref in refs]
        taught = ckd.distill(student, teachers=teachers, out=STUDENTS / "-".join(refs), **settings)
        print(f"teachers {', '.join(refs)}: {taught.test_accuracy:.1%}")


if __name__ == "__main__":
    main()
