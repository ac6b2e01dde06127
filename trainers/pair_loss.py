"""Losses of a reward model on pairs, as functions of scores. Pure, no TRL.

For a pair with scores r_c and r_r, margin m and target t (the probability that `chosen` is better)

    z = r_c - r_r - m,        L = -t log sigmoid(z) - (1 - t) log sigmoid(-z) = softplus(-z) + (1 - t) z

which is Bradley-Terry for t = 1, m = 0. Every treatment of noisy labels in arXiv 2401.06080 is a choice of t and m.
The paper's Eq. 6 prints the margin outside of the logarithm, where it has no gradient; here it is inside.
"""

import torch
from torch.nn.functional import softplus


def pair_loss(
    rewards_chosen: torch.Tensor,
    rewards_rejected: torch.Tensor,
    target: torch.Tensor | None = None,
    margin: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss of every pair.

    Args:
        rewards_chosen (`torch.Tensor` of shape (B,)): r_c.
        rewards_rejected (`torch.Tensor` of shape (B,)): r_r.
        target (`torch.Tensor` of shape (B,), *optional*): t in [0, 1]; 1 by default.
        margin (`torch.Tensor` of shape (B,), *optional*): m; 0 by default.

    Returns:
        `torch.Tensor` of shape (B,).
    """
    logits = rewards_chosen - rewards_rejected
    if margin is not None:
        logits = logits - margin
    loss = softplus(-logits)
    return loss if target is None else loss + soft_target_term(logits, target)


def soft_target_term(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return what a target below 1 adds to the loss of a pair whose `chosen` is taken to be better, shape (B,)."""
    return (1 - target) * logits


def difference_objective(rewards: torch.Tensor) -> torch.Tensor:
    """Return how far apart a reward model holds the responses to each prompt (arXiv 2405.00438, Eq. 4).

        J = 2 / k^2 * sum over i < j of sigmoid(|r_i - r_j|)

    Labels have no part in it. It is (k - 1) / 2k for equal scores, where its gradient is 0, and at most (k - 1) / k.

    Args:
        rewards (`torch.Tensor` of shape (P, k)): scores of k responses to each of P prompts, k at least 2.

    Returns:
        `torch.Tensor` of shape (P,).

    Raises:
        ValueError: for fewer than two responses, which cannot differ.
    """
    k = rewards.shape[1]
    if k < 2:
        raise ValueError(f"the difference objective compares responses to one prompt: it needs at least 2, got {k}")
    first, second = torch.triu_indices(k, k, offset=1, device=rewards.device)
    return 2 / k**2 * torch.sigmoid((rewards[:, first] - rewards[:, second]).abs()).sum(1)
