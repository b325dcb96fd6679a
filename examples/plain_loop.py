"""A plain PyTorch loop over the batches of `distill`, with the teacher's logits from the cache.

python examples/plain_loop.py          # under a minute on two cores; scikit-learn's digits, no download
"""

from typing import Any

import torch
from torch.nn import functional as F

import checkpointkd as ckd
from checkpointkd.models import build_network

TAU = 4.0
ckd.train("wrn_16_2", data="digits", train_images=200, epochs=10, out="runs/loop/teacher")
batches: Any = ckd.cached_logits("runs/loop/teacher@last", batch_size=32)
student = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.37])
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
for epoch in range(5):
    total = 0.0
    for batch in batches.epoch(epoch):
        logits = student(batch.images_BCHW)
        target = (batch.teacher_TBK / TAU).softmax(-1).mean(0)  # Eq. 2: the mean over the teachers
        soft = TAU**2 * F.kl_div((logits / TAU).log_softmax(-1), target, reduction="batchmean")
        loss = 0.5 * F.cross_entropy(logits, batch.labels_B) + 0.5 * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    print(f"epoch {epoch + 1}: loss {total / len(batches):.3f}")
