"""What an evaluation at token budgets found: its traces, its summary, its file.

Every number is a mean over the traces of a problem, then over problems, then over distributions; intervals are the
bootstrap over problems (see `statistics.py`). A cut whose answers the verifier could not score is `None`, left out of
the numbers that need it, and counted; it is never a 0.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .budget_curves import mean_success
from .files import write_atomically
from .statistics import bootstrap_mean, mixture_mean

FILE = "test_time.json"
Problem = tuple[str, str]  # distribution, key


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """What was measured at a row of cuts of one trace, M of them.

    A trace that had ended by itself counts with its own outcome and its own tokens; another was cut there and
    answered `num_answers` times.

    Args:
        success (`list[float | None]`): share of right answers; `None` if none could be scored.
        spent (`list[float]`): tokens of the trace, and where it was cut those of the suffix and the mean answer.
        answer (`list[float]`): the part of `spent` that each further forced answer costs again: suffix and mean
            answer; 0 where nothing was forced.
        majority (`dict[int, list[float | None]]`): by k, the expected correctness of the majority over k answers.
    """

    success: list[float | None]
    spent: list[float]
    answer: list[float]
    majority: dict[int, list[float | None]]


@dataclass(frozen=True, kw_only=True)
class TraceMeasurement:
    """One trace, cut everywhere that was asked for.

    Args:
        distribution (`str`): where the problem comes from.
        key (`str`): the problem's identity within its distribution.
        sample (`int`): which of the problem's traces this is, from 0.
        tokens (`int`): length of the trace, the ending token included.
        ended (`bool`): whether it ended by itself within the largest number of tokens.
        correct (`bool`, *optional*): the verdict on its own answer; `None` if the verifier could not tell.
        budgets ([`Cuts`]): at the empty prefix, then at every budget.
        extended ([`Cuts`]): at every extended budget, empty without extrapolation; a trace that would not go on
            stands with the tokens that it has.
        episode_ends (`list[int]`): the token positions where its episodes end; empty where none were asked for.
        episodes ([`Cuts`]): at the empty prefix, then at the end of every episode; the last is its own outcome.
    """

    distribution: str
    key: str
    sample: int
    tokens: int
    ended: bool
    correct: bool | None
    budgets: Cuts
    extended: Cuts
    episode_ends: list[int]
    episodes: Cuts

    @property
    def problem(self) -> Problem:
        """The problem's identity over all distributions."""
        return self.distribution, self.key


