# ruff: noqa: RUF001 - Unicode math has characters that look like others
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metatune.rewards.latex_text import from_ascii, from_unicode
from metatune.rewards.math_answer import final_answer, read_reference
from metatune.rewards.math_formula import Formula, read_formula

INTEGERS = st.integers(-(10**30), 10**30).map(str)
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, places=6).map("{:f}".format)
NAMES = st.text("abcdefghijklmnopqrstuvwxyzABC", min_size=1, max_size=12)
PAIRS = st.tuples(INTEGERS, INTEGERS).map(lambda pair: f"({pair[0]}, {pair[1]})")
ANSWERS = st.one_of(INTEGERS, DECIMALS, NAMES, PAIRS)
MARKS = st.sampled_from(
    ["#### {}", "answer {}", "\\boxed{{{}}}", "<answer>{}</answer>", "The answer is {}.", "**Answer:** ${}$"]
)


@settings(deadline=None)
@given(ANSWERS, MARKS)
def test_every_reference_equals_itself_under_every_mark(answer, mark):
    final = final_answer(mark.format(answer))
    assert isinstance(final, Formula)
    assert final.equals(read_reference(answer)) is True
    assert final.equals(read_reference(mark.format(answer))) is True


@settings(deadline=None)
@given(ANSWERS, st.sampled_from(["  {} ", "${}$", "\\( {} \\)", "{}.", "**{}**", "= {}", "$${}$$.", "\\, {} \\quad"]))
def test_what_surrounds_an_answer_does_not_matter(answer, written):
    assert read_formula(written.format(answer)).equals(read_formula(answer)) is True


@settings(deadline=None)
@given(st.one_of(INTEGERS, DECIMALS).map(lambda number: number.lstrip("-")))
def test_a_plus_sign_and_leading_zeros_do_not_matter_and_a_minus_sign_does(number):
    assert read_formula("+" + number).equals(read_formula(number)) is True
    assert read_formula("0" + number).equals(read_formula(number)) is True
    assert read_formula("-" + number).equals(read_formula(number)) is (float(number) == 0)


@settings(deadline=None)
@given(st.integers(1000, 10**15), st.sampled_from([",", "{,}", "\\,", "\\;", "\u2009", "\u00a0", " ", "'", "_"]))
def test_separators_of_thousands_do_not_matter(number, separator):
    assert read_formula(f"{number:,}".replace(",", separator)).text == str(number)


@settings(deadline=None)
@given(st.one_of(INTEGERS, DECIMALS), st.data())
def test_a_changed_digit_is_never_equal(number, data):
    place = data.draw(st.sampled_from([i for i, character in enumerate(number) if character.isdigit()]))
    digit = data.draw(st.sampled_from([digit for digit in "0123456789" if digit != number[place]]))
    changed = number[:place] + digit + number[place + 1 :]
    assert read_formula(changed).equals(read_formula(number)) is (float(number) == float(changed) == 0)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_read_and_equals_itself(text):
    assert read_formula(text).equals(read_formula(text)) is True


@pytest.mark.parametrize(
    ("written", "latex"),
    [
        ("2√3", r"2\sqrt{3}"),
        ("√(x+1)", r"\sqrt{x+1}"),
        ("x²⁺ⁿ", "x^{2+n}"),
        ("2516₇", "2516_{7}"),
        ("2½", r"2\frac{1}{2}"),
        ("½x", r"\frac{1}{2}x"),
        ("λ", r"\lambda "),
        ("Δ", r"\Delta "),
        ("（１，２）", "(1,2)"),
        ("sqrt(2(3+1))", r"\sqrt{2(3+1)}"),
        ("sqrt 12", r"\sqrt{12}"),
        ("sqrt{3}", r"\sqrt{3}"),
        ("cbrt(8)", r"\sqrt[3]{8}"),
        ("asin(x)", r"\arcsin (x)"),
        ("x**2", "x^2"),
        ("x^(n+1)", "x^{n+1}"),
        ("x^-1", "x^{-1}"),
        ("1.6E-19", r"1.6\times 10^{-19}"),
        ("2e-1", "2e-1"),  # e may be the constant
        ("spin", "spin"),
        (r"\sqrt{2}", r"\sqrt{2}"),
    ],
)
def test_other_notations_become_latex(written, latex):
    assert from_ascii(from_unicode(written)) == latex


@pytest.mark.parametrize(
    "repeated", ["sqrt(", "^(", "(", r"\text{", r"\boxed{", "1 ", "a ", "²", "$", "#### ", "answer: "]
)
def test_repetition_costs_no_time(repeated):
    started = time.perf_counter()
    final_answer(repeated * 20_000)
    read_formula((repeated * 4_000)[:4_000])
    assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("$$", "no answer to compare"),
        (r"\text{}", "no answer to compare"),
        ("...", "no answer to compare"),
        ("#### ", "no answer to compare"),
        ("The answer is", "no answer to compare"),
        (r"\boxed{}", "no answer to compare"),
        (r"\frac{1}{2", "do not balance"),
        ("x" * 3000, "has 3000 characters"),
    ],
)
def test_a_reference_that_cannot_equal_itself_is_refused(reference, problem):
    with pytest.raises(ValueError, match=problem):
        read_reference(reference)
