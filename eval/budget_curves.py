"""Accuracy against tokens: regret, tokens at equal accuracy, and their bootstrap. Pure functions of numbers.

- The *curve of a trace* is J against the number of its tokens: the chance of a right answer if it were stopped there.
  It starts at (0, J_0), measured at the empty prefix, and its last value holds beyond its last point: a trace that has
  ended is as right as it is.
- The *normalised regret* up to a cutoff C is 1 minus the mean area under that curve from 0 to C, divided by C: the
  share of the success that an oracle, right from the first token on, would have had more. It is Definition 4.1 of Qu
  et al. (2025), with the comparator 1, over tokens in place of episodes.
- *Tokens at equal accuracy*: the fewest tokens at which a model reaches a level, read from its curve of accuracy
  against tokens spent. Two models are compared at the highest level that both reach.

The authors' notebook starts every curve at (0, 0) and shifts its points by the tokens of the answers. Here the
tokens of forced answers are no part of a trace's regret (they are the measuring device; what is *spent* counts them),
so the curve can start with what is true at 0: a model that knows the answer at once has nothing to regret.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .statistics import CHUNK, Interval, Problem
from .unseen import unseen_shifts

Curve = tuple[Sequence[float], Sequence[float]]  # tokens, and what is reached at them


def mean_success(tokens: Sequence[float], values: Sequence[float], cutoff: float) -> float:
    """Mean height of a trace's curve from 0 to `cutoff`: its area by the trapezoid rule, divided by `cutoff`.

    Args:
        tokens (`Sequence[float]` of length M): positions, strictly increasing, the first 0.
        values (`Sequence[float]` of length M): the chance of a right answer at each, from 0 to 1.
        cutoff (`float`): where the area ends; between two points the curve is a line, beyond the last it is level.

    Raises:
        ValueError: if the lengths differ, the positions do not start at 0 and increase, a value is not between 0 and
            1, or the cutoff is not positive.
    """
    x, y = np.asarray(tokens, dtype=float), np.asarray(values, dtype=float)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} positions but {len(y)} values")
    if len(x) == 0 or x[0] != 0 or (np.diff(x) <= 0).any():
        raise ValueError(f"positions must start at 0 and increase strictly, got {list(tokens)}")
    if not ((y >= 0) & (y <= 1)).all():
        raise ValueError(f"values must be between 0 and 1, got {list(values)}")
    if cutoff <= 0:
        raise ValueError(f"the cutoff must be above 0 tokens, got {cutoff}")
    inside = x < cutoff
    x, y = np.append(x[inside], cutoff), np.append(y[inside], np.interp(cutoff, x, y))
    return float(np.trapezoid(y, x) / cutoff)


def tokens_at(tokens: Sequence[float], accuracies: Sequence[float], level: float) -> float | None:
    """Fewest tokens at which a curve of accuracy against tokens reaches `level`.

    Between two neighbouring budgets the curve is a line. What comes after it was reached does not matter, so the
    accuracy may fall again; and a larger budget may cost fewer tokens, because a trace that ends by itself needs no
    suffix and no forced answer.

    Args:
        tokens (`Sequence[float]` of length M): mean tokens spent at each budget, in the order of the budgets.
        accuracies (`Sequence[float]` of length M): the accuracy at each.
        level (`float`): the accuracy to reach.

    Returns:
        `float` or `None`: the tokens; `None` if the level is never reached.

    Raises:
        ValueError: if the lengths differ or there is no point.
    """
    x, y = np.asarray(tokens, dtype=float), np.asarray(accuracies, dtype=float)
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"a curve needs as many tokens as accuracies and at least one, got {len(x)} and {len(y)}")
    reached = float(_tokens_at(x[None], y[None], np.array([level]))[0])
    return reached if np.isfinite(reached) else None


class TokenRatio(NamedTuple):
    """Tokens that two models need for the same accuracy.

    Args:
        level (`float`): the accuracy; the highest that both reach, if none was asked for.
        reference (`float`, *optional*): tokens of the reference there; `None` if it never reaches the level.
        other (`float`, *optional*): tokens of the other model there.
        ratio ([`Interval`], *optional*): `reference / other`, above 1 where the other needs fewer, with its interval;
            `None` if either never reaches the level.
        unreached (`float`): share of the resamples in which either does not, and which the interval leaves out.
    """

    level: float
    reference: float | None
    other: float | None
    ratio: Interval | None
    unreached: float


def token_ratio(
    reference: Mapping[Problem, Curve],
    other: Mapping[Problem, Curve],
    distributions: Mapping[Problem, Hashable] | None = None,
    *,
    level: float | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> TokenRatio:
    """Compare the tokens at equal accuracy of two models, with a bootstrap over problems, paired.

    A model's curve is the mean of its problems' curves within a distribution, and then over distributions. Problems
    are redrawn within their distribution, the same for both models, and each resample is read anew: without a `level`,
    at the highest accuracy that both reach in it.

    Args:
        reference (`Mapping[Hashable, tuple]`): of each problem the tokens spent and the accuracies at the model's
            budgets, M numbers each, equally many for all.
        other (`Mapping[Hashable, tuple]`): the same problems by the other model, at budgets of its own.
        distributions (`Mapping[Hashable, Hashable]`, *optional*): the distribution of each problem; one by default.
        level (`float`, *optional*): the accuracy to compare at; the highest that both reach by default.
        confidence (`float`, *optional*, defaults to `0.95`): coverage of the interval.
        num_resamples (`int`, *optional*, defaults to `10_000`): number of resamples.
        seed (`int`, *optional*, defaults to `0`): seed of the resampling.

    Raises:
        ValueError: if the two sides do not hold the same problems, or there is none.
    """
    if reference.keys() != other.keys() or not reference:
        raise ValueError("both models need curves of the same problems, at least one")
    strata: dict[Hashable, list[Problem]] = defaultdict(list)
    for problem in reference:
        strata[distributions[problem] if distributions else None].append(problem)
    sides = [
        [np.array([side[problem] for problem in members], dtype=float) for members in strata.values()]
        for side in (reference, other)
    ]  # of each model one array a distribution: (problems, 2, points)
    exact = [np.mean([stratum.mean(axis=0) for stratum in side], axis=0)[None] for side in sides]
    levels, tokens = _at_common_level(exact, level)
    of_reference, of_other = (float(t[0]) if np.isfinite(t[0]) else None for t in tokens)
    if of_reference is None or of_other is None:
        return TokenRatio(float(levels[0]), of_reference, of_other, None, 1.0)

    rng = np.random.default_rng(seed)
    resampled = []
    for start in range(0, num_resamples, CHUNK):
        size = min(CHUNK, num_resamples - start)
        drawn = [rng.integers(len(members), size=(size, len(members))) for members in strata.values()]
        means = [
            np.mean([stratum[rows].mean(axis=1) for stratum, rows in zip(side, drawn, strict=True)], axis=0)
            for side in sides
        ]
        _, tokens = _at_common_level(means, level)
        resampled.append(_ratio(*tokens))
    ratios = np.concatenate(resampled)
    reached = ratios[np.isfinite(ratios)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(reached, [tail, 1 - tail]) if len(reached) else (np.nan, np.nan)
    ratio = float(_ratio(np.array([of_reference]), np.array([of_other]))[0])
    if len(reached) and np.ptp(reached) <= 1e-9 * abs(ratio):  # the problems agree, and the bootstrap shows no spread
        sizes = [len(members) for members in strata.values()]
        unseen = unseen_shifts([0.0] * len(sizes), sizes, (0.0, 1.0), confidence)[1] / len(sizes)
        largest = [max(float(stratum[:, 0].max()) for stratum in side) for side in sides]
        low, high = _unseen_ratio((of_reference, of_other), largest, unseen)
    interval = Interval(ratio, float(low), float(high))
    return TokenRatio(float(levels[0]), of_reference, of_other, interval, 1 - len(reached) / len(ratios))


def _at_common_level(means: Sequence[np.ndarray], level: float | None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the level of each of R resamples and the tokens of both models there; `means` are (R, 2, points)."""
    best = np.minimum(*(side[:, 1].max(axis=1) for side in means))
    levels = best if level is None else np.full(len(best), level)
    return levels, [_tokens_at(side[:, 0], side[:, 1], levels) for side in means]


