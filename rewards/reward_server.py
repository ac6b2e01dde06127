"""A reward model behind HTTP: vLLM as a pooling server, beside the GPUs that train.

    vllm serve MODEL --runner pooling --dtype bfloat16

Responses are tokenized here, as TRL's `RewardTrainer` does it, and sent as tokens to vLLM's `/classify`. Two of its
defaults would give other rewards without a word: it answers with the sigmoid unless told `use_activation: false`, and
reads the last token, where transformers' models look past what pads, even where that token also ends a text. What the
server computes in is its own `--dtype`: left to itself vLLM serves float32 in 16 bits.

A server that fails ends the run with its cause; it never becomes a reward.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
import numpy as np

from . import own_loop
from .responses import ResponseScorer, padding_token

PAUSES = (1.0, 5.0)  # seconds before the second try of a request and the third
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
        timeout (`float`, *optional*, defaults to 120.0): seconds for one request; it is tried three times.

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
    ):
        for name, value in (("batch_size", batch_size), ("max_length", max_length), ("timeout", timeout)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        self.url, self.batch_size, self.timeout = url.rstrip("/"), batch_size, timeout
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
        """Read each entry of the server's answer; what may pass (no connection, HTTP 5xx) is tried again."""
        for pause in (*PAUSES, None):
            try:
                response = own_loop.run(self._request(method, path, body))
                if response.is_success:
                    return [read(entry) for entry in response.json()["data"]]
                trouble, passing = f"HTTP {response.status_code}: {_reason(response)}", response.is_server_error
            except TimeoutError:
                trouble, passing = f"no whole answer in {self.timeout:g} s", True
            except httpx.TransportError as error:
                trouble, passing = f"{type(error).__name__}: {error}", True
            except (httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError) as error:
                trouble, passing = f"an answer that is not vLLM's, {type(error).__name__}: {error}", False
            if pause is None or not passing:
                break
            time.sleep(pause)
        raise RewardServerError(
            f"no use of the reward server at {self.url}{path}{f', tried {len(PAUSES) + 1} times' if passing else ''} "
            f"({' '.join(trouble.split())[:300]}); start it with `vllm serve MODEL --runner pooling`"
        )

    async def _request(self, method: str, path: str, body: Any) -> httpx.Response:
        # httpx's own timeout is that of each read
        async with httpx.AsyncClient(timeout=None) as client, asyncio.timeout(self.timeout):
            return await client.request(method, self.url + path, json=body)


def _indexed(row: Any) -> tuple[int, list[float]]:
    """Read the place and the labels' scores of a response."""
    return int(row["index"]), [float(score) for score in row["probs"]]


def _reason(response: httpx.Response) -> str:
    """Return what the server says about a refusal."""
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return response.text


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
