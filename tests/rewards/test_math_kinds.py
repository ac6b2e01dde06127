"""Right and wrong math answers of every kind, graded as a reward grades them."""
# ruff: noqa: RUF001 - Unicode math has characters that look like others

import inspect
import json
import re
from pathlib import Path

import math_verify.grader
import pytest

from metatune.rewards import MathVerifier, math_equality

CASES = Path(__file__).parents[2].parent / "shared" / "cases" / "grading.jsonl"
MARKS = [
    "#### {}",
    "answer {}",
    "so $\\boxed{{{}}}$.",
    "\\fbox{{{}}}",
    "<answer>{}</answer>",
    "< answer >\n{}\n</ answer >",
    "The answer is {}.",
    "**Answer:** {}",
    "Final Answer: ${}$. I hope it is correct.",
]
IDENTICAL = [
    "x+1",
    "sqrt(2)",
    "(1,2)",
    "[1,2)",
    "C",
    "Paris",
    "New York",
    "3:4",
    "{1,2}",
    "12:00",
    "x > 1",
    "2516_7",
    "Mr. Smith",
    "n!",
]


@pytest.fixture(scope="module")
def verifier():
    verifier = MathVerifier(deadline=20.0)  # generous: here a slow machine must not fail a test
    yield verifier
    verifier.close()


def boxed(answer: str) -> str:
    return rf"So $\boxed{{{answer}}}$."


@pytest.mark.skipif(not CASES.exists(), reason="needs ../shared/cases/grading.jsonl")
def test_reported_cases(verifier):
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    verdicts = [verifier.score(case["completion"], case["reference"], {}) for case in cases]
    assert verdicts == [case["expected"] for case in cases]


@pytest.mark.parametrize("mark", MARKS)
def test_a_marked_answer_that_is_the_reference_is_right_whatever_it_is(verifier, mark):
    assert [verifier.score(mark.format(answer), answer, {}) for answer in IDENTICAL] == [True] * len(IDENTICAL)


@pytest.mark.parametrize("mark", MARKS)
def test_a_marked_answer_is_compared_with_the_reference_as_a_formula(verifier, mark):
    assert verifier.score(mark.format("1+x"), "x+1", {}) is True
    assert verifier.score(mark.format("x-1"), "x+1", {}) is False
    assert verifier.score(mark.format("17 or 18"), "18", {}) is False


@pytest.mark.parametrize(
    "reference",
    [
        *("42.", "$42$", "$42$.", r"\(42\)", "#### 42", "The answer is 42", "Answer: 42", r"\boxed{42}", "answer 42"),
        *("<answer>42</answer>", "**42**", "6 * 7 = 42\n#### 42", r"The product is $\boxed{42}$."),
    ],
)
def test_a_reference_is_normalized_as_an_answer_is(verifier, reference):
    assert verifier.score("#### 42", reference, {}) is True
    assert verifier.score(r"\boxed{6 \cdot 7}", reference, {}) is True
    assert verifier.score("#### 4", reference, {}) is False


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("<think>It is 7.</think>The answer is 12.", True),
        ("It is 7.</think>The answer is 12.", True),  # the chat template opened the thinking
        (r"<think>\boxed{12}</think>The answer is 7.", False),
        (r"<think>\boxed{12}</think>", False),
        ("<think>a</think>b<think>c</think>\nanswer 12", True),
        ("<thinking>7</thinking><answer>12</answer>", True),
        ("<THINK><answer>12</answer></THINK><answer>7</answer>", False),
        (r"<think>\boxed{12}", False),
        (r"\boxed{12}<think>", False),
        ("<think>a</think>#### 12\n<think>", False),
    ],
)
def test_thinking_never_counts(verifier, completion, right):
    assert verifier.score(completion, "12", {}) is right


