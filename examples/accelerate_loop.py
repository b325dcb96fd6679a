"""A loop of Accelerate whose student learns from checkpoints of a run, and whose own checkpoints can be chosen from.

checkpointkd train wrn_10_1 --data digits --train-images 200 --epochs 10 --out runs/accelerate/teacher
python examples/accelerate_loop.py          # under a minute on two cores; needs accelerate
accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py          # the same in two processes
"""

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data
from checkpointkd.models import build_network

TAU, MEAN, STD = 4.0, [0.3], [0.37]
accelerator = Accelerator(cpu=True)
if accelerator.num_processes == 1:  # several processes would train it together
    ckd.train("wrn_10_1", data="digits", train_images=200, epochs=10, out="runs/accelerate/teacher")
teacher = ckd.teacher("runs/accelerate/teacher@last", tau=TAU, normalized=(MEAN, STD), device=accelerator.device)
student = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.0], std=[1.0]).body
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
train = load_data(DataConfig(data="digits", train_images=200)).train
images = (train.to_float() - MEAN[0]) / STD[0]
loader = DataLoader(TensorDataset(images, train.labels_N), batch_size=32, shuffle=True)
student, optimizer, loader = accelerator.prepare(student, optimizer, loader)
for epoch in range(1, 5):
    for images, labels in loader:
        logits, target = student(images), (teacher(images) / TAU).softmax(-1)
        soft = TAU**2 * F.kl_div((logits / TAU).log_softmax(-1), target, reduction="batchmean")
        optimizer.zero_grad()
        accelerator.backward(0.5 * F.cross_entropy(logits, labels) + 0.5 * soft)
        optimizer.step()
    ckd.save_checkpoint("output", epoch=epoch, model=student, mean=MEAN, std=STD, accelerator=accelerator)
if accelerator.is_main_process:
    for checkpoint in ckd.inspect("output", model="wrn_10_1", data="digits")["checkpoints"]:
        print(f"epoch {checkpoint['epoch']}: validation accuracy {checkpoint['val_accuracy']:.1%}")
accelerator.end_training()
