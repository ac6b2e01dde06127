"""Decide whether a new rubric replaces the old one, by judgments of the same held-out completions.

The paper accepts every rubric that the meta judge writes, even a worse one (MPO, arXiv 2504.20157). Here a new rubric
must rank at least as well as the old one:

- With gold, by *rank accuracy*: over all pairs of completions of one prompt that differ in gold, the share in which
  the better one gets the higher total. A tie counts half, and every prompt has the same weight.
- Without gold, by *reliability*: the share of the variance of totals within a prompt that lies between completions,
  not between repeated judgments of one completion. This is the intraclass correlation ICC(1) (Shrout and Fleiss,
  Psychological Bulletin 86, 1979). A rubric that gives every completion the same total has reliability 0. The
  *spread*, the standard deviation between completions of a prompt, must also be kept, so that both noisy and saturated
  rubrics are rejected.

A few dozen judgments cannot distinguish rubrics that differ by less than about 0.1 in rank accuracy, so [`decide`] is
a sequential test that takes chance into account:

- The difference between the rubrics is bootstrapped over prompts (Efron and Tibshirani, An Introduction to the
  Bootstrap, 1993, chapter 13). Both rubrics are measured on the same completions, so the difficulty of a prompt
  cancels.
- A rubric is accepted if the 5 % quantile of the difference is at least minus the tolerance, and rejected if the 70 %
  quantile is below that. Otherwise it is measured again, on other prompts.
- At the last measurement the 12 % quantile decides. Using 12 % at every measurement would accept more than one in five
  rubrics that are no better; using 5 % at the last one would accept too few better rubrics.

`judged_cases.split_for_trial` selects four completions of each prompt, spread evenly over the ranks of gold. This
distinguishes rubrics as well as twice as many random completions do, and better if rubrics fit some prompts better
than others. `tests/rewards/test_rubric_gate.py` simulates how often the rule accepts a rubric; `docs/methods/mpo.md`
has the table.

Rank accuracy cannot detect a change that all of the policy's completions share, which is how exploitation ends. The
running check ([`compare`]) therefore averages it with *drift accuracy*, the same measure over pairs of a completion
from the beginning of the run and one from now, of any prompts: does the judge score the new completions higher where
gold scores them lower? The gate does not use it, because it makes no better decisions at twice the cost
(`docs/log.md`).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

ACCEPT_EARLY, ACCEPT_LAST = 0.05, 0.12  # quantiles of the difference that must be at least minus the tolerance
REFUSE = 0.7  # quantile that must be below minus the tolerance for a rejection before the last measurement
RESAMPLES = 2000
ROUNDING = 1e-9
MIN_SPREAD = 0.5  # share of the old rubric's spread that a new one must keep
MIN_JUDGED = 0.8  # smallest share of a rubric's judgments that must succeed


@dataclass(frozen=True)
class RubricQuality:
    """What a rubric's totals on held-out completions say of it; `None` where it cannot be told.

    Args:
        rank_accuracy (`float`, *optional*): of pairs of one prompt, against gold; 0.5 is a coin.
        reliability (`float`, *optional*): ICC(1) of repeated judgements within prompts, 0 to 1.
        spread (`float`, *optional*): standard deviation between completions of a prompt.
        num_pairs (`int`): pairs that `rank_accuracy` is over.
        judged (`float`): share of the judgements that did not fail.
        drift_accuracy (`float`, *optional*): of pairs of an early completion and one of now, against gold.
    """

    rank_accuracy: float | None
    reliability: float | None
    spread: float | None
    num_pairs: int
    judged: float
    drift_accuracy: float | None = None


@dataclass(frozen=True)
class Verdict:
    """A decision about a new rubric.

    Args:
        accepted (`bool`): whether the new rubric may replace the old one.
        measure (`str`): the measure that decided: `rank_accuracy`, `reliability`, `spread`, `judged` or `none`.
        reason (`str`): the reason in a sentence.
        old (`RubricQuality`): quality of the rubric in force.
        new (`RubricQuality`): quality of the new rubric.
        decided (`bool`): `False` if further completions could change the decision.
        interval (`tuple[float, float]`, *optional*): the quantiles of the difference that decide.
    """

    accepted: bool
    measure: str
    reason: str
    old: RubricQuality
    new: RubricQuality
    decided: bool = True
    interval: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Trial:
    """The totals that two rubrics gave the same N completions.

    Args:
        old (`np.ndarray` of shape (N, R)): by the rubric in force, R judgments each; NaN where the judge failed.
        new (`np.ndarray` of shape (N, S)): by the new rubric, S judgments each.
        prompts (`Sequence[str]`): N prompts.
        golds (`Sequence[float | None]`): N gold scores.
    """

    old: np.ndarray
    new: np.ndarray
    prompts: Sequence[str]
    golds: Sequence[float | None]

    @classmethod
    def joined(cls, trials: Sequence["Trial"]) -> "Trial":
        """Return several trials as one."""
        old, new = (np.concatenate([getattr(trial, name) for trial in trials]) for name in ("old", "new"))
        prompts, golds = ([value for t in trials for value in getattr(t, name)] for name in ("prompts", "golds"))
        return cls(old, new, prompts, golds)


def rubric_quality(
    totals: np.ndarray, prompts: Sequence[str], golds: Sequence[float | None], num_early: int = 0
) -> RubricQuality:
    """Measure a rubric by its totals.

    Args:
        totals (`np.ndarray` of shape (N, R)): of N completions, each judged R times; NaN where the judge failed.
        prompts (`Sequence[str]`): N prompts; completions of one are compared.
        golds (`Sequence[float | None]`): N gold scores.
        num_early (`int`, *optional*, defaults to 0): rows at the front that are from the run's beginning. They count
            for `drift_accuracy` alone.

    Raises:
        ValueError: the numbers of rows differ, or no row or column is there.
    """
    if totals.ndim != 2 or not totals.size or not len(totals) == len(prompts) == len(golds):
        raise ValueError(f"totals of shape {totals.shape} do not go with {len(prompts)} prompts, {len(golds)} golds")
    groups = [[num_early + row for row in rows] for rows in _rows_of_prompts(prompts[num_early:])]
    gold_N = np.array([np.nan if gold is None else gold for gold in golds], dtype=float)
    means_N = _means(totals)
    shares = [pair_accuracies(means_N[rows], gold_N[rows]) for rows in groups]
    shares = [pairs for pairs in shares if len(pairs)]
    reliability, spread = intraclass_correlation([totals[rows] for rows in groups])
    return RubricQuality(
        rank_accuracy=float(np.mean([pairs.mean() for pairs in shares])) if shares else None,
        reliability=reliability,
        spread=spread,
        num_pairs=sum(map(len, shares)),
        judged=float(np.isfinite(totals).mean()),
        drift_accuracy=_drift_accuracy(means_N, gold_N, num_early),
    )


def pair_accuracies(scores: np.ndarray, golds: np.ndarray) -> np.ndarray:
    """Return 1, 0.5 (a tie) or 0 for every pair of N scores (N,) whose golds (N,) differ; shape (P,), NaN left out."""
    return _accuracies(scores, golds, *np.triu_indices(len(scores), 1))


def _drift_accuracy(scores: np.ndarray, golds: np.ndarray, num_early: int) -> float | None:
    early, late = np.meshgrid(np.arange(num_early), np.arange(num_early, len(scores)), indexing="ij")
    pairs = _accuracies(scores, golds, early.ravel(), late.ravel())
    return float(pairs.mean()) if len(pairs) else None


def _accuracies(scores: np.ndarray, golds: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    agreement = np.sign(scores[first] - scores[second]) * np.sign(golds[first] - golds[second])
    known = np.isfinite(agreement) & (golds[first] != golds[second])
    return (agreement[known] + 1) / 2


def intraclass_correlation(groups: Sequence[np.ndarray]) -> tuple[float | None, float | None]:
    """Return ICC(1) within groups, and the standard deviation of what lies between completions.

    Args:
        groups (`Sequence[np.ndarray]`): per prompt totals of shape (n, R); NaN is left out.

    Returns:
        `tuple`: reliability (`None` unless some completion has two judgements and some prompt two completions; 0 where
        nothing varies) and spread (`None` without two completions of a prompt; without repetition that of the totals).
    """
    sums = np.sum([_sums_of_squares(totals) for totals in groups], axis=0) if len(groups) else np.zeros(6)
    reliability, spread = (None if np.isnan(value) else float(value) for value in _reliability(sums))
    return reliability, spread


def _sums_of_squares(totals: np.ndarray) -> np.ndarray:
    """Return a prompt's contribution to the ICC.

    These are the sums of squares between and within completions, their degrees of freedom, and the numbers of
    judgments and completions; all 0 for a prompt with a single completion.
    """
    rows = [row[np.isfinite(row)] for row in totals]
    rows = [row for row in rows if len(row)]
    if len(rows) < 2:
        return np.zeros(6)
    center = np.concatenate(rows).mean()
    between = sum(len(row) * (row.mean() - center) ** 2 for row in rows)
    within = sum(((row - row.mean()) ** 2).sum() for row in rows)
    judgements = sum(map(len, rows))
    return np.array([between, within, len(rows) - 1, judgements - len(rows), judgements, len(rows)])


def _reliability(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return reliability and spread from sums of [`_sums_of_squares`], shape (..., 6); NaN where unknown."""
    between, within, free_between, free_within, judgements, completions = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_between, mean_within = between / free_between, within / free_within
        repeated = np.maximum(0.0, mean_between - np.nan_to_num(mean_within)) / (judgements / completions)
        variance = np.where(free_within > 0, repeated, mean_between)
        total = variance + mean_within
        reliability = np.where(total == 0, 0.0, variance / total)
    return reliability, np.sqrt(variance)


