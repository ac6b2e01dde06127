"""The reward of a right answer, for TRL trainers."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from .verifiers import get_verifier

Completion = str | list[dict[str, Any]]


def correctness_reward(
    completions: Sequence[Completion],
    answer: Sequence[str | None],
    verifier: Sequence[str | None],
    info: Sequence[str],
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
        log_metric (`Callable`, *optional*): TRL's logger of metrics.
        **kwargs: the other columns and what else TRL passes; not used.

    Returns:
        `list[float | None]`: B rewards.

    Raises:
        ValueError: a column has another length, or a row lacks its answer, names an unknown verifier or has bad info.
    """
    for column, values in (("answer", answer), ("verifier", verifier), ("info", info)):
        if len(values) != len(completions):
            raise ValueError(f"column {column!r} has {len(values)} rows for {len(completions)} completions")
    rewards: list[float | None] = []
    for row, (completion, reference, name, details) in enumerate(
        zip(completions, answer, verifier, info, strict=True)
    ):
        if not name:
            rewards.append(None)
            continue
        try:
            verdict = _verdict(completion, reference, name, details)
        except ValueError as error:
            raise ValueError(f"row {row} of the batch: {error}") from error
        rewards.append(None if verdict is None else float(verdict))
    verified = [reward for reward, name in zip(rewards, verifier, strict=True) if name]
    if log_metric is not None and verified:
        log_metric("correctness/unscorable", verified.count(None) / len(verified))
    return rewards


def _verdict(completion: Completion, reference: str | None, name: str, info: str) -> bool | None:
    verifier = get_verifier(name)
    if reference is None or (verifier.needs_answer and not reference.strip()):
        raise ValueError(
            f"column 'answer' is empty, and the verifier {name!r} needs a reference: fill it or drop the row"
        )
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return verifier.score(text, reference, json.loads(info) if info else {})
