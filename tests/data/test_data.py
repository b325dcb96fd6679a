from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.data import DATASETS, DataConfig, InMemoryImages, Views, config_of, load_data, load_test
from checkpointkd.data.splits import stratified
from checkpointkd.errors import UserError


@pytest.mark.parametrize("name", ["digits"])  # the others need their files: tests/data/test_cifar.py
def test_a_data_set_with_validation_images_and_with_test_images(name: str):
    with_val, with_test = (load_data(DataConfig(data=name, select_on=select_on)) for select_on in ("val", "test"))
    test = load_test(DataConfig(data=name))
    parts = [set(images.index_N.tolist()) for images in (with_val.train, with_val.val)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(with_test.train.index_N.tolist())
    assert torch.equal(with_test.val.pixels_NCHW, test.pixels_NCHW)
    for images in (with_val.train, with_val.val, test):
        assert images.labels_N.unique().tolist() == list(range(len(with_val.classes)))
        assert images.to_float().min() == 0
        assert images.to_float().max() <= 1
        assert len(images.sha256()) == 64


def test_digits_are_complete_and_disjoint():
    data, test = load_data(DataConfig(data="digits")), load_test(DataConfig(data="digits"))
    assert (len(data.train), len(data.val), len(test)) == (898, 300, 599)
    indices = [images.index_N for images in (data.train, data.val, test)]
    assert torch.equal(torch.cat(indices).sort().values, torch.arange(1797))


def test_only_the_final_evaluation_reads_the_test_images(teacher_run: Path, tmp_path: Path, monkeypatch):
    """Scoring, selecting and measuring teachers on validation images never open the test set."""
    opened = []
    real = DATASETS["digits"]

    def observed(*arguments):
        dataset = real(*arguments)
        test = dataset.test
        object.__setattr__(dataset, "test", lambda: opened.append("test") or test())
        return dataset

    monkeypatch.setitem(DATASETS, "digits", observed)
    ckd.score(teacher_run, decoder_steps=2, decoder_seeds=1)
    ckd.select(teacher_run)
    ckd.evaluate(f"{teacher_run}@2")
    assert opened == []
    ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@4"], out=tmp_path / "s", epochs=2)
    assert opened == ["test"]
    ckd.evaluate(f"{teacher_run}@2", split="test")
    assert opened == ["test", "test"]


def test_the_split_does_not_depend_on_the_seed_of_the_run(teacher_run: Path, tmp_path: Path):
    run = ckd.train("wrn_10_1", data="digits", train_images=100, epochs=1, seed=5, out=tmp_path / "run")
    assert run.run.data == ckd.open_trajectory(teacher_run).run.data


def test_stratified_keeps_proportions_or_refuses():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    assert labels[stratified(labels, 20, seed=0, purpose="x")].bincount().tolist() == [12, 6, 2]
    assert not torch.equal(stratified(labels, 20, seed=0, purpose="x"), stratified(labels, 20, seed=1, purpose="x"))
    with pytest.raises(UserError, match=r"2 x images are too few for 3 classes\. Take at least 3"):
        stratified(labels, 2, seed=0, purpose="x")
    with pytest.raises(UserError, match="Cannot take 101 x images: there are only 100"):
        stratified(labels, 101, seed=0, purpose="x")
    with pytest.raises(UserError, match="A split of 5 x images has none of class 1"):
        stratified(torch.tensor([0] * 99 + [1]), 5, seed=0, purpose="x")


def _numbered(count: int) -> InMemoryImages:
    pixels = torch.randint(1, 256, (count, 1, 4, 4), dtype=torch.uint8)
    return InMemoryImages(pixels, torch.arange(count) % 3, torch.arange(count) * 2, Views(pad=1, flip=True))


def test_index_and_view_of_a_batch_give_its_pixels():
    images = _numbered(10)
    views = images.views
    for batch in images.batches(batch_size=4, seed=0, device="cpu").epoch(3):
        assert batch.view_B is not None
        rows = batch.index_B // 2
        expected = views.cut(views.padded(images.pixels_NCHW), rows, batch.view_B).float() / 255
        assert torch.equal(batch.images_BCHW, expected)
        assert torch.equal(batch.labels_B, images.labels_N[rows])
        assert torch.equal(batch.view_B, views.draw(batch.index_B, seed=0, epoch=3))


def test_an_epoch_has_every_image_once_and_the_same_views_at_any_batch_size():
    images = _numbered(10)
    seen = {}
    for size in (1, 3, 10):
        batches = images.batches(batch_size=size, seed=0, device="cpu")
        whole = list(batches.epoch(1))
        assert len(whole) == len(batches)
        index, view = torch.cat([b.index_B for b in whole]), torch.cat([b.view_B for b in whole])  # type: ignore[misc]
        assert sorted(index.tolist()) == images.index_N.tolist()
        seen[size] = dict(zip(index.tolist(), view.tolist(), strict=True))
    assert seen[1] == seen[3] == seen[10]


def test_without_augmentation_batches_are_the_images():
    images = _numbered(6)
    batches = images.batches(batch_size=6, seed=0, device="cpu", augmentation=None)
    (batch,) = batches.epoch(0)
    assert torch.equal(batch.images_BCHW, images.to_float()[batch.index_B // 2])


def test_an_unknown_data_set_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"nknown data set 'digit'.*id you mean 'digits'\?"):
        load_data(DataConfig(data="digit"))
    with pytest.raises(UserError, match=r"nknown data set 'CIFAR100'.*id you mean 'cifar100'"):
        load_data(DataConfig(data="CIFAR100"))
    here = str(Path(__file__).parent)
    with pytest.raises(UserError, match=rf"'{here}' is a path\. For images in folders give folder:{here}"):
        load_data(DataConfig(data=here))
    with pytest.raises(UserError, match="have no path"):
        load_data(DataConfig(data="digits:/somewhere"))


def test_stored_settings_load_the_same_data():
    data = load_data(DataConfig(data="digits", train_images=100))
    again = load_data(config_of(data.record))
    assert again.record == data.record
    assert torch.equal(again.train.index_N, data.train.index_N)


def test_decoded_images_survive_that_another_program_shortens_their_file(tmp_path: Path):
    """Reading a mapped file beyond its end would kill the process."""
    script = (
        "import os, torch\n"
        "from pathlib import Path\n"
        "from checkpointkd.data.cache import cached_decode\n"
        "decode = lambda: (torch.ones(64, 3, 32, 32, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))\n"
        "cached_decode('key', decode)\n"
        "pixels, _ = cached_decode('key', decode)\n"
        "os.truncate(next(Path(os.environ['CHECKPOINTKD_HOME']).rglob('pixels.npy')), 0)\n"
        "assert int(pixels.sum()) == pixels.numel()\n"
    )
    environment = {**os.environ, "CHECKPOINTKD_HOME": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0
