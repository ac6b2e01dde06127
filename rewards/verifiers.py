"""Verifiers: is a completion's final answer right?

A verdict is `True`, `False`, or `None` where the grader failed; a wrong or missing answer is `False`, never `None`.
"""

import difflib
import re
from typing import Any, Protocol

from .countdown import evaluate_left_to_right, solutions
from .extraction import ANSWER_LINE, VERDICT_TAG, extract_answer, extract_verdict
from .knights_and_knaves import KnightsAndKnavesVerifier
from .math_answer import MathVerifier
from .reasoning_gym_answer import ReasoningGymVerifier


class Verifier(Protocol):
    """
    Tells right answers from wrong ones.

    Attributes:
        needs_answer (`bool`): whether the reference `answer` is read; else all that is needed stands in `info`.

    A verifier may also have an attribute `answer_forms` (`Sequence[AnswerForm]`): the forms in which an answer may be
    written, the preferred form first. Forced answers use it, see [`Forcing`]. If a reference may have a mark, such as
    `#### 12`, a method `bare_reference(answer)` returns it without the mark.
    """

    needs_answer: bool

    def score(self, completion: str, answer: str, info: dict[str, Any]) -> bool | None:
        """
        Judge a completion.

        Args:
            completion (`str`): what the model wrote.
            answer (`str`): the task's reference answer.
            info (`dict`): what the verifier needs beside the reference; JSON values.

        Returns:
            `bool` or `None`: the verdict, or `None` if the grader failed on this completion.

        Raises:
            ValueError: `info` is not what the verifier needs.
        """

    def accepted_answers(self, answer: str, info: dict[str, Any]) -> list[str] | None:
        """List every accepted answer, or return `None` where they cannot be listed.

        An answer is in its canonical written form, without the text that opens and closes it (see `answer_forms`).
        """


class ExactVerifier:
    """The answer of a last line `answer X` equals the reference, up to case and runs of whitespace."""

    needs_answer = True
    answer_forms = (ANSWER_LINE,)

    def score(self, completion: str, answer: str, info: dict[str, Any]) -> bool:
        """Compare the extracted answer with the reference."""
        given = extract_answer(completion)
        return given is not None and _normalised(given) == _normalised(answer)

    def accepted_answers(self, answer: str, info: dict[str, Any]) -> list[str]:
        """List the reference alone."""
        return [answer]


class VerdictVerifier:
    """The last label in `<verdict>X</verdict>` equals the reference, up to case and runs of whitespace."""

    needs_answer = True
    answer_forms = (VERDICT_TAG,)

    def score(self, completion: str, answer: str, info: dict[str, Any]) -> bool:
        """Compare the verdict with the reference."""
        given = extract_verdict(completion)
        return given is not None and _normalised(given) == _normalised(answer)

    def accepted_answers(self, answer: str, info: dict[str, Any]) -> list[str]:
        """List the reference alone."""
        return [answer]


class CountdownVerifier:
    """The answer of a last line `answer X` is an expression that solves a countdown; see `countdown`.

    `info` has `numbers`, `target` and `operators`.
    """

    needs_answer = False
    answer_forms = (ANSWER_LINE,)

    def score(self, completion: str, answer: str, info: dict[str, Any]) -> bool:
        """Check numbers, operators and value; whitespace around operators is allowed, leading zeros are not."""
        numbers, target, operators = self._task(info)
        expression = re.sub(r" ?([-+*]) ?", r"\1", " ".join((extract_answer(completion) or "").split()))
        return (
            evaluate_left_to_right(expression) == target
            and sorted(re.findall(r"\d+", expression)) == sorted(map(str, numbers))
            and set(re.sub(r"\d", "", expression)) <= set(operators)
        )

    def accepted_answers(self, answer: str, info: dict[str, Any]) -> list[str]:
        """List all solutions."""
        return solutions(*self._task(info))

    def _task(self, info: dict[str, Any]) -> tuple[list[int], int, str]:
        try:
            return info["numbers"], info["target"], info["operators"]
        except KeyError as error:
            raise ValueError(f"countdown: info lacks {error}; it needs numbers, target and operators") from error


VERIFIERS: dict[str, Verifier] = {
    "exact": ExactVerifier(),
    "countdown": CountdownVerifier(),
    "knights_and_knaves": KnightsAndKnavesVerifier(),
    "math": MathVerifier(),
    "reasoning_gym": ReasoningGymVerifier(),
    "verdict": VerdictVerifier(),
}


def get_verifier(name: str) -> Verifier:
    """
    Look a verifier up.

    Raises:
        ValueError: there is no verifier of this name; the message has the nearest one.
    """
    if not name:
        raise ValueError("the row has no verifier: give its distribution one, or leave it out")
    if name not in VERIFIERS:
        close = difflib.get_close_matches(str(name), VERIFIERS, n=1, cutoff=0)
        raise ValueError(f"unknown verifier {name!r}; did you mean {close[0]!r}? There are {', '.join(VERIFIERS)}")
    return VERIFIERS[name]


def check_reference(name: str | None, answer: str) -> None:
    """
    Check a reference answer when data is loaded, before anything is graded against it.

    A verifier may have a method `check_reference(answer)` that raises `ValueError` if it would not grade the reference
    as equal to itself. It is called for every row, so it has to be fast.

    Args:
        name (`str`, *optional*): the row's verifier.
        answer (`str`): the reference.

    Raises:
        ValueError: the verifier cannot grade against this reference; the message has the reason.
    """
    check = getattr(get_verifier(name), "check_reference", None) if name else None
    if check is not None:
        check(answer)


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()
