"""Merge folders of experiments, for example of machines that share no folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from .. import records, storage
from ..errors import UserError, check_exists, pluralize
from ..records.experiments import StoreRecord
from .context import MACHINE, read_speeds
from .store import STORE, check_same_setting

log = logging.getLogger("checkpointkd")

KINDS = ("runs", "tuned", "measured", "correlated")  # folders of tasks, each with one folder per task
LEFT_OUT = shutil.ignore_patterns("result.json", ".lock*", f"*{storage.TMP_SUFFIX}")


def merge_folders(out: Path, folders: Sequence[Path]) -> None:
    """Copy the finished tasks of other folders into `out`. Hold `storage.locked(out)`.

    Tasks that are already finished in `out` do not change.

    Raises:
        UserError: If a folder holds other experiments, or a run that `out` also has but with other weights. Students of
            the two are not comparable.
    """
    wanted = records.read(out / STORE, StoreRecord, remedy="Restore the file.")
    for position, folder in enumerate(folders):
        check_exists(folder, "folder of experiments")
        if not (folder / STORE).exists():
            raise UserError(f"{folder} holds no experiments: it has no {STORE}. Give a folder that `reproduce` wrote.")
        check_same_setting(folder, wanted, remedy="Give a folder of the same experiment.")
        for run in sorted(folder.glob("runs/*")):
            for other in (out, *folders[:position]):
                _check_same_weights(run, other / "runs" / run.name)
    _check_same_precision((out, *folders))
    for folder in folders:
        if (folder / MACHINE).exists() and not (out / MACHINE).exists():
            storage.atomic_copy(folder / MACHINE, out / MACHINE)
        copied = sum(_copy(source, out / kind / source.name) for kind in KINDS for source in folder.glob(f"{kind}/*"))
        log.info("%s copied from %s", pluralize(copied, "folder"), folder)


def _check_same_precision(folders: Sequence[Path]) -> None:
    """Raise UserError if folders have measured other precisions: their runs are not those of one experiment."""
    first: dict[str, tuple[str, Path]] = {}
    for folder in folders:
        if not (folder / MACHINE).exists():
            continue
        for setting, speeds in read_speeds(folder / MACHINE).items():
            for precision in {speed.precision for speed in speeds.values()}:
                other, where = first.setdefault(setting, (precision, folder))
                if other != precision:
                    raise UserError(
                        f"The runs in {where} are in {other}, those in {folder} in {precision}: `auto` chose "
                        "differently on these machines. Give --precision when you start the parts."
                    )


def _check_same_weights(run: Path, other: Path) -> None:
    """Raise UserError if two finished trainings of one run have different weights."""
    if not all((folder / "result.json").exists() for folder in (run, other)):
        return
    last = max((run / "checkpoints").glob("*.safetensors"), default=None, key=lambda path: path.name)
    if last is None or not (other / "checkpoints" / last.name).exists():
        return
    first, second = (storage.read_metadata(folder / "checkpoints" / last.name)["sha256"] for folder in (run, other))
    if first != second:
        raise UserError(
            f"{run} and {other} are trainings of the same run with different weights: machines may round differently. "
            "Students of different teachers are not comparable. Train the teachers once, copy them to all machines, "
            "then train the students."
        )


def _copy(source: Path, target: Path) -> bool:
    """Copy a finished task, or missing measurements of a run that both folders have. Return whether it did."""
    if not any((source / name).exists() for name in ("result.json", "tune.json", "measured.json", "correlated.json")):
        return False
    if (target / "result.json").exists() or not (source / "result.json").exists():
        missing = [path for path in source.iterdir() if path.is_file() and not (target / path.name).exists()]
        missing = [path for path in missing if not path.name.startswith(".") and path.name != "state.bin"]
        for path in missing:
            storage.atomic_copy(path, target / path.name)
        return bool(missing)
    with storage.locked(target):  # raises InUse while another process trains it
        shutil.copytree(source, target, ignore=LEFT_OUT, dirs_exist_ok=True)
        storage.atomic_copy(source / "result.json", target / "result.json")  # last: it says that the run is complete
    return True
