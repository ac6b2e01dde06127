"""Advantages from progress: how much each episode of a trace adds to the probability of success. No TRL.

J_j is the probability of success if the trace is stopped after j episodes and the model must answer; J_0 is that of
answering at once, and the last value is the outcome itself. The progress of an episode is p_j = J_j - J_(j-1) (arXiv
2503.07572, 6.1). All functions are pure.

A progress bonus cancels in two cases, both shown by tests:

- The sum of a trace's progress telescopes to outcome - J_0. Paid at the end of an on-policy trace, it is the outcome
  again: J_0 is the same for the whole group and cancels in the group's mean.
- A bonus with a baseline that is constant over the group, r + alpha (r - b), is GRPO scaled by 1 + alpha, and
  dividing by the standard deviation removes even the scale.

Here each episode is therefore rewarded for its own progress only ([`episode_advantages`]), or each token for success
at every later budget ([`anytime_advantages`]). The paper's RL form, which starts from stale prefixes, is in
`prefix_advantages.py`. Values have shape (B, E + 1), contain complete groups of `group_size`, start with J_0, and are
NaN after a trace's last episode.

Deviations: the paper specifies neither alpha nor a normalization; progress has the divisor of the outcome's advantages
([`progress_divisor`]). A trace that has ended makes no more progress, so it counts as 0 in the baseline of later
episodes; without that, the only trace with a fourth episode would be its own baseline. Unscorable values are excluded
from all baselines; an unknown value inside a trace is interpolated ([`bridged`]). Progress from sampled J is shrunk by
the share of noise in it ([`precision_weights`]).
"""

from collections.abc import Sequence

import torch

from .advantages import EPSILON

SCALES = ("outcome", "batch", "none")


def progress_of(values: torch.Tensor) -> torch.Tensor:
    """Return the progress of every episode.

    Args:
        values (`torch.Tensor` of shape (B, E + 1)): J_0 to J_n of each trace, NaN after its last.

    Returns:
        `torch.Tensor` of shape (B, E): J_j - J_(j-1), NaN where there is no such episode.
    """
    return values[:, 1:] - values[:, :-1]


def bridged(values: torch.Tensor) -> torch.Tensor:
    """Interpolate each unknown value linearly between the known values before and after it in its trace.

    The episodes around unknown values then share equally the increase from the last known value to the next one, and a
    trace's progress still telescopes. Values before the first or after the last known value stay unknown.

    Args:
        values (`torch.Tensor` of shape (B, E + 1)): J_0 to J_n of each trace, NaN where unknown and after its last.
    """
    last = values.shape[1] - 1
    at = torch.arange(last + 1, device=values.device).expand_as(values)
    known = ~values.isnan()
    before = at.masked_fill(~known, -1).cummax(1).values
    after = at.masked_fill(~known, last + 1).flip(1).cummin(1).values.flip(1)
    between = ~known & (before >= 0) & (after <= last)
    before, after = before.clamp(min=0), after.clamp(max=last)
    share = (at - before) / (after - before).clamp(min=1)
    return torch.where(between, values.gather(1, before).lerp(values.gather(1, after), share.to(values)), values)


