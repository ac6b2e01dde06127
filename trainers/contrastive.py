"""Contrastive terms that keep a reward model's features apart (arXiv 2401.06080, section 3.1).

Two dropout views of the same texts give two features of every item. SimCSE (InfoNCE) wants the two views of an item
alike and those of different items apart; SwAV wants a view's soft assignment to K prototypes predicted by the other
view. An item is a response, or the difference of a pair's responses, in both directions.

A micro-batch of two pairs has only four items, fewer than there are prototypes. So items are also compared with
features that get no gradient: those of the other processes, and those of past items in a queue, as in SwAV (section
3.1 of its paper). The queue is filled from the first step on; SwAV waits until features change slowly. The queue holds
the features of one view only, because both dropout views of a text have the same distribution.

The paper does not state SimCSE's temperature; 0.05 is that of SimCSE's own paper (arXiv 2104.08821). SwAV's
temperature 0.1, epsilon 0.05 and 3 Sinkhorn iterations are those of its paper (arXiv 2006.09882).
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax, normalize

ON = ("pairs", "differences")


def items_of(features_chosen: torch.Tensor, features_rejected: torch.Tensor, on: str) -> torch.Tensor:
    """Return the items that a contrastive term compares.

    Args:
        features_chosen (`torch.Tensor` of shape (B, D)): last hidden features of the chosen responses.
        features_rejected (`torch.Tensor` of shape (B, D)): those of the rejected ones.
        on (`str`): `pairs`, {f(c), f(r)}, or `differences`, {f(c) - f(r), f(r) - f(c)}.

    Returns:
        `torch.Tensor` of shape (2B, D).
    """
    if on == "pairs":
        return torch.cat([features_chosen, features_rejected])
    difference = features_chosen - features_rejected
    return torch.cat([difference, -difference])


def simcse_loss(
    view: torch.Tensor, other: torch.Tensor, temperature: float = 0.05, negatives: torch.Tensor | None = None
) -> torch.Tensor:
    """Return InfoNCE of cosine similarities: every item's own other view against those of all items.

    Args:
        view (`torch.Tensor` of shape (N, D)): features.
        other (`torch.Tensor` of shape (N, D)): features of the same items with another dropout mask.
        temperature (`float`, *optional*, defaults to `0.05`): tau.
        negatives (`torch.Tensor` of shape (M, D), *optional*): features of other items.

    Returns:
        `torch.Tensor` of shape (): the mean over items; log(N + M) where all features are equal.
    """
    candidates = other if negatives is None else torch.cat([other, negatives])
    similarity = normalize(view, dim=-1) @ normalize(candidates, dim=-1).T / temperature
    return cross_entropy(similarity, torch.arange(len(view), device=view.device))


@torch.no_grad()
def balanced_assignment(scores: torch.Tensor, epsilon: float = 0.05, iterations: int = 3) -> torch.Tensor:
    """Return soft assignments that use all prototypes equally, by Sinkhorn and Knopp's normalisation.

    Args:
        scores (`torch.Tensor` of shape (N, K)): similarities of items and prototypes.
        epsilon (`float`, *optional*, defaults to `0.05`): smoothness; a small one is nearly a hard assignment.
        iterations (`int`, *optional*, defaults to `3`): alternations.

    Returns:
        `torch.Tensor` of shape (N, K): rows that sum to 1; columns nearly to N / K.
    """
    logits = scores.float() / epsilon  # in logarithms, so that no row can underflow to nothing
    for _ in range(iterations):
        logits = log_softmax(logits, dim=0)
        logits = log_softmax(logits, dim=1)
    return logits.exp()


def swav_loss(
    scores: torch.Tensor, other: torch.Tensor, temperature: float = 0.1, more: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the swapped prediction loss of two views' similarities to the prototypes.

    Args:
        scores (`torch.Tensor` of shape (N, K)): cosines of one view's features with the prototypes.
        other (`torch.Tensor` of shape (N, K)): those of the other view.
        temperature (`float`, *optional*, defaults to `0.1`): of the predictions.
        more (`torch.Tensor` of shape (M, K), *optional*): those of other items, over which the assignments are
            balanced as well.

    Returns:
        `torch.Tensor` of shape (): each view's assignment as the other's label, the mean of both.
    """

    def assignment(own: torch.Tensor) -> torch.Tensor:
        together = own if more is None else torch.cat([own, more])
        return balanced_assignment(together)[: len(own)].to(own.dtype)

    one = cross_entropy(other / temperature, assignment(scores))
    two = cross_entropy(scores / temperature, assignment(other))
    return (one + two) / 2


class FeatureQueue:
    """Features of past items, newest first; the same on every process, because each adds those of all processes.

    Args:
        size (`int`): maximum number of features.
        dimension (`int`): D, the size of a feature.
    """

    def __init__(self, size: int, dimension: int):
        self._size = size
        self.features = torch.empty(0, dimension)

    def context(self, gathered: torch.Tensor, process: int, num_processes: int) -> torch.Tensor:
        """Return the features with which a process compares its own: those of the other processes and of past items.

        Args:
            gathered (`torch.Tensor` of shape (P N, D)): N features from each process, in the processes' order.
            process (`int`): rank of the process.
            num_processes (`int`): P.

        Returns:
            `torch.Tensor` of shape ((P - 1) N + M, D).
        """
        parts = list(gathered.chunk(num_processes))
        del parts[process]
        return torch.cat([*parts, self.features.to(gathered)])

    def push(self, features: torch.Tensor) -> None:
        """Add features of shape (N, D), and drop the oldest beyond the size."""
        self.features = torch.cat([features.detach(), self.features.to(features)])[: self._size]

    def load(self, features: torch.Tensor) -> None:
        """Load the features of a saved queue; only the newest ones if it was larger."""
        self.features = features[: self._size]


class Prototypes(nn.Module):
    """SwAV's prototypes: K directions that are trained with the model.

    Args:
        dimension (`int`): D of the features.
        number (`int`): K.
        seed (`int`, *optional*, defaults to `0`): they are drawn by it, and no other generator moves, on no device.
    """

    def __init__(self, dimension: int, number: int, seed: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(number, dimension))
        nn.init.normal_(self.weight, std=dimension**-0.5, generator=torch.Generator().manual_seed(seed))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the cosines of features, shape (N, D), with the prototypes, shape (N, K)."""
        return normalize(features, dim=-1) @ normalize(self.weight, dim=-1).T.to(features.dtype)
