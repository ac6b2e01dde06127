"""Responses as a reward model reads them, whatever engine runs the model.

Texts and conversations become tokens exactly as TRL's `RewardTrainer` makes them of `prompt` and `chosen`: a text ends
with the end-of-sequence token, a conversation goes through the chat template without a generation prompt. A response
that was cut off, or an empty one, is scored like any other.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .rendering import Messages, Rendering


class ResponseScorer(ABC):
    """A reward model that scores tokenized responses; it sets `tokenizer` and `max_length`.

    Attributes:
        max_length (`int`, *optional*): tokens of prompt and response together beyond which a response has no score.
        num_too_long (`int`): responses without a score so far because they were too long.
    """

    tokenizer: Any
    max_length: int | None = None
    num_too_long: int = 0

    @abstractmethod
    def _rewards(self, responses: list[list[int]]) -> np.ndarray:
        """Return the rewards of N tokenized responses, none of them too long, of shape (N,)."""

    def score(self, prompts: Sequence[str | Messages] | None, completions: Sequence[str | Messages]) -> np.ndarray:
        """Score responses.

        Args:
            prompts (`list`): N texts or conversations; `None` where the completions hold their prompts.
            completions (`list`): N texts or conversations, each of its prompt's kind.

        Returns:
            `np.ndarray` of shape (N,): the rewards, NaN for responses longer than `max_length`. They depend neither on
            the order nor, but for rounding, on the batch; equal responses get equal rewards.

        Raises:
            ValueError: as many prompts as completions are needed, of one kind; a conversation needs a chat template.
        """
        ids = response_ids(self.tokenizer, prompts, completions)
        return self.score_ids(ids)

    def score_pairs(
        self,
        chosen: Sequence[str | Messages],
        rejected: Sequence[str | Messages],
        prompts: Sequence[str | Messages] | None = None,
    ) -> np.ndarray:
        """Return the margins of N pairs, r(chosen) - r(rejected), of shape (N,).

        NaN where one of the two is too long, exactly 0 where both are equal. Raises as `score`.
        """
        chosen_ids = response_ids(self.tokenizer, prompts, chosen)
        rejected_ids = response_ids(self.tokenizer, prompts, rejected)
        if len(chosen_ids) != len(rejected_ids):
            raise ValueError(f"{len(chosen_ids)} chosen responses for {len(rejected_ids)} rejected ones")
        rewards = self.score_ids(chosen_ids + rejected_ids)
        return rewards[: len(chosen_ids)] - rewards[len(chosen_ids) :]

    def score_ids(self, responses: Sequence[list[int]]) -> np.ndarray:
        """Return the rewards of N tokenized responses, of shape (N,); NaN where they are longer than `max_length`."""
        fits_N = np.array([self.max_length is None or len(ids) <= self.max_length for ids in responses], dtype=bool)
        self.num_too_long += int((~fits_N).sum())
        rewards_N = np.full(len(responses), np.nan)
        rewards_N[fits_N] = self._rewards([ids for ids, fits in zip(responses, fits_N, strict=True) if fits])
        return rewards_N


def response_ids(
    tokenizer: Any,
    prompts: Sequence[str | Messages] | None,
    completions: Sequence[str | Messages],
    rows: Sequence[Mapping[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Tokenize N responses with their prompts as TRL's `RewardTrainer` does; raises as [`ResponseScorer.score`].

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the model's tokenizer.
        prompts (`list`): N texts or conversations; `None` where the completions hold their prompts.
        completions (`list`): N texts or conversations, each of its prompt's kind.
        rows (`list[Mapping]`, *optional*): N rows' own variables of the chat template.
        chat_template_kwargs (`Mapping`, *optional*): variables of the chat template for all rows.
    """
    rendering = Rendering(tokenizer, chat_template_kwargs or {})
    if prompts is None:
        prompts = [[] if isinstance(completion, list) else "" for completion in completions]
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts for {len(completions)} completions")
    responses = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        try:
            ids = rendering.response_ids(prompt, completion, rows[row] if rows else None)
        except ValueError as error:
            raise ValueError(f"row {row}: {error}") from error
        if not ids:
            raise ValueError(f"row {row}: prompt and completion together have no token")
        responses.append(ids)
    return responses


def padding_token(tokenizer: Any, config: Any) -> int | None:
    """Return the token that pads a model's responses, as TRL's `RewardTrainer` leaves it in a checkpoint.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the model's tokenizer.
        config ([`~transformers.PreTrainedConfig`]): the model's configuration.
    """
    candidates = (tokenizer.pad_token_id, config.get_text_config().pad_token_id, tokenizer.eos_token_id)
    return next((token for token in candidates if token is not None), None)
