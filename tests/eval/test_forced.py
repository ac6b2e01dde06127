import pytest

from metatune.eval.engines import CompactEngine, Sampling
from metatune.eval.forced import force_answers


class Forcing:
    """A suffix whose leading newline is not repeated, and whose mark depends on the verifier."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def ids_after(self, prefix_text, verifier):
        mark = "?" if verifier == "verdict" else "!"
        return self.tokenizer(mark if prefix_text.endswith("\n") else f"\n{mark}")["input_ids"]


class Counting:
    """An engine that answers every row with the row's number, and keeps what it was asked."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, []
        self.eos_token_ids = frozenset({tokenizer.eos_token_id})

    def generate(self, prompt_ids, sampling):
        self.calls.append([self.tokenizer.decode(ids) for ids in prompt_ids])
        return [
            [*self.tokenizer(str(row))["input_ids"], self.tokenizer.eos_token_id] for row in range(len(prompt_ids))
        ]


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def force(engine, tokenizer, traces, num_answers=2, temperature=1.0, prompts=None, verifiers=None):
    prompts = prompts or [ids(tokenizer, "p")] * len(traces)
    verifiers = verifiers or ["math"] * len(traces)
    sampling = Sampling(max_new_tokens=4, temperature=temperature)
    return force_answers(
        engine, tokenizer, prompts, traces, verifiers, Forcing(tokenizer), num_answers=num_answers, sampling=sampling
    )


def test_trace_suffix_and_answer_come_back_as_one_text(tokenizer):
    engine = Counting(tokenizer)
    first, second = force(engine, tokenizer, [ids(tokenizer, "ab"), ids(tokenizer, "ab\n")])
    assert engine.calls == [["pab\n!", "pab\n!", "pab\n!", "pab\n!"]], "one call for all; no newline twice"
    assert first.texts == ["ab\n!0", "ab\n!1"]
    assert second.texts == ["ab\n!2", "ab\n!3"]
    assert (first.suffix_tokens, second.suffix_tokens) == (2, 1)
    assert first.answer_tokens == [2, 2], "the ending token is paid for"


def test_equal_cuts_are_estimated_once_and_those_of_another_prompt_are_not_equal(tokenizer):
    engine = Counting(tokenizer)
    prompts = [ids(tokenizer, text) for text in ("p", "p", "q")]
    forced = force(engine, tokenizer, [[], [], []], prompts=prompts)
    assert len(engine.calls[0]) == 4
    assert forced[0] == forced[1]
    assert forced[0].texts != forced[2].texts


def test_each_trace_is_forced_as_its_verifier_reads_answers(tokenizer):
    engine = Counting(tokenizer)
    first, second = force(engine, tokenizer, [[], []], verifiers=["math", "verdict"], num_answers=1)
    assert engine.calls == [["p\n!", "p\n?"]], "equal cuts with different verifiers are not the same request"
    assert (first.texts, second.texts) == (["\n!0"], ["\n?1"])


def test_nothing_follows_an_ending_token(tokenizer):
    engine = Counting(tokenizer)
    ended = [*ids(tokenizer, "ab"), tokenizer.eos_token_id]
    forced = force(engine, tokenizer, [ended, ids(tokenizer, "ab")])
    assert forced[0] == forced[1]
    assert engine.calls == [["pab\n!"] * 2]


def test_greedy_answers_are_decoded_once(tokenizer):
    engine = Counting(tokenizer)
    (forced,) = force(engine, tokenizer, [[]], num_answers=3, temperature=0.0)
    assert len(engine.calls[0]) == 1
    assert forced.texts == ["\n!0"] * 3


def test_a_real_engine_bounds_the_answer_alone(model, tokenizer):
    trace = ids(tokenizer, "1+2=3 wrong")
    sampling = Sampling(max_new_tokens=5)
    options = {"num_answers": 4, "sampling": sampling}
    engine, prompts = CompactEngine(model, tokenizer), [ids(tokenizer, "<user>x<assistant>")]
    (forced,) = force_answers(engine, tokenizer, prompts, [trace], ["math"], Forcing(tokenizer), **options)
    assert len(forced.texts) == 4
    assert all(text.startswith("1+2=3 wrong\n!") and len(text) <= len("1+2=3 wrong\n!") + 5 for text in forced.texts)


def test_mistakes_are_named(model, tokenizer):
    with pytest.raises(ValueError, match="num_answers must be at least 1"):
        force(Counting(tokenizer), tokenizer, [[]], num_answers=0)
    with pytest.raises(ValueError, match="512 positions"):
        force(CompactEngine(model, tokenizer), tokenizer, [ids(tokenizer, "a" * 520)])
