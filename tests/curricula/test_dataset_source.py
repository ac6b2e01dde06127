import json
import logging
import time
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metatune.curricula.distributions import load_distributions
from metatune.curricula.problem import is_held_out

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public datasets are not beside the repository")


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(n, start=0):
    return [{"prompt": f"Question {i}?", "answer": str(i), "level": i % 2} for i in range(start, start + n)]


def entry(path, **options):
    return {"name": "set", "source": "dataset", "path": str(path), "verifier": "exact"} | options


def load(path, **options):
    return load_distributions([entry(path, **options)])


def test_a_folder_with_both_splits_is_parted_by_them(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", questions(30))
    write_jsonl(tmp_path / "test.jsonl", questions(10, start=30))
    (loaded,) = load(tmp_path)
    assert loaded.train["answer"] == [str(i) for i in range(30)]
    assert loaded.test["answer"] == [str(i) for i in range(30, 40)]
    assert loaded.train[3]["prompt"] == [{"role": "user", "content": "Question 3?"}]
    assert loaded.train[3]["key"] == "question 3?" and loaded.train[3]["info"] == "{}"


def test_a_training_row_that_is_held_out_is_dropped_and_counted(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [*questions(30), {"prompt": " QUESTION  30? ", "answer": "30"}])
    write_jsonl(tmp_path / "test.jsonl", questions(10, start=30))
    (loaded,) = load(tmp_path, train_size=20)
    assert len(loaded.train) == 20 and len(loaded.test) == 10
    assert (loaded.duplicates, loaded.overlap, loaded.unused) == (0, 1, 10)
    assert loaded.rows() == (
        "set: 20 to train on, 10 held out, 1 dropped from training because they are held out, "
        "10 not used (train_size, test_size)"
    )


def test_one_distribution_never_trains_on_what_another_holds_out(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", questions(60))
    write_jsonl(tmp_path / "two" / "train.jsonl", questions(60))
    write_jsonl(tmp_path / "two" / "test.jsonl", questions(20, start=40))
    first, second = load_distributions([entry(one), entry(tmp_path / "two", name="two", test_size=1)])
    # The smaller test_size takes rows out of the evaluation, not into the training.
    held_out = {key for key in (f"question {i}?" for i in range(60)) if is_held_out(key)}
    held_out |= {f"question {i}?" for i in range(40, 60)}
    assert set(first.train["key"]) == set(second.train["key"]) == {f"question {i}?" for i in range(60)} - held_out
    assert len(second.test) == 1


words = st.lists(st.sampled_from(["a", "B", "b ", " c", "d", "e\n", "f"]), min_size=1, max_size=3).map(" ".join)


@settings(max_examples=30, deadline=None)
@given(train=st.lists(words, min_size=1, max_size=30), test=st.lists(words, min_size=1, max_size=6))
def test_no_overlap_whatever_the_rows(tmp_path_factory, train, test):
    folder = tmp_path_factory.mktemp("rows")
    write_jsonl(folder / "train.jsonl", [{"prompt": p, "answer": "1"} for p in [*train, "only here"]])
    write_jsonl(folder / "test.jsonl", [{"prompt": p, "answer": "1"} for p in test])
    (loaded,) = load(folder)
    assert not set(loaded.train["key"]) & set(loaded.test["key"])
    assert len(set(loaded.train["key"])) == len(loaded.train) and len(set(loaded.test["key"])) == len(loaded.test)
    assert set(loaded.train["key"]) | set(loaded.test["key"]) == {
        " ".join(p.casefold().split()) for p in [*train, *test, "only here"]
    }


def test_one_pool_is_parted_by_key_whatever_the_order(tmp_path):
    forwards = load(write_jsonl(tmp_path / "forwards.jsonl", questions(100)))[0]
    backwards = load(write_jsonl(tmp_path / "backwards.jsonl", questions(100)[::-1]))[0]
    assert set(forwards.train["key"]) == set(backwards.train["key"])
    assert all(map(is_held_out, forwards.test["key"])) and 5 <= len(forwards.test) <= 40


@settings(max_examples=20, deadline=None)
@given(sizes=st.tuples(st.integers(1, 99), st.integers(1, 99)).map(sorted), order=st.randoms(use_true_random=False))
def test_a_pool_holds_out_test_size_rows_and_a_smaller_part_is_inside_a_larger_one(tmp_path_factory, sizes, order):
    folder, rows = tmp_path_factory.mktemp("rows"), questions(100)
    (small,) = load(write_jsonl(folder / "rows.jsonl", rows), test_size=sizes[0])
    order.shuffle(rows)
    (large,) = load(write_jsonl(folder / "shuffled.jsonl", rows), test_size=sizes[1], seed=7)
    assert (len(small.test), len(large.test)) == tuple(sizes)
    assert set(small.test["key"]) <= set(large.test["key"])
    for loaded in (small, large):
        assert len(loaded.train) + len(loaded.test) == 100 and not set(loaded.train["key"]) & set(loaded.test["key"])


def test_a_pool_without_test_size_holds_out_the_fixed_fifth(tmp_path):
    (fifth,) = load(write_jsonl(tmp_path / "rows.jsonl", questions(200)))
    assert set(fifth.test["key"]) == {key for key in (f"question {i}?" for i in range(200)) if is_held_out(key)}
    (smaller,) = load(tmp_path / "rows.jsonl", test_size=10)
    assert set(smaller.test["key"]) < set(fifth.test["key"]) and len(smaller.train) == 190
    with pytest.raises(ValueError, match="test_size 200 of 200 distinct rows leaves none to train on"):
        load(tmp_path / "rows.jsonl", test_size=200)


def test_each_value_of_a_column_holds_out_test_size_rows(tmp_path):
    loaded = load(write_jsonl(tmp_path / "rows.jsonl", questions(100)), split_by="level", test_size=5)
    assert [(len(each.train), len(each.test)) for each in loaded] == [(45, 5), (45, 5)]


def test_duplicates_within_a_part_are_dropped_and_counted(tmp_path):
    (loaded,) = load(write_jsonl(tmp_path / "rows.jsonl", questions(50) + questions(5)))
    assert len(loaded.train) + len(loaded.test) == 50
    assert loaded.duplicates == 5 and "5 dropped as duplicates" in loaded.rows()


def test_a_column_splits_the_rows(tmp_path):
    even, odd = load(write_jsonl(tmp_path / "rows.jsonl", questions(100)), split_by="level")
    assert (even.name, odd.name) == ("set-0", "set-1")
    assert all(int(answer) % 2 == 0 for answer in [*even.train["answer"], *even.test["answer"]])
    assert len(even.train) + len(even.test) + len(odd.train) + len(odd.test) == 100


@pytest.mark.parametrize("as_list", [True, False])
def test_several_files_split_by_their_names(tmp_path, as_list):
    files = [write_jsonl(tmp_path / f"part{i}.jsonl", questions(40, start=40 * i)) for i in (2, 1)]
    path = files if as_list else str(tmp_path / "part*.jsonl")
    loaded = load_distributions([entry("") | {"path": path, "split_by": "file"}])
    assert [distribution.name for distribution in loaded] == ["set-part1", "set-part2"]
    assert all(40 <= int(answer) < 80 for answer in loaded[0].train["answer"])


def test_values_are_told_apart_by_their_text_and_sorted_as_numbers(tmp_path):
    rows = [row | {"level": [10, "9", 9, "9b"][i % 4]} for i, row in enumerate(questions(200))]
    loaded = load(write_jsonl(tmp_path / "rows.jsonl", rows), split_by="level")
    assert [distribution.name for distribution in loaded] == ["set-9", "set-9b", "set-10"]


def test_parquet_and_its_shards_load_like_jsonl(tmp_path):
    for shard in range(2):
        rows = datasets.Dataset.from_list(questions(20, start=20 * shard))
        rows.to_parquet(tmp_path / f"train-0000{shard}-of-00002.parquet")
    write_jsonl(tmp_path / "test.jsonl", questions(5, start=40))
    (loaded,) = load(tmp_path)
    assert loaded.train["answer"] == [str(i) for i in range(40)] and len(loaded.test) == 5


def test_named_splits_are_used(tmp_path):
    write_jsonl(tmp_path / "extra.jsonl", questions(10))
    write_jsonl(tmp_path / "dev.jsonl", questions(5, start=10))
    write_jsonl(tmp_path / "unused.jsonl", questions(5, start=15))
    (loaded,) = load(tmp_path, train_split="extra", test_split="dev")
    assert len(loaded.train) == 10 and len(loaded.test) == 5


def test_files_that_are_neither_trained_on_nor_held_out_are_told(tmp_path, caplog):
    """`train` is there, so it is the training part: what else was listed would be missing without a word."""
    names = ("train", "more", "train2")
    files = [write_jsonl(tmp_path / f"{name}.jsonl", questions(20, start=20 * i)) for i, name in enumerate(names)]
    with caplog.at_level(logging.WARNING):
        (alone,) = load_distributions([entry("") | {"path": files}])
    assert len(alone.train) + len(alone.test) == 20
    assert "the splits more, train2 are not used" in caplog.text


def test_sizes_take_a_seeded_subset(tmp_path, caplog):
    path = write_jsonl(tmp_path / "rows.jsonl", questions(200))
    first, again, other = (load(path, train_size=20, test_size=30, seed=seed)[0] for seed in (0, 0, 1))
    assert len(first.train) == 20 and first.train["key"] == again.train["key"] != other.train["key"]
    assert first.test["key"] == other.test["key"]
    load(path, train_size=900)
    assert "training part of set: only" in caplog.text and "distinct items, 900 wanted" in caplog.text


def test_a_split_value_without_training_items_is_an_error(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", questions(10))
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": "New?", "answer": "1", "level": 7}])
    with pytest.raises(ValueError, match="distribution 'set-7' has no training items"):
        load(tmp_path, split_by="level")


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"rows\.jsonl' has no items in split rows"):
        load(write_jsonl(tmp_path / "rows.jsonl", []))


def test_a_distribution_without_held_out_items_warns(tmp_path, caplog):
    write_jsonl(tmp_path / "train.jsonl", questions(4))
    write_jsonl(tmp_path / "test.jsonl", [])
    load(tmp_path)
    assert "distribution set has no held-out items" in caplog.text


def test_the_answer_may_follow_a_mark(tmp_path):
    rows = [{"prompt": f"Q{i}", "answer": f"1 #### 2\nso\n#### {i} "} for i in range(20)]
    (loaded,) = load(write_jsonl(tmp_path / "rows.jsonl", rows), answer_after="####")
    assert set(loaded.train["answer"]) <= {str(i) for i in range(20)}


def test_info_columns_travel_as_json(tmp_path):
    rows = [{"prompt": f"Q{i}", "answer": "x", "names": ["A", "B"], "solution": [True, False]} for i in range(20)]
    (loaded,) = load(write_jsonl(tmp_path / "rows.jsonl", rows), info_columns=["names", "solution"])
    assert json.loads(loaded.train[0]["info"]) == {"names": ["A", "B"], "solution": [True, False]}


def test_without_a_verifier_no_answer_is_asked_for(tmp_path):
    rows = [{"prompt": f"Write of {i}.", "summary": f"It is {i}."} for i in range(30)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    (plain,) = load(path, verifier=None)
    (referenced,) = load(path, verifier=None, answer_column="summary")
    assert plain.train.features == referenced.train.features
    assert set(plain.train["verifier"]) == set(referenced.train["verifier"]) == {""}
    assert set(plain.train["answer"]) == {""} and referenced.train["answer"][0].startswith("It is ")
    with pytest.raises(ValueError, match=r"line 1: there is no column 'abstract' \(answer_column\)"):
        load(path, verifier=None, answer_column="abstract")
    with pytest.raises(ValueError, match=r"\(set\): answer_after is of a reference that nothing reads: give verifier"):
        load(path, verifier=None, answer_after="####")
    with pytest.raises(ValueError, match="verifier 'none' is unknown"):
        load(path, verifier="none")


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"prompt": "Q"}, {}, r"rows\.jsonl, line 3: there is no column 'answer' \(answer_column\)"),
        ({"prompt": "Q", "answr": "1"}, {}, r"line 3: .*'answer'.*did you mean 'answr'\?"),
        ({"prompt": "Q", "answer": " "}, {}, r"line 3: answer_column 'answer' is empty"),
        (
            {"prompt": "Q", "answer": "$."},
            {"verifier": "math"},
            r"line 3: .*the reference '\$\.' contains no answer to compare",
        ),
        ({"prompt": "Q", "answer": None}, {}, r"line 3: answer_column 'answer' must be text or a number, got None"),
        ({"prompt": "Q", "answer": True}, {}, r"must be text or a number, got True of type bool"),
        ({"prompt": "Q", "answer": [1, 2]}, {}, r"line 3: .*got \[1, 2\] of type list; name one value by .*answer\.0"),
        ({"prompt": "Q", "answer": float("nan")}, {}, r"line 3: .* must be text or a finite number, got nan"),
        (
            {"prompt": "Q", "answer": "\ud83d"},
            {},
            r"line 3: answer_column 'answer' contains an unpaired surrogate \(.ud83d",
        ),
        (
            {"prompt": "Q \udc00", "answer": "1"},
            {},
            r"line 3: prompt_column 'prompt' contains an unpaired .*character 3",
        ),
        ({"prompt": "Q", "answer": "1", "x": "\ud83d"}, {"info_columns": ["x"]}, r"line 1: .*'x' \(info_columns\)"),
        (
            {"prompt": "Q", "answer": "1"},
            {"answer_column": "meta.truth", "prompt_column": "prompt"},
            r"line 1: there is no column 'meta\.truth' \(answer_column\)",
        ),
        (
            {"prompt": [{"role": "user"}], "answer": "1"},
            {},
            r"line 3: prompt_column 'prompt' has no content in message 1",
        ),
        ({"prompt": [{"content": "Q"}], "answer": "1"}, {}, r"line 3: .* has no role in message 1"),
        ({"prompt": [{"role": "assistant", "content": "Q"}], "answer": "1"}, {}, r"line 3: .* has no user turn"),
        (
            {"prompt": [{"role": "tool", "content": "Q"}], "answer": "1"},
            {},
            r"line 3: .* has the role 'tool' in message 1",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}], "answer": "1"},
            {},
            r"line 3: .* has a list of content parts in message 1; .* write the content as one string",
        ),
        (
            {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}], "answer": "1"},
            {"system": "Be brief."},
            r"line 3: both the data and the option `system`",
        ),
        ({"prompt": "Q", "answer": "1"}, {"answer_after": "####"}, r"line 1: answer_column 'answer' lacks the mark"),
        ({"prompt": ["Q"], "answer": "1"}, {}, r"line 3: prompt_column 'prompt' has no role in message 1"),
        ({"prompt": 7, "answer": "1"}, {}, r"line 3: prompt_column 'prompt' must be text or a list of .*, got 7"),
        ({"prompt": "", "answer": "1"}, {}, r"line 3: prompt_column 'prompt' must be non-empty text, got ''"),
        ({"prompt": "Q", "answer": "1"}, {"info_columns": ["names"]}, r"line 1: .*'names' \(info_columns\)"),
        ({"prompt": "Q", "answer": "1"}, {"split_by": "level"}, r"line 3: .*'level' \(split_by\)"),
        ({"prompt": "Q", "answer": "1", "level": None}, {"split_by": "level"}, r"line 3: split_by column 'level'"),
        ({"prompt": "Q", "answer": "1"}, {"verifier": "maths"}, r"verifier 'maths' is unknown; did you mean 'math'\?"),
        ({"prompt": "Q", "answer": "1"}, {"subset": "main"}, r"subset 'main' is for hub datasets"),
        ({"prompt": "Q", "answer": "1"}, {"test_split": "row"}, r"test_split 'row' is not in .* mean 'rows'\?"),
        (
            {"prompt": "Q", "answer": "1"},
            {"train_split": "rows", "test_split": "rows"},
            r"train_split and test_split are both 'rows'",
        ),
        (["Q", "1"], {}, r"line 3: a row must be a JSON object, got list"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, options, message):
    path = write_jsonl(tmp_path / "rows.jsonl", [*questions(2), row])
    with pytest.raises(ValueError, match=message) as error:
        load(path, **options)
    assert "set" in str(error.value) or "rows.jsonl" in str(error.value)


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 3+4?"}]


