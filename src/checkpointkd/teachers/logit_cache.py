"""The exact teacher table: what a teacher answers to every view of every training image, computed once.

A cropped and flipped CIFAR image has 162 views, so all of a teacher's answers fit in a file. A row is found by (image,
view) and holds the logits in 16 bits and a checksum of them and of its place; a row that was never written, was written
by half or belongs elsewhere has no right checksum, is missing, and is computed. Missing rows are computed before an
epoch begins, since (seed, epoch) says which it will ask for; then the epoch's answers lie on the device, and no step
waits for anything.

Letters in names: N training images, V views of each, M rows, W words of a row, T teachers, B batch, K classes.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import storage
from ..config import TEACHER_FORWARD, OnProgress, Precision
from ..data import Batch, EpochLoader, InMemoryBatches, InMemoryImages, cache_dir
from ..errors import UserError
from ..seeding import hashed_words
from .ensemble import Teacher

log = logging.getLogger("checkpointkd")

FILL_BATCH = 250  # one size for every batch that fills, so that an answer never depends on how many were missing


class LogitFile:
    """One teacher's answers, in a file that processes share: M rows of K logits in 16 bits.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Table(Path(folder) / "rows.bin", rows=4, classes=3)
    ...     table.write(torch.tensor([2]), torch.tensor([[1.0, 2.0, 3.0]]))
    ...     logits_MK, there_M = table.read(torch.tensor([0, 2]))
    >>> there_M.tolist(), logits_MK[1].tolist()
    ([False, True], [1.0, 2.0, 3.0])
    """

    def __init__(self, path: Path, *, rows: int, classes: int) -> None:
        self.classes, self.words = classes, words(classes)
        size = size_of(rows, classes)
        if path.exists() and path.stat().st_size != size:
            path.unlink()  # no table of ours
        if not path.exists():
            _reserve(path, size)
        os.utime(path)  # tables that were not used for longest make room for others
        self._records_MW = torch.from_file(
            str(path), shared=True, size=rows * (self.words + 1), dtype=torch.int64
        ).view(rows, self.words + 1)

    def read(self, row_M: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of these rows, (M, K) in 16 bits, and which of the rows are there, (M,)."""
        records_MW = self._records_MW[row_M]
        answers_MW, check_M = records_MW[:, :-1], records_MW[:, -1]
        logits_MK = answers_MW.contiguous().view(torch.float16)[:, : self.classes]
        return logits_MK, check_M == _checksum(answers_MW, row_M)

    def write(self, row_M: Tensor, logits_MK: Tensor) -> None:
        """Put the logits into these rows."""
        padded_MK = torch.zeros(len(row_M), 4 * self.words, dtype=torch.float16)
        padded_MK[:, : self.classes] = logits_MK
        answers_MW = padded_MK.view(torch.int64)
        self._records_MW[row_M] = torch.cat([answers_MW, _checksum(answers_MW, row_M)[:, None]], 1)


