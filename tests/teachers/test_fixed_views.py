"""`--views K` with images that workers load: teachers run once per view, and later students need none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpointkd as ckd
from checkpointkd import records
from checkpointkd.errors import UserError
from checkpointkd.losses.top_logits import keep_top_logits
from checkpointkd.records.logit_cache import LogitManifest
from checkpointkd.teachers import logit_cache
from checkpointkd.teachers.ensemble import Teacher

from ..data.image_files import folder_of_digits

SMALL: dict[str, Any] = {"image_size": 16, "batch_size": 10, "precision": "fp32", "epochs": 4, "save_every": 4}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home"))


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    folder = folder_of_digits(tmp_path / "images")
    run = ckd.train("wrn_10_1", data=f"folder:{folder}", out=tmp_path / "teacher", select_on="test", **SMALL)
    return f"{run.path}@last"


@pytest.fixture
def count_passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function: the teachers' forward passes in training since its last call."""
    passes, original = [], Teacher.member_logits

    def counted(self: Teacher, *args: Any) -> torch.Tensor:
        passes.append(1)
        return original(self, *args)

    monkeypatch.setattr(Teacher, "member_logits", counted)

    def since() -> int:
        count = len(passes)
        passes.clear()
        return count

    return since


def _distill(teacher: str, out: Path, **more: Any) -> ckd.Trajectory:
    options: dict[str, Any] = {**SMALL, "allow_weak_teacher": True, **more}
    return ckd.distill("resnet_8", teachers=[teacher], out=out, **options)


def test_the_first_student_fills_and_the_next_needs_no_teacher(
    teacher: str, tmp_path: Path, count_passes: Callable[[], int], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "checkpointkd")
    _distill(teacher, tmp_path / "streamed")
    assert "With --views, such as --views 8, logits are cached" in caplog.text
    assert count_passes() == 4 * 4, "every step of 4 epochs of 36 images in batches of 10"
    first = _distill(teacher, tmp_path / "first", views=2)
    assert count_passes() == 2 * 4, "the first two epochs"
    assert "Logits of teachers: 72 computed, 72 read from the logit cache" in caplog.text, "36 images, 4 epochs"
    _distill(teacher, tmp_path / "other-seed", views=2, seed=5)
    assert count_passes() == 0, "another seed has the same views"
    assert "Logits of teachers: 0 computed, 144 read from the logit cache" in caplog.text
    _distill(teacher, tmp_path / "other-method", views=2, method="dist", batch_size=7)
    assert count_passes() == 0, "another method and batch size read the same logits"
    again = _distill(teacher, tmp_path / "again", views=2)
    assert again.last.sha256 == first.last.sha256, "a full cache gives the same student as an empty cache"
    live = _distill(teacher, tmp_path / "live", views=2, logit_cache_gb=0)
    assert [row.loss for row in live.rows()] == pytest.approx([row.loss for row in first.rows()], rel=1e-3)


def test_a_smaller_cache_keeps_the_largest_logits(teacher: str, tmp_path: Path, count_passes: Callable[[], int]):
    cached = _distill(teacher, tmp_path / "cached", views=2, top_k=1)
    count_passes()
    again = _distill(teacher, tmp_path / "again", views=2, top_k=1)
    assert count_passes() == 0
    live = _distill(teacher, tmp_path / "live", views=2, top_k=1, logit_cache_gb=0)
    assert again.last.sha256 == cached.last.sha256
    assert [row.loss for row in live.rows()] == pytest.approx([row.loss for row in cached.rows()], rel=1e-3)
    whole = _distill(teacher, tmp_path / "whole", views=2)
    assert whole.last.sha256 != cached.last.sha256
    assert logit_cache.size_of(10, 1000, 10) < logit_cache.size_of(10, 1000) / 30
    with pytest.raises(UserError, match="--top-k 3 must be a whole number from 1 to below the number of classes, 3"):
        _distill(teacher, tmp_path / "all", views=2, top_k=3)
    with pytest.raises(UserError, match="--top-k must be at least 1, not 0"):
        _distill(teacher, tmp_path / "none", views=2, top_k=0)
    with pytest.raises(UserError, match="--top-k does not apply to fitnets"):
        _distill(teacher, tmp_path / "features", views=2, top_k=2, method="fitnets")