def test_conversations_are_read_up_to_the_turn_that_the_policy_writes(tmp_path):
    reply = [{"role": "assistant", "content": "It is 7."}]
    rows = [
        {"prompt": CHAT, "answer": 7},
        {"messages": [{"role": "user", "content": "What is 1+1?"}, *reply], "answer": 2.0},
        {"messages": [CHAT[1], *reply, {"role": "user", "content": "And doubled?"}], "answer": 0.1},
        {"prompt": "What is 2+2?", "answer": "4"},
    ]
    (loaded,) = load(write_jsonl(tmp_path / "train.jsonl", rows + questions(2)), instruction="Think.", test_size=1)
    found = {item["key"]: item for item in [*loaded.train, *loaded.test]}
    assert found["what is 1+1?"]["prompt"] == [{"role": "user", "content": "What is 1+1?\n\nThink."}]
    two_turns = found["system: be brief. user: what is 3+4?"]
    assert [turn["role"] for turn in two_turns["prompt"]] == ["system", "user"] and two_turns["answer"] == "7"
    three_turns = found["user: what is 3+4? assistant: it is 7. user: and doubled?"]
    assert three_turns["prompt"][-1]["content"] == "And doubled?\n\nThink." and three_turns["answer"] == "0.1"
    assert found["what is 1+1?"]["answer"] == "2"


