"""Advantages of outcomes, as in TRL and for gold rewards combined with other rewards. Pure functions, no TRL.

TRL divides the advantages of a group by the standard deviation of its total reward. If the gold reward, which decides
whether a completion is correct, is the same for the whole group, this standard deviation comes from the other rewards
alone, and the division cancels their weights: a judge with weight 0.01 has the same advantages as one with weight 0.5.
Prompts that are always or never solved then train on the judge, or on length, at full strength.

If gold is combined with other rewards, all advantages are therefore divided by the standard deviation of gold
([`outcome_divisor`]). Its floor is weight / sqrt(n), the smallest standard deviation of n binary rewards that are not
all equal (a single one is 1 or 0). If the binary gold rewards of a group differ, their advantages are TRL's, and the
others add to them in proportion to their weights. If gold is constant, the advantages of the others are still
proportional to their weights. Partial credit that differs by less than the floor has smaller advantages than TRL's.

Rewards have shape (B,), contain complete groups of `group_size`, and are NaN where a completion is unscorable.
"""

import torch

EPSILON = 1e-4  # as in TRL's own division by a standard deviation


def relative_to_group(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return each reward minus the mean of its group, shape (B,); NaN stays NaN and is excluded from the means."""
    rewards_NG = rewards.view(-1, group_size)
    return (rewards_NG - rewards_NG.nanmean(1, keepdim=True)).reshape(-1)


def group_advantages(rewards: torch.Tensor, group_size: int, scale: str) -> torch.Tensor:
    """Return GRPO's advantages of a reward, shape (B,), as TRL computes them; NaN rewards get 0.

    Args:
        rewards (`torch.Tensor` of shape (B,)): NaN where unscorable.
        group_size (`int`): completions of a prompt, G; B is a multiple of it.
        scale (`str`): `group`, `batch` or `none`, TRL's `scale_rewards`.
    """
    relative = relative_to_group(rewards, group_size)
    if scale != "none":
        rows = group_size if scale == "group" else len(rewards)
        relative = relative / (_nanstd(rewards, rows) + EPSILON)
    return relative.nan_to_num(0.0)


def outcome_divisor(
    outcome: torch.Tensor,
    group_size: int,
    scale: str,
    *,
    weight: float = 1.0,
    total: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the divisor of each completion's advantages if gold is combined with other rewards.

    Args:
        outcome (`torch.Tensor` of shape (B,)): gold rewards, NaN where unscorable.
        group_size (`int`): completions of a prompt, G; B is a multiple of it.
        scale (`str`): `group`, `batch` or `none`, TRL's `scale_rewards`.
        weight (`float`, *optional*, defaults to `1.0`): gold's weight in the total reward.
        total (`torch.Tensor` of shape (B,), *optional*): the total reward. Its standard deviation is the divisor of a
            group (or batch) in which no completion has a gold reward, as in TRL.

    Returns:
        `torch.Tensor` of shape (B,): with `group` or `batch`, the standard deviation of weight * outcome over the
        group or the batch, at least |weight| / sqrt(n) for its n completions; with `none`, 1.
    """
    if scale == "none":
        return torch.ones_like(outcome)
    rows = group_size if scale == "group" else len(outcome)
    deviation = _nanstd(weight * outcome, rows).clamp(min=abs(weight) / rows**0.5)
    if total is not None:
        without_gold = outcome.view(-1, rows).isnan().all(1).repeat_interleave(rows)
        deviation = torch.where(without_gold, _nanstd(total, rows), deviation)
    return deviation + EPSILON


def _nanstd(rewards: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the unbiased standard deviation of each `rows` consecutive rewards, without NaN, shape (B,).

    It is 0 for a single reward.
    """
    values = rewards.view(-1, rows)
    number = (~values.isnan()).sum(1, keepdim=True)
    squares = (values - values.nanmean(1, keepdim=True)).square().nansum(1, keepdim=True)
    return (squares / (number - 1).clamp(min=1)).sqrt().expand_as(values).reshape(-1)
