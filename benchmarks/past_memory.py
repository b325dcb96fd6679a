"""Measure the time to read one epoch's logits of ten teachers from disk, when they (17 GB) do not fit into memory.

    python benchmarks/past_memory.py --folder PATH-WITH-18-GB-FREE

The logits are synthetic; their number and size are CIFAR-100's (45,000 images, 162 views, 100 classes). Before each
cold reading the files' pages are dropped from memory. So every row comes from the disk: the worst case.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from checkpointkd.teachers.logit_cache import LogitFile, size_of
from common import write_result

IMAGES, VIEWS, CLASSES = 45_000, 162, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--teachers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = IMAGES * VIEWS
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        paths = [Path(folder) / str(number) / "rows.bin" for number in range(options.teachers)]
        logits_MK = torch.randn(VIEWS * 500, CLASSES)
        for path in paths:
            table = LogitFile(path, rows=rows, classes=CLASSES)
            for begin in range(0, rows, len(logits_MK)):
                table.write(torch.arange(begin, begin + len(logits_MK)), logits_MK)
            del table  # what is mapped can't be dropped
        seconds: dict[str, list[float]] = {"from disk": [], "from memory": []}
        for turn in range(options.rounds):
            row_N = torch.arange(IMAGES) * VIEWS + torch.randint(VIEWS, (IMAGES,), generator=_generator(turn))
            for path in paths:
                _drop(path)
            tables = [LogitFile(path, rows=rows, classes=CLASSES) for path in paths]
            for temperature in seconds:
                began = time.perf_counter()
                for table in tables:
                    _, there_N = table.read(row_N)
                    assert bool(there_N.all())
                seconds[temperature].append(time.perf_counter() - began)
            del table, tables
    write_result(
        "past-memory",
        {
            "command": "python benchmarks/past_memory.py --folder PATH",
            "teachers": options.teachers,
            "gigabytes": round(options.teachers * size_of(rows, CLASSES) / 1e9, 1),
            "seconds_per_epoch": {name: round(statistics.median(each), 2) for name, each in seconds.items()},
        },
    )


def _drop(path: Path) -> None:
    """Drop the file's pages from memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


if __name__ == "__main__":
    main()
