"""Read the values of a dataset's row strictly: dotted paths, prompts, reference answers.

Each function returns the value in the form that a distribution needs, or raises `ValueError`. The message continues a
sentence that begins with the column's name; the caller adds the file and the row.
"""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from .problem import Message

ROLES = ("system", "developer", "user", "assistant")


def cell(row: Mapping[str, Any], path: str) -> Any:
    """Return the value at a column's name or a dotted path: `reward_model.ground_truth`, `messages.0.content`.

    A column whose name contains the dot takes precedence.

    Raises:
        KeyError: if a part of the path does not exist; its arguments are that part and the names that exist there.
    """
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise KeyError(part, list(value) if isinstance(value, Mapping) else []) from None
    return value


def text_problem(text: str) -> str | None:
    """Describe why a text cannot be encoded as UTF-8; returns `None` if it can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        return (
            f"contains an unpaired surrogate ({code}, character {error.start + 1}), which is not text: fix or drop it"
        )
    return None


def read_prompt(value: Any) -> str | list[Message]:
    """Return a prompt: a text, or a conversation up to and including its last turn that is not the assistant's.

    A final assistant turn is left out, because the policy generates it.
    """
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"must be non-empty text, got {value!r}")
        if problem := text_problem(value):
            raise ValueError(problem)
        return value
    if not isinstance(value, Sequence) or not value:
        raise ValueError(
            f"must be text or a list of {{role, content}}, got {_shown(value)} of type {type(value).__name__}"
        )
    messages = [_message(number, message) for number, message in enumerate(value, 1)]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        raise ValueError(
            "has no user turn to answer: it must end with a user turn, or with one and the assistant's answer"
        )
    return messages


def _message(number: int, message: Any) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"has no role in message {number}: each is {{role: user, content: …}}")
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        raise ValueError(f"has the role {role!r} in message {number}; roles are {', '.join(ROLES)}")
    if isinstance(content, list):
        raise ValueError(
            f"has a list of content parts in message {number}; `distributions` need text: write the content as one "
            "string, or use dataset_name with a model that accepts content parts"
        )
    if not isinstance(content, str):
        raise ValueError(f"has no content in message {number}: each is {{role: user, content: …}}, content a text")
    if problem := text_problem(content):
        raise ValueError(f"message {number} {problem}")
    return {"role": role, "content": content}


def read_answer(value: Any) -> str:
    """Return a reference answer as text: an integer or a finite number is written without an exponent."""
    if isinstance(value, str):
        if problem := text_problem(value):
            raise ValueError(problem)
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        advice = "; name one value by a dotted path, such as answer.0" if isinstance(value, list | Mapping) else ""
        raise ValueError(f"must be text or a number, got {_shown(value)} of type {type(value).__name__}{advice}")
    if not math.isfinite(value):
        raise ValueError(f"must be text or a finite number, got {value}")
    if isinstance(value, int):
        return str(value)
    text = format(Decimal(repr(value)) if isinstance(value, float) else value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _shown(value: Any, longest: int = 80) -> str:
    """Format a value for an error message; an unpaired surrogate is escaped, because it cannot be printed."""
    text = repr(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= longest else text[: longest - 1] + "…"