def precision_weights(
    progress: torch.Tensor, noise_variance: torch.Tensor, group_size: int, exists: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the share of each episode's variance that is not sampling noise, in [0, 1].

    The best linear estimate of a noisy deviation from the group's mean is the deviation times this share, signal /
    (signal + noise). The signal's variance is estimated from all episodes of the batch (empirical Bayes).

    Args:
        progress (`torch.Tensor` of shape (B, E)): estimates, NaN where there is no episode.
        noise_variance (`torch.Tensor` of shape (B, E)): variance of each estimate about its true value.
        group_size (`int`): completions of a prompt, G.
        exists (`torch.Tensor` of shape (B, E), bool, *optional*): as for [`episode_advantages`].

    Returns:
        `torch.Tensor` of shape (B, E): 1 without noise, 0 where noise explains all of the batch's variance.
    """
    known = ~progress.isnan()
    if not known.any():
        return torch.ones_like(progress)
    # Subtracting the group's mean removes 1/G of the variance, of signal and noise alike.
    observed = _relative(progress, group_size, exists)[known].square().mean() / (1 - 1 / group_size)
    signal = (observed - noise_variance[known].mean()).clamp(min=0.0)
    return torch.where(noise_variance > 0, signal / (signal + noise_variance), 1.0)


def binomial_variance(values: torch.Tensor, num_answers: int) -> torch.Tensor:
    """Return the unbiased estimate of the variance of a mean of `num_answers` rewards of 0 or 1, shape as `values`.

    With a single answer nothing is known about it, and the largest possible variance, 1/4, stands for it.
    """
    if num_answers < 2:
        return torch.full_like(values, 0.25)
    return values * (1 - values) / (num_answers - 1)


def progress_to_go(progress: torch.Tensor, decay: float) -> torch.Tensor:
    """Return what every episode is paid for: its own progress and, weighted less and less, that of later ones.

    Args:
        progress (`torch.Tensor` of shape (B, E)): NaN where there is no episode.
        decay (`float`): weight of the next episode's progress, of the one after it squared, and so on. 0 pays an
            episode for itself alone; 1 for all that follows, which telescopes to outcome - J_(j-1).

    Returns:
        `torch.Tensor` of shape (B, E): sum over k >= j of decay^(k - j) p_k, NaN where there is no episode.
    """
    paid = progress.clone()
    for episode in range(progress.shape[1] - 2, -1, -1):
        paid[:, episode] += decay * paid[:, episode + 1].nan_to_num(0.0)
    return paid


def progress_noise(
    values: torch.Tensor, sampled: torch.Tensor, variance: float | torch.Tensor, decay: float = 0.0
) -> torch.Tensor:
    """Return the sampling variance of the progress that each episode earns.

    Args:
        values (`torch.Tensor` of shape (B, E + 1)): J_0 to J_n of each trace, NaN after its last.
        sampled (`torch.Tensor` of shape (B, E + 1), bool): the values that are estimates; the others are exact. J_0 is
            one estimate for a whole group, so its noise cancels in the group's mean and counts as 0.
        variance (`float`): mean variance of the estimates of the batch. The variance of a single estimate is
            unreliable: four equal answers seem to have no noise.
        decay (`float`, *optional*, defaults to `0.0`): as for [`progress_to_go`].

    Returns:
        `torch.Tensor` of shape (B, E): the variance of -J_(j-1) + (1 - decay) J_j + decay (1 - decay) J_(j+1) + ... +
        decay^(n-j) J_n; for decay 0, the sum of the variances of J_(j-1) and J_j. With decay 0, the first and the last
        episode have half the noise variance of the others.
    """
    variances = torch.where(sampled, variance, 0.0 * values).masked_fill(values.isnan(), torch.nan)
    variances[:, 0] = 0.0
    after = variances[:, 1:].clone()  # of the terms after -J_(j-1)
    for episode in range(after.shape[1] - 2, -1, -1):
        later = after[:, episode + 1]
        goes_on = (1 - decay) ** 2 * after[:, episode] + decay**2 * later
        after[:, episode] = torch.where(later.isnan(), after[:, episode], goes_on)
    return after + variances[:, :-1]


def episode_advantages(
    values: torch.Tensor,
    group_size: int,
    *,
    decay: float = 0.0,
    factor: float | torch.Tensor = 1.0,
    exists: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return every episode's advantage: its progress minus the group's mean progress at the same episode.

    Args:
        values (`torch.Tensor` of shape (B, E + 1)): J_0 to J_n of each trace, NaN after its last. If the outcome of
            a row is unscorable, its known values still count.
        group_size (`int`): completions of a prompt, G; B is a multiple of it.
        decay (`float`, *optional*, defaults to `0.0`): as for [`progress_to_go`].
        factor (`torch.Tensor` of shape (B, E), *optional*, defaults to `1.0`): what [`precision_weights`] returned.
        exists (`torch.Tensor` of shape (B, E), bool, *optional*): which episodes exist. An episode that exists but
            whose progress is unknown is excluded from the baseline. By default, the episodes with known progress.

    Returns:
        `torch.Tensor` of shape (B, E): in units of J, NaN where there is no episode or its progress is unknown.
    """
    return factor * _relative(progress_to_go(progress_of(values), decay), group_size, exists)


def anytime_advantages(values: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return the advantage of every segment between budgets, after AnytimeReasoner's BRPO (arXiv 2505.13438).

    Segment s of S lies between budget s - 1 and budget s. Its return is the mass of what success at its own and every
    later budget pays, each budget 1/S: R_s = sum over s' >= s of J_s' / S. Its baseline mixes what the trace had
    reached before, J of the s - 1 earlier budgets weighted by 2^t and paid for the remaining mass, with the group's
    mean of R_s: ((s - 1) own + (S - s + 1) group) / S.

    Args:
        values (`torch.Tensor` of shape (B, S)): J at each budget; the outcome where the trace had ended by then.
        group_size (`int`): completions of a prompt, G.

    Returns:
        `torch.Tensor` of shape (B, S): in units of J; NaN throughout a row that has NaN.

    The released code trains its answer policy apart, on the forced answers; here only the trace itself is trained.
    """
    num_budgets = values.shape[1]
    remaining = torch.arange(num_budgets, 0, -1, dtype=values.dtype, device=values.device) / num_budgets
    returns = values.flip(1).cumsum(1).flip(1) / num_budgets
    known = values.isfinite().all(dim=1, keepdim=True).expand_as(values)
    returns = returns.masked_fill(~known, torch.nan)
    group = returns.view(-1, group_size, num_budgets).nanmean(1).repeat_interleave(group_size, 0)
    weight = 2.0 ** torch.arange(num_budgets, dtype=values.dtype, device=values.device)
    earlier = torch.zeros_like(values)
    earlier[:, 1:] = (values * weight).cumsum(1)[:, :-1] / weight.cumsum(0)[:-1]
    count = torch.arange(num_budgets, dtype=values.dtype, device=values.device)
    baseline = (count * earlier * remaining + (num_budgets - count) * group) / num_budgets
    return returns - baseline


def progress_divisor(
    advantages: torch.Tensor, scale: str, outcome_divisor: torch.Tensor, weight: float = 1.0
) -> torch.Tensor:
    """Return the divisor of the advantages of each completion's episodes or budgets.

    Args:
        advantages (`torch.Tensor` of shape (B, E)): of progress, times gold's weight; NaN where there are none.
        scale (`str`): `outcome` for the divisor of the outcome's advantages, `batch` for their own root mean square
            over the batch, `none` for 1.
        outcome_divisor (`torch.Tensor` of shape (B,)): what [`~.advantages.outcome_divisor`] returned.
        weight (`float`, *optional*, defaults to `1.0`): gold's weight in the total reward.

    Returns:
        `torch.Tensor` of shape (B,). For `batch` it is at least |weight| / sqrt(n) with n entries, the root mean
            square if a single entry is |weight| and the others 0, so that a batch without progress does not train on
            rounding errors.
    """
    if scale == "outcome":
        return outcome_divisor
    if scale == "none":
        return torch.ones_like(outcome_divisor)
    number = (~advantages.isnan()).sum().clamp(min=1)
    root_mean_square = (advantages.square().nansum() / number).sqrt()
    return (root_mean_square.clamp(min=abs(weight) / number.sqrt()) + EPSILON).expand_as(outcome_divisor)


def length_penalised(rewards: torch.Tensor, lengths: torch.Tensor, group_size: int, weight: float) -> torch.Tensor:
    """Return rewards that fall with length among the right answers of a group (arXiv 2502.04463, eq. 4 and 5).

    Args:
        rewards (`torch.Tensor` of shape (B,)): outcomes, 1 for a right answer.
        lengths (`torch.Tensor` of shape (B,)): tokens of the completions.
        group_size (`int`): completions of a prompt, G.
        weight (`float`): 0 to 1; the share of the reward that length can take.

    Returns:
        `torch.Tensor` of shape (B,): r (1 - weight * sigmoid((length - mean) / deviation)), mean and standard
        deviation over the group's right answers; a wrong answer keeps its reward.
    """
    lengths = lengths.to(rewards.dtype)
    right = rewards >= 1.0
    known = lengths.masked_fill(~right, torch.nan).view(-1, group_size)
    mean = known.nanmean(1, keepdim=True)
    deviation = (known - mean).square().nanmean(1, keepdim=True).sqrt()
    relative = ((lengths.view(-1, group_size) - mean) / (deviation + EPSILON)).reshape(-1)
    return torch.where(right, rewards * (1 - weight * torch.sigmoid(relative)), rewards)


def spread(per_episode: torch.Tensor, ends: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """Give every token the number of its episode.

    Args:
        per_episode (`torch.Tensor` of shape (B, E)): one number an episode.
        ends (`Sequence` of length B): the token position after each episode of a row, increasing.
        width (`int`): T.

    Returns:
        `torch.Tensor` of shape (B, T): 0 after a row's last episode.
    """
    tokens = torch.zeros(len(ends), width, dtype=per_episode.dtype, device=per_episode.device)
    for row, row_ends in enumerate(ends):
        start = 0
        for episode, end in enumerate(row_ends):
            tokens[row, start:end] = per_episode[row, episode]
            start = end
    return tokens


def _relative(progress: torch.Tensor, group_size: int, exists: torch.Tensor | None) -> torch.Tensor:
    """Subtract the group's mean progress at each episode; NaN stays NaN.

    An ended trace has progress 0; a trace with unknown progress is left out.
    """
    filled = progress.nan_to_num(0.0).view(-1, group_size, progress.shape[1])
    mean = filled.mean(1, keepdim=True)
    if exists is not None:
        counted = (~(exists & progress.isnan())).view_as(filled).sum(1, keepdim=True)
        mean = mean * (group_size / counted.clamp(min=1))  # times 1.0 where all is known
    return (filled - mean).view_as(progress).masked_fill(progress.isnan(), torch.nan)
