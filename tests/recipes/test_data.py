"""Rows that cannot be used are told by file, row and column, before a trainer is made."""

import json
import random
from pathlib import Path

import pytest
from datasets import Dataset
from trl import SFTConfig

from metatune.recipes.config import ConfigError
from metatune.recipes.data import (
    CONVERSATION,
    check_messages,
    check_references,
    check_template_columns,
    load_splits,
    split_of,
    with_text_columns,
)
from metatune.recipes.reward_functions import check_reward_columns
from metatune.recipes.sft import SFTScriptArguments, check_rows, columns_of, in_length_buckets, load_data
from metatune.rewards import correctness_reward


def said(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\nnull\n', "line 2: a row is a JSON object, this is null"),
        ("null\n", "line 1: a row is a JSON object, this is null"),  # Arrow's reader ends the process at this
        ("3\n", "line 1: a row is a JSON object, this is 3"),
        ("[1, 2]", "line 1: a row is a JSON object, this is a list"),
        ('{"a": 1}\n{"a": \n', "line 2: not JSON: Expecting value"),
        ("[" * 9000, "line 1: nested too deep"),
        ('{"a": "é"}\n'.encode("latin-1"), "line 1: not JSON: 'utf-8' codec"),
        ('{"a": "\\ud83d\\ude00"}\n{"a": [{"b": "x\\ud83d"}]}\n', "line 2: 'a.0.b' contains an unpaired surrogate"),
        ("", "is empty"),
    ],
)
def test_a_broken_file_is_told_by_its_line(tmp_path, content, message):
    name = write(tmp_path / "rows.jsonl", content)
    with pytest.raises(ConfigError) as caught:
        load_splits(name, "dataset_name", "train")
    assert str(caught.value).startswith(f"dataset_name: {name}") and message in str(caught.value)
    if content:
        (tmp_path / "folder").mkdir()
        write(tmp_path / "folder" / "train.jsonl", content)
        with pytest.raises(ConfigError, match=r"folder/train\.jsonl, line"):
            load_splits(str(tmp_path / "folder"), "dataset_name", "train")


@pytest.mark.parametrize(
    "content",
    ['{"a": 1}\n\n{"a": 2}\n', '\ufeff{"a": 1}\r\n{"a": 2}\r\n', '[{"a": 1},\n {"a": 2}]', '[{"a": 1}, {"a": 2}]\n'],
    ids=["lines", "byte order mark", "list over lines", "list"],
)
def test_what_arrow_reads_is_let_through(tmp_path, content):
    splits = load_splits(write(tmp_path / "rows.json", content), "dataset_name", "train")
    assert split_of(splits, "train", "rows.json")["a"][:] == [1, 2]
    with pytest.raises(ConfigError, match=r"rows.json has no split 'tran' .*; did you mean 'train'"):
        split_of(splits, "tran", "rows.json")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "row 2: 'chosen' is null, not a text"),
        ([], "row 2: 'chosen' is an empty list"),
        ([{"content": "x"}], "row 2: 'chosen' has no role in message 1"),
        ([{"role": "user", "content": None}], "row 2: 'chosen' has no content in message 1"),
    ],
)
def test_a_row_that_is_no_conversation(value, message):
    rows = Dataset.from_dict({"chosen": [said("user", "a"), value]})
    with pytest.raises(ConfigError, match=message):
        check_messages(rows, ["chosen"], "pairs")


def test_texts_and_conversations_do_not_mix():
    mixed = Dataset.from_dict({"prompt": ["a"], "chosen": [said("assistant", "b")]})
    with pytest.raises(ConfigError, match=r"row 1: 'chosen' is a conversation where a text is needed"):
        check_messages(mixed, ["prompt", "chosen"], "pairs")
    with pytest.raises(ConfigError, match=r"the column 'chosen' is not used, but TRL would look at it"):
        check_messages(mixed, ["prompt"], "pairs")
    with pytest.raises(ConfigError, match=r"row 1: 'prompt' is a text where a conversation is needed"):
        check_messages(mixed, ["prompt"], "pairs", CONVERSATION)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("tools", "{", "'tools' is '{', not a list of tools"),
        ("tools", 3, "'tools' is 3, not a list of tools"),
        ("chat_template_kwargs", "x", "'chat_template_kwargs' is 'x', not a mapping"),
    ],
)
def test_what_the_chat_template_is_given(column, value, message):
    with pytest.raises(ConfigError, match=f"row 1: {message}"):
        check_template_columns(Dataset.from_dict({column: [value]}), "rows")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["a"]}, "has no column 'completion'"),
        ({"texts": ["a"]}, "has no column 'text'; did you mean 'texts'"),
        ({"text": [3]}, "row 1: 'text' is 3, not a text"),
        ({"messages": ["a"]}, "row 1: 'messages' is a text where a conversation is needed"),
        ({"input_ids": ["a"]}, "row 1: 'input_ids' is no list of token ids"),
        ({"input_ids": [[1, 2]], "labels": [[1, None]]}, "row 1: 'labels' is not a list of 2 whole numbers"),
        ({"input_ids": [[1, 2]], "completion_mask": [[1]]}, "row 1: 'completion_mask' is not a list of 2 whole"),
        ({"input_ids": [[1]], "labels": [[float("nan")]]}, "row 1: 'labels' is not a list of 1 whole numbers"),
    ],
)
def test_what_sft_needs(columns, message):
    with pytest.raises(ConfigError, match=message):
        check_rows(Dataset.from_dict(columns), "rows", "text")


