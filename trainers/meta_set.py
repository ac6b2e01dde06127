"""The meta set of a reward model: responses of the policy that it is to judge, in batches that a resume repeats."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import is_conversational

from ..rewards.rendering import Rendering

COLUMNS = ("prompt", "responses")


class MetaSet:
    """
    Prompts with k responses each, tokenised as [`~trl.RewardTrainer`] tokenises a pair's `prompt` and `chosen`.

    Args:
        dataset ([`~datasets.Dataset`]): with the columns `prompt` (text or messages) and `responses` (k texts, or k
            lists of messages). Other columns are ignored.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the reward model's.
        batch_size (`int`): prompts of a process's batch.
        seed (`int`): of the order.
        max_length (`int`, *optional*): a prompt with a longer response is left out.

    Raises:
        ValueError: for a missing column, an empty response, fewer than two responses, or unequal numbers of them; the
            row is named.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        seed: int,
        max_length: int | None = None,
    ):
        self.num_responses = number_of_responses(dataset)
        rows = [[_token_ids(tokenizer, row["prompt"], text) for text in row["responses"]] for row in dataset]
        fits = [max_length is None or max(map(len, row)) <= max_length for row in rows]
        self._rows = [row for row, ok in zip(rows, fits, strict=True) if ok]
        self.num_too_long = len(rows) - len(self._rows)
        self._pad_token_id = tokenizer.pad_token_id
        self._batch_size, self._seed = batch_size, seed

    def __len__(self) -> int:
        return len(self._rows)

    def check(self, num_processes: int) -> None:
        """Raise `ValueError` unless one step of all processes finds enough different prompts."""
        wanted = self._batch_size * num_processes
        if len(self) < wanted:
            too_long = f" ({self.num_too_long} are longer than max_length)" if self.num_too_long else ""
            raise ValueError(
                f"the meta set has {len(self)} prompts{too_long}, and one step takes {wanted}: add prompts, or lower "
                "per_device_meta_batch_size"
            )

    def batch(self, step: int, process: int, num_processes: int) -> dict[str, Any]:
        """Return a process's part of an optimizer step's batch; a function of the step, so it needs no state.

        Each pass over the set has an order of its own, and a last part that is too short for a step is left out.

        Args:
            step (`int`): optimizer steps done.
            process (`int`): the process's number.
            num_processes (`int`): how many take part.

        Returns:
            `dict`: `input_ids` and `attention_mask`, shape (P k, T), and `num_responses`, k.
        """
        steps_a_pass = len(self) // (self._batch_size * num_processes)
        epoch, at = divmod(step, steps_a_pass)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self))
        first = (at * num_processes + process) * self._batch_size
        rows = [ids for index in order[first : first + self._batch_size] for ids in self._rows[index]]
        width = max(map(len, rows))
        return {
            "input_ids": torch.tensor([ids + [self._pad_token_id] * (width - len(ids)) for ids in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows]),
            "num_responses": self.num_responses,
        }


def number_of_responses(dataset: Dataset) -> int:
    """Return how many responses every prompt has; raises `ValueError` as [`MetaSet`]."""
    for column in COLUMNS:
        if column not in dataset.column_names:
            raise ValueError(
                f"the meta set has no column '{column}' (columns: {', '.join(dataset.column_names)}): a row is a "
                "`prompt` and the policy's `responses` to it"
            )
    numbers = [len(row) for row in dataset["responses"]]
    for number, row in enumerate(dataset, start=1):
        k = len(row["responses"])
        if k < 2:
            raise ValueError(
                f"meta set: row {number} has {k} response{'s' * (k != 1)}: MetaRM compares responses to one prompt, "
                "so sample at least 2"
            )
        if k != numbers[0]:
            raise ValueError(f"meta set: row {number} has {k} responses and row 1 has {numbers[0]}: give all as many")
        for place, response in enumerate(row["responses"], start=1):
            text = response if isinstance(response, str) else response[-1]["content"] if response else ""
            if not (text or "").strip():
                raise ValueError(f"meta set: response {place} of row {number} is empty: remove it or sample it again")
    return numbers[0] if numbers else 0


def _token_ids(tokenizer: PreTrainedTokenizerBase, prompt: Any, response: Any) -> list[int]:
    """Return a text's token ids as TRL's reward trainer makes them: by chat template, or with the ending token."""
    if is_conversational({"prompt": prompt}) and isinstance(response, str):
        response = [{"role": "assistant", "content": response}]
    return Rendering(tokenizer).response_ids(prompt, response)
