"""Evaluate a model: draw completions of every item, score them by each item's own verifier.

    engine = load_engine("compact", model, tokenizer)
    evaluation = evaluate(engine, tokenizer, items, num_samples=8, max_new_tokens=96)
    evaluation.save("runs/before")

With `temperature=0` and one sample this is the greedy accuracy; with `temperature=1` and several, the sampled one,
which is what reinforcement learning moves. Search tasks may loop when decoded greedily, so look at both.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..curricula import check_verified
from ..rewards import get_verifier
from ..rewards.correctness import refusal_of_row
from ..rewards.forcing import THINKING_START, opens_thinking
from ..rewards.rendering import Rendering
from .engines import Engine, Sampling
from .evaluation import Completion, Evaluation
from .votes import vote

logger = logging.getLogger(__name__)

COLUMNS = ("prompt", "answer", "distribution", "verifier", "info", "key")


def evaluate(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    items: Iterable[Mapping[str, Any]],
    *,
    num_samples: int = 1,
    max_new_tokens: int = 1024,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Draw and score `num_samples` completions of every item. Leaves torch's random state as it was.

    Args:
        engine ([`~metatune.eval.engines.Engine`]): what generates; it holds the model and the size of its batches.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): with a chat template.
        items (`Iterable[Mapping]`): rows with the columns `prompt` (conversation), `answer`, `distribution`,
            `verifier`, `info` (JSON) and `key`; a `datasets.Dataset` is one.
        num_samples (`int`, *optional*, defaults to `1`): completions of each item.
        max_new_tokens (`int`, *optional*, defaults to `1024`): largest number of tokens of a completion.
        temperature (`float`, *optional*, defaults to `1.0`): 0 decodes greedily.
        top_p (`float`, *optional*, defaults to `1.0`): nucleus mass.
        top_k (`int`, *optional*, defaults to `0`): number of likeliest tokens kept; 0 keeps all.
        seed (`int`, *optional*, defaults to `0`): seed of the sampling.
        chat_template_kwargs (`Mapping`, *optional*): variables of the chat template, as in the model's training.
        settings (`Mapping`, *optional*): what else to keep in the summary's `settings`, such as the model's name.

    Raises:
        ValueError: if there is no item, an item lacks a column or a verifier or repeats another's key, several samples
            are asked of greedy decoding, or the tokenizer has no chat template.
    """
    items = _checked(list(items))
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if temperature == 0 and num_samples > 1:
        raise ValueError(f"greedy decoding repeats itself: set num_samples to 1, not {num_samples}, or a temperature")
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    options |= {"top_p": top_p, "top_k": top_k}
    sampling = Sampling(**options, seed=seed)
    started = time.perf_counter()
    rendering = Rendering(tokenizer, chat_template_kwargs or {})
    prompt_ids = [ids for item in items for ids in [rendering.prompt_ids(item["prompt"])] * num_samples]
    completion_ids = engine.generate(prompt_ids, sampling)
    texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    opening = THINKING_START if opens_thinking(rendering) else ""
    completions = [
        score(items[row // num_samples], row % num_samples, text, ids, engine.eos_token_ids, opening)
        for row, (text, ids) in enumerate(zip(texts, completion_ids, strict=True))
    ]
    return Evaluation(
        completions,
        settings={
            **(settings or {}),
            **({"chat_template_kwargs": dict(chat_template_kwargs)} if chat_template_kwargs else {}),
            "num_samples": num_samples,
            **options,
            "seed": seed,
        },
        seconds=time.perf_counter() - started,
    )


def score(
    item: Mapping[str, Any],
    sample: int,
    text: str,
    ids: Sequence[int],
    eos_token_ids: frozenset[int],
    opening: str = "",
) -> Completion:
    """Score one completion of an item by the item's verifier; its verdict `None` stays `None`.

    A verifier that raises has the verdict `None` as well, and a log line names verifier, distribution and completion.

    Args:
        item (`Mapping`): the item, as for [`evaluate`].
        sample (`int`): number of the completion among the item's.
        text (`str`): the completion.
        ids (`Sequence[int]`): its token ids.
        eos_token_ids (`frozenset[int]`): the ending tokens.
        opening (`str`, *optional*): the tag with which the chat template opened the thinking before the completion.

    Raises:
        ValueError: if the item is at fault, so that no completion of it could be scored.
    """
    info = json.loads(item["info"]) if item["info"] else {}
    verdict = _verdict(item, opening + text, info)
    return Completion(
        distribution=item["distribution"],
        key=item["key"],
        sample=sample,
        prompt=item["prompt"][-1]["content"],
        reference=item["answer"],
        completion=text,
        extracted=vote(item["verifier"], opening + text, info),
        tokens=len(ids),
        truncated=not ids or ids[-1] not in eos_token_ids,
        correct=None if verdict is None else bool(verdict),
    )


def _verdict(item: Mapping[str, Any], text: str, info: dict[str, Any]) -> bool | None:
    """Ask the item's verifier; raises `ValueError` if it refuses the item with its own reference, too."""
    where = f"{item['distribution']}: the item {item['key']!r} cannot be scored"
    try:
        verifier = get_verifier(item["verifier"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    try:
        return verifier.score(text, item["answer"], info)
    except Exception as raised:  # a verifier may be a user's own; the other completions are not to be lost
        if isinstance(raised, ValueError) and (refusal := refusal_of_row(verifier, item["answer"], info)):
            raise ValueError(f"{where}: {refusal}") from refusal
        logger.warning(
            "the verifier %r raised %s: %s on a completion of %s, which counts as unscorable: %r",
            item["verifier"],
            type(raised).__name__,
            " ".join(str(raised).split())[:200],
            item["distribution"],
            text[:200],
        )
        return None


def _checked(items: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if not items:
        raise ValueError("there is no item to evaluate: check `limit`, `data` and the held-out parts")
    for number, item in enumerate(items, 1):
        missing = [column for column in COLUMNS if column not in item]
        if missing:
            raise ValueError(f"item {number} lacks the column {missing[0]!r}; it has {', '.join(item)}")
    check_verified(items)
    (distribution, key), count = Counter((item["distribution"], item["key"]) for item in items).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{distribution}: {count} items have the key {key!r}; use num_samples for several samples")
    return items
