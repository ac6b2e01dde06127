"""One entry of a recipe's `distributions:` list: the options that every source has, and their strict parsing."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .problem import Message, Problem


class MissingDataError(ValueError):
    """Data of an entry does not exist on this machine; it may exist on another one."""


class Parts(NamedTuple):
    """The two parts of a distribution before they become datasets.

    Args:
        train (`list[Problem]`): problems to train on.
        test (`list[Problem]`): held-out problems.
        duplicates (`int`, *optional*, defaults to `0`): rows that were dropped because an earlier one has their key.
    """

    train: list[Problem]
    test: list[Problem]
    duplicates: int = 0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What every kind of source understands.

    Args:
        name (`str`): name of the distribution.
        source (`str`): a built-in family, `reasoning_gym` or `dataset`.
        train_size (`int`, *optional*): number of training items; all there are when not given.
        test_size (`int`, *optional*): number of held-out items; all there are when not given.
        seed (`int`, *optional*, defaults to `0`): seed of the draw.
        instruction (`str`, *optional*): text appended to every prompt, after an empty line.
        system (`str`, *optional*): system message put before every prompt.
    """

    name: str
    source: str
    train_size: int | None = None
    test_size: int | None = None
    seed: int = 0
    instruction: str | None = None
    system: str | None = None

    def load(self, where: str) -> dict[str, Parts]:
        """Read or draw the problems of each distribution that this entry defines, by name."""
        raise NotImplementedError

    def check(self, where: str, rows: int | None = None) -> None:
        """Check the options and a first problem, or the first `rows` rows of data (`None`: all), without loading it.

        Raises `ValueError` as `load` does.
        """
        raise NotImplementedError

    def messages(self, prompt: str | list[Message]) -> list[Message]:
        """Return a prompt as a conversation, with this entry's system message first and its instruction last.

        Raises:
            ValueError: if both the entry and the conversation have a system message.
        """
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
        if self.instruction is not None:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{self.instruction}"
        if self.system is None:
            return turns
        if turns[0]["role"] in ("system", "developer"):
            raise ValueError("both the data and the option `system` have a system message: remove one of them")
        return [{"role": "system", "content": self.system}, *turns]


def nearest(name: str, known: Iterable[str]) -> str:
    """Write the end of an error message about an unknown `name`: the nearest known one, or all of them."""
    known = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known) or 'nothing: there is none'}"


def parse_options(cls: type, options: Mapping[str, Any], where: str) -> Any:
    """
    Build a dataclass from a mapping read from YAML, strictly.

    Args:
        cls (`type`): dataclass whose annotations are checked.
        options (`Mapping[str, Any]`): values by field name.
        where (`str`): how errors call this mapping.

    Raises:
        ValueError: an unknown or missing key, a value of another type, or a value that `cls` itself refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in options.items():
        if key not in fields:
            raise ValueError(f"{where}: unknown key {key!r}; {nearest(key, fields)}")
        if not _fits(value, hints[key]):
            raise ValueError(
                f"{where}: {key} must be {_written(hints[key])}, got {value!r} of type {type(value).__name__}"
            )
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in options:
            raise ValueError(f"{where}: the key {key!r} is missing")
    try:
        return cls(**options)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if isinstance(value, bool):  # YAML's `true` is an int to Python, never to the reader
        return hint is bool
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, typing.get_origin(hint) or hint)


def _written(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
