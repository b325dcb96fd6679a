"""The experiments by name, and the order in which their tasks run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from .presets import Preset

if TYPE_CHECKING:
    from .items import Item
    from .results import Results
    from .tasks import Row, Task

PAPER = ("table1", "figure2", "table2", "figure3", "figure4", "figure5", "figure6", "figure7", "table3")
EXPERIMENTS = (*PAPER, "lr-schedule", "selection", "teachers")
PRIORITY = (  # when time is short; within a row the tasks run pair by pair, then experiment by experiment
    ("lr-schedule", "figure7", "table3", "table2"),
    ("figure5", "figure4", "figure6"),
    ("table1", "figure2", "figure3"),  # these need a student per checkpoint, and many teachers
    ("selection",),
    ("teachers",),
)


class Experiment(Protocol):
    """The interface of an experiment's module.

    A module may also have `extra_rows(context, items, done)`: rows that are not a task's own.
    """

    TITLE: str

    def needs(self, preset: Preset) -> list[Item]:
        """Return the items that the experiment shows."""
        ...

    def results(self, preset: Preset, rows: Sequence[Row]) -> Results:
        """Return tables, figures and claims from rows, of which any may be missing."""
        ...


def get_experiment(name: str) -> Experiment:
    """Return the module of an experiment."""
    return cast(Experiment, import_module(f".{name.replace('-', '_')}", __package__))


def by_priority(preset: Preset, items: Mapping[str, Sequence[Item]]) -> list[Task]:
    """Return the tasks of experiments, those of the highest priority first."""
    ranked = []
    for row, names in enumerate(PRIORITY):
        for column, name in enumerate(names):
            for item in items.get(name, []):
                pair = 0 if len(names) == 1 else preset.pairs.index(item.pair)
                ranked.append(((row, pair, column), item.task))
    return [task for _, task in sorted(ranked, key=lambda entry: entry[0])]
