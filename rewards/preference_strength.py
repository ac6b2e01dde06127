"""Preference strength: how far an ensemble of reward models holds the answers of a pair apart, and what follows.

With d_im the margin that model m gives pair i (score of `chosen` less that of `rejected`), the strength of the pair is
the mean of its d_im, and their population deviation says how much the models disagree (Secrets of RLHF II, arXiv
2401.06080, section 2.2). Pairs of low or negative strength are likely to be labelled wrongly.

Every treatment of a pair is a target t, the probability that `chosen` is better, and a margin m of the logit
z = r_chosen - r_rejected - m, which binary cross-entropy compares with t. Swapping a pair is t -> 1 - t with m -> -m:
a label that is turned keeps its margin here, which is what "the margin changes sign after a flip" means.

Deviations from the paper: its models vote on pairs that they were trained on, including wrong labels that they have
memorized; with [`cross_fitting_folds`], each model votes on pairs that it has not seen. Posterior labels
([`posterior`]), which need no threshold, are not from the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

MIN_VARIANCE = 1e-5  # of the median variance: floor of the variances whose logarithms are compared
LARGEST_PRIOR = 1e6  # prior degrees of freedom at which every pair has the same variance
VOTE_MORE = (
    "vote with at least 2 models: `num_models` of `metatune strength` (a finished run resumes with a larger number)"
)


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
    votes: np.ndarray | None = None,
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
        votes (`np.ndarray` of shape (N, M), *optional*): the margins by M models, for `posterior_labels`; NaN where a
            model has no vote.
        flip (`float`, *optional*): share of the pairs, the weakest, whose label is turned, 0 to 1.
        label_smoothing (`float`, *optional*, defaults to `0.0`): the other side's share of every label, below 0.5.
        soft_labels (`float`, *optional*): the same where the strength is negative only.
        adaptive_margin (`float`, *optional*, defaults to `0.0`): the margin is this multiple of the strength.
        posterior_labels (`bool`, *optional*, defaults to `False`): the target is the [`posterior`] probability that
            the margin is positive.

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
        if votes is None or len(votes) != len(strength_N):
            raise ValueError(f"posterior_labels needs the votes of each of the {len(strength_N)} pairs")
        return PairTargets(posterior(votes), adaptive_margin * strength_N)
    smoothing_N = np.full(len(strength_N), label_smoothing)
    if soft_labels is not None:
        smoothing_N = np.where(strength_N < 0, np.maximum(soft_labels, label_smoothing), smoothing_N)
    target_N = 1.0 - smoothing_N
    if flip:
        weakest = np.argsort(strength_N, kind="stable")[: round(flip * len(strength_N))]
        target_N[weakest] = 1.0 - target_N[weakest]
    return PairTargets(target_N, adaptive_margin * strength_N)


def posterior(votes: np.ndarray) -> np.ndarray:
    """Return for every pair the posterior probability that its true margin, the expected vote, is positive.

    The mean of a pair's M votes has the standard error s / sqrt(M), but s of two or three votes is itself mostly
    noise. Empirical Bayes therefore pools the pairs in two places:

    - The variance s^2 of a pair is averaged with the prior variance s0^2 of all pairs, weighted by their degrees of
      freedom: s~^2 = (d0 s0^2 + (M - 1) s^2) / (d0 + M - 1). The moments of log s^2 give s0^2 and d0 (the moderated t
      of limma: Smyth, Statistical Applications in Genetics and Molecular Biology 3(1), 2004, section 6).
    - The true margins have the prior N(0, tau^2), where tau^2 is the mean square of the strengths minus the mean of
      their squared standard errors. The posterior mean of a pair is then w times its strength, with
      w = tau^2 / (tau^2 + s~^2 / M), and its variance w s~^2 / M (Efron and Morris, JASA 68, 1973).

    The target is the distribution function of Student's t with d0 + M - 1 degrees of freedom at
    sqrt(w) strength / (s~ / sqrt(M)). With votes of pure noise tau is about 0 and every target about 0.5. The prior is
    centered at 0, so swapping `chosen` and `rejected` turns t into 1 - t.

    The votes cannot reveal an error that all models share, such as a wrong label in all of their training data:
    targets are probabilities that the mean vote of many more models of the same kind would be positive.

    Args:
        votes (`np.ndarray` of shape (N, M)): margins by M models; NaN where a model has no vote.

    Raises:
        ValueError: if a pair has fewer than two votes, a vote is infinite, or the votes of every pair are equal.
    """
    strength_N, _ = preference_strength(votes)
    votes_NM = np.asarray(votes, dtype=float)
    number_N = np.isfinite(votes_NM).sum(axis=1)
    single = np.flatnonzero(number_N < 2)
    if len(single):
        raise ValueError(
            f"posterior_labels: pair {single[0] + 1} has one vote ({len(single)} such pairs), so its standard error "
            f"is unknown: {VOTE_MORE}"
        )
    variance_N = np.nanvar(votes_NM, axis=1, ddof=1)
    if not variance_N.any():
        raise ValueError(
            "posterior_labels: the votes of every pair are equal, as from copies of one model: " + VOTE_MORE
        )
    variance_N, freedom_N = _moderated(variance_N, number_N - 1)
    error_N = variance_N / number_N
    signal = max(0.0, float(np.mean(strength_N**2 - error_N)))  # tau^2
    z_N = strength_N * np.sqrt(signal / (signal + error_N) / error_N)
    return _student_cdf(z_N, freedom_N)


def _moderated(variance: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the variances of N pairs, each averaged with their prior, and the degrees of freedom of the average."""
    half_N = torch.as_tensor(freedom, dtype=torch.float64) / 2
    floored_N = np.maximum(variance, MIN_VARIANCE * (np.median(variance) or variance.max()))
    log_N = torch.as_tensor(floored_N).log() - torch.digamma(half_N) + half_N.log()
    excess = float(log_N.var(correction=min(1, len(log_N) - 1)) - torch.polygamma(1, half_N).mean())
    prior = LARGEST_PRIOR  # d0: the variances differ by chance only, and their pooled value is the prior
    prior_variance = float(np.average(variance, weights=freedom))
    if excess > 0:
        half = _inverse_trigamma(excess)
        prior = 2 * half.item()
        prior_variance = float((log_N.mean() + torch.digamma(half) - half.log()).exp())
    return (prior * prior_variance + freedom * variance) / (prior + freedom), prior + freedom


