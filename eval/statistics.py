"""The statistics of an evaluation: pass@k, maj@k, and bootstrap intervals. Pure functions of numbers.

Definitions that hold everywhere in this package:

- The accuracy of a *problem* is the mean over its scored completions; of a *distribution*, the mean over its problems;
  of a *mixture*, the mean over its distributions, each with equal weight.
- An interval is the percentile bootstrap over problems. Completions of one problem are not independent, so they stay
  together; a mixture is fixed by design, so problems are redrawn within their distribution.
- Where the problems of a distribution agree, all of them or all but four, a bootstrap redraws too little: the interval
  is then at least as wide as the problems that the sample lacks may make it (`unseen.py`). So it is never a point.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from math import comb, exp, lgamma, log, log1p
from typing import NamedTuple, TypeVar

import numpy as np

from .unseen import is_uniform, unseen_shifts

CHUNK = 500  # resamples drawn at once: bounds the memory at 500 indices a problem
LARGEST_COUNTED = 1000  # completions: the juries of more are too many for a float

Numbers = Sequence[float] | np.ndarray
Bounds = tuple[float, float]  # least and greatest value of a problem
Problem = TypeVar("Problem", bound=Hashable)


class Interval(NamedTuple):
    """An estimate and its bootstrap confidence interval.

    Attributes:
        value (`float`): the estimate.
        low (`float`): lower end of the interval.
        high (`float`): upper end of the interval.
    """

    value: float
    low: float
    high: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k completions is right, drawn without replacement from n of which c are right.

    The unbiased estimator `1 - C(n - c, k) / C(n, k)` of Chen et al., "Evaluating Large Language Models Trained on
    Code" (2021), in exact integers.

    Args:
        n (`int`): number of scored completions of the problem.
        c (`int`): number of right ones among them.
        k (`int`): number of tries.

    Raises:
        ValueError: unless `0 <= c <= n` and `1 <= k <= n`.
    """
    _check_k(n, k)
    if not 0 <= c <= n:
        raise ValueError(f"c must be between 0 and n={n}, got {c}")
    return 1 - comb(n - c, k) / comb(n, k)


