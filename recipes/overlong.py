"""Leave out, count and report prompts that exceed the model's context length, in the same way for every command.

A prompt is too long if it and the tokens that may follow it (a completion; for forced answers also the suffix and the
answer) exceed `max_position_embeddings`. Such rows are left out of training and evaluation, and one line reports their
number and the first one. A set without any row that fits is an error. Nothing is truncated unless an option of TRL
requests it (`max_length` of SFT).
"""

from collections.abc import Sequence
from typing import Any

from metatune.rewards.rendering import Messages, Rendering

from .config import ConfigError


def positions_of(model: str, revision: str | None = None) -> int | None:
    """Return the number of positions of a model, `None` if it has no limit or cannot be looked up."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
    except (OSError, ValueError):  # another check reports a missing model
        return None
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def without_overlong(
    rows: Any, rendering: Rendering, positions: int | None, new_tokens: int, where: str, advice: str
) -> tuple[Any, list[str]]:
    """Leave out rows whose prompt and `new_tokens` exceed the model's positions.

    Args:
        rows (`datasets.Dataset` or `list[dict]`): rows with `prompt`, a text or a conversation.
        rendering ([`Rendering`]): how prompts become tokens.
        positions (`int`, *optional*): the model's; `None` keeps all rows.
        new_tokens (`int`): tokens that may follow a prompt.
        where (`str`): the name of the rows in the line.
        advice (`str`): the options that lower `new_tokens`, such as `"max_completion_length"`.

    Returns:
        `tuple`: the other rows, and a line for those left out (none if all fit).

    Raises [`ConfigError`] if no row fits.
    """
    if positions is None or not len(rows):
        return rows, []
    room = positions - new_tokens
    prompts = rows["prompt"][:] if hasattr(rows, "column_names") else [row["prompt"] for row in rows]
    bound = _Bound(rendering)
    too_long = [
        index
        for index, prompt in enumerate(prompts)
        if room < 1 or (bound(prompt) > room and len(rendering.prompt_ids(prompt)) > room)
    ]
    if not too_long:
        return rows, []
    line = _line(rows, prompts, too_long, rendering, where) + (
        f" (the model has {positions} positions, and {new_tokens} new tokens may follow a prompt)"
    )
    dropped = set(too_long)
    kept = [index for index in range(len(rows)) if index not in dropped]
    if _distributions(rows, kept) != _distributions(rows, range(len(rows))):
        shortest = min(len(rendering.prompt_ids(prompts[index])) for index in too_long)
        fix = f"set {advice} to at most {positions - shortest}" if shortest < positions else "shorten the prompts"
        raise ConfigError(f"{line}; no row would remain: {fix}")
    return (rows.select(kept) if hasattr(rows, "select") else [rows[index] for index in kept]), [line]


def _distributions(rows: Any, indices: Sequence[int]) -> set[str]:
    """Return the distributions of some rows; one empty name if the rows have no such column."""
    if hasattr(rows, "column_names"):
        names = rows["distribution"][:] if "distribution" in rows.column_names else [""] * len(rows)
    else:
        names = [row.get("distribution", "") for row in rows]
    return {names[index] for index in indices}


def _line(rows: Any, prompts: Sequence[Any], too_long: Sequence[int], rendering: Rendering, where: str) -> str:
    """Describe how many of how many prompts are left out, and the first one."""
    first = rows[too_long[0]]
    length = len(rendering.prompt_ids(prompts[too_long[0]]))
    which = f"row {too_long[0] + 1}"
    if first.get("key") and first.get("distribution"):
        which = f"'{first['key'][:60]}' of {first['distribution']}"
    counted = f"{where}: {len(too_long):,} of {len(rows):,} prompts are too long and left out"
    return f"{counted}; the first is {which}, {length} tokens"


def without_overlong_sequences(
    dataset: Any, column: str, positions: int | None, max_length: int | None, where: str
) -> tuple[Any, list[str]]:
    """Leave out tokenized rows that are longer than the model's positions, and count those cut at `max_length`.

    Args:
        dataset (`datasets.Dataset`): rows as TRL's trainer has tokenized them; a stream is not checked.
        column (`str`): their token ids.
        positions (`int`, *optional*): the model's; `None` keeps all rows.
        max_length (`int`, *optional*): where TRL truncates, by the user's choice.
        where (`str`): the name of the rows in the lines.

    Raises [`ConfigError`] if no row fits.
    """
    if getattr(dataset, "num_rows", None) is None or column not in dataset.column_names:
        return dataset, []
    lengths = [len(ids) for ids in dataset[column][:]]
    lines = []
    if max_length is not None and (positions is None or max_length <= positions):
        cut = sum(length >= max_length for length in lengths)
        if cut:
            lines.append(
                f"{where}: {cut:,} of {len(lengths):,} rows reach max_length ({max_length} tokens); longer rows are "
                "truncated there: raise max_length to keep them"
            )
        return dataset, lines
    too_long = [index for index, length in enumerate(lengths) if positions is not None and length > positions]
    if not too_long:
        return dataset, lines
    line = (
        f"{where}: {len(too_long):,} of {len(lengths):,} rows are longer than the model's {positions} positions and "
        f"are left out; the first is row {too_long[0] + 1}: {lengths[too_long[0]]} tokens"
    )
    if len(too_long) == len(lengths):
        raise ConfigError(f"{line.replace('are left out', 'no row remains')}; set max_length to truncate them")
    dropped = set(too_long)
    return dataset.select([index for index in range(len(lengths)) if index not in dropped]), [*lines, line]


class _Bound:
    """An upper bound of a prompt's tokens without tokenizing its text: a token has at least one byte.

    The tokens that the chat template adds depend on the roles, and are counted once per sequence of roles.
    """

    def __init__(self, rendering: Rendering):
        self._rendering = rendering
        self._added: dict[tuple[str, ...], int] = {}

    def __call__(self, prompt: str | Messages) -> int:
        if isinstance(prompt, str):
            texts: Sequence[Any] = [prompt]
            roles: tuple[str, ...] = ()
        else:
            texts = [message.get("content") for message in prompt]
            roles = tuple(message["role"] for message in prompt)
        if roles not in self._added:
            probe: str | Messages = [{"role": role, "content": "1"} for role in roles] if roles else "1"
            self._added[roles] = len(self._rendering.prompt_ids(probe))
        return self._added[roles] + sum(len(str(text).encode()) for text in texts)
