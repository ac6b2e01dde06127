import time

import pytest

from metatune.rewards import VERIFIERS, extract_answer, get_verifier

COUNTDOWN = {"numbers": [3, 7, 8], "target": 18, "operators": "+-"}


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("answer 18", "18"),
        ("3+7=10 wrong\nanswer 3+7+8", "3+7+8"),
        ("answer 18  \n\n \n", "18"),
        ("answer 3 + 7", "3 + 7"),
        ("answer 17\nanswer 18", "18"),  # the last one is the commitment
        ("answer 18\nno, wait", None),  # it goes on
        ("answer 18\nAnswer 17", None),
        ("the answer 18", None),
        (" answer 18", None),
        ("answer", None),
        ("answer ", None),
        ("answer \n18", None),
        ("answer18", None),
        ("", None),
        ("\n", None),
    ],
)
def test_the_answer_is_what_the_last_line_commits_to(completion, answer):
    assert extract_answer(completion) == answer


def test_exact_ignores_case_and_runs_of_whitespace_only():
    exact = get_verifier("exact")
    assert exact.score("steps\nanswer  knk ", "KNK", {}) is True
    assert exact.score("answer a\t b", "A B", {}) is True
    assert exact.score("answer ab", "A B", {}) is False
    assert exact.score("answer 18.0", "18", {}) is False
    assert exact.score("18", "18", {}) is False
    assert exact.score("", "18", {}) is False
    assert exact.accepted_answers("KNK", {}) == ["KNK"]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("3+7+8", True),
        ("8 + 7 + 3", True),
        ("3+7+8=18", False),
        ("3+7+08", False),
        ("3+15", False),
        ("18", False),
        ("3+7+8+0", False),
        ("3+7", False),
        ("3+3+7+8-3", False),
        ("3*7-8+5", False),
        ("3 7+8", False),
    ],
)
def test_countdown_wants_each_number_once_and_the_permitted_operators(answer, verdict):
    assert get_verifier("countdown").score(f"answer {answer}", "3+7+8", COUNTDOWN) is verdict


def test_countdown_refuses_operators_that_the_task_does_not_permit():
    info = {"numbers": [2, 3], "target": 6, "operators": "+-"}
    assert get_verifier("countdown").score("answer 2*3", "", info) is False
    assert get_verifier("countdown").score("answer 2*3", "", {**info, "operators": "*"}) is True


def test_countdown_names_what_info_lacks():
    with pytest.raises(ValueError, match="info lacks 'target'"):
        get_verifier("countdown").score("answer 1", "", {"numbers": [1]})


def test_where_answers_are_listed_each_of_them_is_right():
    for name, answer, info in [
        ("exact", "KNK", {}),
        ("countdown", "3+7+8", COUNTDOWN),
        ("verdict", "RIGHT", {}),
        ("knights_and_knaves", "", {"names": ["Zoey", "Ethan"], "solution": [True, False]}),
    ]:
        accepted = VERIFIERS[name].accepted_answers(answer, info)
        assert accepted
        for form in VERIFIERS[name].answer_forms:
            texts = [form.opening + text + form.closing for text in accepted]
            assert all(VERIFIERS[name].score(text, answer, info) is True for text in texts)
    assert VERIFIERS["math"].accepted_answers("18", {}) is None
    assert VERIFIERS["reasoning_gym"].accepted_answers("18", {}) is None


def test_an_unknown_verifier_is_answered_with_the_nearest():
    assert get_verifier("math") is VERIFIERS["math"]
    with pytest.raises(ValueError, match="unknown verifier 'knights-and-knaves'; did you mean 'knights_and_knaves'"):
        get_verifier("knights-and-knaves")
    with pytest.raises(ValueError, match="the row has no verifier: give its distribution one"):
        get_verifier("")


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("He kept his word.\n<verdict>RIGHT</verdict>", True),
        ("<Verdict> right </verdict> and more", True),
        ("<verdict>WRONG</verdict> no, <verdict>RIGHT</verdict>", True),  # the last one is the commitment
        ("<verdict>RIGHT</verdict> no, <verdict>WRONG</verdict>", False),
        ("<verdict>RIGHT or WRONG</verdict>", False),
        ("<verdict><verdict>RIGHT</verdict></verdict>", True),
        ("<verdict>RIGHT", False),
        ("<verdict> </verdict>", False),
        ("RIGHT", False),
    ],
)
def test_a_verdict_is_the_label_in_its_tags(completion, right):
    assert get_verifier("verdict").score(completion, "RIGHT", {}) is right


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("knights_and_knaves", "\n{}"),
        ("knights_and_knaves", "*\n{}"),
        ("knights_and_knaves", "CONCLUSION\nZoey is{}no knight"),
        ("countdown", "answer 3{}7"),
        ("exact", "answer {}18"),
        ("verdict", "{}"),
    ],
)
@pytest.mark.parametrize("filler", ["\n", " ", "*\n", "- ", "<verdict>", "<answer>"])
def test_a_model_that_repeats_itself_costs_no_time(name, text, filler):
    info = COUNTDOWN | {"names": ["Zoey"], "solution": [True]}
    started = time.perf_counter()
    assert not get_verifier(name).score(text.replace("{}", filler * 40_000), "RIGHT", info)
    assert time.perf_counter() - started < 2.0