def majority_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """Expected correctness of the majority vote over k of the n completions, drawn without replacement; exact.

    Every completion votes for its answer; one without an answer abstains. The answer with the most votes wins, and the
    vote is as correct as that answer: the share of its n completions that are right (0 or 1 with a consistent
    verifier). Answers with equally many votes share the credit. If all k abstain, the vote is as correct as the
    abstaining completions are on average. So maj@1 is always the accuracy.

    The expectation sums over the winner's number of votes j: for each j, the ways of drawing k completions in which no
    answer has more than j votes are counted answer by answer, by the number drawn and the number of answers with j.

    Args:
        answers (`Sequence[Hashable | None]` of length n): the completions' answers; equal ones are the same vote.
        correct (`Sequence[bool]` of length n): whether each completion is right.
        k (`int`): number of completions that vote.

    Raises:
        ValueError: if the lengths differ, or unless `1 <= k <= n`.
    """
    if len(answers) != len(correct):
        raise ValueError(f"{len(answers)} answers but {len(correct)} values of `correct`")
    _check_k(len(answers), k)
    votes, right = Counter(answers), Counter[Hashable | None]()
    for answer, is_right in zip(answers, correct, strict=True):
        right[answer] += bool(is_right)
    abstaining, abstaining_right = votes.pop(None, 0), right.pop(None, 0)
    share = k / (len(answers) + 1) if len(answers) > LARGEST_COUNTED else None

    gained = _ways(abstaining, k, share) * abstaining_right / abstaining if abstaining else 0.0
    for top in range(1, min(k, max(votes.values(), default=0)) + 1):
        ways_KT = np.zeros((k + 1, k // top + 1))  # completions drawn, answers that have `top` votes
        ways_KT[: abstaining + 1, 0] = [_ways(abstaining, i, share) for i in range(min(abstaining, k) + 1)]
        credit_KT = np.zeros_like(ways_KT)  # the same ways, each times the summed correctness of the answers on top
        for answer, count in votes.items():
            next_ways_KT, next_credit_KT = np.zeros_like(ways_KT), np.zeros_like(ways_KT)
            for i in range(min(count, top) + 1):
                tied, rows = int(i == top), slice(i, None)
                source = (slice(0, k + 1 - i), slice(0, ways_KT.shape[1] - tied))
                credit = credit_KT[source] + tied * right[answer] / count * ways_KT[source]
                ways = _ways(count, i, share)
                next_ways_KT[rows, tied:] += ways * ways_KT[source]
                next_credit_KT[rows, tied:] += ways * credit
            ways_KT, credit_KT = next_ways_KT, next_credit_KT
        gained += float((credit_KT[k, 1:] / np.arange(1, credit_KT.shape[1])).sum())
    return min(gained / _ways(len(answers), k, share), 1.0)


def _ways(n: int, k: int, share: float | None) -> float:
    """Ways of drawing k of n; with a share, the chance of as many where each is drawn by that chance, a small number.

    All juries of K of N keep their proportions: each has the same factor, share^K (1 - share)^(N - K).
    """
    if share is None or k > n:
        return comb(n, k)
    logarithm = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
    return exp(logarithm + k * log(share) + (n - k) * log1p(-share))


def mixture_mean(values: Mapping[tuple[str, str], float]) -> float | None:
    """Mean over distributions of the mean over their problems; `None` without values.

    Args:
        values (`Mapping[tuple, float]`): one value a problem, which is its distribution and its key.
    """
    strata: dict[str, list[float]] = defaultdict(list)
    for (distribution, _), value in values.items():
        strata[distribution].append(value)
    return float(np.mean([np.mean(stratum) for stratum in strata.values()])) if strata else None


def bootstrap_mean(
    values: Numbers,
    problems: Sequence[Hashable],
    distributions: Sequence[Hashable] | None = None,
    *,
    bounds: Bounds = (0.0, 1.0),
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean over the mixture with its interval; see the head of this file for both definitions.

    Args:
        values (`Sequence[float]` of length N): one value a completion (or a problem).
        problems (`Sequence[Hashable]` of length N): the problem that each value belongs to.
        distributions (`Sequence[Hashable]` of length N, *optional*): the distribution that each value belongs to; one
            for all by default. The same problem in two distributions counts as two.
        bounds (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`): least and greatest value that a problem
            can have; values beyond them widen them. Used where the problems of a distribution agree.
        confidence (`float`, *optional*, defaults to `0.95`): coverage of the interval.
        num_resamples (`int`, *optional*, defaults to `10_000`): number of resamples.
        seed (`int`, *optional*, defaults to `0`): seed of the resampling.

    Raises:
        ValueError: if there are no values, a value is not finite, or the lengths differ.
    """
    distributions = [None] * len(values) if distributions is None else distributions
    if not len(values) == len(problems) == len(distributions):
        raise ValueError(
            f"{len(values)} values, {len(problems)} problems and {len(distributions)} distributions: lengths differ"
        )
    groups: dict[tuple[Hashable, Hashable], list[float]] = defaultdict(list)
    for value, problem, distribution in zip(values, problems, distributions, strict=True):
        groups[distribution, problem].append(value)
    strata: dict[Hashable, list[float]] = defaultdict(list)
    for (distribution, _), members in groups.items():
        strata[distribution].append(float(np.mean(members)))
    return _stratified_bootstrap(strata, bounds, confidence, num_resamples, seed)


def paired_bootstrap_difference(
    before: Mapping[Problem, float],
    after: Mapping[Problem, float],
    distributions: Mapping[Problem, Hashable] | None = None,
    *,
    bounds: Bounds = (-1.0, 1.0),
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of `after - before` over the mixture, paired by problem, with its interval.

    Args:
        before (`Mapping[Hashable, float]`): the accuracy of each problem before.
        after (`Mapping[Hashable, float]`): the accuracy of the same problems after.
        distributions (`Mapping[Hashable, Hashable]`, *optional*): the distribution of each problem; one by default.
        bounds (`tuple[float, float]`, *optional*, defaults to `(-1.0, 1.0)`): least and greatest difference that a
            problem can have, as for [`bootstrap_mean`].
        confidence (`float`, *optional*, defaults to `0.95`): coverage of the interval.
        num_resamples (`int`, *optional*, defaults to `10_000`): number of resamples.
        seed (`int`, *optional*, defaults to `0`): seed of the resampling.

    Raises:
        ValueError: if the two sides do not hold the same problems, there is none, or a value is not finite.
    """
    unpaired = before.keys() ^ after.keys()
    if unpaired:
        example = sorted(unpaired, key=str)[0]
        raise ValueError(f"{len(unpaired)} problems are on one side only, the first {example!r}: pair the others only")
    strata: dict[Hashable, list[float]] = defaultdict(list)
    for problem in before:  # in the order of `before`, so that equal input gives equal intervals
        strata[distributions[problem] if distributions else None].append(after[problem] - before[problem])
    return _stratified_bootstrap(strata, bounds, confidence, num_resamples, seed)


def _stratified_bootstrap(
    strata: Mapping[Hashable, Sequence[float]], bounds: Bounds, confidence: float, num_resamples: int, seed: int
) -> Interval:
    """Percentile bootstrap of the mean over strata of the mean over their problems."""
    if not strata:
        raise ValueError("there are no values: nothing was scored")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    rng = np.random.default_rng(seed)
    resampled = np.zeros(num_resamples)
    samples = []
    for name, stratum in strata.items():
        values = np.asarray(stratum, dtype=float)
        if not np.isfinite(values).all():
            raise ValueError(f"a value of {name!r} is NaN or infinite: leave unscorable completions out")
        samples.append(values)
        for start in range(0, num_resamples, CHUNK):
            size = min(CHUNK, num_resamples - start)
            drawn = rng.integers(len(values), size=(size, len(values)))
            resampled[start : start + size] += values[drawn].mean(axis=1)
    low, high = np.quantile(resampled / len(strata), [(1 - confidence) / 2, (1 + confidence) / 2])
    value = float(np.mean([values.mean() for values in samples]))
    if uniform := [values for values in samples if is_uniform(values)]:
        reach = min(bounds[0], *map(np.min, samples)), max(bounds[1], *map(np.max, samples))
        down, up = unseen_shifts([each.mean() for each in uniform], list(map(len, uniform)), reach, confidence)
        low, high = min(low, value - down / len(samples)), max(high, value + up / len(samples))
    return Interval(value, min(float(low), value), max(float(high), value))


def _check_k(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the number of scored completions, {n}, got {k}")