class CachedTeacherBatches:
    """Batches that bring the teachers' answers with them, from the teachers' tables."""

    def __init__(
        self,
        batches: InMemoryBatches,
        teacher: Teacher,
        tables: list[LogitFile],
        *,
        precision: Precision,
        tell: OnProgress,
        active_teachers: Callable[[int], list[int]] | None = None,
    ) -> None:
        self.batches, self.teacher, self.tables = batches, teacher, tables
        self.precision, self.tell = precision, tell
        self.active_teachers = active_teachers or (lambda epoch: list(range(len(tables))))

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        view_N = self.batches.view_N(epoch)
        logits_TNK = self.answers(view_N, self.active_teachers(epoch))
        for row_B in self.batches.rows(epoch):
            yield replace(self.batches.batch(row_B, view_N[row_B]), teacher_TBK=logits_TNK[:, row_B].float())

    def answers(self, view_N: Tensor, asked: Collection[int] | None = None) -> Tensor:
        """Each teacher's logits for each image in this view of it, (T, N, K) in 16 bits, on the batches' device; zeros
        for a teacher who isn't asked."""
        row_N = torch.arange(len(view_N)) * len(self.batches.views) + view_N.cpu()
        found = []
        missing = []
        for member, table in enumerate(self.tables):
            if asked is not None and member not in asked:
                found.append(torch.zeros(len(row_N), table.classes, dtype=torch.float16))
                missing.append(row_N[:0])
                continue
            logits_NK, there_N = table.read(row_N)
            found.append(logits_NK)
            missing.append((~there_N).nonzero().flatten())
        total, done = sum(map(len, missing)), 0
        for member, (table, logits_NK, missing_M) in enumerate(zip(self.tables, found, missing, strict=True)):
            for begin in range(0, len(missing_M), FILL_BATCH):
                image_B = missing_M[begin : begin + FILL_BATCH]
                filled_B = image_B.repeat(-(-FILL_BATCH // len(image_B)))[:FILL_BATCH].to(self.batches.device)
                batch = self.batches.batch(filled_B, view_N[filled_B])
                with torch.autocast(self.batches.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    answer_BK = self.teacher.member_logits(member, batch)[: len(image_B)].cpu()
                table.write(row_N[image_B], answer_BK)
                logits_NK[image_B] = answer_BK
                done += len(image_B)
                if total > 10 * FILL_BATCH:  # a bar for less would only flicker
                    self.tell(TEACHER_FORWARD, done, total)
        return torch.stack(found).to(self.batches.device)


def with_cached_logits(
    batches: EpochLoader,
    images: Any,
    teacher: Teacher,
    *,
    precision: Precision,
    limit: int,
    on_progress: OnProgress,
    active_teachers: Callable[[int], list[int]] | None = None,
) -> EpochLoader:
    """The batches with the teachers' answers from their tables, or, where there can be no table, as they are, which
    means that the teachers are asked at every step; it is said why. `limit` is what all tables may take up, in bytes;
    `asked_in` says which teachers count in the epoch that follows so many completed ones; by default all.
    """
    if teacher.batch_norm == "batch":
        log.info("the teachers are asked at every step: normalized by batches, their answers depend on the company")
        return batches
    if not isinstance(batches, InMemoryBatches) or not isinstance(images, InMemoryImages):
        log.info("the teachers are asked at every step: streamed pictures have no finite number of views")
        return batches
    rows, classes = len(images) * len(batches.views), len(teacher.classes)
    pinned = {
        "format": 1,
        "images": images.sha256(),
        "views": asdict(batches.views),
        "classes": classes,
        "precision": precision,
        "device": batches.device.type,
        "batch_norm": "eval",
        "fill_batch": FILL_BATCH,
    }
    tables = []
    folder = cache_dir() / "tables"
    keys = [storage.cache_key({**pinned, **who}) for who in teacher.identities()]
    needed = size_of(rows, classes)
    try:
        _make_room(folder, keys, needed, limit)
        for key, who in zip(keys, teacher.identities(), strict=True):
            table = LogitFile(folder / key / "rows.bin", rows=rows, classes=classes)
            storage.write_json(folder / key / "manifest.json", {**pinned, **who})
            tables.append(table)
    except (UserError, OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        log.warning(
            "the teachers are asked at every step, because their tables of %s each can't be kept in %s: %s",
            _bytes(needed),
            folder,
            reason,
        )
        return batches
    return CachedTeacherBatches(
        batches, teacher, tables, precision=precision, active_teachers=active_teachers, tell=on_progress
    )


def words(classes: int) -> int:
    """How many words of 64 bits a row's logits take up."""
    return -(-classes // 4)


def size_of(rows: int, classes: int) -> int:
    """The size of a table's file in bytes: for all of CIFAR-100, 1.7 GB."""
    return rows * (words(classes) + 1) * 8


def _checksum(answers_MW: Tensor, row_M: Tensor) -> Tensor:
    """Of a row's words and its number, never 0 as in a row that was never written. Each word's factor is odd, so no
    change of a single word goes unseen."""
    factor_W = hashed_words(torch.arange(answers_MW.shape[1]), "table") | 1
    sum_M = (answers_MW * factor_W).sum(1) + hashed_words(row_M, "row")
    return torch.where(sum_M == 0, 1, sum_M)


def _reserve(path: Path, size: int) -> None:
    """A file of zeros whose room on the disk is taken: writing to a mapped file on a full disk kills the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}{storage.TMP_SUFFIX}")
    try:
        with open(aside, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for start in range(0, size, 1 << 24):
                    file.write(bytes(min(1 << 24, size - start)))
        with contextlib.suppress(FileExistsError):  # another process was quicker, and the table is one
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _make_room(folder: Path, keys: list[str], needed: int, limit: int) -> None:
    """Remove the tables that were not used for longest until what is needed fits the limit. A process that uses one of
    them goes on with it: its file is gone when the process ends."""
    wanted = needed * len(set(keys))
    if wanted > limit:
        raise UserError(f"{_bytes(wanted)} are needed, and --logit-cache-gb allows {_bytes(limit)}")
    others = [path for path in folder.glob("*/rows.bin") if path.parent.name not in keys]
    others.sort(key=lambda path: path.stat().st_mtime)
    total = wanted + sum(path.stat().st_size for path in others)
    for path in others:
        if total <= limit:
            break
        total -= path.stat().st_size
        path.unlink(missing_ok=True)
        log.info("removed the table %s, which was not used for longest, to stay within --logit-cache-gb", path.parent)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
