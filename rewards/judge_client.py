"""Chats with an OpenAI-compatible server, many at once, bounded in number, time and retries.

    vllm serve Qwen/Qwen2.5-32B-Instruct-AWQ --port 8001

What may pass is tried again: no connection, no answer in time, HTTP 429 (after the time that the server asks for) and
5xx, an answer that is no chat completion. What stays a failure is a [`Reply`] that says so by a short cause and in the
server's words; it touches no other request. One policy rules this: the retries of the `openai` package are off.

When as many requests in a row have failed as run at a time, and at least four, the server is taken for dead and the
rest of the call fails at once: ten thousand requests would else wait for their deadlines one after the other.
"""

import asyncio
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import own_loop

Chat = list[dict[str, str]]
FAILURES = ("timeout", "connection", "rate_limit", "server_error", "refused", "bad_reply", "empty", "truncated")
PASSING = ("timeout", "connection", "rate_limit", "server_error", "bad_reply")
LONGEST_PAUSE = 30.0  # seconds between two tries
LEAST_DEAD = 4  # failures in a row; fewer may be a prompt's own
STRUCTURED = ("json_schema", "none")


class JudgeError(RuntimeError):
    """The server of a judge cannot be used, with the cause and the mend in one line."""


@dataclass(frozen=True)
class Reply:
    """What came of a chat.

    Args:
        text (`str`, *optional*): the answer; also of a truncated one.
        failure (`str`, *optional*): one of `FAILURES`; `None` where there is a whole answer.
        detail (`str`, *optional*): of a failure, in the server's words.
        prompt_tokens (`int`): as the server counts them, over all tries that were answered.
        completion_tokens (`int`): likewise.
    """

    text: str | None = None
    failure: str | None = None
    detail: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class JudgeClient:
    """
    Args:
        base_url (`str`): of the server's API, such as `http://127.0.0.1:8001/v1`.
        model (`str`, *optional*): the name that it serves the model by; by default the only one that it serves.
        api_key_variable (`str`, *optional*): environment variable with the key; it is never logged or written.
        max_concurrency (`int`, *optional*, defaults to 32): requests under way at a time.
        timeout (`float`, *optional*, defaults to 120.0): seconds for one try.
        retries (`int`, *optional*, defaults to 10): tries after the first; with the pauses between them they take
            about two minutes, in which a server can be started again.
        deadline (`float`, *optional*, defaults to 600.0): seconds for a request with all its tries and pauses.
        temperature (`float`, *optional*, defaults to 0.0): of the sampling.
        max_tokens (`int`, *optional*, defaults to 1024): of an answer.
        structured (`str`, *optional*, defaults to `"json_schema"`): `json_schema` lets the server guide decoding by a
            schema, where one is given; `none` for servers that cannot.
        extra_body (`dict`, *optional*): further keys of every request, such as `chat_template_kwargs`.

    Raises:
        ValueError: an option out of range, or a key's variable that is not set.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key_variable: str | None = None,
        max_concurrency: int = 32,
        timeout: float = 120.0,
        retries: int = 10,
        deadline: float = 600.0,
        temperature: float = 0.0,
        max_tokens: int = 1024,
        structured: str = "json_schema",
        extra_body: dict[str, Any] | None = None,
    ):
        limits = {
            "max_concurrency": max_concurrency,
            "timeout": timeout,
            "deadline": deadline,
            "max_tokens": max_tokens,
        }
        for name, value in limits.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        for name, value in {"retries": retries, "temperature": temperature}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, not {value}")
        if structured not in STRUCTURED:
            raise ValueError(f"structured is one of {', '.join(STRUCTURED)}, not {structured!r}")
        if api_key_variable is not None and not os.environ.get(api_key_variable):
            raise ValueError(f"the environment variable {api_key_variable}, which has the judge's key, is not set")
        self.base_url, self.model, self._key_variable = base_url.rstrip("/"), model, api_key_variable
        self.max_concurrency, self.timeout, self.retries, self.deadline = max_concurrency, timeout, retries, deadline
        self.temperature, self.max_tokens, self.structured = temperature, max_tokens, structured
        self.extra_body = extra_body or {}

    def check(self) -> None:
        """Ask the server what it serves, and take its model where none is named.

        Raises:
            JudgeError: no answer, or another model.
        """
        try:
            names = own_loop.run(self._served())
        except Exception as error:  # a server of something else may send anything
            cause, detail, _ = _cause(error)
            detail = self._without_key(detail)
            raise JudgeError(
                f"no use of the judge's server at {self.base_url} ({cause}: {detail}); start it with "
                "`vllm serve MODEL`, and give its address with /v1"
            ) from error
        if self.model is not None and self.model not in names:
            raise JudgeError(f"the judge's server at {self.base_url} serves {', '.join(names)}, not {self.model}")
        if self.model is None and len(names) != 1:
            raise JudgeError(f"the judge's server at {self.base_url} serves {', '.join(names)}: name one as model")
        self.model = self.model or names[0]

    def complete(
        self, chats: Sequence[Chat], schema: dict[str, Any] | None = None, temperature: float | None = None
    ) -> list[Reply]:
        """Answer chats, in their order.

        Args:
            chats (`Sequence[list[dict]]`): N lists of messages.
            schema (`dict`, *optional*): JSON schema that decoding is guided by, where the server is `structured`.
            temperature (`float`, *optional*): other than the client's.

        Returns:
            `list[Reply]`: N replies, failures among them.

        Raises:
            JudgeError: the server does not say what it serves, which is asked before the first chat.
        """
        if not chats:
            return []
        if self.model is None:
            self.check()
        options: dict[str, Any] = {
            "model": self.model,
            "temperature": self.temperature if temperature is None else temperature,
            "max_tokens": self.max_tokens,
        }
        if schema is not None and self.structured == "json_schema":
            guide = {"name": "answer", "schema": schema, "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": guide}
        if self.extra_body:
            options["extra_body"] = self.extra_body
        return own_loop.run(self._complete_all(chats, options))

    def _open(self) -> Any:
        from openai import AsyncOpenAI

        key = os.environ[self._key_variable] if self._key_variable else "none"
        return AsyncOpenAI(base_url=self.base_url, api_key=key, max_retries=0, timeout=self.timeout)

    def _without_key(self, detail: str) -> str:
        """Servers repeat a key that they refuse."""
        return detail.replace(os.environ[self._key_variable], "[key]") if self._key_variable else detail

    async def _served(self) -> list[str]:
        async with self._open() as server, asyncio.timeout(self.timeout):
            return [model.id async for model in server.models.list()]

    async def _complete_all(self, chats: Sequence[Chat], options: dict[str, Any]) -> list[Reply]:
        slots, failed_in_a_row, last = asyncio.Semaphore(self.max_concurrency), 0, Reply()
        dead_after = max(self.max_concurrency, LEAST_DEAD)

        async def one(chat: Chat) -> Reply:
            nonlocal failed_in_a_row
            async with slots:
                if failed_in_a_row >= dead_after:
                    return Reply(failure=last.failure, detail=last.detail)
                reply = await self._persist(server, chat, options)
            note(reply)
            return reply

        def note(reply: Reply) -> None:
            nonlocal failed_in_a_row, last
            dead = reply.failure in PASSING
            failed_in_a_row = failed_in_a_row + 1 if dead else 0
            last = reply if dead else last

        async with self._open() as server:
            return await asyncio.gather(*map(one, chats))

    async def _persist(self, server: Any, chat: Chat, options: dict[str, Any]) -> Reply:
        """Try a chat until it is answered, refused, or time or tries are over."""
        end, used = time.monotonic() + self.deadline, [0, 0]
        for attempt in range(self.retries + 1):
            wanted = None
            try:
                left = max(0.001, end - time.monotonic())
                async with asyncio.timeout(min(left, self.timeout)):  # the package's own counts from byte to byte
                    reply = _read(await server.chat.completions.create(messages=chat, **options))
            except Exception as error:  # whatever a server sends ends its own request and no other
                cause, detail, wanted = _cause(error)
                reply = Reply(failure=cause, detail=self._without_key(detail))
            used = [used[0] + reply.prompt_tokens, used[1] + reply.completion_tokens]
            pause = max(min(2.0**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1.0), wanted or 0.0)
            last = attempt == self.retries or time.monotonic() + pause >= end
            if reply.failure not in PASSING or last:
                break
            await asyncio.sleep(pause)
        return Reply(reply.text, reply.failure, reply.detail, *used)


def _read(completion: Any) -> Reply:
    """Take a chat completion apart; raises `ValueError` for what is none."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list):
        raise ValueError(f"no chat completion: {str(completion)[:100]!r}")
    usage = getattr(completion, "usage", None)
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    used = [count if isinstance(count, int) else 0 for count in counts]
    message = getattr(choices[0], "message", None) if choices else None
    text = getattr(message, "content", None)
    text = text if isinstance(text, str) and text.strip() else None
    if choices and getattr(choices[0], "finish_reason", None) == "length":  # also of a model that only thought
        return Reply(text, "truncated", f"the answer had no end after {used[1]} tokens: raise max_tokens", *used)
    if text is None:
        return Reply(None, "empty", "an answer without text", *used)
    return Reply(text, None, None, *used)


def _cause(error: Exception) -> tuple[str, str, float | None]:
    """Return a failure's name, the server's words, and the seconds that it wants to be left alone."""
    import openai

    detail = " ".join(str(error).split())[:300].encode(errors="replace").decode() or type(error).__name__
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return "timeout", detail, None
    if isinstance(error, openai.APIStatusError):
        if error.status_code == 429:
            return "rate_limit", detail, _seconds(error.response.headers.get("retry-after"))
        return "server_error" if error.status_code >= 500 else "refused", detail, None
    if isinstance(error, openai.APIResponseValidationError) or not isinstance(error, openai.OpenAIError):
        return "bad_reply", f"{type(error).__name__}: {detail}", None
    cause = error.__cause__
    return "connection", f"{detail} {type(cause).__name__}: {cause}"[:300] if cause else detail, None


def _seconds(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; dates are as good as none."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
