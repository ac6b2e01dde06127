"""Preference strength: how far an ensemble of reward models holds the answers of a pair apart, and what follows.

With d_im the margin that model m gives pair i (score of `chosen` less that of `rejected`), the strength of the pair is
the mean of its d_im, and their population deviation says how much the models disagree (Secrets of RLHF II, arXiv
2401.06080, section 2.2). Pairs of low or negative strength are likely to be labelled wrongly.

Every treatment of a pair is a target t, the probability that `chosen` is better, and a margin m of the logit
z = r_chosen - r_rejected - m, which binary cross-entropy compares with t. Swapping a pair is t -> 1 - t with m -> -m:
a label that is turned keeps its margin here, which is what "the margin changes sign after a flip" means.

Where this deviates from the paper: its models vote on pairs that they were trained on, wrong labels learnt by heart
included; [`cross_fitting_folds`] lets every model vote on pairs that it has not seen. Posterior labels,
which need no threshold, are not the paper's.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class PairTargets:
    """What the loss takes each pair for.

    Args:
        target (`np.ndarray` of shape (N,)): probability that `chosen` is better, 0 to 1.
        margin (`np.ndarray` of shape (N,)): by how much its score should lead, in units of the score.
    """

    target: np.ndarray
    margin: np.ndarray


def preference_strength(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and population standard deviation of every pair's margins.

    Args:
        votes (`np.ndarray` of shape (N, M)): margins by M models; NaN where a model has no vote.

    Raises:
        ValueError: for a pair without any vote, and for an infinite one.
    """
    votes_NM = np.asarray(votes, dtype=float)
    if votes_NM.ndim != 2:
        raise ValueError(f"votes have a row a pair and a column a model, got shape {votes_NM.shape}")
    infinite = np.argwhere(np.isinf(votes_NM))
    if len(infinite):
        pair, model = infinite[0] + 1
        raise ValueError(f"the vote of model {model} on pair {pair} is infinite: its training has diverged")
    without = np.flatnonzero(np.isnan(votes_NM).all(axis=1))
    if len(without):
        raise ValueError(f"pair {without[0] + 1} has no vote ({len(without)} in all): score every pair at least once")
    return np.nanmean(votes_NM, axis=1), np.nanstd(votes_NM, axis=1)


def pair_targets(
    strength: np.ndarray,
    std: np.ndarray | None = None,
    *,
    flip: float | None = None,
    label_smoothing: float = 0.0,
    soft_labels: float | None = None,
    adaptive_margin: float = 0.0,
    posterior_labels: bool = False,
) -> PairTargets:
    """Return target and margin of every pair.

    Args:
        strength (`np.ndarray` of shape (N,)): mean margins.
        std (`np.ndarray` of shape (N,), *optional*): their deviations, for `posterior_labels`.
        flip (`float`, *optional*): share of the pairs, the weakest, whose label is turned, 0 to 1.
        label_smoothing (`float`, *optional*, defaults to `0.0`): the other side's share of every label, below 0.5.
        soft_labels (`float`, *optional*): the same where the strength is negative only.
        adaptive_margin (`float`, *optional*, defaults to `0.0`): the margin is this multiple of the strength.
        posterior_labels (`bool`, *optional*, defaults to `False`): the target is Phi(strength / std), the probability
            that the strength is positive.

    Raises:
        ValueError: for a number out of range or missing, or `posterior_labels` beside what it replaces.
    """
    strength_N = _finite("strength", strength)
    for name, value, below in (("flip", flip, 1.0), ("label_smoothing", label_smoothing, 0.5)):
        if value is not None and not 0 <= value < below:
            raise ValueError(f"{name} must be at least 0 and below {below:g}, got {value}")
    if soft_labels is not None and not 0 <= soft_labels < 0.5:
        raise ValueError(f"soft_labels must be at least 0 and below 0.5, got {soft_labels}")
    if adaptive_margin < 0:
        raise ValueError(f"adaptive_margin must not be negative, got {adaptive_margin}")
    if posterior_labels and (flip or soft_labels or label_smoothing):
        raise ValueError("posterior_labels replaces flip, soft_labels and label_smoothing: remove them")
    if posterior_labels:
        if std is None:
            raise ValueError("posterior_labels needs the deviation of the votes")
        std_N = _finite("std", std)
        if std_N.shape != strength_N.shape or (std_N < 0).any():
            raise ValueError(f"std must be at least 0 for each of the {len(strength_N)} pairs")
        return PairTargets(_posterior(strength_N, std_N), adaptive_margin * strength_N)
    smoothing_N = np.full(len(strength_N), label_smoothing)
    if soft_labels is not None:
        smoothing_N = np.where(strength_N < 0, np.maximum(soft_labels, label_smoothing), smoothing_N)
    target_N = 1.0 - smoothing_N
    if flip:
        weakest = np.argsort(strength_N, kind="stable")[: round(flip * len(strength_N))]
        target_N[weakest] = 1.0 - target_N[weakest]
    return PairTargets(target_N, adaptive_margin * strength_N)


