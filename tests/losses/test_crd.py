"""CRD: its equations with known negatives, the draw of negatives, and the memories."""

from __future__ import annotations

import torch

from checkpointkd.data import Batch
from checkpointkd.losses.crd import CRD
from checkpointkd.losses.features import FeatureSpec

from . import by_hand
from .cases import BATCH, LABELS, B, K, N, feature_spec, random_features


def test_crd_matches_its_equations():
    """Both directions, against the memories before the update, with Z from the first batch."""
    student, teacher = random_features("crd")
    torch.manual_seed(0)
    method = CRD(feature_spec(student, teacher), negatives=6).double()
    memories = {side: getattr(method, f"{side}_memory_NE").clone() for side in ("student", "teacher")}
    torch.manual_seed(3)
    negative_rows = method.draw_negatives(LABELS)
    torch.manual_seed(3)
    actual = method(student, teacher, BATCH)
    expected = torch.zeros(B, dtype=torch.float64)
    rows = [[int(BATCH.index_B[b]), *negative_rows[b].tolist()] for b in range(B)]
    for side, maps, memory in (
        ("student", student[0], memories["teacher"]),
        ("teacher", teacher[0], memories["student"]),
    ):
        layer = getattr(method, f"{side}_embedding")
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        embeddings = [by_hand.linear(weight, bias, by_hand.pooled(m)) for m in maps.tolist()]
        embeddings = [[value / by_hand.norm(embedding) for value in embedding] for embedding in embeddings]
        similarities = [
            torch.tensor(by_hand.dot(embeddings[b], memory[row].tolist()) / 0.07).exp().item()
            for b in range(B)
            for row in rows[b]
        ]
        z = by_hand.mean(similarities) * N
        torch.testing.assert_close(getattr(method, f"{side}_z").item(), z, rtol=1e-6, atol=0.0)
        for b in range(B):
            positive, *negatives = (memory[row].tolist() for row in rows[b])
            expected[b] += by_hand.crd_term(embeddings[b], positive, negatives, z, N)
        updated = getattr(method, f"{side}_memory_NE")
        halfway = 0.5 * memories[side][BATCH.index_B] + 0.5 * torch.tensor(embeddings, dtype=torch.float64)
        torch.testing.assert_close(updated[BATCH.index_B], halfway / halfway.norm(dim=1, keepdim=True))
        not_in_batch = [row for row in range(N) if row not in BATCH.index_B.tolist()]
        assert torch.equal(updated[not_in_batch], memories[side][not_in_batch])
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


def test_negatives_are_all_images_of_other_classes():
    spec = feature_spec(*random_features("crd"))
    method = CRD(spec, negatives=400)
    for label, rows in zip(LABELS, method.draw_negatives(LABELS), strict=True):
        assert set(rows.tolist()) == set((spec.labels_N != label).nonzero().flatten().tolist())


def test_memory_rows_follow_the_images_numbers_in_the_data_set():
    student, teacher = random_features("crd")
    labels, index = torch.arange(N) % K, torch.arange(N) * 3 + 2
    method = CRD(FeatureSpec({"a": (3, 1, 1)}, {"b": (5, 1, 1)}, labels, index), negatives=3)
    before = method.student_memory_NE.clone()
    batch = Batch(BATCH.images_BCHW, LABELS, index[[1, 3, 5, 7, 9]], None)
    method([student[0].float()], [teacher[0].float()], batch)
    changed = (method.student_memory_NE != before).any(1).nonzero().flatten()
    assert changed.tolist() == [1, 3, 5, 7, 9]
