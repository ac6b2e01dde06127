"""Responses with gold scores: files that are read, and mistakes in them."""

import json
import math

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from metatune.eval.evaluation import Completion, Evaluation
from metatune.eval.response_files import load_responses, score_responses


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(prompt="p", responses=("a", "b"), gold=(1, 2)):
    return {"prompt": prompt, "responses": list(responses), "gold": list(gold)}


def test_lines_a_list_and_parquet_are_the_same(tmp_path):
    rows = [row("p"), row("q", ["c"], [True]), row("r", ["d", "e"], [None, 0.5])]
    write(tmp_path / "lines.jsonl", *rows)
    (tmp_path / "list.json").write_text(json.dumps(rows))
    as_numbers = [{**row, "gold": [None if x is None else float(x) for x in row["gold"]]} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(as_numbers), tmp_path / "table.parquet")
    for name in ("lines.jsonl", "list.json", "table.parquet"):
        found = load_responses(tmp_path / name)
        assert found.prompts == ["p", "q", "r"] and found.responses == [["a", "b"], ["c"], ["d", "e"]]
        assert np.array_equal(np.concatenate(found.gold), [1, 2, 1, np.nan, 0.5], equal_nan=True)
        assert not found.turns and len(set(found.distributions)) == 1


def test_a_line_ends_at_a_newline_alone(tmp_path):
    text = "one\u2028two\u0085three\x0bfour"
    (tmp_path / "a.jsonl").write_text(json.dumps(row(text), ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert load_responses(tmp_path / "a.jsonl").prompts == [text]


def test_rows_of_one_prompt_are_one_prompt(tmp_path):
    found = load_responses(write(tmp_path / "a.jsonl", row("p"), row("q"), row("p", ["c"], [3])))
    assert found.prompts == ["p", "q"] and found.responses[0] == ["a", "b", "c"] and found.gold[0] == [1, 2, 3]


def completion(distribution, key, sample, correct):
    return Completion(
        **{"distribution": distribution, "key": key, "sample": sample, "prompt": f"ask {key}", "reference": "1"},
        **{"completion": f"say {sample}", "extracted": None, "tokens": 3, "truncated": False, "correct": correct},
    )


def test_an_evaluation_is_a_gold_score(tmp_path):
    verdicts = [("sums", "1", 0, True), ("sums", "1", 1, None), ("words", "1", 0, False), ("sums", "2", 0, True)]
    Evaluation([completion(*verdict) for verdict in verdicts]).save(tmp_path)
    for path in (tmp_path, tmp_path / "completions.parquet"):
        found = load_responses(path)
        assert found.prompts == ["ask 1", "ask 1", "ask 2"] and found.distributions == ["sums", "words", "sums"]
        assert found.responses == [["say 0", "say 1"], ["say 0"], ["say 0"]]
        assert found.gold[0][0] == 1 and math.isnan(found.gold[0][1]) and found.gold[1:] == [[0], [1]]
        assert found.turns
    first = load_responses(tmp_path).first(1)
    assert first.prompts == ["ask 1", "ask 1"] and first.distributions == ["sums", "words"] and first.turns


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        (
            [{"prompt": "p", "response": ["a"], "gold": [1]}],
            "has no column 'responses' (columns: gold, prompt, response)",
        ),
        ([row(), row(gold=[1])], "row 2: 2 responses and 1 gold scores; give one for each, or null"),
        ([row(gold=[1, "2"])], "row 1: a gold score is a finite number or null, not '2'"),
        ([row(gold=[1, float("inf")])], "row 1: a gold score is a finite number or null, not inf"),
        ([row(responses=[], gold=[])], "row 1: `responses` must be a list of at least one"),
        ([row(prompt=None)], "row 1: `prompt` must be a text or a list of messages"),
        ([row(responses=["a", [{"role": "assistant", "content": "b"}]])], "row 1: prompt and responses must be texts"),
        ([["p"]], "row 1 is no JSON object"),
    ],
)
def test_mistakes_name_file_and_row(tmp_path, rows, message):
    path = write(tmp_path / "a.jsonl", *rows)
    if rows == [["p"]]:
        path.write_text('"p"\n')
    with pytest.raises(ValueError) as raised:
        load_responses(path)
    assert str(raised.value).startswith(str(path)) and message in str(raised.value)


def test_files_that_cannot_be_read(tmp_path):
    for path, message in ((tmp_path / "a.jsonl", "no such file"), (tmp_path, "completions.parquet: no such file")):
        with pytest.raises(ValueError, match=message):
            load_responses(path)
    for name, content, message in (
        ("a.txt", "", "not one of .jsonl, .json, .parquet"),
        ("a.jsonl", '{"prompt": 1}\n{"prompt\n', "line 2 is not JSON"),
        ("a.parquet", "text", "cannot be read"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            load_responses(tmp_path / name)


def test_scores_come_back_by_prompt(tmp_path, tokenizer):
    class Length:
        def __init__(self):
            self.tokenizer = tokenizer

        def score_ids(self, responses):
            return np.array([float(len(ids)) for ids in responses])

    found = load_responses(write(tmp_path / "a.jsonl", row("p", ["a", "bcd"]), row("qr", ["e"], [0])))
    assert [scores.tolist() for scores in score_responses(Length(), found)] == [[3, 5], [4]]
