"""Preference pairs for reward models: where they come from, and what they must hold."""

from pathlib import Path
from typing import Any

from trl import ScriptArguments

from .config import ConfigError, nearest

FILE_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SHOWN = 5  # row numbers in a message


def load_splits(name: str, option: str, split: str, config: str | None = None):
    """Return the splits of a dataset of the hub or a folder, or a file as the one split of that name.

    Raises [`ConfigError`] for what cannot be read.
    """
    import datasets

    path = Path(name)
    if not path.exists() and (path.suffix in FILE_FORMATS or len(path.parts) > 2):  # a hub name is owner/name
        raise ConfigError(f"{option}: {name}: no such file or folder")
    try:
        if not path.is_file():
            return datasets.load_dataset(name, name=config)
        kind = FILE_FORMATS.get(path.suffix)
        if kind is None:
            raise ConfigError(f"{option}: {name}: not one of {', '.join(FILE_FORMATS)}")
        if not path.stat().st_size:
            raise ConfigError(f"{option}: {name} is empty")
        return datasets.load_dataset(kind, data_files={split: name})
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        if isinstance(error, ConfigError):
            raise
        cause = error.__cause__ or error
        raise ConfigError(f"{option}: {name}: {' '.join(str(cause).split())}") from error


def load_data(script_args: ScriptArguments, with_evaluation: bool):
    """Return the training set and the held-out set (`None` without evaluation).

    Raises [`ConfigError`] for a file that cannot be read, a split that is not there, and pairs that are not whole.
    """
    name = script_args.dataset_name
    splits = load_splits(name, "dataset_name", script_args.dataset_train_split, script_args.dataset_config)
    wanted = [script_args.dataset_train_split] + [script_args.dataset_test_split] * with_evaluation
    for split in wanted:
        if split not in splits:
            raise ConfigError(
                f"{name} has no split '{split}' (splits: {', '.join(splits)}){nearest(split, splits)}: name another "
                "with dataset_train_split or dataset_test_split, or give a folder with train.jsonl and test.jsonl"
            )
        check_pairs(splits[split], f"{name}, split '{split}'")
    return splits[wanted[0]], splits[wanted[1]] if with_evaluation else None


def check_pairs(dataset, where: str) -> None:
    """Raise [`ConfigError`] unless every row has both answers of its pair."""
    columns = dataset.column_names
    if not len(dataset):
        raise ConfigError(f"{where} is empty")
    tokenized = "chosen_ids" in columns
    for column in ("chosen_ids", "rejected_ids") if tokenized else ("chosen", "rejected"):
        if column not in columns:
            raise ConfigError(
                f"{where} has no column '{column}'{nearest(column, columns)} (columns: {', '.join(columns)}): a pair "
                "is `chosen` and `rejected`, with or without `prompt`"
            )
        if dataset.data.column(column).null_count:
            row = next(number for number, value in enumerate(dataset[column]) if value is None)
            raise ConfigError(f"{where}: row {row + 1} has no '{column}'")


def unusable_pairs(dataset) -> tuple[list[int], list[int]]:
    """Return the rows, counted from 1, with an empty response, and those whose responses are equal."""
    tokenized = "chosen_ids" in dataset.column_names
    chosen, rejected = (dataset[f"{name}_ids" if tokenized else name] for name in ("chosen", "rejected"))
    empty, equal = [], []
    for row, (better, worse) in enumerate(zip(chosen, rejected, strict=True), start=1):
        if is_empty(better) or is_empty(worse):
            empty.append(row)
        elif better == worse:
            equal.append(row)
    return empty, equal


def usable(dataset, where: str) -> tuple[Any, list[str]]:
    """Leave out pairs that teach nothing; returns the others, and a line for each kind of pair that was left out.

    Raises [`ConfigError`] if no pair is left.
    """
    empty, equal = unusable_pairs(dataset)
    lines = [
        f"{where}: {what} in {rows(numbers)}; {len(numbers)} pairs left out"
        for what, numbers in (("an empty response", empty), ("equal chosen and rejected", equal))
        if numbers
    ]
    if not lines:
        return dataset, []
    left_out = {*empty, *equal}
    if len(left_out) == len(dataset):
        raise ConfigError(f"{where} has no pair that a model could learn from: {'; '.join(lines)}")
    return dataset.select([index for index in range(len(dataset)) if index + 1 not in left_out]), lines


def is_empty(response: str | list) -> bool:
    """Tell whether a response, a text, token ids or a conversation that ends with it, holds nothing."""
    if isinstance(response, str):
        return not response.strip()
    if response and isinstance(response[-1], dict):
        content = response[-1].get("content") or ""
        return isinstance(content, str) and not content.strip() and not response[-1].get("tool_calls")
    return not response


def rows(numbers: list[int]) -> str:
    """Name rows in an error: the first few and how many more."""
    shown = ", ".join(map(str, numbers[:SHOWN]))
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{more}"
