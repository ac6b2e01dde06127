"""What a run's log tells of its judge: judgements that failed, by cause, and the share of the step time it took.

A line of `metrics.jsonl` has means: of the batches that were judged since the line before (`judge/failures…`, and
`judge/seconds`, the mean of the processes too), of its meta steps (`mpo/seconds`), and of its optimizer steps
(`time/step`). Sums follow from how many there were of each: a batch lasts `steps_per_generation` micro-steps,
`num_iterations` times, and a meta step leaves one event in the rubrics' history.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

FAILURES, SECONDS, META_SECONDS = "judge/failures", "judge/seconds", "mpo/seconds"
META_EVENTS = ("accepted", "refused", "failed")  # a meta step ends in one of them
MOST_WINDOWS = 24  # that a picture tells apart


@dataclass(frozen=True)
class JudgeLog:
    """A run's log in W windows of as many lines each.

    Args:
        edges (`np.ndarray`): optimizer steps where the windows begin and end, shape (W + 1,).
        lines (`int`): of a window, at most.
        failed (`dict[str, float]`): share of all completions that each cause kept from a judgement, the most first.
        failed_by_window (`dict[str, np.ndarray]`): the same in the windows, shape (W,).
        took (`dict[str, float]`, *optional*): share of the step time that `judging` and `meta steps` took; `None`
            where the log does not tell.
        took_by_window (`dict[str, np.ndarray]`, *optional*): the same in the windows, shape (W,).
    """

    edges: np.ndarray
    lines: int
    failed: dict[str, float]
    failed_by_window: dict[str, np.ndarray]
    took: dict[str, float] | None
    took_by_window: dict[str, np.ndarray] | None


def steps_of_a_batch(recipe: Mapping[str, Any] | None) -> float | None:
    """Return how many optimizer steps a generation batch lasts by a run's `recipe.yaml`; `None` if it does not say."""
    if not recipe:
        return None
    accumulation = recipe.get("gradient_accumulation_steps", 1)
    usual = None if "generation_batch_size" in recipe else accumulation
    numbers = [recipe.get("steps_per_generation", usual), recipe.get("num_iterations", 1), accumulation]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        return None
    per_generation, iterations, accumulated = numbers
    return per_generation * iterations / accumulated


def read_judge_log(
    rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], batch_steps: float | None
) -> JudgeLog | None:
    """Sum up what `metrics.jsonl` tells of a judge.

    Args:
        rows (`Sequence[Mapping]`): its lines.
        events (`Sequence[Mapping]`): of the [`~metatune.rewards.RubricHistory`].
        batch_steps (`float`, *optional*): optimizer steps that a generation batch lasts. Without it only a log with a
            line for every step tells how many batches there were, and thereby the time.

    Returns:
        `JudgeLog`: the sums; `None` where no line has a judgement.
    """
    lines, before = [], 0
    for row in rows:
        if "step" in row and ("time/step" in row or FAILURES in row):
            lines.append(_Line(row, before, row["step"], events, batch_steps))
            before = row["step"]
    judged = [line for line in lines if line.batches]
    if not judged:
        return None
    parts = np.array_split(np.array([index for index, line in enumerate(lines) if line.batches]), MOST_WINDOWS)
    starts = [0, *(int(part[0]) for part in parts[1:] if len(part))]  # in every window something was judged
    windows = [lines[start:end] for start, end in pairwise([*starts, len(lines)])]
    edges = np.array([lines[0].after, *(part[-1].step for part in windows)], dtype=float)
    prefix = f"{FAILURES}/"
    causes = dict.fromkeys(key.removeprefix(prefix) for line in judged for key in line.row if key.startswith(prefix))
    failed = {cause: _failed(judged, cause) for cause in causes}
    failed = dict(sorted(((cause, share) for cause, share in failed.items() if share), key=lambda pair: -pair[1]))
    by_window = {cause: np.array([_failed(part, cause) for part in windows]) for cause in failed}
    told = batch_steps is not None or all(line.step - line.after == 1 for line in lines)
    told = told and all(line.row.get("time/step") for line in lines)
    took = _took(lines) if told else None
    took_by_window = None
    if took is not None:
        shares = [_took(part) for part in windows]
        took_by_window = {name: np.array([share[name] for share in shares]) for name in took}
    return JudgeLog(edges, max(map(len, windows)), failed, by_window, took, took_by_window)


def percent(share: float) -> str:
    """Write a share as a percentage that is not 0 where the share is not."""
    return "below 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def words(cause: str) -> str:
    """Write a cause's name as words."""
    return cause.replace("_", " ")


class _Line:
    """A log line with how much it is the mean of."""

    def __init__(
        self,
        row: Mapping[str, Any],
        after: int,
        step: int,
        events: Sequence[Mapping[str, Any]],
        batch_steps: float | None,
    ):
        self.row, self.after, self.step = row, after, step
        batches = 1 if batch_steps is None else math.ceil(step / batch_steps) - math.ceil(after / batch_steps)
        self.batches = max(1, batches) if FAILURES in row else 0
        # an event has the steps that were done before it
        meta_steps = sum(after <= event["step"] < step for event in events if event["event"] in META_EVENTS)
        self.seconds = {
            "step": (row.get("time/step") or 0.0) * (step - after),
            "judging": (row.get(SECONDS) or 0.0) * self.batches,
            "meta steps": (row.get(META_SECONDS) or 0.0) * max(1, meta_steps),
        }


def _failed(lines: Sequence[_Line], cause: str) -> float:
    """The share of the completions of some lines that a cause kept from a judgement; all batches are as large."""
    batches = sum(line.batches for line in lines)
    return sum(line.batches * (line.row.get(f"{FAILURES}/{cause}") or 0.0) for line in lines) / max(1, batches)


def _took(lines: Sequence[_Line]) -> dict[str, float]:
    totals = {name: sum(line.seconds[name] for line in lines) for name in ("step", "judging", "meta steps")}
    whole = totals.pop("step")
    return {name: seconds / whole if whole else 0.0 for name, seconds in totals.items()}
