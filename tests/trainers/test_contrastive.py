"""Contrastive terms against an independent computation in plain Python, and their limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metatune.trainers.contrastive import (
    FeatureQueue,
    Prototypes,
    balanced_assignment,
    items_of,
    simcse_loss,
    swav_loss,
)


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


def test_simcse_with_negatives_by_hand():
    """The other view is equal; one negative is orthogonal, one opposite: log(1 + e^(-1/t) + e^(-2/t))."""
    view, negatives = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0], [-2.0, 0.0]])
    loss = simcse_loss(view, view, 0.5, negatives)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2) + math.exp(-4)))


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


# ---- past features ----


def rows(*values: float) -> torch.Tensor:
    return torch.tensor([[value, 1.0] for value in values])


def test_a_queue_holds_the_newest_features_without_their_graph():
    queue = FeatureQueue(3, 2)
    queue.push(rows(1, 2).requires_grad_())
    queue.push(rows(3, 4))
    assert queue.features.tolist() == rows(3, 4, 1).tolist() and not queue.features.requires_grad
    queue.push(rows(5, 6, 7, 8))
    assert queue.features.tolist() == rows(5, 6, 7).tolist()
    queue.load(rows(1, 2, 3, 4))  # from a larger queue
    assert queue.features.tolist() == rows(1, 2, 3).tolist()
    none = FeatureQueue(0, 2)
    none.push(rows(1))
    assert none.features.shape == (0, 2)


def test_the_context_is_the_other_processes_features_and_the_past_ones():
    queue = FeatureQueue(4, 2)
    gathered = rows(1, 2, 3, 4, 5, 6)  # of three processes
    assert queue.context(gathered, 1, 3).tolist() == rows(1, 2, 5, 6).tolist()
    assert queue.context(gathered[:2], 0, 1).shape == (0, 2)
    queue.push(rows(7, 8))
    assert queue.context(gathered, 0, 3).tolist() == rows(3, 4, 5, 6, 7, 8).tolist()


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None)
def test_items_in_micro_batches_have_the_losses_of_one_batch(seed, size, number):
    """With unchanged weights, the last of several micro-batches is compared with every item of the batch."""
    view, other = features(seed, size * number), features(seed + 1, size * number)
    prototypes = Prototypes(3, 5).double()
    queue = FeatureQueue(64, 3)
    for part in other.split(size):
        context = queue.context(part, 0, 1)
        queue.push(part)
    one, two = view[-size:], other[-size:]
    whole = [cosine(a, b) / 0.1 for a in one.tolist() for b in other.tolist()]
    own = torch.tensor(whole, dtype=torch.float64).view(size, -1)
    expected = (own.logsumexp(1) - own.diagonal(offset=size * (number - 1))).mean()
    assert simcse_loss(one, two, 0.1, context).item() == pytest.approx(expected.item(), rel=1e-5)
    labels = balanced_assignment(prototypes(torch.cat([one, other[:-size]])))[:size]
    labels_other = balanced_assignment(prototypes(torch.cat([two, other[:-size]])))[:size]
    predicted = -(labels * (prototypes(two) / 0.1).log_softmax(1)).sum(1).mean()
    predicted_other = -(labels_other * (prototypes(one) / 0.1).log_softmax(1)).sum(1).mean()
    found = swav_loss(prototypes(one), prototypes(two), more=prototypes(context))
    assert found.item() == pytest.approx(((predicted + predicted_other) / 2).item(), rel=1e-4)


def test_past_features_make_assignments_meaningful():
    """Four items alone are spread over 50 prototypes regardless of content; among 256 others they keep their own."""
    items, prototypes = features(4, 4, 16), features(5, 50, 16)
    scores = torch.nn.functional.normalize(items, dim=1) @ torch.nn.functional.normalize(prototypes, dim=1).T
    others = torch.nn.functional.normalize(features(6, 256, 16), dim=1)
    others = others @ torch.nn.functional.normalize(prototypes, dim=1).T
    alone = balanced_assignment(scores)
    among = balanced_assignment(torch.cat([scores, others]))[:4]
    nearest = scores.argmax(1)
    share = [q[torch.arange(4), nearest].mean().item() for q in (alone, among)]
    assert share[0] < 0.1 < share[1], share


def test_the_gradient_passes_through_own_features_alone():
    view, other = features(0).requires_grad_(), features(1).requires_grad_()
    past = features(2).requires_grad_()
    queue = FeatureQueue(8, 3)
    queue.push(past)
    context = queue.context(other.detach(), 0, 1)
    simcse_loss(view, other, 0.1, context).backward()
    assert view.grad.any() and other.grad.any() and past.grad is None
    prototypes = Prototypes(3, 5).double()
    swav_loss(prototypes(view), prototypes(other), more=prototypes(context)).backward()
    only_own = prototypes.weight.grad.clone()
    prototypes.weight.grad = None
    swav_loss(prototypes(view), prototypes(other), more=prototypes(context).detach()).backward()
    torch.testing.assert_close(prototypes.weight.grad, only_own)
