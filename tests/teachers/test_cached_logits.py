"""`ckd.cached_logits`: the batches of `distill` with the teachers' logits, for training loops of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.data import DataConfig, load_data
from checkpointkd.distill_config import KDConfig
from checkpointkd.errors import UserError
from checkpointkd.losses import METHODS, LogitDistillation
from checkpointkd.teachers.ensemble import Teacher, open_teacher


@pytest.fixture
def refs(teacher_run: Path) -> list[str]:
    return [f"{teacher_run}@2", f"{teacher_run}@last"]


def test_logits_are_those_of_the_augmented_images_in_the_batch(refs: list[str]):
    batches = ckd.cached_logits(*refs, batch_size=30, seed=3)
    assert (len(batches), batches.references) == (4, refs)
    seen = []
    for epoch in range(2):
        for batch in batches.epoch(epoch):
            live = torch.stack([ckd.load(ref)(batch.images_BCHW) for ref in refs])
            torch.testing.assert_close(batch.teacher_TBK, live, atol=2e-2, rtol=2e-3)
            assert batch.teacher_TBK is not None
            assert batch.teacher_TBK.dtype == torch.float32
            seen.append((epoch, *batch.index_B.tolist()))
    assert len(seen) == 8
    assert sorted(seen[0][1:]) != sorted(seen[4][1:]), "another order in each epoch"


def test_batches_are_those_of_distill(refs: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The losses that `distill` logs are those of a plain loop over these batches."""
    losses: list[float] = []
    forward = LogitDistillation.forward

    def recorded(self: LogitDistillation, model: Any, batch: Any, train_fraction: float) -> Any:
        loss_B, logits_BK = forward(self, model, batch, train_fraction)
        losses.append(loss_B.mean().item())
        return loss_B, logits_BK

    monkeypatch.setattr(LogitDistillation, "forward", recorded)
    options = {"batch_size": 30, "precision": "fp32"}
    ckd.distill("wrn_10_1", teachers=refs, epochs=1, seed=5, out=tmp_path / "s", learning_rate=1e-8, **options)
    student = ckd.load(tmp_path / "s").train()
    objective = LogitDistillation(METHODS["kd"](), open_teacher(refs), KDConfig())
    plain = []
    for batch in ckd.cached_logits(*refs, seed=5, **options).epoch(0):
        plain.append(forward(objective, student, batch, 0.0)[0].mean().item())
    assert plain == pytest.approx(losses[: len(plain)], rel=1e-3), "the learning rate leaves the student as it was"


def test_warm_cache_needs_no_forward_pass(refs: list[str], monkeypatch: pytest.MonkeyPatch):
    first = [batch.teacher_TBK for batch in ckd.cached_logits(*refs).epoch(0)]
    monkeypatch.setattr(Teacher, "member_logits", lambda *_: pytest.fail("a teacher ran"))
    again = [batch.teacher_TBK for batch in ckd.cached_logits(*refs).epoch(0)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = ckd.cached_logits(*refs, logit_cache_gb=0.0)
    with pytest.raises(pytest.fail.Exception, match="a teacher ran"):
        next(iter(other.epoch(0)))


def test_dataset_is_one_epoch_in_its_order(refs: list[str]):
    batches = ckd.cached_logits(*refs, batch_size=40)
    dataset = batches.dataset(1)
    first = next(iter(torch.utils.data.DataLoader(dataset, batch_size=40)))
    batch = next(batches.epoch(1))
    assert batch.teacher_TBK is not None
    for got, expected in zip(
        first, (batch.images_BCHW, batch.labels_B, batch.teacher_TBK.transpose(0, 1)), strict=True
    ):
        assert torch.equal(got, expected)
    assert len(dataset) == 100


def test_images_can_be_others_than_the_teachers(refs: list[str]):
    batches = ckd.cached_logits(refs[0], train_images=60, augment=False, batch_size=7)
    images = load_data(DataConfig(data="digits", train_images=60)).train
    seen = torch.cat([batch.index_B for batch in batches.epoch(0)])
    assert sorted(seen.tolist()) == sorted(images.index_N.tolist())
    with pytest.raises(UserError, match="at least one checkpoint reference"):
        ckd.cached_logits()
    with pytest.raises(UserError, match="batch_size must be at least 1, not 0"):
        ckd.cached_logits(refs[0], batch_size=0)
    with pytest.raises(UserError, match="The device 'gpu' cannot be used"):
        ckd.cached_logits(refs[0], device="gpu")
    with pytest.raises(UserError, match="logit_cache_gb must be from 0 to 10⁹, not nan"):
        ckd.cached_logits(refs[0], logit_cache_gb=float("nan"))
    with pytest.raises(UserError, match="'fp8'"):
        ckd.cached_logits(refs[0], precision="fp8")  # type: ignore[arg-type]


def test_streamed_images_get_live_logits(tmp_path: Path):
    from PIL import Image

    for split in ("train", "val"):
        for label in ("a", "b"):
            for number in range(24):
                path = tmp_path / "images" / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (10 * number, 100, 50)).save(path)
    run, data = tmp_path / "run", f"folder:{tmp_path / 'images'}"
    ckd.train("wrn_10_1", data=data, image_size=16, out=run, epochs=1, batch_size=4, precision="fp32")
    batches = ckd.cached_logits(f"{run}@last", batch_size=4)
    batch = next(batches.epoch(0))
    assert batch.teacher_TBK is not None
    torch.testing.assert_close(batch.teacher_TBK[0], ckd.load(run)(batch.images_BCHW), atol=1e-2, rtol=1e-2)
    with pytest.raises(UserError, match="Use `epoch` in place of `dataset`"):
        batches.dataset(0)


@pytest.mark.parametrize("gigabytes", [1.0, 0.0])  # 0: the cache has no room, so the teachers run live
def test_the_largest_logits_and_the_mean_of_the_others(gigabytes: float, refs: list[str]):
    whole = next(ckd.cached_logits(*refs, logit_cache_gb=gigabytes).epoch(0)).teacher_TBK
    largest = next(ckd.cached_logits(*refs, logit_cache_gb=gigabytes, top_k=3).epoch(0)).teacher_TBK
    assert whole is not None
    assert largest is not None
    expected = whole.clone()
    for row_K in expected.flatten(0, 1):
        kept = row_K.topk(3).indices
        others = torch.ones(10, dtype=torch.bool).index_fill(0, kept, False)
        row_K[others] = row_K[others].mean()
    torch.testing.assert_close(largest, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("top_k", [0, 10, -1, 2.5])
def test_a_top_k_that_does_not_fit_is_refused(top_k: Any, refs: list[str]):
    with pytest.raises(
        UserError, match=f"--top-k {top_k} must be a whole number from 1 to below the number of classes"
    ):
        ckd.cached_logits(*refs, top_k=top_k)


@pytest.mark.parametrize("epoch", [-1, 0.5, "0", None])
def test_an_epoch_that_is_no_number_is_refused(epoch: Any, refs: list[str]):
    with pytest.raises(UserError, match="epoch must be a whole number of at least 0"):
        ckd.cached_logits(*refs).epoch(epoch)
