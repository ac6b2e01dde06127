"""Values read from YAML as values of a dataclass field's annotation.

A string is read as the command line would read it, because YAML 1.1 takes `1e-4` and `None` for text; nothing else is
converted, so that `bf16: 1` or a list where one name belongs is an error and not a surprise in the middle of a run.
"""

import dataclasses
import difflib
import types
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trl.scripts._hf_argparser import string_to_bool


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the valid name closest to `name`, or an empty string if none is close.

    A name that begins with `name` takes precedence over a similar one: `--gpus` over `--cpu` for `--gpu`.
    """
    known = [str(each) for each in valid]
    longer = (
        sorted((each for each in known if each.startswith(str(name))), key=len)
        if len(str(name).strip("-")) > 2
        else []
    )
    matches = longer or difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def describe(value: Any) -> str:
    """Name a YAML value for an error message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"{value!r}"


def conform(value: Any, hint: Any) -> Any:
    """Return `value`, read from YAML, as a value of the annotation `hint`.

    A string is read as the command line would read it: YAML 1.1 takes `1e-4` for text, and `None` too.

    Raises `ValueError` whose message says what was expected.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return conform_union(value, arguments)
    if hint is Any or (hint in (None, types.NoneType) and value is None):
        return value
    if origin is Literal:
        return choose(value, arguments)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return choose(value.value if isinstance(value, Enum) else value, [member.value for member in hint])
    if hint is list or origin is list:
        if not isinstance(value, list):
            raise ValueError(f"expected a list, got {describe(value)}; write [{value}]")
        return [conform(item, arguments[0]) for item in value] if arguments else value
    if hint is dict or origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"expected a mapping, got {describe(value)}")
        return {key: conform(item, arguments[1]) for key, item in value.items()} if arguments else value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return conform_dataclass(value, hint)
    if hint in READERS:
        return READERS[hint](value)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise ValueError(f"expected {hint.__name__}, got {describe(value)}")
    return value


def conform_union(value: Any, arms: Sequence[Any]) -> Any:
    """Return `value` as a value of one of the annotations `arms`, of its own YAML type if there is such an arm."""
    if value is None and types.NoneType in arms:
        return None
    arms = [arm for arm in arms if arm is not types.NoneType] + [arm for arm in arms if arm is types.NoneType]
    if any(isinstance(arm, type) and issubclass(arm, Enum) for arm in arms):
        arms = [arm for arm in arms if arm is not str]  # `Enum | str` means the enum's values
    plain = next((arm for arm in arms if arm is type(value)), None)
    if plain is not None:
        return value
    if isinstance(value, str) and value.lower() in ("none", "null") and types.NoneType in arms and str not in arms:
        return None
    reasons = []
    for arm in arms:
        try:
            return conform(value, arm)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(reasons[0])


def conform_dataclass(value: Any, hint: type) -> Any:
    """Check a mapping against the fields of a dataclass; the mapping itself is what TRL's dataclasses convert.

    Raises `ValueError` that names the key.
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {describe(value)}")
    hints = get_type_hints(hint)
    values = {}
    for key, item in value.items():
        if key not in hints:
            raise ValueError(f"unknown key '{key}'{nearest(key, hints)}")
        try:
            values[key] = conform(item, hints[key])
        except ValueError as error:
            raise ValueError(f"`{key}`: {error}") from None
    return values


def choose(value: Any, choices: Sequence[Any]) -> Any:
    """Return `value` if it is one of `choices`, by value and type."""
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    if value is False and "no" in choices:
        raise ValueError('YAML reads a bare `no` as false; write "no"')
    listed = ", ".join(str(choice) for choice in choices)
    raise ValueError(f"{describe(value)} is not one of {listed}{nearest(value, map(str, choices))}")


def _read_bool(value: Any) -> bool:
    try:
        if isinstance(value, (bool, str)):
            return string_to_bool(value)
    except ArgumentTypeError:
        pass
    raise ValueError(f"expected true or false, got {describe(value)}")


def _read_int(value: Any) -> int:
    try:
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    raise ValueError(f"expected a whole number, got {describe(value)}")


def _read_float(value: Any) -> float:
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return value if isinstance(value, int) else float(value)
    except ValueError:
        pass
    raise ValueError(f"expected a number, got {describe(value)}")


def _read_str(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        raise ValueError('expected text, got a truth value; YAML reads bare yes, no, on, off so: write it in "quotes"')
    advice = '; write it in "quotes"' if isinstance(value, (int, float)) else ""
    raise ValueError(f"expected text, got {describe(value)}{advice}")


READERS: dict[type, Callable[[Any], Any]] = {bool: _read_bool, int: _read_int, float: _read_float, str: _read_str}
