"""The reward of a right answer, for TRL trainers."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from .forcing import THINKING_START
from .verifiers import Verifier, get_verifier

Completion = str | list[dict[str, Any]]


class RowError(ValueError):
    """A row of the data cannot be scored, whatever the completion.

    Args:
        reason (`str`): why.
        row (`int`, *optional*): its number in the batch.
    """

    def __init__(self, reason: str, row: int | None = None):
        super().__init__(reason if row is None else f"row {row} of the batch: {reason}")
        self.reason = reason


def correctness_reward(
    completions: Sequence[Completion],
    answer: Sequence[str | None],
    verifier: Sequence[str | None],
    info: Sequence[str],
    starts_in_thinking: Sequence[bool] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """
    Reward 1.0 for a right final answer and 0.0 for a wrong or missing one.

    A completion on which the grader failed gets `None`, which TRL leaves out of the baseline; the fraction of these
    among the rows with a verifier is logged as `correctness/unscorable`. A row without one gets `None` too: nothing is
    known of it.

    Args:
        completions (`list`): B completions, each a string or a conversation whose last message has the answer.
        answer (`list[str]`): B reference answers.
        verifier (`list[str]`): B names of verifiers, see `VERIFIERS`; empty for none.
        info (`list[str]`): B JSON objects, what the verifiers need beside the references; empty for none.
        starts_in_thinking (`list[bool]`, *optional*): whether the chat template opened the thinking before each
            completion, so that a completion without `</think>` has no answer; the trainers set it.
        log_metric (`Callable`, *optional*): TRL's logger of metrics.
        **kwargs: the other columns and what else TRL passes; not used.

    Returns:
        `list[float | None]`: B rewards.

    Raises:
        RowError: a column has another length, or a row lacks its answer, names an unknown verifier or has bad info.
            It is a `ValueError`; other exceptions of a verifier are not caught.
    """
    for column, values in (("answer", answer), ("verifier", verifier), ("info", info)):
        if len(values) != len(completions):
            raise RowError(f"column {column!r} has {len(values)} rows for {len(completions)} completions")
    rewards: list[float | None] = []
    for row, (completion, reference, name, details) in enumerate(
        zip(completions, answer, verifier, info, strict=True)
    ):
        if not name:
            rewards.append(None)
            continue
        try:
            text = completion if isinstance(completion, str) else completion[-1]["content"]
            opening = THINKING_START if starts_in_thinking and starts_in_thinking[row] else ""
            verdict = _verdict(opening + text, reference, name, details)
        except RowError as error:
            raise RowError(error.reason, row) from error
        rewards.append(None if verdict is None else float(verdict))
    verified = [reward for reward, name in zip(rewards, verifier, strict=True) if name]
    if log_metric is not None and verified:
        log_metric("correctness/unscorable", verified.count(None) / len(verified))
    return rewards


def _verdict(text: str, reference: str | None, name: str, info: str) -> bool | None:
    try:
        verifier, details = get_verifier(name), json.loads(info) if info else {}
    except ValueError as error:
        raise RowError(str(error)) from error
    if reference is None or (verifier.needs_answer and not reference.strip()):
        raise RowError(
            f"column 'answer' is empty, and the verifier {name!r} needs a reference: fill it or drop the row"
        )
    try:
        return verifier.score(text, reference, details)
    except ValueError:
        if refusal := refusal_of_row(verifier, reference, details):
            raise RowError(f"{refusal} (verifier {name!r}, reference {reference[:100]!r})") from refusal
        raise


def refusal_of_row(verifier: Verifier, reference: str, info: dict[str, Any]) -> ValueError | None:
    """Return the error that a verifier raises for a row with any completion, tested with the row's own reference."""
    try:
        verifier.score(reference, reference, info)
    except ValueError as error:
        return error
    except Exception:  # the caller counts the verifier's own exceptions
        return None
    return None
