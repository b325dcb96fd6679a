"""One run: its precision, its directory, compiled networks and 16-bit checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.config import Recipe
from checkpointkd.data import DataConfig, load_data
from checkpointkd.errors import UserError
from checkpointkd.metrics import measure, predict
from checkpointkd.models import build_network
from checkpointkd.training import run as run_module
from checkpointkd.training.run import benchmark_precision

SMALL = {"data": "digits", "train_images": 60, "epochs": 1, "batch_size": 20}


def test_the_measured_precision_is_kept_when_a_run_continues(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run_module, "MIN_STEPS_TO_BENCHMARK", 1)
    monkeypatch.setattr(run_module, "benchmark_precision", lambda *_: "bf16")
    first = ckd.train("wrn_10_1", out=tmp_path / "run", **SMALL)
    assert first.run.precision == "bf16"
    assert all(tensor.dtype != torch.bfloat16 for tensor in first.last.network().state_dict().values())
    monkeypatch.setattr(run_module, "benchmark_precision", lambda *_: pytest.fail("the precision was measured again"))
    assert ckd.train("wrn_10_1", out=tmp_path / "run", **SMALL).last.sha256 == first.last.sha256
    with pytest.raises(UserError, match="precision 'bf16' stored, 'fp32' given"):
        ckd.train("wrn_10_1", out=tmp_path / "run", precision="fp32", **SMALL)
    with pytest.raises(UserError, match=r"Unknown precision 'fp8'. Did you mean"):
        ckd.train("wrn_10_1", out=tmp_path / "other", precision="fp8", **SMALL)  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


def test_a_run_directory_without_a_completed_epoch_is_taken_over(tmp_path: Path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("stopped in the first epoch")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", broken)
        with pytest.raises(RuntimeError):
            ckd.train("wrn_10_1", out=tmp_path / "run", precision="bf16", **SMALL)
    assert (tmp_path / "run" / "run.json").exists()
    run = ckd.train("wrn_10_1", out=tmp_path / "run", precision="fp32", **SMALL)
    assert run.run.precision == "fp32"
    with pytest.raises(UserError, match="already holds another run"):
        ckd.train("wrn_10_1", out=tmp_path / "run", precision="bf16", **SMALL)
    with pytest.raises(UserError, match=r"run/inner is, or lies in, the run directory .*run\. Choose another --out"):
        ckd.train("wrn_10_1", out=tmp_path / "run" / "inner", precision="fp32", **SMALL)


def test_a_short_run_skips_the_benchmark_and_logs_its_settings(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(
        run_module, "benchmark_precision", lambda *_: pytest.fail("a run of three steps needs no benchmark")
    )
    caplog.set_level("INFO", "checkpointkd")
    run = ckd.train("wrn_10_1", out=tmp_path / "run", **SMALL)
    assert run.run.precision == "fp32"
    assert "1 epoch of 3 steps, batch size 20, learning rate 0.1 (cosine), a checkpoint every 1 epoch" in caplog.text
    assert "larger than" not in caplog.text
    ckd.train("wrn_10_1", out=tmp_path / "adamw", recipe="adamw", mixup=0.2, **{**SMALL, "batch_size": 128})
    assert "learning rate 0.001 (cosine), adamw, warm-up 0.05, clip norm 5, mixup 0.2, a checkpoint" in caplog.text
    assert "The batch size 128 is larger than the 60 training images, so an epoch is one step" in caplog.text


def test_short_steps_stay_in_fp32():
    """Steps of milliseconds: the times are noise, and equal commands would give different runs."""
    data = load_data(DataConfig(data="digits", train_images=60))
    for _ in range(3):
        network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.37])
        assert benchmark_precision(network, data, Recipe(batch_size=10), torch.device("cpu")) == "fp32"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
def test_a_compiled_network_trains_to_the_same_losses(tmp_path: Path):
    """Needs a C++ compiler, as PyTorch's compiler does."""
    plain, compiled = (
        ckd.train("wrn_10_1", out=tmp_path / str(compile), precision="fp32", compile=compile, **SMALL)
        for compile in (False, True)
    )
    assert compiled.run.recipe == plain.run.recipe
    assert list(compiled.last.network().state_dict()) == list(plain.last.network().state_dict())
    losses = [[row.loss for row in run.rows()] for run in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_float16_checkpoints_are_half_as_large_and_are_what_is_measured(tmp_path: Path):
    options = {**SMALL, "learning_rate": 0.03, "epochs": 2, "save_every": 1}
    full = ckd.train("wrn_10_1", out=tmp_path / "full", **options)
    half = ckd.train("wrn_10_1", out=tmp_path / "half", checkpoint_dtype="float16", **options)
    assert half.last.bytes < 0.6 * full.last.bytes
    exact, rounded = full.last.network().state_dict(), half.last.network().state_dict()
    assert any(not torch.equal(exact[name], rounded[name]) for name in exact)
    for name, tensor in exact.items():  # training is not rounded, so the weights differ by rounding alone
        assert rounded[name].dtype == tensor.dtype
        assert torch.equal(tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor, rounded[name])
    data = load_data(DataConfig(train_images=60))
    for epoch, row in zip(half, half.rows(), strict=True):
        measured = measure(predict(half[epoch].network(), data.val), data.val.labels_N)
        assert measured["nll"] == row.val_nll, "the saved network is measured"
    result = half.result()
    assert result is not None
    assert result.val.nll == half.rows()[-1].val_nll
    student = ckd.distill(
        "wrn_10_1",
        teachers=[str(half.path)],
        out=tmp_path / "student",
        epochs=1,
        allow_weak_teacher=True,
        checkpoint_dtype="float16",
    )
    assert ckd.load(student.path).state_dict().keys() == rounded.keys()
    with pytest.raises(UserError, match="checkpoint_dtype"):
        ckd.train("wrn_10_1", out=tmp_path / "half", **options)