def _posterior(strength: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return Phi(strength / std); without deviation its limit, 0, 1/2 or 1."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z_N = strength / std
    z_N = np.where(strength == 0, 0.0, z_N)
    normal = NormalDist()
    return np.array([normal.cdf(z) if np.isfinite(z) else float(z > 0) for z in z_N])


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    """Return the numbers of the pairs as floats; raises `ValueError` for one that is NaN or infinite."""
    values_N = np.asarray(values, dtype=float)
    bad = np.flatnonzero(~np.isfinite(values_N))
    if len(bad):
        raise ValueError(f"{name} of pair {bad[0] + 1} is {values_N[bad[0]]} ({len(bad)} such pairs): remove them")
    return values_N


def cross_fitting_folds(groups: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Split pairs into folds at random, those of one group together.

    Groups come in random order, each to the fold with the fewest pairs, so that folds differ by at most one group.

    Args:
        groups (`np.ndarray` of shape (N,)): number of the group of each pair, for example of its prompt.
        num_folds (`int`): K, at least 1.
        seed (`int`): of the order.

    Returns:
        `np.ndarray` of shape (N,): fold of each pair, from 0 to K - 1; none is empty.

    Raises:
        ValueError: if there are fewer groups than folds.
    """
    distinct_G, group_N, size_G = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if not 1 <= num_folds <= len(distinct_G):
        raise ValueError(f"num_folds is {num_folds}; it must be from 1 to {len(distinct_G)}, the number of groups")
    fold_G, pairs_K = np.zeros(len(distinct_G), dtype=int), np.zeros(num_folds, dtype=int)
    for group in np.random.default_rng(seed).permutation(len(distinct_G)):
        fold_G[group] = np.argmin(pairs_K)
        pairs_K[fold_G[group]] += size_G[group]
    return fold_G[group_N]


def detection_auc(strength: np.ndarray, flipped: np.ndarray) -> float:
    """Return the chance that a flipped pair is weaker than a clean one, ties counted half: 0.5 tells nothing, 1 all.

    Args:
        strength (`np.ndarray` of shape (N,)): mean margins.
        flipped (`np.ndarray` of bool, shape (N,)): whether the label of the pair is known to be wrong.

    Raises:
        ValueError: unless there is a pair of each kind.
    """
    strength_N, flipped_N = _finite("strength", strength), np.asarray(flipped, dtype=bool)
    if strength_N.shape != flipped_N.shape or flipped_N.all() or not flipped_N.any():
        raise ValueError(
            f"an AUC needs flipped and clean pairs, got {flipped_N.sum()} flipped of {flipped_N.size} labels for "
            f"{strength_N.size} strengths"
        )
    clean, weak = np.sort(strength_N[~flipped_N]), strength_N[flipped_N]
    at_most, below = np.searchsorted(clean, weak, side="right"), np.searchsorted(clean, weak, side="left")
    return float(1 - (at_most + below).mean() / (2 * len(clean)))
