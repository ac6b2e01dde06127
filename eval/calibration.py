"""Calibration of a reward model's margins as chances. Pure functions of numbers.

A reward model that was trained on pairs says by the margin m = r(chosen) - r(rejected) that the chosen response is
the better one with probability sigmoid(m). Its *confidence* in the order that it gives is sigmoid(|m|), between ½ and
1, and it is calibrated where, of the pairs with confidence c, a share of c is ordered as the labels say. Dividing all
margins by a *temperature* changes the confidence and no order (Guo et al., "On Calibration of Modern Neural
Networks", 2017).
"""

import math

import numpy as np

from .pair_statistics import correctness
from .statistics import Numbers


def confidence_bins(margins: Numbers, num_bins: int = 10, temperature: float = 1.0) -> list[np.ndarray]:
    """Sort pairs by the model's confidence into bins of equal width from ½ to 1.

    Args:
        margins (`Sequence[float]` of length N): finite margins.
        num_bins (`int`, *optional*, defaults to 10): number of bins.
        temperature (`float`, *optional*, defaults to 1.0): what the margins are divided by.

    Returns:
        `list[np.ndarray]`: the pairs' numbers in each bin, some of them empty.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    places_N = np.minimum((2 * (_confidence(margins, temperature) - 0.5) * num_bins).astype(int), num_bins - 1)
    return [np.flatnonzero(places_N == place) for place in range(num_bins)]


def reliability(margins: Numbers, num_bins: int = 10, temperature: float = 1.0) -> list[dict[str, float]]:
    """Return `low`, `high`, `num_pairs`, mean `confidence` and `accuracy` of every bin that holds a pair."""
    margins_N = np.asarray(margins, dtype=float)
    confidence_N, correct_N = _confidence(margins_N, temperature), correctness(margins_N)
    return [
        {
            "low": 0.5 + place / (2 * num_bins),
            "high": 0.5 + (place + 1) / (2 * num_bins),
            "num_pairs": len(members),
            "confidence": float(confidence_N[members].mean()),
            "accuracy": float(correct_N[members].mean()),
        }
        for place, members in enumerate(confidence_bins(margins_N, num_bins, temperature))
        if len(members)
    ]


def expected_calibration_error(margins: Numbers, num_bins: int = 10, temperature: float = 1.0) -> float:
    """Return the mean over pairs of |accuracy - confidence| of their bin; see [`reliability`]."""
    bins = reliability(margins, num_bins, temperature)
    if not bins:
        raise ValueError("there are no margins: nothing was scored")
    return sum(row["num_pairs"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / len(margins)


def pair_loss(margins: Numbers, temperature: float = 1.0) -> float:
    """Return the mean of -log sigmoid(m / temperature), in nats: what reward models are trained on."""
    return float(np.logaddexp(0, -np.asarray(margins, dtype=float) / temperature).mean())


def fit_temperature(margins: Numbers) -> float:
    """Return the temperature above 0 at which the margins have the least [`pair_loss`].

    Returns `math.inf` where no temperature beats a coin (the mean margin is 0 or below), and 0.0 where no pair is
    wrong and one is right: the colder, the better.

    Raises:
        ValueError: without margins, or for one that is not finite.
    """
    margins_N = np.asarray(margins, dtype=float)
    if not len(margins_N) or not np.isfinite(margins_N).all():
        raise ValueError("a temperature is fitted to finite margins, at least one of them")
    scale = float(np.abs(margins_N).max())
    if scale == 0 or margins_N.mean() <= 0:
        return math.inf
    if margins_N.min() >= 0:
        return 0.0
    margins_N = margins_N / scale

    def gains(log_beta: float) -> bool:
        """Whether a larger inverse temperature lowers the loss, which is convex in it."""
        return float((margins_N * np.exp(-np.logaddexp(0, math.exp(log_beta) * margins_N))).sum()) > 0

    low, high = -50.0, 50.0  # of the logarithm of the inverse temperature: bisection to the last digit
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if gains(middle) else (low, middle)
    return scale * math.exp(-(low + high) / 2)


def _confidence(margins: Numbers, temperature: float) -> np.ndarray:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return 1 / (1 + np.exp(-np.abs(np.asarray(margins, dtype=float)) / temperature))
