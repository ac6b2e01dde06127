"""The original pairs of `metatune metarm`: made of the first policy's responses where none are given, and weighted."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..eval.files import write_rows
from .config import ConfigError
from .metarm_policy import Policy, as_completion
from .rounds import Row

PROBLEMS_PER_CALL = 256  # of the engine, while pairs are still wanting


def make_pairs(folder: Path, policy: Policy, train: Sequence[Row], test: Sequence[Row], args: Any, seed: int) -> None:
    """Write `test.jsonl` and, last, `train.jsonl`: a right response of each problem and a wrong one.

    Args:
        folder (`Path`): where to.
        policy (`Policy`): the first one.
        train (`Sequence[dict]`): training problems.
        test (`Sequence[dict]`): held-out problems; the labels of their pairs are always right.
        args (`MetaRMScriptArguments`): `num_responses`, `num_pairs` and `label_noise` are read.
        seed (`int`): of the draw of problems, their responses, and the labels that are turned.

    Raises [`ConfigError`] if no training problem has both.
    """
    pairs = draw_pairs(policy, train, args.num_responses, seed, args.num_pairs)
    if not pairs:
        raise ConfigError(
            f"no pairs can be made: of none of {len(train)} problems does the first policy get some of "
            f"{args.num_responses} responses right and some wrong; raise num_responses, give other distributions, or "
            "pairs as dataset_name"
        )
    few = f" ({args.num_pairs} were asked for: more problems, or more num_responses, make more)"
    print(f"{len(pairs)} pairs are made{few if len(pairs) < (args.num_pairs or 0) else ''}", flush=True)
    held_out = draw_pairs(policy, test, args.num_responses, seed + 1)
    if held_out:
        write_rows(folder / "test.jsonl", held_out)
    write_rows(folder / "train.jsonl", turn_labels(pairs, args.label_noise, seed))


def draw_pairs(policy: Policy, problems: Sequence[Row], count: int, seed: int, limit: int | None = None) -> list[Row]:
    """Return a pair of each problem, in random order, that has right and wrong ones among `count` responses.

    Args:
        policy (`Policy`): who responds.
        problems (`Sequence[dict]`): rows with a verifier.
        count (`int`): responses to each.
        seed (`int`): of problems, responses and choice.
        limit (`int`, *optional*): pairs after which to stop.
    """
    rng = random.Random(seed)
    problems = rng.sample(list(problems), len(problems))
    pairs: list[Row] = []
    for first in range(0, len(problems), PROBLEMS_PER_CALL):
        responses = policy.respond(problems[first : first + PROBLEMS_PER_CALL], count, rng.randrange(2**31))
        for at in range(0, len(responses), count):
            group = [row for row in responses[at : at + count] if row["text"].strip()]  # nothing to score in others
            right, wrong = ([row["text"] for row in group if row["gold"] == gold] for gold in (1.0, 0.0))
            if right and wrong:
                prompt, chosen, rejected = group[0]["prompt"], rng.choice(right), rng.choice(wrong)
                answers = {"chosen": as_completion(prompt, chosen), "rejected": as_completion(prompt, rejected)}
                pairs.append({"prompt": prompt, **answers, "turned": False})
        if limit is not None and len(pairs) >= limit:
            break
    return pairs[:limit]


def turn_labels(pairs: Sequence[Row], share: float, seed: int) -> list[Row]:
    """Turn the labels of exactly that share of the pairs, rounded; `turned` says which."""
    turned = set(random.Random(seed).sample(range(len(pairs)), round(share * len(pairs))))
    return [
        {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"], "turned": True} if row in turned else pair
        for row, pair in enumerate(pairs)
    ]


def prompts_and_answers(pairs: Dataset) -> tuple[list, list, list]:
    """Return prompts, chosen and rejected responses; a prompt that is in both answers is taken out of them."""
    from trl.data_utils import extract_prompt

    if "chosen" not in pairs.column_names:
        raise ConfigError("correction: ocrm needs pairs as texts or conversations, not as token ids")
    rows = pairs if "prompt" in pairs.column_names else map(extract_prompt, pairs)
    columns = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    prompts, chosen, rejected = map(list, zip(*columns, strict=True))
    return prompts, chosen, rejected


def weighted(pairs: Dataset, weights: np.ndarray) -> Dataset:
    """Return the pairs with these weights as the column `weight`, in place of one that is there."""
    kept = pairs.remove_columns("weight") if "weight" in pairs.column_names else pairs
    return kept.add_column("weight", weights.tolist())
