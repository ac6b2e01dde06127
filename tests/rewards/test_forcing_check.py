"""Forced answers fit the verifiers: the suffix opens a form that the verifier reads."""

import json

import pytest
from datasets import Dataset

from metatune.rewards import VERIFIERS, Forcing, get_verifier
from metatune.rewards.extraction import AnswerForm
from metatune.rewards.forcing_check import check_forcing, forced_text, right_answer, rows_by_verifier

from .test_forcing import PLAIN_TEMPLATE, THINKING_TEMPLATE, make

COUNTDOWN = {"numbers": [3, 7, 8], "target": 18, "operators": "+-"}
PEOPLE = {"names": ["Zoey", "Ethan"], "solution": [True, False]}
GYM = {"generator": "basic_arithmetic", "config": {}, "entry": {"question": "1+1", "answer": "2", "metadata": {}}}
ROWS = {  # of each verifier that ships: a row and a wrong answer
    "exact": ({"answer": "KNK", "info": ""}, "NNK"),
    "countdown": ({"answer": "3+7+8", "info": json.dumps(COUNTDOWN)}, "3+7-8"),
    "knights_and_knaves": (
        {"answer": "", "info": json.dumps(PEOPLE)},
        "(1) Zoey is a knave\n(2) Ethan is a knave",
    ),
    "math": ({"answer": "12", "info": ""}, "13"),
    "reasoning_gym": ({"answer": "2", "info": json.dumps(GYM)}, "3"),
    "verdict": ({"answer": "RIGHT", "info": ""}, "WRONG"),
}
OPENED = PLAIN_TEMPLATE + "{% if add_generation_prompt %}<think>\n{% endif %}"
TOKENIZERS = {
    "thinks": ("byte level", THINKING_TEMPLATE),
    "thinking is opened by the template": ("byte level", OPENED),
    "does not think": ("byte level", PLAIN_TEMPLATE),
    "base model": ("sentencepiece", None),
    "starter": ("starter", None),
}
TRACES = ["", "3+7 is 10.", "3+7\n", "answer 3-7"]
MARKED = ["<answer>7", r"\boxed{3", "<verdict>WR", "done</think>\n\nSo it is 3"]  # which the starter never writes


def test_every_verifier_that_ships_is_in_the_table():
    assert set(ROWS) == set(VERIFIERS)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", ROWS)
def test_a_forced_answer_is_graded_by_what_it_says(kind, name):
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    forcing, verifier, (row, wrong) = Forcing(make(*TOKENIZERS[kind])), get_verifier(name), ROWS[name]
    info = json.loads(row["info"]) if row["info"] else {}
    right = verifier.accepted_answers(row["answer"], info) or [row["answer"]]
    opening = "<think>" if "opened" in kind else ""
    for trace in TRACES if kind == "starter" else TRACES + MARKED:
        for answer in right:
            text = opening + forced_text(forcing, name, answer, trace)
            assert verifier.score(text, row["answer"], info) is True, text
        text = opening + forced_text(forcing, name, wrong, trace)
        assert verifier.score(text, row["answer"], info) is False, text
    check_forcing(forcing, {name: [row]}, starts_in_thinking=bool(opening))


@pytest.mark.parametrize("reference", ["#### 12", "3 * 4 is 12.\n#### 12", r"It is \boxed{12}.", "The answer is 12"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_reference_with_a_mark_of_its_own_is_forced_without_it(kind, reference):
    """openai/gsm8k has whole solutions as references; the model writes `\\boxed{12}`, not `\\boxed{#### 12}`."""
    forcing, row = Forcing(make(*TOKENIZERS[kind])), {"answer": reference, "info": ""}
    check_forcing(forcing, {"math": [row]})
    assert right_answer(get_verifier("math"), row) == "12"


def test_a_reference_that_no_completion_can_match_is_not_blamed_on_the_suffix():
    forcing, row = Forcing(make("byte level", THINKING_TEMPLATE)), {"answer": "two\nlines", "info": ""}
    with pytest.raises(ValueError, match=r"'answer two\\nlines' without the suffix as wrong.*: fix the row's answer"):
        check_forcing(forcing, {"exact": [row]})


def test_a_suffix_of_another_form_is_refused_before_the_run():
    tokenizer = make("byte level", THINKING_TEMPLATE)
    forcing = Forcing(tokenizer, "</think>\\boxed{")
    check_forcing(forcing, {"math": [ROWS["math"][0]]})
    for name in ("exact", "countdown", "knights_and_knaves", "verdict"):
        with pytest.raises(ValueError, match=rf"'{name}' rejects.*boxed.*as wrong; remove forcing_suffix") as told:
            check_forcing(forcing, {name: [ROWS[name][0]]})
    assert "or end it with '<verdict>'" in str(told.value)
    with pytest.raises(ValueError, match="or end it with 'answer ', on a line of its own"):
        check_forcing(forcing, {"exact": [ROWS["exact"][0]]})
    check_forcing(Forcing(tokenizer, "Time is up.\n</think>\n\n"), {name: [row] for name, (row, _) in ROWS.items()})


class Framed:
    """A user's verifier: the answer is between dollar signs."""

    needs_answer = True
    listed = True

    def score(self, completion, answer, info):
        if "~" in completion:
            raise KeyError("cannot read it")
        return completion.endswith(f"${answer}$")

    def accepted_answers(self, answer, info):
        return [answer] if self.listed else None


def test_a_custom_verifier_is_checked_by_its_verdict(monkeypatch, caplog):
    monkeypatch.setitem(VERIFIERS, "framed", Framed())
    rows = {"framed": [{"answer": "1", "info": None}]}
    forcing = Forcing(make("byte level", THINKING_TEMPLATE))
    with pytest.raises(ValueError, match=r"'framed' rejects.*set forcing_suffix to a text.*`answer_forms`"):
        check_forcing(forcing, rows)
    monkeypatch.setattr(Framed, "listed", False)
    check_forcing(forcing, rows)
    assert "'framed' rejects a correct forced answer" in caplog.text, "its reference may have another form"
    monkeypatch.setattr(Framed, "answer_forms", (AnswerForm("$", "$"),), raising=False)
    check_forcing(forcing, rows)
    assert forced_text(forcing, "framed", "1").endswith("My final answer: $1$")


def test_rows_without_a_known_answer_or_verdict_are_skipped(monkeypatch):
    monkeypatch.setitem(VERIFIERS, "framed", Framed())
    forcing = Forcing(make("byte level", PLAIN_TEMPLATE), "so ")
    check_forcing(forcing, {"framed": [{"answer": "", "info": ""}, {"answer": "~", "info": ""}]})
    impossible = json.dumps({"numbers": [1], "target": 5, "operators": "+"})
    check_forcing(forcing, {"countdown": [{"answer": "", "info": impossible}]})


def test_a_few_rows_of_every_distribution_are_tried():
    rows = [
        {"verifier": verifier, "distribution": name, "answer": str(i)}
        for verifier, name in (("math", "a"), ("math", "b"), ("exact", "c"), ("", "judged"))
        for i in range(6)
    ]
    for given in (rows, Dataset.from_list(rows)):
        found = rows_by_verifier(given)
        assert {name: [row["distribution"] for row in some] for name, some in found.items()} == {
            "math": ["a"] * 4 + ["b"] * 4,
            "exact": ["c"] * 4,
        }
    assert rows_by_verifier(Dataset.from_list([{"prompt": "?"}])) == {}
