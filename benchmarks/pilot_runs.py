"""Compare early measures of how well a checkpoint teaches with the accuracy of whole students.

    checkpointkd reproduce rules --preset overfit --data cifar100:PATH --jobs 2 --out EXPERIMENTS
    python benchmarks/pilot_runs.py EXPERIMENTS --data cifar100:PATH

For each pair of teacher and student, this prints Spearman's correlation over checkpoints, as a mean over seeds. It
compares each measure with the mean test accuracy of whole students with the first alpha. The measures are the
validation accuracy of these students early in training, the accuracy and I(Y;F) of pilot runs, and scores that need no
student of the teacher. Writes benchmarks/results/pilot-runs-PRESET.json.
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
from checkpointkd.data import Data, config_like, load_data
from checkpointkd.distill_config import KDConfig
from checkpointkd.losses import METHODS, LogitDistillation, Supervised
from checkpointkd.metrics import predict
from checkpointkd.records.runs import DistillRecord
from checkpointkd.storage import read_json
from checkpointkd.teachers.ensemble import Teacher
from common import write_result

Key = tuple[int, float]  # the teacher's epoch, 0 for no teacher, and alpha
Scores = dict[Key, float]
MIN_CHECKPOINTS = 3  # that a rank correlation needs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", type=Path)
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.experiments / "rules"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    preset = read_json(folder / "experiment.json")["preset"]
    result: dict[str, Any] = {}
    for pair in dict.fromkeys(row["pair"] for row in rows):
        pair_rows = [row for row in rows if row["pair"] == pair]
        test_accuracy = {
            key: fmean(row["accuracy"] for row in students)
            for key, students in _students(pair_rows).items()
            if key[0] and key[1] == preset["alphas"][0] and len(students) == preset["seeds"]
        }
        correlations: dict[str, list[float]] = {}
        untrained = _untrained(options.experiments, pair_rows, options.data, list(test_accuracy))
        for name, scores in [*_part_of_the_way(options.experiments, pair_rows), *_pilot_runs(pair_rows), *untrained]:
            common = [key for key in scores if key in test_accuracy]
            if len(common) >= MIN_CHECKPOINTS and len({scores[key] for key in common}) > 1:
                name = f"{name}, of {len(common)} checkpoints"
                correlations.setdefault(name, []).append(_correlation(scores, test_accuracy))
        result[pair] = {name: {"mean": fmean(values), "n": len(values)} for name, values in correlations.items()}
        for name, values in correlations.items():
            print(f"{pair}: {name}: {fmean(values):+.2f} (n = {len(values)})", flush=True)
    command = f"python benchmarks/pilot_runs.py EXPERIMENTS --data {preset['dataset']}:PATH"
    write_result(f"pilot-runs-{preset['name']}", {"command": command, "pairs": result})


def _students(rows: list[dict[str, Any]]) -> dict[Key, list[dict[str, Any]]]:
    """Return whole students of one checkpoint or of none, one per seed, without those that a pilot search advised."""
    students: dict[Key, dict[int, dict[str, Any]]] = {}
    for row in rows:
        teachers = row.get("teachers", [])
        if row["kind"] == "network" and len(teachers) < 2 and not row["variant"].startswith("pilot"):
            key = (teachers[0][2], row["alpha"]) if teachers else (0, 1.0)
            students.setdefault(key, {})[row["seed"]] = row
    return {key: list(by_seed.values()) for key, by_seed in students.items()}


def _part_of_the_way(experiments: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[str, Scores]]:
    """Yield the validation accuracy of whole students after each epoch but the last, for each seed."""
    reached: dict[tuple[int, int, int], Scores] = {}
    for key, students in _students(rows).items():
        for row in students:
            for metrics in read_metrics(experiments / "runs" / row["run"] / "metrics.jsonl"):
                if metrics.val_accuracy is not None and metrics.epoch < row["epochs"]:
                    reached.setdefault((row["seed"], metrics.epoch, row["epochs"]), {})[key] = metrics.val_accuracy
    for (_, epoch, epochs), scores in sorted(reached.items()):
        yield f"validation accuracy of whole students after {epoch} of {epochs} epochs", scores


def _pilot_runs(rows: list[dict[str, Any]]) -> Iterator[tuple[str, Scores]]:
    """Yield the results of pilot runs with one checkpoint, for each pilot search."""
    for row in rows:
        if row["kind"] != "pilot":
            continue
        single = [run for run in row["pilot_runs"] if len(run["epochs"]) == 1]
        length = min(run["pilot_epochs"] for run in single)
        shortest = [run for run in single if run["pilot_epochs"] == length]
        for name, field in (("validation accuracy", "accuracy"), ("I(Y;F)", "information")):
            scores = {(run["epochs"][0], run["alpha"]): run[field] for run in shortest}
            yield f"{name} after pilot runs of {length} epochs, budget {row['budget']}", scores


def _untrained(
    experiments: Path, rows: list[dict[str, Any]], data: str, keys: list[Key]
) -> Iterator[tuple[str, Scores]]:
    """Yield scores that use the student, but train it without a teacher or not at all."""
    students = _students(rows)
    baseline = ckd.open_trajectory(experiments / "runs" / students[0, 1.0][0]["run"])
    loaded = load_data(config_like(baseline.run.data, data))
    device = torch.device("cpu")
    student = baseline.last.network(device)
    student_NK = predict(student, loaded.val)
    untrained = build_from_run(baseline.run).eval()
    agreement, complexity, gradients = {}, {}, {}
    val_gradient = _gradient(untrained, loaded, None, None)
    features_ND = _features(student, loaded)
    for key in keys:
        run = ckd.open_trajectory(experiments / "runs" / students[key][0]["run"])
        assert isinstance(run.run, DistillRecord)
        teacher = Teacher([resolve(ref) for ref in run.run.teacher_refs], device=device)
        logits_NK = teacher.predict(loaded.val)[0]
        tau = run.run.kd.tau
        p_NK, log_q_NK = (logits_NK / tau).softmax(-1), (student_NK / tau).log_softmax(-1)
        agreement[key] = -F.kl_div(log_q_NK, p_NK, reduction="batchmean").item()
        complexity[key] = -_complexity(features_ND, p_NK)
        gradient = _gradient(untrained, loaded, teacher, KDConfig(alpha=key[1], tau=tau))
        gradients[key] = F.cosine_similarity(gradient, val_gradient, dim=0).item()
    yield "agreement with the student without a teacher", agreement
    yield "supervision complexity with the features of that student", complexity
    yield "cosine of gradients with those of validation labels, untrained student", gradients


def _features(student: torch.nn.Module, data: Data) -> Tensor:
    """Return the inputs of the student's last linear layer, (N, D), normalized to length 1."""
    linear = [module for module in student.modules() if isinstance(module, torch.nn.Linear)][-1]
    inputs: list[Tensor] = []
    hook = linear.register_forward_hook(lambda module, args, output: inputs.append(args[0].detach()))
    predict(student, data.val)
    hook.remove()
    return F.normalize(torch.cat(inputs).double(), dim=-1)


