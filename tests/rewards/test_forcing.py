import pytest
from transformers import PreTrainedTokenizerFast

from metatune.rewards import Forcing, MathVerifier, extract_answer, get_verifier, token_texts
from metatune.rewards.forcing import LINE_SUFFIX, OUT_OF_TIME, THINKING_SUFFIX, opens_thinking
from metatune.rewards.math_answer import final_answer
from metatune.rewards.math_formula import read_formula
from metatune.rewards.rendering import Rendering

from .tokenizers_of_kinds import MAKERS

THINKING_TEMPLATE = "{% for m in messages %}{{ m['content'].split('</think>')[-1] }}{% endfor %}"
PLAIN_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def make(kind: str, template: str | dict[str, str] | None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=MAKERS[kind]().backend_tokenizer)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def starter():
    return MAKERS["starter"]()


# ---- which suffix ----


def test_the_starter_answers_in_a_line_of_its_own(starter):
    assert Forcing(starter).suffix_for() == LINE_SUFFIX == "\nanswer "


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("sentencepiece", THINKING_TEMPLATE),  # the template tells
        ("sentencepiece", {"default": PLAIN_TEMPLATE, "tools": THINKING_TEMPLATE}),
        ("byte level", None),  # a base model: its vocabulary tells
    ],
)
def test_a_model_that_thinks_gets_its_thinking_closed(kind, template):
    tokenizer = make(kind, template)
    assert Forcing(tokenizer).suffix_for() == THINKING_SUFFIX
    with pytest.raises(ValueError, match=r"'\\nanswer ' does not end the thinking.*Put </think> into the suffix"):
        Forcing(tokenizer, "\nanswer ")
    assert Forcing(tokenizer, "</think>answer ").suffix_for() == "</think>answer "


def test_a_template_without_thinking_counts_more_than_the_vocabulary():
    tokenizer = make("byte level", PLAIN_TEMPLATE)  # such as the instruction-tuned sister of a thinking model
    assert Forcing(tokenizer, "\nanswer ").suffix_for() == "\nanswer "
    with pytest.raises(ValueError, match="none is known for this chat template; set the text that ends the thinking"):
        Forcing(tokenizer).suffix_for()
    with pytest.raises(ValueError, match="none is known for this chat template and the verifier 'mine'"):
        Forcing(tokenizer).suffix_for("mine")


@pytest.mark.parametrize(
    ("kind", "template", "verifier", "suffix"),
    [
        ("byte level", THINKING_TEMPLATE, "math", THINKING_SUFFIX),
        ("byte level", THINKING_TEMPLATE, "countdown", f"{OUT_OF_TIME}\n\nanswer "),
        ("byte level", THINKING_TEMPLATE, "verdict", f"{OUT_OF_TIME}\n\nMy final answer: <verdict>"),
        ("byte level", PLAIN_TEMPLATE, "math", "\n\nMy final answer: \\boxed{"),
        ("byte level", PLAIN_TEMPLATE, "countdown", "\nanswer "),
        ("starter", None, "math", "\nanswer "),  # the starter's form, which the verifier reads
        ("starter", None, "verdict", "\n\nMy final answer: <verdict>"),
    ],
)
def test_the_verifier_decides_how_the_answer_is_opened(kind, template, verifier, suffix):
    assert Forcing(make(kind, template)).suffix_for(verifier) == suffix


@pytest.mark.parametrize(
    ("suffix", "verifier", "before", "after"),
    [
        ("</think>\\boxed{", "math", "", "}"),
        ("</think>so {", "math", "", "}"),
        ("</think><answer>", "math", "", "</answer>"),
        ("</think>The answer is ", "math", "", ""),
        ("</think>", "math", "\\boxed{", "}"),  # it opens no form: the model writes the box
        ("</think>", "countdown", "\nanswer ", ""),
        ("</think>\n", "countdown", "answer ", ""),
        ("</think>", None, "", ""),
    ],
)
def test_the_form_around_the_answer_after_a_custom_suffix(suffix, verifier, before, after):
    form = Forcing(make("byte level", THINKING_TEMPLATE), suffix).form_after(verifier)
    assert (form.opening, form.closing) == (before, after)


@pytest.mark.parametrize("suffix", ["", " ", "\n\n"])
def test_an_empty_suffix_is_refused(starter, suffix):
    with pytest.raises(ValueError, match="forcing_suffix is empty: set the text"):
        Forcing(starter, suffix)


@pytest.mark.parametrize(
    ("opening", "opens"),
    [("", False), ("<think>\n", True), ("<think>\n\n</think>\n\n", False)],
)
def test_a_template_may_open_the_thinking_before_the_completion(opening, opens):
    tokenizer = make("byte level", PLAIN_TEMPLATE + "{% if add_generation_prompt %}A:" + opening + "{% endif %}")
    assert opens_thinking(Rendering(tokenizer)) is opens
    assert opens_thinking(Rendering(make("byte level", None))) is False


def test_a_template_may_open_the_thinking_on_request():
    tokenizer = make(
        "byte level", PLAIN_TEMPLATE + "{% if add_generation_prompt and enable_thinking %}<think>{% endif %}"
    )
    assert opens_thinking(Rendering(tokenizer, {"enable_thinking": True})) is True
    assert opens_thinking(Rendering(tokenizer, {"enable_thinking": False})) is False


