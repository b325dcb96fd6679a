"""Named settings. A variant is a function that changes another's result; every recipe says where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .errors import unknown
from .settings import Recipe


def digits() -> Recipe:
    """WRN-16-2 on scikit-learn's digits; sized for the demo, not from the paper."""
    return Recipe(epochs=40, batch_size=32, source="ours: sized for scikit-learn's digits")


def cifar100() -> Recipe:
    """The paper's CIFAR-100 training with the cosine schedule of its footnote 3. Not yet reproduced here."""
    return Recipe(source="Wang et al. 2022, §3.2 and footnote 3")


def cifar100_step() -> Recipe:
    """The same with the schedule of the authors' code: ×0.1 every 60 epochs. Not yet reproduced here."""
    return replace(cifar100(), schedule="step", source="Wang et al. 2022, the authors' code")


def cifar100_small() -> Recipe:
    """WRN-16-2 on 10,000 images of CIFAR-100 in minutes on two cores; the `small` scale, not from the paper.

    checkpointkd train wrn_16_2 --data cifar100 --train-images 10000 --recipe cifar100-small --save-every 3 --out RUN
    """
    return replace(cifar100(), epochs=30, source="ours: the small scale")


RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": digits,
    "cifar100": cifar100,
    "cifar100-step": cifar100_step,
    "cifar100-small": cifar100_small,
    "cifar10": cifar100,
}


def recipe(name: str, *, epochs: int | None = None) -> Recipe:
    """The recipe of this name, with another number of epochs if one is given; raises UserError for an unknown name.

    >>> recipe("digits", epochs=3).epochs
    3
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    chosen = RECIPES[name]()
    return chosen if epochs is None else replace(chosen, epochs=epochs)
