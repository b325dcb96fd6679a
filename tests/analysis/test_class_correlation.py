"""Class correlation by hand, the coverage of its interval, and the `correlate` command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpointkd as ckd
from checkpointkd.analysis.class_correlation import (
    NUMBERS,
    by_similarity,
    class_correlation,
    class_similarity,
    diversity,
)
from checkpointkd.checkpoints import resolve_ensemble
from checkpointkd.cli import main
from checkpointkd.data import DataConfig, load_data, superclasses
from checkpointkd.errors import UserError
from checkpointkd.teachers.ensemble import Teacher


def _drawn(per_class: int, seed: int, spread: float = 1.0, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors around six class means, which are the same for every seed."""
    means_KK = torch.eye(classes) * 3 + torch.randn(classes, classes, generator=torch.Generator().manual_seed(0))
    labels_N = torch.arange(classes).repeat_interleave(per_class)
    noise_NK = torch.randn(len(labels_N), classes, generator=torch.Generator().manual_seed(seed + 1))
    return means_KK[labels_N] + spread * noise_NK, labels_N


def test_similarity_is_equation_8():
    vectors_NK, labels_N = _drawn(7, seed=0)
    similarity_KK = class_similarity(vectors_NK, labels_N)
    mean = [vectors_NK[labels_N == label].double().mean(0).numpy() for label in range(6)]
    for i in range(6):
        for j in range(6):
            by_hand = mean[i] @ mean[j] / (np.linalg.norm(mean[i]) * np.linalg.norm(mean[j]))
            assert similarity_KK[i, j].item() == pytest.approx(by_hand, abs=1e-6)


def test_diversity_is_zero_if_all_pairs_of_classes_are_equally_similar():
    equal = torch.full((5, 5), 0.3).fill_diagonal_(1.0)
    assert diversity(equal).item() == pytest.approx(0, abs=1e-7)
    torch.manual_seed(0)
    mixed = torch.rand(5, 5)
    cells = [mixed[i, j].item() for i in range(5) for j in range(5) if i != j]
    assert diversity(mixed).item() == pytest.approx(np.std(cells), abs=1e-6)


def test_the_interval_covers_the_truth_at_its_stated_rate():
    """100 repetitions with 40 images per class; the truth is the numbers without image noise."""
    vectors_NK, labels_N = _drawn(100_000, seed=-1, spread=0.0)
    similarity_KK = class_similarity(vectors_NK, labels_N)
    truth = {name: number(similarity_KK).item() for name, number in NUMBERS.items()}
    covered = dict.fromkeys(NUMBERS, 0)
    for seed in range(100):
        vectors_NK, labels_N = _drawn(40, seed=seed)
        for name, intervals in class_correlation(vectors_NK[None], labels_N).numbers.items():
            covered[name] += intervals[0].low <= truth[name] <= intervals[0].high
    assert all(85 <= count <= 100 for count in covered.values()), covered


def test_the_bias_of_noisy_images_is_removed():
    """Six equally similar classes: all diversity that a few noisy images show is noise."""
    labels_N = torch.arange(6).repeat_interleave(15)
    values = []
    for seed in range(20):
        noise_NK = torch.randn(90, 6, generator=torch.Generator().manual_seed(seed))
        vectors_NK = 3 * torch.eye(6)[labels_N] + 1.5 * noise_NK
        plain = diversity(class_similarity(vectors_NK, labels_N)).item()
        (interval,) = class_correlation(vectors_NK[None], labels_N).numbers["diversity"]
        assert interval.low < interval.value < interval.high
        assert interval.low < 0.9 * plain
        values.append((interval.value, plain))
    assert np.mean([value for value, _ in values]) < 0.8 * np.mean([plain for _, plain in values])


