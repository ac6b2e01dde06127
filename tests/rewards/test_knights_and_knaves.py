import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.rewards import get_verifier

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "knights_knaves"
INFO = {"names": ["Michael", "Zoey", "Ethan"], "solution": [True, False, True]}
RIGHT = "(1) Michael is a knight\n(2) Zoey is a knave\n(3) Ethan is a knight"
WRONG = "(1) Michael is a knave\n(2) Zoey is a knight\n(3) Ethan is a knave"
REASONING = "Assume Michael is a knave. Then Zoey is a knight.\nThat contradicts Ethan's claim.\n"


def score(completion, info=INFO):
    return get_verifier("knights_and_knaves").score(completion, "", info)


@pytest.mark.parametrize(
    "completion",
    [
        RIGHT,
        RIGHT + "\n\nThis satisfies every claim.",
        REASONING + "\nSo the answer is:\n" + RIGHT,
        REASONING + "CONCLUSION:\n" + RIGHT,
        REASONING + "### Conclusion\n\n- **Michael** is a **knight**\n- **Zoey** is a **knave**\n- **Ethan**: knight",
        f"<think>{REASONING}</think>\n<answer>{RIGHT}</answer>",
        f"<answer>\nCONCLUSION:\n{RIGHT}\n</answer>",
        f"{REASONING}<answer>{RIGHT}",  # cut off before the tag was closed
        "Therefore, Michael is a knight, Zoey is a knave, and Ethan is a knight.",
        "michael is a KNIGHT; zoey is a Knave; ethan is a knight",
        "1. Michael is a knight\n2. Zoey is a knave\n3. Ethan is a knight",
        f"<answer>{WRONG}</answer> Wait, no. <answer>{RIGHT}</answer>",  # the last commitment counts
        RIGHT + "\n(4) Michael is a knight",  # repeating oneself is no contradiction
    ],
)
def test_right_conclusions(completion):
    assert score(completion) is True


@pytest.mark.parametrize(
    "completion",
    [
        "",
        WRONG,
        "(1) Michael is a knight\n(2) Zoey is a knave",  # nothing about Ethan
        RIGHT + "\n" + WRONG,  # both roles
        WRONG + "\n" + RIGHT,
        f"<answer>{RIGHT}\n{WRONG}</answer>",
        f"CONCLUSION:\n{WRONG}\n\nor else\n\n{RIGHT}",
        RIGHT.replace("a knave", "a knave or a knight"),
        RIGHT.replace("a knight", "a knight or a knave"),
        RIGHT.replace("is a knave", "is not a knight"),
        "CONCLUSION: if " + RIGHT,
        RIGHT + "\nor Zoey is a knight",
        f"<answer>{RIGHT}</answer><answer></answer>",
        f"<answer>{RIGHT}</answer><answer>{WRONG}</answer>",
        RIGHT + "\n(4) Bob is a knight",  # nobody of that name is there
        RIGHT.replace("Michael", "Mich"),
        f"{RIGHT}\nOn second thoughts, Zoey may be a knight.",
        "all possible: knight knave knight knave",
    ],
)
def test_wrong_hedged_contradictory_or_incomplete_conclusions(completion):
    assert score(completion) is False


@given(st.lists(st.tuples(st.sampled_from(INFO["names"]), st.booleans()), max_size=8))
def test_right_exactly_if_the_statements_are_the_solution(statements):
    lines = [f"({i}) {name} is a {'knight' if knight else 'knave'}" for i, (name, knight) in enumerate(statements, 1)]
    solution = set(zip(INFO["names"], INFO["solution"], strict=True))
    assert score("CONCLUSION\n" + "\n".join(lines)) is (set(statements) == solution)


@given(st.text("knightave isZoyMclEh().,:\n<answer>/", max_size=300))
def test_any_text_gets_a_verdict(text):
    assert score(text) in (True, False)


def test_names_are_not_patterns():
    assert score("A.B is a knight", {"names": ["A.B"], "solution": [True]}) is False  # a full stop ends a statement
    assert score("A+B is a knight", {"names": ["A+B"], "solution": [True]}) is True
    assert score("AAB is a knight", {"names": ["A+B"], "solution": [True]}) is False


@pytest.mark.parametrize("info", [{}, {"names": ["A"]}, {"names": ["A"], "solution": [True, False]}])
def test_info_that_has_no_solution_is_refused(info):
    with pytest.raises(ValueError, match="info needs distinct names"):
        score("A is a knight", info)


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/knights_knaves")
@pytest.mark.parametrize("people", [3, 4, 5])
def test_the_dataset_verifies_against_itself(people):
    verifier = get_verifier("knights_and_knaves")
    for line in (DATA / f"people{people}.jsonl").read_text().splitlines()[:200]:
        row = json.loads(line)
        info = {"names": row["names"], "solution": row["solution"]}
        flipped = {"names": row["names"], "solution": [not knight for knight in row["solution"]]}
        reasoning = " ".join([row["cot_head"], *row["cot_repeat_steps"], row["cot_foot"]])
        for completion in (row["solution_text_format"], row["solution_text"], f"{reasoning}\n{row['solution_text']}"):
            assert verifier.score(completion, "", info) is True
            assert verifier.score(completion, "", flipped) is False
        assert verifier.accepted_answers("", info) == [row["solution_text_format"]]
