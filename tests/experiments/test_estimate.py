"""The estimate of an experiment's cost: live teachers, the loader, evaluations; and the paper's ImageNet preset."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpointkd.data import DataConfig, load_data
from checkpointkd.errors import UserError
from checkpointkd.experiments.catalog import by_priority, get_experiment
from checkpointkd.experiments.context import Context
from checkpointkd.experiments.estimate import OVERHEAD_SECONDS, estimate_of
from checkpointkd.experiments.presets import Pair, get_preset
from checkpointkd.experiments.reproduce import ReproduceOptions
from checkpointkd.recipes import recipe
from checkpointkd.records.experiments import NetworkSpeed
from checkpointkd.training.precision import benchmark_loading

from ..data.image_files import folder_of_digits


def _context(loading: float = 0.0, **changes: Any) -> Context:
    preset = replace(
        get_preset("paper", "imagenet"), pairs=(Pair(teacher="big", student="small", sweep=(0.5, 1.0)),), **changes
    )
    speeds = {
        name: NetworkSpeed(precision="bf16", seconds_per_step=seconds, megabytes=50, loading_seconds_per_step=loading)
        for name, seconds in (("big", 0.3), ("small", 0.12))
    }
    return Context(
        Path("nowhere"), preset, "imagenet", speeds=speeds, teacher_steps=5000, student_steps=5000, val_steps=200
    )


def _parts(context: Context) -> tuple[dict[str, float], Any]:
    tasks = by_priority(context.preset, {"table1": get_experiment("table1").needs(context.preset)})
    estimate = estimate_of(context, tasks, lambda task: False)
    return estimate.parts, estimate


def test_every_student_pays_for_its_teachers_passes():
    """Table 1 with one pair: a teacher, a student without a teacher, and students of the midpoint and the last."""
    parts, estimate = _parts(_context())
    assert (estimate.teachers, estimate.students) == (1, 3)
    epoch = 120 * 5000
    assert parts["training of teachers"] == pytest.approx(epoch * 0.3)
    assert parts["training of students"] == pytest.approx(3 * epoch * 0.12)
    assert parts["their teachers' forward passes"] == pytest.approx(2 * epoch * 0.3 / 3)
    evaluations = 11 * 200 * 0.3 / 3 + 3 * 11 * 200 * 0.12 / 3  # 10 checkpoints and the test set
    assert parts["evaluations"] == pytest.approx(evaluations)
    assert estimate.seconds >= sum(parts.values()) + OVERHEAD_SECONDS * 4
    five, _ = _parts(_context(seeds=5))
    assert five["their teachers' forward passes"] == pytest.approx(10 * epoch * 0.1), "600 epochs per teacher, not 158"


def test_a_slow_loader_is_the_bound():
    parts, estimate = _parts(_context(loading=1.0))
    assert parts["training of teachers"] == pytest.approx(120 * 5000 * 1.0)
    assert parts["their teachers' forward passes"] == 0, "they hide behind the loader"
    assert "Loading alone takes 1.4 hours per epoch" in estimate.text
    assert "Parts: training of teachers" in estimate.text


def test_images_in_memory_have_cached_logits():
    preset = get_preset("small", None)
    speeds = {
        name: NetworkSpeed(precision="fp32", seconds_per_step=0.1, megabytes=1)
        for pair in preset.pairs
        for name in (pair.teacher, pair.student)
    }
    context = Context(Path("nowhere"), preset, "cifar100", speeds=speeds, teacher_steps=79, student_steps=79)
    estimate = estimate_of(
        context, by_priority(preset, {"table1": get_experiment("table1").needs(preset)}), lambda task: False
    )
    assert not estimate.parts
    assert "Loading" not in estimate.text


def test_the_loader_is_timed_with_real_images(tmp_path: Path):
    folder = folder_of_digits(tmp_path)
    data = load_data(DataConfig(data=f"folder:{folder}", image_size=64, val_fraction=0.25))
    settings, cpu = recipe("adamw", batch_size=9), torch.device("cpu")
    measured = benchmark_loading(data, settings, cpu)
    batches = data.train.batches(batch_size=9, seed=0, device="cpu")
    list(batches.epoch(0))
    began = time.perf_counter()
    for epoch in range(1, 11):
        list(batches.epoch(epoch))
    own = (time.perf_counter() - began) / 30  # of 27 images in batches of 9
    assert own / 10 < measured < 10 * own
    assert benchmark_loading(load_data(DataConfig(data="digits")), settings, cpu) == 0


def test_imagenet_has_one_seed_and_two_schedules():
    preset = get_preset("paper", "imagenet:somewhere")
    assert preset.seeds == 1, "the paper shows one run"
    assert preset.compared_recipes == ("imagenet", "imagenet-cosine")
    options = ReproduceOptions(
        preset="paper",
        data="imagenet:somewhere",
        out="nowhere",
        pairs=["timm:resnet50,timm:mobilenetv2_050"],
        teacher_recipe="imagenet-cosine",
        student_recipe="imagenet-cosine",
    )
    changed = options.changed_preset("table1")
    assert [pair.name for pair in changed.pairs] == ["timm:resnet50 → timm:mobilenetv2_050"]
    assert changed.student_recipe == changed.teacher_recipe == "imagenet-cosine"
    assert "pairs" in changed.note
    with pytest.raises(UserError, match=r"--pairs takes TEACHER,STUDENT, such as .*, not 'timm:resnet50'"):
        replace(options, pairs=["timm:resnet50"]).changed_preset("table1")
    with pytest.raises(UserError, match="Unknown recipe 'imagenet-cosin'"):
        replace(options, student_recipe="imagenet-cosin").changed_preset("table1")
