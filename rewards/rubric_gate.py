"""Whether a new rubric may take the place of the old: both judge the same held-out completions, some of them again.

The paper takes every rubric that the meta judge writes (MPO, arXiv 2504.20157); one that is worse then stays. Here it
must rank at least as well as the old:

- where there is gold, by *rank accuracy*: over all pairs of completions of one prompt whose gold differs, how often
  the better one gets the higher total, a tie counting half. All pairs of a prompt weigh 1 together. That is blind to
  what a policy does in all of its completions alike, and exploitation ends there. So it can be averaged with *drift
  accuracy*, the same over pairs of a completion from the run's beginning and one of now, of any prompts: does the
  judge say that the policy has become better where gold says that it has become worse? The gate itself does without
  (`docs/log.md`: it refuses no better, at twice the price); the running check, which asks just that, uses it;
- else by *reliability*: the share of the variance of totals within a prompt that lies between completions and not
  between repeated judgements of one, the intraclass correlation ICC(1) (Shrout and Fleiss, Psychological Bulletin 86,
  1979). A rubric that gives everything the same total tells nothing and has none, so the *spread*, the standard
  deviation between completions of a prompt, must be kept too: noise and saturation are refused by the same test.

Both rubrics are tried on the same completions in the same minute, so that a policy that has moved is no excuse.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MIN_SPREAD = 0.5  # of the old rubric's, that a new one must keep


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
    """What the gate decided, by which measure, in a sentence, with the qualities of both rubrics."""

    accepted: bool
    measure: str
    reason: str
    old: RubricQuality
    new: RubricQuality

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    groups = defaultdict(list)
    for row in range(num_early, len(totals)):
        if np.isfinite(totals[row]).any():
            groups[prompts[row]].append(row)
    gold_N = np.array([np.nan if gold is None else gold for gold in golds], dtype=float)
    means_N = np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in totals])
    shares = [pair_accuracies(means_N[rows], gold_N[rows]) for rows in groups.values()]
    shares = [pairs for pairs in shares if len(pairs)]
    reliability, spread = intraclass_correlation([totals[rows] for rows in groups.values()])
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
    between = within = 0.0
    free_between = free_within = 0
    judgements = completions = 0
    for totals in groups:
        rows = [row[np.isfinite(row)] for row in totals]
        rows = [row for row in rows if len(row)]
        if len(rows) < 2:
            continue
        centre = np.concatenate(rows).mean()
        between += sum(len(row) * (row.mean() - centre) ** 2 for row in rows)
        within += sum(((row - row.mean()) ** 2).sum() for row in rows)
        free_between += len(rows) - 1
        free_within += sum(len(row) - 1 for row in rows)
        judgements += sum(map(len, rows))
        completions += len(rows)
    if not free_between:
        return None, None
    mean_between, repeats = between / free_between, judgements / completions
    if not free_within:
        return None, float(np.sqrt(mean_between))
    mean_within = within / free_within
    variance = max(0.0, (mean_between - mean_within) / repeats)
    total = variance + mean_within
    return (float(variance / total) if total > 0 else 0.0), float(np.sqrt(variance))


def decide(old: RubricQuality, new: RubricQuality, tolerance: float = 0.0, min_judged: float = 0.8) -> Verdict:
    """Accept a new rubric if it ranks at least as well as the old, less `tolerance`.

    Args:
        old (`RubricQuality`): of the current rubric, on the same completions.
        new (`RubricQuality`): of the candidate.
        tolerance (`float`, *optional*, defaults to 0.0): by how much it may fall behind.
        min_judged (`float`, *optional*, defaults to 0.8): share of either's judgements that must not have failed.
    """

    def verdict(accepted: bool, measure: str, reason: str) -> Verdict:
        return Verdict(accepted, measure, reason, old, new)

    for which, quality in (("it", new), ("the rubric in force", old)):
        if quality.judged < min_judged:
            failed = f"the judge could use {which} on {quality.judged:.0%} of the held-out completions only"
            return verdict(False, "judged", failed)
    accuracies = gold_accuracies(old, new)
    if accuracies is not None:
        accepted = accuracies[1] >= accuracies[0] - tolerance
        return verdict(accepted, "rank_accuracy", _compare_with_gold(old, new))
    if new.spread is None or old.spread is None:
        return verdict(False, "none", "no two held-out completions of one prompt could be compared")
    if new.spread < MIN_SPREAD * old.spread or new.spread == 0:
        return verdict(
            False, "spread", f"completions differ by {new.spread:.3f} in the total, {old.spread:.3f} before"
        )
    if old.reliability is None or new.reliability is None:
        return verdict(False, "none", "there is no gold, and nothing was judged twice: judge held-out cases again")
    accepted = new.reliability >= old.reliability - tolerance
    what = f"repeated judgements have a reliability of {new.reliability:.3f}, {old.reliability:.3f} before"
    return verdict(accepted, "reliability", what)


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
