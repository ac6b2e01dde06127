import pytest

from metatune.eval.engines import Sampling
from metatune.eval.extension import PATIENCE, PLAIN_PHRASES, default_phrases, extend_traces, without_answer

SAMPLING = Sampling(max_new_tokens=1)
PLAIN, THINKING = "\nanswer ", "\n</think>\n\\boxed{"


class Speaking:
    """An engine that answers each row by what a function makes of its text; `~` ends a completion."""

    def __init__(self, tokenizer, speak):
        self.tokenizer, self.speak, self.calls = tokenizer, speak, []
        self.eos_token_ids = frozenset({tokenizer.eos_token_id})

    def generate(self, prompt_ids, sampling):
        texts = [self.tokenizer.decode(ids) for ids in prompt_ids]
        self.calls.append((texts, sampling))
        said = [self.speak(text) for text in texts]
        return [ids(self.tokenizer, text)[: sampling.max_new_tokens] for text in said]


def ids(tokenizer, text):
    body = tokenizer(text.rstrip("~"))["input_ids"]
    return [*body, tokenizer.eos_token_id] if text.endswith("~") else body


def extend(tokenizer, engine, traces, budgets, phrases=PLAIN_PHRASES, suffix=PLAIN):
    extended = extend_traces(
        engine,
        tokenizer,
        [ids(tokenizer, "p")] * len(traces),
        [ids(tokenizer, trace) for trace in traces],
        budgets,
        suffixes=[suffix] * len(traces),
        phrases=phrases,
        sampling=SAMPLING,
    )
    return [[tokenizer.decode(trace) for trace in at_budget] for at_budget in extended]


def test_the_answer_is_dropped_and_another_attempt_made(tokenizer):
    engine = Speaking(tokenizer, lambda text: "2+2 wrong\nanswer 2+2~")
    ((extended,),) = extend(tokenizer, engine, ["1+1 wrong\nanswer 1+1~"], [35])
    assert extended == "1+1 wrong\n2+2 wrong\n2+2 wrong\nanswe", "a budget cuts where it is full"
    assert engine.calls[0][0] == ["p1+1 wrong\n"], "the newline that stands there already is not repeated"
    assert engine.calls[0][1].max_new_tokens == 25
    assert [sampling.seed for _, sampling in engine.calls] == [1, 2], "or it would say the same again"


def test_a_cut_trace_goes_on_without_a_phrase(tokenizer):
    engine = Speaking(tokenizer, lambda text: "xy" * 10)
    ((extended,),) = extend(tokenizer, engine, ["1+1 wr"], [12], phrases=["Wait"])
    assert extended == "1+1 wrxyxyxy"
    assert len(engine.calls) == 1


def test_thinking_goes_on_with_the_phrases_in_turn(tokenizer):
    engine = Speaking(tokenizer, lambda text: " no.\n</think>\n\\boxed{1}~" if "no." not in text else " x" * 30)
    texts = ["so 1.\n</think>\nIt is 1.~"]
    ((extended,),) = extend(tokenizer, engine, texts, [40], phrases=["\n\nWait", "\n\nHold on"], suffix=THINKING)
    assert extended.startswith("so 1.\n\nWait no.\n\nHold on x x x")
    assert len(extended) == 40


def test_each_budget_goes_on_where_the_last_was_filled(tokenizer):
    engine = Speaking(tokenizer, lambda text: "ab" * 20)
    short, long = extend(tokenizer, engine, ["123", "1234567~"], [5, 10])
    assert short == ["123ab", "12345"], "a trace that is longer than the budget is cut"
    assert long[0] == "123abababa"
    assert long[1] == "1234567\nab"
    assert [texts for texts, _ in engine.calls[1:]] == [["p1234567\n"], ["p123ab"]]


def test_no_trace_is_asked_to_grow_beyond_the_budget(tokenizer):
    """A model's positions may end soon after it."""
    traces = ["x" * length for length in (1, 2, 5, 9, 17, 30, 31)]
    engine = Speaking(tokenizer, lambda text: "y" * 40)
    (extended,) = extend(tokenizer, engine, traces, [32])
    assert [len(trace) for trace in extended] == [32] * len(traces)
    for texts, sampling in engine.calls:
        assert all(len(text) - 1 + sampling.max_new_tokens <= 32 for text in texts)
    assert len(engine.calls) < 16


def test_a_trace_that_adds_nothing_is_given_up(tokenizer):
    engine = Speaking(tokenizer, lambda text: "answer 5~" if "5" in text else "abc" * 9)
    ((stuck, moving),) = extend(tokenizer, engine, ["5 right\nanswer 5~", "6 right\nanswer 6~"], [20])
    assert stuck == "5 right\n", "what it said to the phrases is dropped"
    assert len(moving) == 20
    assert len(engine.calls) == PATIENCE


@pytest.mark.timeout(20)
def test_an_engine_that_says_nothing_at_all_is_given_up(tokenizer):
    engine = Speaking(tokenizer, lambda text: "")
    ((cut, ended),) = extend(tokenizer, engine, ["6 ri", "5 right\nanswer 5~"], [20])
    assert (cut, ended) == ("6 ri", "5 right\n")
    assert len(engine.calls) == PATIENCE


def test_a_phrase_alone_may_fill_the_budget(tokenizer):
    engine = Speaking(tokenizer, lambda text: "a")
    ((extended,),) = extend(tokenizer, engine, ["12~"], [4], phrases=["Wait"])
    assert extended == "12Wa"
    assert engine.calls == []


@pytest.mark.parametrize(
    "text, suffix, kept",
    [
        ("1+1\nanswer 2", PLAIN, "1+1\n"),
        ("answer 2", PLAIN, ""),
        ("answer 1\n2 wrong", PLAIN, "answer 1\n2 wrong"),
        ("1\nanswer 2\n\n", PLAIN, "1\n"),
        ("thought\n</think>\n\nanswer", THINKING, "thought\n"),
        ("a thought that never ended", THINKING, "a thought that never ended"),
        ("x\n\nSo it is 3", "\n\nTime is up.\nSo it is ", "x\n\n"),
        ("", PLAIN, ""),
    ],
)
def test_what_the_answer_is(tokenizer, text, suffix, kept):
    assert tokenizer.decode(without_answer(tokenizer, ids(tokenizer, text), suffix)) == kept


def test_the_phrases_follow_from_the_suffix():
    assert default_phrases(PLAIN) == ("\n",)
    assert default_phrases(THINKING)[0].strip() == "Wait"


def test_no_phrase_is_refused(tokenizer):
    with pytest.raises(ValueError, match="extend_with needs at least one phrase"):
        extend(tokenizer, Speaking(tokenizer, str), ["1~"], [4], phrases=[])
