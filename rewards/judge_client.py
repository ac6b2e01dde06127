"""Chats with an OpenAI-compatible server, many at once, bounded in number, time and retries.

    vllm serve Qwen/Qwen2.5-32B-Instruct-AWQ --port 8001

Temporary failures are retried: no connection, a timeout, HTTP 429 and 5xx (after the wait that the server requests),
a response that is not a chat completion. A permanent failure is a [`Reply`] with a short cause and the server's
message, and does not affect other requests. The retries of the `openai` package are off: this is the only retry
policy.

When as many requests in a row have failed as run at a time, and at least four, because of the server, the rest of the
call fails immediately: otherwise thousands of requests would wait for their deadlines one after the other.

A request has `model`, `messages`, `temperature` and a token limit, and with a schema `response_format`. Options omit
or rename the fields that a server rejects, and the error message names the option.
"""

import asyncio
import copy
import difflib
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from . import own_loop
from .chat_replies import FAILURES, NOT_FOUND, RETRIED, Cause, Reply, cause_of, error_in, is_hopeless, read_completion
from .judge_advice import TOKEN_FIELDS, advice
from .retries import LONGEST_PAUSE, WaitReport, pause_before_retry

__all__ = ["FAILURES", "RETRIED", "Chat", "JudgeClient", "JudgeError", "Reply"]

Chat = list[dict[str, str]]
LEAST_DEAD = 4  # failures in a row; fewer may be a prompt's own
STRUCTURED = ("json_schema", "none")
PROBE_TIMEOUT = 30.0
PROBE: Chat = [
    {"role": "system", "content": "You answer with JSON."},
    {"role": "user", "content": 'Reply with the JSON object {"ok": true} and nothing else.'},
]
PROBE_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


class JudgeError(RuntimeError):
    """A judge's server cannot be used; the message has the cause and how to fix it in one line.

    Args:
        message (`str`): the line.
        is_hopeless (`bool`, *optional*, defaults to `False`): whether waiting cannot help: no access, no such model.
    """

    def __init__(self, message: str, is_hopeless: bool = False):
        super().__init__(message)
        self.is_hopeless = is_hopeless


class Failed(Protocol):
    """A reply or a judgement that failed."""

    @property
    def failure(self) -> str | None: ...
    @property
    def detail(self) -> str | None: ...
    @property
    def tries(self) -> int: ...
    @property
    def status(self) -> int | None: ...


