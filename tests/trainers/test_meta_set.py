"""Batches of the meta set: tokenised like pairs, a function of the step, and clear about rows that cannot be used."""

import pytest
from datasets import Dataset

from metatune.trainers.meta_set import MetaSet


def rows(number: int, k: int = 3) -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": f"{i} + 1"}], "responses": [str(i + j) for j in range(k)]}
            for i in range(number)
        ]
    )


def meta_set(dataset: Dataset, tokenizer, batch_size: int = 2, **options) -> MetaSet:
    return MetaSet(dataset, tokenizer, batch_size=batch_size, seed=0, **options)


def texts(batch, tokenizer) -> list[str]:
    return tokenizer.batch_decode(
        [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    )


def test_a_row_is_read_as_a_pair_would_be(tokenizer):
    prompt = [{"role": "user", "content": "1 + 2"}]
    expected = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": "3"}], tokenize=False)
    both_forms = [{"prompt": prompt, "responses": ["3", "4"]}, {"prompt": prompt, "responses": ["3", "5"]}]
    found = meta_set(Dataset.from_list(both_forms), tokenizer).batch(0, 0, 1)
    assert expected in texts(found, tokenizer)
    messages = [[{"role": "assistant", "content": text}] for text in ("3", "4")]
    found = meta_set(Dataset.from_list([{"prompt": prompt, "responses": messages}]), tokenizer, 1).batch(0, 0, 1)
    assert texts(found, tokenizer)[0] == expected
    plain = meta_set(Dataset.from_list([{"prompt": "1 + 2 = ", "responses": ["3", "4"]}]), tokenizer, 1)
    assert texts(plain.batch(0, 0, 1), tokenizer)[0] == "1 + 2 = 3" + tokenizer.eos_token


def test_every_pass_shows_every_prompt_once_and_processes_share_a_step(tokenizer):
    meta = meta_set(rows(8), tokenizer)
    together = [texts(meta.batch(step, process, 2), tokenizer) for step in (0, 1) for process in (0, 1)]
    prompts = [text for part in together for text in part[::3]]
    assert len(set(prompts)) == 8
    alone = meta_set(rows(8), tokenizer, batch_size=4)
    assert texts(alone.batch(0, 0, 1), tokenizer) == together[0] + together[1]
    second_pass = [text for step in (2, 3) for p in (0, 1) for text in texts(meta.batch(step, p, 2), tokenizer)[::3]]
    assert sorted(second_pass) == sorted(prompts) and second_pass != prompts


def test_what_is_too_long_is_left_out_and_counted(tokenizer):
    dataset = Dataset.from_list([*rows(3, 2).to_list(), {**rows(1, 2)[0], "responses": ["1", "1" * 50]}])
    meta = meta_set(dataset, tokenizer, max_length=40)
    assert (len(meta), meta.num_too_long) == (3, 1)
    with pytest.raises(ValueError, match=r"has 3 prompts \(1 are longer than max_length\), and one step takes 4"):
        meta.check(2)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (rows(2, 1), "row 1 has 1 response: MetaRM compares"),
        (Dataset.from_list([*rows(1, 3).to_list(), *rows(1, 2).to_list()]), "row 2 has 2 responses and row 1 has 3"),
        (Dataset.from_list([{"prompt": "a", "responses": ["b", " "]}]), "response 2 of row 1 is empty"),
        (Dataset.from_list([{"prompt": "a", "completions": ["b", "c"]}]), "no column 'responses'"),
    ],
)
def test_rows_that_cannot_be_used_are_named(dataset, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        meta_set(dataset, tokenizer)
