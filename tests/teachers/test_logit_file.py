"""The file of logits of every view: rows are valid, or they count as missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from checkpointkd.teachers.cached_batches import FILL_BATCH
from checkpointkd.teachers.logit_cache import LogitFile, size_of


def test_a_damaged_or_misplaced_row_is_missing(tmp_path: Path):
    table = LogitFile(tmp_path / "rows.bin", rows=50, classes=7)
    rows = torch.arange(0, 50, 3)
    logits = torch.randn(len(rows), 7).half()
    table.write(rows, logits)
    stored, valid = LogitFile(tmp_path / "rows.bin", rows=50, classes=7).read(torch.arange(50))
    assert valid.nonzero().flatten().tolist() == rows.tolist()
    assert torch.equal(stored[rows], logits)
    content = bytearray((tmp_path / "rows.bin").read_bytes())
    record = size_of(1, 7)
    missed = 0
    for trial in range(300):
        draw = torch.Generator().manual_seed(trial)
        row = int(rows[torch.randint(len(rows), (), generator=draw)])
        damaged = bytearray(content)
        at = row * record + int(torch.randint(record, (), generator=draw))
        match trial % 3:
            case 0:
                damaged[at] ^= 1 << int(torch.randint(8, (), generator=draw))
            case 1:  # half written
                if not any(damaged[at : (row + 1) * record]):
                    continue
                damaged[at : (row + 1) * record] = bytes((row + 1) * record - at)
            case 2:  # another image's logits
                second = int(rows[(rows.tolist().index(row) + 1) % len(rows)])
                damaged[row * record : (row + 1) * record] = content[second * record : (second + 1) * record]
        (tmp_path / "damaged.bin").write_bytes(damaged)
        _, valid = LogitFile(tmp_path / "damaged.bin", rows=50, classes=7).read(rows)
        missed += bool(valid[rows.tolist().index(row)])
        assert int((~valid).sum()) <= 1
    assert missed == 0


def test_the_size_for_cifar100():
    assert size_of(50_000 * 162, 100) == pytest.approx(1.685e9, rel=1e-3)
    assert FILL_BATCH >= 100
