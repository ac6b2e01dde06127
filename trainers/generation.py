"""Sampling that stops paying for a completion when it ends.

`model.generate` decodes the whole batch until its longest row ends, and reads every repeated prompt anew. In a GRPO
batch the prompts come in groups of G and the completions' lengths differ widely, so most of that work is thrown away.
This loop reads each distinct prompt once, hands its cache to all rows of the group, and drops rows as they finish.

It draws from the same distribution as `model.generate` with the same warpers; the random numbers fall on the rows in
another order, so samples differ from it token for token. Greedy decoding is identical.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from transformers import DynamicCache, PreTrainedModel
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

# Copying the cache costs about as much as one step over the rows that it drops.
MIN_DROPPED_FRACTION = 0.125


def _warpers(temperature: float, top_p: float, top_k: int, min_p: float | None) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    return warpers


def largest_of_processes(number: int, device: torch.device) -> int:
    """Return the largest number over all processes. Every process must call this function."""
    tensor = torch.tensor(number, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float | None = None,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    synced: bool = False,
) -> list[list[int]]:
    """Sample one completion for every row of `prompt_ids` from a decoder-only model.

    Args:
        model ([`~transformers.PreTrainedModel`]): causal language model whose cache is a `DynamicCache`.
        prompt_ids (`Sequence[Sequence[int]]` of length B): token ids; equal rows are read once.
        max_new_tokens (`int`): largest number of tokens of a completion.
        temperature (`float`, *optional*, defaults to `1.0`): 0 decodes greedily.
        top_p (`float`, *optional*, defaults to `1.0`): nucleus mass.
        top_k (`int`, *optional*, defaults to `0`): number of likeliest tokens kept; 0 keeps all.
        min_p (`float`, *optional*): smallest probability relative to the likeliest token.
        eos_token_ids (`Sequence[int]`): tokens that end a completion (the ending token is part of it).
        pad_token_id (`int`): filler for the left padding.
        synced (`bool`, *optional*, defaults to `False`): run as many forward passes as the other processes, which
            call this function at the same time. Needed if a forward pass is a collective operation (FSDP). The
            samples do not change.

    Returns:
        `list[list[int]]` of length B: the completions' token ids, in the order of `prompt_ids`.

    Raises:
        ValueError: if a prompt is empty or `max_new_tokens` is not positive.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if any(len(ids) == 0 for ids in prompt_ids):
        raise ValueError("a prompt is empty: every prompt needs at least one token")
    device = model.device
    distinct = {ids: position for position, ids in enumerate(dict.fromkeys(map(tuple, prompt_ids)))}
    group_B = torch.tensor([distinct[tuple(ids)] for ids in prompt_ids], device=device)
    longest = max(map(len, distinct))
    ids_UP = torch.tensor([[pad_token_id] * (longest - len(ids)) + list(ids) for ids in distinct], device=device)
    mask_UP = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in distinct], device=device)

    warpers = _warpers(temperature, top_p, top_k, min_p)
    eos = torch.tensor(list(eos_token_ids), dtype=torch.long, device=device)
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=ids_UP,
        attention_mask=mask_UP,
        position_ids=(mask_UP.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(group_B)
    logits_BV = output.logits[group_B, -1]
    mask_BT = mask_UP[group_B]
    position_B = mask_BT.sum(-1)
    row_B = torch.arange(len(prompt_ids), device=device)  # the caller's row that each live row of the batch serves
    live_B = torch.ones_like(row_B, dtype=torch.bool)
    num_live = len(prompt_ids)
    tokens_TB = []  # one (rows, tokens) pair a step

    for step in range(max_new_tokens):
        if temperature == 0 or num_live == 0:  # a finished process that waits for others draws no random numbers
            token_B = logits_BV.argmax(-1)
        else:
            scores_BV = warpers(None, logits_BV.float())
            token_B = torch.multinomial(scores_BV.softmax(-1), num_samples=1).squeeze(-1)
        tokens_TB.append((row_B[live_B], token_B[live_B]))
        live_B = live_B & ~torch.isin(token_B, eos)
        num_live = int(live_B.sum())
        if step == max_new_tokens - 1:
            break
        if (largest_of_processes(num_live, device) if synced else num_live) == 0:
            break
        num_kept = max(num_live, 1)
        if num_kept <= (1 - MIN_DROPPED_FRACTION) * len(live_B):
            kept = live_B.nonzero().squeeze(-1) if num_live else torch.zeros(1, dtype=torch.long, device=device)
            cache.batch_select_indices(kept)
            token_B, row_B, mask_BT, position_B, live_B = (
                tensor[kept] for tensor in (token_B, row_B, mask_BT, position_B, live_B)
            )
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], dim=-1)
        output = model(
            input_ids=token_B[:, None],
            attention_mask=mask_BT,
            position_ids=position_B[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits_BV = output.logits[:, -1]
        position_B = position_B + 1

    completions: list[list[int]] = [[] for _ in prompt_ids]
    rows, tokens = (torch.cat(parts).tolist() for parts in zip(*tokens_TB, strict=True))
    for row, token in zip(rows, tokens, strict=True):
        completions[row].append(token)
    return completions
