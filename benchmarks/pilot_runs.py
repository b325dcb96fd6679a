"""Which early measure ranks teachers as whole students do: against the students of a finished experiment `rules`.

    checkpointkd reproduce rules --preset overfit --data cifar100:PATH --jobs 2 --out EXPERIMENTS
    python benchmarks/pilot_runs.py EXPERIMENTS --data cifar100:PATH

Spearman's correlation, over checkpoints that teach one student with the first α, of each measure with the mean test
accuracies of whole students, mean over seeds. The measures are the accuracy of these students part of the way, the
accuracy and I(Y;F) of pilot runs, and scores without training. Writes benchmarks/results/pilot-runs-PRESET.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

import checkpointkd as ckd
from checkpointkd.checkpoints import build_from_run, resolve
from checkpointkd.checkpoints.run_dir import read_metrics
from checkpointkd.config import KDConfig
from checkpointkd.data import Data, config_like, load_data
from checkpointkd.losses import METHODS, LogitDistillation, Supervised
from checkpointkd.metrics import predict
from checkpointkd.records import DistillRecord
from checkpointkd.storage import read_json
from checkpointkd.teachers.ensemble import Teacher
from common import write_result

Key = tuple[int, float]  # epoch, 0 for no teacher, and α
LEAST = 3  # checkpoints, or there is nothing to put in order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", type=Path)
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in (options.experiments / "rules" / "rows.jsonl").read_text().splitlines()]
    preset = read_json(options.experiments / "rules" / "experiment.json")["preset"]
    found: dict[str, Any] = {}
    for pair in dict.fromkeys(row["pair"] for row in rows):
        mine = [row for row in rows if row["pair"] == pair]
        truth = {
            key: fmean(row["accuracy"] for row in several)
            for key, several in _by_key(mine).items()
            if key[0] and key[1] == preset["alphas"][0] and len(several) == preset["seeds"]
        }
        measures: dict[str, list[float]] = {}
        of_untrained = _untrained(options.experiments, mine, options.data, list(truth))
        for name, scores in [*_parts(options.experiments, mine), *_pilot_runs(mine), *of_untrained]:
            both = [key for key in scores if key in truth]
            if len(both) >= LEAST and len({scores[key] for key in both}) > 1:
                measures.setdefault(f"{name}, of {len(both)} checkpoints", []).append(_correlation(scores, truth))
        found[pair] = {name: {"mean": fmean(several), "n": len(several)} for name, several in measures.items()}
        for name, several in measures.items():
            print(f"{pair}: {name}: {fmean(several):+.2f} (n = {len(several)})", flush=True)
    command = f"python benchmarks/pilot_runs.py EXPERIMENTS --data {preset['dataset']}:PATH"
    write_result(f"pilot-runs-{preset['name']}", {"command": command, "pairs": found})


def _by_key(rows: list[dict[str, Any]]) -> dict[Key, list[dict[str, Any]]]:
    """Whole students of one checkpoint or of none, one per seed, without those that a pilot search advised."""
    found: dict[Key, dict[int, dict[str, Any]]] = {}
    for row in rows:
        members = row.get("teachers", [])
        if row["kind"] == "network" and len(members) < 2 and not row["variant"].startswith("pilot, "):
            key = (members[0][2], row["alpha"]) if members else (0, 1.0)
            found.setdefault(key, {})[row["seed"]] = row
    return {key: list(by_seed.values()) for key, by_seed in found.items()}


def _parts(experiments: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[Key, float]]]:
    """The validation accuracies of whole students part of the way, for each seed."""
    reached: dict[tuple[int, int, int], dict[Key, float]] = {}
    for key, several in _by_key(rows).items():
        for row in several:
            for one in read_metrics(experiments / "runs" / row["run"] / "metrics.jsonl"):
                if one.val_accuracy is not None and one.epoch < row["epochs"]:
                    reached.setdefault((row["seed"], one.epoch, row["epochs"]), {})[key] = one.val_accuracy
    for (_, epoch, epochs), scores in sorted(reached.items()):
        yield f"accuracy of whole students after {epoch} of {epochs} epochs", scores


def _pilot_runs(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[Key, float]]]:
    """The measures of pilot runs of single checkpoints, for each pilot search."""
    for row in rows:
        if row["kind"] != "pilot":
            continue
        single = [run for run in row["pilot_runs"] if len(run["epochs"]) == 1]
        length = min(run["pilot_epochs"] for run in single)
        first = [run for run in single if run["pilot_epochs"] == length]
        for name, measure in (("accuracy", "accuracy"), ("I(Y;F)", "information")):
            scores = {(run["epochs"][0], run["alpha"]): run[measure] for run in first}
            yield f"{name} after pilot runs of {length} epochs, budget {row['budget']}", scores


def _untrained(
    experiments: Path, rows: list[dict[str, Any]], data: str, keys: list[Key]
) -> Iterator[tuple[str, dict[Key, float]]]:
    """Scores that see the student but train it, if at all, without a teacher."""
    by_key = _by_key(rows)
    alone = ckd.open_trajectory(experiments / "runs" / by_key[0, 1.0][0]["run"])
    loaded = load_data(config_like(alone.run.data, data))
    device = torch.device("cpu")
    student = alone.last.network(device)
    student_NK = predict(student, loaded.val)
    fresh = build_from_run(alone.run).eval()
    agreement, complexity, gradients = {}, {}, {}
    held_out = _gradient(fresh, loaded, None, None)
    features_ND = _features(student, loaded)
    for key in keys:
        run = ckd.open_trajectory(experiments / "runs" / by_key[key][0]["run"])
        assert isinstance(run.run, DistillRecord)
        teacher = Teacher([resolve(address) for address in run.run.teacher_refs], device=device)
        logits_NK = teacher.predict(loaded.val)[0]
        tau = run.run.kd.tau
        p_NK, log_q_NK = (logits_NK / tau).softmax(-1), (student_NK / tau).log_softmax(-1)
        agreement[key] = -F.kl_div(log_q_NK, p_NK, reduction="batchmean").item()
        complexity[key] = -_complexity(features_ND, p_NK)
        mine = _gradient(fresh, loaded, teacher, KDConfig(alpha=key[1], tau=tau))
        gradients[key] = F.cosine_similarity(mine, held_out, dim=0).item()
    yield "agreement with the student without a teacher", agreement
    yield "supervision complexity, by that student's features", complexity
    yield "agreement of gradients with held-out labels', untrained", gradients


def _features(student: torch.nn.Module, data: Data) -> Tensor:
    """What the student's last linear layer is given, (N, D), each of length 1."""
    linear = [module for module in student.modules() if isinstance(module, torch.nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = linear.register_forward_hook(lambda module, given, answer: seen.append(given[0].detach()))
    predict(student, data.val)
    hook.remove()
    return F.normalize(torch.cat(seen).double(), dim=-1)


def _complexity(features_ND: Tensor, p_NK: Tensor, ridge: float = 1e-3) -> float:
    """√(Yᵀ K⁻¹ Y / N) with a linear kernel (Harutyunyan et al., ICLR 2023; theirs is the tangent kernel)."""
    centerd_NK = p_NK.double() - p_NK.double().mean(0)
    gram_DD = features_ND.T @ features_ND + ridge * torch.eye(features_ND.shape[1], dtype=torch.float64)
    inside_DK = features_ND.T @ centerd_NK
    explained = (inside_DK * torch.linalg.solve(gram_DD, inside_DK)).sum()  # Woodbury
    return math.sqrt(((centerd_NK.square().sum() - explained) / ridge / len(p_NK)).item())


def _gradient(network: torch.nn.Module, data: Data, teacher: Teacher | None, settings: KDConfig | None) -> Tensor:
    """The gradient on training images of what the student minimises, or of cross-entropy on validation images."""
    weights = list(network.parameters())
    images = data.val if teacher is None else data.train
    objective = (
        Supervised() if teacher is None or settings is None else LogitDistillation(METHODS["kd"](), teacher, settings)
    )
    batches = images.batches(batch_size=250, seed=0, device=torch.device("cpu"), augment=False)
    total = torch.zeros(sum(weight.numel() for weight in weights))
    for batch in batches.epoch(0):
        loss_B, _ = objective(network, batch, 0.0)
        total += torch.cat([one.flatten() for one in torch.autograd.grad(loss_B.sum(), weights)])
    return total


def _correlation(scores: dict[Key, float], truth: dict[Key, float]) -> float:
    both = [key for key in scores if key in truth]
    return spearmanr([scores[key] for key in both], [truth[key] for key in both]).statistic  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
