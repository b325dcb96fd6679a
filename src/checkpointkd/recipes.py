"""Named training settings. A variant is a function that changes another's result.

Accuracies are on the test set. A recipe without a number of ours has not been reproduced with this toolkit yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .config import Recipe
from .errors import unknown_name


def digits() -> Recipe:
    """WRN-16-2 on scikit-learn's digits, sized for the demo. Not from the paper.

    checkpointkd train wrn_16_2 --data digits --out RUN
    """
    return Recipe(epochs=40, batch_size=32, source="ours: sized for scikit-learn's digits")


def cifar100() -> Recipe:
    """The paper's CIFAR-100 training, with the cosine schedule of its footnote 3. Not reproduced yet.

    checkpointkd train wrn_40_2 --data cifar100 --save-every 10 --select-on test --out RUN

    Paper: WRN-40-2 76.53%, midpoint 62.99%; ResNet-110 73.41%, midpoint 59.43% (Table 1, mean of five).
    """
    return Recipe(source="Wang et al. 2022, §3.2 and footnote 3")


def cifar100_step() -> Recipe:
    """The same with the schedule of the authors' code, ×0.1 every 60 epochs. Not reproduced yet.

    The paper does not say which of the two schedules its numbers come from.

    checkpointkd train wrn_40_2 --data cifar100 --recipe cifar100-step --save-every 10 --select-on test --out RUN
    """
    return replace(cifar100(), lr_schedule="step", source="Wang et al. 2022, the authors' code")


def tiny_imagenet() -> Recipe:
    """The paper's 150 epochs on Tiny-ImageNet; settings that it does not give are CIFAR-100's. Not reproduced yet.

    checkpointkd train wrn_40_2 --data tiny-imagenet --save-every 75 --select-on test --out RUN

    Paper: WRN-40-2 57.61% (Table 2, mean of five).
    """
    return replace(cifar100(), epochs=150, source="Wang et al. 2022, §3.2; the schedule is CIFAR-100's")


def imagenet() -> Recipe:
    """PyTorch's usual ImageNet training, for the paper's 120 epochs. Not reproduced yet.

    checkpointkd train timm:resnet34 --data imagenet:PATH --save-every 60 --select-on test --out RUN

    Paper: ResNet-34 73.86%, midpoint 66.08%; ResNet-50 76.93%, midpoint 69.14% (Table 1).
    """
    return Recipe(
        epochs=120,
        batch_size=256,
        nesterov=False,
        weight_decay=1e-4,
        lr_schedule="step",
        step_every=30,
        source="Wang et al. 2022, §3.2: the standard PyTorch practice",
    )


def imagenet_cosine() -> Recipe:
    """The same with a cosine schedule. Not reproduced yet.

    The paper's midpoint accuracies on ImageNet are 0.90 of the last ones, which fits cosine better than steps.

    checkpointkd train timm:resnet34 --data imagenet:PATH --recipe imagenet-cosine --save-every 60 --out RUN
    """
    return replace(imagenet(), lr_schedule="cosine", source="ours: imagenet with a cosine schedule")


def vit() -> Recipe:
    """AdamW, warm-up and gradient clipping for vision transformers, as in DeiT without its augmentation.

    Not reproduced. `deit` adds the augmentation. Drop path is an option of the network: `timm:NAME?drop_path_rate=0.1`.

    checkpointkd train timm:deit_tiny_patch16_224 --data imagenet:PATH --recipe vit --out RUN
    """
    return Recipe(
        epochs=300,
        batch_size=1024,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        decay_all=False,
        warmup=5.0,
        clip_norm=5.0,
        source="Touvron et al. 2021, Table 9, without its augmentation",
    )


def deit() -> Recipe:
    """`vit` with DeiT's augmentation: RandAugment, mixup, CutMix, random erasing and label smoothing.

    Not reproduced. DeiT also draws each image three times per epoch, which is not done here. Its drop path is an option
    of the network. Teachers run at every step, since mixed images cannot be cached.

    checkpointkd train 'timm:deit_tiny_patch16_224?drop_path_rate=0.1' --data imagenet:PATH --recipe deit --out RUN

    Published: DeiT-Ti 72.2% (Touvron et al. 2021, Table 5).
    """
    return replace(
        vit(),
        auto_augment="randaugment",
        erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
        source="Touvron et al. 2021, Table 9, without repeated augmentation",
    )


def adamw() -> Recipe:
    """AdamW with warm-up and gradient clipping: for your own photographs, and for networks without batch norm.

    It is the default where no published recipe fits. SGD at learning rate 0.1 needs large data sets and batch norm.

    checkpointkd train timm:resnet18 --data folder:PATH --out RUN
    """
    return replace(vit(), epochs=100, batch_size=128, source="ours: the default for photographs")


def finetune() -> Recipe:
    """A short training from pretrained weights: AdamW at a low learning rate. The default with `--init`.

    checkpointkd train timm:resnet18 --init pretrained --data folder:PATH --recipe finetune --out RUN
    """
    return replace(
        vit(),
        epochs=30,
        batch_size=64,
        learning_rate=1e-4,
        warmup=1.0,
        source="ours: a start from pretrained weights",
    )


def repdistiller() -> Recipe:
    """The training of RepDistiller's and mdistiller's CIFAR-100 benchmark. Not reproduced yet.

    checkpointkd train wrn_40_2 --data cifar100 --recipe repdistiller --select-on test --best-of-last-ten --out RUN

    Published: WRN-40-2 75.61%, WRN-40-1 71.98% (Tian et al. 2020, Table 1).
    """
    return Recipe(
        epochs=240,
        batch_size=64,
        learning_rate=0.05,
        nesterov=False,
        lr_schedule="milestones",
        milestones=(150 / 240, 180 / 240, 210 / 240),
        source="Tian et al. 2020, §4 and the authors' code",
    )


def cifar100_small() -> Recipe:
    """WRN-16-2 on 10,000 images of CIFAR-100: minutes on two cores, as in the preset `small`. Not from the paper.

    checkpointkd train wrn_16_2 --data cifar100 --train-images 10000 --recipe cifar100-small --save-every 3 --out RUN

    Ours: 46.1% (n = 1, bf16, one thread; benchmarks/results/cifar100-small.json).
    """
    return replace(cifar100(), epochs=30, source="ours: the preset small")


def cifar100_small_student() -> Recipe:
    """The students of the preset `small`: WRN-10-1 on the same images.

    checkpointkd distill wrn_10_1 --teachers RUN --recipe cifar100-small-student --save-every 20 --out STUDENT

    Ours: 28.4% without a teacher (n = 2), 35.1% with the teacher's last checkpoint (n = 2); same file.
    """
    return replace(cifar100_small(), epochs=20)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": digits,
    "cifar100": cifar100,
    "cifar100-step": cifar100_step,
    "cifar100-small": cifar100_small,
    "cifar100-small-student": cifar100_small_student,
    "tiny-imagenet": tiny_imagenet,
    "imagenet": imagenet,
    "imagenet-cosine": imagenet_cosine,
    "vit": vit,
    "deit": deit,
    "adamw": adamw,
    "finetune": finetune,
    "repdistiller": repdistiller,
}


def default_recipe(of_data: str, *, initialized: bool, batch_norm: bool) -> str:
    """Return the name of the recipe for a kind of network on a data set.

    Args:
        of_data: The default recipe of the data set.
        initialized: Whether the network starts from given weights.
        batch_norm: Whether the network has batch normalization. Networks without it rarely learn with SGD.

    >>> default_recipe("cifar100", initialized=False, batch_norm=False)
    'adamw'
    """
    if initialized:
        return "finetune"
    if batch_norm:
        return of_data
    return "vit" if of_data == "imagenet" else "adamw"


def recipe(name: str, *, epochs: int | None = None, lr_schedule: str | None = None, **given: Any) -> Recipe:
    """Return the recipe of this name, with the given values in place of its own. None leaves a value as it is.

    A recipe without steps or milestones of its own takes those of cifar100-step or repdistiller, in proportion.

    Raises:
        UserError: For an unknown name, and for values out of range.

    >>> recipe("cifar100-step", epochs=20).step_every, recipe("digits", epochs=20, lr_schedule="step").step_every
    (6, 6)
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    named = RECIPES[name]()
    if lr_schedule is not None:
        named = replace(named, lr_schedule=lr_schedule)
    if named.lr_schedule == "step" and named.step_every >= named.epochs:
        named = replace(named, step_every=cifar100_step().lasting(named.epochs).step_every)
    if named.lr_schedule == "milestones" and not named.milestones:
        named = replace(named, milestones=repdistiller().milestones)
    if epochs is not None:
        named = named.lasting(epochs)
    return replace(named, **{key: value for key, value in given.items() if value is not None})
