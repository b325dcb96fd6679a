"""A Trainer of transformers whose student learns from checkpoints of a run.

python examples/hugging_face_trainer.py          # under a minute on two cores; needs transformers and accelerate
"""

from typing import Any

from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data

TAU = 4.0
ckd.train("wrn_10_1", data="digits", train_images=200, epochs=10, out="runs/trainer/teacher")
teacher = ckd.teacher("runs/trainer/teacher@last", tau=TAU)


class DistillationTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        target = (teacher(inputs["pixel_values"]) / TAU).softmax(-1)
        soft = TAU**2 * F.kl_div((outputs.logits / TAU).log_softmax(-1), target, reduction="batchmean")
        loss = 0.5 * outputs.loss + 0.5 * soft
        return (loss, outputs) if return_outputs else loss


train: Any = load_data(DataConfig(data="digits", train_images=200)).train
rows: Any = [
    {"pixel_values": image, "labels": label} for image, label in zip(train.to_float(), train.labels_N, strict=True)
]
sizes: Any = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_channels": 1, "num_labels": 10}
student = ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic"))
arguments = TrainingArguments(
    "trainer", num_train_epochs=3, per_device_train_batch_size=32, learning_rate=5e-3, use_cpu=True, report_to="none",
    save_strategy="no", disable_tqdm=True, logging_strategy="epoch", dataloader_pin_memory=False,
)  # fmt: skip
result = DistillationTrainer(model=student, args=arguments, train_dataset=rows).train()
print(f"loss {result.training_loss:.3f} over {result.global_step} steps")
