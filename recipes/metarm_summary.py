"""The numbers of a round of `metatune metarm`, and the table of all rounds."""

from collections.abc import Sequence
from itertools import combinations, groupby
from typing import Any

import numpy as np

from ..eval.statistics import bootstrap_mean
from .rounds import Row
from .tables import show, show_number


def policy_numbers(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what a policy's held-out responses say of it.

    Args:
        rows (`Sequence[dict]`): as [`Policy.respond`] returns them, at least one.

    Returns:
        `dict`: `gold`, the verifiers' accuracy as a mean over distributions of the mean over problems, and its
        `gold_interval` (95 %, bootstrap over problems), both `None` without a verifier; `ungraded`, responses on which
        a grader failed or none is known; mean `tokens`, and the share that was `cut_off`.
    """
    graded = [row for row in rows if row["gold"] is not None]
    value = low = high = None
    if graded:
        columns = ([row[name] for row in graded] for name in ("gold", "key", "distribution"))
        value, low, high = bootstrap_mean(*columns)
    return {
        "gold": value,
        "gold_interval": None if value is None else [low, high],
        "ungraded": len(rows) - len(graded),
        "tokens": float(np.mean([row["tokens"] for row in rows])),
        "cut_off": float(np.mean([row["truncated"] for row in rows])),
    }


def score_numbers(rows: Sequence[Row], scores: np.ndarray) -> dict[str, Any]:
    """Return what a reward model makes of a policy's held-out responses.

    Args:
        rows (`Sequence[dict]`): N rows as [`Policy.respond`] returns them, those to one prompt together.
        scores (`np.ndarray` of shape (N,)): NaN where the model gives none.

    Returns:
        `dict`: mean `score`; `unscored` responses; `length_correlation` of score and tokens; `accuracy` of the scores
        on the `compared` pairs of responses to one prompt whose gold differs, a tie counting half. `None` where there
        is nothing to take it of.
    """
    scored_N = np.isfinite(scores)
    tokens_S = np.array([row["tokens"] for row in rows], dtype=float)[scored_N]
    varied = scored_N.any() and np.ptp(scores[scored_N]) > 0 and np.ptp(tokens_S) > 0
    margins = gold_margins(rows, scores)
    return {
        "score": float(scores[scored_N].mean()) if scored_N.any() else None,
        "unscored": int((~scored_N).sum()),
        "length_correlation": float(np.corrcoef(scores[scored_N], tokens_S)[0, 1]) if varied else None,
        "accuracy": margin_accuracy(margins),
        "compared": int(np.isfinite(margins).sum()),
    }


def gold_margins(rows: Sequence[Row], scores: np.ndarray) -> np.ndarray:
    """Return score(right) - score(wrong) of all P pairs of a right and a wrong response to one prompt, shape (P,)."""
    margins = []
    for _, group in groupby(zip(rows, scores, strict=True), key=lambda pair: pair[0]["problem"]):
        known = [(row["gold"], score) for row, score in group if row["gold"] is not None]
        for (gold, score), (other_gold, other_score) in combinations(known, 2):
            if gold != other_gold:
                margins.append((score - other_score) * (1 if gold > other_gold else -1))
    return np.array(margins, dtype=float)


def margin_accuracy(margins: np.ndarray) -> float | None:
    """Return the share of positive margins, ties counting half, those that are no number left out; `None` of none."""
    margins = margins[np.isfinite(margins)]
    return float((np.sign(margins) + 1).mean() / 2) if len(margins) else None


def show_rounds(summaries: Sequence[dict[str, Any]]) -> None:
    """Print a table of all rounds, the first policy before them."""
    from rich.table import Table

    table = Table(title="rounds: the new policy against the one before it, under the round's own reward model")
    columns = ["round", "score before", "score", "gold", "95 %", "tokens", "cut off"]
    columns += ["score ~ length", "accuracy, own", "on pairs", "sample size"]
    for column in columns:
        table.add_column(column, justify="right")
    for row in summaries:
        interval = row["gold_interval"]
        table.add_row(
            str(row["round"]),
            show_number(row.get("score_before")),
            show_number(row.get("score")),
            show_number(row["gold"]),
            "–" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]",  # noqa: RUF001
            f"{row['tokens']:.1f}",
            f"{row['cut_off']:.1%}",
            show_number(row.get("length_correlation")),
            show_number(row.get("accuracy")),
            show_number(row.get("accuracy_on_pairs")),
            "–" if row.get("effective_sample_size") is None else f"{row['effective_sample_size']:.0f}",  # noqa: RUF001
        )
    show(table)
    print("Scores of different rounds are on different scales: compare a score with the one before it in its own row.")
