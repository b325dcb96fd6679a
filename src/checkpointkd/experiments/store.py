"""The folder of experiments: what may lie in it, which tasks are done, and the results of each experiment."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import records, storage
from ..analysis.statistics import corrected
from ..errors import UserError, pluralize
from ..records.base import config_differences
from ..records.experiments import ExperimentRecord, PresetRecord, StoreRecord
from ..reports.charts import to_plain
from .catalog import get_experiment
from .context import ID_FILE, Context
from .items import Item
from .presets import Preset
from .results import tuned_table
from .scheduler import DEPENDENCY_FAILED
from .tasks import Task, ordered

if TYPE_CHECKING:
    from ..data import Data

log = logging.getLogger("checkpointkd")

RESULT = "experiment.json"
STORE = "experiments.json"


class Done:
    """Whether tasks are done. A task that is done stays so; others are looked up each time."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._done: set[Task] = set()

    def __call__(self, task: Task) -> bool:
        if task not in self._done and all(map(self, task.requires())) and task.done(self._context):
            self._done.add(task)
        return task in self._done


def claim_folder(out: Path, preset: Preset, data: Data) -> str:
    """Record which preset and images the experiments in a folder share, and return the folder's id.

    Hold `storage.locked(out)`.

    Raises:
        UserError: If the folder holds experiments with another preset or other images, or other files.
    """
    path = out / STORE
    wanted = StoreRecord(preset=preset.name, dataset=preset.dataset, images_sha256=data.record.sha256)
    if not path.exists():
        names = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("."))
        if names:
            raise UserError(f"{out} holds something else ({', '.join(names[:3])}). Choose another --out.")
        storage.write_json(path, records.plain(wanted))
    check_same_setting(out, wanted)
    if not (out / ID_FILE).exists():
        storage.atomic_write_bytes(out / ID_FILE, uuid.uuid4().hex.encode())
    return (out / ID_FILE).read_text(encoding="utf-8")


def check_same_setting(folder: Path, wanted: StoreRecord, *, remedy: str = "Choose another --out.") -> None:
    """Raise UserError unless the experiments in a folder have this preset and these images."""
    stored = records.read(folder / STORE, StoreRecord, remedy=f"{remedy.removesuffix('.')}, or restore the file.")
    for name, label in (("preset", "preset"), ("dataset", "data set"), ("images_sha256", "image content")):
        if getattr(stored, name) != getattr(wanted, name):
            raise UserError(f"{folder} holds experiments with the {label} {getattr(stored, name)}. {remedy}")


def warn_of_other_settings(out: Path, names: Sequence[str], preset: Preset) -> None:
    """Warn when results of other settings will be replaced. Their runs stay."""
    settings = json.loads(json.dumps(asdict(preset)))
    replaced: dict[str, list[str]] = {}
    for name in names:
        path = out / name / RESULT
        stored = storage.read_json(path) if path.exists() else {}
        stored_preset = stored.get("preset") if isinstance(stored, dict) else None
        if isinstance(stored_preset, dict) and (differences := config_differences(settings, stored_preset)):
            replaced[name] = differences
    if replaced:
        log.warning(
            "The results of %s in %s are replaced: their settings differ (%s). Runs are kept.",
            ", ".join(replaced),
            out,
            "; ".join(next(iter(replaced.values()))[:3]),
        )


def write_results(
    context: Context, items: Mapping[str, Sequence[Item]], done: Done, failed: Mapping[Task, str]
) -> dict[str, dict[str, Any]]:
    """Write the rows and the results of each experiment; return the results by name."""
    written = {}
    for name, needed in items.items():
        rows = [row for item in needed if done(item.task) for row in item.rows(context)]
        experiment = get_experiment(name)
        if extra_rows := getattr(experiment, "extra_rows", None):
            rows += extra_rows(context, needed, done)
        results = experiment.results(context.preset, rows)
        tables = [*results.tables, *([tuned_table(rows)] if context.preset.tune else [])]
        tasks = ordered(item.task for item in needed)
        missing = [task for task in tasks if not done(task)]
        preset = records.plain(context.preset)
        record = ExperimentRecord(
            experiment=name,
            title=experiment.TITLE,
            preset=records.convert(preset, PresetRecord),
            missing=len(missing),
            notes=tuple(_notes(context.preset, results.notes, len(tasks), missing, failed)),
            tables=tuple(map(asdict, tables)),
            figures=tuple(map(to_plain, results.figures)),
            claims=tuple({**asdict(claim), "verdict": claim.verdict} for claim in corrected(results.claims)),
            provenance=records.provenance(),
        )
        written[name] = {**records.plain(record), "preset": preset}
        storage.atomic_write_bytes(context.out / name / "rows.jsonl", storage.jsonl_text(rows).encode())
        storage.write_json(context.out / name / RESULT, written[name])
    return written


def _notes(
    preset: Preset, own: Sequence[str], count: int, missing: Sequence[Task], failed: Mapping[Task, str]
) -> list[str]:
    errors = [failed[task] for task in missing if failed.get(task, DEPENDENCY_FAILED) != DEPENDENCY_FAILED]
    return [
        *([f"Not finished: {len(missing)} of {pluralize(count, 'task')} are left."] if missing else []),
        *([preset.note] if preset.note else []),
        *own,
        *(f"Failed: {error}" for error in errors),
    ]
