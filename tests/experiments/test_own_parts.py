"""A researcher's own method, rule and estimator in `reproduce`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.cli import main
from checkpointkd.losses.logits import WTTM

from .conftest import read_rows, started

HERE = "tests.experiments.test_own_parts"


class OwnMethod(WTTM):
    """A method that is not in the package, by its name."""


def second_epoch(candidates):
    """Give the second checkpoint the highest score."""
    return [float(number == 1) for number in range(len(candidates.epochs))]


def constant(fitted_on, fitted_maps_ANhwD, measured_on, measured_maps_ANhwD, *, settings, on_step, device=None):
    """Give every image of the n-th checkpoint n nats."""
    count = len(measured_maps_ANhwD)
    return torch.ones(count, 1, len(measured_on)) * torch.arange(1, count + 1)[:, None, None], {}


def test_an_own_method_teaches_the_students_of_a_figure(smoke: Path, tmp_path: Path):
    out = started(smoke, tmp_path / "out")
    ckd.reproduce("figure2", preset="smoke", out=out, seed=0, only=["last"], method=f"{HERE}:OwnMethod")
    rows = read_rows(out, "figure2", kind="network", variant="last")
    assert [row["method"] for row in rows] == [f"{HERE}:OwnMethod"] * 2


def test_own_parts_enter_the_comparison(smoke: Path, tmp_path: Path):
    out = started(smoke, tmp_path / "out")
    own = {"method": f"{HERE}:OwnMethod", "rule": f"{HERE}:second_epoch", "estimator": f"{HERE}:constant"}
    only = [f"teacher 1: {own['method']}, last", f"teacher 1: rule {own['rule']}", "teacher 1: rule algorithm1"]
    ckd.reproduce("selection", preset="smoke", out=out, seeds=1, only=only, **own)
    rows = read_rows(out, "selection", kind="network", model="wrn_10_1")
    methods = {row["variant"]: row["method"] for row in rows}  # of other rules, too, which chose the same checkpoints
    assert [methods[name] for name in only] == [own["method"], "kd", "kd"]
    by_rule = next(row for row in rows if row["variant"] == only[1])
    assert by_rule["teachers"][0][2] == 4, "the second of the saved epochs"
    plane = ckd.open_trajectory(next(out.glob("runs/wrn_16_2-teacher-seed0-*")))
    (scored,) = (path for path in plane.path.glob("plane-*.safetensors") if "constant" in path.name)
    assert scored.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure2", "--method", "kdd"], "Unknown method 'kdd'. Did you mean 'kd'"),
        (["figure2", "--rule", "midpoint"], "--rule applies to the experiment 'selection' only"),
        (["figure2", "--estimator", "ridge"], "--estimator applies to the experiment 'selection' only"),
        (["selection", "--rule", "midpont"], "Unknown rule 'midpont'. Did you mean 'midpoint'?"),
        (["selection", "--estimator", "ridg"], "Did you mean 'ridge'?"),
        (["figure2", "--tune", "--method", "dkd"], "--tune searches the α and τ of kd"),
        (["figure2", "--method", f"{HERE}:Missing"], "Missing"),
    ],
)
def test_wrong_parts_are_named(arguments: list[str], message: str, tmp_path: Path, capsys):
    assert main(["reproduce", *arguments, "--preset", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