def _tokens_at(tokens: np.ndarray, accuracies: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """[`tokens_at`] for R curves at once, (R, points) each, and R levels; infinite where one is never reached."""
    levels = levels[:, None]
    reached = accuracies >= levels
    candidates = [np.where(reached, tokens, np.inf)]
    rises = ~reached[:, :-1] & reached[:, 1:]  # the level lies on the line to the next point
    height = np.where(rises, accuracies[:, 1:] - accuracies[:, :-1], 1.0)
    share = (levels - accuracies[:, :-1]) / height
    crossings = tokens[:, :-1] + share * (tokens[:, 1:] - tokens[:, :-1])
    candidates.append(np.where(rises, crossings, np.inf))
    return np.concatenate(candidates, axis=1).min(axis=1)


def _unseen_ratio(tokens: Sequence[float], largest: Sequence[float], unseen: float) -> tuple[float, float]:
    """Return the least and the greatest `reference / other` if a share of problems is not in the sample.

    These problems may need no tokens with one model and the largest measured number with the other.

    Args:
        tokens (`Sequence[float]`): tokens of the reference and of the other model.
        largest (`Sequence[float]`): the largest measured number of tokens of each.
        unseen (`float`): the share.
    """
    reference, other = ((1 - unseen) * number for number in tokens)
    most_reference, most_other = (unseen * number for number in largest)
    return reference / max(1.0, other + most_other), (reference + most_reference) / max(1.0, other)


def _ratio(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(reference == other, 1.0, reference / other)
    return np.where(np.isfinite(reference) & np.isfinite(other), ratios, np.nan)