@pytest.mark.parametrize(
    ("completion", "reference", "right"),
    [
        (r"\boxed{2} and \boxed{1}", "1, 2", True),
        (r"$\boxed{1}$, $\boxed{2}$, and $\boxed{3}$", "1,2,3", True),
        (r"\boxed{(6,2)} \quad \text{and} \quad \boxed{(2,2)}", "(2,2),(6,2)", True),
        (r"\boxed{1} and \boxed{2}", "1,2,3", False),
        (r"\boxed{1}, \boxed{2}, \boxed{3}", "1,2", False),
        (r"\boxed{1} \boxed{2}", "1", False),
        (r"\boxed{1} \boxed{2}", "2", False),
        (r"\boxed{1} or \boxed{2}", "2", False),
        (r"\boxed{2}, \boxed{2}", "2", True),
        (r"\boxed{1}. No, it must be \boxed{2}.", "2", True),
    ],
)
def test_boxes_that_only_separators_keep_apart_are_one_list(verifier, completion, reference, right):
    assert verifier.score(completion, reference, {}) is right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}", False),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False),
        ("0", "10^{-20}", False),
        (r"1\times10^{-20}", "10^{-20}", True),
        (r"(1.6\times10^{-19}, 1)", r"(3.2\times10^{-19}, 1)", False),
        ("10^{-20}x", r"2\cdot10^{-20}x", False),
        ("x=0.0000012", "x=0.0000014", False),
        ("1.0000001", "1", False),
        ("1+10^{-30}", "1", False),
        ("123456789012345678901", "123456789012345678902", False),
        ("262537412640768744", r"e^{\pi\sqrt{163}}", False),
        ("0.333333", r"\frac{1}{3}", True),
        ("0.333334", r"\frac{1}{3}", False),
        ("0.33", r"\frac{1}{3}", False),
        ("3.1415926", r"\pi", True),
        ("3.1415928", r"\pi", False),
        ("9.53674316e-7", "2^{-20}", True),
        ("1e-12", "2e-12", False),
        (r"1.6\times10^{-19}\text{ C}", r"3.2\times10^{-19}\text{ C}", False),
        (r"6.02\times10^{23}", "6.02e23", True),
        ("1.6e-19", r"1.6\times 10^{-18}", False),
        (r"12.5\%", "0.125", True),
        (r"12.5\%", "12.5", True),
        (r"12.5\%", "1.25", False),
        ("0,111", "0.111", True),
    ],
)
def test_numbers_are_compared_to_the_last_digit(verifier, answer, reference, right):
    assert verifier.score(boxed(answer), reference, {}) is right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("2516_7", "2516_8", False),
        ("2516_{8}", "2516_8", True),
        ("2516", "2516_8", True),
        ("2517", "2516_8", False),
        (r"2516_{\text{eight}}", "2516_8", True),
        ("2516 (base 8)", "2516_8", True),
        (r"2516_{\text{base }7}", "2516_8", False),
        ("1a_{16}", "1A_{16}", True),
        (r"\{11_2, 10_3\}", r"\{11_3, 10_2\}", False),
        ("a_1", "a_2", False),
    ],
)
def test_bases_of_numerals_count(verifier, answer, reference, right):
    assert verifier.score(boxed(answer), reference, {}) is right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("√(x+1)", r"\sqrt{x+1}", True),
        ("∛8", "2", True),
        ("2½", r"\frac{5}{2}", True),
        ("x³−1", "x^3-1", True),
        ("10⁻³", "0.001", True),
        ("x₁", "x_1", True),
        ("2516₇", "2516_8", False),
        ("3×10⁸", r"3\times10^8", True),
        ("6÷2·4", "12", True),
        ("x ≠ 2", r"x \ne 2", True),
        ("x ≤ 3", r"x \geq 3", False),
        ("(−∞,0)∪[1,∞)", r"(-\infty,0)\cup[1,\infty)", True),
        ("(−∞,0)∪[1,∞)", r"(-\infty,0)\cup(1,\infty)", False),
        ("(0,2)∩(1,3)", "(1,2)", True),
        ("±3", r"\pm 3", True),
        ("α+β", r"\beta+\alpha", True),
        ("ℝ", r"\mathbb{R}", True),
        ("∞", "5", False),
    ],
)
def test_unicode_math_is_read(verifier, answer, reference, right):
    assert verifier.score(boxed(answer), reference, {}) is right


