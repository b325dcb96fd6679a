"""Images in folders: cropped as in torchvision, equal with any number of workers, and named in errors."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

import checkpointkd as ckd
from checkpointkd.config import EvalTransform
from checkpointkd.data import DataConfig, StreamingImages, config_like, load_data, load_test
from checkpointkd.data.image_io import decode_rgb
from checkpointkd.data.streaming import resize_center_crop, resized_crop, sample_crop_box
from checkpointkd.errors import UserError
from checkpointkd.seeding import generator

from .image_files import digit, encoded, folder_of_digits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of_digits(tmp_path / "images")


def _settings(folder: Path, **more) -> DataConfig:
    return DataConfig(data=f"folder:{folder}", **{"image_size": 16, "val_fraction": 0.25, **more})


def test_a_folder_with_validation_images_and_with_test_images(folder: Path):
    with_val = load_data(_settings(folder))
    with_test = load_data(_settings(folder, select_on="test", val_fraction=None))
    test = load_test(_settings(folder))
    assert with_val.classes == ("class-0", "class-1", "class-2")
    assert (len(with_val.train), len(with_val.val), len(test)) == (27, 9, 12)
    assert (len(with_test.train), len(with_test.val)) == (36, 12)
    assert with_val.val.labels_N.bincount().tolist() == [3, 3, 3]
    assert not set(with_val.train.index_N.tolist()) & set(with_val.val.index_N.tolist())
    for images in (with_val.train, test):
        clean = images.to_float()
        assert clean.shape == (len(images), 3, 16, 16)
        assert 0 <= clean.min() < clean.max() <= 1
    assert torch.equal(torch.cat(list(test.iter_batches(5))), test.to_float())
    assert torch.equal(test.subset(torch.tensor([7, 2])).to_float(), test.to_float()[[7, 2]])


def test_each_image_has_its_own_file_and_label(folder: Path):
    images = load_test(_settings(folder))
    paths = [path for label in range(3) for path in sorted((folder / "val" / f"class-{label}").iterdir())]
    for path, label, pixels_CHW in zip(paths, images.labels_N.tolist(), images.to_float(), strict=True):
        assert path.parent.name == f"class-{label}"
        expected = np.array(resize_center_crop(Image.open(path).convert("RGB"), 16))
        assert torch.equal(pixels_CHW, torch.from_numpy(expected).permute(2, 0, 1) / 255)


def test_the_statistics_are_those_of_the_clean_images(folder: Path):
    images = load_test(_settings(folder))
    mean, std = images.channel_statistics()
    clean = images.to_float().double()
    assert mean == pytest.approx(clean.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(clean.std((0, 2, 3), correction=0).tolist())


@pytest.mark.parametrize("size", [(40, 17), (17, 40), (64, 64), (20, 21)])
def test_crops_equal_torchvision(size: tuple[int, int]):
    from torchvision.transforms import functional, v2

    image = digit(3, 5, size=size)
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(image)
    assert np.array_equal(np.asarray(resize_center_crop(image, 224)), np.asarray(expected))
    random = generator("test", *size)
    for _ in range(20):
        left, top, width, height = sample_crop_box(*size, random)
        expected = functional.resized_crop(image, top, left, height, width, [24, 24])  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(resized_crop(image, 24, left, top, width, height)), np.asarray(expected))


@pytest.mark.parametrize(("share", "resized"), [(0.95, 235), (0.9, 248), (224 / 232, 232), (1.0, 224)])
def test_the_resized_side_is_rounded_down_as_in_timm(share: float, resized: int):
    from torchvision.transforms import v2

    image = digit(3, 5, size=(300, 421))
    expected = np.asarray(v2.Compose([v2.Resize(resized), v2.CenterCrop(224)])(image))
    assert np.array_equal(np.asarray(resize_center_crop(image, 224, EvalTransform(crop_share=share))), expected)


def test_a_crop_larger_than_the_image_has_a_black_border():
    image = Image.new("RGB", (32, 32), "white")
    shown = np.asarray(resize_center_crop(image, 40, EvalTransform(crop_share=40 / 33, crop_offset="floor")))
    white = shown[:, :, 0] == 255
    assert (white.any(1).nonzero()[0][0], white.any(0).nonzero()[0][-1], int(white.sum())) == (3, 35, 33 * 33)


def test_crop_boxes_are_distributed_as_in_torchvision():
    from torchvision.transforms import RandomResizedCrop

    image, random = Image.new("RGB", (90, 70)), generator("spread")
    torch.manual_seed(0)
    expected = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(4000)])  # type: ignore[arg-type]
    boxes = torch.tensor([sample_crop_box(90, 70, random) for _ in range(4000)])[:, [1, 0, 3, 2]]
    standard_error = (expected.float().var(0) / 2000).sqrt()  # of the difference of two means of 4,000
    assert ((boxes.float().mean(0) - expected.float().mean(0)) / standard_error).abs().max() < 4.5
    assert (boxes.float().std(0) / expected.float().std(0) - 1).abs().max() < 0.07
    assert (boxes >= 0).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 90).all()
    assert (boxes[:, 0] + boxes[:, 2] <= 70).all()
    assert sample_crop_box(1000, 10, random)[2:] == (13, 10), "a strip has no box of allowed aspect ratio and area"


def test_crops_do_not_depend_on_workers_or_batch_size(folder: Path, monkeypatch):
    images = load_data(_settings(folder)).train
    seen = {}
    for workers, batch_size in ((0, 4), (1, 4), (3, 4), (2, 5)):
        monkeypatch.setenv("CHECKPOINTKD_WORKERS", str(workers))
        batches = images.batches(batch_size=batch_size, seed=1, device="cpu")
        whole = list(batches.epoch(2))
        assert len(whole) == len(batches)
        assert all(batch.view_B is None for batch in whole)
        index, pixels, labels = (
            torch.cat([getattr(b, f) for b in whole]) for f in ("index_B", "images_BCHW", "labels_B")
        )
        order = index.argsort()
        assert torch.equal(index[order], images.index_N)
        assert torch.equal(labels[order], images.labels_N)
        seen[workers, batch_size] = (index if batch_size == 4 else None, pixels[order])
    first_index, first_pixels = seen[0, 4]
    assert not torch.equal(first_index, images.index_N), "the order is random"
    for index, pixels in seen.values():
        assert index is None or torch.equal(index, first_index), "the order does not depend on the workers"
        assert torch.equal(pixels, first_pixels)
    next_epoch = torch.cat([b.images_BCHW for b in images.batches(batch_size=4, seed=1, device="cpu").epoch(3)])
    assert not torch.equal(
        next_epoch, torch.cat([b.images_BCHW for b in images.batches(batch_size=4, seed=1, device="cpu").epoch(2)])
    )


def test_flips_can_be_turned_off(folder: Path):
    def mirrored(flip: bool | None) -> int:
        images = load_data(_settings(folder, flip=flip)).train
        assert isinstance(images, StreamingImages)
        (batch,) = images.batches(batch_size=100, seed=0, device="cpu").epoch(0)
        count = 0
        for number, pixels_CHW in zip(batch.index_B.tolist(), batch.images_BCHW, strict=True):
            image = Image.open(images.encoded.name(number)).convert("RGB")
            plain = resized_crop(image, 16, *sample_crop_box(*image.size, generator("part", 0, 0, number)))
            same = torch.equal(pixels_CHW, torch.from_numpy(np.array(plain)).permute(2, 0, 1) / 255)
            count += not same
        return count

    assert mirrored(False) == 0
    assert 5 < mirrored(None) < 22, "about half of 27"


def test_without_augmentation_batches_are_center_crops(folder: Path):
    images = load_test(_settings(folder))
    (batch,) = images.batches(batch_size=12, seed=0, device="cpu", augmentation=None).epoch(0)
    assert torch.equal(batch.images_BCHW, images.to_float()[batch.index_B])


def test_a_folder_is_trained_scored_selected_distilled_and_evaluated(folder: Path, tmp_path: Path):
    """The evaluation follows the images to another folder."""
    common = {"epochs": 2, "batch_size": 9, "learning_rate": 0.05}
    teacher = ckd.train("wrn_10_1", data=f"folder:{folder}", image_size=16, save_every=1, out=tmp_path / "t", **common)
    assert teacher.run.recipe.lr_schedule == "cosine", "small images have CIFAR's recipe"
    assert load_data(_settings(folder, image_size=None)).recipe == "adamw"
    ckd.score(teacher.path, decoder_steps=4, decoder_seeds=1)
    ckd.select(teacher.path)
    student = ckd.distill(
        "wrn_10_1", teachers=[f"{teacher.path}@best"], allow_weak_teacher=True, out=tmp_path / "s", **common
    )
    assert student.run.data.image_size == 16
    moved = folder.rename(tmp_path / "moved")
    measured = ckd.evaluate(f"{student.path}@last", data=f"folder:{moved}", split="test")
    assert measured["images"] == 12
    assert measured["ensemble"]["accuracy"] == student.test_accuracy


def test_enlarged_images_are_warned_about(folder: Path, caplog):
    load_data(_settings(folder))
    assert caplog.text == ""
    load_data(_settings(folder, image_size=None))
    assert "The first image has 20×40 pixels and is enlarged to 224×224" in caplog.text
    assert "`train --image-size 20` keeps the size" in caplog.text


def test_a_folder_that_changed_since_training_is_warned_about(folder: Path, tmp_path: Path, caplog):
    teacher = ckd.train(
        "wrn_10_1", data=f"folder:{folder}", image_size=16, epochs=1, batch_size=9, precision="fp32", out=tmp_path / "t"
    )
    ckd.score(teacher.path, decoder_steps=2, decoder_seeds=1)
    assert "another split" not in caplog.text
    digit(1, 30).save(folder / "train" / "class-1" / "new.png")
    ckd.score(teacher.path, decoder_steps=2, decoder_seeds=1)
    assert "was trained on another split (other data, other settings, or changed files)" in caplog.text


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_live_teacher_works_in_either_precision(folder: Path, tmp_path: Path, precision):
    common = {"epochs": 1, "batch_size": 9, "precision": precision}
    teacher = ckd.train("wrn_10_1", data=f"folder:{folder}", image_size=16, out=tmp_path / "t", **common)
    both = [str(teacher.path), f"{teacher.path}@1"]
    student = ckd.distill("wrn_10_1", teachers=both, allow_weak_teacher=True, out=tmp_path / "s", **common)
    assert student.complete


def test_workers_change_no_weight(folder: Path, tmp_path: Path, monkeypatch):
    hashes = set()
    for workers in (0, 2):
        monkeypatch.setenv("CHECKPOINTKD_WORKERS", str(workers))
        run = ckd.train(
            "wrn_10_1", data=f"folder:{folder}", image_size=16, epochs=1, batch_size=6, out=tmp_path / str(workers)
        )
        hashes.add(run.last.sha256)
    assert len(hashes) == 1


def _refused(folder: Path, message: str, **more) -> None:
    def read_all() -> None:
        data = load_data(_settings(folder, **more))
        for images in (data.train, data.val):
            list(images.iter_batches(10))

    with pytest.raises(UserError, match=message) as caught:
        read_all()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_image_that_cannot_be_decoded_is_named(folder: Path, monkeypatch, workers: str):
    monkeypatch.setenv("CHECKPOINTKD_WORKERS", workers)
    path = folder / "train" / "class-1" / "000.jpg"
    content = path.read_bytes()
    path.write_bytes(b"")
    _refused(folder, r"The image .*class-1/000\.jpg is empty\. Replace it")
    path.write_bytes(content[: len(content) // 2])
    _refused(folder, r"class-1/000\.jpg cannot be decoded \(.*[Tt]runcated.*\)\. Replace it")
    path.write_bytes(b"hello")
    _refused(folder, r"class-1/000\.jpg is not an image in a format that Pillow reads")
    path.unlink()
    path.symlink_to(folder / "nowhere.jpg")
    _refused(folder, r"Could not read the image .*class-1/000\.jpg: No such file")
    path.unlink()
    path.write_bytes(content)
    load_data(_settings(folder)).train.to_float()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_image_without_read_permission_is_named(folder: Path):
    (folder / "train" / "class-1" / "000.jpg").chmod(0)
    _refused(folder, r"Could not read .*class-1/000\.jpg: Permission denied")


def test_folders_that_are_not_a_data_set_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="here is no folder of images at"):
        load_data(_settings(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="Give the folder: folder:PATH"):
        load_data(DataConfig(data="folder"))
    with pytest.raises(UserError, match=r"must hold a folder train and a folder val \(or valid, validation, test\)"):
        load_data(_settings(folder / "train"))
    _refused(folder, "Cannot take 100 training images: there are only 27", train_images=100)
    _refused(folder, "1 validation images are too few for 3 classes", val_fraction=0.03)
    (folder / "val" / "class-2").rename(folder / "val" / "class-9")
    _refused(folder, r"The classes in .*train and .*val differ \(only in train: class-2; only in val: class-9\)")
    (folder / "val" / "class-9").rename(folder / "val" / "class-2")
    for image in (folder / "train" / "class-2").iterdir():
        image.unlink()
    _refused(folder, r"The class folder .*train/class-2 holds no image")
    (folder / "train" / "class-2" / "notes.txt").write_text("not an image")
    _refused(folder, r"The class folder .*train/class-2 holds no image")


def test_errors_in_the_test_folder_precede_the_training(folder: Path):
    (folder / "val" / "class-1" / "012.webp").write_bytes(b"")
    _refused(folder, r"The image .*val/class-1/012\.webp is empty")
    for image in (folder / "val" / "class-1").iterdir():
        image.unlink()
    _refused(folder, r"The class folder .*val/class-1 holds no image")


def test_paths_may_be_relative_and_hold_any_characters(folder: Path, tmp_path: Path, monkeypatch):
    expected = load_data(_settings(folder)).train.to_float()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    odd = folder.rename(tmp_path / "my photos: größer, 50%")
    for path in (odd.name, f"~/{odd.name}", f"./{odd.name}", odd):
        assert torch.equal(load_data(_settings(path)).train.to_float(), expected)  # type: ignore[arg-type]
    for path in ("a" * 300, "new\nline", "\udcff"):
        with pytest.raises(UserError) as caught:
            load_data(_settings(path))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        str(caught.value).encode()


def test_links_are_followed_and_circles_are_skipped(folder: Path):
    count = len(load_data(_settings(folder, select_on="test", val_fraction=None)).train)
    inside = folder / "train" / "class-0" / "more"
    (folder / "train" / "class-0").rename(folder / "elsewhere")
    (folder / "train" / "class-0").mkdir()
    inside.symlink_to(folder / "elsewhere")
    (folder / "elsewhere" / "back").symlink_to(folder / "train" / "class-0")
    (folder / "train" / "loop").symlink_to(folder / "train" / "loop")
    assert len(load_data(_settings(folder, select_on="test", val_fraction=None)).train) == count


@pytest.mark.slow
def test_memory_is_bounded_for_any_image(folder: Path, tmp_path: Path):
    """A strip of one pixel, and large squares, in a process with a limit of 6 GB."""
    Image.new("RGB", (65_000, 1)).save(folder / "val" / "class-0" / "strip.png")
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
import checkpointkd as ckd
ckd.train("wrn_10_1", data="folder:{folder}", image_size=512, epochs=1, batch_size=2, train_images=6,
          select_on="test", precision="fp32", out="{tmp_path / "run"}")
"""
    environment = {**os.environ, "CHECKPOINTKD_WORKERS": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(("mode", "kind"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_images_with_more_than_8_bits_are_refused(mode: str, kind: type):
    """torchvision and timm read such images with Pillow, which turns all levels above 255 into white."""
    content = encoded(Image.fromarray(np.full((8, 8), 300, kind)), "TIFF")
    assert Image.open(io.BytesIO(content)).mode == mode
    with pytest.raises(UserError, match=rf"x has more than 8 bits per channel \(mode {mode}\)\. Save it with 8 bits"):
        decode_rgb(content, name="x")


@pytest.mark.parametrize("mode", ["CMYK", "LA", "RGBA", "1", "P"])
def test_images_of_every_mode_look_alike(mode: str):
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    image = Image.fromarray(ramp)
    if mode == "P":
        image = image.convert("P")
        image.info["transparency"] = bytes(range(256))
        content = encoded(image, "PNG")
    else:
        image = Image.merge("RGB", [image] * 3).convert(mode) if mode == "CMYK" else image.convert(mode)
        content = encoded(image, "TIFF")
    pixels = np.asarray(decode_rgb(content, name="x")).astype(int)
    assert pixels.shape == (64, 64, 3)
    assert abs(pixels.mean() - ramp.mean()) < 2
    if mode != "1":
        assert np.abs(pixels - ramp[:, :, None]).max() < 8


def test_another_data_set_gets_the_size_of_the_network(folder: Path, tmp_path: Path):
    teacher = ckd.train(
        "wrn_10_1", data=f"folder:{folder}", image_size=24, epochs=1, batch_size=9, precision="fp32", out=tmp_path / "t"
    )
    copied = shutil.copytree(folder, tmp_path / "copied")
    record = teacher.run.data
    cifar = msgspec.structs.replace(record, name="cifar100", shape=(3, 32, 32))
    assert config_like(cifar, f"folder:{copied}").image_size == 32
    assert config_like(record, f"folder:{copied}").image_size == 24
    assert config_like(record, "digits").image_size is None
    assert config_like(record, None, None, None, 48).image_size == 48


@pytest.mark.slow
def test_a_killed_run_on_streamed_images_ends_as_an_undisturbed_one(folder: Path, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "checkpointkd.cli",
        "train",
        "wrn_10_1",
        "--data",
        f"folder:{folder}",
        "--image-size",
        "16",
        "--epochs",
        "12",
        "--save-every",
        "4",
        "--batch-size",
        "6",
        "--precision",
        "fp32",
        "--out",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CHECKPOINTKD_WORKERS": "2"}
    subprocess.run([*command, str(tmp_path / "undisturbed")], env=environment, check=True, capture_output=True)
    killed = subprocess.Popen(
        [*command, str(tmp_path / "killed")], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "killed" / "state.bin").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    environment["CHECKPOINTKD_WORKERS"] = "0"
    subprocess.run([*command, str(tmp_path / "killed")], env=environment, check=True, capture_output=True)
    undisturbed, resumed = (ckd.open_trajectory(tmp_path / name) for name in ("undisturbed", "killed"))
    assert [c.sha256 for c in undisturbed.values()] == [c.sha256 for c in resumed.values()]


def test_imagenet_is_a_folder_of_a_thousand_classes(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match=r"imagenet is not in .*, and its download needs an account at image-net\.org"):
        load_data(DataConfig(data="imagenet"))
    with pytest.raises(UserError, match=r"has 3 classes, ImageNet 1,000\. For your own images give folder:"):
        load_data(DataConfig(data=f"imagenet:{folder_of_digits(tmp_path / 'few')}"))
    root = tmp_path / "thousand"
    image = digit(0, 0)
    for split in ("train", "val"):
        for label in range(1000):
            (root / split / f"n{label:08}").mkdir(parents=True)
            image.save(root / split / f"n{label:08}" / "a.png")
    data = load_data(DataConfig(data=f"imagenet:{root}", select_on="test"))
    assert (len(data.classes), len(data.train), data.train.shape) == (1000, 1000, (3, 224, 224))


def test_an_image_size_is_for_streamed_images():
    with pytest.raises(UserError, match="--image-size 32 does not apply to digits: its images have 8×8 pixels"):
        load_data(DataConfig(data="digits", image_size=32))
    with pytest.raises(UserError, match="image size must be from 8 to 4096 pixels, not 0"):
        DataConfig(image_size=0)


def test_the_number_of_workers_is_checked(folder: Path, monkeypatch):
    monkeypatch.setenv("CHECKPOINTKD_WORKERS", "many")
    with pytest.raises(UserError, match="CHECKPOINTKD_WORKERS must be a number of processes from 0 to 999, not 'many'"):
        list(load_data(_settings(folder)).train.iter_batches(2))


def test_images_of_the_right_size_stay_as_they_are():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(resize_center_crop(image, 16)), np.asarray(image))
    assert resize_center_crop(image, 15).size == (15, 15)


def test_classes_whose_names_differ_in_unicode_normalization_are_one_class(folder: Path):
    (folder / "train" / "class-0").rename(folder / "train" / "e\N{COMBINING ACUTE ACCENT}")
    (folder / "val" / "class-0").rename(folder / "val" / "\N{LATIN SMALL LETTER E WITH ACUTE}")
    data = load_data(_settings(folder))
    assert "\N{LATIN SMALL LETTER E WITH ACUTE}" in data.classes
    assert len(load_test(_settings(folder))) == 12
    (folder / "train" / "\N{LATIN SMALL LETTER E WITH ACUTE}").mkdir()
    with pytest.raises(UserError, match=r"Two folders in .* have names that look the same"):
        load_data(_settings(folder))


def test_copies_with_other_unicode_normalization_have_the_same_classes(tmp_path: Path, caplog):
    records = []
    for form in ("NFC", "NFD"):
        root = tmp_path / form
        folder_of_digits(root)
        for split in ("train", "val"):
            for number, name in enumerate(sorted(path.name for path in (root / split).iterdir())):
                new = ["\N{LATIN CAPITAL LETTER A WITH DIAERESIS}pfel", "banane", "Zwetschge"][number % 3] + str(number)
                (root / split / name).rename(root / split / unicodedata.normalize(form, new))
        caplog.clear()
        records.append(load_data(_settings(root)))
        assert ("Other libraries order the classes" in caplog.text) == (form == "NFD")
    assert records[0].classes == records[1].classes
    assert records[0].record.identity == records[1].record.identity


def test_images_in_hidden_folders_are_ignored_and_named(folder: Path, caplog: pytest.LogCaptureFixture):
    before = load_data(_settings(folder)).record
    shutil.copytree(folder / "train" / "class-1", folder / "train" / "class-0" / ".thumbnails")
    assert load_data(_settings(folder)).record == before
    assert f"Ignoring the hidden folder {folder / 'train' / 'class-0' / '.thumbnails'}" in caplog.text


def test_changed_content_under_the_same_names_changes_the_identity(folder: Path):
    before = load_data(_settings(folder)).record.sha256
    target = next((folder / "train" / "class-0").glob("*.jpg"))
    target.write_bytes(encoded(digit(9, 0), "JPEG"))
    assert load_data(_settings(folder)).record.sha256 != before


@pytest.mark.slow
def test_a_constant_channel_does_not_spoil_the_training(tmp_path: Path):
    for split, count in (("train", 6), ("val", 2)):
        for label in range(2):
            class_folder = tmp_path / "red" / split / str(label)
            class_folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.zeros((16, 16, 3), np.uint8)
                pixels[..., 0] = np.random.default_rng(number).integers(0, 255, (16, 16))
                Image.fromarray(pixels).save(class_folder / f"{number}.png")
    run = ckd.train(
        "wrn_10_1",
        data=f"folder:{tmp_path / 'red'}",
        image_size=16,
        epochs=1,
        batch_size=4,
        select_on="test",
        precision="fp32",
        out=tmp_path / "run",
    )
    assert run.run.std[1:] == (1.0, 1.0)


def test_animated_rotated_and_truncated_images():
    """The first frame counts, the stored orientation does not, as in torchvision; and half an image is refused."""
    red, blue = (Image.new("RGB", (16, 8), color) for color in ("red", "blue"))
    stream = io.BytesIO()
    red.save(stream, "GIF", save_all=True, append_images=[blue])
    assert decode_rgb(stream.getvalue(), name="x").getpixel((0, 0)) == (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    stream = io.BytesIO()
    red.save(stream, "JPEG", exif=exif)
    assert decode_rgb(stream.getvalue(), name="x").size == (16, 8)
    assert decode_rgb(stream.getvalue(), name="x", turn=True).size == (8, 16)
    for content in (stream.getvalue()[:-60], encoded(digit(0, 0, size=(64, 64)), "PNG")[:200]):
        with pytest.raises(UserError, match=r"^x (cannot be decoded|is not an image)"):
            decode_rgb(content, name="x")
