"""How likely a language model is to write given responses: one forward pass, no sampling."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..rewards.rendering import Messages, Rendering
from ..rewards.responses import response_ids

BATCH_TOKENS = 4096  # of a forward pass, padding included; a longer row goes alone


def response_log_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Messages],
    responses: Sequence[str | Messages],
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Return the log-probability of each response given its prompt, summed over its tokens, the ending one included.

    A response's tokens are those of prompt and response together, as reward models read them, that come after what
    the prompt alone (with the generation prompt of a chat template) begins with.

    Args:
        model ([`~transformers.PreTrainedModel`]): causal language model; evaluated without dropout, left in that mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        prompts (`list`): N texts or conversations.
        responses (`list`): N texts or conversations, each of its prompt's kind.
        chat_template_kwargs (`Mapping`, *optional*): variables of the chat template, as in the model's training.

    Returns:
        `np.ndarray` of shape (N,).

    Raises:
        ValueError: as [`~metatune.rewards.responses.response_ids`].
    """
    rows = response_ids(tokenizer, prompts, responses, chat_template_kwargs=chat_template_kwargs)
    rendering = Rendering(tokenizer, chat_template_kwargs or {})
    starts = [
        max(1, _num_shared(rendering.prompt_ids(prompt), ids)) for prompt, ids in zip(prompts, rows, strict=True)
    ]
    values_N = np.zeros(len(rows))
    model.eval()
    for batch in _batches([len(ids) for ids in rows]):
        values_N[batch] = _log_probabilities(model, [rows[row] for row in batch], [starts[row] for row in batch])
    return values_N


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two rows begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield row numbers of like length."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and (len(batch) + 1) * lengths[row] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.no_grad()
def _log_probabilities(model: Any, rows: Sequence[list[int]], starts: Sequence[int]) -> list[float]:
    ids_BT = pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True).to(model.device)
    lengths_B = torch.tensor([len(ids) for ids in rows], device=model.device)
    mask_BT = torch.arange(ids_BT.shape[1], device=model.device) < lengths_B[:, None]
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT.long(), use_cache=False).logits
    values = []
    for row, start in enumerate(starts):  # a row each: V is large
        end = len(rows[row])
        steps_TV = logits_BTV[row, start - 1 : end - 1].float().log_softmax(-1)
        values.append(steps_TV.gather(1, ids_BT[row, start:end, None]).double().sum().item())
    return values
