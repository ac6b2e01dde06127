import random
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from metatune.curricula import build_tokenizer
from metatune.curricula.families import FAMILIES
from metatune.curricula.tokenizer import ASSISTANT, END, PAD, UNKNOWN, USER, WORDS

ALPHABET = "\n" + "".join(c for c in string.printable if c.isprintable())
texts = st.text(ALPHABET, max_size=60)
TOKENIZER = build_tokenizer()  # read-only here, and hypothesis wants no fixture of function scope


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def chat(messages: list[dict[str, str]], **kwargs) -> list[int]:
    return TOKENIZER.apply_chat_template(messages, return_dict=False, **kwargs)


def test_the_alphabet_is_all_of_printable_ascii():
    assert len(ALPHABET) == 96
    assert set(ALPHABET) == {chr(code) for code in range(32, 127)} | {"\n"}


@given(texts)
@example("make 24 from 3 8 using + -")
@example("makefromusing rightly  wrong\n\nanswer 3+4=7")
@example("nok okay x")  # a word within a word, and its beginning
@example("a" * 1000)  # no word is too long
@example(" leading, trailing and  doubled spaces . ' n't ")
@example(f"{END} in a text")
def test_ascii_text_survives_a_round_trip(text):
    assert TOKENIZER.decode(ids(text)) == text
    assert TOKENIZER.unk_token_id not in ids(text)


def test_text_beyond_ascii_is_unknown_not_dropped():
    assert TOKENIZER.convert_ids_to_tokens(ids("é3")) == [UNKNOWN, "3"]


@pytest.mark.parametrize("word", [*WORDS, *ALPHABET])
def test_a_known_word_is_one_token(word):
    assert TOKENIZER.convert_ids_to_tokens(ids(word)) == [word]


def test_a_text_is_words_and_characters():
    tokens = TOKENIZER.convert_ids_to_tokens(ids("make 12 from a\nKN ok"))
    assert tokens == ["make", " ", "1", "2", " ", "from", " ", "a", "\n", "K", "N", " ", "ok"]


def test_the_special_tokens_are_distinct_and_named():
    special = [TOKENIZER.pad_token, TOKENIZER.unk_token, TOKENIZER.eos_token]
    assert special == [PAD, UNKNOWN, END]
    assert len({*TOKENIZER.convert_tokens_to_ids([*special, USER, ASSISTANT])}) == 5
    assert {USER, ASSISTANT} <= set(TOKENIZER.all_special_tokens)
    assert TOKENIZER.decode(ids(f"{USER}ok{END}"), skip_special_tokens=True) == "ok"
    assert max(TOKENIZER.get_vocab().values()) == len(TOKENIZER) - 1  # a model of len(tokenizer) rows has no gap


@given(prompt=texts, system=st.none() | texts)
def test_a_prompt_ends_where_the_assistant_begins(prompt, system):
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    prompt_ids = chat(messages, add_generation_prompt=True)
    assert prompt_ids[-1] == TOKENIZER.convert_tokens_to_ids(ASSISTANT)
    assert prompt_ids[:-1] == chat(messages)
    assert TOKENIZER.decode(prompt_ids) == "".join(USER + m["content"] for m in messages) + ASSISTANT


@given(prompt=texts, completion=texts)
@example("make 3 from 1", "right")  # no word is formed over the boundary
def test_a_prompt_and_its_completion_are_tokenised_as_one_after_the_other(prompt, completion):
    user = {"role": "user", "content": prompt}
    whole = chat([user, {"role": "assistant", "content": completion}])
    assert whole == chat([user], add_generation_prompt=True) + ids(completion) + [TOKENIZER.eos_token_id]


def test_a_conversation_of_two_turns():
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>a<|assistant|>b<|end|><|user|>c<|assistant|>"


@given(family=st.sampled_from(sorted(FAMILIES)), seed=st.integers(0, 10**6))
def test_the_families_are_written_without_an_unknown_token(family, seed):
    generator, rng = FAMILIES[family](), random.Random(seed)
    problem = generator.sample(rng)
    for text in (problem.prompt, generator.demonstrate(problem, rng), problem.answer):
        assert TOKENIZER.unk_token_id not in ids(text)
        assert TOKENIZER.decode(ids(text)) == text


@pytest.mark.parametrize("loader", [AutoTokenizer, type(TOKENIZER)])
def test_saving_and_loading_changes_nothing(tmp_path, loader):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    messages = [
        {"role": "user", "content": "make 3 from 1 2\n" + ALPHABET},
        {"role": "assistant", "content": "x" * 200},
    ]
    assert loaded.apply_chat_template(messages, return_dict=False) == chat(messages)
    assert loaded.decode(chat(messages)) == TOKENIZER.decode(chat(messages))
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    for name in ("pad_token_id", "eos_token_id", "unk_token_id", "chat_template", "model_max_length", "padding_side"):
        assert getattr(loaded, name) == getattr(TOKENIZER, name), name
    assert set(loaded.all_special_tokens) == set(TOKENIZER.all_special_tokens)
