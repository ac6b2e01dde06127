"""Micro-batches without most of their padding.

TRL pads a whole generation batch to its longest prompt and completion and shuffles its rows into micro-batches, so
every micro-batch carries the widest padding of all. Sorting the rows of one optimizer step by length before they are
split, and cutting the columns that are padding in every row of a micro-batch, leaves the step's gradient unchanged up
to rounding (a step sums over its rows whatever their order) and saves most of the forward and backward time.

This holds only if a row's log-probabilities depend neither on its left padding nor on the other rows. TRL passes no
position ids, so a model with absolute positions counts the padding as positions. Some rotary embeddings change their
frequencies with the width of the batch. `obstacle_in_model` detects such models.
"""

from collections.abc import Sequence
from typing import Any

import torch

Batch = dict[str, Any]


def obstacle_in_model(model: torch.nn.Module, aux_loss_enabled: bool) -> str | None:
    """Return why regrouping would change the gradient of a model, and the fix; `None` if it would not.

    Only rotary position embeddings are accepted. Other encodings may be independent of padding too (ALiBi, OPT's), but
    nothing in a model identifies them.

    Args:
        model (`torch.nn.Module`): a transformers model, with or without an adapter.
        aux_loss_enabled (`bool`): whether the loss balances the load of a mixture of experts.
    """
    if aux_loss_enabled:
        return (
            "length_grouping would change the auxiliary loss of a mixture-of-experts model, which is computed per "
            "micro-batch: set router_aux_loss_coef to 0, or length_grouping to false"
        )
    types: set[str] = set()  # of the model's rotary embeddings, which may differ by layer
    for module in model.modules():
        found = getattr(module, "rope_type", None)
        types.update(found.values() if isinstance(found, dict) else [found] if found else [])
    if not types:
        return (
            "length_grouping trims padding on the left, which a model without rotary position embeddings may count "
            "as positions: set length_grouping to false"
        )
    by_width = sorted(kind for kind in types if "dynamic" in kind or kind == "longrope")
    if by_width:
        return (
            f"length_grouping changes the width of micro-batches, on which rotary embeddings of type {by_width[0]!r} "
            "depend: set length_grouping to false"
        )
    return None


def group_by_length(batches: Sequence[Batch], micro_batches_per_step: int) -> list[Batch]:
    """Sort rows by length within each optimizer step, and trim each micro-batch.

    Args:
        batches (`Sequence[dict]`): micro-batches of `GRPOTrainer` in the order in which they are trained on, all with
            the same number of rows B and widths P (prompt, left-padded) and C (completion, right-padded).
        micro_batches_per_step (`int`): number of consecutive micro-batches of one optimizer step.

    Returns:
        `list[dict]`: as many micro-batches with B rows each, of their own widths.

    Raises:
        ValueError: if there are images, which have no rows of their own.
    """
    if "num_images" in batches[0]:
        raise ValueError("length_grouping is for text only: set it to false for a model that reads images")
    grouped = []
    for first in range(0, len(batches), micro_batches_per_step):
        step = batches[first : first + micro_batches_per_step]
        lengths = torch.cat([b["prompt_mask"].sum(-1) + b["completion_mask"].sum(-1) for b in step])
        order = lengths.argsort(stable=True)
        per_name = {name: _reordered([batch[name] for batch in step], order) for name in step[0]}
        grouped += [
            trim_padding({name: values[index] for name, values in per_name.items()}) for index in range(len(step))
        ]
    return grouped


def trim_padding(batch: Batch) -> Batch:
    """Cut the prompt and completion columns that are padding in every row; other entries stay as they are."""
    prompt_width, completion_width = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
    # A masked-out column may still hold real tokens (truncated completions that must not be trained on): the token
    # ids decide nothing here, only columns outside every row's mask go, and at least one column stays.
    prompt_kept = max(int(batch["prompt_mask"].sum(-1).max()), 1)
    used = batch["completion_mask"].any(dim=0).nonzero()
    completion_kept = int(used.max()) + 1 if len(used) else 1
    trimmed = {}
    for name, value in batch.items():
        if name.startswith("prompt_"):
            value = value[:, prompt_width - prompt_kept :]
        elif isinstance(value, torch.Tensor) and value.dim() == 2 and value.shape[1] == completion_width:
            value = value[:, :completion_kept]
        trimmed[name] = value
    return trimmed


def _reordered(values: list[Any], order: torch.Tensor) -> list[Any]:
    """Reorder rows over the micro-batches of one entry; an entry without rows is passed through."""
    if not (isinstance(values[0], torch.Tensor) and values[0].dim() >= 1):
        return values
    return list(torch.cat(values)[order].split(len(values[0])))
