"""The reward function that a judge makes, for TRL trainers.

A completion earns the judge's normalised total, 0 to 1. One that could not be judged earns `None`, which TRL leaves
out of the baseline; it is never 0. Where too many fail, the run ends with the server's own words instead of training
on what is left.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from .judge import FAILURES, Judge, Judgement, failure_shares
from .judge_client import is_servers_fault

logger = logging.getLogger(__name__)

GONE = 16  # failed judgements in a row after which nothing more is to be expected of a server


class JudgeReward:
    """
    Where TRL passes `log_metric`, logs under its name: `failures` and `failures/CAUSE` (shares), `score` (mean total),
    `prompt_tokens` and `completion_tokens` (of the judge, for one completion), and `seconds` (of the call). Where it
    passes `log_extra`, each row of the completions table gets the reasons.

    Args:
        judge (`Judge`): that scores.
        reference_column (`str`, *optional*): column of the data set with the known answer, which the judge is shown.
        max_failure_rate (`float`, *optional*, defaults to 0.5): share of failed judgements that ends the run.
        window (`int`, *optional*, defaults to 256): completions that the share is taken of, the last ones.
        name (`str`, *optional*, defaults to `"judge"`): of the function, in TRL's logs too.

    Attributes:
        last (`tuple`): prompts, completions, references and judgments of the last call; the judgment is `None` for a
            completion that was not judged.
        trouble (`str`, *optional*): the failures of the last call, in one line; `None` without failures.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        reference_column: str | None = None,
        max_failure_rate: float = 0.5,
        window: int = 256,
        name: str = "judge",
    ):
        if not 0 <= max_failure_rate <= 1 or window < 1:
            raise ValueError(
                f"max_failure_rate is between 0 and 1 and window at least 1, not {max_failure_rate} and {window}"
            )
        self.judge, self.reference_column, self.__name__ = judge, reference_column, name
        self.max_failure_rate = max_failure_rate
        self._window: deque[Judgement] = deque(maxlen=window)
        self.trouble: str | None = None
        self.last: tuple[list[Any], list[Any], list[str | None], list[Judgement | None]] = ([], [], [], [])

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        forced_answer: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Reward B completions, texts or conversations.

        Completions marked in `forced_answer` are not judged and get `None`, because their text contains the forcing
        suffix, which the policy did not write.

        Raises:
            ValueError: the reference column is missing.
            JudgeError: too many judgements failed.
        """
        references = self._references(columns, len(prompts))
        started = time.perf_counter()
        asked = [row for row in range(len(prompts)) if not (forced_answer and forced_answer[row])]
        cases = ([values[row] for row in asked] for values in (prompts, completions, references))
        judgements = self.judge.judge(*cases)
        seconds = time.perf_counter() - started
        by_row: list[Judgement | None] = [None] * len(prompts)
        for row, judgement in zip(asked, judgements, strict=True):
            by_row[row] = judgement
        self.last = (list(prompts), list(completions), references, by_row)
        if log_metric is not None and judgements:
            for metric, value in judgement_statistics(judgements).items():
                log_metric(f"{self.__name__}/{metric}", value)
            log_metric(f"{self.__name__}/seconds", seconds)
        if log_extra is not None:
            log_extra(f"{self.__name__}_reasons", [None if each is None else _reasons(each) for each in by_row])
        self._count_failures(judgements)
        return [None if each is None else each.total for each in by_row]

    def _references(self, columns: dict[str, Any], number: int) -> list[str | None]:
        if self.reference_column is None:
            return [None] * number
        if self.reference_column not in columns:
            names = ", ".join(sorted(key for key, value in columns.items() if isinstance(value, list)))
            raise ValueError(
                f"the judge's reference_column is {self.reference_column!r}, which the data set lacks "
                f"(columns: {names})"
            )
        return list(columns[self.reference_column])

    def _count_failures(self, judgements: Sequence[Judgement]) -> None:
        """Log failures; raise `JudgeError` above the allowed share of a window, or if the server is down.

        The server counts as down if all judgments of a call failed because of it, each after all its attempts, or if
        many in a row failed for any reason.
        """
        self._window.extend(judgements)
        failed = [judgement for judgement in judgements if judgement.failure is not None]
        client, self.trouble = self.judge.client, None
        if failed:
            self.trouble = client.describe(f"{len(failed)} of {len(judgements)} judgements failed", failed)
            logger.warning("%s", self.trouble)
        failures = [judgement for judgement in self._window if judgement.failure is not None]
        streak = sum(1 for _ in takewhile(lambda each: each.failure is not None, reversed(self._window)))
        lost = bool(judgements) and is_servers_fault(judgements)
        if self.max_failure_rate < 1 and (lost or streak >= GONE):
            raise client.error(f"the last {streak} judgements in a row failed", failures[-streak:])
        rate = len(failures) / max(1, len(self._window))
        if rate > self.max_failure_rate and len(self._window) == self._window.maxlen:
            share = f"{rate:.0%} of the last {len(self._window)} judgements failed"
            raise client.error(f"{share} (max_failure_rate {self.max_failure_rate:.0%})", failures)


def judgement_statistics(judgements: Sequence[Judgement]) -> dict[str, float]:
    """Return what [`JudgeReward`] logs of N > 0 judgements; no `score` where all failed."""
    totals = [judgement.total for judgement in judgements if judgement.total is not None]
    shares = failure_shares(judgements)
    # all causes, so that TRL's mean over batches and processes is over all of them
    statistics = {f"failures/{cause}": shares.get(cause, 0.0) for cause in FAILURES}
    statistics["failures"] = sum(shares.values())
    if totals:
        statistics["score"] = float(np.mean(totals))
    for name in ("prompt_tokens", "completion_tokens"):
        statistics[name] = float(np.mean([getattr(judgement, name) for judgement in judgements]))
    return statistics


def _reasons(judgement: Judgement) -> str:
    """Return a judgement as the text of a cell."""
    if judgement.scores is None or judgement.rationales is None:
        return f"{judgement.failure}: {judgement.detail}"
    reasons = {name: [score, judgement.rationales[name]] for name, score in judgement.scores.items()}
    return json.dumps(reasons, ensure_ascii=False)
