"""What `metatune metarm` begins with: the policy's prompts and the original pairs."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from .config import ConfigError
from .data import check_numbers, distribution_errors, load_splits
from .pairs import check_pairs, usable


def load_prompts(args: Any, script_args: Any, uniform: bool) -> tuple[list[dict], list[dict]]:
    """Return training and held-out prompts; raises [`ConfigError`] for what has none.

    Args:
        args (`MetaRMScriptArguments`): where they are.
        script_args (`GRPOScriptArguments`): of the block `grpo`; it names the splits.
        uniform (`bool`): whether one distribution is enough, because no curriculum is asked for.
    """
    from ..curricula import load_distributions

    if args.distributions is not None:
        with distribution_errors():
            loaded = load_distributions(args.distributions)
        parts = [[dict(row) for each in loaded for row in getattr(each, part)] for part in ("train", "test")]
        where = "distributions"
    else:
        where = f"prompts_name: {args.prompts_name}"
        if Path(args.prompts_name).is_file():
            raise ConfigError(f"{where}: give a folder with train.jsonl and test.jsonl, or a hub name")
        splits = load_splits(args.prompts_name, "prompts_name", "train", script_args.dataset_config)
        parts = []
        for split in (script_args.dataset_train_split, script_args.dataset_test_split):
            if split not in splits:
                raise ConfigError(f"{where} has no split '{split}' (splits: {', '.join(splits)})")
            check_prompts(splits[split], f"{where}, split '{split}'", uniform)
            parts.append([dict(row) for row in splits[split]])
    if not parts[1]:
        raise ConfigError(f"{where}: no held-out prompts, which rounds are summed up on")
    if args.num_prompts is not None and args.num_prompts > len(parts[0]):
        raise ConfigError(f"num_prompts is {args.num_prompts}, and there are {len(parts[0])} prompts ({where})")
    return parts[0], parts[1]


def check_prompts(dataset: Dataset, where: str, uniform: bool) -> None:
    """Raise [`ConfigError`] unless a dataset has prompts, and what its other columns ask for."""
    columns = dataset.column_names
    if "prompt" not in columns:
        raise ConfigError(f"{where} has no column 'prompt' (columns: {', '.join(columns)})")
    if "verifier" in columns and "answer" not in columns:
        raise ConfigError(f"{where} has a column 'verifier' and none 'answer'")
    if "distribution" not in columns and not uniform:
        raise ConfigError(f"{where} has no column 'distribution': set curriculum: uniform in the block grpo")
    for number, prompt in enumerate(dataset["prompt"], start=1):
        if not prompt:
            raise ConfigError(f"{where}: row {number} has no 'prompt'")


def load_pairs(args: Any, script_args: Any) -> tuple[Dataset, Dataset | None]:
    """Return the original pairs and the held-out ones, `None` without any; raises [`ConfigError`]."""
    train, test = script_args.dataset_train_split, script_args.dataset_test_split
    splits = load_splits(args.pairs_name, "dataset_name", train, script_args.dataset_config)
    if train not in splits:
        raise ConfigError(f"{args.pairs_name} has no split '{train}' (splits: {', '.join(splits)})")
    kept = {}
    for split in [name for name in (train, test) if name in splits]:
        where = f"{args.pairs_name}, split '{split}'"
        check_pairs(splits[split], where)
        check_numbers(splits[split], ["margin"], where)
        kept[split], _ = usable(splits[split], where)  # metatune reward says what is left out
    return kept[train], kept.get(test)