def test_unicode_math_is_read_in_free_text(verifier):
    assert verifier.score("So we get 2√3.", r"2\sqrt{3}", {}) is True
    assert verifier.score("So we get 2√3.", "2", {}) is False
    assert verifier.score("The area is 25π.", "25", {}) is False


@pytest.mark.parametrize(
    ("completion", "reference", "right"),
    [
        (r"Hence \boxed 5.", "5", True),
        (r"Hence $\boxed 12$.", "12", True),
        (r"\boxed {5}", "5", True),
        (r"\fbox{6}", "5", False),
        (r"\boxed{5", "5", False),
        (boxed("£5"), "5", True),
        (boxed(r"\$1,000"), "1000", True),
        (boxed("5 USD"), r"\$5", True),
        (boxed("EUR 5"), "5€", True),
        (boxed("€5"), "£5", False),
        (boxed("€5"), "6", False),
        (boxed(r"12\;000"), "12000", True),
        (boxed("12{,}000"), "12000", True),
        (boxed("12\u202f000"), "12000", True),
        (boxed("12'000"), "12,000", True),
        (boxed("12, 000"), "12000", False),
        (boxed("1 2"), "12", False),
        ("#### +7", "-7", False),
        (boxed("(+1, +2)"), "(1,2)", True),
        (boxed("1+7"), "17", False),
        (boxed("7"), "70", False),
        (boxed(".5"), "5", False),
    ],
)
def test_latex_money_and_signs(verifier, completion, reference, right):
    assert verifier.score(completion, reference, {}) is right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("pi/2", r"\frac{\pi}{2}", True),
        ("sqrt(sqrt(2))", "2^{1/4}", True),
        ("(x+1)^(1/2)", r"\sqrt{x+1}", True),
        ("x**10", "x^{10}", True),
        ("x^10", "10x", False),
        ("sin(x)", r"\cos x", False),
        ("tan(x)", r"\frac{\sin x}{\cos x}", True),
        ("exp(2)", "e^2", True),
        ("-oo", r"-\infty", True),
        (r"\sqrt{1/n}", r"\frac{1}{\sqrt{n}}", True),
        (r"\frac{1}{n}", r"\frac{1}{\sqrt{n}}", False),
        (r"\sqrt{x^2}", "|x|", True),
        (r"\sqrt{x^2}", "x", False),
        ("|x-100|", "100-x", False),
        ("x^{2/3}", r"\sqrt[3]{x^2}", True),
    ],
)
def test_the_same_value_in_another_form(verifier, answer, reference, right):
    assert verifier.score(boxed(answer), reference, {}) is right


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("1:00", "12:00"),
        ("x > 1", r"x \neq 2"),
        (r"x \neq 2", "x > 1"),
        (r"\frac{1}{0}", "5"),
        ("5", r"\frac{1}{0}"),
        (r"\frac{0}{0}", "1"),
        (r"x\ne 0, x\ne 1", r"x \neq 0"),
        (r"x\in\emptyset", "5"),
    ],
)
def test_an_answer_that_math_verify_cannot_compare_is_wrong(verifier, answer, reference):
    assert verifier.score(boxed(answer), reference, {}) is False
    assert verifier.failures == {}


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("(1,2)", "[1,2]"),
        ("(1,2)", "(2,1)"),
        ("(1,2]", "[1,2)"),
        (r"\{1,2\}", "(1,2)"),
        (r"\{1\}", r"\{1,2\}"),
        ("3:4", "4:3"),
        ("2:40", "1:20"),  # times; as ratios they would be equal
        ("12 am", "12 pm"),
        ("CAB", "ABC"),
        ("D", "C"),
        ("(B) 12", "C"),
        ("London", "Paris"),
        ("5c", "5"),
        (r"\frac{1}{2}g", r"\frac{1}{2}"),
        ("2 million", "2"),
        ("at least 18", "18"),
        ("not 18", "18"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    ],
)
def test_similar_answers_that_are_wrong(verifier, answer, reference):
    assert verifier.score(boxed(answer), reference, {}) is False
    assert verifier.score(boxed(answer), answer, {}) is True


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("18 cm", "18"),
        (r"18\text{ cm}^2", "18 square centimeters"),
        ("about 18 eggs per day", "18"),
        (r"\frac{1}{2}\text{ of the cake}", "0.5"),
        ("2 million", "2,000,000"),
        ("50 percent", r"50\%"),
        ("(C) 12 cm", "C"),
        (r"\textbf{(C)}", "C"),
        ("PARIS", "Paris"),
        ("6:8", "3:4"),
    ],
)
def test_words_around_an_answer(verifier, answer, reference):
    assert verifier.score(boxed(answer), reference, {}) is True


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("half of 5", "5"),
        ("twice 5", "5"),
        ("square root of 5", "5"),
        ("the reciprocal of 5", "5"),
        ("up to 5", "5"),
        ("twenty 5", "5"),
        ("zero point 5", "5"),
        ("5 squared", "5"),
        ("3 fifths", "3"),
        ("5 tenths", "5"),
        ("0.3 repeating", "0.3"),
        ("5 at most", "5"),
        ("5 crore", "5"),
        ("5 hundred thousand", "500"),
        ("July 5", "June 5"),
        ("x'", "x"),
        ("f'(x)", "f(x)"),
        ("A^{\\prime}", "A"),
        ("negative 5", "5"),
        ("minus 3", "3"),
    ],
)
def test_words_and_primes_that_change_the_value_count(verifier, answer, reference):
    assert verifier.score(boxed(answer), reference, {}) is False
    assert verifier.score(boxed(answer), answer, {}) is True


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("negative 5", "-5"),
        ("5 hundred thousand", "500000"),
        ("3:30 pm", "3:30 PM"),
        (r"0.\overline{3}", r"\frac{1}{3}"),
        ("1.2\N{COMBINING OVERLINE}", "11/9"),
        (r"-2.1\overline{6}", r"-\frac{13}{6}"),
        ("-1<x<3", "(-1,3)"),
        (r"1 \le x < 3", "[1,3)"),
        (r"\varnothing", r"\emptyset"),
        ("\N{ZERO WIDTH SPACE}12\N{WORD JOINER}", "12"),
        ("△ABC", r"\triangle ABC"),
        ("x≡2 (mod 5)", r"x\equiv 2 \pmod{5}"),
        (r"f^{\prime}(x)", "f'(x)"),
        (r"f'(x) = 2x", "2x"),
    ],
)
def test_more_notations_of_one_value(verifier, answer, reference):
    assert verifier.score(boxed(answer), reference, {}) is True
    assert verifier.score(boxed(reference), answer, {}) is True


@pytest.mark.parametrize(
    ("opened", "closed"), [("◁think▷", "◁/think▷"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>")]
)
def test_thinking_of_other_models_never_counts(verifier, opened, closed):
    assert verifier.score(rf"{opened}\boxed{{5}}", "5", {}) is False
    assert verifier.score(rf"{opened}\boxed{{5}}{closed}\boxed{{6}}", "5", {}) is False
    assert verifier.score(rf"{opened}\boxed{{6}}{closed}\boxed{{5}}", "5", {}) is True


def test_the_function_that_is_replaced_is_the_one_that_math_verify_calls():
    replaced, ours = math_verify.grader.sympy_numeric_eq, math_equality.equal
    assert list(inspect.signature(replaced).parameters) == list(inspect.signature(ours).parameters)
    source = inspect.getsource(math_verify.grader.sympy_expr_eq)
    assert re.search(r"if sympy_numeric_eq\(gold, pred, float_rounding, numeric_precision\):\s+return True", source)
