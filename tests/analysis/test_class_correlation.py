"""Class correlation against computations by hand, its interval against repeated draws, and the command."""

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
from checkpointkd.cli import main
from checkpointkd.data import DataConfig, load_data, superclasses
from checkpointkd.errors import UserError
from checkpointkd.teachers.ensemble import open_teacher


def _drawn(per_class: int, seed: int, spread: float = 1.0, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors around six class means, the same ones for every seed."""
    means_KK = torch.eye(classes) * 3 + torch.randn(classes, classes, generator=torch.Generator().manual_seed(0))
    labels_N = torch.arange(classes).repeat_interleave(per_class)
    noise_NK = torch.randn(len(labels_N), classes, generator=torch.Generator().manual_seed(seed + 1))
    return means_KK[labels_N] + spread * noise_NK, labels_N


def test_similarity_is_equation_8():
    vectors_NK, labels_N = _drawn(7, seed=0)
    found = class_similarity(vectors_NK, labels_N)
    mean = [vectors_NK[labels_N == label].double().mean(0).numpy() for label in range(6)]
    for i in range(6):
        for j in range(6):
            by_hand = mean[i] @ mean[j] / (np.linalg.norm(mean[i]) * np.linalg.norm(mean[j]))
            assert found[i, j].item() == pytest.approx(by_hand, abs=1e-6)


def test_diversity_is_nothing_where_all_other_classes_are_alike():
    alike = torch.full((5, 5), 0.3).fill_diagonal_(1.0)
    assert diversity(alike).item() == pytest.approx(0, abs=1e-7)
    torch.manual_seed(0)
    mixed = torch.rand(5, 5)
    cells = [mixed[i, j].item() for i in range(5) for j in range(5) if i != j]
    assert diversity(mixed).item() == pytest.approx(np.std(cells), abs=1e-6)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Over a hundred repetitions with 40 images a class, of the numbers that images without end would show."""
    vectors_NK, labels_N = _drawn(100_000, seed=-1, spread=0.0)
    similarity_KK = class_similarity(vectors_NK, labels_N)
    truth = {name: number(similarity_KK).item() for name, number in NUMBERS.items()}
    within = dict.fromkeys(NUMBERS, 0)
    for seed in range(100):
        vectors_NK, labels_N = _drawn(40, seed=seed)
        for name, intervals in class_correlation(vectors_NK[None], labels_N).numbers.items():
            within[name] += intervals[0].low <= truth[name] <= intervals[0].high
    assert all(85 <= count <= 100 for count in within.values()), within


def test_what_noise_adds_is_taken_off():
    """Six classes that are equally unlike: all diversity that few noisy images show is noise."""
    labels_N = torch.arange(6).repeat_interleave(15)
    values = []
    for seed in range(20):
        noise_NK = torch.randn(90, 6, generator=torch.Generator().manual_seed(seed))
        vectors_NK = 3 * torch.eye(6)[labels_N] + 1.5 * noise_NK
        plain = diversity(class_similarity(vectors_NK, labels_N)).item()
        (found,) = class_correlation(vectors_NK[None], labels_N).numbers["diversity"]
        assert found.low < found.value < found.high
        assert found.low < 0.9 * plain
        values.append((found.value, plain))
    assert np.mean([value for value, _ in values]) < 0.8 * np.mean([plain for _, plain in values])


def test_the_difference_is_paired():
    """Two checkpoints that see an image alike: their difference is far surer than each one's diversity."""
    vectors_NK, labels_N = _drawn(30, seed=1, spread=3.0)
    found = class_correlation(torch.stack([vectors_NK, vectors_NK * 1.0 + 0.05]), labels_N)
    for name, (alone, other) in found.numbers.items():
        apart = found.differences[name]
        assert apart.value == pytest.approx(alone.value - other.value, abs=1e-6)
        assert apart.high - apart.low < 0.1 * (alone.high - alone.low)
    same = class_correlation(torch.stack([vectors_NK, vectors_NK]), labels_N).differences["diversity"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_class_without_images_is_refused():
    with pytest.raises(UserError, match=r"1 classes have no image .* class \[2\]"):
        class_similarity(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]))


