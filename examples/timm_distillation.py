"""timm's own distillation task, with checkpoints of a run as its teacher.

python examples/timm_distillation.py          # under a minute on two cores; needs the extra timm
"""

from typing import Any

import timm
import torch
from timm.task import LogitDistillationTask

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data

ckd.train("wrn_10_1", data="digits", train_images=200, epochs=10, out="runs/timm/teacher")
teacher = ckd.teacher("runs/timm/teacher@midpoint", "runs/timm/teacher@last", tau=4.0)
student: Any = timm.create_model("test_resnet", num_classes=10, in_chans=1)
student.pretrained_cfg = {**student.pretrained_cfg, "mean": (0.3,), "std": (0.37,)}
task: Any = LogitDistillationTask(student, teacher_model=teacher, temperature=4.0, task_loss_weight=0.5, verbose=False)
optimizer = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9)
batches = load_data(DataConfig(data="digits", train_images=200)).train.batches(batch_size=32, seed=0, device="cpu")
task.train()
for epoch in range(3):
    losses = []
    for batch in batches.epoch(epoch):
        loss = task((batch.images_BCHW - task.student_mean) / task.student_std, batch.labels_B)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")