# ---- how it follows a cut trace ----


@pytest.mark.parametrize(
    ("suffix", "prefix", "text"),
    [
        ("\nanswer ", "1+1=2", "\nanswer "),
        ("\nanswer ", "1+1=2\n", "answer "),
        ("\nanswer ", "1+1=2\n\n", "answer "),
        ("\nanswer ", "", "answer "),
        ("\nanswer ", "\n", "answer "),
        ("\n\nSo ", "1", "\n\nSo "),
        ("\n\nSo ", "1\n", "\nSo "),
        ("\n\nSo ", "1\n\n", "So "),
        ("So ", "1\n", "So "),
        ("\nSo ", "1\n ", "\nSo "),  # a blank ends no line
    ],
)
def test_newlines_that_are_there_are_not_repeated(starter, suffix, prefix, text):
    forcing = Forcing(starter, suffix)
    assert forcing.text_after(prefix) == text
    assert starter.decode(forcing.ids_after(prefix)) == text


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("so", THINKING_SUFFIX),
        ("so\n", THINKING_SUFFIX[1:]),
        ("so</think>", "\n\nMy final answer: \\boxed{"),
        ("so</think>\n\n", "My final answer: \\boxed{"),
        ("so</think>\n\nIt is", "\n\nMy final answer: \\boxed{"),
    ],
)
def test_thinking_is_closed_once(prefix, text):
    forcing = Forcing(make("byte level", THINKING_TEMPLATE))
    assert forcing.text_after(prefix) == text
    assert (prefix + text).count("</think>") == 1


def test_a_suffix_that_only_closes_the_thinking_is_empty_after_it():
    forcing = Forcing(make("byte level", THINKING_TEMPLATE), "\n</think>")
    assert (forcing.text_after("so</think>"), forcing.ids_after("so</think>")) == ("", [])
    assert forcing.text_after("so\n") == "</think>"


@pytest.mark.parametrize("kind", ["starter", "byte level", "sentencepiece"])
@pytest.mark.parametrize("suffix", [LINE_SUFFIX, THINKING_SUFFIX, "\n</think>\n\n", "the answer: "])
@pytest.mark.parametrize("prefix", ["the 1+1=2", "the\n", "the</think>\n"])
def test_its_ids_read_as_its_text_after_a_trace(kind, suffix, prefix):
    tokenizer = MAKERS[kind]()
    forcing = Forcing(make(kind, PLAIN_TEMPLATE), suffix)
    trace = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    ids = forcing.ids_after(prefix)
    assert "".join(token_texts(tokenizer, [*trace, *ids])) == prefix + forcing.text_after(prefix)


def test_no_special_token_is_added_but_those_in_the_suffix(starter):
    ids = Forcing(starter, "\nok<|end|>answer ").ids_after("x")
    assert ids.count(starter.eos_token_id) == 1 and ids[-1] != starter.eos_token_id


def test_the_ids_are_the_callers_own(starter):
    forcing = Forcing(starter)
    forcing.ids_after("x").append(0)
    assert 0 not in forcing.ids_after("x")


# ---- verifiers read the forced answer ----


@pytest.mark.parametrize("trace", ["", "4*6=24 right", "4*6=24 right\n", "2*9=18 wrong\nanswer 2*9", "answer 2*9\n\n"])
def test_a_forced_line_is_the_answer(starter, trace):
    whole = trace + Forcing(starter).text_after(trace) + "4*6"
    assert extract_answer(whole) == "4*6"
    assert get_verifier("countdown").score(whole, "24", {"numbers": [4, 6], "target": 24, "operators": "+*"}) is True


@pytest.mark.parametrize(
    "trace",
    [
        "",
        "First, 5 + 7",
        r"It may be \boxed{13}.",
        r"It may be \boxed{",  # cut within a box
        r"Then \boxed{\frac{1}{2",
        r"Braces { { and } and \{ in a thought",
        "#### 13\n",
        "answer 13",
        "done</think>\n\nThe answer is 13",
        "<think>done</think> or rather <think>not done",
        "done</think>\n\n<answer>13</answer>",
    ],
)
@pytest.mark.parametrize(("answer", "final"), [("12}", "12"), (r"\frac{1}{2}}.", r"\frac{1}{2}")])
def test_a_forced_box_is_the_answer(trace, answer, final):
    whole = trace + Forcing(make("byte level", THINKING_TEMPLATE)).text_after(trace) + answer
    assert final_answer(whole) == read_formula(final)


def test_a_forced_box_that_is_left_open_is_no_answer():
    trace = r"It is \boxed{12}."
    whole = trace + Forcing(make("byte level", THINKING_TEMPLATE)).text_after(trace) + "12"
    assert final_answer(whole) is None


def test_a_forced_box_is_graded():
    verifier = MathVerifier(deadline=10.0)  # generous: here a slow machine must not fail a test
    forcing = Forcing(make("byte level", THINKING_TEMPLATE))
    assert verifier.score("hm, \\boxed{" + forcing.text_after("hm, \\boxed{") + "12}", "12", {}) is True
    verifier.close()
