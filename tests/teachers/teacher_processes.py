"""Learn from `ckd.teacher` in several processes: `torchrun teacher_processes.py TEACHER FOLDER HOW`.

HOW is `ddp`, where the teacher is a part of the wrapped module, or `accelerate`. Each process writes its final student
and teacher to FOLDER/HOW-WORLD-RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import checkpointkd as ckd

BATCH, STEPS, TAU = 8, 3, 4.0


class Learner(nn.Module):
    """A student with its teacher, whose output is the loss."""

    def __init__(self, reference: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        self.teacher = ckd.teacher(reference, tau=TAU)

    def forward(self, images: Tensor) -> Tensor:
        target = (self.teacher(images) / TAU).softmax(-1)
        return TAU**2 * F.kl_div((self.student(images) / TAU).log_softmax(-1), target, reduction="batchmean")


def main(reference: str, folder: str, how: str) -> None:
    learner = Learner(reference)
    images = torch.rand(STEPS, BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(learner.student.parameters(), lr=0.1, momentum=0.9)
    accelerator = None
    if how == "accelerate":
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        rank, world = accelerator.process_index, accelerator.num_processes
        model, optimizer = accelerator.prepare(learner, optimizer)
    else:
        torch.distributed.init_process_group("gloo")
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        model = nn.parallel.DistributedDataParallel(learner)
    model.train()
    for step in range(STEPS):
        loss = model(images[step, rank::world])
        optimizer.zero_grad()
        loss.backward() if accelerator is None else accelerator.backward(loss)
        optimizer.step()
        if accelerator is not None:
            path = ckd.save_checkpoint(
                f"{folder}/saved-{world}", epoch=step + 1, model=model, mean=[0.0], std=[1.0], accelerator=accelerator
            )
            assert path.exists(), "it is there when the function returns, in every process"
    torch.save(
        [part.state_dict() for part in (learner.student, learner.teacher)], Path(folder) / f"{how}-{world}-{rank}.pt"
    )
    if accelerator is None:
        torch.distributed.destroy_process_group()
    else:
        accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