@dataclass
class BudgetEvaluation:
    """The traces of one model on some problems, measured at token budgets.

    Args:
        budgets (`list[int]`): token budgets, ascending.
        factors (`list[float]`): by how much the largest budget was extended, ascending; empty without extrapolation.
        traces (`list[TraceMeasurement]`): every trace.
        settings (`dict`, *optional*): how they were drawn, JSON values.
        seconds (`float`, *optional*, defaults to `0.0`): wall time of generation and scoring.
        forced_tokens (`int`, *optional*, defaults to `0`): tokens generated beside the traces themselves.
    """

    budgets: list[int]
    factors: list[float]
    traces: list[TraceMeasurement]
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    forced_tokens: int = 0

    @property
    def distributions(self) -> list[str]:
        """Names of the distributions, in the order of their first trace."""
        return list(dict.fromkeys(trace.distribution for trace in self.traces))

    @property
    def extended_budgets(self) -> list[int]:
        """The extended budgets in tokens."""
        return [extended_budget(self.budgets, factor) for factor in self.factors]

    def problem_means(self, value: Callable[[TraceMeasurement], float | None]) -> dict[Problem, float]:
        """Mean of a number over the traces of each problem; a problem without a scored trace is left out."""
        groups: dict[Problem, list[float]] = {}
        for trace in self.traces:
            number = value(trace)
            if number is not None:
                groups.setdefault(trace.problem, []).append(number)
        return {problem: float(np.mean(group)) for problem, group in groups.items()}

    def curves(self) -> dict[Problem, tuple[list[float], list[float]]]:
        """Tokens spent and accuracy of each problem, at the empty prefix and at every budget."""

        def column(values: Callable[[Cuts], Sequence[float | None]], at: int) -> dict[Problem, float]:
            return self.problem_means(lambda trace: _scored(values(trace.budgets), trace, at))

        columns = []
        for at in range(len(self.budgets) + 1):
            columns += [column(lambda cuts: cuts.success, at), column(lambda cuts: cuts.spent, at)]
        return {
            problem: ([column[problem] for column in columns[1::2]], [column[problem] for column in columns[::2]])
            for problem in columns[0]
            if all(problem in column for column in columns)
        }

    def summary(self, *, confidence: float = 0.95, seed: int = 0) -> dict:
        """Sum up; the keys of `distributions` hold the same for each distribution as stands above for the mixture.

        `budgets` starts with the empty prefix (`budget` 0). `regret` is normalised, up to each budget. A number that
        nothing supports is `None`.

        Args:
            confidence (`float`, *optional*, defaults to `0.95`): coverage of the intervals.
            seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.
        """
        parts = {}
        for name in self.distributions:
            members = [trace for trace in self.traces if trace.distribution == name]
            parts[name] = self._part(members, confidence, seed)
        return {
            **self._part(self.traces, confidence, seed),
            "seconds": round(self.seconds, 3),
            "forced_tokens": self.forced_tokens,
            "confidence": confidence,
            "distributions": parts,
            "settings": self.settings,
        }

    def _part(self, traces: Sequence[TraceMeasurement], confidence: float, seed: int) -> dict:
        part = BudgetEvaluation(self.budgets, self.factors, list(traces))

        def interval(value: Callable[[TraceMeasurement], float | None], name: str) -> dict[str, float | None]:
            means = part.problem_means(value)
            if not means:
                return dict.fromkeys((name, "ci_low", "ci_high"))
            names = [problem[0] for problem in means]
            found = bootstrap_mean(list(means.values()), list(means), names, confidence=confidence, seed=seed)
            return dict(zip((name, "ci_low", "ci_high"), found, strict=True))

        def row(cuts: Callable[[TraceMeasurement], Cuts], at: int) -> dict[str, Any]:
            def of(values: Callable[[Cuts], Sequence[float | None]]) -> Callable[[TraceMeasurement], float | None]:
                return lambda trace: values(cuts(trace))[min(at, len(cuts(trace).success) - 1)]

            def majority(k: int) -> float | None:
                return part.mean(of(lambda c: c.majority[k]))

            numbers = interval(of(lambda c: c.success), "accuracy") | {"spent": part.mean(of(lambda c: c.spent))}
            numbers["answer"] = part.mean(of(lambda c: c.answer))
            ks = list(cuts(traces[0]).majority) if traces else []
            return numbers | {f"maj@{k}": majority(k) for k in ks}

        def regret(cutoff: int) -> dict[str, float | None]:
            return interval(lambda trace: self.regret(trace, cutoff), "regret")

        def reached(at: int, budget: int) -> float | None:
            return part.mean(lambda trace: float(_trace_tokens(trace.extended, at) >= budget))

        def going_on(at: int) -> float | None:
            return part.mean(lambda trace: float(len(trace.episode_ends) > at))

        positions = [0, *self.budgets]
        episodes = max((len(trace.episode_ends) for trace in traces), default=0)
        return {
            "budgets": [
                {"budget": budget, **row(lambda t: t.budgets, at), "ended": part.mean(_ended_within(budget))}
                for at, budget in enumerate(positions)
            ],
            "regret": [{"cutoff": cutoff, **regret(cutoff)} for cutoff in self.budgets],
            "extended": [
                {
                    "factor": factor,
                    "budget": budget,
                    **row(lambda t: t.extended, at),
                    "reached": reached(at, budget),
                }
                for at, (factor, budget) in enumerate(zip(self.factors, self.extended_budgets, strict=True))
            ],
            "episodes": [
                {"episode": at, **row(lambda t: t.episodes, at), "going_on": going_on(at)}
                for at in range(episodes + 1 if episodes else 0)
            ],
            "mean_tokens": part.mean(lambda trace: float(trace.tokens)),
            "num_problems": len({trace.problem for trace in traces}),
            "num_traces": len(traces),
            "num_unscorable": sum(None in (*trace.budgets.success, *trace.extended.success) for trace in traces),
        }

    def mean(self, value: Callable[[TraceMeasurement], float | None]) -> float | None:
        """Mean of a number over traces, problems and distributions; `None` if nothing supports it."""
        return mixture_mean(self.problem_means(value))

    def regret(self, trace: TraceMeasurement, cutoff: int) -> float | None:
        """Normalised regret of one trace up to `cutoff`; `None` if a point of its curve could not be scored."""
        positions, values = [0], [trace.budgets.success[0]]
        for budget, value in zip(self.budgets, trace.budgets.success[1:], strict=True):
            if trace.ended and budget >= trace.tokens:  # from its own end on it is as right as it is
                positions.append(trace.tokens)
                values.append(None if trace.correct is None else float(trace.correct))
                break
            positions.append(budget)
            values.append(value)
        known = [value for value in values if value is not None]
        return 1 - mean_success(positions, known, cutoff) if len(known) == len(values) else None

    def regrets(self, cutoff: int) -> dict[Problem, float]:
        """Normalised regret of each problem up to `cutoff`; a problem without a scored trace is left out."""
        return self.problem_means(lambda trace: self.regret(trace, cutoff))

    def save(self, folder: str | Path) -> dict:
        """Write `test_time.json`, summary and traces, into `folder`; complete or not at all.

        Returns:
            `dict`: the summary.
        """
        summary = self.summary()
        content = {
            "summary": summary,
            "budgets": self.budgets,
            "factors": self.factors,
            "traces": [dataclasses.asdict(trace) for trace in self.traces],
        }
        text = json.dumps(content, ensure_ascii=False) + "\n"
        write_atomically(Path(folder) / FILE, lambda path: path.write_text(text, encoding="utf-8"))
        return summary

    @classmethod
    def load(cls, folder: str | Path) -> "BudgetEvaluation":
        """Read what [`BudgetEvaluation.save`] wrote.

        Raises:
            ValueError: if the file is missing or is not what `save` writes; the message names it.
        """
        path = Path(folder) / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            summary = content["summary"]
            traces = [_read_trace(row) for row in content["traces"]]
            return cls(
                content["budgets"],
                content["factors"],
                traces,
                summary["settings"],
                summary["seconds"],
                summary["forced_tokens"],
            )
        except FileNotFoundError as error:
            raise ValueError(f"{path}: no such file; `metatune eval` with `--budgets` writes it") from error
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ValueError(f"{path}: not a saved evaluation at budgets ({error!r}); run it again") from error


def extended_budget(budgets: Sequence[int], factor: float) -> int:
    """The largest budget times `factor`, in whole tokens."""
    return round(max(budgets) * factor)


def _read_trace(row: dict[str, Any]) -> TraceMeasurement:
    cuts = {
        name: Cuts(**row[name] | {"majority": {int(k): values for k, values in row[name]["majority"].items()}})
        for name in ("budgets", "extended", "episodes")
    }
    return TraceMeasurement(**row | cuts)


def _scored(values: Sequence[float | None], trace: TraceMeasurement, at: int) -> float | None:
    return None if trace.budgets.success[at] is None else values[at]


def _trace_tokens(cuts: Cuts, at: int) -> float:
    return cuts.spent[at] - cuts.answer[at]


def _ended_within(budget: int) -> Callable[[TraceMeasurement], float]:
    return lambda trace: float(trace.ended and trace.tokens <= budget)
