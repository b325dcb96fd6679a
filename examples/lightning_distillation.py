"""A LightningModule that learns from checkpoints of a run, and whose own checkpoints can be chosen from.

python examples/lightning_distillation.py          # under a minute on two cores; needs lightning
"""

import lightning
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data
from checkpointkd.models import build_network

TAU = 4.0
ckd.train("wrn_10_1", data="digits", train_images=200, epochs=10, out="runs/lightning/teacher")


class Student(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.37]).body
        self.teacher = [ckd.teacher("runs/lightning/teacher@last", tau=TAU)]  # in a list: not part of the student

    def training_step(self, batch, _):
        images, labels = batch
        logits, target = self.network((images - 0.3) / 0.37), (self.teacher[0](images) / TAU).softmax(-1)
        soft = TAU**2 * F.kl_div((logits / TAU).log_softmax(-1), target, reduction="batchmean")
        return 0.5 * F.cross_entropy(logits, labels) + 0.5 * soft

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


train = load_data(DataConfig(data="digits", train_images=200)).train
loader = DataLoader(TensorDataset(train.to_float(), train.labels_N), batch_size=32, shuffle=True)
lightning.Trainer(
    max_epochs=4,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[ckd.lightning_callback("checkpoints", mean=[0.3], std=[0.37])],
).fit(Student(), loader)
for checkpoint in ckd.inspect("checkpoints", model="wrn_10_1", data="digits")["checkpoints"]:
    print(f"epoch {checkpoint['epoch']}: validation accuracy {checkpoint['val_accuracy']:.1%}")