def test_similar_classes_become_neighbors():
    similarity = torch.tensor([[1, 0.1, 0.9, 0.0], [0.1, 1, 0.0, 0.8], [0.9, 0.0, 1, 0.1], [0.0, 0.8, 0.1, 1]])
    order = by_similarity(similarity)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


def test_the_command_tells_writes_and_orders(teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.html"
    asked = [
        "correlate",
        f"{teacher_run}@midpoint",
        f"{teacher_run}@last",
        "--order",
        "given",
        "--out",
        str(page),
        "--json",
    ]
    assert main(asked) == 0
    found = json.loads(capsys.readouterr().out)
    data = load_data(DataConfig(data="digits", train_images=100))
    logits_MNK = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"], device=torch.device("cpu")).predict(data.val)
    for name, vectors_MNK in (("logits", logits_MNK), ("softened", (logits_MNK / 5).softmax(-1))):
        for number, vectors_NK in enumerate(vectors_MNK):
            by_hand = class_similarity(vectors_NK, data.val.labels_N).double()
            assert torch.tensor(found[name]["similarity"][number]) == pytest.approx(by_hand, abs=1e-6)
        apart = np.subtract(*found[name]["similarity"])
        assert np.allclose(found[name]["difference"], apart)
        assert list(found[name]["differences"]) == ["mean_similarity", "diversity"]
    assert found["classes"] == list(data.classes)
    text = page.read_text(encoding="utf-8")
    assert len(re.findall("<h2[^>]*>Class correlation", text)) == 2
    for one in found["checkpoints"]:
        assert one["sha256"][:12] in text
    assert f"{found['logits']['numbers']['diversity'][0]['value']:.3f} (" in text
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)  # Plotly's own code has links in it
    assert re.search(r'(src|href)="(https?:)?//', outside) is None

    assert main(["correlate", f"{teacher_run}@last"]) == 0
    told = capsys.readouterr().out
    assert "the first less the second" not in told
    by_similarity_ = ckd.correlate(f"{teacher_run}@4")
    assert by_similarity_["order"] == "similarity"
    assert sorted(by_similarity_["classes"]) == sorted(data.classes)
    cell = by_similarity_["classes"].index(data.classes[3]), by_similarity_["classes"].index(data.classes[5])
    assert by_similarity_["logits"]["similarity"][0][cell[0]][cell[1]] == found["logits"]["similarity"][1][3][5]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name at least one checkpoint"),
        (["RUN@1", "RUN@2", "RUN@3"], "one checkpoint or two, not 3"),
        (["RUN@1", "--order", "superclass"], "no superclasses are known of the classes of 'digits'"),
        (["RUN@1", "--tau", "0"], "tau must be above 0"),
        (["RUN@1", "--out", "RUN/run.json"], "is no page of ours"),
    ],
)
def test_what_it_cannot_do_it_says(
    arguments: list[str], says: str, teacher_run: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["correlate", *(one.replace("RUN", str(teacher_run)) for one in arguments)]) == 2
    assert says in capsys.readouterr().err


def test_cifar100s_superclasses_are_those_of_its_own_files(cifar100: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(next(cifar100.glob("test-*.parquet")), columns=["fine_label", "coarse_label"])
    described = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    fine, coarse = (described[f"{name}_label"]["names"] for name in ("fine", "coarse"))
    groups = superclasses(fine)
    assert groups is not None
    pairs = set(zip(table["fine_label"].to_pylist(), table["coarse_label"].to_pylist(), strict=True))
    assert {(number, groups[number].replace(" ", "_")) for number in range(100)} == {
        (number, coarse[group]) for number, group in pairs
    }
