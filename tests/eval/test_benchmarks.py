import json
from pathlib import Path

import datasets
import pytest

from metatune.curricula import is_held_out, load_distributions
from metatune.eval.benchmarks import BENCHMARKS, limited, load_benchmark, load_held_out

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the benchmark data in ../shared/data")

GSM8K_ROWS = [
    {"question": "What is 1+1?", "answer": "It is 1+1 = 2.\n#### 2"},
    {"question": "What is 2+3?", "answer": "#### 5"},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_local_file_gives_all_its_rows(tmp_path):
    items = load_benchmark("gsm8k", write(tmp_path / "mine.jsonl", GSM8K_ROWS))
    assert [item["answer"] for item in items] == ["2", "5"]
    assert items[0]["prompt"] == [{"role": "user", "content": f"What is 1+1?\n\n{BENCHMARKS['gsm8k'].instruction}"}]
    assert {item["distribution"] for item in items} == {"gsm8k"}
    assert items[0]["verifier"] == "math"
    assert json.loads(items[0]["info"]) == {}
    assert len({item["key"] for item in items}) == 2


def test_a_parquet_shard_is_read_alike(tmp_path):
    path = tmp_path / "test-00000-of-00001.parquet"
    datasets.Dataset.from_list(GSM8K_ROWS).to_parquet(path)
    assert load_benchmark("gsm8k", str(path)) == load_benchmark("gsm8k", write(tmp_path / "mine.jsonl", GSM8K_ROWS))


def test_a_folder_gives_its_test_file_only(tmp_path):
    write(tmp_path / "train.jsonl", [{"question": "train?", "answer": "#### 1"}])
    write(tmp_path / "test.jsonl", GSM8K_ROWS)
    assert [item["answer"] for item in load_benchmark("gsm8k", str(tmp_path))] == ["2", "5"]


def test_the_instruction_can_be_replaced_or_dropped(tmp_path):
    path = write(tmp_path / "mine.jsonl", GSM8K_ROWS)
    assert load_benchmark("gsm8k", path, instruction="Be brief.")[0]["prompt"][0]["content"].endswith("\n\nBe brief.")
    assert load_benchmark("gsm8k", path, instruction="")[0]["prompt"][0]["content"] == "What is 1+1?"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"quesion": "?", "answer": "#### 1"}, r"test\.jsonl, line 3: there is no column 'question'.*'quesion'"),
        ({"question": "?", "answer": "1"}, r"test\.jsonl, line 3: .*'####'"),
        ({"question": "?", "answer": "####"}, r"test\.jsonl, line 3: .*'answer' is empty"),
    ],
)
def test_a_bad_row_is_named_with_its_file_line_and_column(tmp_path, row, message):
    write(tmp_path / "test.jsonl", [*GSM8K_ROWS, row])
    with pytest.raises(ValueError, match=message):
        load_benchmark("gsm8k", str(tmp_path))


def test_missing_data_and_names_are_named(tmp_path):
    with pytest.raises(ValueError, match="benchmark gsm8k: no such file or folder: nowhere"):
        load_benchmark("gsm8k", "nowhere")
    with pytest.raises(ValueError, match=r"unknown benchmark 'gsm8'; did you mean 'gsm8k'"):
        load_benchmark("gsm8")
    write(tmp_path / "train.jsonl", GSM8K_ROWS)
    with pytest.raises(ValueError, match="'test' is not in"):
        load_benchmark("gsm8k", str(tmp_path))


def test_the_hub_is_asked_by_name_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(path, name=None):
        asked.append((path, name))
        train = [{"question": "train?", "answer": "#### 1"}]
        return datasets.DatasetDict(
            {"train": datasets.Dataset.from_list(train), "test": datasets.Dataset.from_list(GSM8K_ROWS)}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("metatune.curricula.dataset_files.need_hub", lambda path: None)
    assert [item["answer"] for item in load_benchmark("gsm8k")] == ["2", "5"]
    assert asked == [("openai/gsm8k", "main")]


def test_knights_and_knaves_of_the_hub_are_a_test_set_as_a_whole(monkeypatch):
    def load_dataset(path, name=None):
        return datasets.DatasetDict(
            {
                f"{n}ppl": datasets.Dataset.from_list(
                    [
                        {"quiz": f"{n} {i}?", "solution_text_format": "(1) Z", "names": ["Z"], "solution": [True]}
                        for i in range(20)
                    ]
                )
                for n in (2, 3)
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("metatune.curricula.dataset_files.need_hub", lambda path: None)
    items = load_benchmark("knights_knaves")
    assert len(items) == 40
    assert {item["distribution"] for item in items} == {"knights_knaves-2ppl", "knights_knaves-3ppl"}
    assert json.loads(items[0]["info"]) == {"names": ["Z"], "solution": [True]}


def test_held_out_items_are_the_distributions_test_parts():
    configs = [
        {"name": f"sum-{n}", "source": "arithmetic", "config": {"terms": n}, "train_size": 8, "test_size": 4}
        for n in (3, 4)
    ]
    items = load_held_out(configs)
    assert [item["distribution"] for item in items] == ["sum-3"] * 4 + ["sum-4"] * 4
    assert items == [dict(item) for distribution in load_distributions(configs) for item in distribution.test]


def test_a_limit_holds_for_every_distribution():
    items = [{"distribution": name, "key": i} for name in "ab" for i in range(3)]
    assert limited(items, None) == items
    kept = [(item["distribution"], item["key"]) for item in limited(items, 2)]
    assert kept == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    with pytest.raises(ValueError, match="limit"):
        limited(items, 0)


@needs_data
@pytest.mark.parametrize("name, count", [("gsm8k", 1319), ("math500", 500), ("aime24", 30)])
def test_the_real_benchmarks_have_their_known_sizes(name, count):
    items = load_benchmark(name, str(DATA / name))
    assert len(items) == count
    assert all(item["answer"] and item["prompt"][0]["content"] for item in items)


@needs_data
def test_knights_and_knaves_in_a_folder_are_what_training_holds_out():
    items = load_benchmark("knights_knaves", str(DATA / "knights_knaves"))
    assert {item["distribution"] for item in items} == {f"knights_knaves-people{n}" for n in (3, 4, 5)}
    assert all(is_held_out(item["key"]) for item in items)
    assert 500 < len(items) < 700
    one_file = load_benchmark("knights_knaves", str(DATA / "knights_knaves" / "people3.jsonl"))
    assert 950 < len(one_file) <= 1000


def test_a_distribution_without_a_verifier_has_no_accuracy(tmp_path):
    path = tmp_path / "essays.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Write of {i}."}) + "\n" for i in range(40)))
    configs = [
        {"name": "sums", "source": "arithmetic", "train_size": 8, "test_size": 4},
        {"name": "essays", "source": "dataset", "path": str(path)},
    ]
    with pytest.raises(ValueError, match="distribution 'essays' has no verifier, and only one tells what is right"):
        load_held_out(configs)
