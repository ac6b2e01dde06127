"""Advantages of rollouts that continue from a stale prefix and of rollouts that answer there. Pure functions, no TRL.

In the paper's RL form (arXiv 2503.07572), a continuing rollout earns r + alpha (r - b), where b is the mean outcome of
the rollouts that are forced to answer at the prefix; those earn r. Both kinds are normalized jointly. The policy
samples neither the prefix nor the forced suffix, so the actions of a rollout do not cause the difference between
continuing and answering at once. This difference belongs in the baseline, but a joint baseline leaves it in every
advantage. If 0.8 of the continuing rollouts and 0.2 of the terminating ones are correct, a continuing rollout has a
mean advantage of 0.3. That is noise: for the same signal, with six continuing and two terminating rollouts, the mean
square advantage is 1.1 times that with separate baselines; at 0.95 and 0.05 it is 2.1 times. If both kinds are correct
equally often, the joint baseline has 0.95 times the noise, because it averages over more rollouts.

Deviation: by default each kind has its own baseline (`separate`). With m(.) the mean over the group's rollouts of the
same kind, w the weight of the outcome r, and o the other rewards,

    A = (w (1 + alpha) (r - m(r)) + o - m(o)) / D    of a continuing rollout,
    A = w (r - m(r)) / D                             of a terminating one,

where D is the standard deviation of w r around the mean of each kind. With other rewards, D has the floor of
[`outcome_divisor`]. b is the same for all continuing rollouts of a group and cancels. What remains is GRPO from stale
prefixes together with GRPO on forced answers; alpha is the weight of the first relative to the second, to the other
rewards and to a KL penalty. D does not contain alpha, so alpha has this effect with every `scale_rewards`. If a group
has only one rollout of a kind, its advantage is 0. `joint` is the paper's form.
"""

import torch

from .advantages import EPSILON, group_advantages, outcome_divisor, relative_to_group

BASELINES = ("separate", "joint")


def prefix_advantages(
    outcomes: torch.Tensor,
    others: torch.Tensor | None,
    terminating: torch.Tensor,
    group_size: int,
    *,
    alpha: float,
    weight: float = 1.0,
    baseline: str = "separate",
    scale: str = "group",
) -> torch.Tensor:
    """Return the advantages of both kinds of rollouts; see the module docstring.

    Args:
        outcomes (`torch.Tensor` of shape (B,)): r; NaN where unscorable.
        others (`torch.Tensor` of shape (B,), *optional*): o of continuing rollouts, NaN where unscorable. Terminating
            rollouts get their outcome only; a continuing rollout without an outcome gets these rewards only.
        terminating (`torch.Tensor` of shape (B,), bool): rollouts that were forced to answer at the prefix.
        group_size (`int`): rollouts of a prefix, G, of both kinds.
        alpha (`float`): weight of the bonus; a group without terminating rollouts has none.
        weight (`float`, *optional*, defaults to `1.0`): w.
        baseline (`str`, *optional*, defaults to `"separate"`): `separate` or `joint`.
        scale (`str`, *optional*, defaults to `"group"`): D is taken over each `group`, over the `batch`, or is 1
            (`none`).

    Returns:
        `torch.Tensor` of shape (B,): advantages, 0 where unscorable.
    """
    terminating_NG = terminating.view(-1, group_size)
    outcomes_NG = weight * outcomes.view(-1, group_size)
    total_NG = outcomes_NG
    if others is not None:
        total_NG = _total_rewards(outcomes_NG, others.view(-1, group_size), terminating_NG)
    if baseline == "joint":
        shaped = prefix_rewards(outcomes_NG.reshape(-1), terminating, group_size, alpha)
        shaped = total_NG.reshape(-1) + (shaped - outcomes_NG.reshape(-1)).nan_to_num(0.0)
        if others is None:
            return group_advantages(shaped, group_size, scale)
        divisor = outcome_divisor(outcomes, group_size, scale, weight=weight, total=shaped)
        return (relative_to_group(shaped, group_size) / divisor).nan_to_num(0.0)
    bonus_NG = (alpha * _minus_mean_of_kind(outcomes_NG, terminating_NG)).nan_to_num(0.0)
    paid_NG = ~terminating_NG & terminating_NG.any(1, keepdim=True)
    centered_NG = _minus_mean_of_kind(total_NG, terminating_NG) + bonus_NG * paid_NG
    if scale != "none":
        rows = group_size if scale == "group" else len(outcomes)
        floor = 0.0 if others is None else abs(weight) / rows**0.5
        divisor_N1 = _divisor(
            outcomes_NG.view(-1, rows), total_NG.view(-1, rows), terminating_NG.view(-1, rows), floor
        )
        centered_NG = (centered_NG.view(-1, rows) / (divisor_N1 + EPSILON)).view_as(centered_NG)
    return centered_NG.reshape(-1).nan_to_num(0.0)


