"""What a data set is to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import UserError
from ..records import DataRecord
from .images import Images


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set as published. The official splits are read when they are called for, never before: whoever has not
    called `test` has not seen the test images."""

    classes: tuple[str, ...]
    train: Callable[[], Images]
    test: Callable[[], Images]
    recipe: str  # the name of the recipe for it
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        names = self.classes
        if not len(names) >= 2:
            raise UserError(f"there must be at least two classes, not {len(names)}: {', '.join(map(repr, names))}")
        for name in names:
            if not (isinstance(name, str) and name != ""):
                raise UserError(f"a class must have a name in letters, not {name!r}")
            if not name.isprintable():
                raise UserError(f"the class name {name!r} can't be written in UTF-8 on one line")
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise UserError(f"the class {twice[:1]} is there twice")


@dataclass(frozen=True, eq=False)
class Data:
    """What a run may see: training images and the images that select. Test images aren't here; `load_test` has them."""

    classes: tuple[str, ...]
    train: Images
    val: Images
    recipe: str
    record: DataRecord  # settings, content hash and sizes: run.json keeps them, and a resumed run must match them

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.record.name
