"""Whether a new rubric may take the place of the old: both judge the same held-out completions.

The paper takes every rubric that the meta judge writes (MPO, arXiv 2504.20157); one that is worse then stays. Here it
must rank at least as well as the old:

- where there is gold, by *rank accuracy*: over all pairs of completions of one prompt whose gold differs, how often
  the better one gets the higher total, a tie counting half. All pairs of a prompt weigh 1 together;
- else by *reliability*: the share of the variance of totals within a prompt that lies between completions and not
  between repeated judgements of one, the intraclass correlation ICC(1) (Shrout and Fleiss, Psychological Bulletin 86,
  1979). A rubric that gives everything the same total has none, so the *spread*, the standard deviation between
  completions of a prompt, must be kept too: noise and saturation are refused by the same test.

A few dozen judgements cannot tell rubrics apart that differ by less than about 0.1 of rank accuracy, so [`decide`]
takes chance into account, in a sequential test:

- The difference between the rubrics has a bootstrap interval over prompts (Efron and Tibshirani, An Introduction to
  the Bootstrap, 1993, chapter 13). Both rubrics are measured on the same completions, so what a prompt's difficulty
  adds to both cancels.
- A rubric is accepted if the 5 % quantile of the difference is at least minus the tolerance, and refused at once if
  the 70 % quantile is below that. In between it is measured again, on further prompts.
- After the last measurement the 12 % quantile decides: several looks at 12 % would accept more than every fifth rubric
  that is no better, and a single one at 5 % too few that are.

`judged_cases.split_for_trial` takes four completions of each prompt, spread evenly over the ranks of gold. That tells
rubrics apart as well as twice as many completions at random, and better where rubrics suit some prompts more than
others.
`tests/rewards/test_rubric_gate.py` simulates how often the rule accepts what; `docs/methods/mpo.md` has the table.

Rank accuracy is blind to what a policy does in all of its completions alike, and exploitation ends there. The running
check ([`compare`]) therefore averages it with *drift accuracy*, the same over pairs of a completion from the run's
beginning and one of now, of any prompts: does the judge say that the policy has become better where gold says that it
has become worse? The gate itself does without (`docs/log.md`: it refuses no better, at twice the price).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

ACCEPT_EARLY, ACCEPT_LAST = 0.05, 0.12  # quantiles of the difference that must be at least minus the tolerance
REFUSE = 0.7  # the quantile that must be below it for a refusal before the last measurement
RESAMPLES = 2000
ROUNDING = 1e-9
MIN_SPREAD = 0.5  # of the old rubric's, that a new one must keep
MIN_JUDGED = 0.8  # share of the judgements of a rubric that must not have failed


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
        accepted (`bool`): whether it may take the place of the old one.
        measure (`str`): what decided: `rank_accuracy`, `reliability`, `spread`, `judged`, or `none`.
        reason (`str`): the same in a sentence.
        old (`RubricQuality`): of the rubric in force.
        new (`RubricQuality`): of the new one.
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
        old (`np.ndarray` of shape (N, R)): by the rubric in force, R judgements each; NaN where the judge failed.
        new (`np.ndarray` of shape (N, S)): by the new one, S judgements each.
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
    """Return what a prompt adds to the ICC.

    These are the sums of squares between and within completions, their degrees of freedom, and the numbers of
    judgements and completions; 0 for a prompt of a single completion.
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
    """Return reliability and spread of sums of [`_sums_of_squares`], shape (..., 6); NaN where unknown."""
    between, within, free_between, free_within, judgements, completions = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_between, mean_within = between / free_between, within / free_within
        repeated = np.maximum(0.0, mean_between - np.nan_to_num(mean_within)) / (judgements / completions)
        variance = np.where(free_within > 0, repeated, mean_between)
        total = variance + mean_within
        reliability = np.where(total == 0, 0.0, variance / total)
    return reliability, np.sqrt(variance)


def decide(trial: Trial, tolerance: float = 0.0, is_last: bool = True) -> Verdict:
    """Decide about a new rubric by what it and the old one made of the same completions.

    Args:
        trial (`Trial`): all measurements so far.
        tolerance (`float`, *optional*, defaults to 0.0): by how much the new rubric may fall behind.
        is_last (`bool`, *optional*, defaults to `True`): whether no further measurement follows. An undecided rubric
            is then refused.
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
    reason += f"; with a confidence of {confidence:.0%} the difference is at least {interval[0]:+.3f}"
    return Verdict(bool(accepted), measure, reason, old, new, accepted is not None, interval)


def judge_difference(
    resampled: np.ndarray, tolerance: float, is_last: bool
) -> tuple[bool | None, tuple[float, float]]:
    """Return whether a difference is accepted (`None`: undecided), and the quantiles of it that decide."""
    low, high = (float(each) for each in np.quantile(resampled, (ACCEPT_LAST if is_last else ACCEPT_EARLY, REFUSE)))
    if low >= -tolerance - ROUNDING:
        return True, (low, high)
    return (False if is_last or high < -tolerance - ROUNDING else None), (low, high)


def resampled_means(values: np.ndarray) -> np.ndarray:
    """Return the means of bootstrap samples of P values, one per prompt; shape (`RESAMPLES`,)."""
    return _resampling_counts(len(values)) @ values / len(values)


@lru_cache(maxsize=128)
def _resampling_counts(number: int) -> np.ndarray:
    """Return how often each of P prompts is in each bootstrap sample; shape (`RESAMPLES`, P), always the same."""
    rng = np.random.default_rng(0)
    return rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES).astype(float)


def _accuracy_differences(trial: Trial) -> np.ndarray:
    """Return the new rubric's rank accuracy less the old one's, for each prompt on which both have one."""
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
    """Prefer the rubric that ranks better, without regard to chance.

    This is for the running check, which has seen before that the old rubric has become worse.

    Args:
        old (`RubricQuality`): of the current rubric, on the same completions.
        new (`RubricQuality`): of the one that may take its place.
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
    """Return what is wrong if the judge has failed too often with a rubric."""
    for which, quality in (("it", new), ("the rubric in force", old)):
        if quality.judged < MIN_JUDGED:
            return f"the judge could use {which} on {quality.judged:.0%} of the held-out completions only"
    return None


def _refused_by_spread(old: RubricQuality, new: RubricQuality) -> tuple[str, str] | None:
    """Return measure and reason if reliabilities cannot be compared, or if the new rubric has lost its spread."""
    if new.spread is None or old.spread is None:
        return "none", "no two held-out completions of one prompt could be compared"
    if new.spread < MIN_SPREAD * old.spread or new.spread == 0:
        return "spread", f"completions differ by {new.spread:.3f} in the total, {old.spread:.3f} before"
    if old.reliability is None or new.reliability is None:
        return "none", "there is no gold, and nothing was judged twice: judge held-out cases again"
    return None


def _compare_reliability(old: RubricQuality, new: RubricQuality) -> str:
    return f"repeated judgements have a reliability of {new.reliability:.3f}, {old.reliability:.3f} before"


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
