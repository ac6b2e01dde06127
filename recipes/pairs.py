"""Preference pairs for reward models: where they come from, and what they must hold."""

from typing import Any

from trl import ScriptArguments

from .config import ConfigError, nearest
from .data import check_ids, check_messages, check_numbers, check_template_columns, split_of
from .mixture import load_source

SHOWN = 5  # row numbers in a message


def load_data(script_args: ScriptArguments, with_evaluation: bool, rows: int | None = None):
    """Return the training set and the held-out set (`None` without evaluation), or the first `rows` rows of each.

    Raises [`ConfigError`] for a file that cannot be read, a missing split, and incomplete pairs.
    """
    splits, name = load_source(script_args, rows)
    wanted = [script_args.dataset_train_split] + [script_args.dataset_test_split] * with_evaluation
    for split in wanted:
        where = f"{name}, split '{split}'"
        check_pairs(split_of(splits, split, name), where)
        check_numbers(splits[split], ["margin"], where)  # TRL's loss subtracts it
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
    if tokenized:
        for column in ("chosen_ids", "rejected_ids"):
            check_ids(dataset, column, where, may_be_empty=True)  # those are left out and counted
    else:
        check_messages(dataset, [*(["prompt"] if "prompt" in columns else []), "chosen", "rejected"], where)
        check_template_columns(dataset, where)


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
