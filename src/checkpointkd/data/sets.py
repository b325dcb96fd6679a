"""What a data set is to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .images import Images


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set as published. The official splits are read when they are called for, never before: whoever has not
    called `test` has not seen the test images."""

    classes: tuple[str, ...]
    train: Callable[[], Images]
    test: Callable[[], Images]
    recipe: str  # the name of the recipe for it
    selection_fraction: float = 0.1


@dataclass(frozen=True, eq=False)
class Data:
    """What a run may see: training images and the images that select. Test images aren't here; `load_test` has them."""

    classes: tuple[str, ...]
    train: Images
    selection: Images
    recipe: str
    identity: dict  # settings, content hash and sizes: what run.json keeps, and what a resumed run must match

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.identity["data"]