def test_a_verl_parquet_is_read_by_dotted_paths(tmp_path):
    rows = [
        {
            "data_source": f"source-{i % 2}",
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "reward_model": {"style": "rule", "ground_truth": i},
            "extra_info": {"index": i, "split": "train"},
        }
        for i in range(20)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    options = {"answer_column": "reward_model.ground_truth", "info_columns": ["extra_info.index"], "test_size": 2}
    first, second = load(tmp_path, split_by="data_source", **options)
    assert (first.name, second.name) == ("set-source-0", "set-source-1") and len(first.train) == 8
    for item in first.train:
        assert item["key"] == f"question {item['answer']}?"
        assert json.loads(item["info"]) == {"extra_info.index": int(item["answer"])}
    with pytest.raises(ValueError, match=r"row 1: .*'reward_model\.ground_trth'.*did you mean 'ground_truth'\?"):
        load(tmp_path, answer_column="reward_model.ground_trth")


def test_a_large_pool_is_divided_quickly(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", questions(40_000))
    start = time.process_time()
    (loaded,) = load(path, test_size=50)
    assert time.process_time() - start < 10
    assert len(loaded.train) == 39_950 and len(loaded.test) == 50


def test_malformed_files_are_named(tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(b'{"prompt": "Q", "answer": "1"}\n{"prompt": "Q"\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl, line 2: not JSON"):
        load(broken)
    broken.write_bytes(b'{"prompt": "Q\xff", "answer": "1"}\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl, line 1: not JSON: .*utf-8"):
        load(broken)
    parquet = tmp_path / "broken.parquet"
    parquet.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"broken\.parquet: not Parquet"):
        load(parquet)


def test_a_parquet_row_is_named(tmp_path):
    datasets.Dataset.from_list([*questions(2), {"prompt": "Q", "answer": ""}]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet, row 3: answer_column 'answer' is empty"):
        load(tmp_path / "rows.parquet")


def test_a_missing_path_is_named_with_the_nearest(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", questions(2))
    with pytest.raises(ValueError, match=r"no data at .*row\.jsonl'; did you mean 'rows\.jsonl'\?"):
        load(tmp_path / "row.jsonl")
    with pytest.raises(ValueError, match=r"no data at .*none\*"):
        load(tmp_path / "none*.jsonl")
    (tmp_path / "rows.csv").write_text("prompt,answer\n")
    with pytest.raises(ValueError, match=r"cannot read .*rows\.csv'"):
        load(tmp_path / "rows.csv")


def test_a_list_of_which_a_path_is_missing_is_refused_and_not_shortened(tmp_path):
    """A name without a suffix might be the hub's, but not in a list."""
    there = write_jsonl(tmp_path / "a.jsonl", questions(40))
    for paths in ([there, "data/b"], ["data/b", "data/c"]):
        with pytest.raises(ValueError, match=r"no data at 'data/b'; a list may contain only local files and folders"):
            load_distributions([entry("") | {"path": paths}])


def test_a_hub_dataset_is_asked_for_by_name_and_subset(tmp_path, monkeypatch):
    """The hub is out of reach of a test: `datasets` itself reads a repository laid out as the hub's openai/gsm8k."""
    rows = [{"question": f"Q{i}?", "answer": f"thus\n#### {i}"} for i in range(15)]
    for part, some in (("train", rows[:10]), ("test", rows[10:])):
        datasets.Dataset.from_list(some).to_parquet(tmp_path / "hub" / "main" / f"{part}-00000-of-00001.parquet")
    files = [{"split": part, "path": f"main/{part}-*"} for part in ("train", "test")]
    card = {"configs": [{"config_name": "main", "data_files": files}, {"config_name": "other", "data_files": "none"}]}
    (tmp_path / "hub" / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    asked, real = [], datasets.load_dataset

    def load_dataset(path, name=None):
        asked.append((path, name))
        return real(str(tmp_path / "hub"), name=name, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("metatune.curricula.dataset_files.need_hub", lambda path: None)
    options = {"prompt_column": "question", "answer_after": "####", "verifier": "math"}
    (gsm8k,) = load("openai/gsm8k", subset="main", **options)
    assert asked == [("openai/gsm8k", "main")]
    assert gsm8k.train["answer"] == [str(i) for i in range(10)] and len(gsm8k.test) == 5
    with pytest.raises(ValueError, match=r"'openai/gsm8k' .*'mian' not found.*'main'"):
        load("openai/gsm8k", subset="mian", **options)


def test_the_splits_of_a_hub_dataset_can_be_the_distributions(monkeypatch):
    def load_dataset(path, name=None):
        return datasets.DatasetDict(
            {f"{n}ppl": datasets.Dataset.from_list(questions(40, start=40 * n)) for n in (3, 4)}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("metatune.curricula.dataset_files.need_hub", lambda path: None)
    loaded = load("K-and-K/knights-and-knaves", split_by="file")
    assert [distribution.name for distribution in loaded] == ["set-3ppl", "set-4ppl"]


def test_a_hub_dataset_that_cannot_be_had_is_named(monkeypatch):
    def load_dataset(path, name=None):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("metatune.curricula.dataset_files.need_hub", lambda path: None)
    with pytest.raises(ValueError, match=r"'openai/gsm8k' is neither a local file or folder nor .*no network"):
        load("openai/gsm8k")


@needs_data
def test_gsm8k_loads_in_a_second_or_two():
    start = time.perf_counter()
    (gsm8k,) = load(DATA / "gsm8k", prompt_column="question", answer_after="####", verifier="math")
    assert time.perf_counter() - start < 5
    assert len(gsm8k.train) == 7473 and len(gsm8k.test) == 1319
    assert gsm8k.train[0]["answer"] == "72"


@needs_data
def test_knights_and_knaves_split_by_file():
    loaded = load(
        DATA / "knights_knaves" / "people*.jsonl",
        split_by="file",
        prompt_column="quiz",
        answer_column="solution_text_format",
        info_columns=["names", "solution"],
        verifier="knights_and_knaves",
    )
    assert [distribution.name for distribution in loaded] == ["set-people3", "set-people4", "set-people5"]
    for people, distribution in zip((3, 4, 5), loaded, strict=True):
        assert len(distribution.train) + len(distribution.test) > 950 and len(distribution.test) > 100
        assert len(json.loads(distribution.test[0]["info"])["names"]) == people


@needs_data
def test_math500_splits_by_level():
    loaded = load(DATA / "math500", split_by="level", prompt_column="problem", verifier="math")
    assert [distribution.name for distribution in loaded] == [f"set-{level}" for level in range(1, 6)]
    assert sum(len(distribution.train) + len(distribution.test) for distribution in loaded) == 500
