import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.rewards import get_verifier
from metatune.rewards.countdown import evaluate_left_to_right, solutions

numbers = st.lists(st.integers(1, 12), min_size=2, max_size=4)
operators = st.sets(st.sampled_from("+-*"), min_size=1).map("".join)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3+7+8", 18),
        ("3+7*8", 80),  # (3 + 7) * 8: no precedence
        ("9-4-3", 2),
        ("50+49", 99),
        ("50+50", None),  # above 99
        ("50+50-20", None),  # an intermediate value above 99
        ("3-4+5", None),  # an intermediate value below 0
        ("7", 7),
        ("0*5", 0),
        ("", None),
        ("3+", None),
        ("+3", None),
        ("3++7", None),
        ("3**7", None),
        ("(3+7)", None),
        ("3/1", None),
        ("3 + 7", None),
        ("3+7\n", None),
        ("\u0663+\u0667", None),  # digits, but not ASCII
        ("100-1", None),
        ("__import__('os')", None),
    ],
)
def test_evaluation_is_from_left_to_right_within_0_to_99(expression, value):
    assert evaluate_left_to_right(expression) == value


def test_solutions_by_hand():
    assert solutions([3, 7, 8], 18, "+-") == ["3+7+8", "3+8+7", "7+3+8", "7+8+3", "8+3+7", "8+7+3"]
    assert solutions([2, 2], 4, "+*") == ["2*2", "2+2"]
    assert solutions([2, 5], 3, "-") == ["5-2"]
    assert solutions([2, 5], 4, "+-*") == []


@pytest.mark.parametrize(("given_numbers", "ops"), [([], "+"), ([100, 1], "+"), ([-1, 2], "+"), ([1, 2], "+/")])
def test_a_task_that_no_expression_can_have_is_refused(given_numbers, ops):
    with pytest.raises(ValueError, match="countdown: "):
        solutions(given_numbers, 3, ops)


def calculator(steps):
    """Evaluate (operator, number) steps from 0, independently of the module under test."""
    value = 0
    for operator, number in steps:
        value = {"+": value + number, "-": value - number, "*": value * number}[operator]
        if not 0 <= value <= 99:
            return None
    return value


@given(numbers, operators, st.integers(0, 99))
def test_solutions_are_those_that_brute_force_finds(given_numbers, ops, target):
    found = set()
    for order in itertools.permutations(given_numbers):
        for chosen in itertools.product(ops, repeat=len(order) - 1):
            steps = list(zip("+" + "".join(chosen), order, strict=True))
            if calculator(steps) == target:
                found.add("".join(f"{operator}{number}" for operator, number in steps)[1:])
    assert solutions(given_numbers, target, ops) == sorted(found)


@given(st.data(), numbers, operators)
def test_an_answer_is_right_exactly_if_it_is_listed(data, given_numbers, ops):
    order = data.draw(st.permutations(given_numbers))
    symbols = data.draw(st.lists(st.sampled_from("+-*"), min_size=len(order) - 1, max_size=len(order) - 1))
    expression = str(order[0]) + "".join(f"{o}{n}" for o, n in zip(symbols, order[1:], strict=True))
    value = evaluate_left_to_right(expression)
    info = {"numbers": given_numbers, "target": 7 if value is None else value, "operators": ops}
    verifier = get_verifier("countdown")
    accepted = verifier.accepted_answers("", info)
    assert verifier.score(f"answer {expression}", "", info) == (expression in accepted)
    assert all(verifier.score(f"a try\nanswer {answer}", "", info) for answer in accepted)


@given(numbers, operators, st.integers(0, 99), st.text("0123456789+-* ", max_size=12))
def test_no_other_text_is_right(given_numbers, ops, target, text):
    info = {"numbers": given_numbers, "target": target, "operators": ops}
    verifier = get_verifier("countdown")
    if verifier.score(f"answer {text}", "", info):
        assert text.replace(" ", "") in verifier.accepted_answers("", info)