def decide(trial: Trial, tolerance: float = 0.0, is_last: bool = True) -> Verdict:
    """Decide about a new rubric by its totals and those of the old one on the same completions.

    Args:
        trial (`Trial`): all measurements so far.
        tolerance (`float`, *optional*, defaults to 0.0): by how much the new rubric may be worse.
        is_last (`bool`, *optional*, defaults to `True`): whether no further measurement follows. An undecided rubric
            is then rejected.
    """
    old, new = (rubric_quality(totals, trial.prompts, trial.golds) for totals in (trial.old, trial.new))
    if failed := _failures(old, new):
        return Verdict(False, "judged", failed, old, new)
    measure = "rank_accuracy" if any(gold is not None for gold in trial.golds) else "reliability"
    if measure == "rank_accuracy":
        differences = _accuracy_differences(trial)
        if len(differences) < 2:
            return Verdict(False, "none", "gold differs within fewer than two held-out prompts", old, new, is_last)
        resampled = resampled_means(differences)
        reason = _compare_with_gold(old, new)
    else:
        if refused := _refused_by_spread(old, new):
            return Verdict(False, *refused, old, new)
        resampled = _resampled_reliabilities(trial)
        reason = _compare_reliability(old, new)
    accepted, interval = judge_difference(resampled, tolerance, is_last)
    confidence = 1 - (ACCEPT_LAST if is_last else ACCEPT_EARLY)
    reason += f"; with {confidence:.0%} confidence, the difference is at least {interval[0]:+.3f}"
    return Verdict(bool(accepted), measure, reason, old, new, accepted is not None, interval)


