import json
import logging
import re
import time

import pytest

from metatune.curricula.distributions import COLUMNS, check_distributions, demonstrations, load_distributions
from metatune.curricula.entry import MissingDataError
from metatune.curricula.families import FAMILIES
from metatune.curricula.problem import is_held_out

PROCEDURAL = [
    {"name": "countdown-3", "source": "countdown", "config": {"numbers": 3}, "train_size": 200, "test_size": 40},
    {
        "name": "countdown-3-times",
        "source": "countdown",
        "config": {"numbers": 3, "operators": "+-*"},
        "train_size": 200,
        "test_size": 40,
        "seed": 1,
    },
    {"name": "sums", "source": "arithmetic", "config": {"terms": 3}, "train_size": 200, "test_size": 40},
    {"name": "island", "source": "logic", "config": {"people": 3}, "train_size": 200, "test_size": 40},
]


def keys(distributions, part):
    return {key for distribution in distributions for key in getattr(distribution, part)["key"]}


def test_rows_have_the_stated_columns_and_types():
    distribution = load_distributions(PROCEDURAL[:1])[0]
    assert distribution.name == "countdown-3"
    assert tuple(distribution.train.column_names) == tuple(distribution.test.column_names) == COLUMNS
    row = distribution.train[0]
    assert [message["role"] for message in row["prompt"]] == ["user"]
    assert row["distribution"] == "countdown-3" and row["verifier"] == "countdown"
    assert json.loads(row["info"])["operators"] == "+-"


def test_sizes_are_as_asked_and_keys_are_distinct():
    for distribution in load_distributions(PROCEDURAL):
        assert (len(distribution.train), len(distribution.test)) == (200, 40)
        assert len(set(distribution.train["key"])) == 200 and len(set(distribution.test["key"])) == 40


def test_train_and_held_out_never_overlap_over_seeds_and_distributions():
    train, test = set(), set()
    for seed in range(3):
        loaded = load_distributions([entry | {"seed": seed} for entry in PROCEDURAL])
        train |= keys(loaded, "train")
        test |= keys(loaded, "test")
    assert train and test and not train & test
    assert all(map(is_held_out, test)) and not any(map(is_held_out, train))


def test_a_draw_depends_on_family_config_and_seed_alone():
    alone = load_distributions([PROCEDURAL[0] | {"name": "another name"}])[0]
    among = load_distributions(PROCEDURAL[::-1])[-1]
    other_seed = load_distributions([PROCEDURAL[0] | {"seed": 1}])[0]
    assert alone.train["key"] == among.train["key"] and alone.test["key"] == among.test["key"]
    assert alone.train["key"] != other_seed.train["key"]


def test_held_out_items_do_not_depend_on_the_number_of_training_items():
    few = load_distributions([PROCEDURAL[0] | {"train_size": 10}])[0]
    many = load_distributions([PROCEDURAL[0] | {"train_size": 150}])[0]
    assert few.test["key"] == many.test["key"]
    assert few.train["key"] == many.train["key"][:10]


def test_an_exhausted_space_gives_what_there_is_and_warns(caplog):
    config = {"name": "tiny", "source": "arithmetic", "config": {"terms": 2}, "train_size": 5000, "test_size": 5000}
    with caplog.at_level(logging.WARNING):
        tiny = load_distributions([config])[0]
    # First term 1..9, second 1..9, sign + or, where the total stays at or above 0, -: 81 + 45 sums.
    assert 120 <= len(tiny.train) + len(tiny.test) <= 126
    assert f"training part of tiny: only {len(tiny.train)} distinct items, 5000 wanted" in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_are_quick(family):
    start = time.perf_counter()
    load_distributions([{"name": "x", "source": family, "train_size": 2000, "test_size": 64}])
    assert time.perf_counter() - start < 4  # about half a second when the machine is quiet


