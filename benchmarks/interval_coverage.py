"""How often do the intervals of an evaluation hold the truth, where problems agree and where they do not?

    python benchmarks/interval_coverage.py [--seeds N] [--quick]

A population of problems has a share that the model solves (accuracy), or a share that a training turned from wrong to
right and half as many the other way (difference). Samples of n problems are drawn from it; each gives an interval by
the percentile bootstrap alone, and one by `metatune.eval`, which adds what a sample of problems that agree cannot show
(`eval/unseen.py`). A seed is one sample. CPU, no model; about 4 minutes, half of one with --quick.
"""

import argparse
from collections.abc import Callable

import numpy as np
from shared import print_claims

from metatune.eval.statistics import Interval, bootstrap_mean, paired_bootstrap_difference

RESAMPLES = 1_000
SIZES = (8, 24, 100, 400)
NOMINAL = 0.95


def accuracy(rng: np.random.Generator, n: int, truth: float) -> np.ndarray:
    """Draw n problems that are right with probability `truth`."""
    return (rng.random(n) < truth).astype(float)


def difference(rng: np.random.Generator, n: int, truth: float) -> np.ndarray:
    """Draw n differences of mean `truth`: a share of twice that rises by 1, half as many fall by 1."""
    return rng.choice([1.0, -1.0, 0.0], size=n, p=[2 * truth, truth, 1 - 3 * truth])


TRUTHS = {
    accuracy: (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9, 0.99),
    difference: (0.0025, 0.01, 0.025, 0.05, 0.1, 0.25),
}


def percentile_bootstrap(values: np.ndarray, seed: int) -> Interval:
    """Return the mean with the interval of the percentile bootstrap alone."""
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - NOMINAL) / 2, (1 + NOMINAL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def ours(draw: Callable, values: np.ndarray, seed: int) -> Interval:
    """Return the mean with the interval that an evaluation prints."""
    if draw is accuracy:
        return bootstrap_mean(values, range(len(values)), num_resamples=RESAMPLES, seed=seed)
    before, after = dict.fromkeys(range(len(values)), 0.0), dict(enumerate(values))
    return paired_bootstrap_difference(before, after, num_resamples=RESAMPLES, seed=seed)


def main() -> None:
    """Print a row for each truth and size, and the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1_000)
    parser.add_argument("--quick", action="store_true", help="100 seeds")
    args = parser.parse_args()
    seeds = 100 if args.quick else args.seeds
    covered: dict[tuple, list[float]] = {}
    print("| what | n | truth | bootstrap alone: coverage | points | metatune: coverage | mean width |")
    print("|---|---|---|---|---|---|---|")
    for draw, truths in TRUTHS.items():
        for n in SIZES:
            for truth in truths:
                rng = np.random.default_rng([n, int(10_000 * truth)])
                samples = [draw(rng, n, truth) for _ in range(seeds)]
                plain = [percentile_bootstrap(values, seed) for seed, values in enumerate(samples)]
                mine = [ours(draw, values, seed) for seed, values in enumerate(samples)]
                rates = [np.mean([each.low <= truth <= each.high for each in found]) for found in (plain, mine)]
                points = [np.mean([each.low == each.high for each in found]) for found in (plain, mine)]
                width = np.mean([each.high - each.low for each in mine])
                covered[draw.__name__, n, truth] = [*rates, points[1]]
                name = draw.__name__
                print(
                    f"| {name} | {n} | {truth:g} | {rates[0]:.3f} | {points[0]:.3f} | {rates[1]:.3f} | {width:.3f} |"
                )
    rates = np.array(list(covered.values()))
    claims = [
        {"claim": "least coverage, bootstrap alone", "value": float(rates[:, 0].min()), "goal": "none", "met": None},
        {"claim": "least coverage", "value": float(rates[:, 1].min()), "goal": ">= 0.85"},
        {"claim": "mean coverage", "value": float(rates[:, 1].mean()), "goal": ">= 0.94"},
        {"claim": "share of intervals that are points", "value": float(rates[:, 2].max()), "goal": "== 0"},
    ]
    goals = (rates[:, 1].min() >= 0.85, rates[:, 1].mean() >= 0.94, not rates[:, 2].any())
    for claim, met in zip(claims[1:], goals, strict=True):
        claim["met"] = bool(met)
    print_claims("interval_coverage", [claim | {"ci": None, "seeds": seeds} for claim in claims])


if __name__ == "__main__":
    main()
