"""Read what the runs and experiments below a folder have left on disk, as plain data for a report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .. import records
from ..analysis.statistics import Claim, claim_from
from ..checkpoints import Trajectory, open_trajectory
from ..errors import UserError, check_exists
from ..information import Plane, load_planes
from ..records.base import selection_set
from ..records.experiments import ExperimentRecord
from ..records.runs import AnyRun
from ..records.selection import PilotRecord, SelectionRecord
from ..records.tuning import TuneRecord
from .charts import Figure, Table, from_plain
from .tables import claims_table
from .variants import Variant, group_variants

# Experiments, in the paper's order.
ORDER = ("table1", "figure2", "table2", "figure3", "figure4", "figure5", "figure6", "figure7", "table3")

FILES = ("run.json", "tune.json", "pilot.json", "pilot_search.json", "experiment.json")
REMEDY = "Run the command that wrote it again."

T = TypeVar("T")


@dataclass(frozen=True)
class Scored:
    """A trajectory on the information plane, and what `select` chose on it, if anything."""

    name: str
    trajectory: Trajectory
    plane: Plane
    selection: SelectionRecord | None

    @property
    def chosen(self) -> list[int]:
        """The epochs that were chosen."""
        return list(self.selection.epochs) if self.selection else []


@dataclass(frozen=True)
class Experiment:
    """The result of an experiment, with its tables, claims and figures."""

    record: ExperimentRecord
    tables: list[Table]
    claims: list[Claim]
    figures: list[Figure]


@dataclass(frozen=True)
class Collected:
    """The content of a report.

    Attributes:
        tunings: the results of `tune`, by the name of their folder.
        pilots: the results of pilot searches, by the name of their folder.
        experiments: the results of `reproduce`, in the paper's order.
        notes: runs and results that are unfinished, unreadable or there twice.
    """

    folder: Path
    scored: list[Scored]
    variants: list[Variant]
    tunings: dict[str, TuneRecord]
    pilots: dict[str, PilotRecord]
    experiments: list[Experiment]
    notes: list[str]
    provenance: dict[str, str]

    def baseline(self, variant: Variant) -> Variant | None:
        """Return the same student, trained from scratch with the same settings."""
        family = (other for other in self.variants if other.family == variant.family)
        return next((other for other in family if other.from_scratch), None)

    def families(self) -> list[list[Variant]]:
        """Return the variants in groups that can be compared."""
        return [
            [variant for variant in self.variants if variant.family == family]
            for family in dict.fromkeys(variant.family for variant in self.variants)
        ]


def collect(folder: Path) -> Collected:
    """Read every run and every result below a folder; raises UserError if there is none."""
    check_exists(folder, "folder")
    notes: list[str] = []
    files = result_files(folder)
    experiments = list(_read_all(folder, files["experiment.json"], _read_experiment, notes).values())
    names_in_order = [*ORDER, *(experiment.record.experiment for experiment in experiments)]
    experiments.sort(key=lambda experiment: names_in_order.index(experiment.record.experiment))
    tunings = _read_all(folder, files["tune.json"], lambda path: records.read(path, TuneRecord, remedy=REMEDY), notes)
    pilots = _read_all(folder, files["pilot.json"], lambda path: records.read(path, PilotRecord, remedy=REMEDY), notes)
    runs = read_runs(files, notes)
    if (folder / "experiments.json").exists() and not experiments:
        notes.append("Not finished: no experiment here has results yet. Run the same `checkpointkd reproduce` again.")
    if not (runs or tunings or pilots or experiments):
        reason = f" ({notes[0]})" if notes else ""
        raise UserError(f"No run to report on in {folder} or below{reason}")
    names = {run.path: _run_name(run, folder) for run in runs}
    notes += _unfinished(folder, files["pilot_search.json"], names, runs, tunings)
    if replaced := sorted({Path(run.run.data.train_labels).name for run in runs if run.run.data.train_labels}):
        notes.append(
            f"Some runs train on the labels of {', '.join(replaced)} (`--train-labels`), not on those of the data set."
        )
    scored = [
        Scored(names[run.path], run, _plane_of_choice(planes, run.selection()), run.selection())
        for run in runs
        if (planes := load_planes(run))
    ]
    variants, duplicates = group_variants(runs, names)
    if runs:
        provenance = _provenance(runs)
    elif experiments:
        provenance = records.plain(experiments[0].record.provenance)
    else:
        provenance = records.plain([*tunings.values(), *pilots.values()][0].provenance)
    return Collected(folder, scored, variants, tunings, pilots, experiments, notes + duplicates, provenance)


def result_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of runs and results below a folder, by file name, in order. Links are not followed."""
    found: dict[str, list[Path]] = {name: [] for name in FILES}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "checkpoints"]
        for name in found.keys() & set(names):
            found[name].append(Path(parent, name))
    return {name: sorted(paths) for name, paths in found.items()}


