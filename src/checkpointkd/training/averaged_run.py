"""The second trajectory of a run: the exponential moving average of its weights, in RUN/ema.

RUN/ema is a run directory of its own. So RUN/ema@last is a checkpoint reference like any other.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from torch import nn

from .. import storage
from ..checkpoints import RunDir
from ..config import CheckpointDtype
from ..data import Data, Images
from ..ranks import Ranks
from ..records.runs import OwnRunRecord, RunResult
from .loop import Row
from .saved import as_saved, measured_on, tensors_to_save

log = logging.getLogger("checkpointkd")

FOLDER = "ema"
OF_THE_EPOCH = ("epoch", "loss", "learning_rate", "seconds")  # what a row of the average shares with the run's


class AveragedRun:
    """The run directory of the averaged weights, written along with that of the run.

    Args:
        run: The directory of the run, which holds its record.
        average: The network with the averaged weights.
        ranks: The processes that train it.
        dtype: The type of the weights in checkpoints.
        up_to: The completed epochs of the run.
    """

    def __init__(self, run: RunDir, average: nn.Module, ranks: Ranks, *, dtype: CheckpointDtype, up_to: int) -> None:
        self._folder, self._average, self._ranks = RunDir(run.path / FOLDER), average, ranks
        self._dtype: CheckpointDtype = dtype

        def opened() -> list[dict[str, Any]]:
            record, stored = run.record(), self._folder.record()
            assert isinstance(record, OwnRunRecord)
            record = msgspec.structs.replace(record, averaged=True)
            if stored is None:
                storage.write_json(self._folder.path / "run.json", record)
            else:
                self._folder.refuse_another(record.differences(stored))
            if up_to and not (self._folder.path / "metrics.jsonl").exists():
                log.warning(
                    "%s was removed. It is written again from epoch %d on. Earlier averages are lost.",
                    self._folder.path,
                    up_to + 1,
                )
                return [{name: row[name] for name in OF_THE_EPOCH} for row in run.rows(up_to=up_to)]
            return self._folder.rows(up_to=up_to)

        self._rows = ranks.from_main(opened)

    def save_epoch(self, row: Row, val: Images, *, checkpoint: bool) -> None:
        """Save the row of an epoch and, with `checkpoint`, the averaged weights and their measurement."""
        row = {name: row[name] for name in OF_THE_EPOCH}
        if checkpoint:
            self._ranks.share_buffers(self._average)
            network = as_saved(self._average, self._dtype)
            measured = measured_on(network, val, self._ranks)
            row |= {"val_accuracy": measured.accuracy, "val_nll": measured.nll}
            tensors = tensors_to_save(network, self._dtype)
            self._ranks.from_main(lambda: self._folder.save_checkpoint(row["epoch"], tensors))
        self._rows.append(row)
        text = storage.jsonl_text(self._rows).encode()
        self._ranks.from_main(lambda: storage.atomic_write_bytes(self._folder.path / "metrics.jsonl", text))

    def finish(self, result: RunResult, data: Data, test: Images | None) -> None:
        """Measure the last averaged weights, and write the result, in place of the run's own measurements."""
        network = as_saved(self._average, self._dtype)
        val = measured_on(network, data.val, self._ranks)
        tested = None
        if test is not None:
            tested = val if data.record.select_on == "test" else measured_on(network, test, self._ranks)
        own = msgspec.structs.replace(result, val=val, test=tested, best_of_last_ten=None)
        self._ranks.from_main(lambda: self._folder.finish(own))
