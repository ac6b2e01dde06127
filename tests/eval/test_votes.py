import pytest

from metatune.eval.votes import vote


@pytest.mark.parametrize(
    "written, vote_for",
    [
        ("1,234", "1234"),
        ("$ 12 $", "12"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        ("(1,234)", "(1,234)"),
        ("1,2", "1,2"),
        ("18.", "18"),
        ("18 cm", "18"),
        ("11_2", "11_2"),
        ("+7", "7"),
        (r"\leftarrow", r"\leftarrow"),
    ],
)
def test_notations_of_one_answer_vote_together(written, vote_for):
    assert vote("math", f"\\boxed{{{written}}}", {}) == vote_for
    assert vote("math", f"\\boxed{{{vote_for}}}", {}) == vote_for


def test_thinking_has_no_vote():
    assert vote("math", r"<think>\boxed{3}</think>#### 4", {}) == "4"
    for verifier, text in [("math", r"\boxed{3}"), ("exact", "answer 3"), ("verdict", "<verdict>RIGHT</verdict>")]:
        assert vote(verifier, text, {}) is not None
        assert vote(verifier, f"<think>{text}", {}) is None
        assert vote(verifier, f"<think>{text}</think> Done.", {}) is None


def test_maths_votes_for_its_marked_answer():
    assert vote("math", r"First \boxed{3}. No: \boxed{\dfrac{1}{2}}.", {}) == r"\frac{1}{2}"
    assert vote("math", "18 - 2 = 16\n#### 1,600", {}) == "1600"
    assert vote("math", "it may well be 12", {}) is None
    assert vote("math", r"\boxed{}", {}) is None
    assert vote("math", r"\boxed{18}" + "x" * 5000, {}) is None, "where the verifier does not look for a mark"


def test_knights_and_knaves_vote_for_their_roles_in_any_order():
    info = {"names": ["Zoey", "Ethan"]}
    votes = {
        vote("knights_and_knaves", text, info)
        for text in (
            "Hm.\nCONCLUSION:\n(1) Zoey is a knight\n(2) Ethan is a knave",
            "In conclusion, Ethan is a knave, and Zoey is a knight.",
        )
    }
    assert votes == {"Ethan: knave, Zoey: knight"}
    assert vote("knights_and_knaves", "CONCLUSION:\nZoey is a knight or a knave", info) is None


def test_traces_vote_for_their_last_line():
    assert vote("countdown", "1+1=2 wrong\nanswer 1+2", {}) == "1+2"
    assert vote("exact", "no idea", {}) is None


def test_reasoning_gym_votes_for_what_its_verifier_reads():
    assert vote("reasoning_gym", "<answer>1</answer> or rather <answer> 7 </answer>", {}) == "7"
    assert vote("reasoning_gym", "3 + 4\nanswer 7", {}) == "7"
    assert vote("reasoning_gym", "<answer></answer>\nanswer 7", {}) is None
    assert vote("reasoning_gym", "no idea", {}) is None


def test_verdicts_vote_for_their_label():
    assert vote("verdict", "It harmed no one.\n<verdict> RIGHT </verdict>", {}) == "RIGHT"
    assert vote("verdict", "answer RIGHT", {}) is None
