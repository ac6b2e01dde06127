"""The tiles at the top of a run's page, from the run's own numbers and not from file dates."""

from collections.abc import Mapping
from typing import Any

from ..pages import duration
from .charts import curve, is_number
from .run import Run

SHOWN = {  # the final metrics with a tile, by kind of run
    "grpo": {"reward": "Training reward"},
    "sft": {"loss": "Loss", "mean_token_accuracy": "Token accuracy"},
    "reward": {"loss": "Loss", "accuracy": "Pair accuracy", "eval_accuracy": "Held-out pair accuracy"},
    "other": {"loss": "Loss"},
}


def sample_size(part: Mapping[str, Any] | None) -> str:
    """Format the number of problems, and of samples per problem, behind an accuracy."""
    if not part or not part["num_problems"]:
        return "\N{EN DASH}"
    problems, samples = part["num_problems"], part["num_completions"] / part["num_problems"]
    return f"{problems:,} \N{MULTIPLICATION SIGN} {samples:.3g}"


def facts_of(run: Run, evaluation: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the label and the value of each tile."""
    facts: list[tuple[str, str]] = []
    if evaluation is not None:
        facts.append(("Problems \N{MULTIPLICATION SIGN} samples", sample_size(evaluation)))
        facts.append(("Distributions", str(len(evaluation["distributions"]))))
    if run.steps is not None:
        facts.append(("Optimizer steps", f"{run.steps:,}"))
    if run.tokens is not None:
        facts.append(("Rollout tokens" if run.kind == "grpo" else "Training tokens", f"{run.tokens:,}"))
    if run.seconds is not None:
        facts.append(("Training time", duration(run.seconds)))
    if is_number(run.summary.get("seconds")) and "difference" in run.summary:
        facts.append(("With evaluations", duration(run.summary["seconds"])))
    for key, label in SHOWN.get(run.kind, {}).items():
        _, values = curve(run.metrics, key)
        if len(values):
            window = max(1, len(values) // 10)
            facts.append((f"{label}, end", f"{values[-window:].mean():.3g}"))
    if run.kind == "star":
        facts.append(
            ("Sampled tokens", f"{sum(row['sampled_tokens'] + row['forced_tokens'] for row in run.rounds):,}")
        )
    if run.rounds:
        facts.append(("Rounds", str(run.rounds[-1]["round"])))
    return facts