def _complexity(features_ND: Tensor, p_NK: Tensor, ridge: float = 1e-3) -> float:
    """Return √(Yᵀ K⁻¹ Y / N) with a linear kernel (Harutyunyan et al., ICLR 2023, use the tangent kernel)."""
    centered_NK = p_NK.double() - p_NK.double().mean(0)
    gram_DD = features_ND.T @ features_ND + ridge * torch.eye(features_ND.shape[1], dtype=torch.float64)
    inside_DK = features_ND.T @ centered_NK
    explained = (inside_DK * torch.linalg.solve(gram_DD, inside_DK)).sum()  # Woodbury
    return math.sqrt(((centered_NK.square().sum() - explained) / ridge / len(p_NK)).item())


def _gradient(network: torch.nn.Module, data: Data, teacher: Teacher | None, settings: KDConfig | None) -> Tensor:
    """Return the gradient of the student's objective on training images, or of CE on validation images."""
    weights = list(network.parameters())
    images = data.val if teacher is None else data.train
    objective = (
        Supervised() if teacher is None or settings is None else LogitDistillation(METHODS["kd"](), teacher, settings)
    )
    batches = images.batches(batch_size=250, seed=0, device=torch.device("cpu"), augment=False)
    total = torch.zeros(sum(weight.numel() for weight in weights))
    for batch in batches.epoch(0):
        loss_B, _ = objective(network, batch, 0.0)
        total += torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss_B.sum(), weights)])
    return total


def _correlation(scores: Scores, test_accuracy: Scores) -> float:
    common = [key for key in scores if key in test_accuracy]
    result = spearmanr([scores[key] for key in common], [test_accuracy[key] for key in common])
    return result.statistic  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
