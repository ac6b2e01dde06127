"""Any number of models side by side, at token budgets; each against the first, paired by problem.

comparison = compare_at_budgets({"grpo": BudgetEvaluation.load("runs/grpo"), "mrt": …})
write_comparison(comparison, "runs/grpo_or_mrt")
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .budget_curves import token_ratio
from .budget_evaluation import BudgetEvaluation, Problem
from .files import write_atomically
from .statistics import paired_bootstrap_difference
from .test_time_plots import plot_budgets

COMPARISON = "comparison.json"


def compare_at_budgets(runs: Mapping[str, BudgetEvaluation], *, confidence: float = 0.95, seed: int = 0) -> dict:
    """Sum up every run, and compare each with the first.

    Args:
        runs (`Mapping[str, BudgetEvaluation]`): by name; the first is the reference.
        confidence (`float`, *optional*, defaults to `0.95`): coverage of the intervals.
        seed (`int`, *optional*, defaults to `0`): seed of the bootstrap.

    Returns:
        `dict`: `reference`, `confidence`, and `runs` with each run's summary by name. All but the reference also have
        `against_reference`, over the problems that both scored at all their budgets: `num_problems`, `num_unpaired`;
        `accuracy`, the differences at every budget that both have; `regret`, the difference up to the largest of
        these; and `tokens`, the tokens at equal accuracy (see [`~metatune.eval.budget_curves.TokenRatio`]), whose
        `ratio` is above 1 where the run needs fewer tokens than the reference.

    Raises:
        ValueError: if there are fewer than two runs, or one shares no scored problem with the reference.
    """
    if len(runs) < 2:
        raise ValueError(f"a comparison needs at least two evaluations, got {len(runs)}")
    (reference_name, reference), *_ = runs.items()
    found = {}
    for name, run in runs.items():
        found[name] = run.summary(confidence=confidence, seed=seed)
        if name != reference_name:
            try:
                found[name]["against_reference"] = _against(reference, run, confidence, seed)
            except ValueError as error:
                raise ValueError(f"{name} cannot be compared with {reference_name}: {error}") from error
    return {"reference": reference_name, "confidence": confidence, "runs": found}


def write_comparison(comparison: Mapping[str, Any], folder: str | Path) -> None:
    """Write `comparison.json` and its picture, `comparison.png`, into `folder`."""
    folder = Path(folder)
    text = json.dumps(comparison, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / COMPARISON, lambda path: path.write_text(text, encoding="utf-8"))
    plot_budgets(comparison["runs"], folder / "comparison.png")


def _against(reference: BudgetEvaluation, other: BudgetEvaluation, confidence: float, seed: int) -> dict:
    curves = reference.curves(), other.curves()
    paired = [problem for problem in curves[0] if problem in curves[1]]
    if not paired:
        raise ValueError("no problem was scored by both; evaluate both on the same items")
    asked = {trace.problem for run in (reference, other) for trace in run.traces}
    names = {problem: problem[0] for problem in paired}
    ours, theirs = ({problem: side[problem] for problem in paired} for side in curves)

    def difference(one: Mapping[Problem, float], two: Mapping[Problem, float]) -> dict[str, float]:
        both = [problem for problem in paired if problem in one and problem in two]
        if not both:
            return {}
        before, after = ({problem: side[problem] for problem in both} for side in (one, two))
        interval = paired_bootstrap_difference(before, after, names, confidence=confidence, seed=seed)
        return dict(zip(("difference", "ci_low", "ci_high"), interval, strict=True))

    common = [budget for budget in reference.budgets if budget in other.budgets]
    accuracy = []
    for budget in (0, *common):
        at, there = ((0, *run.budgets).index(budget) for run in (reference, other))
        before, after = {p: ours[p][1][at] for p in paired}, {p: theirs[p][1][there] for p in paired}
        accuracy.append({"budget": budget, **difference(before, after)})
    regret = None
    if common:
        regret = {"cutoff": common[-1], **difference(reference.regrets(common[-1]), other.regrets(common[-1]))}
    ratio = token_ratio(ours, theirs, names, confidence=confidence, seed=seed)
    return {
        "num_problems": len(paired),
        "num_unpaired": len(asked) - len(paired),
        "accuracy": accuracy,
        "regret": regret,
        "tokens": ratio._asdict() | {"ratio": None if ratio.ratio is None else ratio.ratio._asdict()},
    }