@pytest.mark.parametrize("classes", [3, 7, 1000])
def test_rows_of_the_largest_logits_come_back(tmp_path: Path, classes: int):
    logits_MK = (3 * torch.randn(20, classes, generator=torch.Generator().manual_seed(0))).half()
    file = logit_cache.LogitFile(tmp_path / "rows.bin", rows=40, classes=classes, top_k=2)
    file.write(torch.arange(20), logits_MK)
    read_MK, valid_M = file.read(torch.arange(40))
    assert valid_M.tolist() == [True] * 20 + [False] * 20
    assert torch.equal(read_MK[:20], file.as_read(logits_MK))
    torch.testing.assert_close(read_MK[None, :20].float(), keep_top_logits(logits_MK[None], 2))
    top = logits_MK.float().topk(2).indices
    assert torch.equal(read_MK[:20].gather(1, top), logits_MK.gather(1, top))
    torch.testing.assert_close(read_MK[:20].float().mean(1), logits_MK.float().mean(1), atol=5e-3, rtol=0)


def test_in_memory_images_share_all_views_and_augmented_images_have_their_own(
    teacher_run: Path, tmp_path: Path, count_passes: Callable[[], int]
):
    settings: dict[str, Any] = {"teachers": [f"{teacher_run}@last"], "epochs": 3, "precision": "fp32"}
    ckd.distill("wrn_10_1", out=tmp_path / "two", views=2, **settings)
    assert count_passes() > 0
    ckd.distill("wrn_10_1", out=tmp_path / "again", views=2, seed=1, **settings)
    assert count_passes() == 0
    ckd.distill("wrn_10_1", out=tmp_path / "augmented", views=2, auto_augment="randaugment", **settings)
    first = count_passes()
    assert first > 0
    ckd.distill("wrn_10_1", out=tmp_path / "augmented-1", views=2, auto_augment="randaugment", seed=1, **settings)
    assert count_passes() == 0
    ckd.distill("wrn_10_1", out=tmp_path / "erased", views=2, auto_augment="randaugment", erasing=0.5, **settings)
    assert count_passes() == first, "another augmentation has other logits"


def test_a_killed_fill_continues(teacher: str, tmp_path: Path, count_passes: Callable[[], int]):
    class StopError(Exception):
        pass

    def stop(name: str, done: int, total: int) -> None:
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        _distill(teacher, tmp_path / "student", views=1, on_progress=stop)
    count_passes()
    _distill(teacher, tmp_path / "student", views=1)
    assert count_passes() == 1, "three of four batches were stored"


def test_each_setting_of_fixed_views_has_its_own_entry(teacher: str, tmp_path: Path):
    _distill(teacher, tmp_path / "a", views=2, epochs=1)
    _distill(teacher, tmp_path / "b", views=3, epochs=1)
    _distill(teacher, tmp_path / "c", views=2, epochs=1, top_k=1)
    folders = [path for path in (tmp_path / "home" / "logits").iterdir() if (path / "rows.bin").exists()]
    manifests = [records.read(folder / "manifest.json", LogitManifest, remedy="") for folder in folders]
    kinds = {(manifest.rows, manifest.top_k) for manifest in manifests}
    assert kinds == {(72, None), (108, None), (72, 1)}, "36 images with 2, 3 and 2 views"


def test_user_loops_have_fixed_views_too(teacher: str, count_passes: Callable[[], int]):
    batches = ckd.cached_logits(teacher, views=2, batch_size=10)
    for epoch in range(2):
        for batch in batches.epoch(epoch):
            assert batch.view_B is not None
            assert batch.teacher_TBK is not None
    assert count_passes() > 0
    live = ckd.load(teacher)
    for batch in ckd.cached_logits(teacher, views=2, batch_size=12, seed=8).epoch(0):
        torch.testing.assert_close(batch.teacher_TBK, live(batch.images_BCHW)[None], atol=2e-2, rtol=2e-3)
    assert count_passes() == 0
