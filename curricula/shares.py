"""How arms share the prompts of a draw: scores to probabilities, and probabilities to whole prompts. Pure."""

import math

import numpy as np


def largest_remainder(quotas: np.ndarray, num_prompts: int, rng: np.random.Generator) -> np.ndarray:
    """Allocate `num_prompts` prompts to arms by largest remainder; ties are broken by `rng`.

    Prompt by prompt, the arm that is furthest below its quota gets the next one. For quotas >= 0 that is the textbook
    rule (each arm its whole part, the rest by largest fractional part), and it also serves the quotas below 0 that
    carried rounding errors produce. As quotas sum to `num_prompts`, some arm is always below its quota, so no arm ends
    a whole prompt above it: every leftover `quota - count` is above -1, hence below N.

    Args:
        quotas (`np.ndarray` of shape (N,)): how many prompts each arm is due; fractions, sum `num_prompts`.
        num_prompts (`int`): prompts to allocate.
        rng (`np.random.Generator`): breaks ties.

    Returns:
        `np.ndarray`: counts >= 0, int64, shape (N,), sum `num_prompts`.
    """
    if not abs(quotas.sum() - num_prompts) < 1e-6:
        raise ValueError(f"quotas {quotas.tolist()} sum to {quotas.sum()}, not to num_prompts = {num_prompts}")
    # Arms are visited in a random order, and `argmax` takes the first of equals.
    order = rng.permutation(len(quotas))
    due = quotas[order]
    counts = np.zeros(len(quotas), dtype=np.int64)
    for _ in range(num_prompts):
        # Rounded, so that ties are not decided by the last bit of a float.
        counts[np.argmax(np.round(due - counts, 9))] += 1
    return counts[np.argsort(order)]


def softmax(scores: np.ndarray, temperature: float, floor: float = 0.0) -> np.ndarray:
    """Turn scores of shape (N,) into probabilities: `floor + (1 - N * floor) * softmax(scores / temperature)`.

    Temperature 0 is greedy: the arms with the best score (to 1e-12) share equally.
    """
    gaps = scores - scores.max()
    weights = (gaps > -1e-12).astype(np.float64) if temperature == 0 else np.exp(gaps / temperature)
    return floor + (1 - len(scores) * floor) * weights / weights.sum()


def require_softmax_options(num_arms: int, temperature: float, floor: float) -> None:
    """Check the two options of `softmax`."""
    require(0 <= temperature < math.inf, f"temperature must be 0 (greedy) or a positive number, got {temperature}")
    require(floor >= 0, f"floor must be a probability, got {floor}")
    require(
        num_arms * floor <= 1,
        f"floor {floor} times {num_arms} arms is more than 1; the largest possible floor is {1 / num_arms:.4g}",
    )


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds (a comparison with NaN does not)."""
    if not condition:
        raise ValueError(message)