def judge_difference(
    resampled: np.ndarray, tolerance: float, is_last: bool
) -> tuple[bool | None, tuple[float, float]]:
    """Return whether a difference is accepted (`None`: undecided), and the two quantiles that decide."""
    low, high = (float(each) for each in np.quantile(resampled, (ACCEPT_LAST if is_last else ACCEPT_EARLY, REFUSE)))
    if low >= -tolerance - ROUNDING:
        return True, (low, high)
    return (False if is_last or high < -tolerance - ROUNDING else None), (low, high)


def resampled_means(values: np.ndarray) -> np.ndarray:
    """Return the means of bootstrap samples of P values, one per prompt; shape (`RESAMPLES`,)."""
    return _resampling_counts(len(values)) @ values / len(values)


@lru_cache(maxsize=128)
def _resampling_counts(number: int) -> np.ndarray:
    """Return how often each of P prompts is in each bootstrap sample; shape (`RESAMPLES`, P), deterministic."""
    rng = np.random.default_rng(0)
    return rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES).astype(float)


def _accuracy_differences(trial: Trial) -> np.ndarray:
    """Return the new rubric's rank accuracy minus the old one's, for each prompt for which both are known."""
    gold_N = np.array([np.nan if gold is None else gold for gold in trial.golds], dtype=float)
    differences = []
    for rows in _rows_of_prompts(trial.prompts):
        shares = [pair_accuracies(_means(totals[rows]), gold_N[rows]) for totals in (trial.new, trial.old)]
        if all(map(len, shares)):
            differences.append(shares[0].mean() - shares[1].mean())
    return np.array(differences)