def test_instruction_and_system_shape_the_prompt_and_not_the_key():
    plain = load_distributions(PROCEDURAL[:1])[0].train[0]
    shaped = load_distributions([PROCEDURAL[0] | {"instruction": "Think.", "system": "You count."}])[0].train[0]
    assert shaped["prompt"] == [
        {"role": "system", "content": "You count."},
        {"role": "user", "content": plain["prompt"][0]["content"] + "\n\nThink."},
    ]
    assert shaped["key"] == plain["key"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian_size": 3}, r"distributions\[1\] \(sums\): unknown key 'trian_size'; did you mean 'train_size'\?"),
        ({"train_size": "many"}, r"\(sums\): train_size must be int, got 'many' of type str"),
        ({"train_size": True}, r"\(sums\): train_size must be int, got True"),
        ({"train_size": 0}, r"\(sums\): train_size must be at least 1"),
        ({"source": "arithmetics"}, r"\(sums\): source 'arithmetics'; did you mean 'arithmetic'\?"),
        ({"config": {"term": 3}}, r"\(sums\), config: unknown key 'term'; did you mean 'terms'\?"),
        ({"config": {"terms": 99}}, r"\(sums\), config: arithmetic: terms must be between 2 and 20, got 99"),
        ({"config": [3]}, r"\(sums\): config must be dict"),
        ({"name": "countdown-3"}, r"the name 'countdown-3' is taken by distributions\[0\]"),
    ],
)
def test_a_bad_entry_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        load_distributions([PROCEDURAL[0], PROCEDURAL[2] | change])


@pytest.mark.parametrize("configs", [[], None, "countdown", {"name": "x"}, ["countdown"]])
def test_a_list_of_mappings_is_required(configs):
    with pytest.raises(ValueError, match=r"recipe\.yaml: distributions"):
        load_distributions(configs, where="recipe.yaml: distributions")


def test_a_missing_name_is_named():
    with pytest.raises(ValueError, match=r"\(no name\): the key 'name' is missing"):
        load_distributions([{"source": "countdown"}])


def test_demonstrations_share_equally_and_never_show_a_held_out_problem():
    loaded = load_distributions(PROCEDURAL)
    traces = demonstrations(PROCEDURAL, 402, seed=3)
    assert traces.column_names == ["prompt", "completion"] and len(traces) == 402
    prompts = [prompt[0]["content"] for prompt in traces["prompt"]]
    starts = [sum(prompt.startswith(word) for prompt in prompts) for word in ("make", "compute", "a says")]
    assert starts == [202, 100, 100]
    held_out = {prompt[0]["content"] for distribution in loaded for prompt in distribution.test["prompt"]}
    assert not held_out & set(prompts)
    completion = traces[0]["completion"]
    assert completion[0]["role"] == "assistant" and "\nanswer " in completion[0]["content"]


def test_demonstrations_repeat_with_their_seed():
    once, again, other = (demonstrations(PROCEDURAL, 20, seed=seed) for seed in (0, 0, 1))
    assert once.to_list() == again.to_list() != other.to_list()


def test_a_source_without_a_demonstrator_is_refused():
    entry = {"name": "maths", "source": "dataset", "path": "rows.jsonl", "verifier": "math"}
    with pytest.raises(ValueError, match=r"distributions\[1\] \(maths\): source 'dataset' has no demonstrator"):
        demonstrations([PROCEDURAL[0], entry], 10)


def test_a_check_reads_the_first_rows_of_each_split(tmp_path):
    for name, rows in {"train": 30, "test": 5}.items():
        lines = [json.dumps({"prompt": f"{name} {i}", "answer": "1"}) + "\n" for i in range(rows)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    entry = {"name": "a", "source": "dataset", "path": str(tmp_path), "verifier": "math"}
    check_distributions([entry])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"prompt": "", "answer": "1"}\n')
    check_distributions([entry], rows=30)
    with pytest.raises(ValueError, match=r"train.jsonl, line 31: prompt_column 'prompt' must be non-empty text"):
        check_distributions([entry])
    (tmp_path / "test.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(ValueError, match="there is no column 'answer'"):
        check_distributions([entry], rows=1)


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"source": "arithmetic", "config": {"trems": 3}}, ValueError, "unknown key 'trems'; did you mean 'terms'?"),
        ({"source": "dataset", "path": "nowhere.jsonl"}, MissingDataError, "no data at 'nowhere.jsonl'"),
    ],
)
def test_a_check_refuses_what_loading_would(entry, error, message):
    with pytest.raises(error, match=re.escape(message)):
        check_distributions([{"name": "a", **entry}], rows=1)