def _read_all(folder: Path, files: list[Path], read: Callable[[Path], T], notes: list[str]) -> dict[str, T]:
    """Return the results in these files, by the name of their folder; a note names each damaged file."""
    results = {}
    for path in files:
        try:
            results[_name(path.parent, folder)] = read(path)
        except UserError as error:
            notes.append(f"Left out: {error}")
    return results


def read_runs(files: Mapping[str, list[Path]], notes: list[str]) -> list[Trajectory]:
    """Return the runs, without the trials of `tune` and the pilot runs; a note names each damaged run."""
    parts = [path.parent / "trials" for path in files["tune.json"]]
    parts += [path.parent / "pilot_runs" for path in files["pilot_search.json"]]
    runs = []
    for path in files["run.json"]:
        if any(part in path.parents for part in parts):
            continue
        try:
            run = open_trajectory(path.parent)
            _ = run.result(), run.selection(), run.rows(), load_planes(run)  # these raise UserError if damaged
            for checkpoint in run.values():
                _ = checkpoint.sha256
            runs.append(run)
        except UserError as error:
            notes.append(f"Left out: {error}")
    return runs


def _unfinished(
    folder: Path,
    pilot_searches: list[Path],
    names: dict[Path, str],
    runs: list[Trajectory],
    tunings: dict[str, TuneRecord],
) -> list[str]:
    """Return a note on each pilot search, tune search and run that is not finished."""
    notes = [
        f"Not finished: pilot search {_name(path.parent, folder)}"
        for path in pilot_searches
        if not (path.parent / "pilot.json").exists()
    ]
    notes += [
        f"Not finished: tune search {name}, {len(result.trials)} of {result.planned} trials"
        for name, result in tunings.items()
        if len(result.trials) < result.planned
    ]
    for run in runs:
        if not run.complete:
            done = max((row.epoch for row in run.rows()), default=0)
            notes.append(f"Not finished: {names[run.path]}, epoch {done} of {run.planned_epochs}")
    return notes


def _read_experiment(path: Path) -> Experiment:
    """Return the result of an experiment; raises UserError if a table, a figure or a claim cannot be shown."""
    record = records.read(path, ExperimentRecord, remedy=REMEDY)
    try:
        tables = [Table(**table) for table in record.tables]
        claims = [claim_from(claim) for claim in record.claims]
        for table in tables:
            table.check()
        claims_table(claims).check()
        return Experiment(record, tables, claims, [from_plain(figure) for figure in record.figures])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        raise UserError(f"{path} is damaged: a table, a figure or a claim cannot be shown. {REMEDY}") from None


def _plane_of_choice(planes: dict[str, Plane], selection: SelectionRecord | None) -> Plane:
    """Return the plane that the selection used, else that of the decoder, else any."""
    estimator = None if selection is None else selection.estimator
    return planes.get(str(estimator)) or planes.get("decoder") or next(iter(planes.values()))


def _name(path: Path, folder: Path) -> str:
    """Return the name of a folder in a report: its path below the reported folder."""
    relative = path.relative_to(folder)
    return str(relative) if relative.parts else path.resolve().name


def _run_name(run: Trajectory, folder: Path) -> str:
    return run.source.name if run.external else _name(run.path, folder)


def _provenance(runs: list[Trajectory]) -> dict[str, str]:
    """Return data, seeds, versions and machine of the runs; different values are separated by semicolons."""

    def values(value: Callable[[AnyRun], object]) -> str:
        return "; ".join(dict.fromkeys(str(value(run.run)) for run in runs))

    return {
        "runs": str(len(runs)),
        "data": values(lambda run: f"{run.data.name}, sha256 {run.data.sha256[:12]}"),
        "images": values(
            lambda run: (
                f"{run.data.train_size:,} for training, {run.data.val_size:,} of {selection_set(run.data.select_on)}"
            )
        ),
        "select on": values(lambda run: run.data.select_on),
        "seeds": ", ".join(map(str, sorted({run.run.seed for run in runs if not run.external}))),
        "precision": values(lambda run: run.precision),
        **{
            name: values(lambda run, name=name: getattr(run.provenance, name))
            for name in ("checkpointkd", "torch", "python", "machine")
        },
        "first run started": min(run.run.provenance.started for run in runs),
    }
