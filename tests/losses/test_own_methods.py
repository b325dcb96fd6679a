"""A user's own method, named `package.module:Class`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

import checkpointkd as ckd
from checkpointkd.errors import UserError
from checkpointkd.losses import METHODS, defaults, get_method, takes_features

CODE = """
import torch.nn.functional as F
from torch import nn

class Cosine(nn.Module):
    alpha, tau, weight, warm_up = 1.0, 4.0, 2.0, 0.0

    def forward(self, student_BK, teacher_TBK, labels_B, kd_config, weights):
        return 1 - F.cosine_similarity(student_BK, teacher_TBK.mean(0))

class Plain(nn.Module):
    pass

class Features(Cosine):
    feature_kind = "pixels"

def function():
    pass

class Copy(nn.Module):
    alpha, tau, weight, warm_up = 0.5, 5.0, None, 0.0

    def forward(self, student_BK, teacher_TBK, labels_B, kd_config, weights):
        from checkpointkd.losses import soft_loss
        return soft_loss(student_BK, teacher_TBK, kd_config, weights)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in a folder on the import path."""
    name = f"own_methods_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(CODE))
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_own_method_teaches_and_is_recorded(teacher_run: Path, own: str, tmp_path: Path):
    options: dict[str, Any] = {"teachers": [f"{teacher_run}@last"], "epochs": 1, "precision": "fp32"}
    run = ckd.distill("wrn_10_1", method=f"{own}:Cosine", out=tmp_path / "cosine", **options)
    assert (run.run.method, run.run.kd.alpha, run.run.kd.tau) == (f"{own}:Cosine", 1.0, 4.0)
    live = ckd.distill("wrn_10_1", method=f"{own}:Cosine", out=tmp_path / "live", logit_cache_gb=0, **options)
    assert live.last.sha256 == run.last.sha256, "the logit cache serves it"
    kd = ckd.distill("wrn_10_1", out=tmp_path / "kd", **options)
    copy = ckd.distill("wrn_10_1", method=f"{own}:Copy", out=tmp_path / "copy", **options)
    assert copy.last.sha256 == kd.last.sha256 != run.last.sha256, "a copy of kd gives kd's student"


def test_own_method_can_be_compared_in_a_search(teacher_run: Path, own: str, tmp_path: Path):
    result = ckd.select(
        teacher_run,
        student="wrn_10_1",
        methods=["kd", f"{own}:Cosine"],
        teachers_from=["last"],
        out=tmp_path / "pilot",
        epochs=1,
        budget=4,
        precision="fp32",
    )
    assert f"{own}:Cosine from epoch 4" in {row.candidate for row in result.candidates}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:Cosine", "Method 'nowhere_at_all:Cosine' cannot be imported: No module named"),
        ("{own}:Missing", "has no attribute 'Missing'"),
        ("{own}:function", "must be a class that inherits from torch.nn.Module"),
        ("{own}:Plain", "has no alpha and no weight and no warm_up"),
        ("{own}:Features", "has feature_kind 'pixels'. Known: "),
        ("kdd", "Unknown method 'kdd'. Did you mean 'kd'"),
    ],
)
def test_what_is_no_method_is_refused(teacher_run: Path, own: str, tmp_path: Path, name: str, message: str):
    with pytest.raises(UserError, match=message):
        ckd.distill("wrn_10_1", teachers=[str(teacher_run)], method=name.format(own=own), out=tmp_path / "s", epochs=1)
    assert not (tmp_path / "s").exists()


def test_get_method_knows_the_built_in_ones(own: str):
    assert {name: get_method(name) for name in METHODS} == METHODS
    assert defaults(f"{own}:Cosine") == (1.0, 4.0)
    assert not takes_features(f"{own}:Cosine")