class JudgeClient:
    """
    Args:
        base_url (`str`): of the server's API, such as `http://127.0.0.1:8001/v1`.
        model (`str`, *optional*): the served name of the model; by default the only one served. Required if the server
            does not list its models.
        api_key_variable (`str`, *optional*): environment variable with the key; it is never logged or written.
        max_concurrency (`int`, *optional*, defaults to 32): requests under way at a time.
        timeout (`float`, *optional*, defaults to 120.0): seconds for one try.
        retries (`int`, *optional*, defaults to 10): tries after the first; with the pauses between them they take
            about two minutes, in which a server can be started again.
        deadline (`float`, *optional*, defaults to 600.0): seconds for a request with all its tries and pauses.
        temperature (`float`, *optional*, defaults to 0.0): sampling temperature; `None` omits it, for models that
            accept only their default.
        max_tokens (`int`, *optional*, defaults to 1024): tokens of a reply, including reasoning.
        max_tokens_field (`str`, *optional*, defaults to `"max_tokens"`): request field of this limit;
            `max_completion_tokens` for OpenAI's reasoning models.
        structured (`str`, *optional*, defaults to `"json_schema"`): `json_schema` makes the server constrain decoding
            with `response_format` if a schema is passed; `none` omits that field.
        extra_body (`dict`, *optional*): additional keys of every request, such as `chat_template_kwargs`.
        name (`str`, *optional*, defaults to `"judge"`): its name in messages: `judge`, `meta_judge` or
            `held_out_judge`.

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
        temperature: float | None = 0.0,
        max_tokens: int = 1024,
        max_tokens_field: str = "max_tokens",
        structured: str = "json_schema",
        extra_body: dict[str, Any] | None = None,
        name: str = "judge",
    ):
        limits = {
            "max_concurrency": max_concurrency,
            "timeout": timeout,
            "deadline": deadline,
            "max_tokens": max_tokens,
        }
        for option, value in limits.items():
            if not value > 0:
                raise ValueError(f"{option} must be above 0, not {value}")
        for option, number in {"retries": retries, "temperature": temperature}.items():
            if number is not None and not 0 <= number < math.inf:
                raise ValueError(f"{option} must be a number of at least 0, not {number}")
        if structured not in STRUCTURED:
            raise ValueError(f"structured is one of {', '.join(STRUCTURED)}, not {structured!r}")
        if max_tokens_field not in TOKEN_FIELDS:
            raise ValueError(f"max_tokens_field is one of {', '.join(TOKEN_FIELDS)}, not {max_tokens_field!r}")
        if api_key_variable is not None:
            read_key(api_key_variable)
        self.base_url, self.model, self._key_variable = base_url.rstrip("/"), model, api_key_variable
        self.max_concurrency, self.timeout, self.retries, self.deadline = max_concurrency, timeout, retries, deadline
        self.temperature, self.max_tokens, self.max_tokens_field = temperature, max_tokens, max_tokens_field
        self.structured, self.extra_body, self.name = structured, extra_body or {}, name

    @property
    def description(self) -> str:
        """Which judge this is: its name, address and model."""
        return f"{self.name} ({self.base_url}{f', model {self.model}' if self.model else ''})"

    # ---- checks ----

    def check(self) -> None:
        """Check that the server can be used, and set `model` to the only one served if it is not set.

        The client requests the list of models. If the server uses a key or has no such list, the client also sends a
        short chat, because some servers list their models without checking the key.

        Raises:
            JudgeError: no answer, no such model, no access, or options that the server rejects.
        """
        problem = self._find_problem(self.timeout, self.retries, chat=self._key_variable is not None)
        if problem is not None:
            raise JudgeError(problem)

    def probe(self, timeout: float = PROBE_TIMEOUT) -> str | None:
        """Check with one short chat, and no retry, whether the server accepts this client's options and key.

        Args:
            timeout (`float`, *optional*, defaults to 30.0): seconds to wait for each of the two answers.

        Returns:
            `str` or `None`: what is wrong and how to fix it, in one line; `None` if the server answers, or is busy.
        """
        return self._find_problem(min(timeout, self.timeout), retries=0, chat=True)

    def _find_problem(self, timeout: float, retries: int, chat: bool) -> str | None:
        """Return why the server cannot be used, and set `model`; `chat` forces a chat even if the model is listed."""
        names, problem = self._find_model(timeout)
        if problem is not None or (self.model in names and not chat):
            return problem
        same = copy.copy(self)
        same.timeout, same.retries = timeout, retries
        (reply,) = same.complete([PROBE], PROBE_SCHEMA)
        if reply.failure in (None, "truncated", "refusal", "rate_limit"):
            return None
        if reply.status == NOT_FOUND and names and self.model not in names:
            return f"{self._served_line(names)}, not {self.model} ({reply.detail})"
        return self._unusable(Cause(reply.failure, reply.detail or "", reply.status), reply.tries)

    def _find_model(self, timeout: float) -> tuple[list[str], str | None]:
        """Return the models that the server lists and why none can be used, if so; sets `model`."""
        names: list[str] = []
        try:
            names = own_loop.run(self._served(timeout))
        except Exception as error:  # a server of something else may send anything
            cause = cause_of(error)
            if self.model is None or cause.failure in ("connection", "timeout"):
                return names, self._unusable(cause)
        if self.model is None and len(names) != 1:
            return names, f"{self._served_line(names)}: set model to one of them"
        self.model = self.model or names[0]
        if names and self.model not in names and self._key_variable is None:
            return names, f"{self._served_line(names)}, not {self.model}"
        return names, None

    def _served_line(self, names: list[str], most: int = 8) -> str:
        """Describe which models the server lists; of many, the ones closest to `model`."""
        listed = ", ".join(names) or "no listed model"
        if len(names) > most:
            close = difflib.get_close_matches(self.model, names, n=3) if self.model else []
            listed = f"{len(names)} models" + (f" (such as {', '.join(close)})" if close else "")
        return f"the judge's server at {self.base_url} serves {listed}"

    def _unusable(self, cause: Cause, tries: int = 1) -> str:
        """Describe in one line why the server cannot be used and how to fix it."""
        often = f", tried {tries} times" if tries > 1 else ""
        said = f"cannot use the judge's server at {self.base_url} ({cause.failure}: {self._without_key(cause.detail)}"
        return f"{said}{often}); {self.advice(cause.failure, cause.detail, cause.status)}"

    def advice(self, failure: str, detail: str, status: int | None = None) -> str:
        """Return how to fix a failure of this server."""
        return advice(
            Cause(failure, detail, status),
            key_variable=self._key_variable,
            max_tokens_field=self.max_tokens_field,
            extra_keys=self.extra_body,
        )

    def describe(self, what: str, failures: Sequence[Failed]) -> str:
        """Describe N > 0 failures in one line: the judge, the number of attempts, the server's message, how to fix it.

        Args:
            what (`str`): what failed, such as `the last 16 judgements in a row failed`.
            failures (`Sequence[Reply | Judgement]`): the failures; the last one of the most frequent kind is quoted.
        """
        worst = Counter(each.failure for each in failures).most_common(1)[0][0]
        last = next(each for each in reversed(failures) if each.failure == worst)
        tries = f"{last.tries} {'try' if last.tries == 1 else 'tries'} each"
        detail = (last.detail or "").removesuffix(".")
        fix = self.advice(str(worst), detail, last.status)
        return f"{self.description}: {what}, after {tries}; mostly {worst}: {detail}. To fix it, {fix}"

    def error(self, what: str, failures: Sequence[Failed]) -> JudgeError:
        """Return the error that ends a run for such failures."""
        return JudgeError(
            f"{self.describe(what, failures)}; then resume with resume_from_checkpoint: true",
            all(is_hopeless(each.failure, each.status) for each in failures),
        )

    # ---- chats ----

    def complete(
        self, chats: Sequence[Chat], schema: dict[str, Any] | None = None, temperature: float | None = None
    ) -> list[Reply]:
        """Answer chats, in their order.

        Args:
            chats (`Sequence[list[dict]]`): N lists of messages.
            schema (`dict`, *optional*): JSON schema of the answer, for a server that is `structured`.
            temperature (`float`, *optional*): other than the client's; not sent where the client's is `None`.

        Returns:
            `list[Reply]`: N replies, failures among them.

        Raises:
            JudgeError: the server does not say what it serves, which is asked before the first chat.
        """
        if not chats:
            return []
        if self.model is None:
            _, problem = self._find_model(self.timeout)
            if problem is not None:
                raise JudgeError(problem)
        return own_loop.run(self._complete_all(chats, self._request(schema, temperature)))

    def _request(self, schema: dict[str, Any] | None, temperature: float | None) -> dict[str, Any]:
        """Return the fields that all requests of a call share."""
        options: dict[str, Any] = {"model": self.model, self.max_tokens_field: self.max_tokens}
        if self.temperature is not None:
            options["temperature"] = self.temperature if temperature is None else temperature
        if schema is not None and self.structured == "json_schema":
            guide = {"name": "answer", "schema": schema, "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": guide}
        if self.extra_body:
            options["extra_body"] = self.extra_body
        return options

    def _open(self, timeout: float) -> Any:
        from openai import AsyncOpenAI

        key = read_key(self._key_variable) if self._key_variable else "none"
        return AsyncOpenAI(base_url=self.base_url, api_key=key, max_retries=0, timeout=timeout)

    def _without_key(self, detail: str) -> str:
        """Servers repeat a key that they refuse."""
        return detail.replace(read_key(self._key_variable), "[key]") if self._key_variable else detail

    async def _served(self, timeout: float) -> list[str]:
        async with self._open(timeout) as server, asyncio.timeout(timeout):
            return [model.id async for model in server.models.list()]

    async def _complete_all(self, chats: Sequence[Chat], options: dict[str, Any]) -> list[Reply]:
        slots, failed_in_a_row, last = asyncio.Semaphore(self.max_concurrency), 0, Reply()
        dead_after = max(self.max_concurrency, LEAST_DEAD)
        report = WaitReport(self.description, len(chats))

        async def one(chat: Chat) -> Reply:
            nonlocal failed_in_a_row
            async with slots:
                if failed_in_a_row >= dead_after:
                    return replace(last, prompt_tokens=0, completion_tokens=0)
                reply = await self._persist(server, chat, options, report)
            note(reply)
            report.answered()
            return reply

        def note(reply: Reply) -> None:
            nonlocal failed_in_a_row, last
            dead = reply.failure in RETRIED or is_hopeless(reply.failure, reply.status)
            failed_in_a_row = failed_in_a_row + 1 if dead else 0
            last = reply if dead else last

        async with self._open(self.timeout) as server, report.running():
            return await asyncio.gather(*map(one, chats))

    async def _persist(self, server: Any, chat: Chat, options: dict[str, Any], report: WaitReport) -> Reply:
        """Try a chat until it is answered, refused, or time or tries are over."""
        end, used = time.monotonic() + self.deadline, [0, 0]
        for attempt in range(self.retries + 1):
            left = max(0.001, end - time.monotonic())
            reply, wait = await self._try(server, chat, options, min(left, self.timeout))
            used = [used[0] + reply.prompt_tokens, used[1] + reply.completion_tokens]
            pause = pause_before_retry(attempt, wait, LONGEST_PAUSE)
            last = attempt == self.retries or time.monotonic() + pause >= end
            if reply.failure not in RETRIED or last:
                break
            report.retry(f"{reply.failure}, {reply.detail}", attempt + 1, self.retries + 1, pause)
            await asyncio.sleep(pause)
        return replace(reply, prompt_tokens=used[0], completion_tokens=used[1], tries=attempt + 1)

    async def _try(
        self, server: Any, chat: Chat, options: dict[str, Any], timeout: float
    ) -> tuple[Reply, float | None]:
        """Send a chat once; returns the reply and the wait in seconds that the server requests."""
        try:
            async with asyncio.timeout(timeout):  # the package's timeout restarts with every byte
                completion = await server.chat.completions.create(messages=chat, **options)
            cause = error_in(completion)
            if cause is None:
                return read_completion(completion), None
        except TimeoutError:
            cause = Cause("timeout", f"no answer in {timeout:g} s")
        except Exception as error:  # an invalid response must not affect other requests
            cause = cause_of(error)
        reply = Reply(failure=cause.failure, detail=self._without_key(cause.detail), status=cause.status)
        return reply, cause.wait


def is_servers_fault(failures: Sequence[Failed]) -> bool:
    """Return whether all N replies or judgments failed because of the server, and not of a prompt."""
    return all(each.failure in RETRIED or is_hopeless(each.failure, each.status) for each in failures)


def read_key(variable: str) -> str:
    """Return the key in an environment variable, without a trailing newline.

    Raises:
        ValueError: the variable is not set, its value cannot be sent, or `variable` is not a valid name. The message
            never contains the value.
    """
    if not variable.isidentifier():
        raise ValueError("api_key_variable is the name of an environment variable, such as OPENAI_API_KEY, not a key")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"the environment variable {variable}, which holds the judge's key, is not set")
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"the environment variable {variable}, which holds the judge's key, has invalid characters")
    return key
