"""Statistics of preference pairs: accuracy with its interval, rank correlations. Pure functions of numbers.

A pair is right where the chosen response scores higher, and half right where both score alike. The accuracy of pairs
is the mean over the *pairs*, as is usual for reward models (over problems elsewhere in this package). The pairs of a
prompt are not independent, so the bootstrap redraws prompts, each with all its pairs. If all
prompts agree, or all but four, the interval is widened to allow for prompts that are not in the sample (`unseen.py`).
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from .statistics import Bounds, Interval, Numbers
from .unseen import is_uniform, unseen_shifts

DRAWS = 1_000_000  # clusters drawn at once: bounds the memory


def correctness(margins: Numbers) -> np.ndarray:
    """Return 1 for each margin above 0, ½ for a tie, 0 below, NaN for NaN; shape (N,)."""
    margins_N = np.asarray(margins, dtype=float)
    return np.where(np.isnan(margins_N), np.nan, (np.sign(margins_N) + 1) / 2)


def clustered_mean(
    values: Numbers,
    clusters: Sequence[Hashable],
    weights: Numbers | None = None,
    *,
    bounds: Bounds = (0.0, 1.0),
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of values, with the percentile bootstrap interval in which clusters are redrawn whole.

    Args:
        values (`Sequence[float]` of length N): such as the correctness of pairs.
        clusters (`Sequence[Hashable]` of length N): such as their prompts.
        weights (`Sequence[float]` of length N, *optional*): positive weights of the values; equal ones by default.
        bounds (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`): least and greatest possible value;
            observed values beyond them extend them. Used if the clusters agree.
        confidence (`float`, *optional*, defaults to `0.95`): coverage of the interval.
        num_resamples (`int`, *optional*, defaults to `10_000`): number of resamples.
        seed (`int`, *optional*, defaults to `0`): seed of the resampling.

    Raises:
        ValueError: without values, for one that is not finite, or lengths that differ.
    """
    values_N = np.asarray(values, dtype=float)
    weights_N = np.ones(len(values_N)) if weights is None else np.asarray(weights, dtype=float)
    if not len(values_N) == len(clusters) == len(weights_N):
        raise ValueError(f"{len(values_N)} values, {len(clusters)} clusters and {len(weights_N)} weights")
    if not len(values_N):
        raise ValueError("there are no values: nothing was scored")
    if not (np.isfinite(values_N).all() and np.isfinite(weights_N).all() and (weights_N > 0).all()):
        raise ValueError("values and weights must be finite, and weights above 0: leave out what has no score")
    numbers: dict[Hashable, int] = {}
    cluster_N = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    weight_C = np.bincount(cluster_N, weights=weights_N)
    sum_C = np.bincount(cluster_N, weights=weights_N * values_N)

    rng, means = np.random.default_rng(seed), np.empty(num_resamples)
    chunk = max(1, DRAWS // len(numbers))
    for start in range(0, num_resamples, chunk):
        drawn = rng.integers(len(numbers), size=(min(chunk, num_resamples - start), len(numbers)))
        means[start : start + chunk] = sum_C[drawn].sum(axis=1) / weight_C[drawn].sum(axis=1)
    low, high = map(float, np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2]))
    value = float(sum_C.sum() / weight_C.sum())
    if is_uniform(sum_C / weight_C):
        size = float(weight_C.sum() ** 2 / np.square(weight_C).sum())  # Kish's effective number of clusters
        reach = min(bounds[0], values_N.min()), max(bounds[1], values_N.max())
        down, up = unseen_shifts([value], [size], reach, confidence)
        low, high = min(low, value - down), max(high, value + up)
    return Interval(value, min(low, value), max(high, value))


def ranks(values: Sequence[float]) -> np.ndarray:
    """Return the ranks of values from 1, shape (N,); equal values share the mean of their ranks."""
    _, places_N, counts_U = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts_U) - (counts_U - 1) / 2)[places_N]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's correlation of two lists of N finite values; `None` where one is constant."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values cannot be correlated")
    if not len(first) or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def correlation_within(
    first: Sequence[float], second: Sequence[float], groups: Sequence[Hashable]
) -> tuple[float | None, int]:
    """Return the mean over groups of Spearman's correlation within each, and the number of groups that have one.

    With two members a group, it is the share of groups that order both lists alike less the share that order them
    in opposite ways. Groups in which one list is constant have no correlation and are left out.

    Args:
        first (`Sequence[float]` of length N): such as scores.
        second (`Sequence[float]` of length N): such as lengths.
        groups (`Sequence[Hashable]` of length N): such as prompts.
    """
    members: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for one, other, group in zip(first, second, groups, strict=True):
        members[group].append((one, other))
    correlations = [rank_correlation(*zip(*pairs, strict=True)) for pairs in members.values()]
    found = [correlation for correlation in correlations if correlation is not None]
    return (float(np.mean(found)) if found else None), len(found)