def prefix_rewards(rewards: torch.Tensor, terminating: torch.Tensor, group_size: int, alpha: float) -> torch.Tensor:
    """Return the paper's rewards of rollouts that continue from a prefix and of those that answer there.

    Args:
        rewards (`torch.Tensor` of shape (B,)): outcomes; NaN where unscorable.
        terminating (`torch.Tensor` of shape (B,), bool): rollouts that were forced to answer at the prefix.
        group_size (`int`): rollouts of a prefix, G, of both kinds.
        alpha (`float`): weight of the bonus.

    Returns:
        `torch.Tensor` of shape (B,): r for a terminating rollout, r + alpha (r - b) for a continuing one, with b the
        mean reward of the group's terminating rollouts; no bonus where the group has none that could be scored.
    """
    rewards_NG, terminating_NG = rewards.view(-1, group_size), terminating.view(-1, group_size)
    baseline_N1 = rewards_NG.masked_fill(~terminating_NG, torch.nan).nanmean(1, keepdim=True)
    bonus_NG = (alpha * (rewards_NG - baseline_N1)).masked_fill(terminating_NG | baseline_N1.isnan(), 0.0)
    return (rewards_NG + bonus_NG).view(-1)


def _total_rewards(outcomes: torch.Tensor, others: torch.Tensor, terminating: torch.Tensor) -> torch.Tensor:
    """Return the total rewards, shape (N, G) like all arguments; NaN where unscorable.

    Terminating rollouts get the mean of the continuing rollouts' other rewards. Otherwise, a joint baseline would
    compare rewards with missing rewards.
    """
    mean_N1 = others.masked_fill(terminating, torch.nan).nanmean(1, keepdim=True).nan_to_num(0.0)
    return torch.where(terminating, outcomes + mean_N1, outcomes.nan_to_num(0.0) + others)


def _divisor(outcomes: torch.Tensor, total: torch.Tensor, terminating: torch.Tensor, floor: float) -> torch.Tensor:
    """Return the standard deviation of each row's outcomes, or of its totals if it has no outcome, shape (N, 1)."""
    deviation_N1 = _deviation_of_kinds(outcomes, terminating).clamp(min=floor)
    without_N1 = outcomes.isnan().all(1, keepdim=True)
    return torch.where(without_N1, _deviation_of_kinds(total, terminating), deviation_N1)


def _minus_mean_of_kind(values: torch.Tensor, terminating: torch.Tensor) -> torch.Tensor:
    """Subtract from each entry the mean over the entries of its row that are of the same kind; shapes (N, M)."""
    continuing_N1, terminating_N1 = (
        values.masked_fill(other, torch.nan).nanmean(1, keepdim=True) for other in (terminating, ~terminating)
    )
    return values - torch.where(terminating, terminating_N1, continuing_N1)


def _deviation_of_kinds(values: torch.Tensor, terminating: torch.Tensor) -> torch.Tensor:
    """Return each row's unbiased standard deviation around the means of the two kinds, shape (N, 1)."""
    known = ~values.isnan()
    number_N1 = known.sum(1, keepdim=True)
    for kind in (terminating, ~terminating):
        number_N1 = number_N1 - (known & kind).any(1, keepdim=True).long()
    squares_N1 = _minus_mean_of_kind(values, terminating).square().nansum(1, keepdim=True)
    return (squares_N1 / number_N1.clamp(min=1)).sqrt()
