"""A data set of the user's own, from objects in Python. No torch here: the options of commands name this class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from .errors import UserError, first_line


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """A data set of your own, for `data=` of every command.

    `train`, `val`, `test` and `clean` are map-style data sets (`torch.utils.data.Dataset`). Each item begins with an
    image and its label. An image is a PIL image or a tensor (C, H, W), uint8 or float. All images have one size.

    Random transforms of `train` are its augmentation. Their draws are a function of the run's seed, the epoch and the
    image, through the global generators of torch, random and numpy. So a run that was interrupted sees the same images.

    Example:

        data = ckd.Data(train=train, val=val, test=test, classes=["cat", "dog"], normalized=((0.5,) * 3, (0.2,) * 3))
        ckd.train("wrn_16_2", data=data, epochs=20, out="runs/teacher")

    Attributes:
        train: The training images, with their augmentation.
        test: The test images. Only a run's last measurement reads them.
        val: The validation images. None: a stratified part of the training images.
        clean: The training images in the same order, without augmentation. `score` and a validation part of the
            training images need them. None: `train`, if it does not augment.
        classes: The names of the classes, or their number. None: `train.classes`.
        normalized: Mean and standard deviation of each channel, if the images are normalized. A `Normalize` at the end
            of a torchvision transform is found without it. None and no such transform: images are in [0, 1].
        views: Augment with these crops and flips, `checkpointkd.data.Views(pad=4, flip=True)`, in place of random
            transforms. The images then stay in memory, and the logit cache serves them.
        name: A name that identifies the content, in place of a sample of the images.
    """

    train: Any
    test: Any
    val: Any = None
    clean: Any = None
    classes: Sequence[str] | int | None = None
    normalized: tuple[Sequence[float], Sequence[float]] | None = None
    views: Any = None
    name: str | None = None

    def __post_init__(self) -> None:
        for role in ("train", "test", "val", "clean"):
            dataset = getattr(self, role)
            if dataset is None and role in ("val", "clean"):
                continue
            if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
                raise UserError(
                    f"{role}= takes a data set with a length and items by number, such as a torch.utils.data.Dataset, "
                    f"not {type(dataset).__name__}"
                )
            try:
                length = len(dataset)  # pyright: ignore[reportArgumentType]
            except Exception as error:  # the user's code may raise anything
                raise UserError(f"The length of {role}= cannot be read: {first_line(error)}") from None
            if length == 0:
                raise UserError(f"{role}= has no image")
        if self.clean is not None and len(self.clean) != len(self.train):
            raise UserError(
                f"clean= has {len(self.clean):,} images and train= {len(self.train):,}. They must be the same images, "
                "in the same order."
            )
