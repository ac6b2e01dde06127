"""Parse a chat server's response into a [`Reply`]: text, or the cause of a failure with the server's message."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

RETRIED = ("timeout", "connection", "rate_limit", "server_error", "bad_reply")  # may succeed later
FAILURES = (*RETRIED, "refused", "refusal", "empty", "truncated")
NO_ACCESS, NOT_FOUND = (401, 402, 403, 429), 404  # 429 if the account has no credit
RETRIED_STATUSES = {408: "timeout", 409: "server_error", 429: "rate_limit"}  # and 500 and above
LONGEST_DETAIL = 200  # characters of a server's message
NO_CREDIT = "insufficient_quota"  # OpenAI sends it with 429, and no waiting helps


@dataclass(frozen=True)
class Reply:
    """The result of a chat request.

    Args:
        text (`str`, *optional*): the answer, complete or truncated.
        failure (`str`, *optional*): one of `FAILURES`; `None` where there is a complete answer.
        detail (`str`, *optional*): the server's message about a failure.
        prompt_tokens (`int`): as the server counts them, over all answered attempts.
        completion_tokens (`int`): likewise.
        tries (`int`): requests sent for this chat.
        status (`int`, *optional*): HTTP status of a failure, if the server sent one.
    """

    text: str | None = None
    failure: str | None = None
    detail: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tries: int = 0
    status: int | None = None


@dataclass(frozen=True)
class Cause:
    """Why an attempt failed.

    Args:
        failure (`str`): one of `FAILURES`.
        detail (`str`): the server's message.
        status (`int`, *optional*): HTTP status, if the server sent one.
        wait (`float`, *optional*): seconds to wait, as the server requests.
    """

    failure: str
    detail: str
    status: int | None = None
    wait: float | None = None


def is_hopeless(failure: str | None, status: int | None) -> bool:
    """Return whether every request would fail in the same way: no access, or no such model."""
    return failure == "refused" and status in (*NO_ACCESS, NOT_FOUND)


def read_completion(completion: Any) -> Reply:
    """Read a chat completion; raises `ValueError` for anything else.

    The answer is the text of `content`, which may be a list of parts. Without `content` it is `reasoning_content` (or
    `reasoning`), where some servers put the answer of a model whose thinking is disabled.
    """
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list):
        raise ValueError(f"not a chat completion: {shorten(str(completion), 100)!r}")
    usage = getattr(completion, "usage", None)
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    used = [count if isinstance(count, int) else 0 for count in counts]
    choice = choices[0] if choices else None
    message, ending = getattr(choice, "message", None), getattr(choice, "finish_reason", None)
    text = _text(getattr(message, "content", None))
    if ending == "length":  # also if the model only reasoned
        return Reply(text, "truncated", f"the reply was cut off after {used[1]} tokens: raise max_tokens", *used)
    refusal = _text(getattr(message, "refusal", None)) or _refusal_part(getattr(message, "content", None))
    if text is None and refusal is not None:
        return Reply(None, "refusal", f"the model refused: {shorten(refusal)}", *used)
    if ending == "content_filter":
        return Reply(None, "refusal", "the server's content filter blocked the reply", *used)
    if text is None:
        text = _text(getattr(message, "reasoning_content", None)) or _text(getattr(message, "reasoning", None))
    if text is None:
        return Reply(None, "empty", "a reply without text", *used)
    return Reply(text, None, None, *used)


def _text(content: Any) -> str | None:
    """Return a message's content as text, joined if it is a list of parts; `None` if it is blank."""
    if isinstance(content, list):
        content = "".join(part for part in map(_text_of_part, content) if part is not None)
    return content if isinstance(content, str) and content.strip() else None


def _text_of_part(part: Any) -> str | None:
    """Return the text of a part of type `text` or `output_text`; `None` for other types, such as reasoning."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type", "text") not in ("text", "output_text"):
        return None
    return part["text"] if isinstance(part.get("text"), str) else None


def _refusal_part(content: Any) -> str | None:
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    return next((text for part in parts if (text := _text(part.get("refusal")))), None)


def error_in(completion: Any) -> Cause | None:
    """Return the cause where a server sent an error with HTTP 200, as routers of several APIs do."""
    error = getattr(completion, "error", None)
    if not isinstance(error, Mapping) or getattr(completion, "choices", None):
        return None
    status = error.get("code")
    if not isinstance(status, int) or not 400 <= status < 600:
        status = 500
    return cause_of_status(status, words_of({"error": error}), code=None)


def cause_of(error: Exception) -> Cause:
    """Return why an attempt failed, from the exception of the `openai` package."""
    import openai

    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return Cause("timeout", shorten(str(error)) or "no answer in time")
    if isinstance(error, openai.APIStatusError):
        headers = error.response.headers
        words = words_of(error.body) if error.body else ""
        return cause_of_status(error.status_code, words, error.code or error.type, requested_wait(headers))
    if isinstance(error, json.JSONDecodeError):
        return Cause("bad_reply", f"not JSON: {words_of(error.doc) or 'nothing'}")
    if isinstance(error, openai.APIResponseValidationError) or not isinstance(error, openai.OpenAIError):
        return Cause("bad_reply", f"{type(error).__name__}: {shorten(str(error))}".removesuffix(": "))
    reason = error.__cause__
    detail = f"{error} {type(reason).__name__}: {reason}" if reason else str(error)
    return Cause("connection", shorten(detail) or type(error).__name__)


def cause_of_status(status: int, words: str, code: str | None, wait: float | None = None) -> Cause:
    """Return the cause for an HTTP status of 400 or more.

    Args:
        status (`int`): the status.
        words (`str`): the server's message.
        code (`str`, *optional*): the error's code in the server's answer.
        wait (`float`, *optional*): seconds to wait, as the server requests.
    """
    name = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
    detail = f"{status} {name}".strip() + (f": {words}" if words else "")
    failure = "server_error" if status >= 500 else RETRIED_STATUSES.get(status, "refused")
    return Cause("refused" if code == NO_CREDIT else failure, detail, status, wait)


def words_of(body: Any) -> str:
    """Return the message in an error's body: JSON in one of the usual forms, a page of HTML, or any text."""
    if isinstance(body, Mapping):
        error = body.get("error", body)
        found = error if isinstance(error, str) else None
        if isinstance(error, Mapping):
            found = next((error[key] for key in ("message", "detail", "error", "msg") if error.get(key)), None)
        body = found if isinstance(found, str) else json.dumps(body, ensure_ascii=False)
    text = str(body)
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE)
    return shorten(f"a web page, {title[1].strip()!r}" if title else text)


def shorten(text: str, longest: int = LONGEST_DETAIL) -> str:
    """Return text as one line of at most `longest` characters that can be encoded as UTF-8."""
    return " ".join(text.split())[:longest].encode(errors="replace").decode()


def requested_wait(headers: Mapping[str, str]) -> float | None:
    """Return the wait that a server requests, in seconds: `Retry-After` in seconds or as a date, or in ms."""
    milliseconds, given = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds:
            return max(0.0, float(milliseconds) / 1000)
        return max(0.0, float(given)) if given else None
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(given or "")
    except ValueError:
        return None
    now = datetime.now(UTC) if date.tzinfo else datetime.now()
    return max(0.0, (date - now).total_seconds())
