"""Best-of-n: what is gained by drawing n responses of a policy and keeping the one that a reward model likes best?

The *proxy* is the reward model that chooses, the *gold* score what is wanted: a verifier's verdict, people's ratings,
a larger reward model. Where the gold falls while the proxy still rises, the proxy is over-optimised (Gao et al.,
"Scaling Laws for Reward Model Overoptimization", 2022).

With k responses of a prompt, n are drawn without replacement, and the expectation over all C(k, n) draws is taken
exactly; it is an unbiased estimate of what n fresh responses would give, whatever k. Responses that the proxy scores
alike share the choice. If the prompts agree, the intervals assume that gold scores span at least 0 to 1. Pure
functions of numbers.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from .statistics import Bounds, Interval, Numbers, bootstrap_mean


def selection_probabilities(proxy: Numbers, n: int) -> np.ndarray:
    """Return, for each of k responses, the chance that it is the proxy's best of n drawn without replacement.

    With l responses scored lower than one, and t as high as it (itself included), that chance is
    `(C(l + t, n) - C(l, n)) / (t C(k, n))`.

    Args:
        proxy (`Sequence[float]` of length k): the proxy's scores; only their order counts.
        n (`int`): number of responses drawn, from 1 to k.

    Returns:
        `np.ndarray` of shape (k,): chances that sum to 1.

    Raises:
        ValueError: for a score that is not finite, or unless `1 <= n <= k`.
    """
    scores_K = np.asarray(proxy, dtype=float)
    if scores_K.ndim != 1 or not np.isfinite(scores_K).all():
        raise ValueError("the proxy's scores of a prompt must be a list of finite numbers")
    k = len(scores_K)
    if not 1 <= n <= k:
        raise ValueError(f"n must be between 1 and the number of responses, {k}, got {n}")
    ranked_K = np.sort(scores_K)
    lower_K = np.searchsorted(ranked_K, scores_K, side="left").tolist()
    not_higher_K = np.searchsorted(ranked_K, scores_K, side="right").tolist()
    draws = math.comb(k, n)
    return np.array(
        [
            (math.comb(top, n) - math.comb(low, n)) / ((top - low) * draws)
            for low, top in zip(lower_K, not_higher_K, strict=True)
        ]
    )


def best_of_n(proxy: Numbers, gold: Numbers, n: int) -> float:
    """Return the expected gold score of the proxy's best of n among the k responses of one prompt.

    For instance proxy 1, 2, 2 and gold 0, 1, 4 with n = 2: of the three draws one takes the second response, one the
    third, and one either, so (1 + 4 + 2.5) / 3 = 2.5. With `gold` the proxy's own scores, it is their expected
    maximum.

    Args:
        proxy (`Sequence[float]` of length k): the scores that choose.
        gold (`Sequence[float]` of length k): the scores that count, of the same responses.
        n (`int`): number of responses drawn, from 1 to k.

    Raises:
        ValueError: for lengths that differ, a score that is not finite, or unless `1 <= n <= k`.
    """
    if len(proxy) != len(gold):
        raise ValueError(f"{len(proxy)} scores of the proxy for {len(gold)} gold scores")
    gold_K = np.asarray(gold, dtype=float)
    if not np.isfinite(gold_K).all():
        raise ValueError("the gold scores of a prompt must be finite numbers")
    return float(selection_probabilities(proxy, n) @ gold_K)


def best_of_n_kl(n: int) -> float:
    """Return `log n - (n - 1) / n`: the KL divergence, in nats, of best-of-n from the policy it draws from.

    Exact where no two responses are equal or scored alike, else an upper bound (Beirami et al., "Theoretical
    guarantees on the best-of-n alignment policy", 2024).

    Raises:
        ValueError: if n is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_curve(
    proxy: Sequence[Sequence[float]],
    gold: Sequence[Sequence[float]],
    distributions: Sequence[Hashable] | None = None,
    *,
    n_values: Sequence[int] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Gold and proxy of the proxy's best of n, for every n, with bootstrap intervals over prompts.

    A response without a finite proxy or gold score is left out of its prompt's k. The row of n is over the prompts
    that have at least n responses then; their number is in it, and `gain` is against a random response of the *same*
    prompts, so that it does not move where only the prompts change.

    Args:
        proxy (`Sequence` of P lists): each prompt's scores of the proxy; NaN for what it could not score.
        gold (`Sequence` of P lists): the gold scores of the same responses; NaN where there is none.
        distributions (`Sequence[Hashable]` of length P, *optional*): where each prompt comes from; the mixture gives
            every distribution equal weight. One for all by default.
        n_values (`Sequence[int]`, *optional*): the n's; by default the powers of two up to the largest k, and that k.
        confidence (`float`, *optional*, defaults to `0.95`): coverage of the intervals.
        num_resamples (`int`, *optional*, defaults to `10_000`): number of resamples.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap, the same for all n.

    Returns:
        `list[dict]`: rows `n`, `kl` (nats), `gold` with `ci_low` and `ci_high`, `proxy`, `oracle` (gold of the best
        of n by the gold itself, the most that any proxy can reach), `gain` (`value`, `low`, `high`) and
        `num_prompts`.

    Raises:
        ValueError: for lengths that differ, an n below 1 or beyond every k, or if no prompt has a scored response.
    """
    distributions = [None] * len(proxy) if distributions is None else list(distributions)
    prompts = _scored_prompts(proxy, gold, distributions)
    most = max((len(scores) for scores, _, _ in prompts), default=0)
    if most == 0:
        raise ValueError("no prompt has a response with both a proxy and a gold score")
    n_values = _default_n(most) if n_values is None else sorted(set(n_values))
    outside = [n for n in n_values if not 1 <= n <= most]
    if outside:
        raise ValueError(f"n must be between 1 and the largest number of scored responses, {most}, got {outside[0]}")
    return [_row(n, [p for p in prompts if len(p[0]) >= n], confidence, num_resamples, seed) for n in n_values]


Prompt = tuple[np.ndarray, np.ndarray, Hashable]


def _scored_prompts(
    proxy: Sequence[Sequence[float]], gold: Sequence[Sequence[float]], distributions: Sequence[Hashable]
) -> list[Prompt]:
    """Keep, of every prompt, the responses that have both scores."""
    if not len(proxy) == len(gold) == len(distributions):
        raise ValueError(
            f"{len(proxy)} prompts with a proxy, {len(gold)} with a gold score and {len(distributions)} distributions"
        )
    prompts = []
    for number, (first, second, distribution) in enumerate(zip(proxy, gold, distributions, strict=True), start=1):
        proxy_K, gold_K = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
        if proxy_K.shape != gold_K.shape or proxy_K.ndim != 1:
            raise ValueError(f"prompt {number}: {len(proxy_K)} scores of the proxy for {len(gold_K)} gold scores")
        both_K = np.isfinite(proxy_K) & np.isfinite(gold_K)
        prompts.append((proxy_K[both_K], gold_K[both_K], distribution))
    return prompts


def _default_n(most: int) -> list[int]:
    return sorted({2**i for i in range(most.bit_length())} | {most})


def _row(n: int, prompts: Sequence[Prompt], confidence: float, num_resamples: int, seed: int) -> dict[str, Any]:
    distributions = [distribution for *_, distribution in prompts]

    scores = np.concatenate([gold_K for _, gold_K, _ in prompts])
    least, most = min(0.0, float(scores.min())), max(1.0, float(scores.max()))  # the known range of a gold score

    def mean(values: Sequence[float], resamples: int = num_resamples, bounds: Bounds = (least, most)) -> Interval:
        options: dict[str, Any] = {"confidence": confidence, "num_resamples": resamples, "seed": seed}
        return bootstrap_mean(values, range(len(values)), distributions, bounds=bounds, **options)

    found = [best_of_n(proxy_K, gold_K, n) for proxy_K, gold_K, _ in prompts]
    chosen = mean(found)
    gains = [best - float(gold_K.mean()) for best, (_, gold_K, _) in zip(found, prompts, strict=True)]
    # With n = 1 every response is equally likely to be chosen: the gain is 0 by definition, not by observation.
    gain = Interval(0.0, 0.0, 0.0) if n == 1 else mean(gains, bounds=(least - most, most - least))
    return {
        "n": n,
        "kl": best_of_n_kl(n),
        "gold": chosen.value,
        "ci_low": chosen.low,
        "ci_high": chosen.high,
        "proxy": mean([best_of_n(proxy_K, proxy_K, n) for proxy_K, _, _ in prompts], 1).value,
        "oracle": mean([best_of_n(gold_K, gold_K, n) for _, gold_K, _ in prompts], 1).value,
        "gain": gain._asdict(),
        "num_prompts": len(prompts),
    }
