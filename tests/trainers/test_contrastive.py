"""Contrastive terms against an independent computation in plain Python, and their limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metatune.trainers.contrastive import Prototypes, balanced_assignment, items_of, simcse_loss, swav_loss


def features(seed: int, rows: int = 4, columns: int = 3) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def test_simcse_is_info_nce_of_cosines():
    view, other = features(0), features(1)
    total = 0.0
    for i, item in enumerate(view.tolist()):
        similarities = [math.exp(cosine(item, b) / 0.1) for b in other.tolist()]
        total -= math.log(similarities[i] / sum(similarities))
    assert simcse_loss(view, other, 0.1).item() == pytest.approx(total / 4)


def test_simcse_at_its_limits():
    same = torch.ones(5, 3)
    assert simcse_loss(same, same).item() == pytest.approx(math.log(5))
    apart = torch.eye(4)
    assert simcse_loss(apart, apart).item() == pytest.approx(math.log(1 + 3 * math.exp(-20)), abs=1e-6)


def test_items_are_responses_or_differences_in_both_directions():
    chosen, rejected = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]])
    assert items_of(chosen, rejected, "pairs").tolist() == [[1.0, 2.0], [0.0, 5.0]]
    assert items_of(chosen, rejected, "differences").tolist() == [[1.0, -3.0], [-1.0, 3.0]]


def sinkhorn(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    q = [[math.exp(s / epsilon) for s in row] for row in scores]
    for _ in range(iterations):
        columns = [sum(row[k] for row in q) for k in range(len(q[0]))]
        q = [[value / columns[k] for k, value in enumerate(row)] for row in q]
        q = [[value / sum(row) for value in row] for row in q]
    return q


def test_swav_is_the_swapped_prediction_of_balanced_assignments():
    one, other = features(2), features(3)
    expected = 0.0
    for predicted, labels in ((other, one), (one, other)):
        q = sinkhorn(labels.tolist(), 0.05, 3)
        for row, target in zip(predicted.tolist(), q, strict=True):
            norm = sum(math.exp(s / 0.1) for s in row)
            expected -= sum(t * math.log(math.exp(s / 0.1) / norm) for t, s in zip(target, row, strict=True)) / 4 / 2
    assert swav_loss(one, other).item() == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(2, 6))
@settings(deadline=None)
def test_assignments_are_distributions_that_use_all_prototypes(seed, rows, columns):
    q = balanced_assignment(features(seed, rows, columns), epsilon=0.5, iterations=50)
    torch.testing.assert_close(q.sum(1), torch.ones(rows), atol=1e-5, rtol=0)
    torch.testing.assert_close(q.sum(0), torch.full((columns,), rows / columns), atol=0.05, rtol=0)


def test_a_far_item_does_not_underflow():
    q = balanced_assignment(torch.tensor([[-900.0, -1000.0], [0.0, 1.0]]))
    assert q.isfinite().all() and q.sum().item() == pytest.approx(2.0, abs=1e-5)


def test_prototypes_give_cosines():
    prototypes = Prototypes(3, 2)
    with torch.no_grad():
        prototypes.weight.copy_(torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 4.0]]))
    found = prototypes(torch.tensor([[5.0, 0.0, 0.0], [0.0, 6.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [0.0, 0.6]]))