def _inverse_trigamma(value: float) -> torch.Tensor:
    """Return x with trigamma(x) = value > 0, at most half of `LARGEST_PRIOR`."""
    low, high = (torch.tensor(bound, dtype=torch.float64) for bound in (1e-3, LARGEST_PRIOR / 2))
    for _ in range(100):
        middle = (low * high).sqrt()
        low, high = (middle, high) if torch.polygamma(1, middle) > value else (low, middle)
    return high


def _student_cdf(t: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Return Student's distribution function, within 0.01, by Wallace's normal approximation.

    D. L. Wallace, "Bounds on normal approximations to Student's and the chi-square distributions", Annals of
    Mathematical Statistics 30, 1959.
    """
    z_N = np.sign(t) * (8 * freedom + 1) / (8 * freedom + 3) * np.sqrt(freedom * np.log1p(t**2 / freedom))
    return torch.special.ndtr(torch.as_tensor(z_N)).numpy()


def stack_votes(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Return the lists of N pairs' votes as an array of shape (N, M), NaN where a list is shorter or has `None`.

    Raises:
        ValueError: for a row that is not a list of numbers.
    """
    lists = [[np.nan if vote is None else vote for vote in row] if isinstance(row, list) else row for row in rows]
    for number, row in enumerate(lists, start=1):
        if not isinstance(row, list) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in row):
            raise ValueError(f"the votes of pair {number} must be a list of numbers, one per model, not {row!r}")
    votes_NM = np.full((len(lists), max(map(len, lists), default=0)), np.nan)
    for votes_M, row in zip(votes_NM, lists, strict=True):
        votes_M[: len(row)] = row
    return votes_NM


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
