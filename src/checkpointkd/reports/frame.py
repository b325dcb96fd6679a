"""Every run below a folder as one row of a pandas DataFrame."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, check_exists
from ..records.runs import DistillRecord, OwnRunRecord, TrainRecord
from .collect import read_runs, result_files

if TYPE_CHECKING:
    import pandas

    from ..checkpoints import Trajectory

log = logging.getLogger("checkpointkd")


def results(folder: Path | str, /) -> pandas.DataFrame:
    """Return every run below a folder as a tidy DataFrame, one row per run. Needs pandas.

    Trials of `tune` and pilot runs are left out. A damaged run is left out with a warning. Accuracies are in [0, 1].
    The columns are:

    - `run`, the path below the folder; `kind`: train, distill or external;
    - `model`, `seed`, `precision`, `data`, `train_images`, `train_labels`;
    - `epochs`, `batch_size`, `learning_rate`, `label_smoothing`, `loss`;
    - `method` ("none" without a teacher), `alpha`, `tau`, `teachers`, `teacher_schedule`, `teacher_weights`, `average`,
      `teacher_tau`, `method_weight`, and `teacher_accuracy` on the validation set;
    - `val_accuracy`, `val_nll`, `test_accuracy`, `test_nll`, `seconds`, for complete runs only.

    Example:

        ckd.results("runs").groupby(["model", "method"])["test_accuracy"].agg(["mean", "std", "count"])

    Raises:
        UserError: If the folder does not exist, if it has no run, or if pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UserError("results() needs pandas. Run: pip install pandas") from None
    path = Path(folder)
    check_exists(path, "folder")
    notes: list[str] = []
    runs = read_runs(result_files(path), notes)
    for note in notes:
        log.warning("%s", note)
    if not runs:
        raise UserError(f"No run in {path} or below")
    return pandas.DataFrame([_row(run, path) for run in runs])


def _row(run: Trajectory, folder: Path) -> dict[str, Any]:
    record, result = run.run, run.result()
    own = record if isinstance(record, OwnRunRecord) else None
    taught = record if isinstance(record, DistillRecord) else None
    test = None if result is None else result.test
    return {
        "run": run.path.relative_to(folder).as_posix(),
        "kind": type(record).__struct_config__.tag,
        "model": record.model,
        "seed": record.seed,
        "precision": record.precision,
        "data": record.data.name,
        "train_images": record.data.train_size,
        "train_labels": record.data.train_labels,
        "epochs": run.planned_epochs,
        "batch_size": None if own is None else own.recipe.batch_size,
        "learning_rate": None if own is None else own.recipe.learning_rate,
        "label_smoothing": record.label_smoothing if isinstance(record, TrainRecord) else None,
        "loss": record.loss if isinstance(record, TrainRecord) else None,
        "method": "none" if taught is None else taught.method,
        "alpha": None if taught is None else taught.kd.alpha,
        "tau": None if taught is None else taught.kd.tau,
        "teachers": None if taught is None else " ".join(taught.teacher_refs),
        "teacher_schedule": None if taught is None else taught.distill_config.teacher_schedule,
        "teacher_weights": None if taught is None else _written(taught.distill_config.teacher_weights),
        "average": None if taught is None else taught.kd.average,
        "teacher_tau": None if taught is None else taught.distill_config.teacher_tau,
        "method_weight": None if taught is None else taught.distill_config.method_weight,
        "teacher_accuracy": None if taught is None else taught.teachers_measured.ensemble.accuracy,
        "val_accuracy": None if result is None else result.val.accuracy,
        "val_nll": None if result is None else result.val.nll,
        "test_accuracy": None if test is None else test.accuracy,
        "test_nll": None if test is None else test.nll,
        "seconds": None if result is None else result.seconds,
    }


def _written(weights: tuple[float, ...] | str | None) -> str | None:
    return " ".join(map(str, weights)) if isinstance(weights, tuple) else weights
