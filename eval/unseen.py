"""Bound a mean when all problems of a sample agree. Pure functions of numbers.

A bootstrap resamples the observed problems. If none of 24 problems is solved, the mean of every resample is 0, and the
interval has zero width. But the population may contain problems of a kind that is not in the sample: with a share q of
them, a sample of n has none with probability (1 - q)^n. The bound uses the largest q at which that probability is
still (1 - confidence) / 2, and assigns the least or the greatest possible value to those problems. For 0 of n right it
is the exact interval of Clopper and Pearson (1934), about 3.7 / n at 95 % (the "rule of three" of Hanley and
Lippman-Hand, "If nothing goes wrong, is everything all right?", 1983, is its one-sided form). Over several
distributions with shares q_d, the probability is the product of (1 - q_d)^n_d.
"""

import math
from collections.abc import Sequence

import numpy as np

MOST_OTHERS = 4  # problems that differ from the commonest value, in a sample that is called uniform
DIGITS = 9  # to which values are equal


def is_uniform(values: np.ndarray) -> bool:
    """Return whether more than half of the values, and all but [`MOST_OTHERS`] at most, are the same."""
    _, counts_U = np.unique(np.round(values, DIGITS), return_counts=True)
    same = counts_U.max()
    return bool(2 * same > len(values) and len(values) - same <= MOST_OTHERS)


def unseen_shifts(
    means: Sequence[float], sizes: Sequence[float], bounds: tuple[float, float], confidence: float
) -> tuple[float, float]:
    """Return how much lower and how much higher the sum of means may be, given unseen problems.

    Args:
        means (`Sequence[float]` of length S): mean of each stratum's sample.
        sizes (`Sequence[float]` of length S): number of problems in it.
        bounds (`tuple[float, float]`): least and greatest value that a problem can have.
        confidence (`float`): coverage of the interval.
    """
    means_S, sizes_S = np.asarray(means, dtype=float), np.asarray(sizes, dtype=float)
    down, up = (_largest_shift(reach_S, sizes_S, confidence) for reach_S in (means_S - bounds[0], bounds[1] - means_S))
    return down, up


def _largest_shift(reach: np.ndarray, sizes: np.ndarray, confidence: float) -> float:
    """Maximize sum(reach * q) over shares q with sum(sizes * log(1 - q)) >= log((1 - confidence) / 2).

    At the maximum 1 - q = min(1, rate * sizes / reach), so the rate is found by bisection.
    """
    reach, sizes = reach[reach > 1e-12], sizes[reach > 1e-12]
    if not len(reach):
        return 0.0
    limit = math.log((1 - confidence) / 2)

    def seen(log_rate: float) -> np.ndarray:
        """Return log(1 - q) at a rate."""
        return np.minimum(0.0, log_rate + np.log(sizes / reach))

    high = float(np.log(reach / sizes).max())
    low = float(np.log(reach / sizes).min()) + limit / min(1.0, float(sizes.min()))
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sizes @ seen(middle)) < limit else (low, middle)
    return float(reach @ -np.expm1(seen(high)))
