"""The rows that a recipe trains on: read from a file, a folder or the hub, and looked at before the trainer is made.

TRL tells the kind of a dataset by its first row and trusts the others, so a wrong value in row 7 would end the run
somewhere inside of it. Here every row is looked at once, and the first one that cannot be used is named.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

from trl import ScriptArguments

from ..curricula.hub_access import need_hub
from .config import ConfigError, MissingHereError
from .conform import describe, nearest

FILE_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
LARGEST = 3.4028234663852886e38  # of float32
TEXT, CONVERSATION = "a text", "a conversation"
MESSAGES = ("prompt", "completion", "messages", "chosen", "rejected")


def is_path(name: str) -> bool:
    """Tell whether the name of a dataset or a model is a path, and cannot be a name of the hub, owner/name."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or len(Path(name).parts) > 2


def need_path(name: str, option: str) -> None:
    """Raise [`MissingHereError`] for a dataset whose name can only be a path, and that is not there."""
    if not Path(name).exists() and (is_path(name) or Path(name).suffix in FILE_FORMATS):
        raise MissingHereError(f"{option}: {name}: no such file or folder{nearest_path(name)}")


def nearest_path(name: str, *others: str) -> str:
    """Return `"; did you mean 'x'?"` for the name closest to a missing path: a sibling, or one of `others`."""
    path = Path(name).expanduser()
    siblings = [str(path.parent / each.name) for each in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(str(path), [*others, *siblings])


@contextmanager
def distribution_errors() -> Iterator[None]:
    """Convert exceptions of `metatune.curricula` for the entries of `distributions` to [`ConfigError`]."""
    from metatune.curricula import MissingDataError

    try:
        yield
    except MissingDataError as error:
        raise MissingHereError(str(error)) from error
    except (ValueError, ImportError) as error:
        raise ConfigError(" ".join(str(error).split())) from error


def check_source(script_args: Any) -> None:
    """Raise `ValueError` unless exactly one of `distributions`, `dataset_name` and `datasets` is set.

    Args:
        script_args ([`~metatune.recipes.mixture.SourceArguments`]): with the additional field `distributions`.
    """
    if [script_args.distributions, script_args.dataset_name, script_args.datasets or None].count(None) != 2:
        raise ValueError("give either `distributions`, in a recipe (--config FILE.yaml), or `dataset_name`")
    for option in fields(ScriptArguments) if script_args.dataset_name is None else ():
        if option.name.startswith("dataset_") and getattr(script_args, option.name) != option.default:
            raise ValueError(f"`{option.name}` goes with `dataset_name`; what `distributions` load, their entries say")


def load_splits(
    name: str,
    option: str,
    split: str,
    config: str | None = None,
    streaming: bool = False,
    rows: int | None = None,
) -> Any:
    """Return the splits of a dataset of the hub or a folder, or a file as the one split of that name.

    Args:
        name (`str`): the dataset.
        option (`str`): the option that specifies it, for errors.
        split (`str`): the split that a file becomes.
        config (`str`, *optional*): configuration of a dataset of the hub.
        streaming (`bool`, *optional*, defaults to `False`): return streams.
        rows (`int`, *optional*): read only the first rows of each split; all by default.

    Raises [`ConfigError`] for what cannot be read.
    """
    import datasets

    need_path(name, option)
    path = Path(name)
    files = [path] if path.is_file() else sorted(path.rglob("*.json*")) if path.is_dir() else []
    files = [file for file in files if file.suffix in (".json", ".jsonl")]
    for file in files:
        check_json(file, option, rows)
    if rows is None:
        return _load_splits(name, option, split, config, streaming)
    streams = streaming or path.exists()  # a hub dataset is downloaded anyway, because the run needs it too
    splits = _load_splits(name, option, split, config, streams)
    try:
        return {key: first_rows(part, rows) for key, part in splits.items()}
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        for file in files:
            check_json(file, option)  # the reader reads blocks: the error may be in a later line
        raise ConfigError(f"{option}: {name}: {' '.join(str(error).split())}") from error


def first_rows(part: Any, rows: int) -> Any:
    """Return the first rows of a split or of a stream as a dataset."""
    import datasets

    if isinstance(part, datasets.Dataset):
        return part.select(range(min(rows, len(part))))
    table = next(iter(part.with_format("arrow").iter(batch_size=rows)), None)
    return datasets.Dataset.from_dict({}) if table is None else datasets.Dataset(table)


def _load_splits(name: str, option: str, split: str, config: str | None, streaming: bool) -> Any:
    import datasets

    path = Path(name)
    try:
        if not path.is_file():
            if not path.exists():
                need_hub(name)
            return datasets.load_dataset(name, name=config, streaming=streaming)
        kind = FILE_FORMATS.get(path.suffix)
        if kind is None:
            raise ConfigError(f"{option}: {name}: not one of {', '.join(FILE_FORMATS)}")
        if not path.stat().st_size:
            raise ConfigError(f"{option}: {name} is empty")
        return datasets.load_dataset(kind, data_files={split: name}, streaming=streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        if isinstance(error, ConfigError):
            raise
        cause = error.__cause__ or error
        here = path.exists()
        advice = "" if here else nearest_path(name)
        kind_of_error = ConfigError if here else MissingHereError
        raise kind_of_error(f"{option}: {name}: {' '.join(str(cause).split())}{advice}") from error


def check_json(file: Path, option: str, rows: int | None = None) -> None:
    """Raise [`ConfigError`] unless a file, or its first `rows` lines, is JSON objects, one a line or all in one list.

    Arrow's reader takes less care: a line `null` is a segmentation fault (pyarrow 26), and bytes that are not UTF-8
    fail later, far from here.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(islice(lines, rows), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except RecursionError:
                raise ConfigError(f"{option}: {file}, line {number}: nested too deep") from None
            except ValueError as error:
                if number == 1 and is_json_list(file):  # over several lines
                    return
                raise ConfigError(f"{option}: {file}, line {number}: not JSON: {error}") from None
            if number == 1 and isinstance(row, list) and is_json_list(file):
                return
            if not isinstance(row, dict):
                found = describe(row)[:60]
                raise ConfigError(f"{option}: {file}, line {number}: a row is a JSON object, this is {found}")
            if b"\\u" in line and (broken := broken_text(row)):
                raise ConfigError(f"{option}: {file}, line {number}: {broken}")


def broken_text(value: Any, path: str = "") -> str | None:
    """Describe the first text that cannot be encoded as UTF-8, with its column; `None` if there is none."""
    from metatune.curricula.cells import text_problem

    if isinstance(value, str):
        problem = text_problem(value)
        return None if problem is None else f"'{path}' {problem}"
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = (broken_text(part, f"{path}.{name}" if path else str(name)) for name, part in parts)
    return next((problem for problem in found if problem is not None), None)


def is_json_list(file: Path) -> bool:
    """Tell whether the whole of a file is one list of JSON objects, or one object."""
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) or (isinstance(values, list) and all(isinstance(row, dict) for row in values))


def split_of(splits: Any, split: str, name: str) -> Any:
    """Return a split of a dataset.

    Args:
        splits (`datasets.DatasetDict`): what [`load_splits`] returned.
        split (`str`): the split's name.
        name (`str`): the dataset's, for the error.

    Raises [`ConfigError`] if it is not there or has no row.
    """
    if split not in splits:
        raise ConfigError(
            f"{name} has no split '{split}' (splits: {', '.join(splits)}){nearest(split, splits)}: name another "
            "with dataset_train_split or dataset_test_split, or give a folder with train.jsonl and test.jsonl"
        )
    if getattr(splits[split], "num_rows", None) == 0:  # of a stream nobody knows
        raise ConfigError(f"{name}, split '{split}' is empty")
    return splits[split]


def need_columns(dataset: Any, columns: Sequence[str], where: str, why: str) -> None:
    """Raise [`ConfigError`] unless a dataset has all of `columns`; `why` says what needs them."""
    there = dataset.column_names
    missing = [column for column in columns if there is not None and column not in there]
    if missing:
        raise ConfigError(
            f"{where} has no column '{missing[0]}'{nearest(missing[0], there)} (columns: {', '.join(there)}): {why}"
        )


def check_messages(dataset: Any, columns: Sequence[str], where: str, kind: str | None = None) -> None:
    """Raise [`ConfigError`] unless every row of `columns` is a text, or every one a conversation.

    Args:
        dataset (`datasets.Dataset`): the rows; a stream is not looked at.
        columns (`Sequence[str]`): columns that it has.
        where (`str`): what errors call it.
        kind (`str`, *optional*): `TEXT` or `CONVERSATION` if only that will do; else the first row decides.
    """
    if getattr(dataset, "num_rows", None) is None:
        return
    for column in columns:
        for row, value in enumerate(dataset[column][:], start=1):
            found, problem = kind_of(value)
            if problem is None and kind not in (None, found):
                problem = f"is {found} where {kind} is needed: it must be the same in all of {', '.join(columns)}"
            if problem is not None:
                raise ConfigError(f"{where}: row {row}: '{column}' {problem}")
            kind = found
    for column in set(MESSAGES) & set(dataset.column_names) - set(columns):
        if (kind_of(dataset[0][column])[0] == CONVERSATION) != (kind == CONVERSATION):
            raise ConfigError(
                f"{where}: the column '{column}' is not used, but TRL would look at it to tell whether rows are "
                f"conversations, and it is not {kind} as {columns[0]} is: rename it or leave it out"
            )


def with_text_columns(dataset: Any, where: str) -> Any:
    """Convert `answer` and `info` to text for verifiers; a dataset without `verifier` is returned unchanged.

    A number in `answer` becomes text, and a mapping in `info` becomes JSON.

    Raises [`ConfigError`] for the first row that has neither.
    """
    from metatune.curricula.cells import read_answer

    if "verifier" not in dataset.column_names or "answer" not in dataset.column_names:
        return dataset
    answers = []
    for row, (value, verifier) in enumerate(zip(dataset["answer"], dataset["verifier"], strict=True), start=1):
        try:
            answers.append(read_answer(value) if verifier and value is not None else value)
        except ValueError as error:
            raise ConfigError(f"{where}: row {row}: 'answer' {error}") from error
    columns = {"answer": answers}
    if "info" in dataset.column_names:
        columns["info"] = [json.dumps(value) if isinstance(value, dict) else value or "" for value in dataset["info"]]
    for name, values in columns.items():
        if values != dataset[name][:]:
            dataset = dataset.remove_columns(name).add_column(name, values)
    return dataset


def check_ids(dataset: Any, column: str, where: str, may_be_empty: bool = False) -> None:
    """Raise [`ConfigError`] unless every row of `column` is a list of token ids."""
    if getattr(dataset, "num_rows", None) is None:
        return
    for row, value in enumerate(dataset[column][:], start=1):
        whole = isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)
        if not whole or not (value or may_be_empty):
            raise ConfigError(f"{where}: row {row}: '{column}' is no list of token ids")


def check_numbers(dataset: Any, columns: Sequence[str], where: str, may_be_null: bool = False) -> None:
    """Raise [`ConfigError`] unless every value of `columns` is a number that float32 can represent.

    Args:
        dataset (`datasets.Dataset`): the rows; a stream is not checked.
        columns (`Sequence[str]`): numeric columns; missing ones are skipped.
        where (`str`): its name in errors.
        may_be_null (`bool`, *optional*, defaults to `False`): whether null stands for a row without a number.
    """
    if getattr(dataset, "num_rows", None) is None:
        return
    for column in columns:
        for row, value in enumerate(dataset[column][:] if column in dataset.column_names else (), start=1):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_finite = is_number and abs(value) <= LARGEST  # which NaN is not
            if not is_finite and not (may_be_null and value is None):
                raise ConfigError(f"{where}: row {row}: '{column}' is {describe(value)[:60]}, not a finite number")


def check_references(dataset: Any, where: str) -> None:
    """Raise [`ConfigError`] unless every row's verifier can grade against the row's reference answer.

    Args:
        dataset (`datasets.Dataset`): the rows; streams and datasets without `verifier` and `answer` are skipped.
        where (`str`): its name in errors.
    """
    from metatune.rewards import check_reference

    if getattr(dataset, "num_rows", None) is None or not {"verifier", "answer"} <= set(dataset.column_names):
        return
    for row, (verifier, answer) in enumerate(zip(dataset["verifier"][:], dataset["answer"][:], strict=True), start=1):
        if isinstance(verifier, str) and isinstance(answer, str):
            try:
                check_reference(verifier, answer)
            except ValueError as error:
                raise ConfigError(f"{where}: row {row}: 'answer': {error}") from error


def check_token_columns(dataset: Any, where: str) -> None:
    """Raise [`ConfigError`] unless the columns that accompany `input_ids` have one integer per token.

    Args:
        dataset (`datasets.Dataset`): rows with a valid column `input_ids`; a stream is not checked.
        where (`str`): its name in errors.
    """
    if getattr(dataset, "num_rows", None) is None:
        return
    for column in ("labels", "completion_mask", "assistant_masks", "attention_mask"):
        if column not in dataset.column_names:
            continue
        for row, (ids, values) in enumerate(zip(dataset["input_ids"][:], dataset[column][:], strict=True), start=1):
            whole = isinstance(values, list) and all(type(value) is int for value in values)
            if not whole or len(values) != len(ids):
                raise ConfigError(
                    f"{where}: row {row}: '{column}' is not a list of {len(ids)} whole numbers, one for each of "
                    "'input_ids'"
                )


def check_template_columns(dataset: Any, where: str) -> None:
    """Raise [`ConfigError`] unless what TRL gives to the chat template, `tools` and `chat_template_kwargs`, is so."""
    if getattr(dataset, "num_rows", None) is None:
        return
    for column, kinds, needed in (
        ("tools", (str, list, type(None)), "a list of tools, or the same as JSON"),
        ("chat_template_kwargs", (dict,), "a mapping"),
    ):
        for row, value in enumerate(dataset[column][:] if column in dataset.column_names else (), start=1):
            if not isinstance(value, kinds) or (isinstance(value, str) and not names_tools(value)):
                raise ConfigError(f"{where}: row {row}: '{column}' is {describe(value)[:60]}, not {needed}")


def template_variables(dataset: Any) -> list[dict[str, Any]] | None:
    """Return each row's own variables of the chat template, as TRL's SFT and reward trainers read them.

    Args:
        dataset (`datasets.Dataset`): rows, perhaps with the columns `tools` and `chat_template_kwargs`.

    Returns:
        `list[dict]`: one mapping per row; `None` without these columns.
    """
    columns = [name for name in ("tools", "chat_template_kwargs") if name in dataset.column_names]
    if not columns:
        return None
    rows = []
    for row in dataset.select_columns(columns):
        tools = row.get("tools")
        tools = json.loads(tools) if isinstance(tools, str) else tools
        rows.append({"tools": tools, **row.get("chat_template_kwargs", {})})
    return rows


def names_tools(text: str) -> bool:
    """Tell whether a text is tools as JSON: a list, or null."""
    try:
        return json.loads(text) is None or isinstance(json.loads(text), list)
    except ValueError:
        return False


def kind_of(value: Any) -> tuple[str | None, str | None]:
    """Return what a value of a row is, `TEXT` or `CONVERSATION`, and what is wrong with it (`None`: nothing)."""
    if isinstance(value, str):
        return TEXT, None
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        shown = "an empty list" if value == [] else describe(value)
        return None, f"is {shown[:60]}, not a text and not a conversation: a list of {{role, content}}"
    for number, message in enumerate(value, start=1):
        content = message.get("content")
        if not isinstance(message.get("role"), str):
            return None, f"has no role in message {number}: each is {{role: user, content: …}}"
        if not isinstance(content, (str, list)) and not (content is None and message.get("tool_calls")):
            return None, f"has no content in message {number}: each is {{role: user, content: …}}"
    return CONVERSATION, None
