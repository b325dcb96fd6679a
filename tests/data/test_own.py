"""The user's own data sets: objects and functions, their augmentation, their normalization, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import Dataset, Subset, TensorDataset

import checkpointkd as ckd
from checkpointkd.cli import main
from checkpointkd.data import DataConfig, InMemoryImages, Views, load_data, load_test
from checkpointkd.data.own import data_name
from checkpointkd.errors import UserError

PIXELS_NHW = torch.from_numpy(load_digits().images / 16).float()
LABELS_N = torch.from_numpy(load_digits().target).long()
SETTINGS: dict[str, Any] = {"epochs": 2, "save_every": 1, "batch_size": 20, "precision": "fp32"}


class Digits(Dataset):
    """Digits as PIL images, with a transform of torchvision."""

    def __init__(self, rows: range, transform: Any = None) -> None:
        self.rows, self.transform = rows, transform
        self.targets = LABELS_N[rows.start : rows.stop].tolist()
        self.classes = list("0123456789")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        image = Image.fromarray((255 * PIXELS_NHW[self.rows[number]]).round().to(torch.uint8).numpy())
        return (image if self.transform is None else self.transform(image)), self.targets[number]


TRAIN, VAL, TEST = range(100), range(100, 160), range(160, 260)


def _normalizing(*augmentation: Any) -> Any:
    from torchvision import transforms

    return transforms.Compose([*augmentation, transforms.ToTensor(), transforms.Normalize((0.3,), (0.4,))])


def _shifted() -> Any:
    from torchvision import transforms

    return transforms.RandomCrop(8, padding=1)


def _augmenting(**changes: Any) -> ckd.Data:
    splits = {"train": Digits(TRAIN, _normalizing(_shifted())), "val": Digits(VAL), "test": Digits(TEST)}
    return ckd.Data(**{**splits, **changes})


def _loaded(data: ckd.Data, select_on: str = "val") -> Any:
    return load_data(DataConfig(data=data_name(data), select_on=select_on))  # type: ignore[arg-type]


def test_images_are_in_0_1_whatever_their_form():
    """PIL images, uint8 tensors, floats, a trailing Normalize, and `normalized=` are the same images."""
    expected = (255 * PIXELS_NHW[100:160, None]).round() / 255
    pixels = (255 * PIXELS_NHW[:, None]).round().to(torch.uint8)
    forms = {
        "PIL": Digits(VAL),
        "Normalize": Digits(VAL, _normalizing()),
        "uint8": TensorDataset(pixels[100:160], LABELS_N[100:160]),
        "float": TensorDataset(pixels[100:160] / 255, LABELS_N[100:160]),
        "a subset": Subset(Digits(range(160), _normalizing()), list(VAL)),
    }
    for name, form in forms.items():
        loaded = _loaded(_augmenting(val=form))
        assert torch.allclose(loaded.val.to_float(), expected, atol=1e-6), name
        assert torch.equal(loaded.val.labels_N, LABELS_N[100:160]), name
        assert loaded.val.to_float().max() <= 1, name
    normalized = [
        TensorDataset((pixels[r.start : r.stop] / 255 - 0.3) / 0.4, LABELS_N[r.start : r.stop])
        for r in (TRAIN, VAL, TEST)
    ]
    given = dict(zip(("train", "val", "test"), normalized, strict=True))
    loaded = _loaded(ckd.Data(**given, classes=10, normalized=((0.3,), (0.4,))))
    assert torch.allclose(loaded.val.to_float(), expected, atol=1e-5)
    assert (loaded.classes, loaded.train.shape) == (tuple("0123456789"), (1, 8, 8))


def test_augmentation_is_a_function_of_seed_epoch_and_image(monkeypatch):
    images = _loaded(_augmenting()).train

    def epoch(number: int, seed: int = 0, batch_size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
        torch.rand(3)  # the global generator's state has no influence
        batches = list(images.batches(batch_size=batch_size, seed=seed, device="cpu").epoch(number))
        order = torch.cat([batch.index_B for batch in batches]).argsort()
        return torch.cat([batch.images_BCHW for batch in batches])[order], torch.cat([b.labels_B for b in batches])[
            order
        ]

    first, labels = epoch(0)
    assert torch.equal(labels, LABELS_N[:100])
    assert torch.equal(epoch(0, batch_size=50)[0], first)
    monkeypatch.setenv("CHECKPOINTKD_WORKERS", "0")
    assert torch.equal(epoch(0, batch_size=50)[0], first), "without workers"
    assert not torch.equal(epoch(1)[0], first)
    assert not torch.equal(epoch(0, seed=1)[0], first)


def test_reading_leaves_the_global_generators_alone(monkeypatch):
    monkeypatch.setenv("CHECKPOINTKD_WORKERS", "0")
    images = _loaded(_augmenting()).train
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    next(iter(images.batches(batch_size=8, seed=0, device="cpu").epoch(0)))
    assert torch.equal(torch.rand(2), expected)


def test_train_score_distill_and_continue_with_objects(tmp_path: Path):
    data = _augmenting(name="my digits", clean=Digits(TRAIN))
    teacher = ckd.train("wrn_10_1", data=data, out=tmp_path / "teacher", **SETTINGS)
    assert teacher.run.data.name == "object:my digits"
    assert (teacher.run.data.train_size, teacher.run.data.val_size, teacher.run.data.val_fraction) == (100, 60, None)
    result = teacher.result()
    assert result is not None
    assert result.test_images == 100
    again = ckd.train("wrn_10_1", data=data, out=tmp_path / "again", **SETTINGS)
    assert again.last.sha256 == teacher.last.sha256, "the same images in the same views"
    plane = ckd.score(tmp_path / "teacher", decoder_steps=2, decoder_seeds=1)
    assert [point.epoch for point in plane.points] == [1, 2]
    student = ckd.distill(
        "wrn_10_1", teachers=[f"{tmp_path}/teacher@last"], out=tmp_path / "s", allow_weak_teacher=True, **SETTINGS
    )
    assert student.run.data == teacher.run.data
    other = _augmenting(train=Digits(range(90)), name="my digits")
    with pytest.raises(UserError, match=r"already holds another run .*sha256"):
        ckd.train("wrn_10_1", data=other, out=tmp_path / "teacher", **SETTINGS)


def test_declared_views_use_the_logit_cache(tmp_path: Path):
    data = _augmenting(train=Digits(TRAIN), views=Views(pad=1, flip=False), name="declared")
    assert isinstance(_loaded(data).train, InMemoryImages)
    ckd.train("wrn_10_1", data=data, out=tmp_path / "teacher", **SETTINGS)
    options: dict[str, Any] = {"teachers": f"{tmp_path}/teacher", "allow_weak_teacher": True, **SETTINGS}
    cached = ckd.distill("wrn_10_1", out=tmp_path / "cached", **options)
    live = ckd.distill("wrn_10_1", out=tmp_path / "live", logit_cache_gb=0, **options)
    assert cached.last.sha256 == live.last.sha256
    batches = ckd.cached_logits(f"{tmp_path}/teacher", data=data, batch_size=25)
    assert [len(batch.labels_B) for batch in batches.epoch(0)] == [25] * 4


def test_validation_part_of_the_training_images_is_not_augmented():
    with pytest.raises(UserError, match=r"train= augments its images, and there is no val="):
        _loaded(_augmenting(val=None))
    loaded = _loaded(_augmenting(val=None, clean=Digits(TRAIN), name="part"))
    assert (len(loaded.train), len(loaded.val)) == (90, 10)
    expected = (255 * PIXELS_NHW[loaded.val.index_N, None]).round() / 255
    assert torch.equal(loaded.val.to_float(), expected)


def test_the_key_is_of_length_labels_and_a_sample_of_the_images():
    trains = {
        "itself": Digits(TRAIN),
        "again": Digits(TRAIN),
        "shorter": Digits(range(99)),
        "other images": Digits(range(1, 101)),
        "other labels": TensorDataset(PIXELS_NHW[:100, None], 9 - LABELS_N[:100]),
        "other pixels": TensorDataset(1 - PIXELS_NHW[:100, None], LABELS_N[:100]),
    }
    keys = {name: _loaded(_augmenting(train=train, classes=10)).record.sha256 for name, train in trains.items()}
    assert keys["itself"] == keys["again"]
    assert len(set(keys.values())) == len(keys) - 1


CODE = """
import checkpointkd as ckd
from tests.data.test_own import TEST, TRAIN, VAL, Digits