def test_the_difference_is_paired():
    """Two checkpoints with almost equal logits: the interval of their difference is much narrower than their own."""
    vectors_NK, labels_N = _drawn(30, seed=1, spread=3.0)
    correlation = class_correlation(torch.stack([vectors_NK, vectors_NK * 1.0 + 0.05]), labels_N)
    for name, (first, second) in correlation.numbers.items():
        difference = correlation.differences[name]
        assert difference.value == pytest.approx(first.value - second.value, abs=1e-6)
        assert difference.high - difference.low < 0.1 * (first.high - first.low)
    same = class_correlation(torch.stack([vectors_NK, vectors_NK]), labels_N).differences["diversity"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_class_without_images_is_refused():
    with pytest.raises(UserError, match=r"1 of 3 classes have no image in this split, such as class 2"):
        class_similarity(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]))


def test_similar_classes_become_neighbors():
    similarity = torch.tensor([[1, 0.1, 0.9, 0.0], [0.1, 1, 0.0, 0.8], [0.9, 0.0, 1, 0.1], [0.0, 0.8, 0.1, 1]])
    order = by_similarity(similarity)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


def test_correlate_returns_writes_and_orders(teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.html"
    both = [f"{teacher_run}@midpoint", f"{teacher_run}@last"]
    assert main(["correlate", *both, "--order", "given", "--out", str(page), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    data = load_data(DataConfig(data="digits", train_images=100))
    refs = resolve_ensemble([f"{teacher_run}@2", f"{teacher_run}@4"], None)
    logits_MNK = Teacher(refs, device=torch.device("cpu")).predict(data.val)
    for name, vectors_MNK in (("logits", logits_MNK), ("softened", (logits_MNK / 5).softmax(-1))):
        for number, vectors_NK in enumerate(vectors_MNK):
            by_hand = class_similarity(vectors_NK, data.val.labels_N).double()
            assert torch.tensor(result[name]["similarity"][number]) == pytest.approx(by_hand, abs=1e-6)
        assert np.allclose(result[name]["difference"], np.subtract(*result[name]["similarity"]))
        assert list(result[name]["differences"]) == ["mean_similarity", "diversity"]
    assert result["classes"] == list(data.classes)
    text = page.read_text(encoding="utf-8")
    assert len(re.findall("<h2[^>]*>Class correlation", text)) == 2
    for checkpoint in result["checkpoints"]:
        assert checkpoint["sha256"][:12] in text
    assert f"{result['logits']['numbers']['diversity'][0]['value']:.3f} (" in text
    assert "<script" not in text
    assert re.search(r'(src|href)="(https?:)?//', text) is None

    assert main(["correlate", f"{teacher_run}@last"]) == 0
    assert "first minus second" not in capsys.readouterr().out
    by_similarity_ = ckd.correlate(f"{teacher_run}@4")
    assert by_similarity_["order"] == "similarity"
    assert sorted(by_similarity_["classes"]) == sorted(data.classes)
    cell = by_similarity_["classes"].index(data.classes[3]), by_similarity_["classes"].index(data.classes[5])
    assert by_similarity_["logits"]["similarity"][0][cell[0]][cell[1]] == result["logits"]["similarity"][1][3][5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name at least one checkpoint"),
        (["RUN@1", "RUN@2", "RUN@3"], "one or two checkpoints, not 3"),
        (["RUN@1", "--order", "superclass"], "The classes of 'digits' have no superclasses"),
        (["RUN@1", "--tau", "0"], "tau must be above 0"),
        (["RUN@1", "--out", "RUN/run.json"], "was not written by checkpointkd"),
    ],
)
def test_correlate_reports_user_errors(
    arguments: list[str], message: str, teacher_run: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["correlate", *(argument.replace("RUN", str(teacher_run)) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_cifar100_superclasses_match_its_own_files(cifar100: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(next(cifar100.glob("test-*.parquet")), columns=["fine_label", "coarse_label"])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    fine, coarse = (features[f"{name}_label"]["names"] for name in ("fine", "coarse"))
    groups = superclasses(fine)
    assert groups is not None
    pairs = set(zip(table["fine_label"].to_pylist(), table["coarse_label"].to_pylist(), strict=True))
    assert {(number, groups[number].replace(" ", "_")) for number in range(100)} == {
        (number, coarse[group]) for number, group in pairs
    }
