"""A reward model behind HTTP: vLLM as a pooling server, beside the GPUs that train.

    vllm serve MODEL --runner pooling --dtype bfloat16

Responses are tokenized here, as TRL's `RewardTrainer` does it, and sent as tokens to vLLM's `/classify`. Two of its
defaults would give other rewards without a word: it answers with the sigmoid unless told `use_activation: false`, and
reads the last token, where transformers' models look past what pads, even where that token also ends a text. What the
server computes in is its own `--dtype`: left to itself vLLM serves float32 in 16 bits.

A server that fails ends the run with its cause; it never becomes a reward.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import httpx
import numpy as np

from . import own_loop
from .chat_replies import RETRIED, Cause, cause_of_status, requested_wait, shorten, words_of
from .judge_client import read_key
from .responses import ResponseScorer, padding_token
from .retries import WaitReport

# seconds before each further attempt, the last one repeats: 8 take about two minutes, enough to restart a server
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
Row = TypeVar("Row")


class RewardServerError(RuntimeError):
    """The server of a reward model cannot be used, with the cause and the mend in one line."""


class RewardServer(ResponseScorer):
    """A reward model that a vLLM pooling server runs.

    Args:
        url (`str`): of the server, such as `http://127.0.0.1:8000`.
        model (`str`, *optional*): the name that it serves the model by; needed where it serves several.
        tokenizer (`str`, *optional*): the model's folder or hub name as this machine sees it, for its tokenizer and
            configuration; by default as the server names it.
        batch_size (`int`, *optional*, defaults to 64): responses in a request.
        max_length (`int`, *optional*): as for [`RewardModel`]; by default what the server takes.
        timeout (`float`, *optional*, defaults to 120.0): seconds for one attempt of a request.
        retries (`int`, *optional*, defaults to 8): attempts after the first if the server does not answer or is busy.
        api_key_variable (`str`, *optional*): environment variable with the server's key; it is never logged or
            written.
        name (`str`, *optional*, defaults to `"reward server"`): its name in messages.

    Raises:
        RewardServerError: no answer, another model, or one that has several labels; scoring raises it too.
        ValueError: the tokenizer cannot be loaded.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        tokenizer: str | None = None,
        batch_size: int = 64,
        max_length: int | None = None,
        timeout: float = 120.0,
        retries: int = 8,
        api_key_variable: str | None = None,
        name: str = "reward server",
    ):
        for option, value in (("batch_size", batch_size), ("max_length", max_length), ("timeout", timeout)):
            if value is not None and value <= 0:
                raise ValueError(f"{option} must be above 0, not {value}")
        if retries < 0:
            raise ValueError(f"retries must be at least 0, not {retries}")
        if api_key_variable is not None:
            read_key(api_key_variable)
        self.url, self.batch_size, self.timeout, self.retries = url.rstrip("/"), batch_size, timeout, retries
        self._key_variable, self.name = api_key_variable, name
        self.model, root, longest = self._served(model)
        self.max_length = max_length or longest
        self.tokenizer, config = _load_tokenizer(tokenizer or root or self.model, self.url)
        self._pad_token_id = padding_token(self.tokenizer, config)

    def _served(self, model: str | None) -> tuple[str, str | None, int | None]:
        """Return name, folder or hub name, and longest response of the model, as the server has them."""
        entries = self._ask(
            "GET", "/v1/models", lambda entry: (entry["id"], entry.get("root"), entry.get("max_model_len"))
        )
        matching = [entry for entry in entries if model is None or model in entry[:2]]
        names = ", ".join(name for name, *_ in entries)
        if not matching:
            raise RewardServerError(f"the reward server at {self.url} serves {names}, not {model}")
        if model is None and len(matching) > 1:
            raise RewardServerError(f"the reward server at {self.url} serves {names}: name one of them as model")
        return matching[0]

    def _rewards(self, responses: list[list[int]]) -> np.ndarray:
        rewards: list[float] = []
        for start in range(0, len(responses), self.batch_size):
            batch = [self._until_padding(ids) for ids in responses[start : start + self.batch_size]]
            body = {"model": self.model, "input": batch, "use_activation": False}
            rows = sorted(self._ask("POST", "/classify", _indexed, body))
            if len(rows) != len(batch):
                raise RewardServerError(
                    f"the reward server at {self.url} scored {len(rows)} responses of the {len(batch)} it was sent"
                )
            labels = {len(scores) for _, scores in rows}
            if labels != {1}:
                raise RewardServerError(
                    f"{self.model} at {self.url} is no reward model: it has {max(labels)} labels, not one"
                )
            rewards += [reward for _, (reward,) in rows]
        return np.array(rewards, dtype=float)

    def _until_padding(self, ids: list[int]) -> list[int]:
        """Return the tokens up to the last that is no padding, where transformers reads the reward."""
        end = len(ids)
        while end > 1 and ids[end - 1] == self._pad_token_id:
            end -= 1
        return ids[:end]

    def _ask(self, method: str, path: str, read: Callable[[Any], Row], body: Any = None) -> list[Row]:
        """Read each entry of the server's response; retry temporary failures: no connection, HTTP 429 and 5xx."""
        return own_loop.run(self._persist(method, path, read, body))

    async def _persist(self, method: str, path: str, read: Callable[[Any], Row], body: Any) -> list[Row]:
        report, tries = WaitReport(f"{self.name} ({self.url})", 1), self.retries + 1
        async with report.running():
            tried = 0
            while True:
                tried += 1
                found = await self._try(method, path, read, body)
                if isinstance(found, list):
                    return found
                if tried == tries or found.failure not in RETRIED:
                    often = f", tried {tried} times" if tried > 1 else ""
                    said = f"cannot use the reward server at {self.url}{path}{often} ({found.detail})"
                    raise RewardServerError(f"{self.name}: {said}; {self._advice(found)}")
                pause = max(PAUSES[min(tried, len(PAUSES)) - 1], found.wait or 0.0)
                report.retry(found.detail, tried, tries, pause)
                await asyncio.sleep(pause)

    def _advice(self, cause: Cause) -> str:
        if cause.status in (401, 403) and self._key_variable is None:
            return "set `api_key_variable` to the environment variable that holds the server's key"
        if cause.status in (401, 403):
            return f"check the key in the environment variable {self._key_variable}"
        return "start it with `vllm serve MODEL --runner pooling`"

    async def _try(self, method: str, path: str, read: Callable[[Any], Row], body: Any) -> list[Row] | Cause:
        """Send a request once; returns the entries of the response, or the cause of a failure."""
        try:
            response = await self._request(method, path, body)
            if response.is_success:
                return [read(entry) for entry in response.json()["data"]]
            status, words = response.status_code, self._words(response)
            cause = cause_of_status(status, words, None, requested_wait(response.headers))
            return replace(cause, detail=f"HTTP {status}: {words}")
        except TimeoutError:
            return Cause("timeout", f"no complete answer in {self.timeout:g} s")
        except httpx.UnsupportedProtocol:
            return Cause("refused", "its URL must start with http:// or https://")
        except httpx.TransportError as error:
            return Cause("connection", f"{type(error).__name__}: {shorten(str(error))}")
        except (httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError) as error:
            return Cause("refused", f"an answer that is not vLLM's, {type(error).__name__}: {shorten(str(error))}")

    async def _request(self, method: str, path: str, body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {read_key(self._key_variable)}"} if self._key_variable else {}
        # httpx's own timeout is that of each read
        async with httpx.AsyncClient(timeout=None, headers=headers) as client, asyncio.timeout(self.timeout):
            return await client.request(method, self.url + path, json=body)

    def _words(self, response: httpx.Response) -> str:
        """Return the server's error message, without the key that it may repeat."""
        try:
            words = words_of(response.json())
        except ValueError:
            words = words_of(response.text)
        return words.replace(read_key(self._key_variable), "[key]") if self._key_variable else words


def _indexed(row: Any) -> tuple[int, list[float]]:
    """Read the place and the labels' scores of a response."""
    return int(row["index"]), [float(score) for score in row["probs"]]


def _load_tokenizer(model: str, url: str) -> tuple[Any, Any]:
    """Load a model's tokenizer and configuration."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model), AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer of {model}, which the reward server at {url} runs, cannot be loaded: name the model's "
            f"folder or hub name as this machine sees it as tokenizer ({' '.join(str(error).split())[:200]})"
        ) from error
