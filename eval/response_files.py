"""Responses with gold scores, for best-of-n: files of them, and what a reward model says of them.

A file is JSONL, JSON or Parquet with the columns `prompt` (a text or a conversation), `responses` (a list of texts or
conversations) and `gold` (a list of as many numbers, `null` where there is none), or the `completions.parquet` that
`metatune eval` writes: the gold score of a completion is then whether it is correct.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from ..rewards.rendering import Messages
from ..rewards.responses import response_ids
from .reward_models import Scorer, as_turns

COLUMNS = ("prompt", "responses", "gold")
COMPLETION_COLUMNS = ("distribution", "key", "prompt", "completion", "correct")


@dataclass(frozen=True)
class GoldResponses:
    """The responses of P prompts, with gold scores.

    Args:
        prompts (`list` of length P): texts or conversations.
        responses (`list` of P lists): each prompt's responses.
        gold (`list` of P lists): their gold scores, NaN where there is none.
        distributions (`list[str]` of length P): where each prompt comes from.
        turns (`bool`): whether texts are turns of a conversation; see [`~metatune.eval.reward_models.as_turns`].
    """

    prompts: list[str | Messages]
    responses: list[list[str | Messages]]
    gold: list[list[float]]
    distributions: list[str]
    turns: bool

    def first(self, number: int | None) -> "GoldResponses":
        """Return the first prompts of every distribution, all of them for `None`."""
        kept = []
        counts: dict[str, int] = defaultdict(int)
        for index, name in enumerate(self.distributions):
            counts[name] += 1
            if number is None or counts[name] <= number:
                kept.append(index)
        return GoldResponses(
            [self.prompts[index] for index in kept],
            [self.responses[index] for index in kept],
            [self.gold[index] for index in kept],
            [self.distributions[index] for index in kept],
            self.turns,
        )


def score_responses(model: Scorer, responses: GoldResponses) -> list[np.ndarray]:
    """Return a reward model's scores of each prompt's responses; NaN where there is none.

    Raises:
        ValueError: as [`~metatune.rewards.responses.response_ids`].
    """
    counts = [len(group) for group in responses.responses]
    prompts = [prompt for prompt, count in zip(responses.prompts, counts, strict=True) for _ in range(count)]
    texts = [response for group in responses.responses for response in group]
    ids = response_ids(model.tokenizer, *as_turns(model.tokenizer, prompts, texts, responses.turns))
    return np.split(model.score_ids(ids), np.cumsum(counts)[:-1])


def load_responses(path: str | Path) -> GoldResponses:
    """Read a file of responses, or the `completions.parquet` in a folder; rows of one prompt become one.

    Raises:
        ValueError: for a file that is missing or no such file; the message names it, its row and the mend.
    """
    path = Path(path)
    path = path / "completions.parquet" if path.is_dir() else path
    rows, columns = _read(path)
    if not rows:
        raise ValueError(f"{path} is empty")
    if set(COMPLETION_COLUMNS) <= columns:
        return _of_completions(rows)
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise ValueError(
            f"{path} has no column '{missing[0]}' (columns: {', '.join(sorted(columns))}): a row is `prompt`, "
            "`responses` and `gold`, or a completion that `metatune eval` wrote"
        )
    merged: dict[str, tuple[Any, list, list]] = {}
    for number, row in enumerate(rows, start=1):
        _check_row(row, f"{path}: row {number}")
        key = json.dumps(row["prompt"], sort_keys=True)
        _, responses, gold = merged.setdefault(key, (row["prompt"], [], []))
        responses.extend(row["responses"])
        gold.extend(math.nan if value is None else float(value) for value in row["gold"])
    prompts, responses, gold = map(list, zip(*merged.values(), strict=True))
    return GoldResponses(prompts, responses, gold, [path.stem] * len(prompts), turns=False)


def _read(path: Path) -> tuple[list[dict[str, Any]], set[str]]:
    """Return the rows of a file and the columns that any of them has."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
            return table.to_pylist(), set(table.column_names)
        if path.suffix not in (".json", ".jsonl"):
            raise ValueError("not one of .jsonl, .json, .parquet")
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
    except (ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {number} is no JSON object")
    return rows, {column for row in rows for column in row}


def _lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({error})") from None
    return rows


def _check_row(row: Mapping[str, Any], where: str) -> None:
    prompt, responses, gold = (row.get(column) for column in COLUMNS)
    if not isinstance(prompt, (str, list)):
        raise ValueError(f"{where}: `prompt` must be a text or a list of messages")
    if not isinstance(responses, list) or not responses:
        raise ValueError(f"{where}: `responses` must be a list of at least one response")
    if not isinstance(gold, list) or len(gold) != len(responses):
        found = f"{len(gold)} gold scores" if isinstance(gold, list) else "no list of gold scores"
        raise ValueError(f"{where}: {len(responses)} responses and {found}; give one for each, or null")
    for response, value in zip(responses, gold, strict=True):
        if type(response) is not type(prompt):
            raise ValueError(f"{where}: prompt and responses must be texts, or all of them lists of messages")
        if value is not None and not (isinstance(value, (bool, int, float)) and math.isfinite(value)):
            raise ValueError(f"{where}: a gold score is a finite number or null, not {value!r}")


def _of_completions(rows: Sequence[Mapping[str, Any]]) -> GoldResponses:
    problems: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        problems[row["distribution"], row["key"]].append(row)
    return GoldResponses(
        prompts=[group[0]["prompt"] for group in problems.values()],
        responses=[[row["completion"] for row in group] for group in problems.values()],
        gold=[
            [math.nan if row["correct"] is None else float(row["correct"]) for row in group]
            for group in problems.values()
        ],
        distributions=[distribution for distribution, _ in problems],
        turns=True,
    )
