import time
from itertools import chain, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metatune.rewards import EpisodeRule, episode_ends, token_texts
from metatune.rewards.episodes import TURNING_PHRASES

from .tokenizers_of_kinds import MAKERS

WRITTEN = ["starter", "byte level", "sentencepiece"]  # what models that write are made with


def cut(trace: list[str], **options) -> list[str]:
    """The episodes of a trace that is given as its tokens' texts."""
    ends = episode_ends(range(len(trace)), trace, EpisodeRule(**options))
    return ["".join(trace[start:end]) for start, end in pairwise([0, *ends])]


def ids_of(kind: str, text: str) -> list[int]:
    return MAKERS[kind]()(text, add_special_tokens=False)["input_ids"]


def decoded(kind: str, ids: list[int]) -> str:
    return MAKERS[kind]().backend_tokenizer.decode(ids, skip_special_tokens=False)


# ---- the text that each token completes ----


def test_a_character_of_several_tokens_belongs_to_its_last():
    ids = ids_of("byte level", "a👩")
    assert token_texts(MAKERS["byte level"](), ids) == ["a", *[""] * (len(ids) - 2), "👩"]
    ids = ids_of("sentencepiece", "the你")
    assert token_texts(MAKERS["sentencepiece"](), ids) == ["the", "", "", "你"]


def test_a_combining_mark_is_a_character_of_its_own():
    texts = token_texts(MAKERS["sentencepiece"](), ids_of("sentencepiece", "e\u0301."))
    assert [text for text in texts if text] == ["e", "\u0301", "."]


def test_only_the_first_token_loses_the_leading_space():
    tokenizer = MAKERS["sentencepiece"]()
    ids = ids_of("sentencepiece", "the the")
    assert token_texts(tokenizer, ids) == ["the", " the"]
    assert token_texts(tokenizer, ids[1:]) == ["the"]


def test_special_tokens_are_kept():
    tokenizer = MAKERS["starter"]()
    assert token_texts(tokenizer, [*ids_of("starter", "ok"), tokenizer.eos_token_id]) == ["ok", "<|end|>"]


def test_bytes_that_are_no_character_become_replacement_characters():
    kind = "sentencepiece"
    a, b = MAKERS[kind]().convert_tokens_to_ids(["<0xE4>", "<0xBD>"])
    (letter,) = ids_of(kind, "bb")[-1:]
    assert token_texts(MAKERS[kind](), [letter, a, b, letter]) == ["b", "\ufffd", "\ufffd", "b"]
    a, b = MAKERS["byte level"]().convert_tokens_to_ids(["ä", "½"])  # the same two bytes
    (letter,) = ids_of("byte level", "b")
    assert token_texts(MAKERS["byte level"](), [a, b, letter]) == ["", "\ufffd", "b"]
    assert token_texts(MAKERS["byte level"](), [letter, a, b]) == ["b", "", "\ufffd"]


def test_a_token_that_the_tokenizer_does_not_know_has_no_text():
    beyond = 10**6  # a model's vocabulary is often padded beyond the tokenizer's
    ids = ids_of("byte level", "👩")
    texts = token_texts(MAKERS["byte level"](), [beyond, *ids[:2], beyond, *ids[2:], beyond])
    assert "".join(texts) == "👩" and texts[-2] == "👩" and len(texts) == len(ids) + 3
    assert token_texts(MAKERS["starter"](), [beyond]) == [""]


def test_no_token_has_no_text():
    assert token_texts(MAKERS["starter"](), []) == []


def test_a_tokenizer_that_is_not_fast_is_refused():
    with pytest.raises(ValueError, match=r"object is not a fast tokenizer; load one with tokenizer\.json"):
        token_texts(object(), [1])