def build():
    return ckd.Data(train=Digits(TRAIN), val=Digits(VAL), test=Digits(TEST))

def wrong():
    return [1, 2]

def broken():
    raise RuntimeError("no disk")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    name = f"own_data_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(CODE))
    monkeypatch.chdir(tmp_path)
    return name


def test_a_function_by_name_on_the_command_line(own: str, tmp_path: Path):
    command = ["train", "wrn_10_1", "--data", f"{own}:build", "--epochs", "1", "--batch-size", "20", "--out", "t"]
    assert main(command) == 0
    run = ckd.open_trajectory("t").run
    assert (run.data.name, run.data.source, run.data.spec) == (f"{own}:build", None, f"{own}:build")
    assert main(["evaluate", "t@last", "--split", "test"]) == 0
    assert len(load_test(DataConfig(data=f"{own}:build"))) == 100


@pytest.mark.slow
def test_code_of_a_downloaded_record_is_not_imported(own: str, tmp_path: Path):
    """Another user's run names code as its data set. This user has not named it."""
    assert main(["train", "wrn_10_1", "--data", f"{own}:build", "--epochs", "1", "--out", "t"]) == 0
    program = textwrap.dedent(
        f"""
        import sys
        import checkpointkd as ckd
        try:
            ckd.evaluate("t@last")
        except ckd.UserError as error:
            print(error, "{own}" in sys.modules)
        ckd.evaluate("t@last", data="{own}:build")
        ckd.evaluate("t@last")
        print("done")
        """
    )
    root = str(Path(__file__).parents[2])
    environment = {"CHECKPOINTKD_HOME": str(tmp_path / "other"), "PYTHONPATH": f"{root}/src:{root}", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert f"names code, '{own}:build', as its data set" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-2].endswith("False")
    assert done.stdout.splitlines()[-1] == "done"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:build", "Data set 'nowhere_at_all:build' cannot be imported: No module named"),
        ("{own}:missing", "has no attribute 'missing'"),
        ("{own}:wrong", "must be a function that returns a checkpointkd.Data, not list"),
        ("{own}:broken", "cannot be built: no disk"),
        ("object:never-named", "Data set 'object:never-named' is an object of the process that made the run"),
    ],
)
def test_what_is_no_data_set_is_refused(own: str, name: str, message: str):
    with pytest.raises(UserError, match=message):
        load_data(DataConfig(data=name.format(own=own)))