@pytest.mark.parametrize("kind", ["texts", "conversations", "messages", "ids", "text"])
def test_length_buckets_know_every_kind_of_row(kind):
    def message(text):
        return [{"role": "user", "content": text}]

    sizes = [random.Random(seed).randrange(1, 99) for seed in range(12)]
    texts = ["a" * size for size in sizes]
    rows = {
        "texts": {"prompt": texts, "completion": texts},
        "conversations": {"prompt": [*map(message, texts)], "completion": [*map(message, texts)]},
        "messages": {"messages": [*map(message, texts)]},
        "ids": {"input_ids": [[1] * size for size in sizes]},
        "text": {"text": texts},
    }[kind]
    dataset = Dataset.from_dict({**rows, "size": sizes})
    found = in_length_buckets(dataset, columns_of(dataset, "text"), batch_size=3, seed=0)["size"]
    batches = sorted(sorted(found[first : first + 3]) for first in range(0, 12, 3))
    assert [size for batch in batches for size in batch] == sorted(sizes)  # neighbours in length share a batch


def test_sft_reads_a_file(tmp_path):
    row = {"prompt": said("user", "1 + 1"), "completion": said("assistant", "2")}
    name = write(tmp_path / "rows.jsonl", json.dumps(row) + "\n")
    training_args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert load_data(SFTScriptArguments(dataset_name=name), training_args)["train"][0] == row
    with pytest.raises(ConfigError, match="no such file or folder"):
        load_data(SFTScriptArguments(dataset_name=str(tmp_path / "none.jsonl")), training_args)


def test_a_reward_function_says_which_columns_it_reads():
    def brevity(completions, length, scale=1.0, **kwargs):
        return [0.0]

    rows = Dataset.from_dict({"prompt": ["a"], "lenght": [1]})
    with pytest.raises(ConfigError, match=r"no column 'length'; did you mean 'lenght'.*reward function brevity reads"):
        check_reward_columns([brevity], rows, "rows")
    with pytest.raises(ConfigError, match=r"no column 'answer'.*reward function correctness_reward reads it"):
        check_reward_columns([correctness_reward], rows, "rows")
    check_reward_columns([brevity], rows.rename_column("lenght", "length"), "rows")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_a_reward_function_reads_is_finite(value):
    def scaled(completions, difficulty, **kwargs):
        return [0.0]

    rows = Dataset.from_dict({"prompt": ["a"] * 3, "difficulty": [0.5, None, value], "unused": [value] * 3})
    with pytest.raises(ConfigError, match=r"rows: row 3: 'difficulty' is .*, not a finite number"):
        check_reward_columns([scaled], rows, "rows")
    check_reward_columns([scaled], rows.select([0, 1]), "rows")  # null: the column belongs to another task


def test_a_reference_that_cannot_be_graded_is_refused_at_its_row():
    rows = {"verifier": ["math", "math", ""], "answer": ["42.", r"\boxed{}", ""]}
    with pytest.raises(ConfigError, match=r"^problems: row 2: 'answer': the reference .* no answer to compare"):
        check_references(Dataset.from_dict(rows), "problems")
    check_references(Dataset.from_dict({"verifier": ["math", "exact", ""], "answer": ["42.", "$", ""]}), "problems")
    check_references(Dataset.from_dict({"answer": ["$"]}), "graded by another reward")


def test_answers_become_the_texts_that_verifiers_read():
    rows = Dataset.from_list([{"answer": 3.0, "verifier": "exact", "info": {"x": 1}}] * 2)
    assert with_text_columns(rows, "rows").to_list() == [{"verifier": "exact", "answer": "3", "info": '{"x": 1}'}] * 2
    plain = Dataset.from_dict({"answer": [[1], [2]]})  # a reward function of the user's own reads it
    assert with_text_columns(plain, "rows") is plain
    with pytest.raises(ConfigError, match=r"rows: row 1: 'answer' must be text or a number, got \[1\] of type list"):
        with_text_columns(plain.add_column("verifier", ["exact"] * 2), "rows")