def assert_exact(kind: str, ids: list[int]) -> list[str]:
    texts = token_texts(MAKERS[kind](), ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == decoded(kind, ids)
    return texts


@pytest.mark.parametrize("kind", WRITTEN)
@given(text=st.text(max_size=40))
@example(text="so 1.\n\nWait, 👩‍🚀 你好 e\u0301\n\n\n\nWait")
def test_texts_join_to_what_was_written(kind, text):
    assert_exact(kind, ids_of(kind, text))


def random_ids(kind: str) -> st.SearchStrategy[list[int]]:
    """Any ids, the unknown one too, and often runs of tokens that are bytes."""
    size = len(MAKERS[kind]())
    return st.lists(st.integers(0, size) | st.integers(size // 2, size - 1), max_size=20)


@pytest.mark.parametrize("kind", MAKERS)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_texts_of_any_ids_join_to_the_decoded_ids(kind, data):
    assert_exact(kind, data.draw(random_ids(kind)))


@pytest.mark.parametrize("kind", WRITTEN)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_text_is_told_as_soon_as_it_is_settled_and_no_sooner(kind, data):
    ids = data.draw(random_ids(kind))
    texts, whole = token_texts(MAKERS[kind](), ids), decoded(kind, ids)
    for end in range(1, len(ids) + 1):
        told = "".join(texts[:end])
        assert whole.startswith(told)
        if "\ufffd" not in whole:
            assert told.startswith(decoded(kind, ids[:end]).rstrip("\ufffd"))


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("what", ["text", "characters of many tokens", "invalid bytes"])
def test_a_long_trace_takes_well_under_a_second(kind, what):
    tokenizer = MAKERS[kind]()
    if what == "invalid bytes":
        ids = [len(tokenizer) - 60] if kind == "starter" else tokenizer.convert_tokens_to_ids(["ð", "<0xF0>"])
        ids = [token for token in ids if token is not None and token != tokenizer.unk_token_id]
    else:
        ids = ids_of(kind, "the 1+1=2.\n\nWait" if what == "text" else "你好👩")
    ids = (ids * 8000)[:8000]
    start = time.process_time()
    ends = episode_ends(ids, token_texts(tokenizer, ids), EpisodeRule(min_paragraphs=1))
    assert time.process_time() - start < 0.8
    assert ends[-1] == 8000


# ---- where episodes end ----

RULES = st.builds(
    EpisodeRule,
    by=st.sampled_from(["phrases", "delimiter", "regex", "tokens"]),
    phrases=st.sampled_from([TURNING_PHRASES, ("a", "W"), ("\ufffd",)]),
    paragraph=st.sampled_from(["\n\n", "\n", "."]),
    min_paragraphs=st.integers(1, 3),
    delimiter=st.sampled_from(["\n", ".\n", "a", "\ufffd", "好"]),
    regex=st.sampled_from(["Wait|^1", "(?=\n)", "a*", "$", "\ufffd"]),
    tokens=st.integers(1, 5),
    max_episodes=st.none() | st.integers(1, 4),
    group=st.integers(1, 3),
    thinking_end=st.sampled_from(["</think>", None, "\n", "a"]),
)


@pytest.mark.parametrize("kind", WRITTEN)
@given(data=st.data(), rule=RULES)
@settings(max_examples=300, deadline=None)
def test_episodes_are_the_completion(kind, data, rule):
    pieces = st.sampled_from([".\n\n", "\n\nWait", "\n", "</think>", "a", "1", "好", "👩"]).map(
        lambda t: ids_of(kind, t)
    )
    ids = data.draw(random_ids(kind) | st.lists(pieces, max_size=12).map(lambda parts: list(chain(*parts))))
    texts = token_texts(MAKERS[kind](), ids)
    ends = episode_ends(ids, texts, rule)
    assert all(start < end for start, end in pairwise([0, *ends]))
    assert (ends[-1] == len(ids)) if ids else ends == []
    episodes = [(ids[start:end], texts[start:end]) for start, end in pairwise([0, *ends])]
    assert list(chain(*(part for part, _ in episodes))) == ids
    assert "".join("".join(part) for _, part in episodes) == decoded(kind, ids)
    if rule.max_episodes is not None:
        assert len(ends) <= -(-rule.max_episodes // rule.group) + 1  # and the answer


PARAGRAPHS = ["A", "B", "C", "Wait D", "Wait E", "F", "G", "Wait H", "But wait I"]


def paragraphs(*texts: str) -> list[str]:
    """One token a paragraph and one a separator."""
    return [part for text in texts for part in (text, "\n\n")][:-1]


def initials(episodes: list[str]) -> list[str]:
    """The paragraphs' letters in each episode, checked for where the separators went."""
    assert all(episode.endswith("\n\n") for episode in episodes[:-1])
    return ["".join(part[-1] for part in episode.split("\n\n") if part) for episode in episodes]


def test_phrases_by_hand():
    # E opens none: it is one paragraph after D; H is four after D; I is one after H
    assert initials(cut(paragraphs(*PARAGRAPHS))) == ["ABC", "DEFG", "HI"]
    assert initials(cut(paragraphs(*PARAGRAPHS), min_paragraphs=1)) == ["ABC", "D", "EFG", "H", "I"]
    assert initials(cut(paragraphs(*PARAGRAPHS), min_paragraphs=2)) == ["ABC", "DEFG", "HI"]
    assert initials(cut(paragraphs(*PARAGRAPHS), phrases=["But wait"])) == ["ABCDEFGH", "I"]


def test_a_phrase_opens_only_at_the_start_of_a_paragraph():
    assert cut(paragraphs("A", "B", "C", "so Wait D", "wait E")) == ["A\n\nB\n\nC\n\nso Wait D\n\nwait E"]
    assert cut(paragraphs("A", "B", "C", " Wait D"))[1:] == [" Wait D"]
    assert cut(["A\n\nB\n\nC\n", "\n", "\n", "Wait"])[1:] == ["\nWait"]  # a third newline opens its paragraph


@pytest.mark.parametrize("phrase", TURNING_PHRASES)
def test_every_turning_phrase_opens_an_episode(phrase):
    assert cut(paragraphs("A", "B", "C", f"{phrase} D"))[1:] == [f"{phrase} D"]


def test_the_first_paragraph_opens_no_episode_of_its_own():
    assert len(cut(paragraphs("Wait A", "B", "C"), min_paragraphs=1)) == 1


def test_the_cap_comes_before_the_grouping():
    tokens = [f"{number}\n" for number in range(1, 8)]
    assert cut(tokens, by="delimiter", max_episodes=3) == ["1\n", "2\n", "3\n4\n5\n6\n7\n"]
    assert cut(tokens, by="delimiter", group=3) == ["1\n2\n3\n", "4\n5\n6\n", "7\n"]
    assert cut(tokens, by="delimiter", group=2, max_episodes=3) == ["1\n2\n", "3\n4\n5\n6\n7\n"]
    assert cut(tokens, by="delimiter", group=3, max_episodes=3) == ["".join(tokens)]
    assert cut(tokens, by="delimiter", max_episodes=1) == ["".join(tokens)]
    assert cut(tokens, by="delimiter", max_episodes=99, group=99) == ["".join(tokens)]


def test_a_delimiter_belongs_to_the_episode_that_it_ends():
    assert cut(["1", "\n", "2", "\n"], by="delimiter") == ["1\n", "2\n"]
    assert cut(["\n", "1", "\n", "\n", "2"], by="delimiter") == ["\n", "1\n", "\n", "2"]
    assert cut(["1", ";", ";", "2;", ";3"], by="delimiter", delimiter=";;") == ["1;;", "2;;3"]


def test_a_regex_begins_episodes():
    assert cut(["x ", "Try 1", " a ", "Try 2"], by="regex", regex=r"Try \d") == ["x ", "Try 1 a ", "Try 2"]
    assert cut(["Try", " 1\n", "Try", " 2"], by="regex", regex="^Try") == ["Try 1\n", "Try 2"]
    assert cut(["a", "b", "a", "b"], by="regex", regex="(?=a)|$") == ["ab", "ab"]


def test_token_budgets():
    assert cut(list("abcdefg"), by="tokens", tokens=3) == ["abc", "def", "g"]
    assert cut(list("abcdef"), by="tokens", tokens=3) == ["abc", "def"]
    assert cut(list("ab"), by="tokens", tokens=3) == ["ab"]
    assert cut(["", "", "你", "a"], by="tokens", tokens=2) == ["", "你a"]  # budgets count tokens, not characters


def test_the_answer_after_the_thinking_is_one_episode():
    tokens = ["1", "\n", "2", "</think>", "\n", "so", "\n", "3"]
    assert cut(tokens, by="delimiter") == ["1\n", "2</think>", "\nso\n3"]
    assert cut(tokens, by="delimiter", thinking_end=None) == ["1\n", "2</think>\n", "so\n", "3"]
    assert cut(tokens, by="tokens", tokens=3) == ["1\n2", "</think>", "\nso\n3"]
    assert cut(tokens, by="delimiter", max_episodes=1) == ["1\n2</think>", "\nso\n3"]
    assert cut(tokens, by="delimiter", group=2) == ["1\n2</think>", "\nso\n3"]


def test_an_end_of_thinking_with_nothing_before_or_after_it():
    assert cut(["</think>", "\n", "1"], by="delimiter") == ["</think>", "\n1"]
    assert cut(["1", "\n", "</think>"], by="delimiter") == ["1\n", "</think>"]
    assert cut(["1", "\n", "</thi"], by="delimiter") == ["1\n", "</thi"]  # truncated within it
    assert cut(["1\n2</think>\n"], by="delimiter") == ["1\n2</think>\n"]  # one token has it all
    assert cut(["1\n", "2</think>\n\n", "3"], by="delimiter") == ["1\n", "2</think>\n\n", "3"]


@pytest.mark.parametrize(
    "options", [{}, {"by": "delimiter"}, {"by": "regex", "regex": "x"}, {"by": "tokens", "tokens": 9}]
)
def test_no_boundary_is_one_episode_and_no_token_none(options):
    assert cut(["a", "b"], **options) == ["ab"]
    assert cut([], **options) == []


def test_what_a_truncated_trace_ends_with_is_an_episode():
    assert cut([*paragraphs("A", "B", "C", "Wait D"), "\n\n", "Wa"])[1:] == ["Wait D\n\nWa"]
    assert cut(["1", "\n", "2", "+"], by="delimiter") == ["1\n", "2+"]
    ids = ids_of("byte level", "1\n👩")[:-1]  # within a character
    texts = token_texts(MAKERS["byte level"](), ids)
    assert episode_ends(ids, texts, EpisodeRule(by="delimiter")) == [2, len(ids)]


def test_a_token_that_straddles_a_boundary_belongs_to_the_earlier_episode():
    assert cut(["A\n\nB\n\nC", "\n\nWait", " D"]) == ["A\n\nB\n\nC\n\nWait", " D"]
    assert cut(["A.\n", "\nB", "\n\nC.", "\n\nWa", "it D"]) == ["A.\n\nB\n\nC.\n\nWa", "it D"]
    assert cut(["1", "\n2", "\n", "3"], by="delimiter") == ["1\n2", "\n", "3"]
    assert cut(["1\n2\n3", "4"], by="delimiter") == ["1\n2\n3", "4"]  # two boundaries in a token are one


def test_sampled_ids_of_a_byte_level_tokenizer_by_hand():
    tokenizer = MAKERS["byte level"]()
    tokens = ["a", ".\n\n", "a", ".\n\n", "你", "\n\nWait", ",", "."]
    ids = [token for text in tokens for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    (straddling,) = ids_of("byte level", "\n\nWait")
    assert episode_ends(ids, token_texts(tokenizer, ids), EpisodeRule()) == [ids.index(straddling) + 1, len(ids)]
    one, two = ids_of("byte level", ".\n\n"), ids_of("byte level", "Wait")
    ids = [*ids_of("byte level", "a\n\nb\n\n你"), *one, *two]  # here the tokens meet at the boundary
    assert episode_ends(ids, token_texts(tokenizer, ids), EpisodeRule()) == [len(ids) - len(two), len(ids)]


def test_bytes_of_the_next_character_stay_with_it():
    ids = ids_of("sentencepiece", "a\n你")
    texts = token_texts(MAKERS["sentencepiece"](), ids)
    assert texts[-3:] == ["", "", "你"]
    assert episode_ends(ids, texts, EpisodeRule(by="delimiter")) == [len(ids) - 3, len(ids)]


# ---- options ----


def test_options_of_a_recipe():
    assert EpisodeRule.from_options(None) == EpisodeRule.from_options({}) == EpisodeRule()
    assert EpisodeRule.from_options({"phrases": ["Hm"], "group": 2}) == EpisodeRule(phrases=("Hm",), group=2)
    assert EpisodeRule.from_options({"phrases": "Hm"}).phrases == ("Hm",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gruop": 2}, r"unknown option 'gruop'; did you mean 'group'\?"),
        ({"xyz": 2}, "unknown option 'xyz'; there are by, phrases"),
        ({3: 2}, "unknown option 3"),
        ({"by": "lines"}, "by is one of phrases, delimiter, regex, tokens, not 'lines'"),
        ({"by": ["phrases"]}, "by is one of"),
        ({"group": 0}, "group must be a whole number above 0, got 0"),
        ({"max_episodes": 2.5}, "max_episodes must be a whole number above 0, got 2.5"),
        ({"min_paragraphs": True}, "min_paragraphs must be"),
        ({"min_paragraphs": None}, "min_paragraphs must be"),
        ({"group": None}, "group must be"),
        ({"by": "tokens"}, "needs tokens, the length of an episode"),
        ({"by": "tokens", "tokens": "9"}, "tokens must be a whole number above 0, got '9'"),
        ({"by": "regex"}, "needs regex, what an episode begins with"),
        ({"by": "regex", "regex": "("}, r"regex '\(' is none"),
        ({"by": "regex", "regex": 3}, "regex must be a text, got 3"),
        ({"by": "delimiter", "delimiter": ""}, "delimiter must be a text that is not empty, got ''"),
        ({"paragraph": None}, "paragraph must be a text"),
        ({"phrases": []}, r"phrases is a list of texts, at least one and none empty, got \[\]"),
        ({"phrases": ["Wait", ""]}, "phrases is a list of texts"),
        ({"phrases": 3}, "phrases is a list of texts"),
        ({"thinking_end": 3}, "thinking_end must be a text, got 3"),
        ({"delimiter": "\n"}, r"delimiter does nothing with {by: phrases}; it is for {by: delimiter}"),
        ({"by": "delimiter", "tokens": 9}, r"tokens does nothing with {by: delimiter}"),
        ("delimiter", r"give options, such as {by: delimiter}, not 'delimiter'"),
    ],
)
def test_bad_options_are_told_with_their_mend(options, message):
    with pytest.raises(ValueError, match=f"episodes: .*{message}"):
        EpisodeRule.from_options(options)