class Growing(Digits):
    """A data set whose length changes once it is open."""

    grown = False

    def __len__(self) -> int:
        return len(self.rows) + self.grown


class Mixed(Digits):
    def __getitem__(self, number: int) -> tuple[Any, Any]:
        image, label = super().__getitem__(number)
        return image.resize((8, 9 if number == 57 else 8)), label


class Broken(Digits):
    def __getitem__(self, number: int) -> tuple[Any, Any]:
        if number == 57:
            raise OSError("disk error")
        return super().__getitem__(number)


class Unsized(Digits):
    def __len__(self) -> int:
        raise OSError("disk error")


class Levels(Digits):
    """Tensors of 8 bits, but for every other image."""

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        pixels, label = PIXELS_NHW[number, None], self.targets[number]
        return pixels if number % 2 == 0 else (255 * pixels).to(torch.uint8), label


class Soft(Digits):
    def __getitem__(self, number: int) -> tuple[Any, Any]:
        return super().__getitem__(number)[0], 0.5


def _floats(value: torch.Tensor) -> Dataset:
    return TensorDataset(value, LABELS_N[: len(value)])


NEGATIVE = {"normalized": ((0.5,), (9.0,)), "train": _floats(PIXELS_NHW[:100, None])}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"val": _floats(PIXELS_NHW[:60, None]), "classes": 9}, "image 9 of train= is 9, but there are 9"),
    "range": ({"train": _floats(3 * PIXELS_NHW[:100, None])}, r"in \[0, 2.81\], not in \[0, 1\]. Give normalized="),
    "normalized": (NEGATIVE, "Give another mean and std"),
    "size": ({"val": Mixed(range(60))}, r"Image 57 of val= has the shape \(1, 9, 8\), another one \(1, 8, 8\)"),
    "broken": ({"val": Broken(VAL)}, "Image 57 of val= cannot be read: OSError: disk error"),
    "soft": ({"val": Soft(VAL)}, "The label of image 0 of val= must be a whole number, not 0.5"),
    "halves": (
        {"val": TensorDataset(PIXELS_NHW[:60, None] / 16, LABELS_N[:60] + 0.5)},
        r"The label of image 0 of val= must be a whole number, not tensor\(\d+.5000\)",
    ),
    "arrays": ({"val": [(PIXELS_NHW[0].numpy(), 1)]}, r"must be a PIL image or a tensor \(C, H, W\).*not ndarray"),
    "items": ({"val": [PIXELS_NHW[0]]}, r"Image 0 of val= must be \(image, label\), not Tensor"),
    "classes": ({"train": _floats(PIXELS_NHW[:100, None])}, "Name the classes"),
    "mean": ({"normalized": 3}, "normalized takes a mean and a positive std"),
    "clean": ({"clean": Digits(VAL)}, "clean= has 60 images and train= 100"),
    "empty": ({"val": Digits(range(0))}, "val= has no image"),
    "text": ({"train": 3}, "train= takes a data set with a length and items by number"),
    "number of classes": ({"classes": 10.0}, "classes= takes the names .* or their number, not 10.0"),
    "classes without order": ({"classes": set("0123456789")}, "classes= takes the names of the classes in order"),
    "classes as text": ({"classes": "0123456789"}, "classes= takes the names of the classes in order"),
    "channels": (
        {"normalized": ((0.5, 0.5), (1, 1))},
        "normalized has 2 values of mean and std, but the images have 1 channels",
    ),
    "name": ({"name": 3}, "A name must be printable and on one line, not 3"),
    "no pixels": ({"val": _floats(PIXELS_NHW[:60, None, :0])}, r"Image 0 of val= has no pixels"),
    "own views": ({"views": "flip"}, r"views= takes checkpointkd.data.Views\(...\), not str"),
    "types": ({"train": Levels(TRAIN)}, "Some images are uint8 and others float"),
    "views": ({"views": Views(pad=1, flip=False)}, r"views= augments the images, but train= augments them"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_refused_in_one_sentence(name: str, tmp_path: Path):
    changes, message = BAD[name]
    with pytest.raises(UserError, match=message):
        ckd.train("wrn_10_1", data=_augmenting(**changes), out=tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run").exists()


def test_a_length_that_cannot_be_read_is_an_error():
    with pytest.raises(UserError, match="The length of train= cannot be read: disk error"):
        _augmenting(train=Unsized(TRAIN))


def test_images_may_be_part_of_a_graph():
    images = PIXELS_NHW[:100, None].clone().requires_grad_()
    assert _loaded(_augmenting(train=_floats(images), classes=10)).train.to_float().equal(images.detach())


def test_a_length_that_changes_is_an_error(tmp_path: Path):
    growing = Growing(TRAIN)
    images = _loaded(_augmenting(train=growing)).train
    growing.grown = True
    with pytest.raises(UserError, match="The length of train= has changed from 100 to 101"):
        images.to_float()


def test_only_data_sets_are_data(tmp_path: Path):
    with pytest.raises(UserError, match=r"data= takes the name of a data set or a checkpointkd.Data, not list"):
        ckd.train("wrn_10_1", data=[], out=tmp_path, **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--flip does not apply to object:"):
        ckd.train("wrn_10_1", data=_augmenting(), flip=True, out=tmp_path, **SETTINGS)
