"""Measure the bias and the spread of the estimators of I(X;F) by number of images, and their agreement.

    python benchmarks/estimators.py --small runs/small

Uses a linear-Gaussian channel with known mutual information, and the teacher of benchmarks/small.py (real CIFAR-100).
Writes benchmarks/results/estimators.json and docs/images/estimators.svg.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

import checkpointkd as ckd
from checkpointkd.config import EstimatorConfig, EstimatorName
from checkpointkd.data import Images, config_of, load_data
from checkpointkd.information import ESTIMATORS, load_planes, maps_and_logits, ridge_information
from checkpointkd.models import last_map_path
from common import write_result

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.information.channels import channel  # noqa: E402

SYNTHETIC = (30, 100, 300, 1000, 3000)
REAL = (250, 500, 1000, 2000, 4000)
DRAWS = 3
BOTH: tuple[EstimatorName, EstimatorName] = ("decoder", "ridge")


def synthetic() -> dict[str, Any]:
    """Return ridge estimates on a channel of 16 pixels and 8 features, over ten draws of each number of images."""
    result: dict[str, Any] = {"nats": {}}
    for fit in SYNTHETIC:
        estimates = []
        for seed in range(10):
            arguments, truth = channel(fit=fit, measured=1000, noise=0.5, seed=seed)
            information, _ = ridge_information(*arguments, settings=EstimatorConfig(estimator="ridge"))
            estimates.append(information.mean().item())
            result["truth"] = truth
        result["nats"][fit] = {"mean": fmean(estimates), "sd": stdev(estimates)}
    return result


def real(run: ckd.Trajectory) -> dict[str, Any]:
    """Return estimates of the last checkpoint's I(X;F) by the number of images to fit on, over draws of the images."""
    data = load_data(config_of(run.run.data))
    network = run.last.network()
    path = last_map_path(network.body, data.val.subset(torch.arange(2)).to_float())

    def maps(images: Images) -> torch.Tensor:
        return maps_and_logits(network, images, path)[0][None]

    measured_on = data.val.subset(torch.arange(2000))
    measured_maps = maps(measured_on)
    result: dict[str, Any] = {}
    for name in BOTH:
        for count in REAL:
            estimates = []
            for draw in range(DRAWS):
                rows = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(draw))[:count]
                fitted_on = data.train.subset(rows)
                settings = EstimatorConfig(estimator=name, seeds=1)
                information, _ = ESTIMATORS[name](
                    fitted_on, maps(fitted_on), measured_on, measured_maps, settings=settings, on_step=None
                )
                estimates.append(information.mean().item())
            result.setdefault(name, {})[count] = {"mean": fmean(estimates), "sd": stdev(estimates)}
    return result


def agreement(run: ckd.Trajectory) -> dict[str, Any]:
    """Return the rank correlation of the estimators over a trajectory, and Algorithm 1's choice with each."""
    chosen = {}
    for estimator in BOTH:
        ckd.score(run.path, estimator=estimator)
        choice = ckd.select(run.path, estimator=estimator)
        chosen[estimator] = {"epoch": choice.epoch, "chosen_in": choice.probability}
    ckd.select(run.path)  # restores the default choice
    planes = load_planes(run)
    values = {name: [point.image_information for point in planes[name].points] for name in BOTH}
    rho = np.corrcoef(*(rankdata(estimates) for estimates in values.values()))[0, 1]
    return {"epochs": list(run), **values, "spearman": float(rho), "chosen": chosen}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the channel on the left and the real teacher on the right."""
    import matplotlib  # type: ignore[import-not-found]

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "checkpointkd"
    from matplotlib import pyplot as plt  # type: ignore[import-not-found]

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    nats = result["synthetic"]["nats"]
    bars = {"marker": "o", "capsize": 3}
    means, spreads = ([estimate[name] for estimate in nats.values()] for name in ("mean", "sd"))
    left.errorbar(list(nats), means, spreads, color="#0072B2", label="ridge", **bars)
    left.axhline(result["synthetic"]["truth"], color="#808080", linestyle="--", label="truth")
    left.set(xscale="log", xlabel="images fitted on", ylabel="I(X;F), nats", title="a linear-Gaussian channel")
    for (name, estimates), color in zip(result["real"].items(), ("#D55E00", "#0072B2"), strict=True):
        last = abs(estimates[REAL[-1]]["mean"])
        means, spreads = ([estimates[count][part] / last for count in REAL] for part in ("mean", "sd"))
        right.errorbar(REAL, [abs(mean) for mean in means], spreads, color=color, label=name, **bars)
    right.set(xscale="log", xlabel="images fitted on", ylabel=f"size, relative to {REAL[-1]} images")
    right.set_title("WRN-16-2 on CIFAR-100, last epoch")
    for axes, counts in ((left, SYNTHETIC), (right, REAL)):
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", default="runs/small")
    options = parser.parse_args()
    run = ckd.open_trajectory(f"{options.small}/teacher")
    result = {
        "command": "python benchmarks/estimators.py --small runs/small",
        "synthetic": synthetic(),
        "real": real(run),
        "agreement": agreement(run),
    }
    write_result("estimators", result)
    draw(result, ROOT / "docs" / "images" / "estimators.svg")


if __name__ == "__main__":
    main()
