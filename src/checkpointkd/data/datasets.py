"""What a data set is to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import UserError
from ..records.base import DataRecord
from .images import Images


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set as published.

    An official split is read when `train` or `test` is called, never before: without a call of `test`, nothing has
    seen the test images.
    """

    classes: tuple[str, ...]
    train: Callable[[], Images]
    test: Callable[[], Images]
    recipe: str  # the name of its default recipe
    val_fraction: float = 0.1
    val: Callable[[], Images] | None = None  # the official validation split, if there is one beside the test split
    reordered: bool = False  # whether the classes are in an order that the user or a checkpoint gave

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            listed = ", ".join(map(repr, self.classes))
            raise UserError(f"There must be at least two classes, not {len(self.classes)}: {listed}")
        for name in self.classes:
            if not isinstance(name, str) or not name or not name.isprintable():
                raise UserError(f"A class name must be printable UTF-8 on one line, not {name!r}")
        if len(set(self.classes)) < len(self.classes):
            repeated = next(name for name in self.classes if self.classes.count(name) > 1)
            raise UserError(f"The class {repeated!r} is listed twice")


@dataclass(frozen=True, eq=False)
class Data:
    """What a run may see: training and validation images. `load_test` has the test images."""

    classes: tuple[str, ...]
    train: Images
    val: Images
    recipe: str
    record: DataRecord  # settings, content hash and sizes, which run.json keeps and a resumed run must match

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.record.name