def _resampled_reliabilities(trial: Trial) -> np.ndarray:
    """Return the difference of the rubrics' reliabilities in bootstrap samples of prompts."""
    groups = _rows_of_prompts(trial.prompts)
    counts = _resampling_counts(len(groups))
    old, new = (
        _reliability(counts @ np.array([_sums_of_squares(totals[rows]) for rows in groups]))[0]
        for totals in (trial.old, trial.new)
    )
    return np.nan_to_num(new - old)


def _rows_of_prompts(prompts: Sequence[str]) -> list[list[int]]:
    groups = defaultdict(list)
    for row, prompt in enumerate(prompts):
        groups[prompt].append(row)
    return [*groups.values()]


def _means(totals: np.ndarray) -> np.ndarray:
    """Return the mean total of each of N completions, NaN where no judgement succeeded."""
    return np.array([row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan for row in totals])


def compare(old: RubricQuality, new: RubricQuality) -> Verdict:
    """Prefer the rubric that ranks better, without a test of chance.

    The running check uses this function, after it has observed that the old rubric has become worse.

    Args:
        old (`RubricQuality`): quality of the current rubric.
        new (`RubricQuality`): quality of the rubric that may replace it, on the same completions.
    """
    if failed := _failures(old, new):
        return Verdict(False, "judged", failed, old, new)
    accuracies = gold_accuracies(old, new)
    if accuracies is not None:
        return Verdict(accuracies[1] > accuracies[0], "rank_accuracy", _compare_with_gold(old, new), old, new)
    if refused := _refused_by_spread(old, new):
        return Verdict(False, *refused, old, new)
    better = (new.reliability or 0.0) > (old.reliability or 0.0)
    return Verdict(better, "reliability", _compare_reliability(old, new), old, new)


def _failures(old: RubricQuality, new: RubricQuality) -> str | None:
    """Return an error text if the judge failed too often with a rubric, else `None`."""
    for which, quality in (("it", new), ("the rubric in force", old)):
        if quality.judged < MIN_JUDGED:
            return f"the judge could use {which} on only {quality.judged:.0%} of the held-out completions"
    return None


def _refused_by_spread(old: RubricQuality, new: RubricQuality) -> tuple[str, str] | None:
    """Return measure and reason if reliabilities cannot be compared, or if the new rubric lost its spread."""
    if new.spread is None or old.spread is None:
        return "none", "no two held-out completions of one prompt could be compared"
    if new.spread < MIN_SPREAD * old.spread or new.spread == 0:
        return "spread", f"completions differ by {new.spread:.3f} in the total, {old.spread:.3f} before"
    if old.reliability is None or new.reliability is None:
        return "none", "there is no gold, and no held-out completion was judged twice"
    return None


def _compare_reliability(old: RubricQuality, new: RubricQuality) -> str:
    return f"repeated judgments have a reliability of {new.reliability:.3f}, {old.reliability:.3f} before"


def gold_accuracies(old: RubricQuality, new: RubricQuality) -> tuple[float, float] | None:
    """Return the mean of rank and drift accuracy of both, over what is known of both; `None` without gold."""
    pairs = [(getattr(old, name), getattr(new, name)) for name in ("rank_accuracy", "drift_accuracy")]
    known = [pair for pair in pairs if None not in pair]
    return tuple(np.mean(known, axis=0).tolist()) if known else None


def _compare_with_gold(old: RubricQuality, new: RubricQuality) -> str:
    said = []
    if old.rank_accuracy is not None and new.rank_accuracy is not None:
        said.append(
            f"{new.rank_accuracy:.3f} of {new.num_pairs} pairs are ordered as by gold, {old.rank_accuracy:.3f} before"
        )
    if old.drift_accuracy is not None and new.drift_accuracy is not None:
        said.append(
            f"of pairs of the run's beginning and now {new.drift_accuracy:.3f}, {old.drift_accuracy:.3f} before"
        )
    return "; ".join(said)
