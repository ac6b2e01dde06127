"""What an evaluation found: its completions, its summary, its files, and the comparison of two.

How numbers are pooled, and what an interval means, is said at the head of `statistics.py`. A completion that the
verifier could not score (`correct` is `None`) is counted as unscorable and left out; it is never a 0.
"""

import dataclasses
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from .files import write_atomically
from .statistics import bootstrap_mean, majority_at_k, mixture_mean, paired_bootstrap_difference, pass_at_k

logger = logging.getLogger(__name__)

Problem = tuple[str, str]  # distribution, key

SCHEMA = pyarrow.schema(
    {
        "distribution": pyarrow.string(),
        "key": pyarrow.string(),
        "sample": pyarrow.int64(),
        "prompt": pyarrow.string(),
        "reference": pyarrow.string(),
        "completion": pyarrow.string(),
        "extracted": pyarrow.string(),
        "tokens": pyarrow.int64(),
        "truncated": pyarrow.bool_(),
        "correct": pyarrow.bool_(),
    }
)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One scored completion.

    Args:
        distribution (`str`): where the problem comes from.
        key (`str`): the problem's identity within its distribution.
        sample (`int`): which of the problem's samples this is, from 0.
        prompt (`str`): text of the last turn before the completion.
        reference (`str`): the reference answer.
        completion (`str`): text of the completion.
        extracted (`str`, *optional*): the answer read from the text, in the form that votes; `None` abstains.
        tokens (`int`): length in tokens, the ending token included.
        truncated (`bool`): whether the limit on tokens cut it off.
        correct (`bool`, *optional*): the verdict; `None` if the verifier could not tell.
    """

    distribution: str
    key: str
    sample: int
    prompt: str
    reference: str
    completion: str
    extracted: str | None
    tokens: int
    truncated: bool
    correct: bool | None


@dataclass
class Evaluation:
    """The completions of one model on some problems.

    Args:
        completions (`list[Completion]`): every completion, unscorable ones included.
        settings (`dict`, *optional*): how they were drawn, JSON values; kept in `summary.json`.
        seconds (`float`, *optional*, defaults to `0.0`): wall time of generation and scoring.
    """

    completions: list[Completion]
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def distributions(self) -> list[str]:
        """Names of the distributions, in the order of their first completion."""
        return list(dict.fromkeys(completion.distribution for completion in self.completions))

    @property
    def generated_tokens(self) -> int:
        """Number of tokens of all completions."""
        return sum(completion.tokens for completion in self.completions)

    def problem_accuracies(self) -> dict[Problem, float]:
        """Return the share of right completions among the scored ones, by (distribution, key)."""
        return {problem: float(np.mean(_verdicts(group))) for problem, group in self._scored().items()}

    def summary(self, k_values: Sequence[int] | None = None, *, confidence: float = 0.95, seed: int = 0) -> dict:
        """Sum up: `accuracy` with `ci_low` and `ci_high`, `pass@k`, `maj@k`, lengths and counts.

        The keys of `distributions` hold the same for each distribution; the numbers above them are the mixture's,
        every distribution with equal weight, but for lengths and counts, which are over all completions. A number
        that nothing supports, such as the accuracy of a distribution without a scored completion, is `None`, and such
        a distribution is not part of the mixture. `pass@k` and `maj@k` are over the problems with at least k scored
        completions.

        Args:
            k_values (`Sequence[int]`, *optional*): the k's; powers of two up to the samples of a problem by default.
            confidence (`float`, *optional*, defaults to `0.95`): coverage of the interval.
            seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
        """
        scored = self._scored()
        if k_values is None:
            most = max(map(len, scored.values()), default=0)
            k_values = [2**i for i in range(most.bit_length())]
        unscored = [name for name in self.distributions if not any(problem[0] == name for problem in scored)]
        if unscored:
            logger.warning("no completion of %s could be scored: left out of the mixture", ", ".join(unscored))
        parts = {}
        for name in self.distributions:
            members = [completion for completion in self.completions if completion.distribution == name]
            groups = {problem: group for problem, group in scored.items() if problem[0] == name}
            parts[name] = _summary(members, groups, k_values, confidence, seed)
        return {
            **_summary(self.completions, scored, k_values, confidence, seed),
            "seconds": round(self.seconds, 3),
            "confidence": confidence,
            "distributions": parts,
            "settings": self.settings,
        }

    def save(self, folder: str | Path, k_values: Sequence[int] | None = None) -> dict:
        """Write `completions.parquet` and `summary.json` into `folder`, each complete or not at all.

        Returns:
            `dict`: the summary.
        """
        folder = Path(folder)
        rows = [dataclasses.asdict(completion) for completion in self.completions]
        table = pyarrow.Table.from_pylist(rows, schema=SCHEMA)
        write_atomically(folder / "completions.parquet", lambda path: pyarrow.parquet.write_table(table, path))
        summary = self.summary(k_values)
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / "summary.json", lambda path: path.write_text(text, encoding="utf-8"))
        return summary

    @classmethod
    def load(cls, folder: str | Path) -> "Evaluation":
        """Read what [`Evaluation.save`] wrote.

        Raises:
            ValueError: if a file is missing or is not what `save` writes; the message names it.
        """
        folder = Path(folder)
        try:
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            rows = pyarrow.parquet.read_table(folder / "completions.parquet", schema=SCHEMA).to_pylist()
            return cls([Completion(**row) for row in rows], summary["settings"], summary["seconds"])
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename or folder}: no such file; `metatune eval` writes it") from error
        except (ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
            raise ValueError(f"{folder}: not a saved evaluation ({error}); run `metatune eval` again") from error

    def _scored(self) -> dict[Problem, list[Completion]]:
        groups: dict[Problem, list[Completion]] = defaultdict(list)
        for completion in self.completions:
            if completion.correct is not None:
                groups[completion.distribution, completion.key].append(completion)
        return dict(groups)


def compare(before: Evaluation, after: Evaluation, *, confidence: float = 0.95, seed: int = 0) -> dict:
    """What changed between two evaluations of the same problems, paired by problem.

    Problems that only one side scored cannot be paired: they are left out of every number, and counted. The
    accuracies are of the paired problems, so that `difference` is exactly what lies between them.

    Args:
        before ([`Evaluation`]): the first.
        after ([`Evaluation`]): the second.
        confidence (`float`, *optional*, defaults to `0.95`): coverage of the interval.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.

    Returns:
        `dict`: `accuracy_before`, `accuracy_after`, `difference`, `ci_low` and `ci_high` (of the difference),
        `num_problems`, `num_unpaired`, `generated_tokens` and `seconds` (of both evaluations together), and
        `distributions` with the same by name. The mixture gives every distribution equal weight. A distribution's
        `seconds` are its share by generated tokens, because distributions are generated in common batches.

    Raises:
        ValueError: if no problem was scored on both sides.
    """
    accuracy_before, accuracy_after = before.problem_accuracies(), after.problem_accuracies()
    paired = [problem for problem in accuracy_before if problem in accuracy_after]
    if not paired:
        raise ValueError("no problem was scored both before and after: evaluate both on the same items")
    asked = {(c.distribution, c.key) for evaluation in (before, after) for c in evaluation.completions}
    tokens: dict[str, int] = defaultdict(int)
    for completion in (*before.completions, *after.completions):
        tokens[completion.distribution] += completion.tokens
    all_tokens, seconds = before.generated_tokens + after.generated_tokens, before.seconds + after.seconds

    def over(problems: list[Problem], num_asked: int, generated_tokens: int) -> dict:
        names = {problem: problem[0] for problem in problems}
        sides = (accuracy_before, accuracy_after)
        first, second = ({problem: side[problem] for problem in problems} for side in sides)
        interval = paired_bootstrap_difference(first, second, names, confidence=confidence, seed=seed)
        return {
            "accuracy_before": mixture_mean(first),
            "accuracy_after": mixture_mean(second),
            "difference": interval.value,
            "ci_low": interval.low,
            "ci_high": interval.high,
            "num_problems": len(problems),
            "num_unpaired": num_asked - len(problems),
            "generated_tokens": generated_tokens,
            "seconds": round(seconds * generated_tokens / max(all_tokens, 1), 3),
        }

    parts = {}
    for name in dict.fromkeys(problem[0] for problem in paired):
        members = [problem for problem in paired if problem[0] == name]
        parts[name] = over(members, sum(problem[0] == name for problem in asked), tokens[name])
    total = over(paired, len(asked), all_tokens)
    return {**total, "seconds": round(seconds, 3), "confidence": confidence, "distributions": parts}


def _summary(
    completions: Sequence[Completion],
    scored: dict[Problem, list[Completion]],
    k_values: Sequence[int],
    confidence: float,
    seed: int,
) -> dict:
    rows = [(float(bool(c.correct)), problem[1], problem[0]) for problem, group in scored.items() for c in group]
    interval = bootstrap_mean(*zip(*rows, strict=True), confidence=confidence, seed=seed) if rows else (None,) * 3
    summary = dict(zip(("accuracy", "ci_low", "ci_high"), interval, strict=True))
    for k in k_values:
        enough = {problem: group for problem, group in scored.items() if len(group) >= k}
        passes = {p: pass_at_k(len(group), sum(_verdicts(group)), k) for p, group in enough.items()}
        votes = {p: majority_at_k([c.extracted for c in group], _verdicts(group), k) for p, group in enough.items()}
        summary |= {f"pass@{k}": mixture_mean(passes), f"maj@{k}": mixture_mean(votes)}
    return summary | {
        "mean_tokens": float(np.mean([c.tokens for c in completions])) if completions else None,
        "truncation_rate": float(np.mean([c.truncated for c in completions])) if completions else None,
        "num_problems": len({(c.distribution, c.key) for c in completions}),
        "num_completions": len(completions),
        "num_unscorable": sum(c.correct is None for c in completions),
        "generated_tokens": sum(c.tokens for c in completions),
    }


def _verdicts(group: Sequence[Completion]) -> list[bool]:
    return [bool(completion.correct) for completion in group]
